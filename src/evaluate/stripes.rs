//! Walks a matrix in stripes of rows on all cores, with results in the order of rows.

use std::ops::Range;

use rayon::prelude::*;

use crate::layout::STRIPE_ALIGNMENT;

/// Weights of one stripe, as long as a row is not longer: 2 MiB of F32.
const STRIPE_WEIGHTS: usize = 1 << 19;

/// Rows of a stripe of a matrix with this many columns: what every layout can unpack on its own.
fn stripe_rows(columns: usize) -> usize {
    let fitting = STRIPE_WEIGHTS / columns.max(1);
    (fitting / STRIPE_ALIGNMENT * STRIPE_ALIGNMENT).max(STRIPE_ALIGNMENT)
}

/// Does `work` on every stripe, from many threads; the results come in the order of rows, whatever the threads did.
///
/// # Errors
/// The error of the first stripe that fails.
pub fn map_stripes<T: Send, E: Send>(
    rows: usize,
    columns: usize,
    work: impl Fn(Range<usize>) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let step = stripe_rows(columns);
    let results: Vec<_> = (0..rows.div_ceil(step))
        .into_par_iter()
        .map(|stripe| work(stripe * step..rows.min((stripe + 1) * step)))
        .collect();
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::{map_stripes, stripe_rows};

    #[test]
    fn stripes_cover_all_rows_once_and_in_order() {
        for (rows, columns) in [(0, 5), (1, 0), (1000, 4096), (128, 1 << 20), (70_000, 16)] {
            let ranges = map_stripes(rows, columns, Ok::<_, ()>).unwrap();
            let covered: Vec<usize> = ranges.into_iter().flatten().collect();
            assert_eq!(covered, (0..rows).collect::<Vec<_>>(), "{rows} x {columns}");
        }
        assert_eq!(stripe_rows(1 << 20), 128);
        assert_eq!(stripe_rows(16), 32768);
    }
}
