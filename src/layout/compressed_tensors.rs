//! compressed-tensors, the form that vLLM and transformers load: `docs/formats/compressed-tensors.md`.

use super::{
    Activations, Layout, LayoutName, MatrixSpec, Piece, Refusal, STRIPE_ALIGNMENT, TensorSpec,
    compressed_tensors_config,
    refusal::{dividing_groups, plain_matrix},
    streams::{encode_scales, pack_rows, to_words, transpose, word_row},
};
use crate::{
    checkpoint::Dtype,
    codec::{CodedRows, Element, Granularity, MatrixParameters, ScaleFormat, ZeroPoint},
};

const NAME: &str = "compressed-tensors";

/// The layout.
pub(super) struct CompressedTensors;

/// The compressed-tensors format of one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Integers of 4 or 8 bits in 32-bit words.
    PackQuantized,
    /// Signed bytes, for a runtime that multiplies in int8.
    IntQuantized,
    /// FP8 bytes.
    FloatQuantized,
    /// FP4 with E4M3 group scales.
    Nvfp4,
    /// FP4 with exponent scales.
    Mxfp4,
    /// FP8 with exponent scales.
    Mxfp8,
}

impl Scheme {
    /// Its name in `quantization_config`.
    pub(super) fn format(self) -> &'static str {
        match self {
            Self::PackQuantized => "pack-quantized",
            Self::IntQuantized => "int-quantized",
            Self::FloatQuantized => "float-quantized",
            Self::Nvfp4 => "nvfp4-pack-quantized",
            Self::Mxfp4 => "mxfp4-pack-quantized",
            Self::Mxfp8 => "mxfp8-quantized",
        }
    }

    /// The scheme of a codec, from the codec and the activations alone.
    pub(super) fn of(matrix: &MatrixSpec) -> Result<Self, Refusal> {
        let codec = matrix.scalar();
        let refuse = |what: String| Err(Refusal::Format(format!("{what} (`{}`)", matrix.name)));
        if codec.zero.is_float() {
            return refuse(format!("layout `{NAME}` has whole zero points only; use layout `bantam`"));
        }
        let float_scale = matches!(codec.scale, ScaleFormat::F32 | ScaleFormat::F16 | ScaleFormat::BF16);
        let symmetric = codec.zero == ZeroPoint::None;
        let rounded = matrix.activations != Activations::None;
        let fixed = matrix.activations == Activations::Static;
        match (codec.element, codec.granularity, codec.scale) {
            (Element::Integer { bits }, _, _) if !matches!(bits, 4 | 8) => {
                refuse(format!("layout `{NAME}` writes integers of 4 and 8 bits, not {bits}; use layout `bantam`"))
            }
            (Element::Integer { bits: 4 }, _, _) if rounded => {
                refuse(format!("layout `{NAME}` has no 4-bit weights with quantized activations; use 8 bits"))
            }
            (Element::Integer { .. }, Granularity::Channel | Granularity::Tensor, _)
                if rounded && float_scale && symmetric =>
            {
                Ok(Self::IntQuantized)
            }
            (Element::Integer { .. }, _, _) if rounded => refuse(format!(
                "layout `{NAME}` has int8 weights with quantized activations only symmetric, with one scale per \
                 channel or tensor"
            )),
            (Element::Integer { .. }, Granularity::Tensor, _) => refuse(format!(
                "layout `{NAME}` has one integer scale per tensor only with quantized activations; use granularity \
                 \"channel\", or activations \"dynamic\""
            )),
            (Element::Integer { .. }, Granularity::Channel | Granularity::Group(_), _) if float_scale => {
                Ok(Self::PackQuantized)
            }
            (element, granularity, _)
                if fixed
                    && (element != Element::Fp8E4M3
                        || !matches!(granularity, Granularity::Channel | Granularity::Tensor)) =>
            {
                refuse(format!(
                    "layout `{NAME}` has a static scale of activations only beside int8 and FP8 weights with one scale \
                     per channel or tensor; use activations \"dynamic\""
                ))
            }
            (Element::Fp8E4M3, Granularity::Group(32), ScaleFormat::E8M0) if symmetric => Ok(Self::Mxfp8),
            (Element::Fp4E2M1, Granularity::Group(32), ScaleFormat::E8M0) if symmetric => Ok(Self::Mxfp4),
            (Element::Fp4E2M1, Granularity::Group(16), ScaleFormat::E4M3OverGlobal) if symmetric => {
                if rounded {
                    return refuse(format!(
                        "layout `{NAME}` has NVFP4 with quantized activations only with a calibrated global scale; \
                         use activations \"none\""
                    ));
                }
                Ok(Self::Nvfp4)
            }
            (Element::Fp8E4M3, Granularity::Block { rows, .. }, _) if float_scale && symmetric => {
                if rows == 0 || !STRIPE_ALIGNMENT.is_multiple_of(rows) {
                    return refuse(format!("layout `{NAME}` has blocks of rows that divide 128, not {rows}"));
                }
                Ok(Self::FloatQuantized)
            }
            (Element::Fp8E4M3, Granularity::Channel | Granularity::Tensor, _) if float_scale && symmetric => {
                Ok(Self::FloatQuantized)
            }
            _ => refuse(format!("layout `{NAME}` has no such number format; use layout `bantam`")),
        }
    }
}

/// Index of the input's scale among the tensors of a matrix, behind codes and scales.
const INPUT_SCALE: usize = 2;

/// Rows and columns of the scale tensor.
fn scale_shape(matrix: &MatrixSpec) -> Vec<usize> {
    match matrix.scalar().granularity {
        Granularity::Tensor => vec![1],
        Granularity::Channel => vec![matrix.rows, 1],
        Granularity::Group(size) => vec![matrix.rows, matrix.columns.div_ceil(size)],
        Granularity::Block { rows, columns } => vec![matrix.rows.div_ceil(rows), matrix.columns.div_ceil(columns)],
    }
}

impl Layout for CompressedTensors {
    fn name(&self) -> LayoutName {
        LayoutName::CompressedTensors
    }

    fn scale_format(&self, dense: Dtype) -> ScaleFormat {
        super::scale_beside(dense)
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        plain_matrix(NAME, matrix)?;
        let scheme = Scheme::of(matrix)?;
        match matrix.scalar().granularity {
            Granularity::Block { columns, .. } => {
                // The runtime cuts activations into groups as wide as a block, and those must come out even.
                if matrix.activations == Activations::Dynamic && !matrix.columns.is_multiple_of(columns) {
                    return Err(Refusal::Shape(format!(
                        "`{}` has {} columns, which blocks of {columns} do not divide, as quantized activations need",
                        matrix.name, matrix.columns
                    )));
                }
            }
            _ => {
                dividing_groups(NAME, matrix)?;
            }
        }
        if scheme == Scheme::PackQuantized && i64::try_from(matrix.rows.max(matrix.columns)).is_err() {
            return Err(Refusal::Shape(format!("`{}` is too large for an I64 shape", matrix.name)));
        }
        Ok(())
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        let module = matrix.module();
        let tensor = |suffix: &str, dtype, shape| TensorSpec { name: format!("{module}.{suffix}"), dtype, shape };
        let (rows, columns) = (matrix.rows, matrix.columns);
        let scale = tensor("weight_scale", matrix.scalar().scale.into(), scale_shape(matrix));
        let input_scale = (matrix.activations == Activations::Static)
            .then(|| tensor("input_scale", matrix.scalar().scale.into(), vec![1]));
        match (Scheme::of(matrix), matrix.scalar().element) {
            (Ok(Scheme::PackQuantized), Element::Integer { bits }) => {
                let mut list = vec![
                    tensor("weight_packed", Dtype::I32, vec![rows, word_row(columns, bits) / 4]),
                    scale,
                    tensor("weight_shape", Dtype::I64, vec![2]),
                ];
                if matrix.scalar().zero == ZeroPoint::Integer {
                    let words = word_row(rows, bits) / 4;
                    list.push(tensor("weight_zero_point", Dtype::I32, vec![words, scale_shape(matrix)[1]]));
                }
                list
            }
            (Ok(Scheme::IntQuantized), _) => {
                [tensor("weight", Dtype::I8, vec![rows, columns]), scale].into_iter().chain(input_scale).collect()
            }
            (Ok(Scheme::Mxfp4), _) => vec![tensor("weight_packed", Dtype::U8, vec![rows, columns / 2]), scale],
            (Ok(Scheme::Nvfp4), _) => vec![
                tensor("weight_packed", Dtype::U8, vec![rows, columns / 2]),
                scale,
                tensor("weight_global_scale", Dtype::F32, vec![1]),
            ],
            // The plan asks only for what `accepts` lets through; what is left are the FP8 bytes.
            _ => {
                [tensor("weight", Dtype::F8_E4M3, vec![rows, columns]), scale].into_iter().chain(input_scale).collect()
            }
        }
    }

    fn pack(&self, matrix: &MatrixSpec, rows: &CodedRows) -> Vec<Piece> {
        let codec = matrix.scalar();
        let (bits, flip) = match (codec.element, matrix.activations) {
            // Stored as a signed byte: the offset of 128 is the sign bit.
            (Element::Integer { .. }, Activations::Dynamic | Activations::Static) => (8, 0x80),
            (Element::Integer { bits }, Activations::None) => (bits, 0),
            (Element::Fp8E4M3, _) => (8, 0),
            (Element::Fp4E2M1, _) => (4, 0),
        };
        let words = matches!(codec.element, Element::Integer { .. }) && flip == 0;
        let columns = matrix.columns;
        let row_bytes = if words { word_row(columns, bits) } else { columns * bits as usize / 8 };
        let mut packed = pack_rows(&rows.codes, columns, bits, row_bytes);
        if flip != 0 {
            for code in &mut packed {
                *code ^= flip;
            }
        }
        let mut pieces = vec![Piece::contiguous(0, rows.first_row * row_bytes, packed)];
        if codec.granularity == Granularity::Tensor {
            return pieces;
        }
        let groups = scale_shape(matrix)[1];
        let scale_row = match codec.granularity {
            Granularity::Block { rows: block, .. } => rows.first_row / block,
            _ => rows.first_row,
        };
        let scales = encode_scales(codec.scale, &rows.scales);
        let scale_bytes = crate::checkpoint::bits_of(codec.scale.into()) / 8;
        pieces.push(Piece::contiguous(1, scale_row * groups * scale_bytes, scales));
        if codec.zero == ZeroPoint::Integer {
            let zeros: Vec<u8> = rows.zeros.iter().map(|&zero| zero as u8).collect();
            // Packed along the rows, so the stream of each group is made first and then turned.
            let along_rows =
                pack_rows(&transpose(&zeros, rows.rows, groups), rows.rows, bits, word_row(rows.rows, bits));
            let words = transpose(&to_words(&along_rows), groups, word_row(rows.rows, bits) / 4);
            let offset = rows.first_row * bits as usize / 32 * groups * 4;
            pieces.push(Piece::contiguous(3, offset, words.into_flattened()));
        }
        pieces
    }

    fn pack_parameters(&self, matrix: &MatrixSpec, parameters: &MatrixParameters) -> Vec<Piece> {
        match Scheme::of(matrix) {
            Ok(Scheme::PackQuantized) => {
                let shape = [matrix.rows, matrix.columns].map(|length| (length as i64).to_le_bytes());
                vec![Piece::contiguous(2, 0, shape.concat())]
            }
            Ok(Scheme::Nvfp4) => {
                let global = parameters.tensor_scale.unwrap_or(1.0);
                vec![Piece::contiguous(2, 0, global.to_le_bytes().to_vec())]
            }
            _ if matrix.scalar().granularity == Granularity::Tensor => {
                let scale = parameters.tensor_scale.unwrap_or(1.0);
                vec![Piece::contiguous(1, 0, encode_scales(matrix.scalar().scale, &[scale]))]
            }
            _ => Vec::new(),
        }
    }

    fn pack_input_scale(&self, matrix: &MatrixSpec, scale: f32) -> Vec<Piece> {
        vec![Piece::contiguous(INPUT_SCALE, 0, encode_scales(matrix.scalar().scale, &[scale]))]
    }

    fn quantization_config(&self, matrices: &[MatrixSpec], dense_modules: &[String]) -> Option<serde_json::Value> {
        compressed_tensors_config::write(matrices, dense_modules)
    }
}
