//! The target of the sweep where the input is not that of the dense model.

use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{chunk::ROWS, factor::Factor};

/// T = W + share · W D H⁻¹, the weights that on the lossy input give what W gives on the dense one, in the sense of least
/// squares; W is `[rows, columns]` row-major, and so is T. H⁻¹ = Uᵀ U.
pub fn corrected(factor: &Factor, weights: &[f32], drift: &[f32], share: f64) -> Vec<f32> {
    let columns = factor.columns;
    let upper = MatRef::from_row_major_slice(&factor.upper, columns, columns);
    let drift = MatRef::from_row_major_slice(drift, columns, columns);
    let mut target = weights.to_vec();
    target.par_chunks_mut(ROWS * columns.max(1)).for_each(|rows| {
        let count = rows.len() / columns;
        let mut missed = Mat::<f32>::zeros(count, columns);
        let weights = MatRef::from_row_major_slice(rows, count, columns);
        matmul(missed.as_mut(), Accum::Replace, weights, drift, share as f32, Par::Seq);
        let permuted = Mat::<f32>::from_fn(count, columns, |row, place| missed[(row, factor.permutation[place])]);
        matmul(missed.as_mut(), Accum::Replace, permuted.as_ref(), upper.transpose(), 1.0, Par::Seq);
        let mut solved = permuted;
        matmul(solved.as_mut(), Accum::Replace, missed.as_ref(), upper, 1.0, Par::Seq);
        let mut rows = MatMut::from_row_major_slice_mut(rows, count, columns);
        for (column, place) in factor.places.iter().enumerate() {
            for row in 0..count {
                rows[(row, column)] += solved[(row, *place)];
            }
        }
        // Nothing is known of dead channels.
    });
    target
}
