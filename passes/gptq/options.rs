//! What goes into the solver and what comes out of it.

use crate::{
    codec::{Codec, CodecError, CodedRows, MatrixParameters},
    linalg::DecompositionError,
    passes::{Deviations, rtn::grid::Grid},
};

/// Order in which columns are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they stand.
    None,
    /// By falling second moment, so that the columns that matter most are quantized while the most others can still
    /// compensate. Groups stay those of the original order.
    Activation,
    /// From back to front, always the column with the least second moment given those already chosen. As
    /// [`Order::Activation`], but with what columns have in common counted once; lower loss, a little slower to factor.
    Conditional,
}

impl Order {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Activation, Self::Conditional];

    /// The word for it in recipes and manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Activation => "activation",
            Self::Conditional => "conditional",
        }
    }
}

/// How to solve.
#[derive(Debug, Clone, PartialEq)]
pub struct SolveOptions {
    /// Share of H's mean diagonal that is added to the diagonal.
    pub damping: f64,
    /// Order of the columns.
    pub order: Order,
    /// Columns that are quantized before the others are updated; changes nothing beyond rounding.
    pub block_size: usize,
    /// Whether codes, scales and zero points are improved after the sweep.
    pub refine: bool,
    /// Scale candidates per group; 0 for the scales of minimum and maximum.
    pub search_steps: usize,
    /// Most rounds of refinement after a sweep.
    pub refine_rounds: usize,
    /// Sweeps, each with the scales that the refinement before it found; only with `refine`.
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
            refine: true,
            search_steps: 40,
            refine_rounds: 2,
            sweeps: 1,
            drift_share: 1.0,
        }
    }
}

/// Second moments of one input over all calibration tokens.
#[derive(Debug, Clone, Copy)]
pub struct Moments<'a> {
    /// Channels of the input (columns of the weights).
    pub columns: usize,
    /// Σ x xᵀ, `[columns, columns]`, symmetric. The scale is free.
    pub hessian: &'a [f64],
    /// `Σ (x_dense − x) xᵀ`, `[columns, columns]` row-major: the row is a channel of `x_dense − x`. Scaled like `hessian`.
    pub drift: Option<&'a [f32]>,
}

/// One linear layer that has the input.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Weights, `[rows, columns]` row-major.
    pub weights: &'a [f32],
    /// Output features.
    pub rows: usize,
    /// The number format, without outliers.
    pub codec: &'a Codec,
    /// Its levels and scales.
    pub grid: &'a Grid,
}

/// A quantized layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// All rows in codes, columns in their original order.
    pub coded: CodedRows,
    /// What is known once per matrix.
    pub parameters: MatrixParameters,
    /// What the codes decode to, `[rows, columns]`.
    pub dequantized: Vec<f32>,
    /// How well it went.
    pub report: Report,
}

/// How well a layer was quantized. Losses are tr(Δ H Δᵀ) with the undamped H, where Δ is the difference from the given
/// weights, or from the corrected target where the name says so.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Loss of rounding the given weights to nearest, with scales of minimum and maximum.
    pub loss_nearest: f64,
    /// Loss after the sweep; not measured where there is a correction.
    pub loss_sweep: Option<f64>,
    /// Loss in the end; that of the sweep where nothing was refined.
    pub loss_refined: f64,
    /// The same against the corrected target; equal where there is no correction.
    pub target_loss_sweep: f64,
    /// [`Report::loss_refined`] against the corrected target; the same where there is no correction.
    pub target_loss_refined: f64,
    /// Rounds of refinement that changed anything, the most over all chunks of rows.
    pub rounds: usize,
    /// What deviates from what was asked.
    pub deviations: Deviations,
}

/// Why a layer cannot be solved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SolveError {
    /// A list is not as long as the shape asks for.
    #[error("{what}: {got} elements, expected {expected}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Elements it should have.
        expected: usize,
        /// Elements it has.
        got: usize,
    },
    /// Second moments are NaN or infinite.
    #[error("the second moment of channels {row} and {column} is not finite")]
    NotFinite {
        /// One channel.
        row: usize,
        /// The other.
        column: usize,
    },
    /// The correction is beyond the numbers.
    #[error("the corrected weight at row {row}, column {column} is not finite")]
    Target {
        /// Row of the first one.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// Outliers kept exact do not go with the sweep.
    #[error("weights kept exact beside the codes are not supported")]
    Outliers,
    /// A mask asks for exact zeros, which zero points that are not whole do not give.
    #[error("weights that a mask leaves out cannot be zero with zero points that are not whole")]
    MaskedZero,
    /// The weights or the codec are at fault.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No damping made H positive definite.
    #[error("second moments: {0}")]
    Decomposition(#[from] DecompositionError),
}

impl SolveError {
    /// What it is where nothing is known of inputs: only the weights or the format can be at fault.
    #[must_use]
    pub fn into_codec(self) -> CodecError {
        match self {
            Self::Codec(error) => error,
            other => CodecError::Stored { what: "weights", problem: other.to_string() },
        }
    }

    /// Refuses a list of the wrong length.
    pub(in crate::passes) fn check(what: &'static str, expected: usize, got: usize) -> Result<(), Self> {
        if expected == got { Ok(()) } else { Err(Self::Length { what, expected, got }) }
    }
}
