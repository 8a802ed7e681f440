//! FP4 E2M1: values 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives; the code is the nibble, sign in bit 3.
//!
//! Source: OCP Microscaling Formats (MX) v1.0, section 5.3.3; rounding and signs as compressed-tensors' `cast_to_fp4`.

use multiversion::multiversion;

use super::groups::convert;

/// Largest value.
pub const E2M1_MAX: f32 = 6.0;

/// Decodes the low nibble of `code`.
#[must_use]
#[inline(always)]
pub fn e2m1_to_f32(code: u8) -> f32 {
    let magnitude = u32::from(code & 7);
    let sign = u32::from(code & 8) << 28;
    let normal = (magnitude << 22) + (126 << 23);
    let subnormal = (magnitude as f32 * 0.5).to_bits();
    f32::from_bits(sign | if magnitude < 2 { subnormal } else { normal })
}

/// Encodes to a nibble: round to nearest, ties to the even code, saturating at ±6. A negative value that rounds to zero
/// keeps its sign, −0 itself does not; not-a-number saturates.
#[must_use]
#[inline(always)]
pub fn f32_to_e2m1(value: f32) -> u8 {
    let clamped = (value.to_bits() & 0x7fff_ffff).min(E2M1_MAX.to_bits());
    // 2^(e+22), where 2^e is the value's binade but at least 1: its unit in the last place is the distance of codes
    // there, so the sum's rounding is theirs, and its low bits count them.
    let binade = (clamped & 0x7f80_0000).max(1.0f32.to_bits());
    let rounder = binade + (22 << 23);
    let steps = (f32::from_bits(clamped) + f32::from_bits(rounder)).to_bits() - rounder;
    let code = steps + ((binade >> 22) - (127 << 1));
    (code | (u32::from(value < 0.0) << 3)) as u8
}

/// E2M1 codes of one row: the nearest value to w / scale, `scales` holding one scale per group of `group` columns.
///
/// # Panics
/// Panics when `group` is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn quantize_fp4_row(row: &[f32], scales: &[f32], group: usize, codes: &mut [u8]) {
    convert(row, (scales, scales), group, codes, |weight, scale, _| f32_to_e2m1(weight / scale));
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

    #[test]
    fn every_nibble_decodes_to_the_table() {
        for code in 0..=255u8 {
            let value = e2m1_to_f32(code);
            assert_eq!(f64::from(value.abs()), VALUES[usize::from(code & 7)]);
            assert_eq!(value.is_sign_negative(), code & 8 != 0);
        }
    }

    #[test]
    fn encoding_is_the_nearest_value_for_every_bfloat16() {
        for high in 0..0x7f80u32 {
            for value in [f32::from_bits(high << 16), f32::from_bits(high << 16 | 1)] {
                // Far beyond the largest value F64 cannot tell the distances apart.
                let near = f64::from(value.min(100.0));
                let mut best = 0;
                for (code, candidate) in VALUES.iter().enumerate() {
                    let (distance, shortest) = ((candidate - near).abs(), (VALUES[best] - near).abs());
                    if distance < shortest || (distance == shortest && code % 2 == 0) {
                        best = code;
                    }
                }
                assert_eq!(usize::from(f32_to_e2m1(value)), best, "{value:e}");
                assert_eq!(usize::from(f32_to_e2m1(-value)), if value == 0.0 { 0 } else { best | 8 }, "-{value:e}");
            }
        }
        assert_eq!((f32_to_e2m1(f32::INFINITY), f32_to_e2m1(f32::NEG_INFINITY)), (7, 15));
    }
}
