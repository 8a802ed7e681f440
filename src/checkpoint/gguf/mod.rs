//! GGUF files: the header both ways. Values and blocks are [`crate::layout`]'s; here is where they lie.
//!
//! Layout after ggml's `docs/gguf.md`, version 3: magic, version, counts, key-values, tensor infos (name, dimensions with
//! the fastest first, type, offset), padding to `general.alignment`, then the data, each tensor padded likewise.

mod parse;
mod types;
mod value;
mod write;

pub use parse::{GgufHeader, GgufProblem, GgufTensor, parse_gguf};
pub use types::GgmlType;
pub use value::{Array, Value};
pub use write::{GgufTensorSpec, Head, gguf_head};

use std::collections::BTreeMap;

use super::Dtype;

/// What every GGUF file begins with.
const MAGIC: &[u8; 4] = b"GGUF";

/// The version that is written.
const VERSION: u32 = 3;

/// The key of the distance that data starts at multiples of.
const ALIGNMENT_KEY: &str = "general.alignment";

/// That distance where no key says another.
const ALIGNMENT: u64 = 32;

/// What a checkpoint in one GGUF file says beside its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// Key-values; of arrays no more than how long they are.
    pub metadata: BTreeMap<String, Value>,
    /// The types of the tensors, by name.
    pub types: BTreeMap<String, GgmlType>,
}

impl GgmlType {
    /// The element type and the shape under which [`super::Checkpoint`] lists a tensor of this type: its own where that is
    /// a plain one, else bytes, `[…, bytes of a row]`.
    pub(super) fn as_stored(self, mut shape: Vec<usize>) -> (Dtype, Vec<usize>) {
        if let Some(dtype) = self.dtype() {
            return (dtype, shape);
        }
        if let Some(columns) = shape.last_mut() {
            *columns = *columns / self.block_weights() * self.block_bytes();
        }
        (Dtype::U8, shape)
    }
}

#[cfg(test)]
mod tests;
