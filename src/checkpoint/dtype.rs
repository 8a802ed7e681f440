//! Element types of the format, and exact conversion to F32.

pub use safetensors::Dtype;

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
pub fn decode_to_f32(_dtype: Dtype, _bytes: &[u8], _out: &mut [f32]) {
    todo!()
}
