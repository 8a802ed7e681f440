//! The kinds of files that weights lie in: what stands before the data, and where each tensor lies.

use std::cmp::Ordering;

use super::{MatrixSpec, TensorSpec, gguf::GgufContainer};
use crate::checkpoint::{METADATA, canonical_order, gguf::Head, header_bytes};

/// The kind of file that an artifact's weights lie in.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Container {
    /// safetensors, in as many files as are asked for.
    #[default]
    Safetensors,
    /// One GGUF file.
    Gguf(Box<GgufContainer>),
}

/// A container, and what it cannot say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Contained {
    /// The container.
    pub container: Container,
    /// What of the source its files cannot say, a sentence each.
    pub lost: Vec<String>,
}

impl Container {
    /// Whether weights may lie in several files.
    pub(crate) fn has_shards(&self) -> bool {
        matches!(self, Self::Safetensors)
    }

    /// The name of file `index` out of `count`, which loaders expect.
    pub(crate) fn file_name(&self, index: usize, count: usize) -> String {
        match self {
            Self::Safetensors => crate::plan::file_name(index, count),
            Self::Gguf(_) => "model.gguf".to_owned(),
        }
    }

    /// Which of two tensors of a file comes first; in any order where they are equal.
    pub(crate) fn order(&self, left: &TensorSpec, right: &TensorSpec) -> Ordering {
        match self {
            Self::Safetensors => canonical_order((left.dtype, &left.name), (right.dtype, &right.name)),
            Self::Gguf(_) => Ordering::Equal,
        }
    }

    /// What a file with these tensors begins with, and where they lie. With the tensors, the matrices that they are codes
    /// of.
    pub(crate) fn head(&self, tensors: &[(&TensorSpec, Option<&MatrixSpec>)]) -> Head {
        let Self::Gguf(gguf) = self else { return safetensors_head(tensors) };
        gguf.head(tensors)
    }
}

fn safetensors_head(tensors: &[(&TensorSpec, Option<&MatrixSpec>)]) -> Head {
    let listed = tensors.iter().map(|(spec, _)| (spec.name.as_str(), spec.dtype, spec.shape.as_slice()));
    let bytes = header_bytes(listed, METADATA);
    let mut at = bytes.len() as u64;
    let mut offsets = Vec::with_capacity(tensors.len());
    for (spec, _) in tensors {
        offsets.push(at);
        at += spec.bytes();
    }
    Head { bytes, offsets, file_bytes: at }
}
