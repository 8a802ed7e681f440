//! The largest magnitudes of each group, without data.

use rayon::prelude::*;

use super::{Mask, Pattern};
use crate::codec::{CodecError, range, sparse::select::select_row};

/// The mask that keeps the largest magnitudes of each group of a matrix, `[rows, columns]` row-major; of equal ones those
/// of the lower columns go.
///
/// The streaming form of this on stored bytes is [`crate::codec::sparse::select::prune_row`].
///
/// # Errors
/// [`CodecError::Pattern`]; [`CodecError::Length`]; [`CodecError::NonFinite`].
pub fn magnitude(weights: &[f32], rows: usize, columns: usize, pattern: Pattern) -> Result<Mask, CodecError> {
    by_scores(weights, rows, columns, pattern, |_, weight| weight.abs())
}

/// The mask that keeps the largest scores, of a column and a weight.
pub(super) fn by_scores(
    weights: &[f32],
    rows: usize,
    columns: usize,
    pattern: Pattern,
    score: impl Fn(usize, f32) -> f32 + Sync,
) -> Result<Mask, CodecError> {
    pattern.validate()?;
    let expected = rows.checked_mul(columns).ok_or(CodecError::TooLarge { rows, columns })?;
    if weights.len() != expected {
        return Err(CodecError::Length { what: "weights", expected, got: weights.len() });
    }
    if let Some(index) = range::first_non_finite(weights) {
        let (row, column) = (index / columns, index % columns);
        return Err(CodecError::NonFinite { row, column, value: weights[index] });
    }
    let row_bytes = Mask::row_bytes(columns);
    let mut bits = vec![0; rows * row_bytes];
    let each = bits.par_chunks_mut(row_bytes.max(1)).zip(weights.par_chunks(columns.max(1)));
    each.for_each_init(
        || vec![0.0; columns],
        |scores, (bits, weights)| {
            let of_columns = weights.iter().enumerate();
            scores.iter_mut().zip(of_columns).for_each(|(to, (column, weight))| *to = score(column, *weight));
            select_row(scores, pattern, bits);
        },
    );
    Mask::new(pattern, rows, columns, bits)
}
