//! What goes into the solver and what comes out of it.

use super::kmeans::Effort;
use crate::{
    codec::{ScaleFormat, VectorFormat, VectorParts},
    passes::gptq::{self, Order, Report},
};

/// How to solve.
#[derive(Debug, Clone, PartialEq)]
pub struct SolveOptions {
    /// Share of H's mean diagonal that is added to the diagonal.
    pub damping: f64,
    /// Order of the columns in the sweep; independent of the permutation that is stored.
    pub order: Order,
    /// Columns that are swept before the others are updated; changes nothing beyond rounding.
    pub block_size: usize,
    /// Main centroids that are tried with every residual one.
    pub beam: usize,
    /// Vectors of the sample that centroids are first fitted to, for each centroid.
    pub sample: usize,
    /// Most rounds of k-means on the sample.
    pub sample_rounds: usize,
    /// Most rounds of k-means on all vectors.
    pub rounds: usize,
    /// Most rounds of refitting centroids and choosing codes anew after a sweep; 0 for the sweep alone.
    pub refine_rounds: usize,
    /// Steps of conjugate gradients of one refit.
    pub refit_steps: usize,
    /// Sweeps, each with the centroids that the refinement before it found.
    pub sweeps: usize,
    /// Share of the correction for the lossy input, from 0 to 1.
    pub drift_share: f64,
}

impl Default for SolveOptions {
    fn default() -> Self {
        Self {
            damping: 0.1,
            order: Order::Conditional,
            block_size: 128,
            beam: 8,
            sample: 32,
            sample_rounds: 25,
            rounds: 4,
            refine_rounds: 3,
            refit_steps: 12,
            sweeps: 1,
            drift_share: 1.0,
        }
    }
}

impl SolveOptions {
    /// How to factor H for it: factors are shared with `gptq` where these agree.
    #[must_use]
    pub fn factor_options(&self) -> gptq::SolveOptions {
        gptq::SolveOptions { damping: self.damping, order: self.order, ..gptq::SolveOptions::default() }
    }

    pub(super) fn effort(&self) -> Effort {
        Effort { sample: self.sample.max(1), sample_rounds: self.sample_rounds.max(1), rounds: self.rounds }
    }
}

/// One linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Random choices follow from it.
    pub name: &'a str,
    /// Weights, `[rows, columns]` row-major.
    pub weights: &'a [f32],
    /// Output features.
    pub rows: usize,
    /// The format.
    pub format: &'a VectorFormat,
    /// The type that the runtime decodes in; see [`VectorFormat::decode`].
    pub arithmetic: ScaleFormat,
}

/// A quantized layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// Codebooks, indices and what else is stored, as numbers that the storage type holds.
    pub parts: VectorParts,
    /// The stored tensors, in the order of [`VectorFormat::tensors`].
    pub tensors: Vec<Vec<u8>>,
    /// What they decode to, `[rows, columns]`.
    pub decoded: Vec<f32>,
    /// How well it went; `rounds` are rounds of refinement.
    pub report: Report,
}
