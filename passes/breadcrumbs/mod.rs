//! Model Breadcrumbs: what fine-tunings changed, without the largest and the small changes.
//!
//! Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks" (arXiv 2312.06795, §3). Of
//! a difference `τ = W_tuned − W_base` the largest magnitudes (outliers) and the small ones are masked out; what is left is
//! scaled, and added to the base: `W = W_base + α Σ_t m_t ∘ τ_t` over several fine-tunes, or kept as a sparse difference of
//! one. How many values are kept follows from the shape alone.

mod settings;
#[cfg(test)]
mod tests;

pub use settings::{INFO, KEYS, Settings};

use rayon::prelude::*;

use crate::codec::Share;

/// The places of the values that are neither among the `outliers` largest magnitudes nor beyond the `kept` next ones,
/// ascending. Of equal magnitudes that of the lower place counts as the larger one; magnitudes are those in F32.
///
/// # Panics
/// When there are not so many values, or 2³² and more.
#[must_use]
pub fn kept_places(values: &[f32], outliers: usize, kept: usize) -> Vec<usize> {
    assert!(
        outliers + kept <= values.len() && u32::try_from(values.len()).is_ok(),
        "places of {} values",
        values.len()
    );
    // Ascending in this order: larger magnitudes first, then lower places. All are different.
    let order = |(place, value): (usize, &f32)| u64::from(!value.abs().to_bits()) << 32 | place as u64;
    let mut order: Vec<u64> = values.iter().enumerate().map(order).collect();
    if outliers > 0 {
        order.select_nth_unstable(outliers - 1);
    }
    let rest = &mut order[outliers..];
    if 0 < kept && kept < rest.len() {
        rest.select_nth_unstable(kept - 1);
    }
    let mut places: Vec<usize> = rest[..kept].iter().map(|key| (key & u64::from(u32::MAX)) as usize).collect();
    places.sort_unstable();
    places
}

impl Settings {
    /// How many of so many values are left out as the largest, and how many of the others are kept: at least one.
    #[must_use]
    pub fn counts(&self, values: usize) -> (usize, usize) {
        let share = |share: f64| (share * values as f64).round() as usize;
        let outliers = share(self.outliers).min(values.saturating_sub(1));
        (outliers, share(self.density).max(1).min(values - outliers))
    }

    /// The places kept of a difference `[rows, columns]`, row · columns + column, ascending.
    ///
    /// # Panics
    /// When there are not as many values, or 2³² and more that are ranked together.
    #[must_use]
    pub fn places(&self, difference: &[f32], columns: usize) -> Vec<usize> {
        match self.ranking {
            Share::Row => {
                let (outliers, kept) = self.counts(columns);
                let rows = difference.par_chunks_exact(columns.max(1)).enumerate();
                let rows = rows.map(|(row, values)| {
                    let places = kept_places(values, outliers, kept).into_iter();
                    places.map(|column| row * columns + column).collect::<Vec<_>>()
                });
                rows.collect::<Vec<_>>().concat()
            }
            Share::Matrix => {
                let (outliers, kept) = self.counts(difference.len());
                kept_places(difference, outliers, kept)
            }
        }
    }
}
