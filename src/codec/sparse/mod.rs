//! Sparse matrices: n of each m neighbouring weights of a row are kept (2:4 and its kin), and which ones is said apart.
//!
//! What a pass decides is a [`Mask`]. Stored it is one of: dense weights with exact zeros, of which runtimes need know
//! nothing; values and indices ([`Sparse`], the canonical form); compared with it one bit a weight
//! ([`bitmask`], compressed-tensors' `sparse-24-bitmask`). [`maskllm`] reads and writes masks without weights.

pub mod bitmask;
pub mod maskllm;
pub mod select;

mod canonical;
mod mask;
pub mod npz;
#[cfg(test)]
mod tests;

use super::StoredTensor;
pub use canonical::Sparse;
pub use mask::{Mask, Pattern, apply_row};
pub use npz::NpzError;
