//! Decompositions of `f64` matrices behind one small trait; and rotations.
//!
//! Two backends: faer, the default, pure Rust; and LAPACK through ndarray-linalg and OpenBLAS, with feature `blas`. The
//! same tests run on both. Either one works on a single thread, so that its result does not depend on how many there
//! are; whoever has many matrices decomposes them in parallel. Between the backends results agree up to rounding, and
//! vectors up to the choice of a basis inside a degenerate subspace.

mod faer_backend;
pub mod hadamard;
#[cfg(feature = "blas")]
mod lapack_backend;
pub mod rotation;
pub mod subspace;
#[cfg(test)]
mod tests;

pub use faer_backend::Faer;
#[cfg(feature = "blas")]
pub use lapack_backend::Lapack;
use ndarray::{Array1, Array2, ArrayView2, Axis};
pub use rotation::Rotation;

/// The decompositions that passes need.
pub trait Decompositions: Send + Sync + std::fmt::Debug {
    /// Names the backend, for logs.
    fn name(&self) -> &'static str;

    /// Gives the lower triangular `L` with `L Lᵀ = A` and a positive diagonal. Reads the lower triangle of `A` only.
    ///
    /// # Errors
    /// [`DecompositionError::NotPositiveDefinite`] with the first bad pivot; not square; not finite.
    fn cholesky(&self, matrix: ArrayView2<'_, f64>) -> Result<Array2<f64>, DecompositionError>;

    /// Gives eigenvalues, ascending, and orthonormal eigenvectors of a symmetric matrix. Reads the lower triangle only.
    ///
    /// # Errors
    /// [`DecompositionError`] when the matrix is not square or not finite, or the iteration does not converge.
    fn symmetric_eigen(&self, matrix: ArrayView2<'_, f64>) -> Result<SymmetricEigen, DecompositionError>;

    /// Gives the thin singular value decomposition of a matrix of any shape.
    ///
    /// # Errors
    /// [`DecompositionError`] when the matrix is not finite, or the iteration does not converge.
    fn thin_svd(&self, matrix: ArrayView2<'_, f64>) -> Result<ThinSvd, DecompositionError>;
}

/// `A = vectors · diag(values) · vectorsᵀ`.
#[derive(Debug, Clone, PartialEq)]
pub struct SymmetricEigen {
    /// Eigenvalues, ascending, `[n]`.
    pub values: Array1<f64>,
    /// Eigenvectors, one per column, `[n, n]`; in each the first component of largest magnitude is positive.
    pub vectors: Array2<f64>,
}

impl SymmetricEigen {
    /// The decomposition of the matrix of order zero, which the libraries do not take.
    fn empty() -> Self {
        Self { values: Array1::zeros(0), vectors: Array2::zeros((0, 0)) }
    }
}

/// `A = left · diag(values) · right`, with `k = min(rows, columns)`.
#[derive(Debug, Clone, PartialEq)]
pub struct ThinSvd {
    /// Left singular vectors, one per column, `[rows, k]`; in each the first component of largest magnitude is positive.
    pub left: Array2<f64>,
    /// Singular values, descending, none negative, `[k]`.
    pub values: Array1<f64>,
    /// Right singular vectors, one per row, `[k, columns]`.
    pub right: Array2<f64>,
}

impl ThinSvd {
    /// The decomposition of a matrix without rows or without columns, which the libraries do not take.
    fn empty(rows: usize, columns: usize) -> Self {
        Self { left: Array2::zeros((rows, 0)), values: Array1::zeros(0), right: Array2::zeros((0, columns)) }
    }
}

/// Why a matrix has no decomposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecompositionError {
    /// The matrix should be square.
    #[error("the matrix is {rows} × {columns}, expected a square one")]
    NotSquare {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// An element is NaN or infinite.
    #[error("element ({row}, {column}) of the matrix is not finite")]
    NotFinite {
        /// Row of the first such element.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// The Cholesky decomposition met a pivot that is not positive.
    #[error("the matrix is not positive definite: pivot {pivot} is not positive; add to its diagonal (damping)")]
    NotPositiveDefinite {
        /// Zero-based index of the pivot.
        pivot: usize,
    },
    /// The iteration did not converge, or the library failed otherwise.
    #[error("{backend}: the {decomposition} of a {rows} × {columns} matrix did not converge")]
    NotConverged {
        /// The backend's name.
        backend: &'static str,
        /// Which decomposition.
        decomposition: &'static str,
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
}

/// Gives the backend that this build uses: LAPACK with feature `blas`, else faer.
#[must_use]
pub fn default_backend() -> &'static dyn Decompositions {
    #[cfg(feature = "blas")]
    return &Lapack;
    #[cfg(not(feature = "blas"))]
    &Faer
}

/// Refuses NaN and infinity, on which the iterations would hang or return rubbish.
fn require_finite(matrix: &ArrayView2<'_, f64>) -> Result<(), DecompositionError> {
    match matrix.indexed_iter().find(|(_, value)| !value.is_finite()) {
        Some(((row, column), _)) => Err(DecompositionError::NotFinite { row, column }),
        None => Ok(()),
    }
}

/// Gives the order of a finite square matrix of which only the lower triangle counts.
fn require_square(matrix: &ArrayView2<'_, f64>) -> Result<usize, DecompositionError> {
    let (rows, columns) = matrix.dim();
    if rows != columns {
        return Err(DecompositionError::NotSquare { rows, columns });
    }
    match matrix.indexed_iter().find(|((row, column), value)| column <= row && !value.is_finite()) {
        Some(((row, column), _)) => Err(DecompositionError::NotFinite { row, column }),
        None => Ok(rows),
    }
}

/// Turns each column so that its first component of largest magnitude is positive, and with it the same row of
/// `partner`. A decomposition leaves the signs open; fixed ones make results comparable and artifacts reproducible.
fn fix_signs(columns: &mut Array2<f64>, mut partner: Option<&mut Array2<f64>>) {
    for (index, mut column) in columns.axis_iter_mut(Axis(1)).enumerate() {
        let largest = column.iter().fold(0.0_f64, |best, &value| if value.abs() > best.abs() { value } else { best });
        if largest < 0.0 {
            column.mapv_inplace(|value| -value);
            if let Some(rows) = partner.as_deref_mut() {
                rows.row_mut(index).mapv_inplace(|value| -value);
            }
        }
    }
}
