//! Down-projections in terms of polynomials, and the gates beside them that may be stored negated.

use std::ops::Range;

use super::{Found, LogicalCheckpoint, LogicalTensor, Stored, parts::Parts, whole::WholeCodes};
use crate::{
    checkpoint::{Checkpoint, is_float},
    codec::{
        CodecError, RowSource, Whole,
        taylor::{Expansion, Taylor, gate_of},
    },
    layout::LayoutError,
};

/// The form of a gate whose rows are stored with signs that the terms tell.
const SIGNED: &str = "signed";

/// The gate, and its bias, of a down-projection in this format, where rows of it may be negated.
pub(super) fn gates(
    checkpoint: &Checkpoint,
    format: &Taylor,
    down: &str,
    columns: usize,
) -> Result<Vec<Found>, LayoutError> {
    if !format.perturbed {
        return Ok(Vec::new());
    }
    let missing = |part: String| LayoutError::MissingPart { matrix: down.to_owned(), format: "bantam", part };
    let gate = gate_of(down).ok_or_else(|| missing("gate beside a down-projection of this name".to_owned()))?;
    let mut found = Vec::new();
    let bias = gate.strip_suffix(".weight").map(|module| format!("{module}.bias"));
    for (name, needed) in [Some(gate.clone()), bias].into_iter().flatten().zip([true, false]) {
        let mut parts = Parts::new(checkpoint, name.clone(), SIGNED);
        let Some(entry) = parts.optional(&name) else {
            if needed {
                return Err(missing(name));
            }
            continue;
        };
        let wrong = |message: String| LayoutError::Value { tensor: name.clone(), message };
        if !is_float(entry.dtype) || !entry.shape.contains(&columns) || entry.shape.len() > 2 {
            return Err(wrong(format!("is {:?} {:?}; expected floats of {columns} units", entry.dtype, entry.shape)));
        }
        found.push(Found {
            logical: LogicalTensor {
                name: parts.name,
                shape: entry.shape,
                dtype: entry.dtype,
                codec: None,
                format: SIGNED,
                parts: parts.names,
                stored_bytes: parts.stored_bytes,
                decoded_at_once: 0,
            },
            stored: Stored::Signed { down: down.to_owned() },
        });
    }
    Ok(found)
}

impl LogicalCheckpoint {
    /// A down-projection as it is stored, in terms of polynomials; none for any other tensor.
    ///
    /// # Errors
    /// [`LayoutError`] when what is stored is malformed.
    pub fn expansion(&self, name: &str) -> Result<Option<Expansion<'_>>, LayoutError> {
        let Some(index) = self.index(name) else { return Ok(None) };
        let Stored::Whole { matrix, .. } = &self.stored[index] else { return Ok(None) };
        let WholeCodes::Whole { format: Whole::Taylor(format), entries } = &matrix.codes else { return Ok(None) };
        let stored: Vec<_> = entries.iter().map(|entry| self.checkpoint.bytes(entry)).collect();
        let expansion = Expansion::new(*format, matrix.rows, matrix.columns, &stored);
        let expansion =
            expansion.map_err(|error| LayoutError::Value { tensor: name.to_owned(), message: error.to_string() })?;
        Ok(Some(expansion))
    }

    /// Whether a tensor is a gate whose rows may be stored negated.
    #[must_use]
    pub fn is_signed(&self, name: &str) -> bool {
        self.index(name).is_some_and(|index| matches!(self.stored[index], Stored::Signed { .. }))
    }

    /// Rows of a tensor as they are stored: those of gates may be negated.
    ///
    /// # Errors
    /// As [`LogicalCheckpoint::rows`].
    pub fn rows_as_stored(&self, name: &str, transposed: bool) -> Result<Box<dyn RowSource + '_>, LayoutError> {
        match self.index(name).map(|index| (&self.stored[index], &self.tensors[index])) {
            Some((Stored::Signed { .. }, tensor)) => self.plain_rows(tensor, transposed),
            _ => self.rows(name, transposed),
        }
    }

    pub(super) fn signed_rows(
        &self,
        tensor: &LogicalTensor,
        down: &str,
        transposed: bool,
    ) -> Result<Box<dyn RowSource + '_>, LayoutError> {
        let inner = self.plain_rows(tensor, transposed)?;
        let factors = self.expansion(down)?.map(|expansion| expansion.gate_factors()).unwrap_or_default();
        let turned =
            self.index(down).is_some_and(|index| matches!(self.stored[index], Stored::Whole { transposed: true, .. }));
        // A gate lies as its down-projection does; rows are units unless it is asked for the other way round.
        let by_row = tensor.shape.len() == 2 && transposed == turned;
        let units = if by_row { inner.rows() } else { inner.columns() };
        if units != factors.len() {
            let message = format!("has {units} units where `{down}` has {}", factors.len());
            return Err(LayoutError::Value { tensor: tensor.name.clone(), message });
        }
        Ok(Box::new(SignedRows { inner, factors, by_row }))
    }
}

/// Rows over the factors ±2^k that they are stored times.
struct SignedRows<'a> {
    inner: Box<dyn RowSource + 'a>,
    factors: Vec<f32>,
    /// Whether a factor belongs to a row, else to a column.
    by_row: bool,
}

impl RowSource for SignedRows<'_> {
    fn rows(&self) -> usize {
        self.inner.rows()
    }

    fn columns(&self) -> usize {
        self.inner.columns()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        self.inner.read_rows(first_row, out)?;
        for (row, out) in out.chunks_exact_mut(self.inner.columns().max(1)).enumerate() {
            for (column, value) in out.iter_mut().enumerate() {
                *value /= self.factors[if self.by_row { first_row + row } else { column }];
            }
        }
        Ok(())
    }

    fn release_rows(&self, rows: Range<usize>) {
        self.inner.release_rows(rows);
    }

    fn rows_at_once(&self) -> usize {
        self.inner.rows_at_once()
    }
}
