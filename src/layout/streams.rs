//! Rows of codes as bit streams, the least significant bit first, each row padded with zeros to a whole number of bytes
//! (or of words, where `row_bytes` says so); and the conversions of scales and words that every layout needs.

use half::{bf16, f16};

use crate::{
    checkpoint::{Dtype, decode_to_f32},
    codec::{ScaleFormat, bits, float8, mx},
};

/// Bytes of a row of `columns` codes when rows end at whole bytes.
pub(super) fn byte_row(columns: usize, bits: u8) -> usize {
    bits::packed_bytes(columns, bits)
}

/// Bytes of a row of `columns` codes when rows end at whole 32-bit words.
pub(super) fn word_row(columns: usize, bits: u8) -> usize {
    bits::packed_bytes(columns, bits).next_multiple_of(4)
}

/// Packs rows of `columns` codes into rows of `row_bytes` bytes.
pub(super) fn pack_rows(codes: &[u8], columns: usize, bits: u8, row_bytes: usize) -> Vec<u8> {
    let mut packed = vec![0; codes.len() / columns.max(1) * row_bytes];
    for (row, out) in codes.chunks_exact(columns.max(1)).zip(packed.chunks_exact_mut(row_bytes.max(1))) {
        bits::pack(row, bits, out);
    }
    packed
}

/// Unpacks rows of `row_bytes` bytes into rows of `columns` codes.
pub(super) fn unpack_rows(packed: &[u8], columns: usize, bits: u8, row_bytes: usize) -> Vec<u8> {
    let mut codes = vec![0; packed.len() / row_bytes.max(1) * columns];
    for (row, out) in packed.chunks_exact(row_bytes.max(1)).zip(codes.chunks_exact_mut(columns.max(1))) {
        bits::unpack(row, bits, out);
    }
    codes
}

/// Turns `[rows, columns]` into `[columns, rows]`, in tiles that stay in the cache.
pub(crate) fn transpose<T: Copy + Default>(source: &[T], rows: usize, columns: usize) -> Vec<T> {
    const TILE: usize = 16;
    let mut turned = vec![T::default(); rows * columns];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for column in column_tile..(column_tile + TILE).min(columns) {
                    turned[column * rows + row] = source[row * columns + column];
                }
            }
        }
    }
    turned
}

/// Little-endian words of bytes that hold whole words.
pub(super) fn to_words(bytes: &[u8]) -> Vec<[u8; 4]> {
    bytes.as_chunks::<4>().0.to_vec()
}

/// Scales (or float zero points) as they are stored; the values fit their type exactly.
pub(super) fn encode_scales(format: ScaleFormat, values: &[f32]) -> Vec<u8> {
    match format {
        ScaleFormat::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ScaleFormat::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        ScaleFormat::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        ScaleFormat::E8M0 => values
            .iter()
            // The codec rounded every scale to a power of two.
            .map(|&value| mx::f32_to_e8m0(value).unwrap_or(0))
            .collect(),
        ScaleFormat::E4M3OverGlobal => values.iter().map(|&value| float8::f32_to_e4m3(value)).collect(),
    }
}

/// Stored scales as values: float types, and U8 as exponents 2^(e−127) (255 is not a number).
pub(super) fn decode_scales(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    if matches!(dtype, Dtype::U8 | Dtype::F8_E8M0) {
        return bytes.iter().map(|&exponent| mx::e8m0_to_f32(exponent)).collect();
    }
    let mut values = vec![0.0; bytes.len() * 8 / crate::checkpoint::bits_of(dtype).max(1)];
    decode_to_f32(dtype, bytes, &mut values);
    values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The stream's definition, bit by bit.
    fn bit(packed: &[u8], position: usize) -> u8 {
        packed[position / 8] >> (position % 8) & 1
    }

    proptest! {
        #[test]
        fn every_bit_is_where_the_definition_puts_it(
            bits in 1u8..=8, columns in 1usize..70, rows in 0usize..5, seed in any::<u64>(), words in any::<bool>(),
        ) {
            let codes: Vec<u8> = (0..rows * columns)
                .map(|index| (seed.wrapping_mul(index as u64 * 2 + 1) >> 40) as u8 & ((1u16 << bits) - 1) as u8)
                .collect();
            let row_bytes = if words { word_row(columns, bits) } else { byte_row(columns, bits) };
            let packed = pack_rows(&codes, columns, bits, row_bytes);
            prop_assert_eq!(packed.len(), rows * row_bytes);
            for row in 0..rows {
                let bytes = &packed[row * row_bytes..][..row_bytes];
                for position in 0..row_bytes * 8 {
                    let code = codes[row * columns..][..columns].get(position / bits as usize);
                    let expected = code.map_or(0, |code| code >> (position % bits as usize) & 1);
                    prop_assert_eq!(bit(bytes, position), expected);
                }
            }
            prop_assert_eq!(unpack_rows(&packed, columns, bits, row_bytes), codes);
        }
    }

    #[test]
    fn transposing_twice_is_nothing() {
        let source: Vec<u16> = (0..19 * 35).collect();
        let turned = transpose(&source, 19, 35);
        assert_eq!(turned[3 * 19 + 7], source[7 * 35 + 3]);
        assert_eq!(transpose(&turned, 35, 19), source);
    }
}
