//! `range = "hqq"`: half-quadratic optimisation of scale and zero point for the least Σ|w − ŵ|^0.7.
//!
//! The exponent below 1 forgives a few large errors and presses on the many small ones. Two easy steps in turn: the
//! error w − ŵ shrunk towards zero is set aside, and zero point and scale are the exact least-squares fit of the codes
//! to what remains of w. Errors count in units of the step, so the result does not depend on the magnitude of the
//! weights. Each group stops by itself and keeps its best, measured with scale and zero point as stored.

use super::{
    grid::{Grid, GroupScale},
    kernels::Extent,
    power::{self, HalfQuadratic, power_0_7},
};
use crate::codec::ZeroPoint;

/// Weight of the quadratic term in the first round.
const BETA: f32 = 10.0;
/// Its growth per round.
const KAPPA: f32 = 1.01;
/// Rounds at most.
const ROUNDS: usize = 20;

/// Scale and zero point of one group; never worse than min/max in the objective.
pub fn half_quadratic(weights: &[f32], grid: &Grid, extent: Extent) -> GroupScale {
    let start = grid.min_max(extent);
    if extent.absmax() == 0.0 {
        return start;
    }
    // One unit for all candidates, so that objectives compare.
    let unit = grid.step(&start);
    let mut best = optimised(weights, grid, start, unit);
    if grid.zero_point() == ZeroPoint::Float {
        let tight = optimised(weights, grid, tight_start(grid, extent), unit);
        if tight.objective < best.objective {
            best = tight;
        }
    }
    // The search multiplies by a reciprocal; what is kept is decided by what is stored.
    if objective(weights, grid, &best.group, unit) < objective(weights, grid, &start, unit) {
        best.group
    } else {
        start
    }
}

/// Σ|w − ŵ|^0.7 of what is stored, errors relative to `unit`.
pub fn objective(weights: &[f32], grid: &Grid, group: &GroupScale, unit: f32) -> f64 {
    let mut codes = [0; 256];
    let of = |weights: &[f32]| {
        grid.encode(weights, group, &mut codes);
        power::objective(weights, &codes, group.zero, grid.step(group), 1.0 / unit)
    };
    weights.chunks(256).map(of).sum()
}

/// From the true extremes, whether zero lies between them or not.
fn tight_start(grid: &Grid, extent: Extent) -> GroupScale {
    let (min, max) = (f64::from(extent.min), f64::from(extent.max));
    if min == max {
        // One step away from zero is the constant itself.
        return grid.group(min.abs() as f32, if min > 0.0 { -1.0 } else { 1.0 });
    }
    let group = grid.group(((max - min) / f64::from(grid.largest_code())) as f32, 0.0);
    GroupScale { zero: grid.float_zero(-min / f64::from(group.scale)), ..group }
}

#[derive(Clone, Copy)]
struct Candidate {
    group: GroupScale,
    sums: HalfQuadratic,
    objective: f64,
}

fn optimised(weights: &[f32], grid: &Grid, start: GroupScale, unit: f32) -> Candidate {
    let count = weights.len() as f64;
    let mut beta = BETA;
    let candidate = |group: GroupScale, beta: f32| {
        let sums = grid.half_quadratic(weights, &group, beta);
        let objective = sums.objective * f64::from(power_0_7(grid.step(&group) / unit));
        Candidate { group, sums, objective }
    };
    let mut best = candidate(start, beta);
    for _ in 0..ROUNDS {
        let HalfQuadratic { targets, levels, products, squares, .. } = best.sums;
        let zero = f64::from(best.group.zero) + (levels - targets) / count;
        let zero = if grid.zero_point() == ZeroPoint::Float { grid.float_zero(zero) } else { grid.whole_zero(zero) };
        let step = |shift: f64| {
            let moved = squares - 2.0 * shift * levels + count * shift * shift;
            let fitted = f64::from(best.group.scale) * (products - shift * targets) / moved;
            if moved > 0.0 && fitted > 0.0 { fitted as f32 } else { best.group.scale }
        };
        // Both together go fastest, but rounding to the stored types may spoil one of them.
        let moves = [
            grid.group(step(f64::from(zero) - f64::from(best.group.zero)), zero),
            GroupScale { zero, ..best.group },
            grid.group(step(0.0), best.group.zero),
        ];
        beta *= KAPPA;
        let before = best;
        for group in moves {
            if (group.scale, group.zero) == (before.group.scale, before.group.zero) {
                continue;
            }
            let next = candidate(group, beta);
            if next.objective < best.objective {
                best = next;
            }
        }
        if best.objective >= before.objective {
            break;
        }
    }
    best
}
