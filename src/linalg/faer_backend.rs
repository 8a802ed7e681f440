//! The default backend: faer, pure Rust, measured faster than LAPACK for eigenvectors and Cholesky.

use faer::{
    Mat, MatRef, Par,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack, StackReq},
    linalg::{cholesky::llt::factor, evd, svd},
};
use ndarray::{Array1, Array2, ArrayView2};

use super::{DecompositionError, Decompositions, SymmetricEigen, ThinSvd, fix_signs, require_finite, require_square};

/// Decomposes with faer.
#[derive(Debug, Clone, Copy)]
pub struct Faer;

const NAME: &str = "faer";

impl Decompositions for Faer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cholesky(&self, matrix: ArrayView2<'_, f64>) -> Result<Array2<f64>, DecompositionError> {
        let order = require_square(&matrix)?;
        let mut lower =
            Mat::from_fn(order, order, |row, column| if column <= row { matrix[[row, column]] } else { 0.0 });
        let parameters = faer::Spec::default();
        let mut scratch = memory(factor::cholesky_in_place_scratch::<f64>(order, Par::Seq, parameters));
        let stack = MemStack::new(&mut scratch);
        let regularization = factor::LltRegularization::default();
        factor::cholesky_in_place(lower.as_mut(), regularization, Par::Seq, stack, faer::Spec::default()).map_err(
            |factor::LltError::NonPositivePivot { index }| DecompositionError::NotPositiveDefinite { pivot: index },
        )?;
        Ok(Array2::from_shape_fn(
            (order, order),
            |(row, column)| if column <= row { lower[(row, column)] } else { 0.0 },
        ))
    }

    fn symmetric_eigen(&self, matrix: ArrayView2<'_, f64>) -> Result<SymmetricEigen, DecompositionError> {
        let order = require_square(&matrix)?;
        if order == 0 {
            return Ok(SymmetricEigen::empty());
        }
        let source = Mat::from_fn(order, order, |row, column| matrix[[row.max(column), row.min(column)]]);
        let mut values = Diag::zeros(order);
        let mut vectors = Mat::zeros(order, order);
        let compute = evd::ComputeEigenvectors::Yes;
        let mut scratch = memory(evd::self_adjoint_evd_scratch::<f64>(order, compute, Par::Seq, faer::Spec::default()));
        let stack = MemStack::new(&mut scratch);
        let (into_values, into_vectors) = (values.as_mut(), Some(vectors.as_mut()));
        evd::self_adjoint_evd(source.as_ref(), into_values, into_vectors, Par::Seq, stack, faer::Spec::default())
            .map_err(|evd::EvdError::NoConvergence| not_converged("eigendecomposition", order, order))?;
        let mut vectors = to_array(vectors.as_ref());
        fix_signs(&mut vectors, None);
        Ok(SymmetricEigen { values: Array1::from_shape_fn(order, |index| values[index]), vectors })
    }

    fn thin_svd(&self, matrix: ArrayView2<'_, f64>) -> Result<ThinSvd, DecompositionError> {
        require_finite(&matrix)?;
        let (rows, columns) = matrix.dim();
        let rank = rows.min(columns);
        if rank == 0 {
            return Ok(ThinSvd::empty(rows, columns));
        }
        let source = Mat::from_fn(rows, columns, |row, column| matrix[[row, column]]);
        let mut values = Diag::zeros(rank);
        let (mut left, mut right) = (Mat::zeros(rows, rank), Mat::zeros(columns, rank));
        let thin = svd::ComputeSvdVectors::Thin;
        let mut scratch = memory(svd::svd_scratch::<f64>(rows, columns, thin, thin, Par::Seq, faer::Spec::default()));
        let stack = MemStack::new(&mut scratch);
        let (into_left, into_right) = (Some(left.as_mut()), Some(right.as_mut()));
        svd::svd(source.as_ref(), values.as_mut(), into_left, into_right, Par::Seq, stack, faer::Spec::default())
            .map_err(|svd::SvdError::NoConvergence| not_converged("singular value decomposition", rows, columns))?;
        let (mut left, mut right) = (to_array(left.as_ref()), to_array(right.as_ref()).reversed_axes());
        fix_signs(&mut left, Some(&mut right));
        Ok(ThinSvd { left, values: Array1::from_shape_fn(rank, |index| values[index]), right })
    }
}

fn memory(request: StackReq) -> MemBuffer {
    MemBuffer::new(request)
}

fn to_array(matrix: MatRef<'_, f64>) -> Array2<f64> {
    Array2::from_shape_fn(matrix.shape(), |(row, column)| matrix[(row, column)])
}

fn not_converged(decomposition: &'static str, rows: usize, columns: usize) -> DecompositionError {
    DecompositionError::NotConverged { backend: NAME, decomposition, rows, columns }
}
