//! Views of weights through [`Transforms`].

use super::{tensor_change::TensorChange, transforms::Transforms};
use crate::{
    codec::{CodecError, RowSource},
    forward::{ForwardError, InputFormat, WeightSource},
};

/// Weights as transforms leave them, for the forward pass.
pub struct Transformed<'a> {
    /// The stored weights.
    pub inner: &'a dyn WeightSource,
    /// What becomes of them.
    pub transforms: &'a Transforms,
    /// Whether clip limits count.
    pub clipped: bool,
}

impl WeightSource for Transformed<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.inner.shape(name)
    }

    fn read(&self, name: &str, transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        self.inner.read(name, transposed, first_row, out)?;
        if let Some(change) = self.transforms.tensors.get(name) {
            if change.transposed != transposed {
                let problem = "is read with other rows and columns than it is scaled by".to_owned();
                return Err(ForwardError::Tensor { tensor: name.to_owned(), problem });
            }
            change.apply(first_row * change.columns, out, self.clipped);
        }
        Ok(())
    }

    fn activations(&self, weight: &str) -> InputFormat {
        self.inner.activations(weight)
    }
}

/// Rows of one tensor as transforms leave them, for encoders and writers. The inner rows must be output features, as
/// `LinearSpec` has them: transposed storage is turned before.
pub struct TransformedRows<'a> {
    inner: Box<dyn RowSource + 'a>,
    change: Option<&'a TensorChange>,
    clipped: bool,
}

impl<'a> TransformedRows<'a> {
    /// The rows of `tensor`.
    #[must_use]
    pub fn new(inner: Box<dyn RowSource + 'a>, transforms: &'a Transforms, tensor: &str, clipped: bool) -> Self {
        Self { inner, change: transforms.tensors.get(tensor), clipped }
    }
}

impl RowSource for TransformedRows<'_> {
    fn rows(&self) -> usize {
        self.inner.rows()
    }

    fn columns(&self) -> usize {
        self.inner.columns()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        self.inner.read_rows(first_row, out)?;
        if let Some(change) = self.change {
            change.apply(first_row * self.inner.columns(), out, self.clipped);
        }
        Ok(())
    }

    fn release_rows(&self, rows: std::ops::Range<usize>) {
        self.inner.release_rows(rows);
    }

    fn rows_at_once(&self) -> usize {
        self.inner.rows_at_once()
    }
}

/// A matrix whose rows are output features, read the other way round: as `[columns, rows]` of each expert.
pub struct Turned<'a> {
    inner: Box<dyn RowSource + 'a>,
    experts: usize,
}

impl<'a> Turned<'a> {
    /// The rows of `experts` matrices, one after the other in `inner`, turned.
    #[must_use]
    pub fn new(inner: Box<dyn RowSource + 'a>, experts: usize) -> Self {
        Self { inner, experts: experts.max(1) }
    }
}

impl RowSource for Turned<'_> {
    fn rows(&self) -> usize {
        self.inner.columns() * self.experts
    }

    fn columns(&self) -> usize {
        self.inner.rows() / self.experts
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let (rows, columns) = (self.columns(), self.inner.columns());
        let mut line = vec![0.0; columns];
        for (index, out) in out.chunks_exact_mut(rows.max(1)).enumerate() {
            let (expert, column) = ((first_row + index) / columns, (first_row + index) % columns);
            for (row, value) in out.iter_mut().enumerate() {
                self.inner.read_rows(expert * rows + row, &mut line)?;
                *value = line[column];
            }
        }
        Ok(())
    }
}
