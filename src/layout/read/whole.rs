//! Matrices that are read as a whole, because their codes or their rotations mix rows.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::{matrix::CodedMatrix, sources::rows_asked};
use crate::{
    checkpoint::{Checkpoint, TensorEntry},
    codec::{CodecError, MatrixParameters, Rotations, RowSource, Whole},
};

/// A matrix, or a stack of them, that is decoded matrix by matrix.
#[derive(Debug, Clone)]
pub(super) struct WholeMatrix {
    /// Rows of one matrix.
    pub rows: usize,
    pub columns: usize,
    /// Matrices in the stack.
    pub stack: usize,
    pub codes: WholeCodes,
    pub rotations: Option<Rotations>,
}

/// What is decoded.
#[derive(Debug, Clone)]
pub(super) enum WholeCodes {
    /// Codes of single weights, of all matrices in one.
    Scalar(Box<CodedMatrix>),
    /// Codes of whole matrices, in the order of [`Whole::tensors`]; each tensor has the matrices one after the other.
    Whole { format: Whole, entries: Vec<TensorEntry> },
}

impl WholeMatrix {
    fn entries(&self) -> &[TensorEntry] {
        match &self.codes {
            WholeCodes::Scalar(_) => &[],
            WholeCodes::Whole { entries, .. } => entries,
        }
    }

    fn decode(
        &self,
        checkpoint: &Checkpoint,
        parameters: &MatrixParameters,
        index: usize,
    ) -> Result<Vec<f32>, CodecError> {
        let mut values = match &self.codes {
            WholeCodes::Scalar(matrix) => {
                let mut values = vec![0.0; self.rows * self.columns];
                matrix.dequantize(checkpoint, parameters, index * self.rows, &mut values)?;
                values
            }
            WholeCodes::Whole { format, entries } => {
                let part = |entry: &TensorEntry| {
                    let length = entry.bytes as usize / self.stack.max(1);
                    checkpoint.range(entry, index * length..(index + 1) * length)
                };
                let parts: Vec<_> = entries.iter().map(part).collect();
                let stored: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
                format.decode(self.rows, self.columns, &stored)?
            }
        };
        if let Some(rotations) = &self.rotations {
            rotations.undo(&mut values, self.rows, self.columns);
        }
        Ok(values)
    }
}

/// A [`WholeMatrix`] of a checkpoint as rows: the matrix last asked for is kept decoded.
pub(super) struct WholeSource<'a> {
    checkpoint: &'a Checkpoint,
    matrix: &'a WholeMatrix,
    parameters: MatrixParameters,
    kept: Mutex<Option<(usize, Arc<Vec<f32>>)>>,
}

impl<'a> WholeSource<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, matrix: &'a WholeMatrix, parameters: MatrixParameters) -> Self {
        Self { checkpoint, matrix, parameters, kept: Mutex::new(None) }
    }

    fn decoded(&self, index: usize) -> Result<Arc<Vec<f32>>, CodecError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, matrix)) = kept.as_ref().filter(|(known, _)| *known == index) {
            return Ok(Arc::clone(matrix));
        }
        // Memory of the last one goes before the next one comes.
        *kept = None;
        let values = Arc::new(apart(|| self.matrix.decode(self.checkpoint, &self.parameters, index))?);
        *kept = Some((index, Arc::clone(&values)));
        Ok(values)
    }
}

/// Does parallel work on threads of its own. A thread of the common pool that waits for such work takes up other work
/// meanwhile, and would wait for itself where that needs the lock that it holds.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build();
    let Ok(pool) = pool else { return work() };
    std::thread::scope(|scope| match scope.spawn(|| pool.install(work)).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

impl RowSource for WholeSource<'_> {
    fn rows(&self) -> usize {
        self.matrix.rows * self.matrix.stack
    }

    fn columns(&self) -> usize {
        self.matrix.columns
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let (columns, matrix_rows) = (self.columns(), self.matrix.rows.max(1));
        let rows = rows_asked(first_row, out.len(), columns, self.rows())?;
        let mut row = 0;
        while row < rows {
            let (index, within) = ((first_row + row) / matrix_rows, (first_row + row) % matrix_rows);
            let count = (matrix_rows - within).min(rows - row);
            let decoded = self.decoded(index)?;
            out[row * columns..][..count * columns].copy_from_slice(&decoded[within * columns..][..count * columns]);
            row += count;
        }
        Ok(())
    }

    fn release_rows(&self, rows: Range<usize>) {
        let matrix_rows = self.matrix.rows.max(1);
        for entry in self.matrix.entries() {
            let length = entry.bytes as usize / self.matrix.stack.max(1);
            self.checkpoint.release(entry, rows.start / matrix_rows * length..rows.end / matrix_rows * length);
        }
    }
}
