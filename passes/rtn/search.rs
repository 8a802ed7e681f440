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

/// The factors by which the range of min/max is tried, and by how much around the best of them in a second round.
fn factors(grid: &Grid) -> (Vec<f32>, &'static [f32]) {
    match (grid.element(), grid.scale_format()) {
        (_, ScaleFormat::E8M0) => (vec![2.0, 1.0, 0.5, 0.25], &[]),
        // E4M3 has 8 scales per power of two.
        (_, ScaleFormat::E4M3OverGlobal) => ((0..=17).map(|i| 1.3 - i as f32 * 0.05).collect(), &[]),
        // Levels that grow like powers of two: what matters is where a scale stands between two of them.
        (Element::Fp8E4M3, _) => ((0..=32).map(|i| 2.0 - i as f32 * 0.046_875).collect(), &[]),
        // Down to a fifth; a little beyond min/max, because its largest weight lies half a step outside of the codes.
        _ => ((0..=30).map(|i| 1.1 - i as f32 * 0.03).collect(), &[-0.02, -0.01, 0.01, 0.02]),
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
    let (coarse, fine) = factors(grid);
    let (mut best, factor) = best_of(weights, grid, extent, &coarse)?;
    if !fine.is_empty() {
        let fine: Vec<f32> = fine.iter().map(|shift| factor + shift).collect();
        let (found, _) = best_of(weights, grid, extent, &fine)?;
        if found.error < best.error {
            best = found;
        }
    }
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

/// The best of the ranges scaled by these factors (one or more), the first of equals, and its factor.
fn best_of<W: Weights + ?Sized>(
    weights: &W,
    grid: &Grid,
    extent: Extent,
    factors: &[f32],
) -> Result<(Scored, f32), CodecError> {
    let mut candidates: Vec<(GroupScale, f32)> =
        factors.iter().map(|factor| (grid.min_max(extent.scaled(*factor)), *factor)).collect();
    candidates.dedup_by_key(|(group, _)| (group.scale.to_bits(), group.zero.to_bits()));
    let groups: Vec<GroupScale> = candidates.iter().map(|(group, _)| *group).collect();
    let sums = weights.sums(grid, &groups)?;
    let first = (Scored { group: groups[0], error: f64::INFINITY, next_step: 1.0 }, factors[0]);
    Ok(candidates.iter().zip(sums).fold(first, |best, ((group, factor), sums)| {
        let next = Scored::new(grid, *group, sums);
        if next.error < best.0.error { (next, *factor) } else { best }
    }))
}

fn refined<W: Weights + ?Sized>(weights: &W, grid: &Grid, start: Scored) -> Result<Scored, CodecError> {
    let mut best = start;
    for _ in 0..ROUNDS {
        let next =
            GroupScale { zero_clamped: best.group.zero_clamped, ..grid.rescaled(&best.group, best.next_step as f32) };
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
