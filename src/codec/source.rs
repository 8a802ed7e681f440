//! Matrices whose rows can be read as F32.

use super::CodecError;

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
    /// Says that these rows are not needed any more, so that mapped pages can go.
    fn release_rows(&self, _rows: std::ops::Range<usize>) {}
}
