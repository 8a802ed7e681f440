//! Polynomials in place of an activation and its down projection: what their terms add up to.

use faer::MatRef;
use rayon::prelude::*;

use super::{Matrix, matrix::add_multiply_transposed};

/// Adds `Σ_n Θ_n (sⁿ ∘ u)` to `out`, `[tokens, outputs]`. `terms` are `Θ_n`, `[outputs, units]`, for n from `lowest_power` on;
/// `s` and `u` are `[tokens, units]`. Powers grow by a product with s, which Horner's rule would multiply the sum with: s is of
/// a unit and the sum of an output, so that only the former is a product of matrices. Every `Θ_n` is read once. Sums are F32,
/// cut by shape alone.
pub fn add_terms(terms: &[MatRef<'_, f32>], lowest_power: usize, s: &Matrix, u: &Matrix, out: &mut Matrix) {
    debug_assert_eq!((s.rows, s.columns), (u.rows, u.columns));
    let mut power = u.clone();
    for n in 0..lowest_power + terms.len() {
        if n > 0 {
            power.values.par_chunks_mut(1 << 14).zip(s.values.par_chunks(1 << 14)).for_each(|(power, s)| {
                power.iter_mut().zip(s).for_each(|(power, s)| *power *= s);
            });
        }
        if n >= lowest_power {
            add_multiply_transposed(&power, terms[n - lowest_power], out);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The definition in F64, unit by unit with Horner's rule; and what the largest of its sums could round to, as Σ |…|.
    pub(crate) fn exact(example: &Example, lowest_power: usize, u: Option<&Matrix>) -> Vec<[f64; 2]> {
        let (terms, z, [point, scale, low, high]) = (&example.terms, &example.z, &example.points);
        let outputs = terms[0].rows;
        let mut sums = Vec::new();
        for token in 0..z.rows {
            for output in 0..outputs {
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for unit in 0..z.columns {
                    let range = |values: &[f32]| f64::from(values[unit]);
                    let clamped = f64::from(z.row(token)[unit]).clamp(range(low), range(high));
                    let s = (clamped - range(point)) / range(scale);
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

        /// s of every token and unit.
        pub(crate) fn arguments(&self) -> Matrix {
            let [point, scale, low, high] = &self.points;
            let mut s = self.z.clone();
            for row in s.values.chunks_exact_mut(self.z.columns) {
                for (unit, z) in row.iter_mut().enumerate() {
                    *z = (z.clamp(low[unit], high[unit]) - point[unit]) / scale[unit];
                }
            }
            s
        }

        /// Ones in place of u.
        pub(crate) fn ones(&self) -> Matrix {
            Matrix { values: vec![1.0; self.z.values.len()], ..self.z }
        }
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        for (tokens, outputs, units, powers) in [(1, 1, 1, 1), (5, 3, 7, 3), (33, 17, 130, 9)] {
            let example = Example::new(tokens, outputs, units, powers);
            let terms: Vec<_> = example.terms.iter().map(Matrix::view).collect();
            for (u, lowest_power) in [(Some(&example.u), 0), (None, 0), (Some(&example.u), 1)] {
                let mut out = Matrix { rows: tokens, columns: outputs, values: vec![0.25; tokens * outputs] };
                let factors = u.cloned().unwrap_or_else(|| example.ones());
                add_terms(&terms, lowest_power, &example.arguments(), &factors, &mut out);
                let exact = exact(&example, lowest_power, u);
                for (found, [sum, magnitude]) in out.values.iter().zip(exact) {
                    let error = (f64::from(*found) - 0.25 - sum).abs();
                    assert!(error <= 1e-6 * (magnitude + 0.25), "{tokens} × {outputs}: {found}, not {sum}");
                }
            }
        }
    }
}
