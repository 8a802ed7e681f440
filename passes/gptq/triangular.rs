//! Cholesky factor and inverse of large matrices in place, on all cores, with the same bits whatever their number.

use faer::{
    Accum, Mat, MatMut, MatRef, Par,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        cholesky::llt::factor,
        matmul::{
            matmul,
            triangular::{self, BlockStructure},
        },
        triangular_inverse, triangular_solve,
    },
};
use rayon::prelude::*;

use crate::linalg::DecompositionError;

/// Columns of a panel.
const PANEL: usize = 128;
/// The same where pivots are chosen; narrower, because its columns are updated one at a time.
const PIVOTED_PANEL: usize = 64;
/// Rows of such a column that one task updates.
const ROWS_AT_ONCE: usize = 1024;
/// Columns that one task updates.
const TASK: usize = 128;

/// Overwrites the lower triangle of a symmetric matrix, `[order, order]` column-major, with its Cholesky factor. Only the
/// lower triangle is read; what stands above it is undefined afterwards.
pub fn cholesky(matrix: &mut [f64], order: usize) -> Result<(), DecompositionError> {
    for first in (0..order).step_by(PANEL) {
        let width = PANEL.min(order - first);
        let next = first + width;
        let (left, _) = matrix.split_at_mut(next * order);
        let panel = MatMut::from_column_major_slice_mut(&mut left[first * order..], order, width);
        let (_, panel) = panel.split_at_row_mut(first);
        let (mut diagonal, mut below) = panel.split_at_row_mut(width);
        factor_block(diagonal.as_mut())
            .map_err(|pivot| DecompositionError::NotPositiveDefinite { pivot: first + pivot })?;
        // below · diagonal⁻ᵀ, as the solution of diagonal · Xᵀ = belowᵀ; rows are independent.
        let diagonal = diagonal.as_ref();
        row_chunks(below.as_mut()).into_par_iter().for_each(|rows| {
            triangular_solve::solve_lower_triangular_in_place(diagonal, rows.transpose_mut(), Par::Seq);
        });
        update_rest(matrix, order, first, next);
    }
    Ok(())
}

/// Takes the product of the panel of columns `first..next` with itself away from the lower triangle after it.
fn update_rest(matrix: &mut [f64], order: usize, first: usize, next: usize) {
    let (left, right) = matrix.split_at_mut(next * order);
    let below = MatRef::from_column_major_slice(&left[first * order..], order, next - first);
    let below = below.subrows(next, order - next);
    right.par_chunks_mut(TASK * order).enumerate().for_each(|(task, columns)| {
        let count = columns.len() / order;
        let columns = MatMut::from_column_major_slice_mut(columns, order, count);
        let start = task * TASK;
        let (_, columns) = columns.split_at_row_mut(next + start);
        let lhs = below.subrows(start, below.nrows() - start);
        matmul(columns, Accum::Add, lhs, below.subrows(start, count).transpose(), -1.0, Par::Seq);
    });
}

/// The same with the smallest pivot first: row and column with the least left of them change places with the next.
/// `permutation` changes places alike.
///
/// For the sweep, which goes the other way, the pivots are the squared weights of the columns' rounding
/// errors in the loss. Their product is given, so that the sum is least when they are alike; the last are the largest,
/// and putting the smallest first keeps them down.
pub fn cholesky_smallest_first(
    matrix: &mut [f64],
    order: usize,
    permutation: &mut [usize],
) -> Result<(), DecompositionError> {
    let mut left_over: Vec<f64> = (0..order).map(|index| matrix[index * order + index]).collect();
    for first in (0..order).step_by(PIVOTED_PANEL) {
        let next = order.min(first + PIVOTED_PANEL);
        for pivot in first..next {
            let best = (pivot..order).min_by(|a, b| left_over[*a].total_cmp(&left_over[*b])).unwrap_or(pivot);
            if left_over[best].is_nan() || left_over[best] <= 0.0 {
                return Err(DecompositionError::NotPositiveDefinite { pivot });
            }
            swap(matrix, order, pivot, best);
            left_over.swap(pivot, best);
            permutation.swap(pivot, best);
            // The panel's columns before this one have still to be taken away.
            let (before, column) = matrix.split_at_mut(pivot * order);
            let before = &before[first * order..];
            let column = &mut column[pivot..order];
            column.par_chunks_mut(ROWS_AT_ONCE).enumerate().for_each(|(chunk, rows)| {
                let start = pivot + chunk * ROWS_AT_ONCE;
                for earlier in before.chunks_exact(order) {
                    let factor = earlier[pivot];
                    for (row, earlier) in rows.iter_mut().zip(&earlier[start..]) {
                        *row -= factor * earlier;
                    }
                }
            });
            if column[0].is_nan() || column[0] <= 0.0 {
                return Err(DecompositionError::NotPositiveDefinite { pivot });
            }
            let diagonal = column[0].sqrt();
            column[0] = diagonal;
            for (value, left_over) in column[1..].iter_mut().zip(&mut left_over[pivot + 1..]) {
                *value /= diagonal;
                *left_over -= *value * *value;
            }
        }
        update_rest(matrix, order, first, next);
    }
    Ok(())
}

/// Exchanges rows and columns `a <= b` of a symmetric matrix of which the lower triangle is stored, and of the columns of
/// the factor before them.
fn swap(matrix: &mut [f64], order: usize, a: usize, b: usize) {
    if a == b {
        return;
    }
    for column in 0..a {
        matrix.swap(column * order + a, column * order + b);
    }
    matrix.swap(a * order + a, b * order + b);
    for between in a + 1..b {
        matrix.swap(a * order + between, between * order + b);
    }
    let (left, right) = matrix.split_at_mut(b * order);
    left[a * order + b + 1..(a + 1) * order].swap_with_slice(&mut right[b + 1..order]);
}

/// Cuts a matrix into runs of rows.
fn row_chunks(matrix: MatMut<'_, f64>) -> Vec<MatMut<'_, f64>> {
    let mut rest = matrix;
    let mut chunks = Vec::new();
    while rest.nrows() > 0 {
        let height = TASK.min(rest.nrows());
        let (chunk, after) = rest.split_at_row_mut(height);
        chunks.push(chunk);
        rest = after;
    }
    chunks
}

/// Factors a diagonal block; an error is the index of the first bad pivot.
fn factor_block(block: MatMut<'_, f64>) -> Result<(), usize> {
    let order = block.nrows();
    let request = factor::cholesky_in_place_scratch::<f64>(order, Par::Seq, faer::Spec::default());
    let mut scratch = MemBuffer::new(request);
    let stack = MemStack::new(&mut scratch);
    let regularization = factor::LltRegularization::default();
    factor::cholesky_in_place(block, regularization, Par::Seq, stack, faer::Spec::default())
        .map(|_| ())
        .map_err(|factor::LltError::NonPositivePivot { index }| index)
}

/// Overwrites a lower triangular matrix, `[order, order]` column-major, with its inverse. What stands above the diagonal
/// is not read, and stays.
pub fn invert_lower(matrix: &mut [f64], order: usize) {
    let panels = order.div_ceil(PANEL);
    for first in (0..panels).rev().map(|panel| panel * PANEL) {
        let width = PANEL.min(order - first);
        let next = first + width;
        let (left, right) = matrix.split_at_mut(next * order);
        let mut panel = MatMut::from_column_major_slice_mut(&mut left[first * order..], order, width);
        let mut diagonal = Mat::<f64>::zeros(width, width);
        triangular_inverse::invert_lower_triangular(
            diagonal.as_mut(),
            panel.as_ref().submatrix(first, 0, width, width),
            Par::Seq,
        );
        for column in 0..width {
            for row in column..width {
                panel[(first + row, column)] = diagonal[(row, column)];
            }
        }
        let rest = order - next;
        if rest == 0 {
            continue;
        }
        // With the matrix [D 0; P R], the inverse is [D⁻¹ 0; −R⁻¹ P D⁻¹ R⁻¹], and R has been inverted before.
        let mut product = Mat::<f64>::zeros(rest, width);
        let below = panel.as_ref().subrows(next, rest);
        let lower = BlockStructure::TriangularLower;
        let rectangular = BlockStructure::Rectangular;
        triangular::matmul(
            product.as_mut(),
            rectangular,
            Accum::Replace,
            below,
            rectangular,
            diagonal.as_ref(),
            lower,
            -1.0,
            Par::Seq,
        );
        let inverse = MatRef::from_column_major_slice(right, order, rest).subrows(next, rest);
        let (product, below) = (product.as_ref(), panel.subrows_mut(next, rest));
        row_chunks(below).into_par_iter().enumerate().for_each(|(index, rows)| {
            let start = index * TASK;
            let height = rows.nrows();
            let (mut rows, before) = (rows, inverse.submatrix(start, 0, height, start));
            matmul(rows.as_mut(), Accum::Replace, before, product.subrows(0, start), 1.0, Par::Seq);
            triangular::matmul(
                rows,
                rectangular,
                Accum::Add,
                inverse.submatrix(start, start, height, height),
                lower,
                product.subrows(start, height),
                rectangular,
                1.0,
                Par::Seq,
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix without a pattern.
    fn matrix(order: usize) -> Vec<f64> {
        let part = |i: usize, j: usize| ((i * 7919 + j * 104_729 + i * j * 31) % 1009) as f64 / 1009.0 - 0.5;
        let mut matrix = vec![0.0; order * order];
        for i in 0..order {
            for j in 0..order {
                matrix[i * order + j] = (0..order).map(|k| part(i, k) * part(j, k)).sum();
            }
            matrix[i * order + i] += 0.1 + part(i, 3).abs();
        }
        matrix
    }

    fn lower(matrix: &[f64], order: usize) -> impl Fn(usize, usize) -> f64 + '_ {
        move |row, column| if row >= column { matrix[column * order + row] } else { 0.0 }
    }

    #[test]
    fn factors_multiply_to_the_matrix_and_inverses_to_one() {
        for order in [1, 5, 64, 129, 300] {
            let given = matrix(order);
            for choose in [false, true] {
                let mut factor = given.clone();
                let mut permutation: Vec<usize> = (0..order).collect();
                if choose {
                    cholesky_smallest_first(&mut factor, order, &mut permutation).unwrap();
                } else {
                    cholesky(&mut factor, order).unwrap();
                }
                let mut inverse = factor.clone();
                invert_lower(&mut inverse, order);
                let (factor, inverse) = (lower(&factor, order), lower(&inverse, order));
                for i in 0..order {
                    for j in 0..=i {
                        let product: f64 = (0..=j).map(|k| factor(i, k) * factor(j, k)).sum();
                        let expected = given[permutation[i] * order + permutation[j]];
                        assert!((product - expected).abs() < 1e-10, "{order} {choose}: {product} {expected}");
                        let one: f64 = (j..=i).map(|k| factor(i, k) * inverse(k, j)).sum();
                        assert!((one - f64::from(u8::from(i == j))).abs() < 1e-9, "{order} {choose}: {one}");
                    }
                }
                if choose {
                    // Each pivot is the least that was left: later rows have at least as much left at its time.
                    for pivot in 0..order {
                        let left = |row: usize| (pivot..=row).map(|k| factor(row, k).powi(2)).sum::<f64>();
                        assert!((pivot..order).all(|row| left(row) > left(pivot) * (1.0 - 1e-9)));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        let mut indefinite = matrix(20);
        indefinite[7 * 21] = -1.0;
        let mut permutation: Vec<usize> = (0..20).collect();
        let error = cholesky(&mut indefinite.clone(), 20).unwrap_err();
        assert_eq!(error, DecompositionError::NotPositiveDefinite { pivot: 7 });
        let error = cholesky_smallest_first(&mut indefinite, 20, &mut permutation).unwrap_err();
        assert_eq!(error, DecompositionError::NotPositiveDefinite { pivot: 0 });
    }
}
