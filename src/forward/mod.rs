//! The forward pass, one block at a time, from whatever stores the weights. Shared by calibration and evaluation.
//!
//! A block is a list of [`Stage`]s. Each stage has one input that some linears share, and what follows from their
//! outputs: `input` gives the first, `finish` does the second. Between two stages lies a [`State`] that can be put aside,
//! so that a caller may gather statistics of an input, change the linears that read it, and go on.
//! Activations and sums are F32.

mod attention;
mod block;
mod build;
mod cache_bytes;
mod config;
#[cfg(test)]
mod device_tests;
mod error;
mod expanded;
mod experts;
mod inputs;
mod kernels;
mod latent_cache;
mod matrix;
mod model;
pub mod on_device;
mod rope;
mod spec;
mod state;
mod store;
mod stream;
mod terms;
mod weights;

pub use attention::Attention;
pub use block::Block;
pub(crate) use block::vector;
pub use cache_bytes::CacheBytes;
pub use error::{ARCHITECTURES, ForwardError};
pub use expanded::{AsStored, Expanded};
pub use experts::{Expert, Routing};
pub use inputs::rounded;
pub(crate) use kernels::Norm;
pub use kernels::{Activation, NormKind, exp};
pub use latent_cache::{CacheSpec, SideSpec};
pub use matrix::{Matrix, multiply_transposed};
pub use model::{Head, Model};
pub(crate) use rope::Rotation;
pub use spec::{After, BlockSpec, ExpertsSpec, Kind, Latent, NormSpec, RouterRule, Stage};
pub use state::State;
pub use store::Store;
pub use stream::{Limits, in_pairs};
pub use terms::add_terms;
#[cfg(test)]
pub(crate) use terms::tests as terms_testing;
pub use weights::{InputFormat, Linear, LinearSpec, WeightSource, apply_together};
