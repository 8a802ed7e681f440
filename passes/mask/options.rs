//! What goes into the solver and what comes out of it.

use super::{Mask, Pattern};
use crate::passes::Deviations;

/// What decides which weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criterion {
    /// The largest magnitudes.
    Magnitude,
    /// The largest products of magnitude and norm of the input.
    Wanda,
    /// The least loss of leaving weights out of a group when what comes after it makes up for that.
    SparseGpt,
    /// The masks of [`Criterion::SparseGpt`], improved group by group under the whole H.
    Search,
    /// A mask from elsewhere.
    File,
}

/// How to solve.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskOptions {
    /// How many of how many are kept.
    pub pattern: Pattern,
    /// What decides which.
    pub criterion: Criterion,
    /// Whether the weights kept are fitted to the layer's output. Without, those of SparseGPT are what its sweep leaves,
    /// and all others stay as they are.
    pub refit: bool,
    /// Share of H's mean diagonal that is added to the diagonal.
    pub damping: f64,
    /// Share of the correction for the lossy input, from 0 to 1; only where weights are changed at all.
    pub drift_share: f64,
    /// Columns that are worked on before the others are updated; changes nothing beyond rounding.
    pub block_size: usize,
    /// The refit of a row ends when this share of its loss is no longer gained by some steps together.
    pub tolerance: f64,
    /// Most steps of a refit; each costs as much as the product of the weights with H.
    pub refit_steps: usize,
    /// Most rounds of the search, each followed by a refit.
    pub search_rounds: usize,
}

impl MaskOptions {
    /// Whether the weights kept become others than they were.
    #[must_use]
    pub fn changes_weights(&self) -> bool {
        self.refit || matches!(self.criterion, Criterion::SparseGpt | Criterion::Search)
    }
}

impl Default for MaskOptions {
    fn default() -> Self {
        Self {
            pattern: Pattern::TWO_OF_FOUR,
            criterion: Criterion::SparseGpt,
            refit: true,
            damping: 0.01,
            drift_share: 1.0,
            block_size: 128,
            tolerance: 1e-4,
            refit_steps: 200,
            search_rounds: 8,
        }
    }
}

/// A masked layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// Weights, `[rows, columns]` row-major; what is not kept is +0.
    pub weights: Vec<f32>,
    /// Which are kept; a kept one may be zero.
    pub mask: Mask,
    /// How well it went.
    pub report: Report,
}

/// How well a layer was masked. Losses are tr(Δ H Δᵀ) with the undamped H, where Δ is the difference from the given
/// weights, or from the corrected target where the name says so.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Loss of keeping the largest magnitudes and changing nothing.
    pub loss_magnitude: f64,
    /// Loss in the end.
    pub loss: f64,
    /// Loss against the corrected target as the criterion leaves the weights; equal to the given ones without correction.
    pub target_loss_selected: f64,
    /// Loss against the corrected target in the end.
    pub target_loss: f64,
    /// Steps of refits, the most over all chunks of rows.
    pub steps: usize,
    /// Masks of groups that the search changed, counted each time.
    pub changed: u64,
    /// Columns at the end of each row that are no whole group and were left dense.
    pub dense_columns: usize,
    /// What deviates from what was asked.
    pub deviations: Deviations,
}
