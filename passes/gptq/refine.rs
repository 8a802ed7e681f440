//! Refinement: after the sweep, groups are solved again in turn with all others fixed, under the whole H.
//!
//! With everything but one group fixed, the loss is a quadratic form of the group's own block of H around the group's
//! optimum c = v − g H_gg⁻¹, where g is the gradient. Other scales and zero points are tried by a small sweep towards c,
//! which gives the exact loss of each; then single codes descend. Only what lowers the loss is kept. The damped H counts:
//! it is the one that the sweep minimizes, so that nothing already won is given back, and what calibration happened
//! not to see is not wholly free.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::{
    chunk::Chunk,
    descent::Columns,
    factor::Factor,
    lanes::{self, Lanes},
    triangular,
};
use crate::{
    codec::{ScaleFormat, ZeroPoint},
    passes::rtn::grid::{Grid, GroupScale},
};

/// Columns of a panel, whose changes reach the others in one product.
const PANEL: usize = 128;
/// Groups wider than this are not solved again: their scales stay.
pub const WIDEST: usize = PANEL;
/// Shares by which scales are changed, one per round.
const CHANGES: [f32; 6] = [0.08, 0.05, 0.03, 0.02, 0.012, 0.008];

/// The factors of the blocks of H that belong to one group each: H_gg⁻¹ = Uᵀ U.
pub struct Blocks {
    width: usize,
    factors: Vec<Vec<f32>>,
}

impl Blocks {
    /// Those of groups of `width` columns; none when that is too wide or a block is singular in F32.
    pub fn new(factor: &Factor, width: usize) -> Option<Self> {
        let columns = factor.columns;
        if width > WIDEST {
            return None;
        }
        let mut factors = Vec::new();
        for first in (0..columns).step_by(width) {
            let width = width.min(columns - first);
            let mut lower = vec![0.0; width * width];
            for column in 0..width {
                for row in column..width {
                    let (i, j) = (first + width - 1 - row, first + width - 1 - column);
                    lower[column * width + row] = f64::from(factor.hessian[i * columns + j]);
                }
            }
            triangular::cholesky(&mut lower, width).ok()?;
            triangular::invert_lower(&mut lower, width);
            let mut upper = vec![0.0; width * width];
            for row in 0..width {
                for column in row..width {
                    upper[row * width + column] = lower[(width - 1 - column) * width + width - 1 - row] as f32;
                }
            }
            factors.push(upper);
        }
        Some(Self { width, factors })
    }
}

/// A chunk under refinement.
pub struct Refinement<'c, 'a> {
    chunk: &'c mut Chunk<'a>,
    blocks: Option<&'c Blocks>,
    values: Vec<f32>,
    /// (v − t) H, stored like the target.
    gradient: Vec<f32>,
}

/// A group being solved again.
struct Local<'g> {
    grid: &'g Grid,
    upper: &'g [f32],
    width: usize,
    lanes: usize,
    /// The group's optimum with all others fixed.
    optimum: Vec<f32>,
    /// The best found.
    levels: Vec<f32>,
    groups: Vec<GroupScale>,
    losses: Vec<f64>,
}

impl<'c, 'a> Refinement<'c, 'a> {
    /// Starts from what the sweep has left.
    pub fn new(chunk: &'c mut Chunk<'a>, blocks: Option<&'c Blocks>) -> Self {
        let columns = chunk.factor.columns;
        let values = chunk.values();
        let differences: Vec<f32> = values.iter().zip(&chunk.target).map(|(value, target)| value - target).collect();
        let mut gradient = vec![0.0; values.len()];
        let hessian = MatRef::from_row_major_slice(&chunk.factor.hessian, columns, columns);
        let differences = MatRef::from_column_major_slice(&differences, chunk.lanes, columns);
        let to = MatMut::from_column_major_slice_mut(&mut gradient, chunk.lanes, columns);
        matmul(to, Accum::Replace, differences, hessian, 1.0, Par::Seq);
        let blocks = blocks.filter(|blocks| chunk.own_scales && blocks.width == chunk.width());
        Self { chunk, blocks, values, gradient }
    }

    /// Rounds until nothing changes. Returns how many changed anything.
    pub fn run(mut self, rounds: usize) -> usize {
        (0..rounds).take_while(|round| self.round(*round)).count()
    }

    fn round(&mut self, round: usize) -> bool {
        let (lanes, columns) = (self.chunk.lanes, self.chunk.factor.columns);
        let width = self.chunk.width();
        // A panel holds whole groups, or lies within one.
        let panel = if width < columns && width <= WIDEST { PANEL.next_multiple_of(width) } else { PANEL };
        let mut changed = false;
        for start in (0..columns).step_by(panel) {
            let end = columns.min(start + panel);
            let range = start * lanes..end * lanes;
            let before = self.values[range.clone()].to_vec();
            let mut gradient = self.gradient[range.clone()].to_vec();
            let mut first = start;
            while first < end {
                let group = first / width;
                let last = end.min((group + 1) * width);
                self.columns(round, group, first..last, start, &mut gradient);
                first = last;
            }
            let changes: Vec<f32> = self.values[range].iter().zip(&before).map(|(new, old)| new - old).collect();
            if changes.iter().all(|change| *change == 0.0) {
                continue;
            }
            changed = true;
            let hessian = MatRef::from_row_major_slice(&self.chunk.factor.hessian, columns, columns);
            let changes = MatRef::from_column_major_slice(&changes, lanes, end - start);
            let to = MatMut::from_column_major_slice_mut(&mut self.gradient, lanes, columns);
            matmul(to, Accum::Add, changes, hessian.subrows(start, end - start), 1.0, Par::Seq);
        }
        changed
    }

    /// Improves columns of one group. `gradient` is that of the panel, which starts at column `panel`.
    fn columns(
        &mut self,
        round: usize,
        group: usize,
        range: std::ops::Range<usize>,
        panel: usize,
        gradient: &mut [f32],
    ) {
        let (lanes, columns) = (self.chunk.lanes, self.chunk.factor.columns);
        let place = range.start * lanes..range.end * lanes;
        let before = self.values[place.clone()].to_vec();
        let inner = (range.start - panel) * lanes..(range.end - panel) * lanes;
        let mut own = gradient[inner.clone()].to_vec();
        let hessian = &self.chunk.factor.hessian;
        if let Some(blocks) = self.blocks {
            let upper = &blocks.factors[group];
            let mut local = Local::new(self.chunk, group, upper, &self.values[place.clone()], &own);
            local.search(round);
            let steps: Vec<f32> = local.groups.iter().map(|group| local.grid.step(group)).collect();
            for (index, level) in local.levels.iter().enumerate() {
                let value = level * steps[index % lanes];
                let change = value - self.values[place.start + index];
                self.values[place.start + index] = value;
                local.optimum[index] = change;
            }
            for (column, change) in local.optimum.chunks_exact(lanes).enumerate() {
                if change.iter().any(|change| *change != 0.0) {
                    let row = &hessian[(range.start + column) * columns..][range.clone()];
                    lanes::add_outer(&mut own, row, 1.0, change);
                }
            }
            self.chunk.levels[place.clone()].copy_from_slice(&local.levels);
            self.chunk.groups[group] = local.groups;
        }
        let scales = self.chunk.lanes_of(group);
        let descent = Columns {
            hessian: &hessian[range.start * columns + range.start..],
            stride: columns,
            scales: &scales,
            element: self.chunk.grid.element(),
            lanes,
        };
        descent.descend(&mut self.chunk.levels[place.clone()], &mut self.values[place.clone()], &mut own);
        let panel_columns = panel..panel + gradient.len() / lanes;
        let mut change = vec![0.0; lanes];
        for column in range {
            let index = column * lanes;
            for lane in 0..lanes {
                change[lane] = self.values[index + lane] - before[index - place.start + lane];
            }
            if change.iter().any(|change| *change != 0.0) {
                lanes::add_outer(gradient, &hessian[column * columns..][panel_columns.clone()], 1.0, &change);
            }
        }
    }
}

impl<'g> Local<'g> {
    fn new(chunk: &Chunk<'g>, group: usize, upper: &'g [f32], values: &[f32], gradient: &[f32]) -> Self {
        let lanes = chunk.lanes;
        let width = values.len() / lanes;
        let matrix = MatRef::from_row_major_slice(upper, width, width);
        let gradient = MatRef::from_column_major_slice(gradient, lanes, width);
        let mut half = vec![0.0; width * lanes];
        let to = MatMut::from_column_major_slice_mut(&mut half, lanes, width);
        matmul(to, Accum::Replace, gradient, matrix.transpose(), 1.0, Par::Seq);
        let mut losses = vec![0.0; lanes];
        for column in half.chunks_exact(lanes) {
            losses.iter_mut().zip(column).for_each(|(loss, value)| *loss += f64::from(*value) * f64::from(*value));
        }
        let mut optimum = values.to_vec();
        let half = MatRef::from_column_major_slice(&half, lanes, width);
        let to = MatMut::from_column_major_slice_mut(&mut optimum, lanes, width);
        matmul(to, Accum::Add, half, matrix, -1.0, Par::Seq);
        let columns = chunk.columns_of(group);
        let levels = chunk.levels[columns.start * lanes..columns.end * lanes].to_vec();
        Self { grid: chunk.grid, upper, width, lanes, optimum, levels, groups: chunk.groups[group].clone(), losses }
    }

    /// Tries neighbouring scales and zero points.
    fn search(&mut self, round: usize) {
        let change = CHANGES[round.min(CHANGES.len() - 1)];
        let factors = match self.grid.scale_format() {
            ScaleFormat::E8M0 => vec![1.0, 2.0, 0.5],
            ScaleFormat::E4M3OverGlobal => vec![1.0, 1.125, 0.875],
            _ => vec![1.0, 1.0 + change, 1.0 - change],
        };
        let zeros: &[f64] = if self.grid.zero_point() == ZeroPoint::None { &[0.0] } else { &[0.0, -1.0, 1.0] };
        let start = self.groups.clone();
        for zero in zeros {
            for factor in &factors {
                let candidates: Vec<GroupScale> =
                    start.iter().map(|group| self.neighbour(group, *factor, *zero)).collect();
                self.attempt(&candidates);
            }
        }
    }

    fn neighbour(&self, group: &GroupScale, factor: f32, shift: f64) -> GroupScale {
        let zero = match self.grid.zero_point() {
            ZeroPoint::None => group.zero,
            ZeroPoint::Integer => self.grid.whole_zero(f64::from(group.zero) + shift),
            ZeroPoint::Float => self.grid.float_zero(f64::from(group.zero) + 0.25 * shift),
        };
        if factor == 1.0 {
            return GroupScale { zero, ..*group };
        }
        GroupScale { zero_clamped: group.zero_clamped, ..self.grid.group(self.grid.step(group) * factor, zero) }
    }

    /// Sweeps towards the optimum with these scales, and keeps what is better.
    fn attempt(&mut self, candidates: &[GroupScale]) {
        let lanes = self.lanes;
        let scales = Lanes::new(self.grid, candidates);
        let mut work = self.optimum.clone();
        let mut levels = vec![0.0; work.len()];
        let mut losses = vec![0.0_f64; lanes];
        let mut error = vec![0.0; lanes];
        for column in 0..self.width {
            let row = &self.upper[column * self.width..][..self.width];
            let (done, rest) = work.split_at_mut((column + 1) * lanes);
            let weights = &done[column * lanes..];
            let levels = &mut levels[column * lanes..][..lanes];
            lanes::round(self.grid.element(), weights, &scales, levels);
            let inverse = 1.0 / row[column];
            for lane in 0..lanes {
                error[lane] = (weights[lane] - levels[lane] * scales.step[lane]) * inverse;
                losses[lane] += f64::from(error[lane]) * f64::from(error[lane]);
            }
            lanes::add_outer(rest, &row[column + 1..], -1.0, &error);
        }
        for lane in 0..lanes {
            if losses[lane] < self.losses[lane] * (1.0 - 1e-5) {
                self.losses[lane] = losses[lane];
                self.groups[lane] = candidates[lane];
                for column in 0..self.width {
                    self.levels[column * lanes + lane] = levels[column * lanes + lane];
                }
            }
        }
    }
}
