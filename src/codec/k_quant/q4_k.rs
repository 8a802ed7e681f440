//! Q4_K: `d` and `dmin` in F16, 12 bytes of 6-bit scales and minima of eight parts, 128 bytes of 4-bit codes.
//!
//! Of scales and minima 0 to 3 all six bits lie in bytes 0 to 3 and 4 to 7; of 4 to 7 the low four bits lie in the low and the
//! high nibbles of bytes 8 to 11, the high two bits above the six of bytes 0 to 3 and 4 to 7. Each 32 bytes of codes have one
//! part in their low nibbles and the next one in their high nibbles.

use super::{
    BLOCK, half_at,
    search::{self, Found},
};

/// Bytes of a super-block.
pub const BYTES: usize = 144;
/// Where the packed scales begin.
const SCALES: usize = 4;
/// Where the codes begin.
const CODES: usize = 16;
/// Weights of a part.
const PART: usize = search::Q4_K.width;
const PARTS: usize = BLOCK / PART;

/// Writes a super-block; says whether it wants scales that F16 does not hold.
pub fn encode(weights: &[f32; BLOCK], bytes: &mut [u8]) -> bool {
    let found = best(weights);
    bytes[..2].copy_from_slice(&found.scale.to_le_bytes());
    bytes[2..SCALES].copy_from_slice(&found.minimum.to_le_bytes());
    let scales: [u8; PARTS] = std::array::from_fn(|part| found.scales[part] as u8);
    let minima: [u8; PARTS] = std::array::from_fn(|part| found.minima[part]);
    bytes[SCALES..CODES].copy_from_slice(&pack(&scales, &minima));
    let pairs = found.codes.chunks_exact(2 * PART);
    for (codes, bytes) in pairs.zip(bytes[CODES..BYTES].chunks_exact_mut(PART)) {
        for (column, byte) in bytes.iter_mut().enumerate() {
            *byte = codes[column] | codes[PART + column] << 4;
        }
    }
    found.clamped
}

/// Minima are of one sign. Where a part lies above zero altogether, the weights may be better off turned round, with both
/// scales negative.
fn best(weights: &[f32; BLOCK]) -> Found {
    let found = search::search(weights, &search::Q4_K);
    if weights.chunks_exact(PART).any(|part| part.iter().all(|weight| *weight > 0.0)) {
        let turned = search::search(&weights.map(|weight| -weight), &search::Q4_K);
        if turned.error < found.error {
            return Found { scale: -turned.scale, minimum: -turned.minimum, ..turned };
        }
    }
    found
}

/// Whether both scales are finite.
pub fn is_finite(bytes: &[u8]) -> bool {
    half_at(bytes, 0).is_finite() && half_at(bytes, 2).is_finite()
}

/// The weights of a super-block.
pub fn decode(bytes: &[u8], values: &mut [f32; BLOCK]) {
    let (scale, minimum) = (half_at(bytes, 0), half_at(bytes, 2));
    let (scales, minima) = unpack(&bytes[SCALES..CODES]);
    for (part, values) in values.chunks_exact_mut(PART).enumerate() {
        let (step, least) = (scale * f32::from(scales[part]), minimum * f32::from(minima[part]));
        let codes = &bytes[CODES + part / 2 * PART..][..PART];
        for (value, pair) in values.iter_mut().zip(codes) {
            let code = if part % 2 == 0 { pair & 15 } else { pair >> 4 };
            *value = step * f32::from(code) - least;
        }
    }
}

/// Eight scales and eight minima of six bits in twelve bytes.
pub fn pack(scales: &[u8; PARTS], minima: &[u8; PARTS]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for i in 0..PARTS / 2 {
        bytes[i] = scales[i] | (scales[i + 4] >> 4) << 6;
        bytes[i + 4] = minima[i] | (minima[i + 4] >> 4) << 6;
        bytes[i + 8] = scales[i + 4] & 15 | (minima[i + 4] & 15) << 4;
    }
    bytes
}

/// The reverse.
pub fn unpack(bytes: &[u8]) -> ([u8; PARTS], [u8; PARTS]) {
    let (mut scales, mut minima) = ([0; PARTS], [0; PARTS]);
    for i in 0..PARTS / 2 {
        (scales[i], minima[i]) = (bytes[i] & 63, bytes[i + 4] & 63);
        scales[i + 4] = bytes[i + 8] & 15 | (bytes[i] >> 6) << 4;
        minima[i + 4] = bytes[i + 8] >> 4 | (bytes[i + 4] >> 6) << 4;
    }
    (scales, minima)
}
