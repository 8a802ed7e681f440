//! Polynomials in place of an activation and its down projection: making their terms, and what they add up to.
//!
//! With s = (clamp(z, lo, hi) − z0) / h of every hidden unit, z being what the activation would get and u what multiplies
//! it, the output is `Σ_n Θ_n (sⁿ ∘ u)`. Powers grow by one product an order, as in Horner's rule, and every Θ_n is read once.

use faer::MatRef;
use rayon::prelude::*;

use super::{Matrix, matrix::add_multiply_transposed};

/// Where the polynomials of hidden units stand, a number of each for every unit.
#[derive(Debug, Clone, Copy)]
pub struct UnitRanges<'a> {
    /// Where s = 0.
    pub point: &'a [f32],
    /// The z that s grows by one in.
    pub scale: &'a [f32],
    /// Below this, z counts as this.
    pub low: &'a [f32],
    /// Above this, z counts as this.
    pub high: &'a [f32],
}

/// Makes one row of Θ_n of one row of W: `out = weights ∘ coefficients`, the coefficients being those of power n, one a
/// unit. Rounded once, so that every device makes the same bits.
pub fn term_row(weights: &[f32], coefficients: &[f32], out: &mut [f32]) {
    for ((out, weight), coefficient) in out.iter_mut().zip(weights).zip(coefficients) {
        *out = weight * coefficient;
    }
}

/// Adds `Σ_n Θ_n (sⁿ ∘ u)` to `out`, `[tokens, outputs]`. `terms` are Θ_n, `[outputs, units]`, for n from `lowest_power` on;
/// `z` and `u` are `[tokens, units]`, u being 1 where there is none. Sums are F32, cut by shape alone.
///
/// # Panics
/// When the shapes do not fit together.
pub fn add_terms(
    terms: &[MatRef<'_, f32>],
    lowest_power: usize,
    ranges: &UnitRanges<'_>,
    z: &Matrix,
    u: Option<&Matrix>,
    out: &mut Matrix,
) {
    let units = z.columns;
    let fits = |values: &[f32]| values.len() == units;
    assert!([ranges.point, ranges.scale, ranges.low, ranges.high].into_iter().all(fits), "a range for every unit");
    assert!(u.is_none_or(|u| (u.rows, u.columns) == (z.rows, units)), "a factor for every pre-activation");
    let s = scaled(ranges, z);
    let ones = || Matrix { values: vec![1.0; z.values.len()], ..*z };
    let mut power = u.cloned().unwrap_or_else(ones);
    for n in 0..lowest_power + terms.len() {
        if n > 0 {
            power.values.par_chunks_mut(1 << 14).zip(s.values.par_chunks(1 << 14)).for_each(|(power, s)| {
                for (power, s) in power.iter_mut().zip(s) {
                    *power *= s;
                }
            });
        }
        if n >= lowest_power {
            add_multiply_transposed(&power, terms[n - lowest_power], out);
        }
    }
}

/// s of every token and unit.
fn scaled(ranges: &UnitRanges<'_>, z: &Matrix) -> Matrix {
    let mut s = z.clone();
    s.values.par_chunks_mut(z.columns.max(1)).with_min_len(16).for_each(|row| {
        for (unit, z) in row.iter_mut().enumerate() {
            // Not `clamp`, which panics on ranges that are none.
            *z = (z.max(ranges.low[unit]).min(ranges.high[unit]) - ranges.point[unit]) / ranges.scale[unit];
        }
    });
    s
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The definition in F64, unit by unit with Horner's rule; and what the largest of its sums could round to, as Σ |…|.
    pub(crate) fn exact(
        terms: &[Matrix],
        lowest_power: usize,
        ranges: &UnitRanges<'_>,
        z: &Matrix,
        u: Option<&Matrix>,
    ) -> Vec<[f64; 2]> {
        let outputs = terms[0].rows;
        let mut sums = Vec::new();
        for token in 0..z.rows {
            for output in 0..outputs {
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for unit in 0..z.columns {
                    let range = |values: &[f32]| f64::from(values[unit]);
                    let clamped = f64::from(z.row(token)[unit]).clamp(range(ranges.low), range(ranges.high));
                    let s = (clamped - range(ranges.point)) / range(ranges.scale);
                    let u = u.map_or(1.0, |u| f64::from(u.row(token)[unit]));
                    let horner = |s: f64, of: fn(f64) -> f64| {
                        terms.iter().rev().fold(0.0, |sum, term| sum * s + of(f64::from(term.row(output)[unit])))
                    };
                    let low = s.powi(lowest_power as i32);
                    sum += horner(s, |term| term) * low * u;
                    magnitude += horner(s.abs(), f64::abs) * (low * u).abs();
                }
                sums.push([sum, magnitude]);
            }
        }
        sums
    }

    /// Some terms, ranges and inputs, of which a part lies beyond the ranges.
    pub(crate) struct Example {
        pub(crate) terms: Vec<Matrix>,
        pub(crate) points: [Vec<f32>; 4],
        pub(crate) z: Matrix,
        pub(crate) u: Matrix,
    }

    impl Example {
        pub(crate) fn new(tokens: usize, outputs: usize, units: usize, powers: usize) -> Self {
            let mut state = 7_u32;
            let mut fill = |rows: usize, columns: usize, scale: f32| {
                let next = |_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
                };
                Matrix { rows, columns, values: (0..rows * columns).map(next).collect() }
            };
            let terms = (0..powers).map(|n| fill(outputs, units, 0.5_f32.powi(n as i32))).collect();
            let point = fill(1, units, 0.3).values;
            let scale: Vec<f32> = fill(1, units, 0.5).values.iter().map(|value| value + 1.5).collect();
            let low = point.iter().zip(&scale).map(|(point, scale)| point - scale).collect();
            let high = point.iter().zip(&scale).map(|(point, scale)| point + 0.9 * scale).collect();
            Self { terms, points: [point, scale, low, high], z: fill(tokens, units, 2.5), u: fill(tokens, units, 1.0) }
        }

        pub(crate) fn ranges(&self) -> UnitRanges<'_> {
            let [point, scale, low, high] = &self.points;
            UnitRanges { point, scale, low, high }
        }
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        for (tokens, outputs, units, powers) in [(1, 1, 1, 1), (5, 3, 7, 3), (33, 17, 130, 9)] {
            let example = Example::new(tokens, outputs, units, powers);
            let terms: Vec<_> = example.terms.iter().map(Matrix::view).collect();
            for (u, lowest_power) in [(Some(&example.u), 0), (None, 0), (Some(&example.u), 1)] {
                let mut out = Matrix { rows: tokens, columns: outputs, values: vec![0.25; tokens * outputs] };
                add_terms(&terms, lowest_power, &example.ranges(), &example.z, u, &mut out);
                let exact = exact(&example.terms, lowest_power, &example.ranges(), &example.z, u);
                for (found, [sum, magnitude]) in out.values.iter().zip(exact) {
                    let error = (f64::from(*found) - 0.25 - sum).abs();
                    assert!(error <= 1e-6 * (magnitude + 0.25), "{tokens} × {outputs}: {found}, not {sum}");
                }
            }
        }
    }
}
