//! FP4 E2M1: values 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives; the code is the nibble, sign in bit 3.
//!
//! Source: OCP Microscaling Formats (MX) v1.0, section 5.3.3; rounding and signs as compressed-tensors' `cast_to_fp4`.

use multiversion::multiversion;

use super::integer::map;

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
/// keeps its sign, −0 itself does not; not-a-number becomes zero.
#[must_use]
#[inline(always)]
pub fn f32_to_e2m1(value: f32) -> u8 {
    let magnitude = value.abs();
    let code = u8::from(magnitude > 0.25)
        + u8::from(magnitude >= 0.75)
        + u8::from(magnitude > 1.25)
        + u8::from(magnitude >= 1.75)
        + u8::from(magnitude > 2.5)
        + u8::from(magnitude >= 3.5)
        + u8::from(magnitude > 5.0);
    code | (u8::from(value < 0.0) << 3)
}

/// E2M1 codes of one row: the nearest value to w / scale, `scales` holding one scale per group of `group` columns.
///
/// # Panics
/// Panics when `group` is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn quantize_fp4_row(row: &[f32], scales: &[f32], group: usize, codes: &mut [u8]) {
    for ((weights, codes), &scale) in row.chunks(group).zip(codes.chunks_mut(group)).zip(scales) {
        map(weights, codes, |weight| f32_to_e2m1(weight / scale));
    }
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
