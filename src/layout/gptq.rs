//! GPTQ checkpoints, versions 1 and 2: `docs/formats/gptq.md`.

use serde_json::{Value, json};

use super::{
    Layout, LayoutName, MatrixSpec, Piece, Refusal, TensorSpec,
    refusal::{dividing_groups, one_format, plain_matrix, whole_words, without_activations},
    streams::{encode_scales, pack_rows, to_words, transpose, word_row},
};
use crate::{
    checkpoint::Dtype,
    codec::{CodedRows, Element, Granularity, MatrixParameters, ScaleFormat, ZeroPoint},
};

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// As zero − 1: `checkpoint_format` `gptq`, the common one.
    V1,
    /// As they are: `gptq_v2`.
    V2,
}

/// The layout.
pub(super) struct Gptq {
    pub version: Version,
}

fn bits_of(matrix: &MatrixSpec) -> u8 {
    // `accepts` lets no other element through.
    if let Element::Integer { bits } = matrix.scalar().element { bits } else { 8 }
}

fn groups_of(matrix: &MatrixSpec) -> usize {
    match matrix.scalar().granularity {
        Granularity::Group(size) => matrix.columns.div_ceil(size.max(1)),
        _ => 1,
    }
}

impl Layout for Gptq {
    fn name(&self) -> LayoutName {
        match self.version {
            Version::V1 => LayoutName::Gptq,
            Version::V2 => LayoutName::GptqV2,
        }
    }

    fn scale_format(&self, _dense: Dtype) -> ScaleFormat {
        ScaleFormat::F16
    }

    fn minimum_zero_point(&self) -> u8 {
        u8::from(self.version == Version::V1)
    }

    fn interleaves(&self, _matrix: &MatrixSpec) -> bool {
        true
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        let layout = self.name().as_str();
        plain_matrix(layout, matrix)?;
        without_activations(layout, matrix)?;
        let codec = matrix.scalar();
        match codec.element {
            Element::Integer { bits: 2 | 3 | 4 | 8 } if codec.scale == ScaleFormat::F16 => {}
            Element::Integer { bits } if codec.scale == ScaleFormat::F16 => {
                return Err(Refusal::Format(format!(
                    "layout `{layout}` has integers of 2, 3, 4 and 8 bits, not {bits} (`{}`); use layout `bantam`",
                    matrix.name
                )));
            }
            _ => {
                return Err(Refusal::Format(format!(
                    "layout `{layout}` has integers with F16 scales only (`{}`)",
                    matrix.name
                )));
            }
        }
        if codec.zero.is_float() || codec.granularity == Granularity::Tensor {
            return Err(Refusal::Format(format!(
                "layout `{layout}` has whole zero points and one scale per channel or group (`{}`)",
                matrix.name
            )));
        }
        dividing_groups(layout, matrix)?;
        whole_words(layout, matrix, "rows", matrix.rows, 32)?;
        whole_words(layout, matrix, "columns", matrix.columns, 32)
    }

    fn accepts_together(&self, matrices: &[MatrixSpec]) -> Result<(), Refusal> {
        one_format(self.name().as_str(), matrices)
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        let module = matrix.module();
        let tensor = |suffix: &str, dtype, shape| TensorSpec { name: format!("{module}.{suffix}"), dtype, shape };
        let (bits, groups) = (bits_of(matrix) as usize, groups_of(matrix));
        vec![
            tensor("qweight", Dtype::I32, vec![matrix.columns * bits / 32, matrix.rows]),
            tensor("qzeros", Dtype::I32, vec![groups, matrix.rows * bits / 32]),
            tensor("scales", Dtype::F16, vec![groups, matrix.rows]),
            tensor("g_idx", Dtype::I32, vec![matrix.columns]),
        ]
    }

    fn pack(&self, matrix: &MatrixSpec, rows: &CodedRows) -> Vec<Piece> {
        let (bits, groups) = (bits_of(matrix), groups_of(matrix));
        let row_bytes = word_row(matrix.columns, bits);
        let words = to_words(&pack_rows(&rows.codes, matrix.columns, bits, row_bytes));
        let qweight = transpose(&words, rows.rows, row_bytes / 4).into_flattened();

        let stored = self.stored_zeros(bits, rows, groups);
        let zero_bytes = word_row(rows.rows, bits);
        let qzeros = pack_rows(&transpose(&stored, rows.rows, groups), rows.rows, bits, zero_bytes);

        let scales = encode_scales(ScaleFormat::F16, &transpose(&rows.scales, rows.rows, groups));
        let first = rows.first_row;
        vec![
            Piece::strided(0, first * 4, rows.rows * 4, matrix.rows * 4, qweight),
            Piece::strided(1, first * bits as usize / 8, zero_bytes, word_row(matrix.rows, bits), qzeros),
            Piece::strided(2, first * 2, rows.rows * 2, matrix.rows * 2, scales),
        ]
    }

    fn pack_parameters(&self, matrix: &MatrixSpec, _parameters: &MatrixParameters) -> Vec<Piece> {
        let size = matrix.columns / groups_of(matrix).max(1);
        let group_of_column = (0..matrix.columns).flat_map(|column| ((column / size.max(1)) as i32).to_le_bytes());
        vec![Piece::contiguous(3, 0, group_of_column.collect())]
    }

    fn quantization_config(&self, matrices: &[MatrixSpec], dense_modules: &[String]) -> Option<Value> {
        let first = matrices.first()?;
        let group_size = match first.scalar().granularity {
            Granularity::Group(size) => size as i64,
            _ => -1,
        };
        let mut config = json!({
            "bits": bits_of(first),
            "checkpoint_format": if self.version == Version::V1 { "gptq" } else { "gptq_v2" },
            "damp_percent": 0.01,
            "desc_act": false,
            "group_size": group_size,
            "lm_head": false,
            "meta": { "quantizer": [concat!("bantam:", env!("CARGO_PKG_VERSION"))] },
            "pack_dtype": "int32",
            "quant_method": "gptq",
            "static_groups": false,
            "sym": first.scalar().zero == ZeroPoint::None,
            "true_sequential": true,
        });
        // Runtimes take every linear of a block as quantized unless told otherwise, each in its own words.
        let left_out: Vec<&String> = dense_modules.iter().filter(|module| in_a_block(module)).collect();
        if !left_out.is_empty() {
            let skipped = |module: &&String| (format!("-:^{}$", regex::escape(module)), json!({}));
            config["dynamic"] = Value::Object(left_out.iter().map(skipped).collect());
            let kept: Vec<&str> = matrices.iter().map(MatrixSpec::module).collect();
            config["modules_in_block_to_quantize"] = json!([kept]);
        }
        Some(config)
    }

    fn extra_files(&self, matrices: &[MatrixSpec], dense_modules: &[String]) -> Vec<(String, Vec<u8>)> {
        let Some(config) = self.quantization_config(matrices, dense_modules) else { return Vec::new() };
        vec![("quantize_config.json".to_owned(), format!("{config:#}\n").into_bytes())]
    }
}

impl Gptq {
    /// The zero points as stored, `[rows, groups]`.
    fn stored_zeros(&self, bits: u8, rows: &CodedRows, groups: usize) -> Vec<u8> {
        let mask = ((1u16 << bits) - 1) as u8;
        let subtracted = self.minimum_zero_point();
        let store = |zero: u8| zero.wrapping_sub(subtracted) & mask;
        if rows.zeros.is_empty() {
            return vec![store(1 << (bits - 1)); rows.rows * groups];
        }
        rows.zeros.iter().map(|&zero| store(zero as u8)).collect()
    }
}

/// Whether a module belongs to a block: its path has a number, as in `model.layers.3.mlp.up_proj`.
fn in_a_block(module: &str) -> bool {
    module.split('.').any(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}
