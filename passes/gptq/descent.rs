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
    /// Which weights of these columns a mask keeps.
    pub kept: Option<&'a [bool]>,
    /// Rows with padding.
    pub lanes: usize,
}

impl Columns<'_> {
    /// Moves levels to where the loss is lowest, one column after the other, and keeps the gradient (v − t) H up to date
    /// for these columns. Adds to `gains` by how much each row's loss falls.
    pub fn descend(&self, levels: &mut [f32], gradient: &mut [f32], gains: &mut [f64]) {
        let lanes = self.lanes;
        let count = levels.len() / lanes;
        let (mut wanted, mut found, mut change) = (vec![0.0; lanes], vec![0.0; lanes], vec![0.0; lanes]);
        let step = &self.scales.step;
        for _ in 0..PASSES {
            let mut moved = false;
            for column in 0..count {
                let row = &self.hessian[column * self.stride..][..count];
                let curvature = row[column];
                let levels = &mut levels[column * lanes..][..lanes];
                let slope = &gradient[column * lanes..][..lanes];
                for lane in 0..lanes {
                    wanted[lane] = levels[lane] * step[lane] - slope[lane] / curvature;
                }
                lanes::round(self.element, &wanted, self.scales, &mut found);
                if let Some(kept) = self.kept {
                    lanes::keep_only(&mut found, &kept[column * lanes..][..lanes]);
                }
                let mut any = false;
                for lane in 0..lanes {
                    let by = found[lane] * step[lane] - levels[lane] * step[lane];
                    let gain = -(2.0 * slope[lane] + curvature * by) * by;
                    // A move by zero gains nothing.
                    let worth = gain > WORTH * curvature * by * by;
                    change[lane] = if worth { by } else { 0.0 };
                    if worth {
                        levels[lane] = found[lane];
                        gains[lane] += f64::from(gain);
                        any = true;
                    }
                }
                if any {
                    lanes::add_outer(gradient, row, 1.0, &change);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }
}
