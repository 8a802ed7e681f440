//! AWQ, version GEMM: `docs/formats/awq.md`.

use serde_json::{Value, json};

use super::{
    Layout, LayoutName, MatrixSpec, Piece, Refusal, TensorSpec,
    refusal::{dividing_groups, one_format, plain_matrix, whole_words, without_activations},
    streams::{encode_scales, transpose},
};
use crate::{
    checkpoint::Dtype,
    codec::{CodedRows, Element, Granularity, MatrixParameters, ScaleFormat},
};

const NAME: &str = "awq";

/// Nibble n of a word holds output column 8·w + `ORDER[n]`: the order in which the format's kernel unpacks.
pub(super) const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The layout.
pub(super) struct Awq;

fn groups_of(matrix: &MatrixSpec) -> usize {
    match matrix.scalar().granularity {
        Granularity::Group(size) => matrix.columns.div_ceil(size.max(1)),
        _ => 1,
    }
}

/// Words `[width, rows / 8]` from values `[rows, width]` below 16.
fn pack_words(values: &[u8], rows: usize, width: usize) -> Vec<u8> {
    let word_columns = rows / 8;
    let mut words = vec![[0u8; 4]; width * word_columns];
    for word_column in 0..word_columns {
        let source = |nibble: usize| &values[(word_column * 8 + ORDER[nibble]) * width..][..width];
        let lanes: [&[u8]; 8] = std::array::from_fn(source);
        for index in 0..width {
            let pair = |low: usize| lanes[low][index] | lanes[low + 1][index] << 4;
            words[index * word_columns + word_column] = [pair(0), pair(2), pair(4), pair(6)];
        }
    }
    words.into_flattened()
}

impl Layout for Awq {
    fn name(&self) -> LayoutName {
        LayoutName::Awq
    }

    fn scale_format(&self, _dense: Dtype) -> ScaleFormat {
        ScaleFormat::F16
    }

    fn interleaves(&self, _matrix: &MatrixSpec) -> bool {
        true
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        plain_matrix(NAME, matrix)?;
        without_activations(NAME, matrix)?;
        let codec = matrix.scalar();
        if codec.element != (Element::Integer { bits: 4 }) || codec.scale != ScaleFormat::F16 {
            return Err(Refusal::Format(format!(
                "layout `{NAME}` has integers of 4 bits with F16 scales only (`{}`); use layout `gptq` or `bantam`",
                matrix.name
            )));
        }
        if codec.zero.is_float() || codec.granularity == Granularity::Tensor {
            return Err(Refusal::Format(format!(
                "layout `{NAME}` has whole zero points and one scale per channel or group (`{}`)",
                matrix.name
            )));
        }
        dividing_groups(NAME, matrix)?;
        whole_words(NAME, matrix, "rows", matrix.rows, 8)
    }

    fn accepts_together(&self, matrices: &[MatrixSpec]) -> Result<(), Refusal> {
        one_format(NAME, matrices)
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        let module = matrix.module();
        let tensor = |suffix: &str, dtype, shape| TensorSpec { name: format!("{module}.{suffix}"), dtype, shape };
        let groups = groups_of(matrix);
        vec![
            tensor("qweight", Dtype::I32, vec![matrix.columns, matrix.rows / 8]),
            tensor("qzeros", Dtype::I32, vec![groups, matrix.rows / 8]),
            tensor("scales", Dtype::F16, vec![groups, matrix.rows]),
        ]
    }

    fn pack(&self, matrix: &MatrixSpec, rows: &CodedRows) -> Vec<Piece> {
        let groups = groups_of(matrix);
        let zeros: Vec<u8> = match rows.zeros.len() {
            0 => vec![8; rows.rows * groups],
            _ => rows.zeros.iter().map(|&zero| zero as u8).collect(),
        };
        let scales = encode_scales(ScaleFormat::F16, &transpose(&rows.scales, rows.rows, groups));
        let (first, count, all) = (rows.first_row, rows.rows, matrix.rows);
        vec![
            Piece::strided(0, first / 2, count / 2, all / 2, pack_words(&rows.codes, count, matrix.columns)),
            Piece::strided(1, first / 2, count / 2, all / 2, pack_words(&zeros, count, groups)),
            Piece::strided(2, first * 2, count * 2, all * 2, scales),
        ]
    }

    fn pack_parameters(&self, _matrix: &MatrixSpec, _parameters: &MatrixParameters) -> Vec<Piece> {
        Vec::new()
    }

    fn quantization_config(&self, matrices: &[MatrixSpec], dense_modules: &[String]) -> Option<Value> {
        let first = matrices.first()?;
        let group_size = match first.scalar().granularity {
            Granularity::Group(size) => size as i64,
            _ => -1,
        };
        Some(json!({
            "bits": 4,
            "group_size": group_size,
            "modules_to_not_convert": if dense_modules.is_empty() { Value::Null } else { json!(dense_modules) },
            "quant_method": "awq",
            "version": "gemm",
            // Zero points are always stored; a symmetric matrix has 8 in each.
            "zero_point": true,
        }))
    }
}
