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
/// significant bit first; then, to the values alone, the columns that are no whole quad. `values` holds twice columns div
/// 4 and columns mod 4 elements, `indices` ⌈columns div 4 / 2⌉ bytes. Returns whether all weights are finite; with others
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

/// The two places of a quad from a bit of each column, 1 where it is kept: the first one and four times the second one.
#[inline(always)]
fn places(k0: u8, k1: u8, k2: u8, k3: u8) -> u8 {
    let (n0, n1, n2) = (k0 ^ 1, k1 ^ 1, k2 ^ 1);
    (n0 & k1) | (n0 & n1) << 1 | (k3 | n2) << 2 | (k3 | k2) << 3
}

/// Four bits of each quad to bytes of two quads; for an odd one, half a byte.
#[inline(always)]
fn join(nibbles: &[u8; BLOCK], count: usize, out: &mut [u8]) {
    let (pairs, last) = nibbles[..count].as_chunks::<2>();
    for (byte, pair) in out.iter_mut().zip(pairs) {
        let pair = u16::from_le_bytes(*pair);
        *byte |= (pair | pair >> 4) as u8;
    }
    if let ([nibble], Some(byte)) = (last, out.get_mut(pairs.len())) {
        *byte |= nibble;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn prune_16(row: &[u8], infinity: u16, out: &mut [u8], mask: &mut [u8]) -> bool {
    let above = 0x0001_0001_0001_0001 * u64::from(0x8000 - infinity);
    let mut endless = 0;
    let blocks = row.as_chunks::<8>().0.chunks(BLOCK).zip(out.as_chunks_mut::<8>().0.chunks_mut(BLOCK));
    for ((quads, out), mask) in blocks.zip(mask.chunks_mut(BLOCK / 2)) {
        // Two loops, because one that writes words and bytes does not become vector instructions.
        let (mut kept, mut nibbles) = ([0; BLOCK], [0; BLOCK]);
        for ((quad, out), kept) in quads.iter().zip(out).zip(&mut kept) {
            let word = u64::from_le_bytes(*quad);
            *kept = kept_16(word);
            endless |= (word & !SIGNS) + above;
            *out = (word & filled(*kept)).to_le_bytes();
        }
        kept.iter().zip(&mut nibbles).for_each(|(kept, nibble)| *nibble = gathered(*kept));
        join(&nibbles, quads.len(), mask);
    }
    endless & SIGNS == 0
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn compact_16(row: &[u8], infinity: u16, values: &mut [u8], indices: &mut [u8]) -> bool {
    indices.fill(0);
    let above = 0x0001_0001_0001_0001 * u64::from(0x8000 - infinity);
    let mut endless = 0;
    let blocks = row.as_chunks::<8>().0.chunks(BLOCK).zip(values.as_chunks_mut::<4>().0.chunks_mut(BLOCK));
    for ((quads, values), indices) in blocks.zip(indices.chunks_mut(BLOCK / 2)) {
        let (mut kept, mut nibbles) = ([0; BLOCK], [0; BLOCK]);
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
        for (kept, nibble) in kept.iter().zip(&mut nibbles) {
            let bit = |column: u32| (kept >> (16 * column)) as u8 & 1;
            *nibble = places(bit(0), bit(1), bit(2), bit(3));
        }
        join(&nibbles, quads.len(), indices);
    }
    endless & SIGNS == 0
}

/// Some quads of 32-bit weights, column by column, so that quads lie in lanes.
struct Quads {
    weights: [[u32; BLOCK]; 4],
    /// All ones where a weight is kept.
    kept: [[u32; BLOCK]; 4],
}

impl Quads {
    /// Reads some quads and compares their magnitudes. Returns the largest magnitude.
    #[inline(always)]
    fn read(&mut self, quads: &[[u8; 16]]) -> u32 {
        let Self { weights: [w0, w1, w2, w3], kept: [k0, k1, k2, k3] } = self;
        let word = |quad: &[u8; 16], place: usize| {
            u32::from_le_bytes([quad[place], quad[place + 1], quad[place + 2], quad[place + 3]])
        };
        for ((((quad, w0), w1), w2), w3) in quads.iter().zip(&mut *w0).zip(&mut *w1).zip(&mut *w2).zip(&mut *w3) {
            (*w0, *w1, *w2, *w3) = (word(quad, 0), word(quad, 4), word(quad, 8), word(quad, 12));
        }
        let magnitude = |weight: u32| (weight & 0x7fff_ffff) as i32;
        let all = |flag: bool| if flag { u32::MAX } else { 0 };
        let majority = |x: bool, y: bool, z: bool| (all(x) & all(y)) | (all(z) & (all(x) | all(y)));
        let mut largest = 0;
        for i in 0..BLOCK {
            let [a, b, c, d] = [magnitude(w0[i]), magnitude(w1[i]), magnitude(w2[i]), magnitude(w3[i])];
            let (ab, ac, ad, bc, bd, cd) = (a > b, a > c, a > d, b > c, b > d, c > d);
            k0[i] = majority(ab, ac, ad);
            k1[i] = majority(!ab, bc, bd);
            k2[i] = majority(!ac, !bc, cd);
            k3[i] = majority(!ad, !bd, !cd);
            largest = largest.max(a.max(b).max(c.max(d)));
        }
        largest as u32
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn prune_32(row: &[u8], out: &mut [u8], mask: &mut [u8]) -> bool {
    let mut largest = 0;
    let mut block = Quads { weights: [[0; BLOCK]; 4], kept: [[0; BLOCK]; 4] };
    let blocks = row.as_chunks::<16>().0.chunks(BLOCK).zip(out.as_chunks_mut::<16>().0.chunks_mut(BLOCK));
    for ((quads, out), mask) in blocks.zip(mask.chunks_mut(BLOCK / 2)) {
        largest = largest.max(block.read(quads));
        for (i, out) in out.iter_mut().enumerate() {
            for place in 0..4 {
                let weight = block.weights[place][i] & block.kept[place][i];
                out[4 * place..4 * place + 4].copy_from_slice(&weight.to_le_bytes());
            }
        }
        let mut nibbles = [0; BLOCK];
        for (i, nibble) in nibbles.iter_mut().enumerate() {
            let [k0, k1, k2, k3] = [0, 1, 2, 3].map(|place: usize| block.kept[place][i] & 1 << place);
            *nibble = (k0 | k1 | k2 | k3) as u8;
        }
        join(&nibbles, quads.len(), mask);
    }
    largest < 0x7f80_0000
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn compact_32(row: &[u8], values: &mut [u8], indices: &mut [u8]) -> bool {
    indices.fill(0);
    let mut largest = 0;
    let mut block = Quads { weights: [[0; BLOCK]; 4], kept: [[0; BLOCK]; 4] };
    let blocks = row.as_chunks::<16>().0.chunks(BLOCK).zip(values.as_chunks_mut::<8>().0.chunks_mut(BLOCK));
    for ((quads, values), indices) in blocks.zip(indices.chunks_mut(BLOCK / 2)) {
        largest = largest.max(block.read(quads));
        let Quads { weights: [w0, w1, w2, w3], kept: [k0, k1, k2, k3] } = &block;
        for (i, values) in values.iter_mut().enumerate() {
            let first = w0[i] & k0[i] | !k0[i] & (w1[i] & k1[i] | !k1[i] & w2[i]);
            let second = w3[i] & k3[i] | !k3[i] & (w2[i] & k2[i] | !k2[i] & w1[i]);
            *values = (u64::from(first) | u64::from(second) << 32).to_le_bytes();
        }
        let mut nibbles = [0; BLOCK];
        for (i, nibble) in nibbles.iter_mut().enumerate() {
            let [k0, k1, k2, k3] = [k0, k1, k2, k3].map(|kept| (kept[i] & 1) as u8);
            *nibble = places(k0, k1, k2, k3);
        }
        join(&nibbles, quads.len(), indices);
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
