//! Rows of logical tensors, however they are stored.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{codes::slice, matrix::CodedMatrix};
use crate::{
    checkpoint::{Checkpoint, Dtype, TensorEntry, bits_of, decode_to_f32},
    codec::{CodecError, MatrixParameters, RowSource},
};

/// Refuses rows that the matrix has not; gives their number.
pub(super) fn rows_asked(first_row: usize, values: usize, columns: usize, rows: usize) -> Result<usize, CodecError> {
    let asked = values / columns.max(1);
    match first_row.checked_add(asked) {
        Some(end) if end <= rows && asked * columns == values => Ok(asked),
        _ => Err(CodecError::Rows { first_row, end: first_row.saturating_add(asked), rows }),
    }
}

/// Rows of a coded matrix best read at once: those that packed words and cache lines across rows hold.
const CODED_ROWS: usize = 32;

/// A coded matrix as weights.
pub(super) struct CodedSource<'a> {
    pub checkpoint: &'a Checkpoint,
    pub matrix: &'a CodedMatrix,
    pub parameters: MatrixParameters,
    /// Rows released so far: words packed along the input hold all rows, and go when the last one does.
    pub released: AtomicUsize,
}

impl RowSource for CodedSource<'_> {
    fn rows(&self) -> usize {
        self.matrix.rows
    }

    fn columns(&self) -> usize {
        self.matrix.columns
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        rows_asked(first_row, out.len(), self.matrix.columns, self.matrix.rows)?;
        self.matrix.dequantize(self.checkpoint, &self.parameters, first_row, out)
    }

    fn release_rows(&self, rows: Range<usize>) {
        let rows = rows.start.min(self.matrix.rows)..rows.end.min(self.matrix.rows);
        let before = self.released.fetch_add(rows.len(), Ordering::Relaxed);
        let all = before + rows.len() >= self.matrix.rows;
        if all {
            self.released.store(0, Ordering::Relaxed);
        }
        self.matrix.codes.release(self.checkpoint, rows, all);
    }

    fn rows_at_once(&self) -> usize {
        CODED_ROWS
    }
}

/// Two kept weights of each four and a bit mask (2:4 sparsity), as weights.
#[derive(Debug, Clone)]
pub(super) struct SparseMatrix {
    pub rows: usize,
    pub columns: usize,
    pub values: TensorEntry,
    pub mask: TensorEntry,
}

/// A [`SparseMatrix`] of a checkpoint.
pub(super) struct SparseSource<'a> {
    pub checkpoint: &'a Checkpoint,
    pub matrix: &'a SparseMatrix,
}

impl RowSource for SparseSource<'_> {
    fn rows(&self) -> usize {
        self.matrix.rows
    }

    fn columns(&self) -> usize {
        self.matrix.columns
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let SparseMatrix { rows: all_rows, columns, values, mask } = self.matrix;
        let rows = rows_asked(first_row, out.len(), *columns, *all_rows)?;
        let dtype: Dtype = values.dtype;
        let kept_bytes = slice(self.checkpoint, values, first_row, rows, columns / 2 * bits_of(dtype) / 8);
        let mut kept = vec![0.0; rows * columns / 2];
        decode_to_f32(dtype, &kept_bytes, &mut kept);
        let mask_bytes = columns.div_ceil(8);
        let masks = slice(self.checkpoint, mask, first_row, rows, mask_bytes);
        let rows_of_both = masks.chunks_exact(mask_bytes).zip(kept.chunks_exact(columns / 2));
        for ((mask, kept), out) in rows_of_both.zip(out.chunks_exact_mut(*columns)) {
            let mut kept = kept.iter();
            for (column, out) in out.iter_mut().enumerate() {
                let set = mask[column / 8] >> (column % 8) & 1 == 1;
                *out = if set { kept.next().copied().unwrap_or(0.0) } else { 0.0 };
            }
        }
        Ok(())
    }

    fn release_rows(&self, rows: Range<usize>) {
        let rows = rows.start.min(self.matrix.rows)..rows.end.min(self.matrix.rows);
        let (value_bytes, mask_bytes) =
            (self.matrix.columns / 2 * bits_of(self.matrix.values.dtype) / 8, self.matrix.columns.div_ceil(8));
        self.checkpoint.release(&self.matrix.values, rows.start * value_bytes..rows.end * value_bytes);
        self.checkpoint.release(&self.matrix.mask, rows.start * mask_bytes..rows.end * mask_bytes);
    }

    fn rows_at_once(&self) -> usize {
        CODED_ROWS
    }
}

/// Rows across a matrix that is stored the other way round: a whole matrix of the stack is decoded, turned and kept
/// until another one is asked for.
pub(super) struct TurnedSource<'a> {
    pub inner: Box<dyn RowSource + 'a>,
    /// Matrices in the stack.
    pub stack: usize,
    pub kept: Mutex<Option<(usize, Arc<Vec<f32>>)>>,
}

impl<'a> TurnedSource<'a> {
    pub(super) fn new(inner: Box<dyn RowSource + 'a>, stack: usize) -> Self {
        Self { inner, stack, kept: Mutex::new(None) }
    }
}

impl TurnedSource<'_> {
    fn inner_rows(&self) -> usize {
        self.inner.rows() / self.stack.max(1)
    }

    fn turned(&self, index: usize) -> Result<Arc<Vec<f32>>, CodecError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, matrix)) = kept.as_ref().filter(|(kept_index, _)| *kept_index == index) {
            return Ok(Arc::clone(matrix));
        }
        let (rows, columns) = (self.inner_rows(), self.inner.columns());
        let mut matrix = vec![0.0; rows * columns];
        self.inner.read_rows(index * rows, &mut matrix)?;
        let turned = Arc::new(super::super::streams::transpose(&matrix, rows, columns));
        *kept = Some((index, Arc::clone(&turned)));
        Ok(turned)
    }
}

impl RowSource for TurnedSource<'_> {
    fn rows(&self) -> usize {
        self.stack * self.inner.columns()
    }

    fn columns(&self) -> usize {
        self.inner_rows()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let (columns, stack_rows) = (self.columns(), self.inner.columns());
        let rows = rows_asked(first_row, out.len(), columns, self.rows())?;
        let mut row = 0;
        while row < rows {
            let (index, within) = ((first_row + row) / stack_rows, (first_row + row) % stack_rows);
            let count = (stack_rows - within).min(rows - row);
            let turned = self.turned(index)?;
            out[row * columns..][..count * columns].copy_from_slice(&turned[within * columns..][..count * columns]);
            row += count;
        }
        Ok(())
    }

    fn release_rows(&self, rows: Range<usize>) {
        // The turned copy is what is read; its source goes with the last row of each matrix of the stack.
        let stack_rows = self.inner.columns().max(1);
        let inner = self.inner_rows();
        for index in rows.start / stack_rows..rows.end / stack_rows {
            self.inner.release_rows(index * inner..(index + 1) * inner);
        }
    }
}
