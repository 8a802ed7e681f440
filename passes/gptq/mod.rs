//! GPTQ: codes whose errors compensate each other under the second moments of the layer's input.
//!
//! Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2210.17323): the
//! columns of W are quantized one after the other, and each column's error is taken back by the columns still to come,
//! as the inverse of H = Σ x xᵀ tells. Beyond the paper: scales are searched on the working copy as it stands when a
//! group is first touched; afterwards codes, scales and zero points are improved in turn under the whole H; and the
//! target may be corrected for what the blocks before have already lost (asymmetric calibration, as in GPTAQ,
//! 2504.02692).
//!
//! This module is the mathematics alone: it sees matrices, not models. All loops work on fixed chunks of rows in which
//! each column is one contiguous run, so that a step of the sweep is one vector operation over the rows.

mod chunk;
mod descent;
#[cfg(test)]
mod device_tests;
mod factor;
pub(in crate::passes) mod lanes;
mod local;
pub(in crate::passes) mod loss;
mod on_device;
mod options;
mod refine;
mod search;
mod settings;
mod shared;
mod solve;
mod sweep;
pub(in crate::passes) mod target;
#[cfg(test)]
mod tests;
mod triangular;

pub use factor::Factor;
pub(in crate::passes) use lanes::add_outer;
pub(in crate::passes) use loss::undamped;
pub use on_device::solve_on;
pub use options::{Linear, Moments, Order, Report, Solution, SolveError, SolveOptions};
pub use settings::{INFO, Settings};
pub use solve::{solve, solve_towards};
pub(in crate::passes) use target::{Correction, corrected};
