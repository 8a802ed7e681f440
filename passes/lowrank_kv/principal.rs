//! The principal subspace of a projection's outputs, in F64.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::{linalg::default_backend, passes::gptq::SolveError};

/// Rows that one task multiplies.
const BAND: usize = 64;

/// What is known of the input.
#[derive(Debug, Clone, Copy)]
pub enum Metric<'a> {
    /// Nothing: all channels count alike.
    Alike,
    /// How much each channel counts.
    Channels(&'a [f64]),
    /// Second moments, `[columns, columns]`, symmetric.
    Moments(&'a [f64]),
}

/// Eigenvalues and eigenvectors of `W M Wᵀ`.
pub(super) struct Principal {
    /// Descending, none negative.
    pub values: Vec<f64>,
    /// One per row, `[rows, rows]`, in the order of the values.
    pub vectors: Vec<f64>,
}

/// `left · right` by bands of rows, so that the result does not depend on threads.
pub(super) fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Vec<f64> {
    let columns = right.ncols();
    let mut out = vec![0.0; left.nrows() * columns];
    out.par_chunks_mut(BAND * columns.max(1)).enumerate().for_each(|(band, values)| {
        let rows = values.len() / columns.max(1);
        let target = MatMut::from_row_major_slice_mut(values, rows, columns);
        matmul(target, Accum::Replace, left.subrows(band * BAND, rows), right, 1.0, Par::Seq);
    });
    out
}

/// A matrix in F64.
pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// `W M` for W `[rows, columns]`.
pub(super) fn weighted(weights: &[f64], columns: usize, metric: Metric<'_>) -> Vec<f64> {
    match metric {
        Metric::Alike => weights.to_vec(),
        Metric::Channels(channels) => {
            let mut weighted = weights.to_vec();
            for row in weighted.chunks_exact_mut(columns.max(1)) {
                row.iter_mut().zip(channels).for_each(|(value, channel)| *value *= channel);
            }
            weighted
        }
        Metric::Moments(moments) => {
            let left = MatRef::from_row_major_slice(weights, weights.len() / columns.max(1), columns);
            product(left, MatRef::from_row_major_slice(moments, columns, columns))
        }
    }
}

/// `W M Wᵀ`, `[rows, rows]`.
pub(super) fn gram(weights: &[f64], columns: usize, metric: Metric<'_>) -> Vec<f64> {
    let rows = weights.len() / columns.max(1);
    let weighted = weighted(weights, columns, metric);
    let left = MatRef::from_row_major_slice(&weighted, rows, columns);
    product(left, MatRef::from_row_major_slice(weights, rows, columns).transpose())
}

/// The principal subspace of some rows.
pub(super) fn principal(weights: &[f64], columns: usize, metric: Metric<'_>) -> Result<Principal, SolveError> {
    let rows = weights.len() / columns.max(1);
    let gram = gram(weights, columns, metric);
    let expected = rows * rows;
    let view = ArrayView2::from_shape((rows, rows), &gram);
    let view = view.map_err(|_| SolveError::Length { what: "products of outputs", expected, got: gram.len() })?;
    let eigen = default_backend().symmetric_eigen(view)?;
    let descending = (0..rows).rev();
    // Rounding leaves eigenvalues of a singular matrix a little below zero.
    let values = descending.clone().map(|at| eigen.values[at].max(0.0)).collect();
    let vectors = descending.flat_map(|at| eigen.vectors.column(at).to_vec()).collect();
    Ok(Principal { values, vectors })
}

/// Eigenvalues of the outputs of each group of rows, descending: what each latent channel would keep of their squares. A
/// group has as many as channels can be of use to it.
///
/// # Errors
/// [`SolveError`] when weights or moments are not finite.
pub fn energies(
    weights: &[f32],
    columns: usize,
    groups: usize,
    metric: Metric<'_>,
) -> Result<Vec<Vec<f64>>, SolveError> {
    let group_rows = weights.len() / columns.max(1) / groups.max(1);
    let groups: Vec<&[f32]> = weights.chunks_exact((group_rows * columns).max(1)).collect();
    let found = groups.par_iter().map(|group| {
        let mut values = principal(&wide(group), columns, metric)?.values;
        values.truncate(group_rows.min(columns));
        Ok(values)
    });
    found.collect()
}
