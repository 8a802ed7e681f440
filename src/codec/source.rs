//! Matrices whose rows can be read as F32.

use std::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::CodecError;
use crate::checkpoint::{Dtype, Ranged, TensorBytes, bits_of, decode_to_f32, is_float};

/// A matrix whose rows can be read as F32, in any order, from many threads.
pub trait RowSource: Send + Sync {
    /// Rows (output features).
    fn rows(&self) -> usize;
    /// Columns (input features).
    fn columns(&self) -> usize;
    /// Reads rows `first_row..first_row + out.len() / columns` into `out`, row-major.
    ///
    /// # Errors
    /// [`CodecError`] when stored codes are malformed.
    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError>;
    /// The bytes of these rows as stored, row-major in the type they have, where rows lie one after the other: a device
    /// decodes them itself.
    fn stored_rows(&self, _rows: Range<usize>) -> Option<(Dtype, TensorBytes<'_>)> {
        None
    }
    /// Says that these rows are not needed any more, so that mapped pages can go.
    fn release_rows(&self, _rows: Range<usize>) {}
    /// How many rows are best read by one call: one where rows lie one after the other, so that a row stays in the
    /// nearest cache; several where they interleave.
    fn rows_at_once(&self) -> usize {
        1
    }
}

/// Rows read at once from transposed storage: what one cache line holds of 16-bit types.
const TRANSPOSED_ROWS: usize = 32;

/// Dense float weights as they lie in a file: row-major, or each expert's matrix transposed.
pub struct DenseRows<'a> {
    dtype: Dtype,
    bytes: Ranged<'a>,
    rows: usize,
    columns: usize,
    transposed: Option<Transposed>,
    release: Option<Release<'a>>,
}

/// Called with byte ranges of the tensor that are not needed any more.
pub type Release<'a> = Box<dyn Fn(Range<usize>) + Send + Sync + 'a>;

/// Storage `[experts, columns, rows of one expert]`.
struct Transposed {
    /// Rows of one expert.
    rows: usize,
    /// Rows released so far of each expert, whose bytes interleave and so can only go together.
    released: Vec<AtomicUsize>,
}

impl<'a> DenseRows<'a> {
    /// A matrix stored `[rows, columns]`, little-endian at any alignment.
    ///
    /// # Errors
    /// [`CodecError`] when the type is not a float, or shape and bytes disagree.
    pub fn new(dtype: Dtype, bytes: impl Into<Ranged<'a>>, rows: usize, columns: usize) -> Result<Self, CodecError> {
        let bytes = bytes.into();
        if !is_float(dtype) {
            let problem = format!("{dtype:?} is not a float type");
            return Err(CodecError::Stored { what: "weights", problem });
        }
        let too_large = CodecError::TooLarge { rows, columns };
        let expected = rows.checked_mul(columns).and_then(|count| count.checked_mul(bits_of(dtype) / 8));
        let expected = expected.ok_or(too_large)?;
        if bytes.len() != expected {
            return Err(CodecError::Length { what: "bytes of weights", expected, got: bytes.len() });
        }
        Ok(Self { dtype, bytes, rows, columns, transposed: None, release: None })
    }

    /// A matrix whose `rows / experts` rows of each expert are stored `[columns, rows / experts]`, expert after expert
    /// (one expert: GPT-2's `Conv1D`).
    ///
    /// # Errors
    /// As for [`DenseRows::new`], and [`CodecError::Stored`] when the rows do not divide by the experts.
    pub fn transposed(
        dtype: Dtype,
        bytes: impl Into<Ranged<'a>>,
        rows: usize,
        columns: usize,
        experts: usize,
    ) -> Result<Self, CodecError> {
        let mut dense = Self::new(dtype, bytes, rows, columns)?;
        if experts == 0 || !rows.is_multiple_of(experts) {
            let problem = format!("{rows} rows do not divide by {experts} experts");
            return Err(CodecError::Stored { what: "weights", problem });
        }
        let released = (0..experts.min(rows)).map(|_| AtomicUsize::new(0)).collect();
        dense.transposed = Some(Transposed { rows: rows / experts, released });
        Ok(dense)
    }

    /// Has `release` called with byte ranges of the tensor as [`RowSource::release_rows`] finishes with them.
    #[must_use]
    pub fn on_release(mut self, release: Release<'a>) -> Self {
        self.release = Some(release);
        self
    }

    /// Bytes of one element.
    fn width(&self) -> usize {
        bits_of(self.dtype) / 8
    }

    /// Rows `first..first + out.len() / columns` of one expert stored from byte `start`, by tiles of 16 columns.
    fn read_transposed(&self, start: usize, stored_rows: usize, first: usize, out: &mut [f32]) {
        const TILE: usize = 16;
        let count = out.len() / self.columns;
        let mut tile = [0.0; TILE * TRANSPOSED_ROWS];
        for some_rows in (0..count).step_by(TRANSPOSED_ROWS) {
            let height = TRANSPOSED_ROWS.min(count - some_rows);
            for some_columns in (0..self.columns).step_by(TILE) {
                let width = TILE.min(self.columns - some_columns);
                for column in 0..width {
                    let element = (some_columns + column) * stored_rows + first + some_rows;
                    let at = start + element * self.width();
                    let bytes = self.bytes.range(at..at + height * self.width());
                    decode_to_f32(self.dtype, &bytes, &mut tile[column * TRANSPOSED_ROWS..][..height]);
                }
                for row in 0..height {
                    let out = &mut out[(some_rows + row) * self.columns + some_columns..][..width];
                    for (column, out) in out.iter_mut().enumerate() {
                        *out = tile[column * TRANSPOSED_ROWS + row];
                    }
                }
            }
        }
    }
}

impl RowSource for DenseRows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        if self.columns == 0 || out.is_empty() {
            return Ok(());
        }
        let count = out.len() / self.columns;
        let end = first_row.checked_add(count).filter(|end| *end <= self.rows);
        if end.is_none() || !out.len().is_multiple_of(self.columns) {
            return Err(CodecError::Rows { first_row, end: first_row.saturating_add(count), rows: self.rows });
        }
        let Some(transposed) = &self.transposed else {
            let start = first_row * self.columns * self.width();
            decode_to_f32(self.dtype, &self.bytes.range(start..start + out.len() * self.width()), out);
            return Ok(());
        };
        let (mut row, mut out) = (first_row, out);
        while !out.is_empty() {
            let (expert, first) = (row / transposed.rows, row % transposed.rows);
            let here = (transposed.rows - first).min(out.len() / self.columns);
            let (of_expert, rest) = out.split_at_mut(here * self.columns);
            let start = expert * transposed.rows * self.columns * self.width();
            self.read_transposed(start, transposed.rows, first, of_expert);
            (row, out) = (row + here, rest);
        }
        Ok(())
    }

    fn stored_rows(&self, rows: Range<usize>) -> Option<(Dtype, TensorBytes<'_>)> {
        if self.transposed.is_some() || rows.start > rows.end || rows.end > self.rows {
            return None;
        }
        let row_bytes = self.columns * self.width();
        Some((self.dtype, self.bytes.range(rows.start * row_bytes..rows.end * row_bytes)))
    }

    fn release_rows(&self, rows: Range<usize>) {
        let Some(release) = &self.release else { return };
        let rows = rows.start.min(self.rows)..rows.end.min(self.rows);
        if rows.is_empty() {
            return;
        }
        let row_bytes = self.columns * self.width();
        let Some(transposed) = &self.transposed else {
            return release(rows.start * row_bytes..rows.end * row_bytes);
        };
        for expert in rows.start / transposed.rows..=(rows.end - 1) / transposed.rows {
            let all = expert * transposed.rows..(expert + 1) * transposed.rows;
            let here = rows.end.min(all.end) - rows.start.max(all.start);
            let released = &transposed.released[expert];
            if released.fetch_add(here, Ordering::Relaxed) + here >= transposed.rows {
                released.store(0, Ordering::Relaxed);
                release(all.start * row_bytes..all.end * row_bytes);
            }
        }
    }

    fn rows_at_once(&self) -> usize {
        if self.transposed.is_some() { TRANSPOSED_ROWS } else { 1 }
    }
}

impl fmt::Debug for DenseRows<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = formatter.debug_struct("DenseRows");
        text.field("dtype", &self.dtype).field("rows", &self.rows).field("columns", &self.columns);
        text.field("transposed", &self.transposed.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_are_the_same_however_they_are_stored(
            experts in 1usize..4,
            rows in 1usize..70,
            columns in 1usize..40,
            first in 0usize..200,
            count in 0usize..100,
        ) {
            let all = experts * rows;
            let (first, count) = (first % all, count % (all + 1));
            let count = count.min(all - first);
            let value = |row: usize, column: usize| bf16::from_f32((row * 7 + column) as f32);
            let mut plain = vec![];
            for row in 0..all {
                plain.extend((0..columns).flat_map(|column| value(row, column).to_le_bytes()));
            }
            let mut turned = vec![];
            for expert in 0..experts {
                for column in 0..columns {
                    turned.extend((0..rows).flat_map(|row| value(expert * rows + row, column).to_le_bytes()));
                }
            }
            let plain = DenseRows::new(Dtype::BF16, &plain, all, columns).unwrap();
            let turned = DenseRows::transposed(Dtype::BF16, &turned, all, columns, experts).unwrap();
            let mut expected = vec![];
            for row in first..first + count {
                expected.extend((0..columns).map(|column| value(row, column).to_f32()));
            }
            for source in [&plain, &turned] {
                let mut out = vec![-1.0; count * columns];
                source.read_rows(first, &mut out).unwrap();
                prop_assert_eq!(&out, &expected);
                if let Some((dtype, bytes)) = source.stored_rows(first..first + count) {
                    prop_assert_eq!(dtype, Dtype::BF16);
                    let stored = bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32());
                    prop_assert!(stored.eq(expected.iter().copied()));
                }
            }
            prop_assert!(turned.stored_rows(first..first + count).is_none());
            prop_assert!(plain.stored_rows(0..all + 1).is_none() && plain.stored_rows(0..all).is_some());
        }
    }

    #[test]
    fn plain_rows_are_released_at_once_and_transposed_ones_by_the_expert() {
        let bytes = [0; 2 * 6 * 4];
        let calls = Mutex::new(vec![]);
        let note = |range: Range<usize>| calls.lock().unwrap().push((range.start, range.end));
        let plain = DenseRows::new(Dtype::F32, &bytes, 6, 2).unwrap().on_release(Box::new(note));
        plain.release_rows(1..3);
        plain.release_rows(6..9);
        assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), [(8, 24)]);

        let turned = DenseRows::transposed(Dtype::F32, &bytes, 6, 2, 2).unwrap().on_release(Box::new(note));
        for (rows, expected) in
            [(0..2, vec![]), (2..4, vec![(0, 24)]), (4..6, vec![(24, 48)]), (0..6, vec![(0, 24), (24, 48)])]
        {
            turned.release_rows(rows);
            assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), expected);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let bytes = [0; 12];
        assert!(matches!(DenseRows::new(Dtype::I32, &bytes, 1, 3), Err(CodecError::Stored { .. })));
        assert!(matches!(DenseRows::new(Dtype::F32, &bytes, 2, 2), Err(CodecError::Length { expected: 16, .. })));
        assert!(matches!(DenseRows::new(Dtype::F32, &bytes, usize::MAX, 2), Err(CodecError::TooLarge { .. })));
        assert!(DenseRows::transposed(Dtype::F32, &bytes, 3, 1, 2).is_err());
        assert!(DenseRows::transposed(Dtype::F32, &bytes, 3, 1, 0).is_err());
        let source = DenseRows::new(Dtype::F32, &bytes, 3, 1).unwrap();
        assert!(matches!(source.read_rows(2, &mut [0.0; 2]), Err(CodecError::Rows { end: 4, .. })));
        assert!(matches!(source.read_rows(usize::MAX, &mut [0.0; 2]), Err(CodecError::Rows { .. })));
        let empty = DenseRows::transposed(Dtype::F16, &[], 0, 4, 8).unwrap();
        empty.read_rows(0, &mut []).unwrap();
        empty.release_rows(0..1);
        DenseRows::new(Dtype::F16, &[], 4, 0).unwrap().read_rows(3, &mut []).unwrap();
    }
}
