//! Refinement: after the sweep, groups are solved again in turn with all others fixed, under the whole H.
//!
//! The damped H counts, as in the sweep: so nothing already won is given back, and what calibration happened not to see
//! is not wholly free. (With the undamped one, layers fit the calibration data better and the model fits its text worse.)

use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::{
    chunk::Chunk,
    descent::Columns,
    lanes,
    local::{Blocks, Local, WIDEST},
};
use crate::{codec::ScaleFormat, passes::rtn::grid::GroupScale};

/// Columns whose gradient is computed by one product.
const PANEL: usize = 128;
/// Share of the chunk's loss that a round must gain for another one to be worth its time.
const WORTH: f64 = 2e-3;

/// A chunk under refinement.
pub struct Refinement<'c, 'a> {
    chunk: &'c mut Chunk<'a>,
    blocks: Option<&'c Blocks>,
    /// v − t, stored like the target.
    differences: Vec<f32>,
    /// By how much each row's loss has fallen.
    gains: Vec<f64>,
    /// The loss of all rows at the start.
    loss: f64,
}

impl<'c, 'a> Refinement<'c, 'a> {
    /// Starts from the chunk's levels, whose loss is given.
    pub fn new(chunk: &'c mut Chunk<'a>, blocks: Option<&'c Blocks>, loss: f64) -> Self {
        let mut differences = chunk.values();
        differences.iter_mut().zip(&chunk.target).for_each(|(value, target)| *value -= target);
        let gains = vec![0.0; chunk.lanes];
        Self { blocks: blocks.filter(|_| chunk.own_scales), chunk, differences, gains, loss }
    }

    /// Goes round until little changes. Returns how many rounds changed more than a little, and by how much the rows'
    /// losses fell.
    pub fn run(mut self, rounds: usize) -> (usize, Vec<f64>) {
        let rounds = (0..rounds).take_while(|round| self.round(*round)).count();
        (rounds, self.gains)
    }

    fn round(&mut self, round: usize) -> bool {
        let before = self.gained();
        for group in self.rescaled_groups() {
            self.rescale(group, Self::gradient);
        }
        for panel in self.panels() {
            let mut gradient = self.gradient(panel.clone());
            self.panel(round, panel, &mut gradient);
        }
        self.is_worth_another(before)
    }

    /// By how much the losses of all rows have fallen.
    pub fn gained(&self) -> f64 {
        self.gains.iter().sum()
    }

    /// By how much each row's loss has fallen.
    pub fn gains(self) -> Vec<f64> {
        self.gains
    }

    /// Whether a round before which so much had been gained changed more than a little.
    pub fn is_worth_another(&self, before: f64) -> bool {
        let gained = self.gained();
        gained - before > WORTH * (self.loss - gained)
    }

    /// v − t, stored like the target.
    pub fn differences(&self) -> &[f32] {
        &self.differences
    }

    /// The columns whose gradient is computed together: whole groups, unless they are too wide to be solved as a whole.
    pub fn panels(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (columns, width) = (self.chunk.factor.columns, self.chunk.width());
        let panel = if width <= WIDEST { PANEL.next_multiple_of(width) } else { PANEL };
        (0..columns).step_by(panel).map(move |start| start..columns.min(start + panel))
    }

    /// Groups that are too wide to be solved as a whole, whose scales are fitted to their levels first.
    pub fn rescaled_groups(&self) -> Range<usize> {
        let chunk = &self.chunk;
        let any = chunk.width() > WIDEST && chunk.own_scales && chunk.grid.scale_format() != ScaleFormat::E8M0;
        0..if any { chunk.groups.len() } else { 0 }
    }

    /// The columns of a group.
    pub fn columns_of(&self, group: usize) -> Range<usize> {
        self.chunk.columns_of(group)
    }

    /// Improves the columns of a panel, whose gradient is given.
    pub fn panel(&mut self, round: usize, panel: Range<usize>, gradient: &mut [f32]) {
        let width = self.chunk.width();
        let mut first = panel.start;
        while first < panel.end {
            let group = first / width;
            let last = panel.end.min((group + 1) * width);
            self.improve(round, group, first..last, panel.start, gradient);
            first = last;
        }
    }

    /// (v − t) H for some columns.
    fn gradient(&self, range: Range<usize>) -> Vec<f32> {
        let (lanes, columns) = (self.chunk.lanes, self.chunk.factor.columns);
        let mut gradient = vec![0.0; range.len() * lanes];
        let hessian = MatRef::from_row_major_slice(&self.chunk.factor.hessian, columns, columns);
        let differences = MatRef::from_column_major_slice(&self.differences, lanes, columns);
        let to = MatMut::from_column_major_slice_mut(&mut gradient, lanes, range.len());
        // H is symmetric, and its rows lie in one piece.
        let hessian = hessian.subrows(range.start, range.len()).transpose();
        matmul(to, Accum::Replace, differences, hessian, 1.0, Par::Seq);
        gradient
    }

    /// Improves columns of one group. `gradient` is that of the panel, which starts at column `panel`.
    fn improve(&mut self, round: usize, group: usize, range: Range<usize>, panel: usize, gradient: &mut [f32]) {
        let (lanes, columns) = (self.chunk.lanes, self.chunk.factor.columns);
        let place = range.start * lanes..range.end * lanes;
        let mut own = gradient[(range.start - panel) * lanes..(range.end - panel) * lanes].to_vec();
        let hessian = &self.chunk.factor.hessian;
        let before = self.differences[place.clone()].to_vec();
        if let Some(blocks) = self.blocks {
            let mut local = Local::new(self.chunk, group, blocks.of(group), &own);
            local.search(round);
            local.gains(&mut self.gains);
            self.chunk.levels[place.clone()].copy_from_slice(&local.levels);
            self.chunk.groups[group] = local.groups;
            self.update(group, range.clone());
            let changes = changes(&self.differences[place.clone()], &before);
            self.spread(range.clone(), &changes, range.clone(), &mut own);
        }
        let scales = self.chunk.lanes_of(group);
        let columns_of_group = Columns {
            hessian: &hessian[range.start * columns + range.start..],
            stride: columns,
            scales: &scales,
            element: self.chunk.grid.element(),
            kept: self.chunk.kept.as_ref().map(|kept| &kept[place.clone()]),
            lanes,
        };
        columns_of_group.descend(&mut self.chunk.levels[place.clone()], &mut own, &mut self.gains);
        self.update(group, range.clone());
        let changes = changes(&self.differences[place], &before);
        let width = gradient.len() / lanes;
        self.spread(range, &changes, panel..panel + width, gradient);
    }

    /// Computes v − t anew for some columns of a group.
    fn update(&mut self, group: usize, range: Range<usize>) {
        let lanes = self.chunk.lanes;
        let steps: Vec<f32> = self.chunk.groups[group].iter().map(|scale| self.chunk.grid.step(scale)).collect();
        for column in range {
            let place = column * lanes..(column + 1) * lanes;
            let given = self.chunk.levels[place.clone()].iter().zip(&self.chunk.target[place.clone()]);
            for ((difference, (level, target)), step) in self.differences[place].iter_mut().zip(given).zip(&steps) {
                *difference = level * step - target;
            }
        }
    }

    /// Brings changes of some columns to the gradient of others.
    fn spread(&self, range: Range<usize>, changes: &[f32], to: Range<usize>, gradient: &mut [f32]) {
        let columns = self.chunk.factor.columns;
        for (column, change) in range.zip(changes.chunks_exact(self.chunk.lanes)) {
            if change.iter().any(|change| *change != 0.0) {
                let row = &self.chunk.factor.hessian[column * columns..][to.clone()];
                lanes::add_outer(gradient, row, 1.0, change);
            }
        }
    }

    /// The best scale of a wide group with its levels fixed: v is the group's values, g their gradient; a step (α − 1) v
    /// changes the loss by 2 (α − 1) v gᵀ + (α − 1)² v H vᵀ.
    pub fn rescale(&mut self, group: usize, gradient_of: impl Fn(&Self, Range<usize>) -> Vec<f32>) {
        let (lanes, columns) = (self.chunk.lanes, self.chunk.factor.columns);
        let range = self.chunk.columns_of(group);
        let place = range.start * lanes..range.end * lanes;
        let mut values = self.differences[place.clone()].to_vec();
        values.iter_mut().zip(&self.chunk.target[place.clone()]).for_each(|(value, target)| *value += target);
        let (mut slope, mut curvature) = (vec![0.0_f64; lanes], vec![0.0_f64; lanes]);
        let hessian = MatRef::from_row_major_slice(&self.chunk.factor.hessian, columns, columns);
        let mut own = vec![0.0; PANEL * lanes];
        for start in range.clone().step_by(PANEL) {
            let end = range.end.min(start + PANEL);
            let gradient = gradient_of(self, start..end);
            let own = &mut own[..gradient.len()];
            let from = MatRef::from_column_major_slice(&values, lanes, range.len());
            let to = MatMut::from_column_major_slice_mut(own, lanes, end - start);
            let rows = hessian.submatrix(start, range.start, end - start, range.len()).transpose();
            matmul(to, Accum::Replace, from, rows, 1.0, Par::Seq);
            let values = &values[(start - range.start) * lanes..];
            for (index, (gradient, own)) in gradient.iter().zip(own.iter()).enumerate() {
                slope[index % lanes] += f64::from(values[index]) * f64::from(*gradient);
                curvature[index % lanes] += f64::from(values[index]) * f64::from(*own);
            }
        }
        for lane in 0..lanes {
            let old = self.chunk.groups[group][lane];
            let step = f64::from(self.chunk.grid.step(&old));
            let wanted = step * (1.0 - slope[lane] / curvature[lane]);
            if !(wanted > 0.0 && wanted.is_finite()) {
                continue;
            }
            let new = GroupScale { zero_clamped: old.zero_clamped, ..self.chunk.grid.group(wanted as f32, old.zero) };
            let change = f64::from(self.chunk.grid.step(&new)) / step - 1.0;
            let gain = -change * (2.0 * slope[lane] + change * curvature[lane]);
            if gain > 0.0 {
                self.gains[lane] += gain;
                self.chunk.groups[group][lane] = new;
                // A minimum is rounded anew, and the zero point with it.
                let moved = old.zero - new.zero;
                for level in self.chunk.levels[place.clone()].iter_mut().skip(lane).step_by(lanes) {
                    *level += moved;
                }
            }
        }
        self.update(group, range);
    }
}

fn changes(new: &[f32], old: &[f32]) -> Vec<f32> {
    new.iter().zip(old).map(|(new, old)| new - old).collect()
}
