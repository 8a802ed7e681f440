//! Descent over masks: one group after the other, under the whole H, while all others stay.
//!
//! With everything but one group fixed, the loss is the form of the group's own block `A = H_QQ` around the group's optimum
//! c = v − g A⁻¹, where g is the gradient (v − t) H: keeping all but P costs `c_P ((A⁻¹)_PP)⁻¹ c_Pᵀ` more than c does, and
//! the best values of what is kept are `c − c_P ((A⁻¹)_PP)⁻¹ (A⁻¹)_P·`. So every mask of the group is tried at its best.

use rayon::prelude::*;

use super::{
    Pattern,
    forms::{Forms, inverse_of},
    rows::Rows,
};
use crate::passes::gptq::{Factor, lanes};

/// Columns whose gradient is computed by one product.
const PANEL: usize = 128;
/// Share of the group's distance from its optimum that a change must gain, or rounding could make it cycle.
const WORTH: f64 = 1e-3;

/// What all rows share.
pub struct Search {
    groups: Vec<Group>,
}

struct Group {
    /// A⁻¹, `[m, m]`.
    inverse: Vec<f64>,
    forms: Forms,
}

impl Search {
    /// The forms of each group, in the original order.
    pub fn new(factor: &Factor, pattern: Pattern) -> Self {
        let (columns, of) = (factor.columns, pattern.of);
        let groups = (0..columns / of).into_par_iter().map(|group| {
            let first = group * of;
            let block: Vec<f64> = (0..of * of)
                .map(|index| f64::from(factor.hessian[(first + index / of) * columns + first + index % of]))
                .collect();
            let inverse = inverse_of(&block, of);
            let forms = Forms::new(pattern, &inverse, &inverse);
            Group { inverse, forms }
        });
        Self { groups: groups.collect() }
    }

    /// One round over all groups. Returns how many masks changed.
    pub fn round(&self, rows: &mut Rows) -> u64 {
        let (lanes, of) = (rows.lanes, rows.pattern.of);
        let whole = rows.whole();
        let panel = PANEL.next_multiple_of(of);
        let mut changed = 0;
        let mut differences = rows.differences();
        for start in (0..whole).step_by(panel) {
            let end = whole.min(start + panel);
            let mut gradient = vec![0.0; (end - start) * lanes];
            rows.product(&differences, start..end, &mut gradient);
            for first in (start..end).step_by(of) {
                changed += self.improve(rows, first, start, &mut gradient);
            }
            let place = start * lanes..end * lanes;
            let both = rows.values[place.clone()].iter().zip(&rows.target[place.clone()]);
            differences[place].iter_mut().zip(both).for_each(|(to, (value, target))| *to = value - target);
        }
        changed
    }

    /// Improves the group at column `first`; `gradient` is that of the panel, which starts at column `panel`.
    fn improve(&self, rows: &mut Rows, first: usize, panel: usize, gradient: &mut [f32]) -> u64 {
        let (lanes, of, columns) = (rows.lanes, rows.pattern.of, rows.factor.columns);
        let Group { inverse, forms } = &self.groups[first / of];
        let slope: Vec<f64> =
            gradient[(first - panel) * lanes..][..of * lanes].iter().map(|slope| f64::from(*slope)).collect();
        let values = &mut rows.values[first * lanes..][..of * lanes];
        // c, and by how much the loss is above that of c.
        let mut optimum: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
        let mut above = vec![0.0; lanes];
        for row in 0..of {
            for column in 0..of {
                let factor = inverse[row * of + column];
                for lane in 0..lanes {
                    let step = factor * slope[column * lanes + lane];
                    optimum[row * lanes + lane] -= step;
                    above[lane] += slope[row * lanes + lane] * step;
                }
            }
        }
        let (mut costs, mut chosen) = (vec![0.0; lanes], vec![0; lanes]);
        forms.cheapest(&optimum, &mut costs, &mut chosen);
        let kept = &mut rows.kept[first / of * lanes..][..lanes];
        let mut changes = vec![0.0_f32; of * lanes];
        let mut changed = 0;
        for lane in 0..lanes {
            let worth = above[lane] - costs[lane] > WORTH * above[lane];
            if !worth {
                continue;
            }
            let index = usize::from(chosen[lane]);
            let choice = &forms.choices[index];
            changed += u64::from(kept[lane] != choice.kept);
            kept[lane] = choice.kept;
            for place in 0..of {
                let at = place * lanes + lane;
                let best = optimum[at] - forms.spread(index, &optimum, lane, place);
                let new = if choice.kept >> place & 1 == 1 { best as f32 } else { 0.0 };
                changes[at] = new - values[at];
                values[at] = new;
            }
        }
        let width = gradient.len() / lanes;
        for (place, change) in changes.chunks_exact(lanes).enumerate() {
            if change.iter().any(|change| *change != 0.0) {
                let row = &rows.factor.hessian[(first + place) * columns + panel..][..width];
                lanes::add_outer(gradient, row, 1.0, change);
            }
        }
        changed
    }
}
