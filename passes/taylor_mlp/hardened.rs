//! The hardened form: what can be withheld of an expanded MLP without changing its function.
//!
//! Of a protected unit an artifact must tell a polynomial in g·x, multiplied with u·x, that adds to the output along a column.
//! The function fixes all of these but for: how g is scaled, if the polynomial follows; how u is scaled,
//! if the column follows; and how the terms of power zero are shared out, as these are one linear map (or one vector). So
//! g and u get factors ±2^k, which F16 and BF16 hold exactly, and the terms of power zero are summed up.
//! `docs/passes/taylor_mlp_audit.md` says what that is worth against `bantam audit`.

use crate::{
    checkpoint::Dtype,
    codec::taylor::Points,
    forward::{Matrix, multiply_transposed},
};

/// Largest k of the factors ±2^k.
pub const LARGEST_EXPONENT: i32 = 3;

/// How the protected units of a layer are hidden.
#[derive(Debug, Clone, PartialEq)]
pub struct Disguise {
    /// The factor ±2^k of each unit's gate row.
    pub gate: Vec<f32>,
    /// The factor ±2^k of each unit's up row; ones without an up projection.
    pub up: Vec<f32>,
}

/// What disguises of a layer are drawn from: it depends on the weights that are withheld, so that a run repeats, but who knows
/// the recipe does not know it. `down` is the down projection, or those of its columns that are protected.
#[must_use]
pub fn secret(seed: u64, name: &str, down: &[f32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("bantam taylor_mlp hardened 1");
    hasher.update(&seed.to_le_bytes()).update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    hasher.update(bytemuck::cast_slice(down));
    *hasher.finalize().as_bytes()
}

impl Disguise {
    /// Draws one for the rows of the protected units in order, `gate` and `up` `[units, inputs]`, which are stored as `dtype`.
    /// Where a drawn factor would not be exact, because numbers leave the type's range, a smaller one takes its place.
    #[must_use]
    pub fn draw(secret: &[u8; 32], gate: &Matrix, up: Option<&Matrix>, dtype: Dtype) -> Self {
        let mut stream = blake3::Hasher::new_keyed(secret).finalize_xof();
        let mut below = |limit: usize| {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            // The high part of a product with a uniform number: uneven by less than 2^-40 for any number of units.
            ((u128::from(u64::from_le_bytes(bytes)) * limit as u128) >> 64) as usize
        };
        let mut factor = |row: &[f32]| {
            let mut exponent = below(2 * LARGEST_EXPONENT as usize + 1) as i32 - LARGEST_EXPONENT;
            let sign = if below(2) == 0 { 1.0 } else { -1.0 };
            while exponent != 0
                && !row.iter().all(|value| is_exact(value * 2_f32.powi(exponent), *value, exponent, dtype))
            {
                exponent -= exponent.signum();
            }
            sign * 2_f32.powi(exponent)
        };
        let units = gate.rows;
        let gate = (0..units).map(|unit| factor(gate.row(unit))).collect();
        let up = (0..units).map(|unit| up.map_or(1.0, |up| factor(up.row(unit)))).collect();
        Self { gate, up }
    }

    /// Points and ranges as they are stored. The gate's bias of the protected units, where it has one, goes into them: what is
    /// stored of it is zero.
    #[must_use]
    pub fn points(&self, points: &Points, gate_bias: Option<&[f32]>) -> Points {
        let mut stored = Points::default();
        for (unit, factor) in self.gate.iter().enumerate() {
            let moved = |value: f32| (value - gate_bias.map_or(0.0, |bias| bias[unit])) * factor;
            let (one, other) = (moved(points.lo[unit]), moved(points.hi[unit]));
            let (lo, hi) = (one.min(other), one.max(other));
            // A range of one point has no width to take as the scale.
            let half = (hi - lo) / 2.0;
            stored.h.push(if half >= f32::MIN_POSITIVE { half } else { points.h[unit] * factor.abs() });
            stored.z0.push(moved(points.z0[unit]));
            stored.lo.push(lo);
            stored.hi.push(hi);
        }
        stored
    }
}

/// The sum of the terms of power zero: `Σ_j c_j w_j u_jᵀ`, `[outputs, inputs]`, of columns `down` `[outputs, units]`, zeroth
/// coefficients and up rows `[units, inputs]`; without these `Σ_j c_j w_j`, `[outputs, 1]`. The same before and after a
/// disguise but for rounding, as F32 sums in a fixed order.
#[must_use]
pub fn merged(down: &Matrix, zeroth: &[f64], up: Option<&Matrix>) -> Matrix {
    let Some(up) = up else {
        let sum = |row: usize| down.row(row).iter().zip(zeroth).map(|(w, c)| f64::from(*w) * c).sum::<f64>() as f32;
        return Matrix { rows: down.rows, columns: 1, values: (0..down.rows).map(sum).collect() };
    };
    let mut scaled = down.clone();
    for row in scaled.values.chunks_exact_mut(down.columns.max(1)) {
        for (value, coefficient) in row.iter_mut().zip(zeroth) {
            *value = (f64::from(*value) * coefficient) as f32;
        }
    }
    let mut turned = Matrix::zeros(up.columns, up.rows);
    for (unit, row) in up.values.chunks_exact(up.columns.max(1)).enumerate() {
        for (input, value) in row.iter().enumerate() {
            turned.values[input * up.rows + unit] = *value;
        }
    }
    multiply_transposed(&scaled, &turned)
}

/// Whether `scaled`, `value` times a power of two, is a number of the type and nothing was lost.
fn is_exact(scaled: f32, value: f32, exponent: i32, dtype: Dtype) -> bool {
    let stored = match dtype {
        Dtype::F16 => half::f16::from_f32(scaled).to_f32(),
        Dtype::BF16 => half::bf16::from_f32(scaled).to_f32(),
        _ => scaled,
    };
    stored.is_finite() && stored == scaled && scaled * 2_f32.powi(-exponent) == value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::taylor::{Basis, Smooth, coefficients};

    fn fill(rows: usize, columns: usize, scale: f32, seed: u32) -> Matrix {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            half::bf16::from_f32(((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale).to_f32()
        };
        Matrix { rows, columns, values: (0..rows * columns).map(next).collect() }
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// The output of protected units by the definition, in F64.
    fn output(
        down: &Matrix,
        polynomials: &[Vec<f64>],
        lowest: usize,
        points: &Points,
        [z, u]: [&[f64]; 2],
    ) -> Vec<f64> {
        let value = |place: usize| {
            let inside = z[place].clamp(f64::from(points.lo[place]), f64::from(points.hi[place]));
            let s = (inside - f64::from(points.z0[place])) / f64::from(points.h[place]);
            polynomials[place].iter().enumerate().skip(lowest).map(|(n, c)| c * s.powi(n as i32)).sum::<f64>()
                * u[place]
        };
        let values: Vec<f64> = (0..polynomials.len()).map(value).collect();
        (0..down.rows)
            .map(|row| down.row(row).iter().zip(&values).map(|(w, value)| f64::from(*w) * value).sum())
            .collect()
    }

    /// Rows times factors.
    fn scaled(rows: &Matrix, factors: &[f32]) -> Matrix {
        let mut scaled = rows.clone();
        for (row, factor) in scaled.values.chunks_exact_mut(rows.columns).zip(factors) {
            for value in row {
                *value *= factor;
            }
        }
        scaled
    }

    /// The polynomials that stored gates, ups and points ask for: s = ratio · s', from (z − z0) / h and (a z − a z0) / h'.
    fn moved(disguise: &Disguise, before: &[Vec<f64>], points: &Points, stored: &Points) -> Vec<Vec<f64>> {
        let of_unit = |unit: usize| {
            let ratio = f64::from(stored.h[unit]) / (f64::from(disguise.gate[unit]) * f64::from(points.h[unit]));
            let powers = before[unit].iter().enumerate();
            powers.map(|(n, p)| p * ratio.powi(n as i32) / f64::from(disguise.up[unit])).collect()
        };
        (0..before.len()).map(of_unit).collect()
    }

    #[test]
    fn the_function_stays_and_the_same_secret_draws_the_same() {
        let (inputs, units, outputs) = (24, 40, 16);
        for gated in [true, false] {
            let gate = fill(units, inputs, 0.5, 1);
            let up = gated.then(|| fill(units, inputs, 0.3, 2));
            let down = fill(outputs, units, 0.2, 3);
            let bias = (!gated).then(|| fill(1, units, 0.4, 4).values);
            let mut points = Points::default();
            for unit in 0..units {
                let lo = -1.5 - unit as f32 * 0.01;
                let hi = 1.0 + unit as f32 * 0.02;
                points.z0.push(f32::midpoint(lo, hi));
                points.h.push(if unit % 2 == 0 { 1.0 } else { (hi - lo) / 2.0 });
                points.lo.push(lo);
                points.hi.push(hi);
            }
            let polynomial = |unit: usize| {
                coefficients(Smooth::Silu, Basis::Taylor, 8, f64::from(points.z0[unit]), f64::from(points.h[unit]))
            };
            let polynomials: Vec<Vec<f64>> = (0..units).map(polynomial).collect();
            let key = secret(7, "down", &down.values);
            assert_ne!(key, secret(8, "down", &down.values));
            assert_ne!(key, secret(7, "down", &gate.values));
            let disguise = Disguise::draw(&key, &gate, up.as_ref(), Dtype::BF16);
            assert_eq!(disguise, Disguise::draw(&key, &gate, up.as_ref(), Dtype::BF16));
            assert!(disguise.gate.iter().any(|factor| *factor < 0.0) && disguise.gate.iter().any(|f| f.abs() > 3.0));

            let stored_points = disguise.points(&points, bias.as_deref());
            let stored = moved(&disguise, &polynomials, &points, &stored_points);
            let stored_gate = scaled(&gate, &disguise.gate);
            let stored_up = up.as_ref().map(|up| scaled(up, &disguise.up));
            let zeroth: Vec<f64> = polynomials.iter().map(|polynomial| polynomial[0]).collect();
            let merged = merged(&down, &zeroth, up.as_ref());
            for seed in 10..20 {
                let x = fill(1, inputs, 1.0, seed).values;
                let z = |gate: &Matrix, bias: Option<&Vec<f32>>| -> Vec<f64> {
                    let bias = |unit: usize| bias.map_or(0.0, |bias| f64::from(bias[unit]));
                    (0..units).map(|unit| dot(gate.row(unit), &x) + bias(unit)).collect()
                };
                let factors = |up: Option<&Matrix>| -> Vec<f64> {
                    (0..units).map(|unit| up.map_or(1.0, |up| dot(up.row(unit), &x))).collect()
                };
                let expected =
                    output(&down, &polynomials, 0, &points, [&z(&gate, bias.as_ref()), &factors(up.as_ref())]);
                let inputs = [&z(&stored_gate, None)[..], &factors(stored_up.as_ref())];
                let found = output(&down, &stored, 1, &stored_points, inputs);
                for (row, (expected, found)) in expected.iter().zip(&found).enumerate() {
                    let linear = if gated { dot(merged.row(row), &x) } else { f64::from(merged.values[row]) };
                    assert!((found + linear - expected).abs() < 2e-6, "{expected} {}", found + linear);
                }
            }
        }
    }

    #[test]
    fn factors_are_exact_in_the_type_of_the_rows() {
        // The largest and nearly the smallest number of F16: neither direction has room.
        let gate = Matrix { rows: 64, columns: 2, values: [65504.0, 6.0e-8].repeat(64) };
        let values: Vec<f32> = gate.values.iter().map(|value| half::f16::from_f32(*value).to_f32()).collect();
        let gate = Matrix { values, ..gate };
        let disguise = Disguise::draw(&[3; 32], &gate, None, Dtype::F16);
        assert!(disguise.gate.iter().all(|factor| factor.abs() == 1.0));
        let wide = Disguise::draw(&[3; 32], &gate, None, Dtype::F32);
        assert!(wide.gate.iter().any(|factor| factor.abs() > 1.0));
    }
}
