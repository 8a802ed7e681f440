//! The canonical form of coded rows, and what is known once per matrix.

use super::{Codec, CodecError, ZeroPoint};

/// Some consecutive rows of a matrix in codes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CodedRows {
    /// Index of the first row in the matrix.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Columns (input features).
    pub columns: usize,
    /// One code per weight, row-major `[rows, columns]`.
    pub codes: Vec<u8>,
    /// Scales as values, `[scale rows, groups]` of these rows; empty for [`super::Granularity::Tensor`]. For NVFP4 the
    /// E4M3 value before the division by the global scale.
    pub scales: Vec<f32>,
    /// Zero points (minima for [`ZeroPoint::Minimum`]) as values, shaped like `scales`; empty for [`ZeroPoint::None`].
    pub zeros: Vec<f32>,
}

/// What is known once per matrix and needed to read any of its rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MatrixParameters {
    /// The scale of the whole matrix: [`super::Granularity::Tensor`]'s scale, NVFP4's global scale.
    pub tensor_scale: Option<f32>,
    /// The zero point of the whole matrix, for [`super::Granularity::Tensor`] with zero points.
    pub tensor_zero: Option<f32>,
    /// The weights kept exact.
    pub outliers: Option<Outliers>,
}

/// Weights kept exact, by row (compressed sparse rows).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outliers {
    /// `row_starts[r]..row_starts[r + 1]` are the entries of row r; length rows + 1.
    pub row_starts: Vec<u32>,
    /// Column of each entry, ascending in a row.
    pub columns: Vec<u32>,
    /// Value of each entry, stored as F16 or BF16 (whichever the scale is) or F32.
    pub values: Vec<f32>,
}

impl CodedRows {
    /// Checks that the lists are as long as shape and codec ask for.
    ///
    /// # Errors
    /// [`CodecError::Length`], or [`CodecError::TooLarge`] for a shape that overflows.
    pub fn check(&self, codec: &Codec) -> Result<(), CodecError> {
        let overflow = CodecError::TooLarge { rows: self.rows, columns: self.columns };
        let weights = self.rows.checked_mul(self.columns).ok_or(overflow)?;
        if self.first_row.checked_add(self.rows).is_none() {
            return Err(CodecError::TooLarge { rows: self.rows, columns: self.columns });
        }
        let scales = codec.scale_row_range(self.first_row, self.rows).len() * codec.groups_per_row(self.columns);
        let zeros = if codec.zero == ZeroPoint::None { 0 } else { scales };
        for (what, expected, got) in [
            ("codes", weights, self.codes.len()),
            ("scales", scales, self.scales.len()),
            ("zero points", zeros, self.zeros.len()),
        ] {
            if expected != got {
                return Err(CodecError::Length { what, expected, got });
            }
        }
        Ok(())
    }
}

impl Outliers {
    /// The columns and values of one row's entries.
    ///
    /// # Errors
    /// [`CodecError::Outliers`] when the positions do not describe a sparse matrix of so many columns.
    pub fn row(&self, row: usize, columns: usize) -> Result<(&[u32], &[f32]), CodecError> {
        let malformed = |what| CodecError::Outliers { row, what };
        let bounds =
            row.checked_add(1).and_then(|next| Some((*self.row_starts.get(row)?, *self.row_starts.get(next)?)));
        let (start, end) = bounds.ok_or(malformed("the list of row starts is too short"))?;
        let range = start as usize..end as usize;
        let places = self.columns.get(range.clone()).ok_or(malformed("row starts do not ascend within the entries"))?;
        let values = self.values.get(range).ok_or(malformed("there are fewer values than columns"))?;
        if !places.is_sorted_by(|a, b| a < b) {
            return Err(malformed("columns do not ascend"));
        }
        if places.last().is_some_and(|&last| last as usize >= columns) {
            return Err(malformed("a column is outside of the matrix"));
        }
        Ok((places, values))
    }

    /// Overwrites the row's outliers in `out` with their exact values.
    ///
    /// # Errors
    /// As for [`Outliers::row`].
    pub fn apply(&self, row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let (places, values) = self.row(row, out.len())?;
        for (&column, &value) in places.iter().zip(values) {
            out[column as usize] = value;
        }
        Ok(())
    }
}
