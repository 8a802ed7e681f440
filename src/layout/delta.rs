//! Differences from a base: `docs/formats/delta.md` tells it byte by byte.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Layout, LayoutName, MatrixSpec, Piece, Refusal, TensorSpec,
    bantam::{groups, whole_tensors},
    refusal::without_activations,
};
use crate::{
    checkpoint::Dtype,
    codec::{CodedRows, MatrixParameters, ScaleFormat, StoredMatrix, Whole},
};

/// Version of the form; readers refuse others.
pub(super) const VERSION: u64 = 1;

/// `quant_method` of the form.
pub(super) const METHOD: &str = "bantam-delta";

/// The layout.
pub(super) struct DeltaLayout;

/// Type and shape of a tensor of which the base has all values, or most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseTensor {
    /// Element type, of both.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
}

/// The tensors that are read from the base, by name: a part of `quantization_config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseTensors {
    /// Those that are the base's, byte for byte. Nothing of them is stored.
    #[serde(default)]
    pub same: BTreeMap<String, BaseTensor>,
    /// Those of which some rows are stored, and all others are the base's.
    #[serde(default)]
    pub rows: BTreeMap<String, BaseTensor>,
}

impl BaseTensors {
    /// The stored tensors of one of which `count` rows are stored: which rows, ascending, and their values.
    #[must_use]
    pub fn stored_rows(name: &str, dtype: Dtype, shape: &[usize], count: usize) -> Vec<TensorSpec> {
        let columns = shape.last().copied().unwrap_or(1);
        let spec = |suffix: &str, dtype, shape| TensorSpec { name: format!("{name}.{suffix}"), dtype, shape };
        vec![spec("row_indices", Dtype::I64, vec![count]), spec("row_values", dtype, vec![count, columns])]
    }

    /// Adds itself to the layout's configuration.
    pub fn add_to(&self, config: &mut Value) {
        config["same"] = json!(self.same);
        config["rows"] = json!(self.rows);
    }
}

impl Layout for DeltaLayout {
    fn name(&self) -> LayoutName {
        LayoutName::Delta
    }

    fn scale_format(&self, _dense: Dtype) -> ScaleFormat {
        ScaleFormat::F32
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        without_activations("delta", matrix)?;
        if !matrix.codec.whole().is_some_and(Whole::is_difference) || matrix.rotations.is_some() {
            return Err(Refusal::Format(format!(
                "layout `delta` has differences from a base only, but `{}` is to be something else",
                matrix.name
            )));
        }
        if matrix.rows == 0 || matrix.columns == 0 {
            return Err(Refusal::Shape(format!("`{}` has no weights", matrix.name)));
        }
        if matrix.experts.is_some_and(|experts| experts == 0 || !matrix.rows.is_multiple_of(experts)) {
            return Err(Refusal::Shape(format!("the experts of `{}` do not divide its rows", matrix.name)));
        }
        matrix
            .codec
            .validate(matrix.rows, matrix.columns)
            .map_err(|error| Refusal::Format(format!("`{}`: {error}", matrix.name)))
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        matrix.codec.whole().map_or_else(Vec::new, |whole| whole_tensors(matrix, whole))
    }

    fn pack_whole(&self, _matrix: &MatrixSpec, expert: usize, stored: StoredMatrix) -> Vec<Piece> {
        let pieces = stored.into_iter().enumerate();
        pieces.map(|(index, bytes)| Piece::contiguous(index, expert * bytes.len(), bytes)).collect()
    }

    fn pack(&self, _matrix: &MatrixSpec, _rows: &CodedRows) -> Vec<Piece> {
        Vec::new()
    }

    fn pack_parameters(&self, _matrix: &MatrixSpec, _parameters: &MatrixParameters) -> Vec<Piece> {
        Vec::new()
    }

    // Also where there is no matrix: the other tensors may be the base's.
    fn quantization_config(&self, matrices: &[MatrixSpec], _dense_modules: &[String]) -> Option<Value> {
        Some(json!({ "groups": groups(matrices), "quant_method": METHOD, "version": VERSION }))
    }
}
