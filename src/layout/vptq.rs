//! VPTQ, as the public package and transformers load it: `docs/formats/vptq.md`.

use serde_json::Value;

use super::{
    Layout, LayoutName, MatrixSpec, Piece, Refusal, TensorSpec,
    refusal::without_activations,
    vptq_config::{LayerConfig, quantization_config},
};
use crate::{
    checkpoint::Dtype,
    codec::{CodedRows, MatrixParameters, ScaleFormat, StoredMatrix, VectorFormat, Whole},
};

const NAME: &str = "vptq";

/// The layout.
pub(super) struct Vptq;

fn format_of(matrix: &MatrixSpec) -> Option<&VectorFormat> {
    match matrix.codec.whole()? {
        Whole::Vector(format) => Some(format),
        _ => None,
    }
}

impl Layout for Vptq {
    fn name(&self) -> LayoutName {
        LayoutName::Vptq
    }

    fn scale_format(&self, dense: Dtype) -> ScaleFormat {
        super::scale_beside(dense)
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        let refuse = |what: &str| {
            Err(Refusal::Format(format!(
                "layout `{NAME}` {what}, but `{}` is such a matrix; use layout `bantam` or leave it dense",
                matrix.name
            )))
        };
        let Some(format) = format_of(matrix) else { return refuse("has vectors of centroids only, from pass `vptq`") };
        without_activations(NAME, matrix)?;
        if matrix.experts.is_some() {
            return refuse("has one module per expert and no stacked (3-D) experts");
        }
        if matrix.transposed {
            return refuse("has no matrices stored as [input, output]");
        }
        if matrix.codebook_of.is_some() {
            return refuse("stores the codebooks of every matrix beside it");
        }
        if matrix.rotations.is_some() {
            return refuse("cannot say that a matrix is stored rotated");
        }
        if !matrix.name.ends_with(".weight") {
            return refuse("names matrices by their module and has none without `.weight`");
        }
        format
            .validate(matrix.rows, matrix.columns)
            .map_err(|error| Refusal::Format(format!("`{}`: {error}", matrix.name)))
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        let Some(whole) = matrix.codec.whole() else { return Vec::new() };
        let stored = whole.tensors(matrix.rows, matrix.columns).into_iter();
        let named = |suffix: &str| format!("{}.{suffix}", matrix.module());
        stored
            .map(|stored| TensorSpec { name: named(stored.suffix), dtype: stored.dtype, shape: stored.shape })
            .collect()
    }

    fn pack_whole(&self, _matrix: &MatrixSpec, _expert: usize, stored: StoredMatrix) -> Vec<Piece> {
        stored.into_iter().enumerate().map(|(index, bytes)| Piece::contiguous(index, 0, bytes)).collect()
    }

    fn pack(&self, _matrix: &MatrixSpec, _rows: &CodedRows) -> Vec<Piece> {
        Vec::new()
    }

    fn pack_parameters(&self, _matrix: &MatrixSpec, _parameters: &MatrixParameters) -> Vec<Piece> {
        Vec::new()
    }

    fn quantization_config(&self, matrices: &[MatrixSpec], dense_modules: &[String]) -> Option<Value> {
        if matrices.is_empty() {
            return None;
        }
        let layer = |matrix: &MatrixSpec| {
            Some(LayerConfig {
                rows: matrix.rows,
                columns: matrix.columns,
                format: format_of(matrix)?.clone(),
                bias: matrix.bias,
            })
        };
        let layers: Vec<(&str, LayerConfig)> =
            matrices.iter().filter_map(|matrix| Some((matrix.module(), layer(matrix)?))).collect();
        Some(quantization_config(&layers, dense_modules))
    }
}
