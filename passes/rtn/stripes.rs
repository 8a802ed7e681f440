//! Goes over a whole matrix in fixed stripes on all cores; results come in order, so reductions are reproducible.

use rayon::prelude::*;

use crate::{
    codec::{CodecError, RowSource},
    layout::STRIPE_ALIGNMENT,
};

/// Room for as many rows as are best read at once.
fn buffer(source: &dyn RowSource) -> Vec<f32> {
    vec![0.0; source.rows_at_once().clamp(1, STRIPE_ALIGNMENT) * source.columns()]
}

/// Hands out the rows of a stripe, then releases them.
fn for_each_row(
    source: &dyn RowSource,
    stripe: usize,
    buffer: &mut [f32],
    mut step: impl FnMut(usize, &[f32]) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    let range = stripe * STRIPE_ALIGNMENT..source.rows().min((stripe + 1) * STRIPE_ALIGNMENT);
    let columns = source.columns();
    if columns == 0 {
        return Ok(());
    }
    let at_once = buffer.len() / columns;
    for first in range.clone().step_by(at_once) {
        let rows = &mut buffer[..at_once.min(range.end - first) * columns];
        source.read_rows(first, rows)?;
        for (index, row) in rows.chunks(columns).enumerate() {
            step(first + index, row)?;
        }
    }
    source.release_rows(range);
    Ok(())
}

/// Folds the rows of each stripe and returns the stripes' results in order. The rows are released afterwards.
///
/// # Errors
/// The first error in row order.
pub fn fold<T: Send>(
    source: &dyn RowSource,
    start: impl Fn() -> T + Sync,
    step: impl Fn(&mut T, usize, &[f32]) -> Result<(), CodecError> + Sync,
) -> Result<Vec<T>, CodecError> {
    if source.columns() == 0 {
        return Ok(Vec::new());
    }
    let results: Vec<Result<T, CodecError>> = (0..source.rows().div_ceil(STRIPE_ALIGNMENT))
        .into_par_iter()
        .map_init(
            || buffer(source),
            |buffer, stripe| {
                let mut result = start();
                for_each_row(source, stripe, buffer, |index, row| step(&mut result, index, row))?;
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
    let merged = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        Ok(a)
    };
    (0..source.rows().div_ceil(STRIPE_ALIGNMENT))
        .into_par_iter()
        .try_fold(
            || vec![0; bins],
            |mut counts, stripe| {
                for_each_row(source, stripe, &mut buffer(source), |_, row| {
                    count(&mut counts, row);
                    Ok(())
                })?;
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
