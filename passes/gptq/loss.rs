//! Losses under H.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::factor::Factor;

/// Columns of a block.
const BLOCK: usize = 256;

/// d H dᵀ of each row with the undamped H. Differences are stored column after column, each of `lanes` rows.
///
/// Only one triangle of H is multiplied. Products are summed in F64.
pub fn undamped(factor: &Factor, differences: &[f32], lanes: usize) -> Vec<f64> {
    let columns = factor.columns;
    let mut losses = vec![0.0_f64; lanes];
    let hessian = MatRef::from_row_major_slice(&factor.hessian, columns, columns);
    let mut product = vec![0.0_f32; BLOCK * lanes];
    for start in (0..columns).step_by(BLOCK) {
        let width = BLOCK.min(columns - start);
        for (first, twice) in [(start, 1.0), (start + width, 2.0)] {
            let count = if twice == 1.0 { width } else { columns - first };
            if count == 0 {
                continue;
            }
            let product = &mut product[..width * lanes];
            let from = MatRef::from_column_major_slice(&differences[first * lanes..][..count * lanes], lanes, count);
            let to = MatMut::from_column_major_slice_mut(product, lanes, width);
            matmul(to, Accum::Replace, from, hessian.submatrix(first, start, count, width), 1.0, Par::Seq);
            let block = differences[start * lanes..].chunks_exact(lanes).zip(product.chunks_exact(lanes));
            for (differences, products) in block {
                for lane in 0..lanes {
                    losses[lane] += twice * f64::from(differences[lane]) * f64::from(products[lane]);
                }
            }
        }
    }
    for (column, added) in differences.chunks_exact(lanes).zip(&factor.added) {
        for (loss, difference) in losses.iter_mut().zip(column) {
            *loss -= added * f64::from(*difference) * f64::from(*difference);
        }
    }
    losses
}
