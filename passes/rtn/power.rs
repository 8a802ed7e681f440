//! |x|^0.7, the same on every processor, and the sums of the half-quadratic iteration built on it.

use multiversion::multiversion;

use super::kernels::Rounding;

/// Adding and subtracting it rounds a small float to the nearest integer.
const MAGIC: f32 = 12_582_912.0;
/// Lanes of a sum.
const LANES: usize = 16;
/// Weights summed in F32 before the lanes go into an F64.
const BLOCK: usize = 256;

/// Minimax-like fit of log2(1 + t) on 0..1, off by at most 2.2e-6.
const LOG2: [f32; 7] =
    [2.123_740_9e-6, 1.442_475_3, -0.717_557_87, 0.455_527_1, -0.274_623_26, 0.119_298_24, -0.025_123_203];
/// The same of 2^t on −½..½, off by at most 2.7e-6.
const EXP2: [f32; 5] = [1.000_000_1, 0.693_121, 0.240_221_07, 0.055_922_04, 0.009_676_04];

#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    let mut value = coefficients[N - 1];
    for coefficient in coefficients[..N - 1].iter().rev() {
        value = value * x + coefficient;
    }
    value
}

/// |x|^0.7 to five digits; 0 gives 10⁻²⁷. `x` is finite.
#[inline(always)]
pub fn power_0_7(x: f32) -> f32 {
    let bits = x.to_bits() & 0x7FFF_FFFF;
    let exponent = (bits >> 23) as i32 - 127;
    let mantissa = f32::from_bits(bits & 0x007F_FFFF | 0x3F80_0000) - 1.0;
    let scaled = 0.7 * (exponent as f32 + polynomial(&LOG2, mantissa));
    let whole = (scaled + MAGIC) - MAGIC;
    let fraction = polynomial(&EXP2, scaled - whole);
    fraction * f32::from_bits((((whole as i32) + 127) << 23) as u32)
}

/// Sums over weights x (in units of the step) with levels l = code − zero point.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HalfQuadratic {
    /// Σ |x − l|^0.7.
    pub objective: f64,
    /// Σ t, where t = x less its shrunken error.
    pub targets: f64,
    /// Σ l.
    pub levels: f64,
    /// Σ t·l.
    pub products: f64,
    /// Σ l².
    pub squares: f64,
}

/// The sums for weights that share a scale with the reciprocal `inverse`; `beta` weighs the quadratic term.
/// Only for [`Rounding::Integer`].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn half_quadratic(weights: &[f32], inverse: f32, rounding: Rounding, beta: f32) -> HalfQuadratic {
    let Rounding::Integer { offset, low, high } = rounding else { return HalfQuadratic::default() };
    let over_beta = 1.0 / beta;
    let mut sums = HalfQuadratic::default();
    for block in weights.chunks(BLOCK) {
        let mut lanes = [[0.0_f32; LANES]; 5];
        let mut add = |chunk: &[f32; LANES], counts: &[f32; LANES]| {
            for lane in 0..LANES {
                let x = chunk[lane] * inverse;
                let shifted = x + offset;
                let shifted = if shifted > low { shifted } else { low };
                let shifted = if shifted < high { shifted } else { high };
                let level = ((shifted + MAGIC) - MAGIC) - offset;
                let error = x - level;
                let power = power_0_7(error);
                let magnitude = error.abs();
                let shrunken = magnitude - power / magnitude * over_beta;
                let shrunken = if shrunken > 0.0 { shrunken } else { 0.0 };
                let target = x - shrunken.copysign(error);
                lanes[0][lane] += counts[lane] * power;
                lanes[1][lane] += counts[lane] * target;
                lanes[2][lane] += counts[lane] * level;
                lanes[3][lane] += counts[lane] * (target * level);
                lanes[4][lane] += counts[lane] * (level * level);
            }
        };
        let (chunks, rest) = block.as_chunks::<LANES>();
        for chunk in chunks {
            add(chunk, &[1.0; LANES]);
        }
        if !rest.is_empty() {
            let (mut padded, mut counts) = ([0.0; LANES], [0.0; LANES]);
            padded[..rest.len()].copy_from_slice(rest);
            counts[..rest.len()].fill(1.0);
            add(&padded, &counts);
        }
        let total = |lanes: [f32; LANES]| lanes.into_iter().map(f64::from).sum::<f64>();
        sums.objective += total(lanes[0]);
        sums.targets += total(lanes[1]);
        sums.levels += total(lanes[2]);
        sums.products += total(lanes[3]);
        sums.squares += total(lanes[4]);
    }
    sums
}

/// Σ |w − ŵ|^0.7 relative to a unit, where ŵ = (code − zero) · step.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn objective(weights: &[f32], codes: &[u8], zero: f32, step: f32, over_unit: f32) -> f64 {
    let term = |weight: f32, code: u8| power_0_7((weight - (f32::from(code) - zero) * step) * over_unit);
    let mut total = 0.0;
    for (weights, codes) in weights.chunks(BLOCK).zip(codes.chunks(BLOCK)) {
        let mut lanes = [0.0_f32; LANES];
        let ((weight_chunks, weight_rest), (code_chunks, code_rest)) =
            (weights.as_chunks::<LANES>(), codes.as_chunks::<LANES>());
        for (weights, codes) in weight_chunks.iter().zip(code_chunks) {
            for lane in 0..LANES {
                lanes[lane] += term(weights[lane], codes[lane]);
            }
        }
        for (lane, (weight, code)) in weight_rest.iter().zip(code_rest).enumerate() {
            lanes[lane] += term(*weight, *code);
        }
        total += lanes.into_iter().map(f64::from).sum::<f64>();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_agrees_with_the_library_to_five_digits() {
        for exponent in -60..60 {
            for step in 0..97 {
                let x = 2.0_f64.powf(f64::from(exponent) + f64::from(step) / 97.0) as f32;
                let exact = f64::from(x).powf(0.7);
                for x in [x, -x] {
                    assert!((f64::from(power_0_7(x)) / exact - 1.0).abs() < 1e-5, "{x}: {} {exact}", power_0_7(x));
                }
            }
        }
        assert!(power_0_7(0.0) < 1e-26);
    }

    #[test]
    fn sums_agree_with_the_formulas_in_f64() {
        let weights: Vec<f32> = (0..301).map(|i| ((i * 7919 % 1000) as f32 / 1000.0 - 0.4) * 0.3).collect();
        let (scale, offset, beta) = (0.021_37_f64, 6.3_f32, 9.0_f64);
        let inverse = (1.0 / scale) as f32;
        let got = half_quadratic(&weights, inverse, Rounding::Integer { offset, low: 0.0, high: 15.0 }, beta as f32);
        let mut expected = [0.0; 5];
        for weight in &weights {
            let x = f64::from(*weight) * f64::from(inverse);
            let level = (x + f64::from(offset)).round().clamp(0.0, 15.0) - f64::from(offset);
            let error = x - level;
            let shrunken = (error.abs() - error.abs().powf(-0.3) / beta).max(0.0) * error.signum();
            let target = x - shrunken;
            for (sum, term) in
                expected.iter_mut().zip([error.abs().powf(0.7), target, level, target * level, level * level])
            {
                *sum += term;
            }
        }
        for (got, expected) in
            [got.objective, got.targets, got.levels, got.products, got.squares].into_iter().zip(expected)
        {
            assert!((got - expected).abs() < 1e-4 * expected.abs().max(1.0), "{got} {expected}");
        }
    }
}
