//! Scale and zero point of a group by weighted least squares, for all rows of a chunk at once.
//!
//! As `range = "mse"` of round to nearest, but each column counts by its second moment. Every candidate counts with the
//! scale that its storage type holds.

use super::lanes::{Lanes, Sums, weighted_sums};
use crate::{
    codec::{Element, ScaleFormat, ZeroPoint},
    passes::rtn::{
        grid::{Grid, GroupScale},
        kernels::Extent,
    },
};

/// Rounds of optimising codes and scale in turn.
const ROUNDS: usize = 6;
/// The widest and the narrowest range tried, as shares of min/max.
const WIDEST: f32 = 1.1;
const NARROWEST: f32 = 0.2;

/// The weights of one group.
pub struct Group<'a> {
    /// The levels.
    pub grid: &'a Grid,
    /// Columns of the group one after the other, in each all rows.
    pub weights: &'a [f32],
    /// How much each column counts.
    pub importance: &'a [f32],
    /// Rows (with padding).
    pub rows: usize,
}

/// A candidate of one row.
#[derive(Debug, Clone, Copy)]
struct Scored {
    group: GroupScale,
    error: f64,
    /// Step and zero point that would be best for its levels.
    next: (f64, f64),
}

impl Group<'_> {
    /// Extremes of each row's weights.
    pub fn extents(&self) -> Vec<Extent> {
        let mut extents = vec![Extent { min: f32::INFINITY, max: f32::NEG_INFINITY }; self.rows];
        for column in self.weights.chunks_exact(self.rows) {
            for (extent, weight) in extents.iter_mut().zip(column) {
                extent.min = extent.min.min(*weight);
                extent.max = extent.max.max(*weight);
            }
        }
        extents
    }

    /// The scales of minimum and maximum.
    pub fn min_max(&self) -> Vec<GroupScale> {
        self.extents().into_iter().map(|extent| self.grid.min_max(extent)).collect()
    }

    /// The best scales among `steps` shrunken ranges and their neighbourhood; those of min/max for no steps.
    pub fn search(&self, steps: usize) -> Vec<GroupScale> {
        let min_max = self.min_max();
        if steps == 0 {
            return min_max;
        }
        let extents = self.extents();
        let mut best = self.score(&min_max);
        for factor in self.factors(steps) {
            let candidates: Vec<_> = extents.iter().map(|extent| self.grid.min_max(extent.scaled(factor))).collect();
            self.improve(&mut best, &candidates);
        }
        self.refit(&mut best);
        if self.grid.zero_point() == ZeroPoint::Integer {
            for shift in [-1.0, 1.0] {
                let shifted: Vec<_> = best.iter().map(|scored| self.shifted(&scored.group, shift)).collect();
                let mut other = self.score(&shifted);
                self.refit(&mut other);
                let candidates: Vec<_> = other.iter().map(|scored| scored.group).collect();
                self.improve(&mut best, &candidates);
            }
        }
        // A row of zeros has no best scale; that of min/max is the one that other writers give.
        let zero = |extent: &Extent| extent.absmax() == 0.0;
        let chosen = best.iter().zip(&min_max).zip(&extents);
        chosen.map(|((best, min_max), extent)| if zero(extent) { *min_max } else { best.group }).collect()
    }

    fn factors(&self, steps: usize) -> Vec<f32> {
        match (self.grid.element(), self.grid.scale_format()) {
            (_, ScaleFormat::E8M0) => vec![2.0, 0.5, 0.25],
            // Levels that grow like powers of two: what matters is where a scale stands between two of them.
            (Element::Fp8E4M3, _) => (0..=steps).map(|i| 2.0 - 1.5 * i as f32 / steps as f32).collect(),
            _ => (0..=steps).map(|i| WIDEST - (WIDEST - NARROWEST) * i as f32 / steps as f32).collect(),
        }
    }

    fn shifted(&self, group: &GroupScale, shift: f64) -> GroupScale {
        GroupScale { zero: self.grid.whole_zero(f64::from(group.zero) + shift), ..*group }
    }

    fn score(&self, candidates: &[GroupScale]) -> Vec<Scored> {
        let lanes = Lanes::new(self.grid, candidates);
        let sums = weighted_sums(self.grid.element(), self.weights, self.importance, &lanes);
        let total: f64 = self.importance.iter().map(|h| f64::from(*h)).sum();
        candidates.iter().zip(sums).map(|(group, sums)| self.scored(*group, &sums, total)).collect()
    }

    fn scored(&self, group: GroupScale, sums: &Sums, total: f64) -> Scored {
        let step = f64::from(self.grid.step(&group));
        let error = step * step * sums.error_squares;
        let error = if error.is_finite() { error } else { f64::INFINITY };
        let zero = f64::from(group.zero);
        let next = if self.grid.zero_point() == ZeroPoint::None {
            (sums.products / sums.level_squares, zero)
        } else {
            // Regression of x on q: x ≈ slope · q + intercept, so a level q' = q + intercept / slope of a step slope times
            // as large.
            let spread = sums.level_squares * total - sums.levels * sums.levels;
            let slope = (sums.products * total - sums.levels * sums.weights) / spread;
            (slope, zero - (sums.weights - slope * sums.levels) / (slope * total))
        };
        Scored { group, error, next: (step * next.0, next.1) }
    }

    /// Takes what is better.
    fn improve(&self, best: &mut [Scored], candidates: &[GroupScale]) -> bool {
        let mut improved = false;
        for (best, candidate) in best.iter_mut().zip(self.score(candidates)) {
            if candidate.error < best.error {
                *best = candidate;
                improved = true;
            }
        }
        improved
    }

    /// With the levels fixed, step (and zero point) have a closed form; with those fixed, levels are the nearest.
    fn refit(&self, best: &mut [Scored]) {
        if self.grid.scale_format() == ScaleFormat::E8M0 {
            return;
        }
        for _ in 0..ROUNDS {
            let candidates: Vec<_> = best.iter().map(|scored| self.next(scored)).collect();
            if !self.improve(best, &candidates) {
                break;
            }
        }
    }

    fn next(&self, scored: &Scored) -> GroupScale {
        let (step, zero) = scored.next;
        if !(step > 0.0 && step.is_finite() && zero.is_finite()) {
            return scored.group;
        }
        let scaled = self.grid.group(step as f32, scored.group.zero);
        GroupScale { zero_clamped: scored.group.zero_clamped, ..self.grid.moved(&scaled, zero) }
    }
}
