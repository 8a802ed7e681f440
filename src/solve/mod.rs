//! Calibrated passes: takes the calibration text through the model block by block, and finds on the way what the scales
//! of folds and the codes of matrices should be. What it finds lies in the work folder until the writer has used it.
//!
//! Two streams of hidden states can run side by side: the original model's, and that of the model as compressed so far.
//! Inside a block, linears that share an input are solved together, and those behind them see their results.

mod clock;
mod coverage;
mod driver;
mod experts;
pub mod fold;
#[cfg(test)]
mod fold_tests;
mod folding;
mod gather;
mod inputs;
mod masks;
mod matrices;
mod memory;
mod moments;
mod on_device;
mod pass;
mod quantized;
mod ranges;
mod record;
mod saved;
mod shared;
mod statistics;
mod streams;
mod strength;
mod tensor_change;
mod trained;
pub mod transforms;
mod view;

pub use clock::{Clock, Part};
pub use coverage::{Coverage, coverage};
pub use driver::{Job, Outcome, calibrate, solve};
pub use gather::Input;
pub use inputs::{BORROWED, InputRange};
pub use matrices::{Stored, decoded, nearest};
pub use memory::{SolvePlan, TrainingPlan, TransformRule};
pub use moments::{Moments, Wanted};
pub use ranges::Selections;
pub use record::{Head, Note, Solutions, Solved, SolvedEncoder};
pub use statistics::{Identity, Key, Statistics, Writer};
pub use trained::held;

use std::path::{Path, PathBuf};

use crate::ExitCode;

/// Why solving stops.
#[derive(Debug, thiserror::Error)]
pub enum SolveFailure {
    /// A file of the work folder fails.
    #[error("`{path}`: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A matrix cannot be solved.
    #[error("`{tensor}`: {source}")]
    Matrix {
        /// Its name.
        tensor: String,
        /// Why.
        source: crate::passes::gptq::SolveError,
    },
    /// A matrix cannot be encoded.
    #[error("`{tensor}`: {source}")]
    Codec {
        /// Its name.
        tensor: String,
        /// Why.
        source: crate::codec::CodecError,
    },
    /// There is no calibration text.
    #[error("pass `{pass}` needs to see data, and the recipe has no [calibration]")]
    NoCalibration {
        /// The pass.
        pass: String,
    },
    /// There is no calibration text, and static scales of activations are found with it.
    #[error(
        "`activations = \"static\"` (pass `{pass}`, tensor `{tensor}`) takes its scales from data, and the recipe has no \
         [calibration]"
    )]
    NoStaticScales {
        /// The pass.
        pass: String,
        /// The first tensor that needs one.
        tensor: String,
    },
    /// The budget is too small.
    #[error("a budget of {budget} bytes is too small to calibrate: it takes at least {smallest} bytes")]
    Memory {
        /// Bytes given.
        budget: u64,
        /// Bytes needed.
        smallest: u64,
    },
    /// A result deviates and that is denied.
    #[error("tensor `{tensor}`: {kind} ({count} times), and `--deny fallback` forbids it")]
    Denied {
        /// The tensor.
        tensor: String,
        /// What.
        kind: String,
        /// How often.
        count: u64,
    },
    /// Saved statistics are of something else.
    #[error("`{path}` holds statistics of another {what}: expected {expected}, got {got}")]
    OtherStatistics {
        /// The file.
        path: PathBuf,
        /// Model, text or settings.
        what: &'static str,
        /// What this run has.
        expected: String,
        /// What the file says.
        got: String,
    },
    /// Too many hidden units reach beyond where their series converge.
    #[error(
        "`{tensor}`: {qualifying} of {units} hidden units stay within 0.7 of their series' radius of convergence, and \
         {wanted} are to be expanded"
    )]
    TooFewUnits {
        /// The matrix that has fewest.
        tensor: String,
        /// Units that are to be expanded.
        wanted: usize,
        /// Units that can be.
        qualifying: usize,
        /// All units.
        units: usize,
        /// The largest share of units that works for all matrices.
        share: f64,
    },
    /// Asked to stop.
    #[error("stopped while calibrating block {block} of {blocks}")]
    Stopped {
        /// The block in hand.
        block: usize,
        /// Blocks in all.
        blocks: usize,
    },
}

impl SolveFailure {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// The exit code of this failure.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Io { .. } | Self::Memory { .. } => ExitCode::Environment,
            Self::Matrix { .. } | Self::Codec { .. } => ExitCode::Input,
            Self::NoCalibration { .. }
            | Self::NoStaticScales { .. }
            | Self::OtherStatistics { .. }
            | Self::TooFewUnits { .. } => ExitCode::Usage,
            Self::Denied { .. } => ExitCode::Difference,
            Self::Stopped { .. } => ExitCode::Stopped,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoCalibration { .. } => "write [calibration] and under it `text = [\"file.txt\"]`".into(),
            Self::NoStaticScales { .. } => {
                "write [calibration] and under it `text = [\"file.txt\"]`, or use `activations = \"dynamic\"`".into()
            }
            Self::Memory { .. } => "give more with --max-memory, or shorter sequences".into(),
            Self::TooFewUnits { share: 0.0, .. } => {
                "use `deviations = 2.0` for pass `taylor_mlp`, which narrows ranges, or `basis = \"chebyshev\"`".into()
            }
            Self::TooFewUnits { share, .. } => format!(
                "use `units = {share}` or less for pass `taylor_mlp`, ranges narrowed by `deviations = 2.0`, or `basis = \"chebyshev\"`"
            ),
            Self::OtherStatistics { .. } => "run `bantam calibrate` again, or leave `statistics` out".into(),
            Self::Stopped { .. } => "run the same command again to continue".into(),
            Self::Denied { .. } => "`skip` the tensor, give more calibration text, or change the setting".into(),
            _ => return None,
        })
    }
}
