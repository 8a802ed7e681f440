//! The order of the rows of queries and keys.
//!
//! Rotary positions turn pairs of a head's outputs. transformers pairs output `j` with `j + d/2`, ggml's Llama pairs
//! `2j` with `2j + 1`: so in a file the halves of each head alternate, row by row. The order is its models' own; others
//! that llama.cpp loads (`qwen2`, `qwen3`) keep the source's.

use std::ops::Range;

use super::super::Piece;
use crate::codec::{CodecError, RowSource};

/// Rows move within heads of so many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::layout) struct HeadOrder {
    head_rows: usize,
}

impl HeadOrder {
    /// Heads of so many rows, an even number.
    pub(in crate::layout) fn new(head_rows: usize) -> Option<Self> {
        (head_rows > 0 && head_rows.is_multiple_of(2)).then_some(Self { head_rows })
    }

    /// Whether whole heads make so many rows.
    pub(in crate::layout) fn divides(self, rows: usize) -> bool {
        rows.is_multiple_of(self.head_rows)
    }

    /// Where a model's row lies in a file.
    pub(in crate::layout) fn stored(self, row: usize) -> usize {
        let (head, at, half) = (row / self.head_rows, row % self.head_rows, self.head_rows / 2);
        head * self.head_rows + if at < half { 2 * at } else { 2 * (at - half) + 1 }
    }

    /// The model's row that lies at a place in a file.
    pub(in crate::layout) fn logical(self, row: usize) -> usize {
        let (head, at, half) = (row / self.head_rows, row % self.head_rows, self.head_rows / 2);
        head * self.head_rows + at / 2 + at % 2 * half
    }

    /// All rows of a matrix at their places.
    pub(super) fn move_rows(self, bytes: &[u8], row_bytes: usize) -> Vec<u8> {
        let mut moved = vec![0; bytes.len()];
        for (row, bytes) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
            moved[self.stored(row) * row_bytes..][..row_bytes].copy_from_slice(bytes);
        }
        moved
    }

    /// Some rows at their places: a piece for the part of each half of a head.
    pub(super) fn pieces(self, first_row: usize, row_bytes: usize, bytes: &[u8]) -> Vec<Piece> {
        let half = self.head_rows / 2;
        let end = first_row + bytes.len() / row_bytes.max(1);
        let mut pieces = Vec::new();
        let mut row = first_row;
        while row < end {
            let next = ((row / half + 1) * half).min(end);
            let part = bytes[(row - first_row) * row_bytes..(next - first_row) * row_bytes].to_vec();
            pieces.push(Piece::strided(0, self.stored(row) * row_bytes, row_bytes, 2 * row_bytes, part));
            row = next;
        }
        pieces
    }
}

/// Rows in another order than those they are read from. Of a single row, the elements.
pub(in crate::layout) struct Reordered<'a> {
    inner: Box<dyn RowSource + 'a>,
    order: HeadOrder,
    to_file: bool,
}

impl<'a> Reordered<'a> {
    /// A model's rows as they lie in a file.
    pub(super) fn to_file(inner: Box<dyn RowSource + 'a>, order: HeadOrder) -> Self {
        Self { inner, order, to_file: true }
    }

    /// A file's rows as the model has them.
    pub(in crate::layout) fn from_file(inner: Box<dyn RowSource + 'a>, order: HeadOrder) -> Self {
        Self { inner, order, to_file: false }
    }

    fn source_of(&self, row: usize) -> usize {
        if self.to_file { self.order.logical(row) } else { self.order.stored(row) }
    }

    /// The heads that hold these rows.
    fn heads(&self, rows: &Range<usize>) -> Range<usize> {
        let head = self.order.head_rows;
        rows.start / head * head..rows.end.div_ceil(head).saturating_mul(head).min(self.inner.rows())
    }
}

impl RowSource for Reordered<'_> {
    fn rows(&self) -> usize {
        self.inner.rows()
    }

    fn columns(&self) -> usize {
        self.inner.columns()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let columns = self.columns().max(1);
        let rows = first_row..first_row + out.len() / columns;
        if rows.end > self.rows() {
            return Err(CodecError::Rows { first_row, end: rows.end, rows: self.rows() });
        }
        // A vector is one row: its elements move.
        if self.rows() == 1 {
            let mut elements = vec![0.0; out.len()];
            self.inner.read_rows(first_row, &mut elements)?;
            for (index, value) in out.iter_mut().enumerate() {
                *value = elements[self.source_of(index)];
            }
            return Ok(());
        }
        let heads = self.heads(&rows);
        let mut values = vec![0.0; heads.len() * columns];
        self.inner.read_rows(heads.start, &mut values)?;
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            let from = self.source_of(row) - heads.start;
            out.copy_from_slice(&values[from * columns..][..columns]);
        }
        Ok(())
    }

    fn release_rows(&self, rows: Range<usize>) {
        let heads = if self.rows() == 1 { rows } else { self.heads(&rows) };
        self.inner.release_rows(heads);
    }

    fn rows_at_once(&self) -> usize {
        self.order.head_rows
    }
}
