//! Looks up the stored tensors of a coded matrix and checks types and shapes before anything is read.

use super::super::LayoutError;
use crate::checkpoint::{Checkpoint, Dtype, TensorEntry};

/// The parts of one logical tensor, gathered as they are found.
pub(super) struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    /// The logical tensor's name.
    pub name: String,
    /// The format it was recognised as.
    pub format: &'static str,
    /// Names of the tensors found so far.
    pub names: Vec<String>,
    /// Their bytes.
    pub stored_bytes: u64,
}

impl<'a> Parts<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, name: String, format: &'static str) -> Self {
        Self { checkpoint, name, format, names: Vec::new(), stored_bytes: 0 }
    }

    /// Takes a part that may be absent.
    pub(super) fn optional(&mut self, name: &str) -> Option<TensorEntry> {
        let entry = self.checkpoint.tensor(name)?;
        self.names.push(entry.name.clone());
        self.stored_bytes += entry.bytes;
        Some(entry.clone())
    }

    /// Takes a part that must be there.
    pub(super) fn required(&mut self, name: &str) -> Result<TensorEntry, LayoutError> {
        self.optional(name).ok_or_else(|| LayoutError::MissingPart {
            matrix: self.name.clone(),
            format: self.format,
            part: name.to_owned(),
        })
    }
}

/// Refuses a tensor whose type is not one of these.
pub(super) fn expect_type(entry: &TensorEntry, types: &[Dtype], expected: &'static str) -> Result<(), LayoutError> {
    if types.contains(&entry.dtype) {
        return Ok(());
    }
    Err(LayoutError::Type { tensor: entry.name.clone(), got: entry.dtype, expected })
}

/// The float types that scales come in.
pub(super) fn expect_float_scale(entry: &TensorEntry) -> Result<(), LayoutError> {
    expect_type(entry, &[Dtype::F16, Dtype::BF16, Dtype::F32], "F16, BF16 or F32")
}

/// Refuses a tensor whose shape is another one.
pub(super) fn expect_shape(entry: &TensorEntry, shape: &[usize], why: &str) -> Result<(), LayoutError> {
    if entry.shape == shape {
        return Ok(());
    }
    Err(shape_error(entry, format!("{shape:?}, {why}")))
}

/// The error for a tensor with a shape that does not fit.
pub(super) fn shape_error(entry: &TensorEntry, expected: String) -> LayoutError {
    LayoutError::Shape { tensor: entry.name.clone(), got: entry.shape.clone(), expected }
}

/// The two lengths of a matrix; refuses other ranks and matrices without weights.
pub(super) fn matrix_shape(entry: &TensorEntry) -> Result<[usize; 2], LayoutError> {
    match entry.shape[..] {
        [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(shape_error(entry, "two dimensions, neither of length 0".to_owned())),
    }
}

/// How many elements a tensor has; its shape was checked against its bytes when the file was opened.
pub(super) fn elements(entry: &TensorEntry) -> usize {
    entry.shape.iter().product()
}

/// A matrix size without overflow: `rows × columns` weights must be addressable.
pub(super) fn addressable(entry: &TensorEntry, rows: usize, columns: usize) -> Result<(), LayoutError> {
    match rows.checked_mul(columns).and_then(|weights| weights.checked_mul(4)) {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
        _ => Err(shape_error(entry, format!("parts of a matrix that can be addressed, not {rows} × {columns}"))),
    }
}
