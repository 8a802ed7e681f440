//! Element types of the format, exact conversion to F32, and conversion back with one rounding.

use multiversion::multiversion;
pub use safetensors::Dtype;

use crate::codec::float8::{E4M3_MAX, e4m3_to_f32, f32_to_e4m3, f32_to_e5m2};

/// Bits of one element.
#[must_use]
pub fn bits_of(dtype: Dtype) -> usize {
    dtype.bitsize()
}

/// Whether the type is a dense floating-point one that a pass can work on (F64, F32, F16, BF16, and the FP8 types).
#[must_use]
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// Decodes little-endian elements of a float `dtype` (see [`is_float`]) at any alignment to F32: exact for every type
/// but F64, which is rounded to nearest even. `bytes` holds `out.len()` elements.
///
/// # Panics
/// Panics when the lengths disagree or the type is not a float: both are checked where tensors are chosen.
pub fn decode_to_f32(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * bits_of(dtype) / 8, "as many elements as values");
    match dtype {
        Dtype::F64 => decode_f64(bytes, out),
        Dtype::F32 => decode_f32(bytes, out),
        Dtype::F16 => decode_f16(bytes, out),
        Dtype::BF16 => decode_bf16(bytes, out),
        Dtype::F8_E4M3 => decode_e4m3(bytes, out),
        Dtype::F8_E5M2 => decode_e5m2(bytes, out),
        other => panic!("{other:?} is not a float type"),
    }
}

/// Appends F32 values as little-endian elements of a float `dtype`, rounded to nearest even. Returns how many finite
/// values were beyond the type's range: they became infinite (in E4M3, which has no infinity, ±448).
///
/// # Panics
/// Panics when the type is not a float: that is checked where tensors are chosen.
pub fn encode_from_f32(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> u64 {
    let start = out.len();
    out.resize(start + values.len() * bits_of(dtype) / 8, 0);
    let bytes = &mut out[start..];
    match dtype {
        Dtype::F64 => encode_f64(values, bytes),
        Dtype::F32 => encode_f32(values, bytes),
        Dtype::F16 => encode_f16(values, bytes),
        Dtype::BF16 => encode_bf16(values, bytes),
        Dtype::F8_E4M3 => encode_e4m3(values, bytes),
        Dtype::F8_E5M2 => encode_e5m2(values, bytes),
        other => panic!("{other:?} is not a float type"),
    }
    // The first magnitude of each type that no longer rounds to a finite value (E4M3: to 448).
    let (first_lost, inclusive) = match dtype {
        Dtype::F16 => (65520.0, true),
        Dtype::BF16 => (f32::from_bits(0x7f7f_8000), true),
        Dtype::F8_E4M3 => (E4M3_MAX + 16.0, false),
        Dtype::F8_E5M2 => (61440.0, true),
        _ => return 0,
    };
    count_beyond(values, first_lost, inclusive)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn count_beyond(values: &[f32], limit: f32, inclusive: bool) -> u64 {
    let limit = limit.to_bits() - u32::from(inclusive);
    let mut total = 0;
    for block in values.chunks(1 << 16) {
        let mut count = 0u32;
        for value in block {
            let magnitude = value.to_bits() & 0x7fff_ffff;
            count += u32::from(magnitude > limit) * u32::from(magnitude < 0x7f80_0000);
        }
        total += u64::from(count);
    }
    total
}

/// Makes the loops over elements of `$width` bytes each way, compiled for several instruction sets.
macro_rules! conversions {
    ($($decode:ident, $encode:ident, $width:literal, $from:ident, $to:ident;)*) => {$(
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
        fn $decode(bytes: &[u8], out: &mut [f32]) {
            for (element, value) in bytes.as_chunks::<$width>().0.iter().zip(out) {
                *value = $from(*element);
            }
        }

        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
        fn $encode(values: &[f32], bytes: &mut [u8]) {
            for (element, value) in bytes.as_chunks_mut::<$width>().0.iter_mut().zip(values) {
                *element = $to(*value);
            }
        }
    )*};
}

conversions! {
    decode_f64, encode_f64, 8, f64_bytes_to_f32, f32_to_f64_bytes;
    decode_f32, encode_f32, 4, f32_bytes_to_f32, f32_to_f32_bytes;
    decode_f16, encode_f16, 2, f16_bytes_to_f32, f32_to_f16_bytes;
    decode_bf16, encode_bf16, 2, bf16_bytes_to_f32, f32_to_bf16_bytes;
    decode_e4m3, encode_e4m3, 1, e4m3_bytes_to_f32, f32_to_e4m3_bytes;
    decode_e5m2, encode_e5m2, 1, e5m2_bytes_to_f32, f32_to_e5m2_bytes;
}

#[inline(always)]
fn f64_bytes_to_f32(bytes: [u8; 8]) -> f32 {
    f64::from_le_bytes(bytes) as f32
}

#[inline(always)]
fn f32_to_f64_bytes(value: f32) -> [u8; 8] {
    f64::from(value).to_le_bytes()
}

#[inline(always)]
fn f32_bytes_to_f32(bytes: [u8; 4]) -> f32 {
    f32::from_le_bytes(bytes)
}

#[inline(always)]
fn f32_to_f32_bytes(value: f32) -> [u8; 4] {
    value.to_le_bytes()
}

#[inline(always)]
fn bf16_bytes_to_f32(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

#[inline(always)]
fn f32_to_bf16_bytes(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    // A payload whose upper half is zero would round to an infinity, so the quiet bit is set.
    let not_a_number = (bits >> 16) | 0x40;
    ((if bits & 0x7fff_ffff > 0x7f80_0000 { not_a_number } else { rounded }) as u16).to_le_bytes()
}

#[inline(always)]
fn f16_bytes_to_f32(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

#[inline(always)]
fn f32_to_f16_bytes(value: f32) -> [u8; 2] {
    f32_to_f16(value).to_le_bytes()
}

#[inline(always)]
fn e4m3_bytes_to_f32([byte]: [u8; 1]) -> f32 {
    e4m3_to_f32(byte)
}

#[inline(always)]
fn f32_to_e4m3_bytes(value: f32) -> [u8; 1] {
    [f32_to_e4m3(value)]
}

/// E5M2 is the upper byte of F16.
#[inline(always)]
fn e5m2_bytes_to_f32([byte]: [u8; 1]) -> f32 {
    f16_to_f32(u16::from(byte) << 8)
}

#[inline(always)]
fn f32_to_e5m2_bytes(value: f32) -> [u8; 1] {
    [f32_to_e5m2(value)]
}

#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let normal = (magnitude << 13) + (112 << 23);
    let subnormal = (magnitude as f32 * (1.0 / 16_777_216.0)).to_bits();
    let finite = if magnitude < 0x400 { subnormal } else { normal };
    let quiet = u32::from(magnitude > 0x7c00) << 22;
    let special = (magnitude << 13) | 0x7f80_0000 | quiet;
    f32::from_bits(sign | if magnitude < 0x7c00 { finite } else { special })
}

#[inline(always)]
fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // 65536 is the first value past the format; everything from 65520 on rounds to infinity.
    let clamped = magnitude.min(65536.0f32.to_bits());
    let normal = ((clamped + 0xfff + ((clamped >> 13) & 1)) >> 13).wrapping_sub(112 << 10);
    // Adding ½ leaves a unit in the last place of 2⁻²⁴, the distance of F16's subnormals: the sum's rounding is theirs.
    let subnormal = (f32::from_bits(clamped) + 0.5).to_bits() - 0.5f32.to_bits();
    let finite = if clamped < 0x3880_0000 { subnormal } else { normal };
    let not_a_number = 0x7e00 | ((bits >> 13) & 0x3ff);
    (sign | if magnitude > 0x7f80_0000 { not_a_number } else { finite }) as u16
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        // One byte further, so that elements are not aligned.
        let mut shifted = vec![0xa5];
        shifted.extend_from_slice(bytes);
        let mut out = vec![0.0; bytes.len() * 8 / bits_of(dtype)];
        decode_to_f32(dtype, &shifted[1..], &mut out);
        out
    }

    fn encode(dtype: Dtype, values: &[f32]) -> (Vec<u8>, u64) {
        let mut out = vec![7];
        let lost = encode_from_f32(dtype, values, &mut out);
        assert_eq!(out.remove(0), 7);
        (out, lost)
    }

    #[test]
    fn every_half_pattern_decodes_as_the_half_crate_does() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for (bits, got) in (0..=u16::MAX).zip(decode(Dtype::F16, &bytes)) {
            assert_eq!(got.to_bits(), f16::from_bits(bits).to_f32().to_bits(), "f16 {bits:#x}");
        }
        for (bits, got) in (0..=u16::MAX).zip(decode(Dtype::BF16, &bytes)) {
            assert_eq!(got.to_bits(), u32::from(bits) << 16, "bf16 {bits:#x}");
        }
    }

    #[test]
    fn every_e5m2_pattern_decodes_to_its_definition() {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        for (byte, got) in bytes.iter().zip(decode(Dtype::F8_E5M2, &bytes)) {
            let (exponent, mantissa) = (i32::from((byte >> 2) & 31), f64::from(byte & 3) / 4.0);
            let magnitude = match (exponent, byte & 3) {
                (31, 0) => f64::INFINITY,
                (31, _) => f64::NAN,
                (0, _) => mantissa * 2f64.powi(-14),
                _ => (1.0 + mantissa) * 2f64.powi(exponent - 15),
            };
            let got = f64::from(got);
            assert!(got.abs() == magnitude || got.is_nan() && magnitude.is_nan(), "{byte:#x}");
            assert_eq!(got.is_sign_negative(), byte & 0x80 != 0);
        }
    }

    #[test]
    fn every_half_pattern_and_its_neighbours_encode_as_the_half_crate_does() {
        let mut values = vec![f32::NAN, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-40, -1e-45, 65519.99, 65520.0];
        for high in 0..=u16::MAX {
            values
                .extend([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(u32::from(high) << 16 | low)));
            let half = f16::from_bits(high).to_f32();
            let next = f16::from_bits(high.wrapping_add(1)).to_f32();
            let tie = f32::midpoint(half, next);
            values.extend([tie, tie.next_up(), tie.next_down()]);
        }
        let (halves, half_lost) = encode(Dtype::F16, &values);
        let (brains, brain_lost) = encode(Dtype::BF16, &values);
        let (mut half_expected, mut brain_expected) = (0, 0);
        for (index, &value) in values.iter().enumerate() {
            let half = u16::from_le_bytes([halves[2 * index], halves[2 * index + 1]]);
            let brain = u16::from_le_bytes([brains[2 * index], brains[2 * index + 1]]);
            assert_eq!(half, f16::from_f32(value).to_bits(), "f16 {value:e}");
            assert_eq!(brain, bf16::from_f32(value).to_bits(), "bf16 {value:e}");
            half_expected += u64::from(value.is_finite() && f16::from_f32(value).is_infinite());
            brain_expected += u64::from(value.is_finite() && bf16::from_f32(value).is_infinite());
        }
        assert_eq!((half_lost, brain_lost), (half_expected, brain_expected));
    }

    #[test]
    fn wide_types_keep_their_values() {
        let wide = [1.0f64, -0.0, 1.0 + 2f64.powi(-24), 1.0 + 3.0 * 2f64.powi(-24), 1e300, f64::MIN_POSITIVE];
        let bytes: Vec<u8> = wide.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(decode(Dtype::F64, &bytes), [1.0, -0.0, 1.0, 1.0 + 2f32.powi(-22), f32::INFINITY, 0.0]);
        let values = [1.5, -0.0, f32::MAX, 1e-45];
        for dtype in [Dtype::F32, Dtype::F64] {
            let (bytes, lost) = encode(dtype, &values);
            let again = decode(dtype, &bytes);
            assert_eq!(again.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), values.map(f32::to_bits));
            assert_eq!(lost, 0);
        }
    }

    #[test]
    fn values_beyond_an_eight_bit_type_are_counted() {
        let values = [464.0, 464.1, -480.0, f32::INFINITY, f32::NAN, 61439.0, 61440.0, -1e30];
        let (bytes, lost) = encode(Dtype::F8_E4M3, &values);
        assert_eq!((bytes[0], bytes[2], lost), (0x7e, 0xfe, 5));
        let (bytes, lost) = encode(Dtype::F8_E5M2, &values);
        assert_eq!((bytes[5], bytes[6], bytes[7], lost), (0x7b, 0x7c, 0xfc, 2));
    }

    #[test]
    #[should_panic(expected = "not a float type")]
    fn integers_are_not_floats() {
        decode_to_f32(Dtype::U8, &[1], &mut [0.0]);
    }
}
