//! The target of the sweep where the input is not that of the dense model.

use faer::{
    Accum, Mat, MatMut, MatRef, Par,
    linalg::matmul::{
        matmul,
        triangular::{self, BlockStructure},
    },
};
use rayon::prelude::*;

use super::factor::Factor;

/// Rows of one task.
const ROWS: usize = 128;

/// What the target is corrected for.
#[derive(Debug, Clone, Copy)]
pub struct Correction<'a> {
    /// `Σ (x_dense − x) xᵀ`, `[columns, columns]`.
    pub drift: Option<&'a [f32]>,
    /// `Σ (r_dense − r) xᵀ`, `[rows, columns]`.
    pub residual: Option<&'a [f32]>,
    /// Share of the correction.
    pub share: f64,
}

/// T = W + share · (W D + R) H⁻¹, the weights that on the lossy input give what W gives on the dense one, in the sense of
/// least squares, and make up for what is already missing where the output is added to; W is `[rows, columns]`
/// row-major, and so is T. H⁻¹ = Uᵀ U.
pub fn corrected(factor: &Factor, weights: &[f32], correction: &Correction) -> Vec<f32> {
    let columns = factor.columns;
    let upper = MatRef::from_row_major_slice(&factor.upper, columns, columns);
    let mut target = weights.to_vec();
    target.par_chunks_mut(ROWS * columns.max(1)).enumerate().for_each(|(chunk, rows)| {
        let count = rows.len() / columns;
        let mut missed = Mat::<f32>::zeros(count, columns);
        if let Some(drift) = correction.drift {
            let drift = MatRef::from_row_major_slice(drift, columns, columns);
            let weights = MatRef::from_row_major_slice(rows, count, columns);
            matmul(missed.as_mut(), Accum::Replace, weights, drift, 1.0, Par::Seq);
        }
        if let Some(residual) = correction.residual {
            let residual = &residual[chunk * ROWS * columns..][..count * columns];
            missed += MatRef::from_row_major_slice(residual, count, columns);
        }
        let permuted = Mat::<f32>::from_fn(count, columns, |row, place| missed[(row, factor.permutation[place])]);
        let product = |to: &mut Mat<f32>, from: &Mat<f32>, factor: MatRef<'_, f32>, structure, share: f32| {
            let all = BlockStructure::Rectangular;
            triangular::matmul(
                to.as_mut(),
                all,
                Accum::Replace,
                from.as_ref(),
                all,
                factor,
                structure,
                share,
                Par::Seq,
            );
        };
        product(&mut missed, &permuted, upper.transpose(), BlockStructure::TriangularLower, 1.0);
        let mut solved = permuted;
        product(&mut solved, &missed, upper, BlockStructure::TriangularUpper, correction.share as f32);
        let mut rows = MatMut::from_row_major_slice_mut(rows, count, columns);
        let mut dead = factor.dead.iter().peekable();
        for (column, place) in factor.places.iter().enumerate() {
            // Nothing is known of dead channels.
            if dead.next_if_eq(&&column).is_some() {
                continue;
            }
            for row in 0..count {
                rows[(row, column)] += solved[(row, *place)];
            }
        }
    });
    target
}
