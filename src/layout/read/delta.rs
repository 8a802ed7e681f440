//! Tensors that are read together with a base: differences, rows, and what is the same.

use std::ops::Range;

use super::{
    Found, LogicalCheckpoint, LogicalTensor, Parts, Stored, TurnedSource, WholeMatrix, WholeSource, bantam,
    config::QuantizationConfig,
    parts::{elements, expect_shape, expect_type},
};
use crate::{
    checkpoint::{Checkpoint, Dtype, TensorEntry, bits_of, decode_to_f32, is_float},
    codec::{CodecError, MatrixParameters, RowSource},
    layout::{
        LayoutError,
        delta::{BaseTensor, BaseTensors, VERSION},
    },
};

/// The stored form of a tensor of which nothing is stored.
pub(super) const SAME: &str = "same";
/// The stored form of a tensor of which some rows are stored.
pub(super) const ROWS: &str = "rows";

/// Rows that are not the base's.
#[derive(Debug)]
pub(super) struct ChangedRows {
    /// Ascending.
    indices: Vec<usize>,
    /// `[indices, columns]`.
    values: TensorEntry,
    rows: usize,
    columns: usize,
}

pub(super) fn find(checkpoint: &Checkpoint, config: &QuantizationConfig) -> Result<Vec<Found>, LayoutError> {
    let wrong = |key: &str, message: String| LayoutError::Config { key: key.to_owned(), message };
    let version = &config.value["version"];
    if version.as_u64() != Some(VERSION) {
        return Err(wrong("version", format!("is {version}; this bantam reads version {VERSION}")));
    }
    let mut found = Vec::new();
    for matrix in bantam::find_groups(checkpoint, config, "delta")? {
        let Found { logical, stored: Stored::Whole { matrix, transposed } } = matrix else {
            return Err(wrong("groups", "has matrices that are no differences".to_owned()));
        };
        found.push(Found { logical, stored: Stored::Difference { matrix, transposed } });
    }
    let BaseTensors { same, rows } = serde_json::from_value(config.value.clone())
        .map_err(|error| wrong("same` or `rows", format!("is malformed: {error}")))?;
    for (name, tensor) in same {
        elements_of(&name, &tensor)?;
        found.push(Found { logical: logical(Parts::new(checkpoint, name, SAME), tensor), stored: Stored::Same });
    }
    for (name, tensor) in rows {
        found.push(find_rows(checkpoint, &name, tensor)?);
    }
    Ok(found)
}

/// Refuses a shape that cannot be addressed; gives its elements.
fn elements_of(name: &str, tensor: &BaseTensor) -> Result<usize, LayoutError> {
    let elements = tensor.shape.iter().try_fold(1_usize, |product, &length| product.checked_mul(length));
    elements.filter(|&elements| elements < usize::MAX / 64).ok_or_else(|| LayoutError::Config {
        key: format!("same.{name}"),
        message: format!("is {:?}, too large to be a tensor", tensor.shape),
    })
}

fn logical(parts: Parts<'_>, tensor: BaseTensor) -> LogicalTensor {
    LogicalTensor {
        name: parts.name,
        shape: tensor.shape,
        dtype: tensor.dtype,
        codec: None,
        format: parts.format,
        parts: parts.names,
        stored_bytes: parts.stored_bytes,
        decoded_at_once: 0,
    }
}

fn find_rows(checkpoint: &Checkpoint, name: &str, tensor: BaseTensor) -> Result<Found, LayoutError> {
    let all = elements_of(name, &tensor)?;
    let columns = tensor.shape.last().copied().filter(|&columns| columns > 0 && is_float(tensor.dtype));
    let columns = columns.ok_or_else(|| LayoutError::Config {
        key: format!("rows.{name}"),
        message: format!("is {:?} {:?}, which has no rows of weights", tensor.dtype, tensor.shape),
    })?;
    let rows = all / columns;
    let mut parts = Parts::new(checkpoint, name.to_owned(), ROWS);
    let stored = parts.required(&format!("{name}.row_indices"))?;
    let values = parts.required(&format!("{name}.row_values"))?;
    expect_type(&stored, &[Dtype::I64], "I64")?;
    expect_type(&values, &[tensor.dtype], "the type of the dense tensor")?;
    let count = elements(&stored);
    expect_shape(&stored, &[count], "the numbers of rows")?;
    expect_shape(&values, &[count, columns], "a row for each number")?;
    let bytes = checkpoint.bytes(&stored);
    let numbers = bytes.chunks_exact(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
    let indices: Vec<usize> = numbers.filter_map(|number| usize::try_from(number).ok()).collect();
    let ascending = indices.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || indices.len() != count || indices.last().is_some_and(|&last| last >= rows) {
        let message = format!("expected ascending numbers of rows below {rows}");
        return Err(LayoutError::Value { tensor: stored.name, message });
    }
    let changed = ChangedRows { indices, values, rows, columns };
    Ok(Found { logical: logical(parts, tensor), stored: Stored::Rows(changed) })
}

impl LogicalCheckpoint {
    /// Puts the checkpoint beside it that it holds differences from, or that differences are to be taken from.
    ///
    /// # Errors
    /// [`LayoutError::OtherBase`] when a tensor that is read from the base is not there or has another type or shape.
    pub fn with_base(mut self, base: Self) -> Result<Self, LayoutError> {
        for (tensor, stored) in self.tensors.iter().zip(&self.stored) {
            let found = base.tensor(&tensor.name);
            let fits = match (stored, found) {
                (Stored::Difference { .. }, Some(found)) => found.shape == tensor.shape && is_float(found.dtype),
                (Stored::Same, Some(found)) => {
                    found.is_plain() && (found.dtype, &found.shape) == (tensor.dtype, &tensor.shape)
                }
                (Stored::Rows(changed), Some(found)) => {
                    let (rows, columns) = lengths(&found.shape);
                    // Rows that the base lacks are all stored.
                    let lacking = changed.rows.saturating_sub(rows);
                    let stored = changed.indices.len() - changed.indices.partition_point(|&row| row < rows);
                    found.is_plain() && found.dtype == tensor.dtype && columns == changed.columns && lacking == stored
                }
                (Stored::Difference { .. } | Stored::Same | Stored::Rows(_), None) => false,
                _ => true,
            };
            if !fits {
                let name = tensor.name.clone();
                let got =
                    found.map_or_else(|| "missing".to_owned(), |found| format!("{:?} {:?}", found.dtype, found.shape));
                return Err(LayoutError::OtherBase { name, got });
            }
        }
        self.base = Some(Box::new(base));
        Ok(self)
    }

    /// The checkpoint beside it.
    #[must_use]
    pub fn base(&self) -> Option<&Self> {
        self.base.as_deref()
    }

    /// Puts other checkpoints beside it that are merged with it.
    #[must_use]
    pub fn with_merged(self, merged: Vec<Self>) -> Self {
        Self { merged, ..self }
    }

    /// The others that are merged with it.
    #[must_use]
    pub fn merged(&self) -> &[Self] {
        &self.merged
    }

    /// Whether it holds differences, and is a model only together with its base.
    #[must_use]
    pub fn is_delta(&self) -> bool {
        self.delta
    }

    /// The bytes of a tensor that is stored as it is, here or in the base.
    #[must_use]
    pub fn stored_bytes_of(&self, name: &str) -> Option<(&Checkpoint, &TensorEntry)> {
        match &self.stored[self.index(name)?] {
            Stored::Plain => Some((&self.checkpoint, self.checkpoint.tensor(name)?)),
            Stored::Same => self.base.as_deref()?.stored_bytes_of(name),
            _ => None,
        }
    }

    /// The difference that a tensor is stored as, `[rows, columns]` with rows as output features, without the base.
    #[must_use]
    pub fn difference(&self, name: &str) -> Option<Box<dyn RowSource + '_>> {
        match &self.stored[self.index(name)?] {
            Stored::Difference { matrix, .. } => Some(Box::new(self.difference_rows(matrix))),
            _ => None,
        }
    }

    /// Whether rows of a tensor's difference are those of the dense tensor, not its columns.
    #[must_use]
    pub fn is_upright(&self, name: &str) -> bool {
        let index = self.index(name);
        index.is_some_and(|index| matches!(self.stored[index], Stored::Difference { transposed: false, .. }))
    }

    fn difference_rows<'a>(&'a self, matrix: &'a WholeMatrix) -> WholeSource<'a> {
        WholeSource::new(&self.checkpoint, matrix, MatrixParameters::default())
    }

    fn needed_base(&self, name: &str) -> Result<&Self, LayoutError> {
        self.base.as_deref().ok_or_else(|| LayoutError::NeedsBase { name: name.to_owned() })
    }

    /// A difference added to the base, in the orientation that it is stored in.
    pub(super) fn summed<'a>(
        &'a self,
        name: &str,
        matrix: &'a WholeMatrix,
        transposed: bool,
    ) -> Result<Box<dyn RowSource + 'a>, LayoutError> {
        let base = self.needed_base(name)?.rows(name, transposed)?;
        Ok(Box::new(SumSource { base, difference: self.difference_rows(matrix) }))
    }

    /// A tensor that is the base's.
    pub(super) fn same_rows(&self, name: &str, transposed: bool) -> Result<Box<dyn RowSource + '_>, LayoutError> {
        self.needed_base(name)?.rows(name, transposed)
    }

    /// A tensor of the base with other rows in some places.
    pub(super) fn changed_rows<'a>(
        &'a self,
        tensor: &LogicalTensor,
        changed: &'a ChangedRows,
        transposed: bool,
    ) -> Result<Box<dyn RowSource + 'a>, LayoutError> {
        let base = self.needed_base(&tensor.name)?.rows(&tensor.name, false)?;
        let source: Box<dyn RowSource + 'a> = Box::new(ChangedSource { checkpoint: &self.checkpoint, base, changed });
        if !transposed || tensor.shape.len() < 2 {
            return Ok(source);
        }
        let stack = tensor.shape[..tensor.shape.len() - 2].iter().product();
        Ok(Box::new(TurnedSource::new(source, stack)))
    }
}

/// Rows and columns of a tensor as a matrix.
fn lengths(shape: &[usize]) -> (usize, usize) {
    let (before, last) = shape.split_at(shape.len().saturating_sub(1));
    (before.iter().product(), last.first().copied().unwrap_or(1))
}

/// Base + difference, added in F32.
struct SumSource<'a> {
    base: Box<dyn RowSource + 'a>,
    difference: WholeSource<'a>,
}

impl RowSource for SumSource<'_> {
    fn rows(&self) -> usize {
        self.difference.rows()
    }

    fn columns(&self) -> usize {
        self.difference.columns()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        self.base.read_rows(first_row, out)?;
        let mut difference = vec![0.0; out.len()];
        self.difference.read_rows(first_row, &mut difference)?;
        for (value, difference) in out.iter_mut().zip(&difference) {
            *value += difference;
        }
        Ok(())
    }

    fn release_rows(&self, rows: Range<usize>) {
        self.base.release_rows(rows.clone());
        self.difference.release_rows(rows);
    }

    fn rows_at_once(&self) -> usize {
        self.base.rows_at_once()
    }
}

/// The base's rows but for those that are stored.
struct ChangedSource<'a> {
    checkpoint: &'a Checkpoint,
    base: Box<dyn RowSource + 'a>,
    changed: &'a ChangedRows,
}

impl RowSource for ChangedSource<'_> {
    fn rows(&self) -> usize {
        self.changed.rows
    }

    fn columns(&self) -> usize {
        self.changed.columns
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let ChangedRows { indices, values, columns, .. } = self.changed;
        let rows = super::sources::rows_asked(first_row, out.len(), *columns, self.rows())?;
        let in_base = self.base.rows().saturating_sub(first_row).min(rows);
        self.base.read_rows(first_row, &mut out[..in_base * columns])?;
        let row_bytes = columns * bits_of(values.dtype) / 8;
        let stored = self.checkpoint.bytes(values);
        let first = indices.partition_point(|&row| row < first_row);
        for (at, &row) in indices.iter().enumerate().skip(first).take_while(|(_, row)| **row < first_row + rows) {
            let bytes = &stored[at * row_bytes..(at + 1) * row_bytes];
            decode_to_f32(values.dtype, bytes, &mut out[(row - first_row) * columns..][..*columns]);
        }
        Ok(())
    }

    fn release_rows(&self, rows: Range<usize>) {
        let end = self.base.rows();
        self.base.release_rows(rows.start.min(end)..rows.end.min(end));
    }

    fn rows_at_once(&self) -> usize {
        self.base.rows_at_once()
    }
}
