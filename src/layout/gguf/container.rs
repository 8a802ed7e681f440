//! The file: metadata of model and tokenizer, then tensors.

use std::collections::BTreeMap;

use super::super::{MatrixSpec, TensorSpec};
use crate::checkpoint::{
    GgmlType,
    gguf::{GgufTensorSpec, Head, Value, gguf_head},
};

/// What a GGUF file says beside its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufContainer {
    entries: Vec<(String, Value)>,
    constants: Vec<(String, Vec<f32>)>,
}

/// The value of `general.file_type` for a file whose weights are mostly of a type; ggml numbers them apart from types.
fn file_type(kind: GgmlType) -> u64 {
    match kind {
        GgmlType::F32 => 0,
        GgmlType::F16 => 1,
        GgmlType::Q4_0 => 2,
        GgmlType::Q4_1 => 3,
        GgmlType::Q8_0 => 7,
        GgmlType::Q4K => 14,
        GgmlType::Q6K => 18,
        GgmlType::BF16 => 32,
        GgmlType::Mxfp4 => 38,
    }
}

impl GgufContainer {
    pub(super) fn new(entries: Vec<(String, Value)>, constants: Vec<(String, Vec<f32>)>) -> Self {
        Self { entries, constants }
    }

    /// The head of a file with these tensors, in this order.
    pub(crate) fn head(&self, tensors: &[(&TensorSpec, Option<&MatrixSpec>)]) -> Head {
        let tensors: Vec<GgufTensorSpec> = tensors.iter().map(|(spec, matrix)| stored(spec, *matrix)).collect();
        let mut weights: BTreeMap<GgmlType, u64> = BTreeMap::new();
        for tensor in &tensors {
            *weights.entry(tensor.kind).or_default() += tensor.shape.iter().product::<usize>() as u64;
        }
        let most = weights.iter().max_by_key(|(_, weights)| **weights).map_or(GgmlType::F32, |(kind, _)| *kind);
        let mut entries = self.entries.clone();
        // Behind the architecture and the name.
        entries.insert(entries.len().min(2), ("general.file_type".to_owned(), Value::Unsigned(file_type(most))));
        gguf_head(&entries, &self.constants, &tensors)
    }
}

/// A tensor as the file lists it: in weights.
fn stored(spec: &TensorSpec, matrix: Option<&MatrixSpec>) -> GgufTensorSpec {
    let coded = matrix.and_then(|matrix| Some((super::kind_of(&matrix.codec)?, vec![matrix.rows, matrix.columns])));
    let (kind, shape) =
        coded.unwrap_or_else(|| (GgmlType::of_dtype(spec.dtype).unwrap_or(GgmlType::F32), spec.shape.clone()));
    GgufTensorSpec { name: spec.name.clone(), kind, shape }
}
