//! Finds matrices that models ship in, known by their tensors' names: FP8 with `*_scale_inv` (DeepSeek-V3) and MXFP4
//! experts with `*_blocks` and `*_scales` (gpt-oss).

use super::{
    Found, Parts,
    codes::Codes,
    config::QuantizationConfig,
    gptq::scale_format,
    matrix::CodedMatrix,
    parts::{addressable, elements, expect_float_scale, expect_shape, expect_type, shape_error},
    scales::{Scales, Zeros},
};
use crate::{
    checkpoint::{Checkpoint, Dtype},
    codec::{Codec, Element, Granularity, ScaleFormat, ZeroPoint},
    layout::LayoutError,
};

/// FP8 bytes and the factor that each block is multiplied by: "inverse" of what it was multiplied by when it was made.
pub(super) fn find_scale_inverse(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    name: &str,
) -> Result<Found, LayoutError> {
    let mut parts = Parts::new(checkpoint, name.to_owned(), "fp8-block-inverse");
    let weight = parts.required(name)?;
    let scales = parts.required(&format!("{name}_scale_inv"))?;
    if let Some(module) = name.strip_suffix(".weight") {
        // A static scale of activations, which dense weights have no use for.
        let _ = parts.optional(&format!("{module}.input_scale"));
        let _ = parts.optional(&format!("{module}.activation_scale"));
    }
    expect_type(&weight, &[Dtype::F8_E4M3], "F8_E4M3")?;
    expect_float_scale(&scales)?;
    let (stack, rows, columns) = match weight.shape[..] {
        [rows, columns] if rows > 0 && columns > 0 => (1, rows, columns),
        [stack, rows, columns] if stack > 0 && rows > 0 && columns > 0 => (stack, rows, columns),
        _ => return Err(shape_error(&weight, "a matrix or a stack of matrices, with weights".to_owned())),
    };
    addressable(&weight, stack.saturating_mul(rows), columns)?;
    let block_size = |index: usize| -> Result<usize, LayoutError> {
        match &config.value["weight_block_size"] {
            serde_json::Value::Null => Ok(128),
            sizes => sizes[index]
                .as_u64()
                .and_then(|size| usize::try_from(size).ok())
                .filter(|&size| size > 0)
                .ok_or_else(|| config.needed("weight_block_size", &weight.name, "two numbers above 0")),
        }
    };
    let (block_rows, block_columns) = (block_size(0)?, block_size(1)?);
    let granularity = if elements(&scales) == 1 && (rows > block_rows || columns > block_columns) {
        Granularity::Tensor
    } else {
        let mut shape = vec![rows.div_ceil(block_rows), columns.div_ceil(block_columns)];
        if weight.shape.len() == 3 {
            shape.insert(0, stack);
            if !rows.is_multiple_of(block_rows) {
                return Err(shape_error(&weight, format!("matrices of a multiple of {block_rows} rows in a stack")));
            }
        }
        expect_shape(&scales, &shape, &format!("a scale for each block of {block_rows}×{block_columns}"))?;
        Granularity::Block { rows: block_rows, columns: block_columns }
    };
    let whole = granularity == Granularity::Tensor;
    let matrix = CodedMatrix {
        rows: stack * rows,
        columns,
        codec: Codec {
            element: Element::Fp8E4M3,
            granularity,
            scale: scale_format(scales.dtype),
            zero: ZeroPoint::None,
            outliers: None,
        },
        group_of_column: None,
        codes: Codes::Stream { entry: weight.clone(), bits: 8, row_bytes: columns, flip: 0 },
        scales: if whole { Scales::Tensor } else { Scales::Rows { entry: scales.clone() } },
        zeros: Zeros::None,
        tensor_scale: whole.then(|| scales.clone()),
        tensor_zero: None,
        outliers: None,
    };
    // The scales are F32 in models whose weights were BF16, so they say nothing about the type.
    Ok(Found::matrix(parts, config.decoded_type(Dtype::BF16), matrix).stacked(weight.shape, stack, false))
}

/// FP4 with exponent scales: blocks `[experts, outputs, groups, 16]`, two codes a byte, the low nibble first. The dense
/// tensor of a dense checkpoint is `[experts, inputs, outputs]`.
pub(super) fn find_mxfp4(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    name: &str,
) -> Result<Found, LayoutError> {
    let mut parts = Parts::new(checkpoint, name.to_owned(), "mxfp4-blocks");
    let blocks = parts.required(&format!("{name}_blocks"))?;
    let scales = parts.required(&format!("{name}_scales"))?;
    expect_type(&blocks, &[Dtype::U8], "U8")?;
    expect_type(&scales, &[Dtype::U8], "U8")?;
    let (stack, rows, groups) = match blocks.shape[..] {
        [stack, rows, groups, 16] if stack > 0 && rows > 0 && groups > 0 => (Some(stack), rows, groups),
        [rows, groups, 16] if rows > 0 && groups > 0 => (None, rows, groups),
        _ => return Err(shape_error(&blocks, "[experts, outputs, groups, 16], none 0".to_owned())),
    };
    expect_shape(&scales, &blocks.shape[..blocks.shape.len() - 1], "a scale for each block")?;
    let (all_rows, columns) = (stack.unwrap_or(1).saturating_mul(rows), groups.saturating_mul(32));
    addressable(&blocks, all_rows, columns)?;
    let matrix = CodedMatrix {
        rows: all_rows,
        columns,
        codec: Codec {
            element: Element::Fp4E2M1,
            granularity: Granularity::Group(32),
            scale: ScaleFormat::E8M0,
            zero: ZeroPoint::None,
            outliers: None,
        },
        group_of_column: None,
        codes: Codes::Stream { entry: blocks, bits: 4, row_bytes: groups * 16, flip: 0 },
        scales: Scales::Rows { entry: scales },
        zeros: Zeros::None,
        tensor_scale: None,
        tensor_zero: None,
        outliers: None,
    };
    let found = Found::matrix(parts, config.decoded_type(Dtype::BF16), matrix);
    Ok(match stack {
        Some(stack) => found.stacked(vec![stack, columns, rows], stack, true),
        None => found,
    })
}
