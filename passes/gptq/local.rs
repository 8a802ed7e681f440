//! One group solved again while all others stay.
//!
//! With everything but one group fixed, the loss is a quadratic form of the group's own block of H around the group's
//! optimum `c = v − g H_gg⁻¹`, where g is the gradient. Other scales and zero points are tried by a small sweep towards c,
//! which gives the exact loss of each.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{
    chunk::Chunk,
    factor::{Factor, upper_of},
    lanes::{self, Lanes},
    options::Order,
};
use crate::{
    codec::{ScaleFormat, ZeroPoint},
    passes::rtn::grid::{Grid, GroupScale},
};

/// Groups wider than this are not solved again.
pub const WIDEST: usize = 512;
/// Shares by which scales are changed, one per round.
const CHANGES: [f32; 6] = [0.08, 0.05, 0.03, 0.02, 0.012, 0.008];
/// How much better a candidate must be than F32 sums are exact.
const BETTER: f64 = 1.0 - 1e-5;

/// The factors of the blocks of H that belong to one group each.
pub struct Blocks(Vec<Block>);

/// `H_gg⁻¹ = Uᵀ U`.
pub struct Block {
    /// The group's columns, counted from its first, in the order of the sweep.
    order: Vec<usize>,
    /// U, upper triangular, row-major.
    upper: Vec<f32>,
}

impl Blocks {
    /// Those of groups of `width` columns; none when that is too wide or a block does not factor.
    pub fn new(factor: &Factor, width: usize) -> Option<Self> {
        let columns = factor.columns;
        if width > WIDEST {
            return None;
        }
        let groups = (0..columns.div_ceil(width)).into_par_iter();
        let blocks = groups.map(|group| {
            let first = group * width;
            let mut order: Vec<usize> = (0..width.min(columns - first)).collect();
            order.sort_by_key(|column| factor.places[first + column]);
            let element =
                |row: usize, column: usize| f64::from(factor.hessian[(first + row) * columns + first + column]);
            let (upper, order) = upper_of(element, &order, Order::Conditional).ok()?;
            Some(Block { order, upper })
        });
        blocks.collect::<Option<Vec<Block>>>().map(Self)
    }

    /// That of one group.
    pub fn of(&self, group: usize) -> &Block {
        &self.0[group]
    }
}

/// A group being solved again.
pub struct Local<'g> {
    grid: &'g Grid,
    block: &'g Block,
    lanes: usize,
    /// Which of the group's weights a mask keeps.
    kept: Option<Vec<bool>>,
    /// The group's optimum with all others fixed, in the order of the block.
    optimum: Vec<f32>,
    /// The best levels found, in the original order.
    pub levels: Vec<f32>,
    /// The best scales found.
    pub groups: Vec<GroupScale>,
    /// The start, with the scales that are best for its levels.
    rescaled: Vec<GroupScale>,
    /// The losses at the start, less that of the optimum.
    before: Vec<f64>,
    /// Those of the best found.
    losses: Vec<f64>,
}

impl<'g> Local<'g> {
    /// Starts from the group as it stands; `gradient` is that of its columns.
    pub fn new(chunk: &Chunk<'g>, group: usize, block: &'g Block, gradient: &[f32]) -> Self {
        let lanes = chunk.lanes;
        let columns = chunk.columns_of(group);
        let width = columns.len();
        let levels = chunk.levels[columns.start * lanes..columns.end * lanes].to_vec();
        let groups = chunk.groups[group].clone();
        let steps: Vec<f32> = groups.iter().map(|group| chunk.grid.step(group)).collect();
        let mut values = levels.clone();
        for column in values.chunks_exact_mut(lanes) {
            column.iter_mut().zip(&steps).for_each(|(level, step)| *level *= step);
        }
        let rescaled = rescaled(chunk, columns.start, &groups, &values, gradient);
        let in_order = |from: &[f32]| -> Vec<f32> {
            block.order.iter().flat_map(|column| &from[column * lanes..][..lanes]).copied().collect()
        };
        let gradient = in_order(gradient);
        let upper = MatRef::from_row_major_slice(&block.upper, width, width);
        let mut half = vec![0.0; width * lanes];
        let from = MatRef::from_column_major_slice(&gradient, lanes, width);
        let to = MatMut::from_column_major_slice_mut(&mut half, lanes, width);
        matmul(to, Accum::Replace, from, upper.transpose(), 1.0, Par::Seq);
        let mut losses = vec![0.0; lanes];
        for column in half.chunks_exact(lanes) {
            losses.iter_mut().zip(column).for_each(|(loss, value)| *loss += f64::from(*value) * f64::from(*value));
        }
        let mut optimum = in_order(&values);
        let half = MatRef::from_column_major_slice(&half, lanes, width);
        let to = MatMut::from_column_major_slice_mut(&mut optimum, lanes, width);
        matmul(to, Accum::Add, half, upper, -1.0, Par::Seq);
        let kept = chunk.kept_of(columns).map(<[bool]>::to_vec);
        Self { grid: chunk.grid, kept, rescaled, block, lanes, optimum, levels, groups, before: losses.clone(), losses }
    }

    /// Tries neighbouring scales and zero points.
    pub fn search(&mut self, round: usize) {
        let change = CHANGES[round.min(CHANGES.len() - 1)];
        let factors = match self.grid.scale_format() {
            ScaleFormat::E8M0 => [1.0, 2.0, 0.5],
            ScaleFormat::E4M3OverGlobal => [1.0, 1.125, 0.875],
            _ => [1.0, 1.0 + change, 1.0 - change],
        };
        let zeros: &[f64] = match self.grid.zero_point() {
            ZeroPoint::None => &[0.0],
            ZeroPoint::Integer => &[0.0, -1.0, 1.0],
            ZeroPoint::Float | ZeroPoint::Minimum => &[0.0, -0.25, 0.25],
        };
        // Neighbours are those of the scale that is best for the levels as they are; the scale they have now comes last.
        let start = std::mem::take(&mut self.rescaled);
        let unscaled = self.groups.clone();
        for zero in zeros {
            for factor in factors {
                let candidates: Vec<GroupScale> =
                    start.iter().map(|group| self.neighbour(group, factor, *zero)).collect();
                self.attempt(&candidates);
            }
        }
        self.attempt(&unscaled);
    }

    /// Adds by how much the losses have fallen.
    pub fn gains(&self, gains: &mut [f64]) {
        for ((gain, before), after) in gains.iter_mut().zip(&self.before).zip(&self.losses) {
            *gain += before - after;
        }
    }

    fn neighbour(&self, group: &GroupScale, factor: f32, shift: f64) -> GroupScale {
        let moved = self.grid.moved(group, f64::from(group.zero) + shift);
        if factor == 1.0 {
            return moved;
        }
        GroupScale { zero_clamped: group.zero_clamped, ..self.grid.group(self.grid.step(group) * factor, moved.zero) }
    }

    /// Sweeps towards the optimum with these scales, and keeps what is better.
    fn attempt(&mut self, candidates: &[GroupScale]) {
        let (lanes, width) = (self.lanes, self.block.order.len());
        let scales = Lanes::new(self.grid, candidates);
        let mut work = self.optimum.clone();
        let mut levels = vec![0.0; work.len()];
        let mut losses = vec![0.0_f64; lanes];
        let mut error = vec![0.0; lanes];
        for place in 0..width {
            let row = &self.block.upper[place * width..][..width];
            let (done, rest) = work.split_at_mut((place + 1) * lanes);
            let weights = &done[place * lanes..];
            let levels = &mut levels[place * lanes..][..lanes];
            lanes::round(self.grid.element(), weights, &scales, levels);
            if let Some(kept) = &self.kept {
                lanes::keep_only(levels, &kept[self.block.order[place] * lanes..][..lanes]);
            }
            let inverse = 1.0 / row[place];
            for lane in 0..lanes {
                error[lane] = (weights[lane] - levels[lane] * scales.step[lane]) * inverse;
                losses[lane] += f64::from(error[lane]) * f64::from(error[lane]);
            }
            lanes::add_outer(rest, &row[place + 1..], -1.0, &error);
        }
        for lane in 0..lanes {
            if losses[lane] < self.losses[lane] * BETTER {
                self.losses[lane] = losses[lane];
                self.groups[lane] = candidates[lane];
                for (place, column) in self.block.order.iter().enumerate() {
                    self.levels[column * lanes + lane] = levels[place * lanes + lane];
                }
            }
        }
    }
}

/// The scales that are best for the levels as they are, and all else as it is: a step (α − 1) v changes the loss by
/// 2 (α − 1) v gᵀ + (α − 1)² v H vᵀ, where v is the group's values and g their gradient.
fn rescaled(chunk: &Chunk, first: usize, groups: &[GroupScale], values: &[f32], gradient: &[f32]) -> Vec<GroupScale> {
    if chunk.grid.scale_format() == ScaleFormat::E8M0 {
        return groups.to_vec();
    }
    let (lanes, columns) = (chunk.lanes, chunk.factor.columns);
    let width = values.len() / lanes;
    let hessian = MatRef::from_row_major_slice(&chunk.factor.hessian, columns, columns);
    let mut own = vec![0.0; values.len()];
    let to = MatMut::from_column_major_slice_mut(&mut own, lanes, width);
    let from = MatRef::from_column_major_slice(values, lanes, width);
    matmul(to, Accum::Replace, from, hessian.submatrix(first, first, width, width), 1.0, Par::Seq);
    let (mut slope, mut curvature) = (vec![0.0_f32; lanes], vec![0.0_f32; lanes]);
    let columns = values.chunks_exact(lanes).zip(own.chunks_exact(lanes)).zip(gradient.chunks_exact(lanes));
    for ((values, own), gradient) in columns {
        for lane in 0..lanes {
            slope[lane] += values[lane] * gradient[lane];
            curvature[lane] += values[lane] * own[lane];
        }
    }
    let shares = slope.iter().zip(curvature).map(|(slope, curvature)| 1.0 - slope / curvature);
    let best = groups.iter().zip(shares).map(|(group, share)| {
        // A group of zeros has no curvature, and a share far from 1 is not meant.
        if (0.5..2.0).contains(&share) {
            let scale = chunk.grid.group(chunk.grid.step(group) * share, group.zero);
            GroupScale { zero_clamped: group.zero_clamped, ..scale }
        } else {
            *group
        }
    });
    best.collect()
}
