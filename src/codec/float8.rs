//! FP8: E4M3FN (no infinities, largest value 448) and E5M2, both ways, branch-free so that loops over them vectorise.
//!
//! Source: Micikevicius et al., "FP8 formats for deep learning" (arXiv 2209.05433), table 1.

use multiversion::multiversion;

use super::groups::convert;

/// Largest finite E4M3FN value.
pub const E4M3_MAX: f32 = 448.0;

/// Largest finite E5M2 value.
pub const E5M2_MAX: f32 = 57344.0;

/// Decodes one E4M3FN byte; 0x7F and 0xFF are not numbers.
#[must_use]
#[inline(always)]
pub fn e4m3_to_f32(byte: u8) -> f32 {
    let magnitude = u32::from(byte & 0x7f);
    let sign = u32::from(byte & 0x80) << 24;
    let normal = (magnitude << 20) + (120 << 23);
    // Below 8 the exponent field is zero: the value is magnitude · 2⁻⁹, exact in F32.
    let subnormal = (magnitude as f32 * (1.0 / 512.0)).to_bits();
    let finite = if magnitude < 8 { subnormal } else { normal };
    f32::from_bits(sign | if magnitude == 0x7f { 0x7fc0_0000 } else { finite })
}

/// Encodes to E4M3FN: round to nearest even, saturating at ±448 (infinities too); not-a-number stays so.
#[must_use]
#[inline(always)]
pub fn f32_to_e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24) & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    let clamped = magnitude.min(E4M3_MAX.to_bits());
    // 2^(e+20), where 2^e is the value's binade but at least the lowest normal one: its unit in the last place is the
    // distance of codes there, so the sum's rounding is theirs, and its low bits count them.
    let binade = (clamped & 0x7f80_0000).max(0x3c80_0000);
    let rounder = binade + (20 << 23);
    let steps = (f32::from_bits(clamped) + f32::from_bits(rounder)).to_bits() - rounder;
    let finite = steps + ((binade >> 20) - (121 << 3));
    (sign | if magnitude > 0x7f80_0000 { 0x7f } else { finite }) as u8
}

/// Encodes to E5M2: round to nearest even, overflow to infinity; not-a-number stays so.
#[must_use]
#[inline(always)]
pub fn f32_to_e5m2(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24) & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    // 65536 is the first value past the format; everything from there on rounds to infinity.
    let clamped = magnitude.min(65536.0f32.to_bits());
    let normal = ((clamped + 0xf_ffff + ((clamped >> 21) & 1)) >> 21).wrapping_sub(112 << 2);
    // Adding 2⁷ leaves a unit in the last place of 2⁻¹⁶, the distance of E5M2's subnormals.
    let subnormal = (f32::from_bits(clamped) + 128.0).to_bits() - 128.0f32.to_bits();
    let finite = if clamped < 0x3880_0000 { subnormal } else { normal };
    (sign | if magnitude > 0x7f80_0000 { 0x7f } else { finite }) as u8
}

/// E4M3 codes of one row: the nearest value to w / scale, `scales` holding one scale per group of `group` columns.
///
/// # Panics
/// Panics when `group` is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn quantize_fp8_row(row: &[f32], scales: &[f32], group: usize, codes: &mut [u8]) {
    convert(row, (scales, scales), group, codes, |weight, scale, _| f32_to_e4m3(weight / scale));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formats' definition in F64: sign, exponent and mantissa fields as the paper tells them.
    fn define(byte: u8, exponent_bits: u32, bias: i32) -> f64 {
        let mantissa_bits = 7 - exponent_bits;
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let exponent = i32::from(byte & 0x7f) >> mantissa_bits;
        let mantissa = f64::from(byte & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
        if exponent == 0 {
            return sign * mantissa * 2f64.powi(1 - bias);
        }
        sign * (1.0 + mantissa) * 2f64.powi(exponent - bias)
    }

    fn e4m3(byte: u8) -> f64 {
        if byte & 0x7f == 0x7f { f64::NAN } else { define(byte, 4, 7) }
    }

    /// The nearest code by search over all finite values; ties go to the even code.
    fn nearest(value: f64, finite: &[(u8, f64)]) -> u8 {
        let mut best = finite[0];
        for &(byte, candidate) in finite {
            let (distance, shortest) = ((candidate - value).abs(), (best.1 - value).abs());
            if distance < shortest || (distance == shortest && byte & 1 == 0) {
                best = (byte, candidate);
            }
        }
        best.0
    }

    #[test]
    fn every_e4m3_byte_decodes_to_its_definition() {
        for byte in 0..=255u8 {
            let (got, expected) = (e4m3_to_f32(byte), e4m3(byte));
            assert!(got.is_nan() && expected.is_nan() || f64::from(got) == expected, "{byte:#x}: {got} {expected}");
            assert_eq!(got.is_sign_negative(), byte & 0x80 != 0);
            if !expected.is_nan() {
                assert_eq!(f32_to_e4m3(got), byte);
            }
        }
    }

    #[test]
    fn encoding_is_the_nearest_value_on_a_fine_grid_and_around_every_tie() {
        let e4m3_finite: Vec<_> = (0..0x7f).map(|byte| (byte, e4m3(byte))).collect();
        // One more binade than E5M2 has, so that the search can choose infinity (0x7c) where rounding would.
        let e5m2_finite: Vec<_> = (0..=0x7c).map(|byte| (byte, define(byte, 5, 15))).collect();
        let mut values: Vec<f32> = (0..0x4800u32).map(|high| f32::from_bits(high << 16)).collect();
        for table in [&e4m3_finite, &e5m2_finite] {
            for pair in table.windows(2) {
                let tie = f64::midpoint(pair[0].1, pair[1].1) as f32;
                values.extend([tie, tie.next_up(), tie.next_down()]);
            }
        }
        for value in values {
            assert_eq!(f32_to_e4m3(value), nearest(f64::from(value), &e4m3_finite), "e4m3 {value:e}");
            assert_eq!(f32_to_e5m2(value), nearest(f64::from(value), &e5m2_finite), "e5m2 {value:e}");
            assert_eq!(f32_to_e4m3(-value), f32_to_e4m3(value) | 0x80);
            assert_eq!(f32_to_e5m2(-value), f32_to_e5m2(value) | 0x80);
        }
    }

    #[test]
    fn what_is_not_finite() {
        assert_eq!(f32_to_e4m3(f32::INFINITY), 0x7e);
        assert_eq!(f32_to_e4m3(f32::NEG_INFINITY), 0xfe);
        assert_eq!(f32_to_e4m3(f32::MAX), 0x7e);
        assert_eq!(f32_to_e5m2(f32::INFINITY), 0x7c);
        assert_eq!(f32_to_e5m2(f32::MAX), 0x7c);
        assert_eq!(f32_to_e4m3(f32::NAN) & 0x7f, 0x7f);
        assert_eq!(f32_to_e5m2(f32::NAN) & 0x7f, 0x7f);
    }
}
