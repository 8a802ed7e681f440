//! n:m masks: which weights of each group of m neighbours are kept, and what the kept ones become.
//!
//! Criteria: magnitude, without data; Wanda (2306.11695), |w| times the norm of its input; SparseGPT (2301.00774), but with
//! the best of all masks of a group by the exact loss of leaving its weights out together, instead of each one's own loss;
//! and a search that goes on from there, group by group under the whole H. The weights kept are then those that minimise
//! the layer's loss under their mask, by least squares. Masks may also come from elsewhere, as learned ones do (MaskLLM,
//! 2409.17481).
//!
//! This module is the mathematics alone: it sees matrices, not models. It shares moments, factor, correction and the
//! layout of chunks (rows in lanes) with `gptq`.

#[cfg(test)]
mod encode_tests;
mod forms;
mod given;
pub mod learned;
mod magnitude;
mod masked;
mod options;
mod refit;
mod rows;
mod search;
mod settings;
mod solve;
mod sparse_gpt;
#[cfg(test)]
mod tests;
mod wanda;

pub use crate::codec::sparse::{Mask, Pattern};
pub use given::{Given, MaskBook};
pub use learned::{Learning, Prior};
pub use magnitude::magnitude;
pub use masked::{MaskedEncoder, Selection};
pub use options::{Criterion, MaskOptions, Report, Solution};
pub use settings::{INFO, Settings};
pub use solve::{factor, loss, solve};
pub use wanda::wanda;
