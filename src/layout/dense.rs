//! Plain tensors: what a checkpoint without codes looks like.

use super::{Activations, Layout, LayoutName, MaskedForm, MatrixSpec, Piece, Refusal, TensorSpec, bantam::dense_shape};
use crate::{
    checkpoint::{Dtype, encode_from_f32},
    codec::{CodedRows, Coding, MatrixParameters, ScaleFormat, StoredMatrix, Whole},
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
        let plain = matrix.rotations.is_none() && matrix.activations == Activations::None;
        if plain && matches!(matrix.codec, Coding::Whole(Whole::Sparse(_) | Whole::Factors(_))) {
            let checked = matrix.codec.validate(matrix.expert_rows(), matrix.columns);
            return checked.map_err(|error| Refusal::Format(format!("`{}`: {error}", matrix.name)));
        }
        Err(Refusal::Format(format!(
            "layout `dense` holds no codes, but `{}` is to be encoded; choose another layout, and get dense tensors \
             from the artifact with `bantam decode`",
            matrix.name
        )))
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        vec![TensorSpec { name: matrix.name.clone(), dtype: matrix.dense_dtype, shape: dense_shape(matrix) }]
    }

    fn masked_form(&self) -> MaskedForm {
        MaskedForm::Dense
    }

    fn reads_back(&self, _matrix: &MatrixSpec) -> Option<Coding> {
        None
    }

    fn pack_whole(&self, matrix: &MatrixSpec, expert: usize, stored: StoredMatrix) -> Vec<Piece> {
        let (rows, columns) = (matrix.expert_rows(), matrix.columns);
        let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
        let decoded = matrix.codec.whole().and_then(|whole| whole.decode(rows, columns, &stored).ok());
        // What is missing then is found when the unit is closed.
        let Some(mut values) = decoded else { return Vec::new() };
        if matrix.transposed {
            values = super::streams::transpose(&values, rows, columns);
        }
        let mut bytes = Vec::new();
        encode_from_f32(matrix.dense_dtype, &values, &mut bytes);
        vec![Piece::contiguous(0, expert * bytes.len(), bytes)]
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
