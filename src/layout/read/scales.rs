//! Where the scales and zero points of a matrix lie, and how those of some rows are read.

use std::ops::Range;

use super::{
    super::gguf::blocks,
    super::streams::{decode_scales, transpose, unpack_rows},
    codes::{awq_values, slice},
};
use crate::checkpoint::{Checkpoint, GgmlType, TensorEntry, bits_of};

/// Scales, one per group.
#[derive(Debug, Clone)]
pub(super) enum Scales {
    /// None per group: one for the matrix.
    Tensor,
    /// `[scale rows, groups]`.
    Rows { entry: TensorEntry },
    /// `[groups, rows]`.
    Turned { entry: TensorEntry },
    /// In ggml's blocks.
    Blocks { entry: TensorEntry, kind: GgmlType },
}

/// Zero points, one per group.
#[derive(Debug, Clone)]
pub(super) enum Zeros {
    /// None per group: implied, or one for the matrix.
    None,
    /// Floats `[scale rows, groups]`.
    Float { entry: TensorEntry },
    /// Minima in ggml's blocks.
    Minima { entry: TensorEntry },
    /// Bytes `[scale rows, groups]`, signed: −128 stands for 0 of 8 bits.
    Signed { entry: TensorEntry, bits: u8 },
    /// Rows of bit streams `[scale rows, row_bytes]`.
    Stream { entry: TensorEntry, bits: u8, row_bytes: usize },
    /// Words `[words, groups]`, packed down the rows; `fields` codes a word, or a dense stream for 0.
    DownRows { entry: TensorEntry, bits: u8, fields: usize },
    /// Words `[groups, words]`, a bit stream along the rows; `added` to each, within its width.
    AlongRows { entry: TensorEntry, bits: u8, added: u8 },
    /// Words `[groups, rows / 8]` with AWQ's order of nibbles.
    AwqWords { entry: TensorEntry, rows: usize },
}

impl Scales {
    /// The scales of these scale rows, `[scale rows, groups]`.
    pub(super) fn read(&self, checkpoint: &Checkpoint, groups: usize, scale_rows: Range<usize>) -> Vec<f32> {
        match self {
            Self::Tensor => Vec::new(),
            Self::Rows { entry } => {
                let width = groups * bits_of(entry.dtype) / 8;
                decode_scales(entry.dtype, slice(checkpoint, entry, scale_rows.start, scale_rows.len(), width))
            }
            Self::Blocks { entry, kind } => {
                let width = groups * kind.block_bytes();
                blocks::scales(*kind, slice(checkpoint, entry, scale_rows.start, scale_rows.len(), width))
            }
            Self::Turned { entry } => {
                let (rows, width) = (entry.shape[1], bits_of(entry.dtype) / 8);
                let mut turned = Vec::with_capacity(groups * scale_rows.len());
                for group in 0..groups {
                    let run = slice(checkpoint, entry, group * rows + scale_rows.start, scale_rows.len(), width);
                    turned.extend(decode_scales(entry.dtype, run));
                }
                transpose(&turned, groups, scale_rows.len())
            }
        }
    }
}

impl Zeros {
    /// The zero points of these scale rows, `[scale rows, groups]`.
    pub(super) fn read(&self, checkpoint: &Checkpoint, groups: usize, scale_rows: Range<usize>) -> Vec<f32> {
        let floats = |zeros: Vec<u8>| zeros.into_iter().map(f32::from).collect();
        let (first, count) = (scale_rows.start, scale_rows.len());
        match self {
            Self::None => Vec::new(),
            Self::Float { entry } => {
                let width = groups * bits_of(entry.dtype) / 8;
                decode_scales(entry.dtype, slice(checkpoint, entry, first, count, width))
            }
            Self::Minima { entry } => {
                let width = groups * GgmlType::Q4_1.block_bytes();
                blocks::minima(slice(checkpoint, entry, first, count, width))
            }
            Self::Signed { entry, bits } => {
                let signed = slice(checkpoint, entry, first, count, groups).iter();
                let offset = 1i16 << (bits - 1);
                signed.map(|&zero| f32::from(i16::from(zero.cast_signed()) + offset)).collect()
            }
            Self::Stream { entry, bits, row_bytes } => {
                floats(unpack_rows(slice(checkpoint, entry, first, count, *row_bytes), groups, *bits, *row_bytes))
            }
            Self::DownRows { entry, bits, fields } => {
                let bytes = checkpoint.bytes(entry);
                let words = entry.shape[0];
                let mut zeros = Vec::with_capacity(count * groups);
                for row in scale_rows {
                    for group in 0..groups {
                        let word = |index: usize| word_at(bytes, index * groups + group);
                        zeros.push(f32::from(field(word, words, row, *bits, *fields)));
                    }
                }
                zeros
            }
            Self::AlongRows { entry, bits, added } => {
                let bytes = checkpoint.bytes(entry);
                let words = entry.shape[1];
                let mask = ((1u16 << bits) - 1) as u8;
                let mut zeros = Vec::with_capacity(count * groups);
                for row in scale_rows {
                    for group in 0..groups {
                        let word = |index: usize| word_at(bytes, group * words + index);
                        zeros.push(f32::from(field(word, words, row, *bits, 0).wrapping_add(*added) & mask));
                    }
                }
                zeros
            }
            Self::AwqWords { entry, rows } => floats(awq_values(checkpoint.bytes(entry), *rows, groups, first, count)),
        }
    }
}

fn word_at(bytes: &[u8], index: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[index * 4..][..4]);
    u32::from_le_bytes(word)
}

/// The `index`-th code of a list of words: of a dense bit stream, or of words with this many fields.
fn field(word: impl Fn(usize) -> u32, words: usize, index: usize, bits: u8, fields: usize) -> u8 {
    let width = bits as usize;
    let (first, shift) = match fields {
        0 => (index * width / 32, index * width % 32),
        _ => (index / fields, index % fields * width),
    };
    let next = if shift + width > 32 && first + 1 < words { word(first + 1) } else { 0 };
    let pair = u64::from(next) << 32 | u64::from(word(first));
    (pair >> shift & ((1 << width) - 1)) as u8
}
