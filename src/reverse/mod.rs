//! The reverse pass: gradients of a model's weights, one block at a time, and what is trained with them.
//!
//! A [`Block`] computes what [`crate::forward::Block`] computes, in F32 for work or in F64 for checks, and keeps a tape;
//! its reverse hands out the gradient of every linear as two factors ([`WeightGradient`]), so that a scalar per matrix
//! costs no matrix. A [`Head`] does the same behind the last block, and a [`Loss`] compares its logits with a teacher's.
//! [`Objective`] joins them over a whole model: hidden states between blocks lie on disk and the inside of a block is
//! computed again, so memory holds one block's weights and one batch's tape.

mod activation;
mod adamw;
mod attention;
mod block;
mod error;
mod head;
mod heads;
mod linear;
mod loss;
mod masked_weights;
mod masks;
mod matrix;
mod norm;
mod objective;
mod parametrization;
mod random;
mod real;
mod scales;
mod schedule;
mod spill;
#[cfg(test)]
pub(crate) mod tests;
mod train;
mod training_state;
mod units;

pub use activation::Gate;
pub use adamw::{AdamW, AdamWSettings, norm as gradient_norm};
pub use block::{Block, BlockGradient, TakeGradient, Tape, supports};
pub use error::ReverseError;
pub use head::{CLASSES, Head, HeadGradient, HeadTape, PROJECTION};
pub use heads::Rotation;
pub use linear::{Linear, WeightGradient, apply_together, reverse_together};
pub use loss::{Classes, Comparison, Loss, Pieces, Reference};
pub use masked_weights::MaskedWeights;
pub use masks::{CANDIDATES, MaskLogits, Sharpness};
pub use matrix::{Matrix, multiply_transposed};
pub use norm::{Norm, NormGradient};
pub use objective::{Budget, Objective, Trained, Weighted};
pub use parametrization::{Moment, Parametrization};
pub use real::Real;
pub use scales::{PerMatrixScale, PerRowScale};
pub use schedule::{Decay, Schedule};
pub use train::{AfterStep, StepReport, Training};
pub use training_state::TrainingState;
pub use units::InUnits;
