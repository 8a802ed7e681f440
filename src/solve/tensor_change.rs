//! What becomes of one tensor: multipliers of rows and columns, limits, or new values.

use std::collections::BTreeMap;

use rayon::prelude::*;

/// Elements that one task takes.
const CHUNK: usize = 1 << 16;

/// Limits of a matrix's weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Clip {
    /// Columns that share a limit.
    pub group: usize,
    /// `[rows, groups]`; infinite where nothing is clipped.
    pub limits: Vec<f32>,
}

/// What becomes of one matrix: of the whole tensor, or of one expert of a stack.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct MatrixChange {
    /// Multipliers of rows; empty for none.
    pub rows: Vec<f64>,
    /// Multipliers of columns; empty for none.
    pub columns: Vec<f64>,
    /// Limits, applied last.
    pub clip: Option<Clip>,
}

/// What becomes of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorChange {
    /// Rows of one matrix.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Whether rows and columns are those of the tensor with its last two dimensions swapped.
    pub transposed: bool,
    /// By expert; 0 where there is no stack.
    pub matrices: BTreeMap<usize, MatrixChange>,
    /// New values instead of the stored ones.
    pub replaced: Option<Vec<f32>>,
}

impl MatrixChange {
    /// Changes one row. Multipliers are joined in F64 and the product is rounded once.
    fn apply_row(&self, row: usize, first_column: usize, width: usize, values: &mut [f32], clipped: bool) {
        let factor = self.rows.get(row).copied().unwrap_or(1.0);
        if self.columns.is_empty() {
            if factor != 1.0 {
                for value in values.iter_mut() {
                    *value = (f64::from(*value) * factor) as f32;
                }
            }
        } else {
            for (value, column) in values.iter_mut().zip(&self.columns[first_column..]) {
                *value = (f64::from(*value) * (factor * column)) as f32;
            }
        }
        if let Some(clip) = self.clip.as_ref().filter(|_| clipped) {
            let limits = &clip.limits[row * width.div_ceil(clip.group)..];
            for (place, value) in values.iter_mut().enumerate() {
                let limit = limits[(first_column + place) / clip.group];
                // Not `clamp`: what is not a number must stay so, to be found later.
                *value = if *value > limit {
                    limit
                } else if *value < -limit {
                    -limit
                } else {
                    *value
                };
            }
        }
    }
}

impl TensorChange {
    /// Changes `values`, which are those from element `first` on, in the order of the matrices' rows.
    pub fn apply(&self, first: usize, values: &mut [f32], clipped: bool) {
        if let Some(replaced) = &self.replaced {
            for (value, new) in values.iter_mut().zip(replaced.get(first..).unwrap_or_default()) {
                *value = *new;
            }
            return;
        }
        let width = self.columns.max(1);
        let piece = (CHUNK / width).max(1) * width;
        // The first piece ends where a row does.
        let head = ((width - first % width) % width).min(values.len());
        let (before, whole) = values.split_at_mut(head);
        self.apply_rows(first, before, clipped);
        whole
            .par_chunks_mut(piece)
            .enumerate()
            .for_each(|(index, values)| self.apply_rows(first + head + index * piece, values, clipped));
    }

    fn apply_rows(&self, mut first: usize, mut values: &mut [f32], clipped: bool) {
        let width = self.columns.max(1);
        while !values.is_empty() {
            let (row, column) = (first / width, first % width);
            let count = (width - column).min(values.len());
            let (here, rest) = values.split_at_mut(count);
            if let Some(matrix) = self.matrices.get(&(row / self.rows.max(1))) {
                matrix.apply_row(row % self.rows.max(1), column, width, here, clipped);
            }
            (first, values) = (first + count, rest);
        }
    }
}
