//! Finds the matrices of our own layout, which its configuration lists.

use serde_json::Value;

use super::{
    Found, Parts,
    codes::Codes,
    config::QuantizationConfig,
    expanded,
    matrix::{CodedMatrix, OutlierEntries},
    parts::{addressable, elements, expect_shape, expect_type, shape_error},
    scales::{Scales, Zeros},
    whole::{WholeCodes, WholeMatrix},
};
use crate::{
    checkpoint::{Checkpoint, Dtype},
    codec::{Codec, Coding, Granularity, OutlierCount, Rotations, ScaleFormat, Whole, ZeroPoint, stored_name},
    layout::{
        LayoutError,
        bantam::{VERSION, VERSION_WHOLE, outlier_column_type, outlier_value_type, per_row, scale_shape},
        streams::byte_row,
    },
};

/// One entry of `groups`: matrices in the same codec.
#[derive(serde::Deserialize)]
struct Group {
    codec: String,
    scale_dtype: Dtype,
    dtype: Dtype,
    outliers: bool,
    transposed: bool,
    #[serde(default)]
    rotations: Option<Rotations>,
    /// The matrix whose codebooks each of these has.
    #[serde(default)]
    codebooks: std::collections::BTreeMap<String, String>,
    tensors: std::collections::BTreeMap<String, Vec<usize>>,
}

pub(super) fn find(checkpoint: &Checkpoint, config: &QuantizationConfig) -> Result<Vec<Found>, LayoutError> {
    let wrong = |key: String, message: String| LayoutError::Config { key, message };
    let version = &config.value["version"];
    if !matches!(version.as_u64(), Some(VERSION | VERSION_WHOLE)) {
        let message = format!("is {version}; this bantam reads versions {VERSION} and {VERSION_WHOLE}");
        return Err(wrong("version".to_owned(), message));
    }
    find_groups(checkpoint, config, "bantam")
}

/// The matrices of the list `groups`; those of format `delta` are differences, and those of others are not.
pub(super) fn find_groups(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    format: &'static str,
) -> Result<Vec<Found>, LayoutError> {
    let wrong = |key: String, message: String| LayoutError::Config { key, message };
    let Value::Array(groups) = &config.value["groups"] else {
        return Err(wrong("groups".to_owned(), "is missing; expected a list".to_owned()));
    };
    let mut found = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let group: Group = serde_json::from_value(group.clone())
            .map_err(|error| wrong(format!("groups.{index}"), error.to_string()))?;
        let float_scale = match group.scale_dtype {
            Dtype::F16 => ScaleFormat::F16,
            Dtype::BF16 => ScaleFormat::BF16,
            _ => ScaleFormat::F32,
        };
        let coding = Coding::parse_name(&group.codec, float_scale)
            .filter(|coding| {
                let stored = match coding {
                    Coding::Scalar(codec) => codec.scale.into(),
                    Coding::Whole(whole) => whole.float_dtype(),
                };
                let is_difference = coding.whole().is_some_and(Whole::is_difference);
                stored == group.scale_dtype && is_difference == (format == "delta")
            })
            .ok_or_else(|| {
                let Group { codec, scale_dtype, .. } = &group;
                wrong(
                    format!("groups.{index}.codec"),
                    format!("is `{codec}` with {scale_dtype:?} scales, which is none"),
                )
            })?;
        for (name, shape) in &group.tensors {
            let matrix = match &coding {
                Coding::Scalar(codec) => find_matrix(checkpoint, &group, codec, name, shape, index)?,
                Coding::Whole(whole) => find_whole(checkpoint, &group, whole, (name, format), shape, index)?,
            };
            if let Coding::Whole(Whole::Taylor(taylor)) = &coding {
                let (_, _, columns) = lengths(&group, shape).unwrap_or_default();
                found.extend(expanded::gates(checkpoint, taylor, name, columns)?);
            }
            found.push(matrix.rotated(group.rotations));
        }
    }
    Ok(found)
}

/// Experts, rows and columns of one matrix, from the shape of the dense tensor.
fn lengths(group: &Group, dense_shape: &[usize]) -> Result<(Option<usize>, usize, usize), String> {
    let (experts, [mut rows, mut columns]) = match *dense_shape {
        [rows, columns] => (None, [rows, columns]),
        [experts, rows, columns] => (Some(experts), [rows, columns]),
        _ => return Err(format!("is {dense_shape:?}; expected two or three lengths")),
    };
    if group.transposed {
        std::mem::swap(&mut rows, &mut columns);
    }
    if rows == 0 || columns == 0 || experts == Some(0) {
        return Err(format!("is {dense_shape:?}; expected lengths above 0"));
    }
    Ok((experts, rows, columns))
}

fn find_whole(
    checkpoint: &Checkpoint,
    group: &Group,
    whole: &Whole,
    (name, format): (&str, &'static str),
    dense_shape: &[usize],
    index: usize,
) -> Result<Found, LayoutError> {
    let wrong = |message: String| LayoutError::Config { key: format!("groups.{index}.tensors.{name}"), message };
    let (experts, rows, columns) = lengths(group, dense_shape).map_err(wrong)?;
    let overflow = || format!("is {dense_shape:?}, too large to be a matrix");
    let weights = rows.checked_mul(columns).and_then(|weights| weights.checked_mul(experts.unwrap_or(1)));
    weights.filter(|&weights| weights < usize::MAX / 64).ok_or_else(|| wrong(overflow()))?;
    whole.validate(rows, columns).map_err(|error| wrong(error.to_string()))?;
    let mut parts = Parts::new(checkpoint, name.to_owned(), format);
    let mut entries = Vec::new();
    for stored in whole.tensors(rows, columns) {
        let owner = group.codebooks.get(name).filter(|_| whole.is_codebook(stored.suffix));
        let entry = match owner {
            // A part of the other matrix.
            Some(owner) => {
                let part = stored_name(owner, stored.suffix);
                let missing = || wrong(format!("has the codebooks of `{owner}`, but there is no `{part}`"));
                checkpoint.tensor(&part).cloned().ok_or_else(missing)?
            }
            None => parts.required(&stored_name(name, stored.suffix))?,
        };
        expect_type(&entry, &[stored.dtype], "the type that the number format asks for")?;
        let shape: Vec<usize> = experts.into_iter().chain(stored.shape).collect();
        expect_shape(&entry, &shape, "what the number format asks for")?;
        entries.push(entry);
    }
    let codes = WholeCodes::Whole { format: whole.clone(), entries };
    let matrix = WholeMatrix { rows, columns, stack: experts.unwrap_or(1), codes, rotations: None };
    let found = Found::whole(parts, group.dtype, whole.clone(), matrix, dense_shape.to_vec());
    Ok(found.stacked(dense_shape.to_vec(), experts.unwrap_or(1), group.transposed))
}

fn find_matrix(
    checkpoint: &Checkpoint,
    group: &Group,
    codec: &Codec,
    name: &str,
    dense_shape: &[usize],
    index: usize,
) -> Result<Found, LayoutError> {
    let wrong = |message: String| LayoutError::Config { key: format!("groups.{index}.tensors.{name}"), message };
    let (experts, rows, columns) = lengths(group, dense_shape).map_err(wrong)?;
    let rows = rows.saturating_mul(experts.unwrap_or(1));
    let mut codec = codec.clone();
    codec.validate(rows, columns).map_err(|error| wrong(error.to_string()))?;
    let mut parts = Parts::new(checkpoint, name.to_owned(), "bantam");
    let codes = parts.required(&format!("{name}.codes"))?;
    addressable(&codes, rows, columns)?;
    let (bits, groups) = (codec.codec_bits(), codec.groups_per_row(columns));
    let row_bytes = byte_row(columns, bits);
    expect_type(&codes, &[Dtype::U8], "U8")?;
    expect_shape(&codes, &per_row(experts, rows, row_bytes), "the rows of codes, each padded to bytes")?;

    let whole = codec.granularity == Granularity::Tensor;
    let scale_type = [codec.scale.into()];
    let shape = |last| scale_shape(experts, rows, &codec, last);
    let scales = if whole {
        Scales::Tensor
    } else {
        let entry = parts.required(&format!("{name}.scales"))?;
        expect_type(&entry, &scale_type, "the codec's scale type")?;
        expect_shape(&entry, &shape(groups), "a scale for each group")?;
        Scales::Rows { entry }
    };
    let zeros = match codec.zero {
        ZeroPoint::None => Zeros::None,
        _ if whole => Zeros::None,
        ZeroPoint::Integer => {
            let (entry, row_bytes) = (parts.required(&format!("{name}.zeros"))?, byte_row(groups, bits));
            expect_type(&entry, &[Dtype::U8], "U8")?;
            expect_shape(&entry, &shape(row_bytes), "the rows of zero points, each padded to bytes")?;
            Zeros::Stream { entry, bits, row_bytes }
        }
        ZeroPoint::Float | ZeroPoint::Minimum => {
            let entry = parts.required(&format!("{name}.zeros"))?;
            expect_type(&entry, &scale_type, "the codec's scale type")?;
            expect_shape(&entry, &shape(groups), "a zero point for each group")?;
            Zeros::Float { entry }
        }
    };
    let mut number = |suffix: &str, wanted: bool| {
        if !wanted {
            return Ok(None);
        }
        let entry = parts.required(&format!("{name}.{suffix}"))?;
        expect_type(&entry, &[Dtype::F32], "F32")?;
        expect_shape(&entry, &[1], "one number")?;
        Ok(Some(entry))
    };
    let tensor_scale = number("tensor_scale", whole || codec.scale == ScaleFormat::E4M3OverGlobal)?;
    let tensor_zero = number("tensor_zero", whole && codec.zero != ZeroPoint::None)?;
    let outliers = if group.outliers {
        let entries = OutlierEntries {
            row_starts: parts.required(&format!("{name}.outlier_row_starts"))?,
            columns: parts.required(&format!("{name}.outlier_columns"))?,
            values: parts.required(&format!("{name}.outlier_values"))?,
        };
        expect_type(&entries.row_starts, &[Dtype::I32], "I32")?;
        expect_shape(&entries.row_starts, &[rows.saturating_add(1)], "where the entries of each row start")?;
        expect_type(&entries.columns, &[outlier_column_type(columns)], "I16 up to 65536 columns, else I32")?;
        expect_type(&entries.values, &[outlier_value_type(codec.scale)], "the codec's scale type, or F32")?;
        let count = elements(&entries.columns);
        if entries.columns.shape != [count] {
            return Err(shape_error(&entries.columns, format!("[{count}]")));
        }
        expect_shape(&entries.values, &[count], "a value for each column")?;
        codec.outliers = Some(OutlierCount { count: count as u64 });
        Some(entries)
    } else {
        None
    };
    let codes = Codes::Stream { entry: codes, bits, row_bytes, flip: 0 };
    let group_of_column = None;
    let matrix = CodedMatrix {
        rows,
        columns,
        codec,
        group_of_column,
        codes,
        scales,
        zeros,
        tensor_scale,
        tensor_zero,
        outliers,
    };
    Ok(Found::matrix(parts, group.dtype, matrix).stacked(dense_shape.to_vec(), experts.unwrap_or(1), group.transposed))
}
