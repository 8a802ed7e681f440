//! Our own layout, for what no runtime has: `docs/formats/bantam.md` tells it byte by byte.

use serde_json::{Map, Value, json};

use super::{
    Layout, LayoutName, MatrixSpec, Minima, Piece, Refusal, STRIPE_ALIGNMENT, TensorSpec,
    latent_cache::{self, CachePolicy, agree},
    refusal::without_input_scale,
    streams::{byte_row, encode_scales, pack_rows},
};
use crate::{
    checkpoint::{Dtype, bits_of},
    codec::{
        Codec, CodedRows, Coding, Granularity, MatrixParameters, ScaleFormat, StoredMatrix, Whole, ZeroPoint,
        stored_name,
    },
};

/// Version of the form; readers refuse later ones.
pub(super) const VERSION: u64 = 1;

/// Version of the form where a matrix is rotated or its codes are of the whole matrix, which readers of version 1 would
/// take for something else.
pub(super) const VERSION_WHOLE: u64 = 2;

/// Widest matrix whose outlier columns fit 16 bits.
const NARROW_COLUMNS: usize = 1 << 16;

/// The layout.
pub(super) struct Bantam;

/// The type of outlier values: the scales' own where that is a float type.
pub(super) fn outlier_value_type(scale: ScaleFormat) -> Dtype {
    match scale {
        ScaleFormat::F16 => Dtype::F16,
        ScaleFormat::BF16 => Dtype::BF16,
        ScaleFormat::F32 | ScaleFormat::E8M0 | ScaleFormat::E4M3OverGlobal => Dtype::F32,
    }
}

/// The type of outlier columns: 16 bits hold the columns of most matrices (as signed numbers, which every reader has).
pub(super) fn outlier_column_type(columns: usize) -> Dtype {
    if columns <= NARROW_COLUMNS { Dtype::I16 } else { Dtype::I32 }
}

/// The leading dimensions of a tensor with one entry per row.
pub(super) fn per_row(experts: Option<usize>, rows: usize, last: usize) -> Vec<usize> {
    match experts {
        Some(experts) => vec![experts, rows / experts.max(1), last],
        None => vec![rows, last],
    }
}

/// The shape of the scales. Blocks may reach over experts, so theirs have no dimension of experts.
pub(super) fn scale_shape(experts: Option<usize>, rows: usize, codec: &Codec, last: usize) -> Vec<usize> {
    match codec.granularity {
        Granularity::Block { .. } => vec![codec.scale_rows(rows), last],
        _ => per_row(experts, rows, last),
    }
}

/// Which tensors a codec asks for, in the order of their indices.
struct Parts {
    tensors: Vec<TensorSpec>,
    scales: Option<usize>,
    zeros: Option<usize>,
    tensor_scale: Option<usize>,
    tensor_zero: Option<usize>,
    outliers: Option<usize>,
}

/// Codebooks are stored once.
fn is_stored(matrix: &MatrixSpec, whole: &Whole, suffix: &str) -> bool {
    matrix.codebook_of.is_none() || !whole.is_codebook(suffix)
}

/// The tensors of codes of the whole matrix, one after the other for each expert.
pub(super) fn whole_tensors(matrix: &MatrixSpec, whole: &Whole) -> Vec<TensorSpec> {
    let stored = whole.tensors(matrix.expert_rows(), matrix.columns).into_iter();
    let stored = stored.filter(|stored| is_stored(matrix, whole, stored.suffix));
    stored
        .map(|stored| TensorSpec {
            name: stored_name(&matrix.name, stored.suffix),
            dtype: stored.dtype,
            shape: matrix.experts.into_iter().chain(stored.shape).collect(),
        })
        .collect()
}

fn parts(matrix: &MatrixSpec) -> Parts {
    let codec = matrix.scalar();
    let bits = codec.codec_bits();
    let groups = codec.groups_per_row(matrix.columns);
    let whole = codec.granularity == Granularity::Tensor;
    let mut tensors = Vec::new();
    let mut add = |suffix: &str, dtype, shape| {
        tensors.push(TensorSpec { name: format!("{}.{suffix}", matrix.name), dtype, shape });
        Some(tensors.len() - 1)
    };
    add("codes", Dtype::U8, per_row(matrix.experts, matrix.rows, byte_row(matrix.columns, bits)));
    let shape = |last| scale_shape(matrix.experts, matrix.rows, codec, last);
    let scales = if whole { None } else { add("scales", codec.scale.into(), shape(groups)) };
    let zeros = match codec.zero {
        _ if whole => None,
        ZeroPoint::None => None,
        ZeroPoint::Integer => add("zeros", Dtype::U8, shape(byte_row(groups, bits))),
        ZeroPoint::Float | ZeroPoint::Minimum => add("zeros", codec.scale.into(), shape(groups)),
    };
    let global = whole || codec.scale == ScaleFormat::E4M3OverGlobal;
    let tensor_scale = if global { add("tensor_scale", Dtype::F32, vec![1]) } else { None };
    let asymmetric = whole && codec.zero != ZeroPoint::None;
    let tensor_zero = if asymmetric { add("tensor_zero", Dtype::F32, vec![1]) } else { None };
    let outliers = codec.outliers.and_then(|outliers| {
        let count = outliers.count as usize;
        let first = add("outlier_row_starts", Dtype::I32, vec![matrix.rows + 1]);
        add("outlier_columns", outlier_column_type(matrix.columns), vec![count]);
        add("outlier_values", outlier_value_type(codec.scale), vec![count]);
        first
    });
    Parts { tensors, scales, zeros, tensor_scale, tensor_zero, outliers }
}

impl Layout for Bantam {
    fn name(&self) -> LayoutName {
        LayoutName::Bantam
    }

    fn scale_format(&self, dense: Dtype) -> ScaleFormat {
        super::scale_beside(dense)
    }

    fn float_zero_allowed(&self) -> bool {
        true
    }

    fn minima(&self) -> Minima {
        Minima::WhereAsked
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        without_input_scale("bantam", matrix)?;
        if let Err(error) = matrix.codec.validate(matrix.rows, matrix.columns) {
            return Err(Refusal::Format(format!("`{}`: {error}", matrix.name)));
        }
        if matrix.rows == 0 || matrix.columns == 0 {
            return Err(Refusal::Shape(format!("`{}` has no weights", matrix.name)));
        }
        if matrix.experts.is_some_and(|experts| experts == 0 || !matrix.rows.is_multiple_of(experts)) {
            return Err(Refusal::Shape(format!("the experts of `{}` do not divide its rows", matrix.name)));
        }
        if matrix.codec.whole().is_some_and(Whole::is_difference) {
            return Err(Refusal::Format(format!(
                "layout `bantam` holds whole weights, but `{}` is to be a difference; use layout `delta`",
                matrix.name
            )));
        }
        let Some(codec) = matrix.codec.scalar() else { return Ok(()) };
        let of_all_experts = codec.granularity == Granularity::Tensor || codec.scale == ScaleFormat::E4M3OverGlobal;
        if matrix.rotations.is_some() && matrix.experts.is_some() && of_all_experts {
            return Err(Refusal::Format(format!(
                "layout `bantam` has no rotated experts that share one scale (`{}`)",
                matrix.name
            )));
        }
        if let Granularity::Block { .. } = codec.granularity
            && matrix.rotations.is_some()
        {
            return Err(Refusal::Format(format!("layout `bantam` has no rotated blocks (`{}`)", matrix.name)));
        }
        if let Granularity::Block { rows, .. } = codec.granularity
            && !STRIPE_ALIGNMENT.is_multiple_of(rows)
        {
            return Err(Refusal::Format(format!(
                "layout `bantam` has blocks of rows that divide {STRIPE_ALIGNMENT}, not {rows} (`{}`)",
                matrix.name
            )));
        }
        match codec.outliers {
            Some(outliers) if outliers.count > i32::MAX as u64 => Err(Refusal::Format(format!(
                "layout `bantam` keeps at most {} weights exact in a matrix, not {} (`{}`)",
                i32::MAX,
                outliers.count,
                matrix.name
            ))),
            _ => Ok(()),
        }
    }

    fn accepts_together(&self, matrices: &[MatrixSpec]) -> Result<(), Refusal> {
        agree(matrices)
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        match &matrix.codec {
            Coding::Scalar(_) => parts(matrix).tensors,
            Coding::Whole(whole) => whole_tensors(matrix, whole),
        }
    }

    fn pack_whole(&self, matrix: &MatrixSpec, expert: usize, stored: StoredMatrix) -> Vec<Piece> {
        let Some(whole) = matrix.codec.whole() else { return Vec::new() };
        let tensors = whole.tensors(matrix.expert_rows(), matrix.columns).into_iter();
        let stored = tensors.zip(stored).filter(|(tensor, _)| is_stored(matrix, whole, tensor.suffix));
        let pieces = stored.map(|(_, bytes)| bytes).enumerate();
        pieces.map(|(index, bytes)| Piece::contiguous(index, expert * bytes.len(), bytes)).collect()
    }

    fn pack(&self, matrix: &MatrixSpec, rows: &CodedRows) -> Vec<Piece> {
        let codec = matrix.scalar();
        let parts = parts(matrix);
        let bits = codec.codec_bits();
        let row_bytes = byte_row(matrix.columns, bits);
        let codes = pack_rows(&rows.codes, matrix.columns, bits, row_bytes);
        let mut pieces = vec![Piece::contiguous(0, rows.first_row * row_bytes, codes)];
        let groups = codec.groups_per_row(matrix.columns);
        let scale_row = codec.scale_row_range(rows.first_row, rows.rows).start;
        let scale_bytes = bits_of(codec.scale.into()) / 8;
        if let Some(index) = parts.scales {
            let scales = encode_scales(codec.scale, &rows.scales);
            pieces.push(Piece::contiguous(index, scale_row * groups * scale_bytes, scales));
        }
        if let Some(index) = parts.zeros {
            let (zero_row, zeros) = if codec.zero.is_float() {
                (groups * scale_bytes, encode_scales(codec.scale, &rows.zeros))
            } else {
                let whole: Vec<u8> = rows.zeros.iter().map(|&zero| zero as u8).collect();
                let zero_row = byte_row(groups, bits);
                (zero_row, pack_rows(&whole, groups, bits, zero_row))
            };
            pieces.push(Piece::contiguous(index, scale_row * zero_row, zeros));
        }
        pieces
    }

    fn pack_parameters(&self, matrix: &MatrixSpec, parameters: &MatrixParameters) -> Vec<Piece> {
        let parts = parts(matrix);
        let mut pieces = Vec::new();
        let mut number = |index: Option<usize>, value: Option<f32>, absent: f32| {
            if let Some(index) = index {
                pieces.push(Piece::contiguous(index, 0, value.unwrap_or(absent).to_le_bytes().to_vec()));
            }
        };
        number(parts.tensor_scale, parameters.tensor_scale, 1.0);
        number(parts.tensor_zero, parameters.tensor_zero, matrix.scalar().implied_zero());
        if let (Some(index), Some(outliers)) = (parts.outliers, &parameters.outliers) {
            let starts = outliers.row_starts.iter().flat_map(|start| start.to_le_bytes()).collect();
            let columns = match outlier_column_type(matrix.columns) {
                Dtype::I16 => outliers.columns.iter().flat_map(|&column| (column as u16).to_le_bytes()).collect(),
                _ => outliers.columns.iter().flat_map(|column| column.to_le_bytes()).collect(),
            };
            let format = match outlier_value_type(matrix.scalar().scale) {
                Dtype::F16 => ScaleFormat::F16,
                Dtype::BF16 => ScaleFormat::BF16,
                _ => ScaleFormat::F32,
            };
            pieces.push(Piece::contiguous(index, 0, starts));
            pieces.push(Piece::contiguous(index + 1, 0, columns));
            pieces.push(Piece::contiguous(index + 2, 0, encode_scales(format, &outliers.values)));
        }
        pieces
    }

    fn quantization_config(&self, matrices: &[MatrixSpec], _dense_modules: &[String]) -> Option<Value> {
        if matrices.is_empty() {
            return None;
        }
        let groups = groups(matrices);
        let whole = |matrix: &MatrixSpec| matrix.is_whole();
        let version = if matrices.iter().any(whole) { VERSION_WHOLE } else { VERSION };
        let mut config = json!({ "groups": groups, "quant_method": "bantam", "version": version });
        if let Some(policy) = CachePolicy::of_matrices(matrices, 0) {
            config[latent_cache::KEY] = policy.to_json();
        }
        Some(config)
    }
}

/// The matrices by number format, as readers find them in the configuration.
pub(super) fn groups(matrices: &[MatrixSpec]) -> Vec<Value> {
    // The number of outliers differs from matrix to matrix; it stands in the tensors' shapes.
    let mut groups: Vec<(Value, Map<String, Value>)> = Vec::new();
    let mut codebooks: Vec<Map<String, Value>> = Vec::new();
    for matrix in matrices {
        let (name, outliers, scale) = match &matrix.codec {
            Coding::Scalar(codec) => {
                let name = Codec { outliers: None, ..codec.clone() }.name();
                (name, codec.outliers.is_some(), Dtype::from(codec.scale))
            }
            Coding::Whole(whole) => (whole.name(), false, whole.float_dtype()),
        };
        let mut key = json!({
            "activations": matrix.activations,
            "codec": name,
            "dtype": matrix.dense_dtype,
            "outliers": outliers,
            "scale_dtype": scale,
            "transposed": matrix.transposed,
        });
        if let Some(rotations) = &matrix.rotations {
            key["rotations"] = json!(rotations);
        }
        let shape = json!(dense_shape(matrix));
        let at = groups.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            groups.push((key, Map::new()));
            codebooks.push(Map::new());
            groups.len() - 1
        });
        groups[at].1.insert(matrix.name.clone(), shape);
        if let Some(owner) = &matrix.codebook_of {
            codebooks[at].insert(matrix.name.clone(), json!(owner));
        }
    }
    groups
        .into_iter()
        .zip(codebooks)
        .map(|((mut group, tensors), codebooks)| {
            group["tensors"] = Value::Object(tensors);
            if !codebooks.is_empty() {
                group["codebooks"] = Value::Object(codebooks);
            }
            group
        })
        .collect()
}

/// The shape of the dense tensor as it would be stored.
pub(super) fn dense_shape(matrix: &MatrixSpec) -> Vec<usize> {
    let mut shape = per_row(matrix.experts, matrix.rows, matrix.columns);
    if matrix.transposed {
        let last = shape.len() - 1;
        shape.swap(last - 1, last);
    }
    shape
}
