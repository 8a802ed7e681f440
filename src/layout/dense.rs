//! Plain tensors: what a checkpoint without codes looks like.

use super::{Layout, LayoutName, MatrixSpec, Piece, Refusal, TensorSpec};
use crate::{
    checkpoint::Dtype,
    codec::{CodedRows, MatrixParameters, ScaleFormat},
};

/// The layout without codes.
pub(super) struct Dense;

impl Layout for Dense {
    fn name(&self) -> LayoutName {
        LayoutName::Dense
    }

    fn scale_format(&self, dense: Dtype) -> ScaleFormat {
        super::scale_beside(dense)
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        Err(Refusal::Format(format!(
            "layout `dense` holds no codes, but `{}` is to be encoded; choose another layout, and get dense tensors \
             from the artifact with `bantam decode`",
            matrix.name
        )))
    }

    fn tensors(&self, _matrix: &MatrixSpec) -> Vec<TensorSpec> {
        Vec::new()
    }

    fn pack(&self, _matrix: &MatrixSpec, _rows: &CodedRows) -> Vec<Piece> {
        Vec::new()
    }

    fn pack_parameters(&self, _matrix: &MatrixSpec, _parameters: &MatrixParameters) -> Vec<Piece> {
        Vec::new()
    }

    fn quantization_config(&self, _matrices: &[MatrixSpec], _dense_modules: &[String]) -> Option<serde_json::Value> {
        None
    }
}
