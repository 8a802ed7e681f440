//! Q6_K: 128 bytes with the low four bits of the codes, 64 with the high two, 16 scales of a signed byte, `d` in F16.
//!
//! Each half of a super-block, 128 weights, has 64 bytes of low bits, whose low nibbles are of its first 64 weights, and 32
//! bytes of high bits, of which each pair of bits is of one of its four runs of 32 weights.

use super::{BLOCK, half_at, search};

/// Bytes of a super-block.
pub const BYTES: usize = 210;
/// Where the high bits begin.
const HIGH: usize = 128;
/// Where the scales of the parts begin.
const SCALES: usize = 192;
/// Where the common scale is.
const SCALE: usize = 208;
/// Weights of a part.
const PART: usize = search::Q6_K.width;
/// Weights of a half, and of a run that shares a place of high bits.
const HALF: usize = 128;
const RUN: usize = 32;

/// Bytes and shifts of a weight's low and high bits.
fn places(index: usize) -> ((usize, usize), (usize, usize)) {
    let (half, within) = (index / HALF, index % HALF);
    let low = (half * HALF / 2 + within % (HALF / 2), within / (HALF / 2) * 4);
    let high = (HIGH + half * RUN + within % RUN, within / RUN * 2);
    (low, high)
}

/// Writes a super-block; says whether it wants a scale that F16 does not hold.
pub fn encode(weights: &[f32; BLOCK], bytes: &mut [u8]) -> bool {
    let found = search::search(weights, &search::Q6_K);
    bytes[..SCALES].fill(0);
    for (index, code) in found.codes.iter().enumerate() {
        let (low, high) = places(index);
        bytes[low.0] |= (code & 15) << low.1;
        bytes[high.0] |= (code >> 4) << high.1;
    }
    for (byte, scale) in bytes[SCALES..SCALE].iter_mut().zip(found.scales) {
        *byte = scale.cast_unsigned();
    }
    bytes[SCALE..BYTES].copy_from_slice(&found.scale.to_le_bytes());
    found.clamped
}

/// Whether the common scale is finite.
pub fn is_finite(bytes: &[u8]) -> bool {
    half_at(bytes, SCALE).is_finite()
}

/// The weights of a super-block.
pub fn decode(bytes: &[u8], values: &mut [f32; BLOCK]) {
    let scale = half_at(bytes, SCALE);
    for (index, value) in values.iter_mut().enumerate() {
        let (low, high) = places(index);
        let code = bytes[low.0] >> low.1 & 15 | (bytes[high.0] >> high.1 & 3) << 4;
        let step = scale * f32::from(bytes[SCALES + index / PART].cast_signed());
        *value = step * (f32::from(code) - 32.0);
    }
}
