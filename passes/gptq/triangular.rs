//! Cholesky factor and inverse of large matrices in place, on all cores, with the same bits whatever their number.

use std::ops::Range;

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
/// Columns that one task updates.
const TASK: usize = 128;

/// Overwrites the lower triangle of a symmetric matrix, `[order, order]` column-major, with its Cholesky factor. Only the
/// lower triangle is read; what stands above it is undefined afterwards.
pub fn cholesky(matrix: &mut [f64], order: usize) -> Result<(), DecompositionError> {
    for first in (0..order).step_by(PANEL) {
        let next = order.min(first + PANEL);
        factor_panel(matrix, order, first, next)?;
        update_rest(matrix, order, first, next);
    }
    Ok(())
}

/// Turns the columns `first..next` of what is left into those of the factor.
fn factor_panel(matrix: &mut [f64], order: usize, first: usize, next: usize) -> Result<(), DecompositionError> {
    let width = next - first;
    let panel = MatMut::from_column_major_slice_mut(&mut matrix[first * order..next * order], order, width);
    let (_, panel) = panel.split_at_row_mut(first);
    let (mut diagonal, mut below) = panel.split_at_row_mut(width);
    factor_block(diagonal.as_mut())
        .map_err(|pivot| DecompositionError::NotPositiveDefinite { pivot: first + pivot })?;
    // below · diagonal⁻ᵀ, as the solution of diagonal · Xᵀ = belowᵀ; rows are independent.
    let diagonal = diagonal.as_ref();
    row_chunks(below.as_mut()).into_par_iter().for_each(|rows| {
        triangular_solve::solve_lower_triangular_in_place(diagonal, rows.transpose_mut(), Par::Seq);
    });
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

/// The same with the smallest pivots first: rows and columns with the least left of them change places with the next
/// ones, a [narrow panel](pivots_at_once) at a time. `permutation` changes places alike.
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
    for first in (0..order).step_by(pivots_at_once(order)) {
        let next = order.min(first + pivots_at_once(order));
        bring_smallest_first(matrix, order, first..next, &mut left_over, permutation)?;
        factor_panel(matrix, order, first, next)?;
        for column in matrix[first * order..next * order].chunks_exact(order) {
            for (left_over, value) in left_over[next..].iter_mut().zip(&column[next..]) {
                *left_over -= value * value;
            }
        }
        update_rest(matrix, order, first, next);
    }
    Ok(())
}

/// Pivots that are chosen by what is left of them at the same time: few beside all, so that those that have much in
/// common do not come together, and enough for products of matrices.
fn pivots_at_once(order: usize) -> usize {
    (order / 64).clamp(1, PANEL)
}

/// Puts the rows and columns with the least left over in the places `places`.
fn bring_smallest_first(
    matrix: &mut [f64],
    order: usize,
    places: Range<usize>,
    left_over: &mut [f64],
    permutation: &mut [usize],
) -> Result<(), DecompositionError> {
    let first = places.start;
    let mut candidates: Vec<usize> = (first..order).collect();
    let by_left_over = |a: &usize, b: &usize| left_over[*a].total_cmp(&left_over[*b]).then(a.cmp(b));
    if places.len() < candidates.len() {
        candidates.select_nth_unstable_by(places.len() - 1, by_left_over);
        candidates.truncate(places.len());
    }
    candidates.sort_unstable_by(by_left_over);
    if candidates.iter().any(|index| left_over[*index].is_nan() || left_over[*index] <= 0.0) {
        return Err(DecompositionError::NotPositiveDefinite { pivot: first });
    }
    let mut swaps = Vec::with_capacity(candidates.len());
    for (index, place) in places.enumerate() {
        let from = candidates[index];
        swap(matrix, order, first, place, from);
        swaps.push((place, from));
        left_over.swap(place, from);
        permutation.swap(place, from);
        // What stood here stands there now.
        if let Some(moved) = candidates[index + 1..].iter_mut().find(|candidate| **candidate == place) {
            *moved = from;
        }
    }
    matrix[..first * order].par_chunks_mut(order).for_each(|column| {
        for (a, b) in &swaps {
            column.swap(*a, *b);
        }
    });
    Ok(())
}

/// Exchanges rows and columns `a <= b` of a symmetric matrix of which the lower triangle is stored, as far as they lie in
/// columns from `first` on.
fn swap(matrix: &mut [f64], order: usize, first: usize, a: usize, b: usize) {
    if a == b {
        return;
    }
    for column in first..a {
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
                    // The pivots of a panel are the least that was left: later rows had at least as much at its time.
                    for pivot in 0..order {
                        let first = pivot - pivot % pivots_at_once(order);
                        let left = |row: usize| (first..=row).map(|k| factor(row, k).powi(2)).sum::<f64>();
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
