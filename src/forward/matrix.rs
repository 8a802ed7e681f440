//! Row-major F32 matrices and their products. Every product is cut by shape alone and each piece is computed on one
//! thread, so that results do not depend on how many there are.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Rows of a product that one task computes, and columns: as large as makes packing cheap, small enough for many cores.
const TILE_ROWS: usize = 512;
const TILE_COLUMNS: usize = 1024;

/// A row-major matrix: `[tokens, channels]` for activations, `[output, input]` for weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Row after row.
    pub values: Vec<f32>,
}

impl Matrix {
    /// All zeros.
    #[must_use]
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    /// One row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// One row, to write.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.columns..][..self.columns]
    }

    /// The columns of `range` as a matrix of their own.
    #[must_use]
    pub fn columns(&self, range: std::ops::Range<usize>) -> Self {
        let mut values = Vec::with_capacity(self.rows * range.len());
        for row in 0..self.rows {
            values.extend_from_slice(&self.row(row)[range.clone()]);
        }
        Self { rows: self.rows, columns: range.len(), values }
    }

    /// Adds another of the same shape.
    pub fn add(&mut self, other: &Self) {
        debug_assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        self.values.par_chunks_mut(1 << 14).zip(other.values.par_chunks(1 << 14)).for_each(|(sum, other)| {
            for (sum, other) in sum.iter_mut().zip(other) {
                *sum += other;
            }
        });
    }

    /// Whether every value is finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.values.par_chunks(1 << 14).all(|part| part.iter().fold(0.0_f32, |sum, value| sum + value * 0.0) == 0.0)
    }

    /// As faer sees it.
    #[must_use]
    pub fn view(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.values, self.rows, self.columns)
    }
}

/// Writes `x wᵀ` into columns `first..first + w.rows` of `out`. `x` is `[tokens, input]`, `w` is `[output, input]`.
pub fn multiply_transposed_into(x: &Matrix, w: MatRef<'_, f32>, out: &mut Matrix, first: usize) {
    product(x, w, out, first, Accum::Replace);
}

/// Adds `x wᵀ` to `out`.
pub fn add_multiply_transposed(x: &Matrix, w: MatRef<'_, f32>, out: &mut Matrix) {
    product(x, w, out, 0, Accum::Add);
}

fn product(x: &Matrix, w: MatRef<'_, f32>, out: &mut Matrix, first: usize, accumulate: Accum) {
    let (rows, width) = (out.rows, out.columns);
    if x.rows == 0 || width == 0 || x.columns == 0 {
        return;
    }
    let x = x.view();
    let mut rest = MatMut::from_row_major_slice_mut(&mut out.values, rows, width).subcols_mut(first, w.nrows());
    let mut tiles = Vec::new();
    for row in (0..rows).step_by(TILE_ROWS) {
        let (mut band, below) = rest.split_at_row_mut(TILE_ROWS.min(rows - row));
        rest = below;
        for column in (0..w.nrows()).step_by(TILE_COLUMNS) {
            let (tile, right) = band.split_at_col_mut(TILE_COLUMNS.min(w.nrows() - column));
            band = right;
            tiles.push((row, column, tile));
        }
    }
    tiles.into_par_iter().for_each(|(row, column, tile)| {
        let (x, w) = (x.subrows(row, tile.nrows()), w.subrows(column, tile.ncols()));
        matmul(tile, accumulate, x, w.transpose(), 1.0, Par::Seq);
    });
}

/// `x wᵀ`: `[tokens, output]`.
#[must_use]
pub fn multiply_transposed(x: &Matrix, w: &Matrix) -> Matrix {
    let mut out = Matrix::zeros(x.rows, w.rows);
    multiply_transposed_into(x, w.view(), &mut out, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        let fill = |rows: usize, columns: usize, seed: usize| Matrix {
            rows,
            columns,
            values: (0..rows * columns).map(|i| ((i * 37 + seed) % 19) as f32 - 9.0).collect(),
        };
        let (x, w) = (fill(300, 33, 1), fill(17, 33, 5));
        let y = multiply_transposed(&x, &w);
        for row in 0..x.rows {
            for column in 0..w.rows {
                let expected: f32 = x.row(row).iter().zip(w.row(column)).map(|(x, w)| x * w).sum();
                assert_eq!(y.row(row)[column], expected);
            }
        }
    }
}
