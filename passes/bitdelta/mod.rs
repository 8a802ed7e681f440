//! BitDelta: what fine-tuning changed, as signs and scales.
//!
//! Liu et al., "BitDelta: Your Fine-Tune May Only Be Worth One Bit" (arXiv 2402.10193, §3). A difference D of two weights
//! becomes `Σ_p α_p S_p`, with S in {−1, +1}: one α per matrix as in the paper, or one per row. The closed forms here need
//! no gradients; [`crate::train`] trains the scales further. Beyond the paper: scales per row, signs and scales under the
//! inputs' second moments ([`solve`]), and more planes of signs, each of what the ones before have left.

mod settings;
mod signs;
mod solve;
#[cfg(test)]
mod tests;
mod trained;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

pub use settings::{Distill, INFO, KEYS, Settings, pack};
pub use signs::Signs;
pub use solve::{Linear, Solution, SolveOptions, solve};
pub use trained::{parametrization, signs_bytes, store};

pub use crate::codec::Share;

use crate::forward::Matrix;

/// Rows that one task takes.
const BAND: usize = 64;

/// One plane: signs and what they are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// The signs.
    pub signs: Signs,
    /// One scale, or one per row.
    pub scales: Vec<f32>,
}

impl Plane {
    /// The scale of a row.
    #[must_use]
    pub fn scale(&self, row: usize) -> f32 {
        if self.scales.len() == 1 { self.scales[0] } else { self.scales[row] }
    }

    /// Adds `factor · α S` to a matrix of the same shape.
    pub fn add_to(&self, matrix: &mut Matrix, factor: f32) {
        let columns = matrix.columns.max(1);
        matrix.values.par_chunks_mut(columns).enumerate().for_each(|(row, values)| {
            let scale = factor * self.scale(row);
            let mut addend = vec![0.0; columns];
            self.signs.fill(row, scale, -scale, &mut addend);
            for (value, addend) in values.iter_mut().zip(&addend) {
                *value += addend;
            }
        });
    }
}

/// `planes` planes of a difference `[output, input]`, each of what those before have left.
///
/// Without second moments α = mean |D|, the minimiser of ‖D − αS‖². With `hessian`, `Σ x xᵀ` of the inputs,
/// `[input, input]`, symmetric: α = ⟨D H, S⟩ / ⟨S H, S⟩, the minimiser of the error of the outputs,
/// `tr((D − αS) H (D − αS)ᵀ)`.
///
/// # Panics
/// When `hessian` is not `[input, input]`.
#[must_use]
pub fn decompose(mut difference: Matrix, planes: usize, share: Share, hessian: Option<&[f64]>) -> Vec<Plane> {
    let mut out = Vec::with_capacity(planes);
    for _ in 0..planes {
        let signs = Signs::of(difference.rows, difference.columns, &difference.values);
        let scales = scales(&difference, &signs, share, hessian);
        let plane = Plane { signs, scales: scales.into_iter().map(|scale| scale as f32).collect() };
        plane.add_to(&mut difference, -1.0);
        out.push(plane);
    }
    out
}

/// The best scales of given signs, one or one per row; see [`decompose`]. Where the inputs' moments say nothing about a
/// row (⟨S H, S⟩ = 0), the scale is that without them.
///
/// # Panics
/// When `hessian` is not `[input, input]`.
#[must_use]
pub fn scales(difference: &Matrix, signs: &Signs, share: Share, hessian: Option<&[f64]>) -> Vec<f64> {
    let plain = products(difference, signs);
    let weighted = hessian.map_or_else(Vec::new, |hessian| weighted_products(difference, signs, hessian));
    let sum = |products: &[[f64; 2]]| products.iter().fold([0.0; 2], |[above, below], [a, b]| [above + a, below + b]);
    let quotient = |[above, below]: [f64; 2]| (below > 0.0 && (above / below).is_finite()).then(|| above / below);
    let best =
        |weighted: Option<[f64; 2]>, plain: [f64; 2]| weighted.and_then(quotient).or(quotient(plain)).unwrap_or(0.0);
    match share {
        Share::Matrix => vec![best(hessian.map(|_| sum(&weighted)), sum(&plain))],
        Share::Row => plain.iter().enumerate().map(|(row, plain)| best(weighted.get(row).copied(), *plain)).collect(),
    }
}

/// ⟨Dᵢ, Sᵢ⟩ and ⟨Sᵢ, Sᵢ⟩ of every row.
fn products(difference: &Matrix, signs: &Signs) -> Vec<[f64; 2]> {
    let columns = difference.columns;
    (0..difference.rows)
        .into_par_iter()
        .map_init(
            || vec![0.0_f32; columns],
            |sign, row| {
                signs.fill(row, 1.0, -1.0, sign);
                let along = difference.row(row).iter().zip(sign.iter()).map(|(d, s)| f64::from(d * s)).sum();
                [along, columns as f64]
            },
        )
        .collect()
}

/// `Dᵢ H Sᵢᵀ` and `Sᵢ H Sᵢᵀ` of every row.
fn weighted_products(difference: &Matrix, signs: &Signs, hessian: &[f64]) -> Vec<[f64; 2]> {
    let columns = difference.columns;
    assert_eq!(hessian.len(), columns * columns, "second moments of {columns} channels");
    if columns == 0 {
        return vec![[0.0; 2]; difference.rows];
    }
    let hessian = MatRef::from_row_major_slice(hessian, columns, columns);
    let bands: Vec<Vec<[f64; 2]>> = (0..difference.rows.div_ceil(BAND))
        .into_par_iter()
        .map(|band| {
            let rows = band * BAND..difference.rows.min((band + 1) * BAND);
            let mut sign = vec![0.0; rows.len() * columns];
            for (row, sign) in rows.clone().zip(sign.chunks_exact_mut(columns)) {
                signs.fill(row, 1.0, -1.0, sign);
            }
            let mut through = vec![0.0; sign.len()];
            let target = MatMut::from_row_major_slice_mut(&mut through, rows.len(), columns);
            let left = MatRef::from_row_major_slice(&sign, rows.len(), columns);
            matmul(target, Accum::Replace, left, hessian, 1.0, Par::Seq);
            let lines = through.chunks_exact(columns).zip(sign.chunks_exact(columns));
            rows.zip(lines)
                .map(|(row, (through, sign))| {
                    let above = through.iter().zip(difference.row(row)).map(|(t, d)| t * f64::from(*d)).sum();
                    let below = through.iter().zip(sign).map(|(t, s)| t * s).sum();
                    [above, below]
                })
                .collect()
        })
        .collect();
    bands.concat()
}
