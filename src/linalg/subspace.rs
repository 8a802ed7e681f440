//! The leading eigenvectors of a symmetric positive semidefinite matrix, without all the others.
//!
//! Subspace iteration with Rayleigh–Ritz projection (Saad, Numerical Methods for Large Eigenvalue Problems, 2011, algorithm
//! 5.3): the error of an eigenvector shrinks by the ratio of the first eigenvalue outside of the block to its own with each
//! product.

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::{DecompositionError, default_backend, fix_signs, require_finite, require_square};

/// Largest residual ‖A v − λ v‖ of a vector that counts as found, as a share of the largest eigenvalue.
const RESIDUAL: f64 = 1e-10;
/// Vectors beside the wanted ones, which speed up the last of those.
const GUARD: usize = 8;
/// Matrices of lower order are decomposed whole.
const SMALL: usize = 64;
/// What the whole decomposition costs, in multiplications by order³.
const WHOLE: f64 = 9.0;
/// Components that are left of a vector below this share of it are rounding.
const DEPENDENT: f64 = 1e-12;

/// Some eigenvalues and their vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct LeadingEigen {
    /// The largest eigenvalues, descending, `[rank]`.
    pub values: Array1<f64>,
    /// Orthonormal eigenvectors, one per column, `[order, rank]`; in each the first component of largest magnitude is
    /// positive.
    pub vectors: Array2<f64>,
}

/// Gives the `rank` largest eigenvalues of a symmetric positive semidefinite matrix and their eigenvectors; all of them where
/// there are fewer. Reads the lower triangle only; runs on one thread, so that bytes are the same for any number of them.
///
/// It iterates where that promises to be cheaper than the whole decomposition (about 9 n³ multiplications): an iteration takes
/// 2 n² b + 8 n b² for a block of b = rank + max(8, rank / 4) vectors, and as many are needed as the eigenvalues fall slowly
/// behind the wanted ones. That is so for ranks up to about a tenth of the order and spectra that fall; beyond, and where the
/// first steps show that convergence would take longer, it decomposes the matrix whole. Either way residuals are at rounding
/// or below 1e-10 of the largest eigenvalue.
///
/// # Errors
/// As [`super::Decompositions::symmetric_eigen`].
#[expect(clippy::needless_pass_by_value, reason = "a view, as the other decompositions take")]
pub fn leading_eigenvectors(matrix: ArrayView2<'_, f64>, rank: usize) -> Result<LeadingEigen, DecompositionError> {
    let order = require_square(&matrix)?;
    require_finite(&matrix)?;
    let rank = rank.min(order);
    let block = rank + GUARD.max(rank / 4);
    let (n, b) = (order as f64, block as f64);
    let most = (WHOLE * n.powi(3) / (2.0 * n * n * b + 8.0 * n * b * b)) as usize;
    if order >= SMALL && rank > 0 && block < order && most > 2 {
        let symmetric = Array2::from_shape_fn((order, order), |(i, j)| matrix[[i.max(j), i.min(j)]]);
        if let Some(found) = iterate(&symmetric, rank, block, most)? {
            return Ok(found);
        }
    }
    let whole = default_backend().symmetric_eigen(matrix)?;
    let values = whole.values.iter().rev().take(rank).copied().collect();
    let vectors = Array2::from_shape_fn((order, rank), |(i, j)| whole.vectors[[i, order - 1 - j]]);
    Ok(LeadingEigen { values, vectors })
}

/// At most so many products with the block; none where they do not suffice.
fn iterate(
    matrix: &Array2<f64>,
    rank: usize,
    block: usize,
    most: usize,
) -> Result<Option<LeadingEigen>, DecompositionError> {
    let order = matrix.nrows();
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut noise = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    // Rows are vectors, so that each lies in one piece of memory.
    let mut basis = Array2::from_shape_simple_fn((block, order), &mut noise);
    orthonormalize(&mut basis, &mut noise);
    let mut before: Option<f64> = None;
    for turn in 1..=most {
        let moved = basis.dot(matrix);
        let projected = default_backend().symmetric_eigen(moved.dot(&basis.t()).view())?;
        // Descending.
        let turned = projected.vectors.t().slice_axis(Axis(0), ndarray::Slice::new(0, None, -1)).to_owned();
        let values: Vec<f64> = projected.values.iter().rev().copied().collect();
        basis = turned.dot(&basis);
        let moved = turned.dot(&moved);
        let largest = values[0].abs().max(f64::MIN_POSITIVE);
        let residual = |index: usize| {
            let gap = &moved.row(index) - &(&basis.row(index) * values[index]);
            gap.dot(&gap).sqrt() / largest
        };
        let worst = (0..rank).map(residual).fold(0.0, f64::max);
        if worst <= RESIDUAL {
            let mut vectors = basis.slice_axis(Axis(0), ndarray::Slice::from(..rank)).t().to_owned();
            fix_signs(&mut vectors, None);
            return Ok(Some(LeadingEigen { values: values[..rank].iter().copied().collect(), vectors }));
        }
        // What remains at the rate of the last step.
        if let Some(before) = before.replace(worst)
            && turn >= 4
        {
            let rate = (worst / before).ln();
            let remaining = if rate < 0.0 { (RESIDUAL / worst).ln() / rate } else { f64::INFINITY };
            if remaining > (most - turn) as f64 {
                return Ok(None);
            }
        }
        basis = moved;
        orthonormalize(&mut basis, &mut noise);
    }
    Ok(None)
}

/// Makes rows orthonormal, one after the other (Gram–Schmidt, each row twice); rows that depend on earlier ones become
/// others.
fn orthonormalize(rows: &mut Array2<f64>, noise: &mut impl FnMut() -> f64) {
    for index in 0..rows.nrows() {
        let (done, mut rest) = rows.view_mut().split_at(Axis(0), index);
        let mut row = rest.row_mut(0);
        loop {
            let length = row.dot(&row).sqrt();
            for _ in 0..2 {
                let shares = done.dot(&row);
                row -= &shares.dot(&done);
            }
            let left = row.dot(&row).sqrt();
            if left > DEPENDENT * length && left > f64::MIN_POSITIVE.sqrt() {
                row /= left;
                break;
            }
            row.iter_mut().for_each(|value| *value = noise());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, columns: usize) -> Array2<f64> {
        let mut state = 7_u64;
        Array2::from_shape_simple_fn((rows, columns), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
    }

    /// A matrix with these eigenvalues.
    fn with(values: &[f64]) -> Array2<f64> {
        let order = values.len();
        let noise = noise(order, order);
        let vectors = default_backend().symmetric_eigen((&noise + &noise.t()).view()).unwrap().vectors;
        let scaled = Array2::from_shape_fn((order, order), |(i, j)| vectors[[i, j]] * values[j]);
        scaled.dot(&vectors.t())
    }

    fn check(matrix: &Array2<f64>, rank: usize) {
        let full = default_backend().symmetric_eigen(matrix.view()).unwrap();
        let found = leading_eigenvectors(matrix.view(), rank).unwrap();
        let (order, largest) = (matrix.nrows(), full.values.iter().fold(1e-300_f64, |a, b| a.max(b.abs())));
        let rank = rank.min(order);
        assert_eq!(found.vectors.dim(), (order, rank));
        for (index, value) in found.values.iter().enumerate() {
            assert!((value - full.values[order - 1 - index]).abs() <= 1e-11 * largest);
            let vector = found.vectors.column(index);
            let gap = matrix.dot(&vector) - &vector * *value;
            assert!(gap.dot(&gap).sqrt() <= 2.0 * RESIDUAL * largest);
        }
        let gram = found.vectors.t().dot(&found.vectors) - Array2::<f64>::eye(rank);
        assert!(gram.iter().all(|value| value.abs() <= 1e-12));
    }

    #[test]
    fn they_are_those_of_the_whole_decomposition() {
        let falling: Vec<f64> = (0..150).map(|i| 0.7_f64.powi(i)).collect();
        let equal: Vec<f64> = (0..150).map(|i| if i < 4 { 5.0 } else { 1.0 / f64::from(i) }).collect();
        let deficient: Vec<f64> = (0..150).map(|i| if i < 3 { 3.0 } else { 0.0 }).collect();
        for values in [falling, equal, deficient, vec![1.0; 90], vec![0.0; 80], vec![2.0; 5]] {
            let matrix = with(&values);
            for rank in [0, 1, 6, 12, 60, 1000] {
                check(&matrix, rank);
            }
        }
    }

    #[test]
    fn a_falling_spectrum_needs_no_whole_decomposition() {
        let values: Vec<f64> = (0..200).map(|i| 0.7_f64.powi(i)).collect();
        assert!(iterate(&with(&values), 6, 14, 40).unwrap().is_some());
        let flat: Vec<f64> = (0..200).map(|i| 1.0 - f64::from(i) * 1e-3).collect();
        assert!(iterate(&with(&flat), 6, 14, 20).unwrap().is_none());
    }

    #[test]
    fn malformed_matrices_are_refused() {
        assert!(leading_eigenvectors(Array2::zeros((3, 2)).view(), 1).is_err());
        let mut matrix = Array2::<f64>::eye(100);
        matrix[[50, 3]] = f64::NAN;
        assert!(matches!(leading_eigenvectors(matrix.view(), 1), Err(DecompositionError::NotFinite { .. })));
    }
}
