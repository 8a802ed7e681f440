//! The sweep over the columns: quantize one, let those still to come take its error.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::{
    chunk::Chunk,
    lanes::{self, Lanes},
    search::Group,
};

/// How to sweep.
#[derive(Debug, Clone, Copy)]
pub struct Sweep {
    /// Columns between updates of the rest.
    pub block: usize,
    /// Scale candidates of each group.
    pub search_steps: usize,
}

/// A chunk that is being swept.
pub struct Running {
    /// What is left of the target, columns in the order of the sweep.
    pub work: Vec<f32>,
    /// Compensated errors of the block in hand.
    pub errors: Vec<f32>,
    /// Each row's loss so far.
    pub losses: Vec<f64>,
    scales: Vec<Option<Lanes>>,
}

impl Sweep {
    /// Finds the chunk's levels, and its groups where they are still to be found. Returns each row's loss against the
    /// target under the damped H: the sum of squared compensated errors.
    pub fn run(self, chunk: &mut Chunk) -> Vec<f64> {
        let (lanes, columns) = (chunk.lanes, chunk.factor.columns);
        let upper = MatRef::from_row_major_slice(&chunk.factor.upper, columns, columns);
        let mut running = self.start(chunk);
        for block in self.blocks(columns) {
            self.block(chunk, &mut running, block.clone());
            let rest = columns - block.end;
            if rest > 0 {
                let errors = &running.errors[..block.len() * lanes];
                let errors = MatRef::from_column_major_slice(errors, lanes, block.len());
                let to = MatMut::from_column_major_slice_mut(&mut running.work[block.end * lanes..], lanes, rest);
                let rows = upper.submatrix(block.start, block.end, block.len(), rest);
                matmul(to, Accum::Add, errors, rows, -1.0, Par::Seq);
            }
        }
        running.losses
    }

    /// The columns that are swept before the rest hears of it.
    pub fn blocks(self, columns: usize) -> impl Iterator<Item = Range<usize>> {
        let size = self.block.max(1);
        (0..columns).step_by(size).map(move |start| start..columns.min(start + size))
    }

    /// A chunk before its first block.
    pub fn start(self, chunk: &Chunk) -> Running {
        let (lanes, columns) = (chunk.lanes, chunk.factor.columns);
        let mut work = vec![0.0; columns * lanes];
        for (to, column) in work.chunks_exact_mut(lanes).zip(&chunk.factor.permutation) {
            to.copy_from_slice(&chunk.target[column * lanes..][..lanes]);
        }
        let errors = vec![0.0; self.block.clamp(1, columns.max(1)) * lanes];
        Running { work, errors, losses: vec![0.0; lanes], scales: vec![None; chunk.groups.len()] }
    }

    /// Whether a group is first touched in this block, whose scales are then searched in columns behind the block.
    pub fn begins_group(chunk: &Chunk, running: &Running, block: Range<usize>) -> bool {
        let mut groups = block.map(|place| chunk.factor.permutation[place] / chunk.width());
        groups.any(|group| running.scales[group].is_none() && chunk.groups[group].is_empty())
    }

    /// Sweeps over one block; its errors are still to reach the rest.
    pub fn block(self, chunk: &mut Chunk, running: &mut Running, block: Range<usize>) {
        let (lanes, columns) = (chunk.lanes, chunk.factor.columns);
        let factor = chunk.factor;
        let width = chunk.width();
        let Running { work, errors, losses, scales } = running;
        for place in block.clone() {
            let column = factor.permutation[place];
            let group = column / width;
            if scales[group].is_none() {
                if chunk.groups[group].is_empty() {
                    let pending = Pending { block: &block, place, errors };
                    let weights = current(chunk, work, group, &pending);
                    let importance = importance(chunk, group);
                    let found = Group { grid: chunk.grid, weights: &weights, importance: &importance, rows: lanes };
                    chunk.groups[group] = found.search(self.search_steps);
                }
                scales[group] = Some(chunk.lanes_of(group));
            }
            let Some(scales) = &scales[group] else { continue };
            let (done, rest) = work[..block.end * lanes].split_at_mut((place + 1) * lanes);
            let weights = &done[place * lanes..];
            let levels = &mut chunk.levels[column * lanes..][..lanes];
            lanes::round(chunk.grid.element(), weights, scales, levels);
            let row = &factor.upper[place * columns..][..block.end];
            let inverse = 1.0 / row[place];
            let error = &mut errors[(place - block.start) * lanes..][..lanes];
            for (lane, error) in error.iter_mut().enumerate() {
                *error = (weights[lane] - levels[lane] * scales.step[lane]) * inverse;
                losses[lane] += f64::from(*error) * f64::from(*error);
            }
            lanes::add_outer(rest, &row[place + 1..], -1.0, error);
        }
    }
}

/// What the columns after the block still miss.
struct Pending<'a> {
    block: &'a Range<usize>,
    place: usize,
    errors: &'a [f32],
}

/// The group's columns as they would stand if everything done so far had reached them.
fn current(chunk: &Chunk, work: &[f32], group: usize, pending: &Pending) -> Vec<f32> {
    let (lanes, columns) = (chunk.lanes, chunk.factor.columns);
    let mut weights = Vec::with_capacity(chunk.columns_of(group).len() * lanes);
    for column in chunk.columns_of(group) {
        let place = chunk.factor.places[column];
        let start = weights.len();
        weights.extend_from_slice(&work[place * lanes..][..lanes]);
        if place >= pending.block.end {
            let done = pending.block.start..pending.place;
            for (earlier, error) in done.zip(pending.errors.chunks_exact(lanes)) {
                lanes::add_scaled(&mut weights[start..], -chunk.factor.upper[earlier * columns + place], error);
            }
        }
    }
    weights
}

/// How much each column of a group counts: its second moment, damped.
pub fn importance(chunk: &Chunk, group: usize) -> Vec<f32> {
    let columns = chunk.factor.columns;
    chunk.columns_of(group).map(|column| chunk.factor.hessian[column * columns + column]).collect()
}
