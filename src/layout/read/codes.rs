//! Where the codes of a matrix lie, and how rows of them are read: one variant per way of packing.

use std::ops::Range;

use super::super::{
    awq::ORDER,
    gguf::blocks,
    streams::{transpose, unpack_rows},
};
use crate::checkpoint::{Checkpoint, GgmlType, TensorEntry};

/// Codes of a matrix in a checkpoint.
#[derive(Debug, Clone)]
pub(super) enum Codes {
    /// Rows of bit streams, `row_bytes` apart; `flip` turns stored signed bytes into unsigned codes.
    Stream { entry: TensorEntry, bits: u8, row_bytes: usize, flip: u8 },
    /// Rows of words that hold ⌊32 / bits⌋ codes each and leave the other bits unused.
    Fields { entry: TensorEntry, bits: u8, row_words: usize },
    /// Words `[words, rows]`: the bit stream of a row runs down a column.
    AlongInput { entry: TensorEntry, bits: u8, rows: usize },
    /// Words `[columns, rows / 8]` with AWQ's order of nibbles.
    AwqWords { entry: TensorEntry, rows: usize },
    /// ggml's blocks, codes and scales together.
    Blocks { entry: TensorEntry, kind: GgmlType },
    /// Two kept bytes of each four, and a bit mask that tells which; the others are zero before `flip`.
    Sparse24 { values: TensorEntry, mask: TensorEntry, flip: u8 },
}

/// The bytes of `count` items of `width` bytes from item `first` on.
pub(super) fn slice<'a>(
    checkpoint: &'a Checkpoint,
    entry: &TensorEntry,
    first: usize,
    count: usize,
    width: usize,
) -> &'a [u8] {
    &checkpoint.bytes(entry)[first * width..][..count * width]
}

impl Codes {
    /// Reads `rows` rows of `columns` codes; the caller has checked that they lie within the matrix.
    pub(super) fn read(&self, checkpoint: &Checkpoint, columns: usize, first_row: usize, rows: usize) -> Vec<u8> {
        match self {
            Self::Stream { entry, bits, row_bytes, flip } => {
                let packed = slice(checkpoint, entry, first_row, rows, *row_bytes);
                let mut codes = unpack_rows(packed, columns, *bits, *row_bytes);
                if *flip != 0 {
                    for code in &mut codes {
                        *code ^= flip;
                    }
                }
                codes
            }
            Self::Fields { entry, bits, row_words } => {
                let packed = slice(checkpoint, entry, first_row, rows, row_words * 4);
                unpack_fields(packed, columns, *bits, *row_words)
            }
            Self::AlongInput { entry, bits, rows: all_rows } => {
                let row_words = columns * *bits as usize / 32;
                let mut words = Vec::with_capacity(row_words * rows);
                for word in 0..row_words {
                    let run = slice(checkpoint, entry, word * all_rows + first_row, rows, 4);
                    words.extend_from_slice(run.as_chunks::<4>().0);
                }
                let streams = transpose(&words, row_words, rows).into_flattened();
                unpack_rows(&streams, columns, *bits, row_words * 4)
            }
            Self::AwqWords { entry, rows: all_rows } => {
                awq_values(checkpoint.bytes(entry), *all_rows, columns, first_row, rows)
            }
            Self::Blocks { entry, kind } => {
                blocks::codes(*kind, slice(checkpoint, entry, first_row, rows, blocks::row_bytes(*kind, columns)))
            }
            Self::Sparse24 { values, mask, flip } => {
                let mut codes = vec![*flip; rows * columns];
                let kept = slice(checkpoint, values, first_row, rows, columns / 2);
                let mask = slice(checkpoint, mask, first_row, rows, columns.div_ceil(8));
                let mut kept = kept.iter();
                for (out, mask) in codes.chunks_exact_mut(columns).zip(mask.chunks_exact(columns.div_ceil(8))) {
                    for (column, code) in out.iter_mut().enumerate() {
                        if mask[column / 8] >> (column % 8) & 1 == 1
                            && let Some(value) = kept.next()
                        {
                            *code = value ^ flip;
                        }
                    }
                }
                codes
            }
        }
    }

    /// Gives the pages of these rows back. Rows that share pages with all others go when `all` rows are done.
    pub(super) fn release(&self, checkpoint: &Checkpoint, rows: Range<usize>, all: bool) {
        let whole = |entry: &TensorEntry, width: usize| {
            checkpoint.release(entry, rows.start * width..rows.end * width);
        };
        match self {
            Self::Stream { entry, row_bytes, .. } => whole(entry, *row_bytes),
            Self::Fields { entry, row_words, .. } => whole(entry, row_words * 4),
            Self::Blocks { entry, .. } => whole(entry, entry.shape[1]),
            Self::Sparse24 { values, mask, .. } => {
                whole(values, values.shape[1]);
                whole(mask, mask.shape[1]);
            }
            Self::AlongInput { entry, .. } | Self::AwqWords { entry, .. } => {
                if all {
                    checkpoint.release(entry, 0..checkpoint.bytes(entry).len());
                }
            }
        }
    }
}

fn unpack_fields(packed: &[u8], columns: usize, bits: u8, row_words: usize) -> Vec<u8> {
    let (fields, mask) = (32 / bits as usize, (1u32 << bits) - 1);
    let mut codes = Vec::with_capacity(packed.len() / (row_words * 4) * columns);
    for row in packed.chunks_exact(row_words * 4) {
        let words = row.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word));
        let in_row =
            words.flat_map(|word| (0..fields).map(move |field| (word >> (field * bits as usize) & mask) as u8));
        codes.extend(in_row.take(columns));
    }
    codes
}

/// Values `[rows, width]` from AWQ's words `[width, all_rows / 8]`.
pub(super) fn awq_values(bytes: &[u8], all_rows: usize, width: usize, first_row: usize, rows: usize) -> Vec<u8> {
    let mut values = vec![0; rows * width];
    let word_columns = all_rows / 8;
    let end = first_row + rows;
    for index in 0..width {
        for word_column in first_row / 8..end.div_ceil(8) {
            let start = (index * word_columns + word_column) * 4;
            for (nibble, column) in ORDER.iter().enumerate() {
                let row = word_column * 8 + column;
                if (first_row..end).contains(&row) {
                    values[(row - first_row) * width + index] = bytes[start + nibble / 2] >> (nibble % 2 * 4) & 15;
                }
            }
        }
    }
    values
}
