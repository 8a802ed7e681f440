//! A difference as a product of two thin matrices: the truncated singular value decomposition.
//!
//! Of large matrices only the leading singular vectors are found, by a sketch of the columns' space (Halko, Martinsson and
//! Tropp, "Finding structure with randomness", SIAM Review 53, 2011, algorithms 4.4 and 5.1): Gaussian numbers from a fixed
//! seed, two rounds of power iteration, all sums in F64 and in a fixed order.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::{
    checkpoint::{Dtype, encode_from_f32},
    codec::{CodecError, LowRank, StoredMatrix},
    forward::Matrix,
    linalg::{DecompositionError, default_backend},
};

/// Columns of a sketch beyond the rank.
const OVERSAMPLING: usize = 8;
/// Rounds of power iteration.
const ROUNDS: usize = 2;
/// Rows that one task takes.
const BAND: usize = 64;

/// A matrix of F64, row-major.
struct Wide {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Wide {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    fn view(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.values, self.rows, self.columns)
    }

    /// `left · right`, by bands of rows, so that the result does not depend on threads.
    fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Self {
        let mut out = Self::zeros(left.nrows(), right.ncols());
        let columns = out.columns.max(1);
        out.values.par_chunks_mut(BAND * columns).enumerate().for_each(|(band, values)| {
            let rows = values.len() / columns;
            let target = MatMut::from_row_major_slice_mut(values, rows, columns);
            matmul(target, Accum::Replace, left.subrows(band * BAND, rows), right, 1.0, Par::Seq);
        });
        out
    }

    /// Makes the columns orthonormal, by Gram and Schmidt, each twice; columns that are combinations of those before them
    /// become zero.
    fn orthonormal(mut self) -> Self {
        let mut columns: Vec<Vec<f64>> = (0..self.columns)
            .map(|at| (0..self.rows).map(|row| self.values[row * self.columns + at]).collect())
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for at in 0..columns.len() {
            let (before, rest) = columns.split_at_mut(at);
            let column = &mut rest[0];
            let length = dot(column, column).sqrt();
            for _ in 0..2 {
                for other in before.iter() {
                    let along = dot(other, column);
                    column.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
                }
            }
            let left = dot(column, column).sqrt();
            let factor = if left > 1e-12 * length && left > 0.0 { 1.0 / left } else { 0.0 };
            for value in column.iter_mut() {
                *value *= factor;
            }
        }
        for (at, column) in columns.iter().enumerate() {
            for (row, value) in column.iter().enumerate() {
                self.values[row * self.columns + at] = *value;
            }
        }
        self
    }
}

/// Standard normal numbers from a fixed seed (`SplitMix64`; Box and Muller).
fn gaussian(rows: usize, columns: usize) -> Wide {
    let mut state = 0x6269_7464_656c_7461_u64;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 + 1e-17
    };
    let values =
        (0..rows * columns).map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos());
    Wide { rows, columns, values: values.collect() }
}

/// Leading singular triplets.
pub(super) struct Factors {
    /// `[rows, count]`.
    left: Vec<f64>,
    /// Descending.
    pub(super) values: Vec<f64>,
    /// `[count, columns]`.
    right: Vec<f64>,
}

fn malformed(error: DecompositionError) -> CodecError {
    CodecError::Stored { what: "difference", problem: error.to_string() }
}

/// The `rank` leading singular triplets of a matrix, and some more.
///
/// # Errors
/// [`CodecError::Stored`] when the matrix is not finite or the iteration does not converge.
pub(super) fn factors(matrix: &Matrix, rank: usize) -> Result<Factors, CodecError> {
    let (rows, columns) = (matrix.rows, matrix.columns);
    let wide = Wide { rows, columns, values: matrix.values.iter().map(|value| f64::from(*value)).collect() };
    let width = rank + OVERSAMPLING;
    if 3 * width >= rows.min(columns) {
        let svd = thin_svd(&wide)?;
        return Ok(svd);
    }
    let mut basis = Wide::product(wide.view(), gaussian(columns, width).view()).orthonormal();
    for _ in 0..ROUNDS {
        let across = Wide::product(wide.view().transpose(), basis.view()).orthonormal();
        basis = Wide::product(wide.view(), across.view()).orthonormal();
    }
    let small = thin_svd(&Wide::product(basis.view().transpose(), wide.view()))?;
    let turn = MatRef::from_row_major_slice(&small.left, width, small.values.len());
    Ok(Factors { left: Wide::product(basis.view(), turn).values, ..small })
}

fn thin_svd(matrix: &Wide) -> Result<Factors, CodecError> {
    let view = ArrayView2::from_shape((matrix.rows, matrix.columns), &matrix.values);
    let view = view.map_err(|error| CodecError::Stored { what: "difference", problem: error.to_string() })?;
    let svd = default_backend().thin_svd(view).map_err(malformed)?;
    Ok(Factors {
        left: svd.left.iter().copied().collect(),
        values: svd.values.to_vec(),
        right: svd.right.iter().copied().collect(),
    })
}

/// A difference as the tensors of [`LowRank::tensors`]: singular vectors with the square roots of their values on both
/// sides, rounded to F16.
///
/// # Errors
/// [`CodecError`] when the difference is not finite, or has another shape than the rank allows.
pub fn encode(format: LowRank, difference: &Matrix) -> Result<StoredMatrix, CodecError> {
    format.validate(difference.rows, difference.columns)?;
    let Factors { left, values, right } = factors(difference, format.rank)?;
    let (rows, columns, count, rank) = (difference.rows, difference.columns, values.len(), format.rank);
    let root: Vec<f64> = values.iter().map(|value| value.max(0.0).sqrt()).collect();
    let mut tall = Vec::with_capacity(rows * rank);
    for row in left.chunks_exact(count).take(rows) {
        tall.extend(row.iter().zip(&root).take(rank).map(|(value, root)| (value * root) as f32));
    }
    let mut flat = Vec::with_capacity(rank * columns);
    for (row, root) in right.chunks_exact(columns).zip(&root).take(rank) {
        flat.extend(row.iter().map(|value| (value * root) as f32));
    }
    let stored = |values: &[f32]| {
        let mut bytes = Vec::new();
        if encode_from_f32(Dtype::F16, values, &mut bytes) > 0 {
            let problem = "its factors are too large for F16".to_owned();
            return Err(CodecError::Stored { what: "difference", problem });
        }
        Ok(bytes)
    };
    Ok(vec![stored(&tall)?, stored(&flat)?])
}
