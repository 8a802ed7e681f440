//! What goes into the solver and what comes out of it.

use crate::{
    codec::{Pyramid, pyramid::Points},
    passes::gptq::{self, Order, Report},
};

/// How to solve.
#[derive(Debug, Clone, PartialEq)]
pub struct SolveOptions {
    /// Share of H's mean diagonal that is added to the diagonal.
    pub damping: f64,
    /// Order of the columns.
    pub order: Order,
    /// Columns that are quantized before the others are updated; changes nothing beyond rounding.
    pub block_size: usize,
    /// Rounds of fitting scales and levels and of finding vectors anew after a sweep; 0 for the sweep alone.
    pub rounds: usize,
    /// Sweeps, each with the scales and levels that the rounds before it found.
    pub sweeps: usize,
    /// Share of the correction for the lossy input, from 0 to 1.
    pub drift_share: f64,
}

impl Default for SolveOptions {
    fn default() -> Self {
        Self { damping: 0.01, order: Order::Conditional, block_size: 128, rounds: 2, sweeps: 1, drift_share: 1.0 }
    }
}

impl SolveOptions {
    /// What [`gptq::Factor::new`] asks for.
    #[must_use]
    pub fn factoring(&self) -> gptq::SolveOptions {
        gptq::SolveOptions { damping: self.damping, order: self.order, ..gptq::SolveOptions::default() }
    }
}

/// One linear layer, rotated.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Weights, `[rows, columns]` row-major.
    pub weights: &'a [f32],
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// The number format.
    pub pyramid: Pyramid,
}

/// A quantized layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// Points, gains and scales.
    pub coded: Points,
    /// The stored tensors, in the order of [`Pyramid::tensors`].
    pub tensors: Vec<Vec<u8>>,
    /// What they decode to, `[rows, columns]`.
    pub decoded: Vec<f32>,
    /// How well it went. The loss of rounding to nearest is that of the nearest points without compensation.
    pub report: Report,
}
