//! Selection by magnitude and compaction, one row at a time, in the bits that weights are stored in.
//!
//! Magnitudes order like their bits. Of equal ones that of the higher column is larger, so the two largest of four are
//! those that beat at least two of the other three: the majority of three comparisons. Four 16-bit weights lie in one
//! 64-bit word, where a field's comparison with its neighbour is one subtraction of the rotated word.

use multiversion::multiversion;

use super::Pattern;
use crate::checkpoint::{Dtype, bits_of};

/// The sign bit of each field.
const SIGNS: u64 = 0x8000_8000_8000_8000;
/// For each rotation, the fields that have to be larger than what they are compared with, not as large.
const STRICT: [u64; 3] = [0x0000_0001_0001_0001, 0x0000_0000_0001_0001, 0x0000_0000_0000_0001];
/// Quads worked on at once.
const BLOCK: usize = 64;

/// Writes a row with the two smaller magnitudes of each quad made +0, and its mask: ⌈columns / 8⌉ bytes, least
/// significant bit first. Of equal magnitudes those of the lower columns go. Columns that are no whole quad are kept.
/// Returns whether all weights are finite; with others the result is unspecified.
///
/// # Panics
/// Panics when lengths disagree or the type is not F32, F16 or BF16.
pub fn prune_row(dtype: Dtype, row: &[u8], out: &mut [u8], mask: &mut [u8]) -> bool {
    let columns = shape(dtype, row);
    assert_eq!((out.len(), mask.len()), (row.len(), columns.div_ceil(8)), "a row and its mask");
    mask.fill(0);
    for column in columns / 4 * 4..columns {
        mask[column / 8] |= 1 << (column % 8);
    }
    let tail = columns / 4 * 4 * bits_of(dtype) / 8;
    out[tail..].copy_from_slice(&row[tail..]);
    match infinity(dtype) {
        None => prune_32(row, out, mask),
        Some(infinity) => prune_16(row, infinity, out, mask),
    }
}

/// Writes the two larger magnitudes of each quad as values and their places in the quad as 2-bit indices, least
/// significant bit first; then, to the values alone, the columns that are no whole quad. `values` holds columns div 4 · 2
/// + columns mod 4 elements, `indices` ⌈columns div 4 / 2⌉ bytes. Returns whether all weights are finite; with others
/// the result is unspecified.
///
/// # Panics
/// As for [`prune_row`].
pub fn compact_row(dtype: Dtype, row: &[u8], values: &mut [u8], indices: &mut [u8]) -> bool {
    let (columns, bytes) = (shape(dtype, row), bits_of(dtype) / 8);
    let kept = Pattern::TWO_OF_FOUR.kept_per_row(columns);
    assert_eq!((values.len(), indices.len()), (kept * bytes, (columns / 4).div_ceil(2)), "values and indices of a row");
    let (quads, tail) = row.split_at(columns / 4 * 4 * bytes);
    let (values, tail_values) = values.split_at_mut(quads.len() / 2);
    tail_values.copy_from_slice(tail);
    match infinity(dtype) {
        None => compact_32(quads, values, indices),
        Some(infinity) => compact_16(quads, infinity, values, indices),
    }
}

fn shape(dtype: Dtype, row: &[u8]) -> usize {
    let bytes = bits_of(dtype) / 8;
    assert!(matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16), "{dtype:?} has no selection kernel");
    assert_eq!(row.len() % bytes, 0, "whole weights");
    row.len() / bytes
}

/// The bits of infinity of a 16-bit type.
fn infinity(dtype: Dtype) -> Option<u16> {
    match dtype {
        Dtype::F16 => Some(0x7c00),
        Dtype::BF16 => Some(0x7f80),
        _ => None,
    }
}

/// For each 16-bit field of a quad 1 where it is kept.
#[inline(always)]
fn kept_16(word: u64) -> u64 {
    let magnitudes = word & !SIGNS;
    let larger = |turns: u32| {
        // Field p holds that of column (p + turns) mod 4; no field borrows, for it begins at 0x8000.
        let others = magnitudes.rotate_right(16 * turns);
        (magnitudes | SIGNS) - others - STRICT[turns as usize - 1]
    };
    let (first, second, third) = (larger(1), larger(2), larger(3));
    let majority = (first & second) | (third & (first | second));
    (majority & SIGNS) >> 15
}

/// Fields of 1 become all ones.
#[inline(always)]
fn filled(kept: u64) -> u64 {
    (kept << 16).wrapping_sub(kept)
}

/// Bit `i` for field `i`.
#[inline(always)]
fn gathered(kept: u64) -> u8 {
    ((kept | kept >> 15 | kept >> 30 | kept >> 45) & 15) as u8
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn prune_16(row: &[u8], infinity: u16, out: &mut [u8], mask: &mut [u8]) -> bool {
    let above = 0x0001_0001_0001_0001 * u64::from(0x8000 - infinity);
    let mut endless = 0;
    let blocks = row.as_chunks::<8>().0.chunks(BLOCK).zip(out.as_chunks_mut::<8>().0.chunks_mut(BLOCK));
    for ((quads, out), mask) in blocks.zip(mask.chunks_mut(BLOCK / 2)) {
        let mut kept = [0; BLOCK];
        for ((quad, out), kept) in quads.iter().zip(out).zip(&mut kept) {
            let word = u64::from_le_bytes(*quad);
            *kept = kept_16(word);
            endless |= (word & !SIGNS) + above;
            *out = (word & filled(*kept)).to_le_bytes();
        }
        for (byte, pair) in mask.iter_mut().zip(kept.as_chunks::<2>().0) {
            *byte |= gathered(pair[0]) | gathered(pair[1]) << 4;
        }
    }
    endless & SIGNS == 0
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn compact_16(row: &[u8], infinity: u16, values: &mut [u8], indices: &mut [u8]) -> bool {
    let above = 0x0001_0001_0001_0001 * u64::from(0x8000 - infinity);
    let mut endless = 0;
    let blocks = row.as_chunks::<8>().0.chunks(BLOCK).zip(values.as_chunks_mut::<4>().0.chunks_mut(BLOCK));
    for ((quads, values), indices) in blocks.zip(indices.chunks_mut(BLOCK / 2)) {
        let mut kept = [0; BLOCK];
        for ((quad, values), kept) in quads.iter().zip(values).zip(&mut kept) {
            let word = u64::from_le_bytes(*quad);
            *kept = kept_16(word);
            endless |= (word & !SIGNS) + above;
            let filled = filled(*kept);
            let chosen = word & filled;
            // The first one is that of column 0, or else 1, or else 2; the second one 3, or else 2, or else 1.
            let first = chosen | chosen >> 16 & !filled | chosen >> 32 & !filled & !(filled >> 16);
            let second =
                chosen >> 48 | chosen >> 32 & !(filled >> 48) | chosen >> 16 & !(filled >> 48) & !(filled >> 32);
            *values = ((first & 0xffff) as u32 | (second as u32) << 16).to_le_bytes();
        }
        for (byte, pair) in indices.iter_mut().zip(kept.as_chunks::<2>().0) {
            let kept = gathered(pair[0]) | gathered(pair[1]) << 4;
            *byte = places(kept & 15) | places(kept >> 4) << 4;
        }
    }
    endless & SIGNS == 0
}

/// The two places of a quad's bits, two bits each; 0 where a quad has no two.
#[inline(always)]
fn places(kept: u8) -> u8 {
    let (first, second) = (kept.trailing_zeros() as u8 & 3, (7 - (kept | 1).leading_zeros()) as u8 & 3);
    if kept == 0 { 0 } else { first | second << 2 }
}

/// The weights of a quad, and whether each is kept.
#[inline(always)]
fn kept_32(quad: &[u8; 16]) -> ([u32; 4], [bool; 4]) {
    let words = quad.as_chunks::<4>().0;
    let weights = [0, 1, 2, 3].map(|place: usize| u32::from_le_bytes(words[place]));
    let [a, b, c, d] = weights.map(|weight| weight & 0x7fff_ffff);
    let (ab, ac, ad, bc, bd, cd) = (a > b, a > c, a > d, b > c, b > d, c > d);
    let majority = |x: bool, y: bool, z: bool| (x & y) | (z & (x | y));
    (weights, [majority(ab, ac, ad), majority(!ab, bc, bd), majority(!ac, !bc, cd), majority(!ad, !bd, !cd)])
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn prune_32(row: &[u8], out: &mut [u8], mask: &mut [u8]) -> bool {
    let mut largest = 0;
    let quads = row.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0);
    for (index, (quad, out)) in quads.enumerate() {
        let (weights, kept) = kept_32(quad);
        let mut bits = 0;
        for place in 0..4 {
            largest = largest.max(weights[place] & 0x7fff_ffff);
            let weight = if kept[place] { weights[place] } else { 0 };
            out[4 * place..4 * place + 4].copy_from_slice(&weight.to_le_bytes());
            bits |= u8::from(kept[place]) << place;
        }
        mask[index / 2] |= bits << (index % 2 * 4);
    }
    largest < 0x7f80_0000
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn compact_32(row: &[u8], values: &mut [u8], indices: &mut [u8]) -> bool {
    indices.fill(0);
    let mut largest = 0;
    let quads = row.as_chunks::<16>().0.iter().zip(values.as_chunks_mut::<8>().0);
    for (index, (quad, out)) in quads.enumerate() {
        let (weights, kept) = kept_32(quad);
        weights.iter().for_each(|weight| largest = largest.max(weight & 0x7fff_ffff));
        let first = if kept[0] { 0 } else { 2 - usize::from(kept[1]) };
        let second = if kept[3] { 3 } else { 1 + usize::from(kept[2]) };
        let two = u64::from(weights[first]) | u64::from(weights[second]) << 32;
        *out = two.to_le_bytes();
        indices[index / 2] |= ((first | second << 2) as u8) << (index % 2 * 4);
    }
    largest < 0x7f80_0000
}

/// Writes the mask of a row that keeps the largest of each group's scores, which are not negative and not not-a-number;
/// of equal ones those of the lower columns go. Columns that are no whole group are kept. `mask` is ⌈columns / 8⌉ bytes.
///
/// # Panics
/// Panics when `mask` is too short.
pub fn select_row(scores: &[f32], pattern: Pattern, mask: &mut [u8]) {
    mask.fill(0);
    let Pattern { keep, of } = pattern;
    for (index, group) in scores.chunks(of).enumerate() {
        for (place, score) in group.iter().enumerate() {
            let beaten = |(other, value): (usize, &f32)| score > value || (score == value && place > other);
            let beats = group.iter().enumerate().filter(|other| beaten(*other)).count();
            if group.len() < of || beats >= of - keep {
                let column = index * of + place;
                mask[column / 8] |= 1 << (column % 8);
            }
        }
    }
}
