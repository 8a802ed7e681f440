//! Descent over the codes of a few columns while all others stay: the moves that lower the loss, one weight at a time.

use super::lanes::{self, Lanes};
use crate::codec::Element;

/// Passes over the columns; they settle in fewer.
const PASSES: usize = 3;
/// A move must lower the loss by this share of the move's own curvature, or rounding could make it cycle.
const WORTH: f32 = 1e-3;

/// Some neighbouring columns that share a scale.
pub struct Columns<'a> {
    /// Their block of H, `[columns, stride]` row-major.
    pub hessian: &'a [f32],
    /// Elements between rows of `hessian`.
    pub stride: usize,
    /// Scales and levels.
    pub scales: &'a Lanes,
    /// The element type.
    pub element: Element,
    /// Rows with padding.
    pub lanes: usize,
}

impl Columns<'_> {
    /// Moves levels and values to where the loss is lowest, one column after the other, and keeps the gradient (v − t) H up
    /// to date for these columns. Says whether anything moved.
    pub fn descend(&self, levels: &mut [f32], values: &mut [f32], gradient: &mut [f32]) -> bool {
        let lanes = self.lanes;
        let mut moved = false;
        let (mut wanted, mut found, mut change) = (vec![0.0; lanes], vec![0.0; lanes], vec![0.0; lanes]);
        for _ in 0..PASSES {
            let mut moved_now = false;
            for column in 0..levels.len() / lanes {
                let row = &self.hessian[column * self.stride..][..levels.len() / lanes];
                let curvature = row[column];
                let place = column * lanes..(column + 1) * lanes;
                let (levels, values) = (&mut levels[place.clone()], &mut values[place.clone()]);
                let slope = &gradient[place];
                for lane in 0..lanes {
                    wanted[lane] = values[lane] - slope[lane] / curvature;
                }
                lanes::round(self.element, &wanted, self.scales, &mut found);
                let mut any = false;
                for lane in 0..lanes {
                    let step = found[lane] * self.scales.step[lane] - values[lane];
                    let gain = -(2.0 * slope[lane] + curvature * step) * step;
                    // A step of zero gains nothing.
                    if gain > WORTH * curvature * step * step {
                        change[lane] = step;
                        levels[lane] = found[lane];
                        values[lane] = found[lane] * self.scales.step[lane];
                        any = true;
                    } else {
                        change[lane] = 0.0;
                    }
                }
                if any {
                    lanes::add_outer(gradient, row, 1.0, &change);
                    moved_now = true;
                }
            }
            if !moved_now {
                break;
            }
            moved = true;
        }
        moved
    }
}
