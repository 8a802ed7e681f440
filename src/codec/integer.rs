//! Integer codes: rounding weights to the nearest multiple of their group's scale.
//!
//! The quotient is a true division (a product with the reciprocal rounds differently now and then), clamped first and
//! rounded second, to nearest even. Adding 1.5·2²³ rounds a small F32 to an integer and leaves that integer in the low
//! bits, so every step is one vector instruction.

use multiversion::multiversion;

use super::groups::convert;

/// 1.5·2²³: the unit in the last place is 1 on both sides of it.
const ROUNDER: f32 = 12_582_912.0;

/// Codes of one row without zero points: clamp(round(w / scale), −2^(bits−1), 2^(bits−1) − 1) + 2^(bits−1).
///
/// `scales` has one scale per group of `group` columns and `codes` one place per weight. Scales are positive and finite,
/// and so are magnitudes of weights; with others the codes are unspecified, but no code is wider than `bits`.
///
/// # Panics
/// Panics when `group` is 0 or `bits` not 1 to 8.
pub fn quantize_symmetric_row(row: &[f32], scales: &[f32], group: usize, bits: u8, codes: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes of {bits} bits, expected 1 to 8");
    symmetric(row, scales, group, f32::from(1u16 << (bits - 1)), codes);
}

/// Codes of one row with whole zero points: clamp(round(w / scale) + zero, 0, 2^bits − 1).
///
/// As for [`quantize_symmetric_row`]; `zeros` are whole numbers from 0 to 2^bits − 1, one per scale.
///
/// # Panics
/// Panics when `group` is 0 or `bits` not 1 to 8.
pub fn quantize_asymmetric_row(row: &[f32], scales: &[f32], zeros: &[f32], group: usize, bits: u8, codes: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes of {bits} bits, expected 1 to 8");
    asymmetric(row, scales, zeros, group, f32::from((1u16 << bits) - 1), codes);
}

/// Codes of one row with float zero points (HQQ): clamp(round(w / scale + zero), 0, 2^bits − 1).
///
/// As for [`quantize_symmetric_row`]; `zeros` are finite, one per scale.
///
/// # Panics
/// Panics when `group` is 0 or `bits` not 1 to 8.
pub fn quantize_float_zero_row(row: &[f32], scales: &[f32], zeros: &[f32], group: usize, bits: u8, codes: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes of {bits} bits, expected 1 to 8");
    float_zero(row, scales, zeros, group, f32::from((1u16 << bits) - 1), codes);
}

/// Within the limits; not-a-number becomes the lower one. One instruction each, unlike `clamp`.
#[inline(always)]
fn limit(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn symmetric(row: &[f32], scales: &[f32], group: usize, half: f32, codes: &mut [u8]) {
    let offset = half as u32;
    convert(row, (scales, scales), group, codes, |weight, scale, _| {
        let rounded = limit(weight / scale, -half, half - 1.0) + ROUNDER;
        rounded.to_bits().wrapping_add(offset) as u8
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn asymmetric(row: &[f32], scales: &[f32], zeros: &[f32], group: usize, largest: f32, codes: &mut [u8]) {
    convert(row, (scales, zeros), group, codes, |weight, scale, zero| {
        // Only whole zero points are asked for; rounding others keeps the codes within their width.
        let zero = (limit(zero, 0.0, largest) + ROUNDER) - ROUNDER;
        let rounded = (limit(weight / scale, -zero, largest - zero) + ROUNDER) + zero;
        rounded.to_bits() as u8
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn float_zero(row: &[f32], scales: &[f32], zeros: &[f32], group: usize, largest: f32, codes: &mut [u8]) {
    convert(row, (scales, zeros), group, codes, |weight, scale, zero| {
        let rounded = limit(weight / scale + zero, 0.0, largest) + ROUNDER;
        rounded.to_bits() as u8
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Weights that hit ties and limits often: small multiples of a quarter of the scale beside arbitrary values.
    fn weight() -> impl Strategy<Value = f32> {
        prop_oneof![
            (-80i32..80).prop_map(|quarter| quarter as f32 * 0.25),
            any::<f32>().prop_filter("finite", |w| w.is_finite()),
            Just(0.0),
            Just(-0.0),
            Just(f32::MAX),
            Just(f32::from_bits(1)),
        ]
    }

    fn scale() -> impl Strategy<Value = f32> {
        prop_oneof![
            (-20i32..20).prop_map(|e| 2f32.powi(e)),
            (1u32..0x7f80_0000).prop_map(f32::from_bits),
            (1e-3f32..10.0),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn codes_follow_the_formulas_to_the_bit(
            row in prop::collection::vec(weight(), 0..150),
            group in 1usize..70,
            bits in 1u8..=8,
            scales in prop::collection::vec(scale(), 150),
            zeros in prop::collection::vec(0u8..=255, 150),
        ) {
            let groups = row.len().div_ceil(group);
            let (scales, levels) = (&scales[..groups], 1i32 << bits);
            let zeros: Vec<f32> = zeros[..groups].iter().map(|z| (i32::from(*z) % levels) as f32).collect();
            let halves: Vec<f32> = zeros.iter().map(|z| z + 0.375).collect();
            let mut codes = vec![0xee; row.len()];

            quantize_symmetric_row(&row, scales, group, bits, &mut codes);
            for (column, (weight, code)) in row.iter().zip(&codes).enumerate() {
                let half = f64::from(levels / 2);
                let rounded = f64::from((weight / scales[column / group]).round_ties_even());
                prop_assert_eq!(f64::from(*code), rounded.clamp(-half, half - 1.0) + half);
            }
            quantize_asymmetric_row(&row, scales, &zeros, group, bits, &mut codes);
            for (column, (weight, code)) in row.iter().zip(&codes).enumerate() {
                let rounded = f64::from((weight / scales[column / group]).round_ties_even());
                let sum = rounded + f64::from(zeros[column / group]);
                prop_assert_eq!(f64::from(*code), sum.clamp(0.0, f64::from(levels - 1)));
            }
            quantize_float_zero_row(&row, scales, &halves, group, bits, &mut codes);
            for (column, (weight, code)) in row.iter().zip(&codes).enumerate() {
                let sum = (weight / scales[column / group] + halves[column / group]).round_ties_even();
                prop_assert_eq!(f64::from(*code), f64::from(sum).clamp(0.0, f64::from(levels - 1)));
            }
        }

        #[test]
        fn whatever_the_input_no_code_is_wider(
            row in prop::collection::vec(any::<f32>(), 1..40),
            scale in any::<f32>(),
            zero in any::<f32>(),
            bits in 1u8..=8,
        ) {
            let mut codes = vec![0; row.len()];
            quantize_symmetric_row(&row, &[scale], 64, bits, &mut codes);
            prop_assert!(codes.iter().all(|code| u32::from(*code) < 1 << bits));
            quantize_asymmetric_row(&row, &[scale], &[zero], 64, bits, &mut codes);
            prop_assert!(codes.iter().all(|code| u32::from(*code) < 1 << bits));
            quantize_float_zero_row(&row, &[scale], &[zero], 64, bits, &mut codes);
            prop_assert!(codes.iter().all(|code| u32::from(*code) < 1 << bits));
        }
    }
}
