//! Row-major matrices of either number type and the three products that a linear needs. Every product is cut by shape
//! alone and each piece is computed on one thread, so that results do not depend on how many there are.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef};
use rayon::prelude::*;

use super::Real;
use crate::forward;

/// Rows and columns of a product that one task computes.
const TILE_ROWS: usize = 512;
const TILE_COLUMNS: usize = 1024;
/// Elements that one task takes.
const CHUNK: usize = 1 << 14;

/// A row-major matrix: `[tokens, channels]` for activations, `[output, input]` for weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matrix<T> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Row after row.
    pub values: Vec<T>,
}

impl<T: Real> From<forward::Matrix> for Matrix<T> {
    fn from(matrix: forward::Matrix) -> Self {
        Self { rows: matrix.rows, columns: matrix.columns, values: T::from_singles(matrix.values) }
    }
}

impl<T: Real> Matrix<T> {
    /// All zeros.
    #[must_use]
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![T::ZERO; rows * columns] }
    }

    /// One row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[T] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// One row, to write.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.values[row * self.columns..][..self.columns]
    }

    /// The rows of `range` as a matrix of their own.
    #[must_use]
    pub fn rows(&self, range: Range<usize>) -> Self {
        let values = self.values[range.start * self.columns..range.end * self.columns].to_vec();
        Self { rows: range.len(), columns: self.columns, values }
    }

    /// Adds another of the same shape.
    pub fn add(&mut self, other: &Self) {
        debug_assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        self.values.par_chunks_mut(CHUNK).zip(other.values.par_chunks(CHUNK)).for_each(|(sum, other)| {
            for (sum, other) in sum.iter_mut().zip(other) {
                *sum += *other;
            }
        });
    }

    /// Whether every value is finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.values
            .par_chunks(CHUNK)
            .all(|part| part.iter().fold(T::ZERO, |sum, value| sum + *value * T::ZERO) == T::ZERO)
    }

    /// As faer sees it.
    #[must_use]
    pub fn view(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.values, self.rows, self.columns)
    }

    /// As faer writes it.
    pub fn view_mut(&mut self) -> MatMut<'_, T> {
        MatMut::from_row_major_slice_mut(&mut self.values, self.rows, self.columns)
    }
}

/// `out (+)= a b`.
pub fn multiply<T: Real>(out: MatMut<'_, T>, accumulate: Accum, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    let (rows, columns) = (out.nrows(), out.ncols());
    if rows == 0 || columns == 0 || (a.ncols() == 0 && matches!(accumulate, Accum::Add)) {
        return;
    }
    let mut rest = out;
    let mut tiles = Vec::new();
    for row in (0..rows).step_by(TILE_ROWS) {
        let (mut band, below) = rest.split_at_row_mut(TILE_ROWS.min(rows - row));
        rest = below;
        for column in (0..columns).step_by(TILE_COLUMNS) {
            let (tile, right) = band.split_at_col_mut(TILE_COLUMNS.min(columns - column));
            band = right;
            tiles.push((row, column, tile));
        }
    }
    tiles.into_par_iter().for_each(|(row, column, tile)| {
        let (a, b) = (a.subrows(row, tile.nrows()), b.subcols(column, tile.ncols()));
        T::multiply(tile, accumulate, a, b, T::ONE);
    });
}

/// `x wᵀ`: `[tokens, output]`.
#[must_use]
pub fn multiply_transposed<T: Real>(x: &Matrix<T>, w: &Matrix<T>) -> Matrix<T> {
    let mut out = Matrix::zeros(x.rows, w.rows);
    multiply(out.view_mut(), Accum::Replace, x.view(), w.view().transpose());
    out
}

/// Sixteen running sums of `term`, joined in F64: a fixed order that is also fast.
#[inline(always)]
pub(super) fn sum_of<T: Real>(a: &[T], b: &[T], term: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::ZERO; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += term(*a, *b);
        }
    }
    T::of(lanes.iter().map(|lane| lane.wide()).sum())
}

/// Σ aᵢ bᵢ.
#[inline(always)]
pub(super) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    sum_of(a, b, |a, b| a * b)
}
