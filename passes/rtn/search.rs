//! `range = "mse"`: the scale with the least squared error, found without derivatives and without chance.
//!
//! A grid of shrunken and stretched ranges finds the valley; then codes and scale are optimised in turn: with the codes
//! fixed, s = ⟨w, q⟩ / ⟨q, q⟩ is the exact optimum. Every candidate counts with the scale that its storage type holds,
//! and the min/max scale is itself a candidate, so the result is never worse than `range = "minmax"`.

use super::{
    grid::{Grid, GroupScale},
    kernels::{Extent, Sums},
};
use crate::codec::{CodecError, Element, ScaleFormat, ZeroPoint};

/// Rounds of optimising codes and scale in turn; they settle in fewer.
const ROUNDS: usize = 10;

/// The weights that are to share one scale.
pub trait Weights {
    /// The sums of [`Grid::sums`] for each candidate.
    ///
    /// # Errors
    /// When the weights cannot be read.
    fn sums(&self, grid: &Grid, candidates: &[GroupScale]) -> Result<Vec<Sums>, CodecError>;
    /// [`Grid::squared_error`] for each candidate.
    ///
    /// # Errors
    /// When the weights cannot be read.
    fn squared_errors(&self, grid: &Grid, candidates: &[GroupScale]) -> Result<Vec<f64>, CodecError>;
}

impl Weights for [f32] {
    fn sums(&self, grid: &Grid, candidates: &[GroupScale]) -> Result<Vec<Sums>, CodecError> {
        Ok(candidates.iter().map(|candidate| grid.sums(self, candidate)).collect())
    }

    fn squared_errors(&self, grid: &Grid, candidates: &[GroupScale]) -> Result<Vec<f64>, CodecError> {
        Ok(candidates.iter().map(|candidate| grid.squared_error(self, candidate)).collect())
    }
}

/// The factors by which the range of min/max is tried.
fn factors(grid: &Grid) -> Vec<f32> {
    match (grid.element(), grid.scale_format()) {
        (_, ScaleFormat::E8M0) => vec![2.0, 1.0, 0.5, 0.25],
        // Levels that grow like powers of two: what matters is where a scale stands between two of them.
        (Element::Fp8E4M3, _) => (0..=64).map(|i| ((32.0 - i as f64) / 32.0).exp2() as f32).collect(),
        // Down to a fifth; a little beyond min/max, because its largest weight lies half a step outside of the codes.
        _ => (0..=90).map(|i| 1.1 - i as f32 * 0.01).collect(),
    }
}

/// The shared scale with the least squared error.
///
/// # Errors
/// When the weights cannot be read.
pub fn least_squares<W: Weights + ?Sized>(weights: &W, grid: &Grid, extent: Extent) -> Result<GroupScale, CodecError> {
    let min_max = grid.min_max(extent);
    if extent.absmax() == 0.0 {
        return Ok(min_max);
    }
    let mut candidates: Vec<GroupScale> =
        factors(grid).into_iter().map(|factor| grid.min_max(extent.scaled(factor))).collect();
    candidates.dedup_by_key(|candidate| (candidate.scale.to_bits(), candidate.zero.to_bits()));
    let mut best = best_of(weights, grid, &candidates)?;
    if grid.zero_point() == ZeroPoint::Integer {
        best = refined(weights, grid, best)?;
        let neighbours: Vec<GroupScale> = [-1.0, 1.0]
            .into_iter()
            .map(|step| grid.whole_zero(f64::from(best.group.zero) + step))
            .filter(|zero| *zero != best.group.zero)
            .map(|zero| GroupScale { zero, ..best.group })
            .collect();
        for neighbour in neighbours {
            let sums = weights.sums(grid, &[neighbour])?[0];
            let neighbour = refined(weights, grid, Scored::new(grid, neighbour, sums))?;
            if neighbour.error < best.error {
                best = neighbour;
            }
        }
    } else {
        best = refined(weights, grid, best)?;
    }
    // The search sums in F32; what is kept is decided by the errors of what is stored.
    let errors = weights.squared_errors(grid, &[min_max, best.group])?;
    Ok(if errors[1] < errors[0] { best.group } else { min_max })
}

/// A candidate with its squared error and the scale that would be best for its codes.
#[derive(Debug, Clone, Copy)]
struct Scored {
    group: GroupScale,
    error: f64,
    next_step: f64,
}

impl Scored {
    fn new(grid: &Grid, group: GroupScale, sums: Sums) -> Self {
        let step = f64::from(grid.step(&group));
        let next_step = if sums.level_squares > 0.0 { step * sums.products / sums.level_squares } else { step };
        Self { group, error: step * step * sums.error_squares, next_step }
    }
}

fn best_of<W: Weights + ?Sized>(weights: &W, grid: &Grid, candidates: &[GroupScale]) -> Result<Scored, CodecError> {
    let sums = weights.sums(grid, candidates)?;
    let scored = candidates.iter().zip(sums).map(|(group, sums)| Scored::new(grid, *group, sums));
    // The first of equals, and there is one: the list of factors is not empty.
    let first = Scored { group: candidates[0], error: f64::INFINITY, next_step: 1.0 };
    Ok(scored.fold(first, |best, next| if next.error < best.error { next } else { best }))
}

fn refined<W: Weights + ?Sized>(weights: &W, grid: &Grid, start: Scored) -> Result<Scored, CodecError> {
    let mut best = start;
    for _ in 0..ROUNDS {
        let next =
            GroupScale { zero_clamped: best.group.zero_clamped, ..grid.group(best.next_step as f32, best.group.zero) };
        if next.scale == best.group.scale || best.next_step <= 0.0 {
            break;
        }
        let next = Scored::new(grid, next, weights.sums(grid, &[next])?[0]);
        if next.error >= best.error {
            break;
        }
        best = next;
    }
    Ok(best)
}
