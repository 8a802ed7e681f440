//! Goes over a whole matrix in fixed stripes on all cores; results come in order, so reductions are reproducible.

use rayon::prelude::*;

use crate::{
    codec::{CodecError, RowSource},
    layout::STRIPE_ALIGNMENT,
};

/// Folds the rows of each stripe and returns the stripes' results in order. The rows are released afterwards.
///
/// # Errors
/// The first error in row order.
pub fn fold<T: Send>(
    source: &dyn RowSource,
    start: impl Fn() -> T + Sync,
    step: impl Fn(&mut T, usize, &[f32]) -> Result<(), CodecError> + Sync,
) -> Result<Vec<T>, CodecError> {
    let (rows, columns) = (source.rows(), source.columns());
    if columns == 0 {
        return Ok(Vec::new());
    }
    let results: Vec<Result<T, CodecError>> = (0..rows.div_ceil(STRIPE_ALIGNMENT))
        .into_par_iter()
        .map_init(
            || vec![0.0; columns],
            |row, stripe| {
                let range = stripe * STRIPE_ALIGNMENT..rows.min((stripe + 1) * STRIPE_ALIGNMENT);
                let mut result = start();
                for index in range.clone() {
                    source.read_rows(index, row)?;
                    step(&mut result, index, row)?;
                }
                source.release_rows(range);
                Ok(result)
            },
        )
        .collect();
    results.into_iter().collect()
}

/// Counts into `bins` bins, in whatever order: whole numbers add up to the same.
///
/// # Errors
/// When the rows cannot be read.
pub fn count_bins(
    source: &dyn RowSource,
    bins: usize,
    count: impl Fn(&mut [u64], &[f32]) + Sync,
) -> Result<Vec<u64>, CodecError> {
    let (rows, columns) = (source.rows(), source.columns());
    let merged = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        Ok(a)
    };
    (0..rows.div_ceil(STRIPE_ALIGNMENT))
        .into_par_iter()
        .try_fold(
            || vec![0; bins],
            |mut counts, stripe| {
                let range = stripe * STRIPE_ALIGNMENT..rows.min((stripe + 1) * STRIPE_ALIGNMENT);
                let mut row = vec![0.0; columns];
                for index in range.clone() {
                    source.read_rows(index, &mut row)?;
                    count(&mut counts, &row);
                }
                source.release_rows(range);
                Ok(counts)
            },
        )
        .try_reduce(|| vec![0; bins], merged)
}

/// The first weight that is not finite, as an error.
pub fn not_finite(row: usize, weights: &[f32]) -> CodecError {
    let column = weights.iter().position(|weight| !weight.is_finite()).unwrap_or(0);
    CodecError::NonFinite { row, column, value: weights.get(column).copied().unwrap_or(f32::NAN) }
}
