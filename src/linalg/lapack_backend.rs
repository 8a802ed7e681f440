//! The second backend: LAPACK through ndarray-linalg, on OpenBLAS (feature `blas`).

use std::sync::Once;

use ndarray::{Array2, ArrayView2};
use ndarray_linalg::{CholeskyInto, EighInto, JobSvd, SVDDCInto, UPLO, error::LinalgError};

use super::{DecompositionError, Decompositions, SymmetricEigen, ThinSvd, fix_signs, require_finite, require_square};

/// Decomposes with LAPACK.
#[derive(Debug, Clone, Copy)]
pub struct Lapack;

const NAME: &str = "lapack";

impl Decompositions for Lapack {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cholesky(&self, matrix: ArrayView2<'_, f64>) -> Result<Array2<f64>, DecompositionError> {
        let order = require_square(&matrix)?;
        if order == 0 {
            return Ok(Array2::zeros((0, 0)));
        }
        use_one_thread();
        matrix.to_owned().cholesky_into(UPLO::Lower).map_err(|error| match failed_pivot(&error) {
            Some(pivot) => DecompositionError::NotPositiveDefinite { pivot },
            None => not_converged("Cholesky decomposition", order, order),
        })
    }

    fn symmetric_eigen(&self, matrix: ArrayView2<'_, f64>) -> Result<SymmetricEigen, DecompositionError> {
        let order = require_square(&matrix)?;
        if order == 0 {
            return Ok(SymmetricEigen::empty());
        }
        use_one_thread();
        // Mirrored, because which triangle LAPACK sees as the lower one depends on the memory order.
        let source = Array2::from_shape_fn((order, order), |(row, column)| matrix[[row.max(column), row.min(column)]]);
        let (values, mut vectors) =
            source.eigh_into(UPLO::Lower).map_err(|_| not_converged("eigendecomposition", order, order))?;
        fix_signs(&mut vectors, None);
        Ok(SymmetricEigen { values, vectors })
    }

    fn thin_svd(&self, matrix: ArrayView2<'_, f64>) -> Result<ThinSvd, DecompositionError> {
        require_finite(&matrix)?;
        let (rows, columns) = matrix.dim();
        let rank = rows.min(columns);
        if rank == 0 {
            return Ok(ThinSvd::empty(rows, columns));
        }
        use_one_thread();
        let failed = || not_converged("singular value decomposition", rows, columns);
        let (left, values, right) = matrix.to_owned().svddc_into(JobSvd::Some).map_err(|_| failed())?;
        let (mut left, mut right) = left.zip(right).ok_or_else(failed)?;
        fix_signs(&mut left, Some(&mut right));
        Ok(ThinSvd { left, values, right })
    }
}

/// LAPACK reports the leading minor that is not positive, one-based.
fn failed_pivot(error: &LinalgError) -> Option<usize> {
    match error {
        LinalgError::Lapack(lax::error::Error::LapackComputationalFailure { return_code }) => {
            usize::try_from(*return_code).ok()?.checked_sub(1)
        }
        _ => None,
    }
}

/// OpenBLAS must not start threads inside rayon's, nor let their number change the order of its sums.
fn use_one_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(crate::platform::use_one_blas_thread);
}

fn not_converged(decomposition: &'static str, rows: usize, columns: usize) -> DecompositionError {
    DecompositionError::NotConverged { backend: NAME, decomposition, rows, columns }
}
