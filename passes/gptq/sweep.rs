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

impl Sweep {
    /// Finds the chunk's levels, and its groups where they are still to be found. Returns each row's loss against the
    /// target under the damped H: the sum of squared compensated errors.
    pub fn run(self, chunk: &mut Chunk) -> Vec<f64> {
        let (lanes, columns) = (chunk.lanes, chunk.factor.columns);
        let factor = chunk.factor;
        let mut work = vec![0.0; columns * lanes];
        for (to, column) in work.chunks_exact_mut(lanes).zip(&factor.permutation) {
            to.copy_from_slice(&chunk.target[column * lanes..][..lanes]);
        }
        let upper = MatRef::from_row_major_slice(&factor.upper, columns, columns);
        let mut scales: Vec<Option<Lanes>> = vec![None; chunk.groups.len()];
        let mut errors = vec![0.0; self.block.clamp(1, columns.max(1)) * lanes];
        let mut losses = vec![0.0; lanes];
        let width = chunk.width();
        for start in (0..columns).step_by(self.block.max(1)) {
            let block = start..columns.min(start + self.block.max(1));
            for place in block.clone() {
                let column = factor.permutation[place];
                let group = column / width;
                if scales[group].is_none() {
                    if chunk.groups[group].is_empty() {
                        let pending = Pending { block: &block, place, errors: &errors };
                        let weights = current(chunk, &work, group, &pending);
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
                if let Some(kept) = &chunk.kept {
                    // What has been pushed onto a weight that has to be zero is an error as any other.
                    lanes::keep_only(levels, &kept[column * lanes..][..lanes]);
                }
                let row = &factor.upper[place * columns..][..block.end];
                let inverse = 1.0 / row[place];
                let error = &mut errors[(place - start) * lanes..][..lanes];
                for (lane, error) in error.iter_mut().enumerate() {
                    *error = (weights[lane] - levels[lane] * scales.step[lane]) * inverse;
                    losses[lane] += f64::from(*error) * f64::from(*error);
                }
                lanes::add_outer(rest, &row[place + 1..], -1.0, error);
            }
            let rest = columns - block.end;
            if rest > 0 {
                let errors = MatRef::from_column_major_slice(&errors[..block.len() * lanes], lanes, block.len());
                let to = MatMut::from_column_major_slice_mut(&mut work[block.end * lanes..], lanes, rest);
                let rows = upper.submatrix(start, block.end, block.len(), rest);
                matmul(to, Accum::Add, errors, rows, -1.0, Par::Seq);
            }
        }
        losses
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
    if let Some(kept) = chunk.kept_of(chunk.columns_of(group)) {
        lanes::keep_only(&mut weights, kept);
    }
    weights
}

/// How much each column of a group counts: its second moment, damped.
pub fn importance(chunk: &Chunk, group: usize) -> Vec<f32> {
    let columns = chunk.factor.columns;
    chunk.columns_of(group).map(|column| chunk.factor.hessian[column * columns + column]).collect()
}
