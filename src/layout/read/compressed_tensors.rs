//! Finds compressed-tensors matrices: packed integers, plain int8 and FP8, NVFP4, MXFP4, MXFP8, and 2:4 bit masks.

mod weights;

use super::{
    Found, Parts, Stored,
    codes::Codes,
    config::QuantizationConfig,
    gptq::{act_order, scale_format},
    matrix::CodedMatrix,
    parts::{addressable, elements, expect_float_scale, expect_shape, expect_type, matrix_shape, shape_error},
    scales::{Scales, Zeros},
    sources::SparseMatrix,
};
use crate::{
    checkpoint::{Checkpoint, Dtype, TensorEntry, is_float},
    codec::{Codec, Element, Granularity, ScaleFormat, ZeroPoint},
    layout::LayoutError,
};
use weights::Weights;

const FORMAT: &str = "compressed-tensors";

/// Takes the tensors that only say how activations are quantized; dense weights have no use for them.
fn claim_activation_parts(parts: &mut Parts, module: &str) {
    for suffix in ["input_scale", "input_zero_point", "input_global_scale"] {
        let _ = parts.optional(&format!("{module}.{suffix}"));
    }
}

/// Which weights share a scale: as configured, checked against the scales' shape; from the shape alone without a
/// configuration.
fn granularity(
    scales: &TensorEntry,
    weights: Option<&Weights>,
    rows: usize,
    columns: usize,
) -> Result<Granularity, LayoutError> {
    let one = elements(scales) == 1;
    let per_row = scales.shape == [rows, 1] || scales.shape == [rows];
    let expected = match weights.map(|weights| (weights.strategy.as_str(), weights)) {
        None | Some(("tensor", _)) if one => return Ok(Granularity::Tensor),
        Some(("tensor", _)) => "one scale (strategy tensor)".to_owned(),
        None | Some(("channel", _)) if per_row => return Ok(Granularity::Channel),
        Some(("channel", _)) => format!("[{rows}, 1] (strategy channel)"),
        None => format!("[1] or [{rows}, 1]; other shapes need a quantization_config"),
        Some((strategy @ ("group" | "tensor_group"), weights)) => {
            let size = weights.group_size.ok_or_else(|| weights.missing("group_size"))?;
            let groups = columns.div_ceil(size);
            if scales.shape == [rows, groups] {
                return Ok(Granularity::Group(size));
            }
            format!("[{rows}, {groups}] (strategy {strategy} of {size} columns)")
        }
        Some(("block", weights)) => {
            let [block_rows, block_columns] = weights.block.ok_or_else(|| weights.missing("block_structure"))?;
            let shape = [rows.div_ceil(block_rows), columns.div_ceil(block_columns)];
            if scales.shape == shape {
                return Ok(Granularity::Block { rows: block_rows, columns: block_columns });
            }
            format!("{shape:?} (strategy block of {block_rows}×{block_columns})")
        }
        Some((_, weights)) => return Err(weights.missing("strategy")),
    };
    Err(shape_error(scales, expected))
}

/// `weight_packed`: integers in words, or FP4 in bytes.
pub(super) fn find_packed(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    module: &str,
) -> Result<Found, LayoutError> {
    let mut parts = Parts::new(checkpoint, format!("{module}.weight"), FORMAT);
    let packed = parts.required(&format!("{module}.weight_packed"))?;
    let scales = parts.required(&format!("{module}.weight_scale"))?;
    claim_activation_parts(&mut parts, module);
    expect_type(&packed, &[Dtype::I32, Dtype::U8], "I32 (integers) or U8 (FP4)")?;
    if packed.dtype == Dtype::U8 {
        return find_fp4(config, parts, module, packed, scales);
    }
    expect_float_scale(&scales)?;
    let weights = Weights::of(config, module, &packed.name)?;
    let bits = weights.bits;
    if weights.float || !(2..=8).contains(&bits) {
        return Err(weights.missing("num_bits"));
    }
    let [rows, words] = matrix_shape(&packed)?;
    let fields = 32 / bits as usize;
    // Without a stored shape, all bits of a row are codes.
    let columns = match parts.optional(&format!("{module}.weight_shape")) {
        Some(entry) => stored_columns(checkpoint, &entry, rows)?,
        None => words.saturating_mul(32) / bits as usize,
    };
    addressable(&packed, rows, columns)?;
    // Since version 0.17 a row is one bit stream; before, a word held whole codes only. For widths that divide 32 both
    // are the same.
    let (stream, whole) = ((columns * bits as usize).div_ceil(32), columns.div_ceil(fields));
    let dense = words == stream && !(words == whole && whole_words(config));
    if !dense && words != whole {
        return Err(shape_error(
            &packed,
            format!("[{rows}, {stream}] (or [{rows}, {whole}] from before 0.17) for {columns} codes of {bits} bits"),
        ));
    }
    let codes = if dense {
        Codes::Stream { entry: packed, bits, row_bytes: words * 4, flip: 0 }
    } else {
        Codes::Fields { entry: packed, bits, row_words: words }
    };
    let granularity = granularity(&scales, Some(&weights), rows, columns)?;
    let stored_zeros = parts.optional(&format!("{module}.weight_zero_point"));
    // Some writers store the zeros of symmetric matrices too.
    let (zero, zeros, tensor_zero) = match stored_zeros.filter(|_| !weights.symmetric) {
        None if weights.symmetric => (ZeroPoint::None, Zeros::None, None),
        None => {
            parts.required(&format!("{module}.weight_zero_point"))?;
            (ZeroPoint::None, Zeros::None, None)
        }
        Some(entry) if entry.dtype == Dtype::I8 => signed_zeros(entry, &scales, granularity, bits)?,
        Some(entry) => {
            expect_type(&entry, &[Dtype::I32], "I32 or I8")?;
            let groups = elements(&scales) / rows;
            let stream = (rows * bits as usize).div_ceil(32);
            let fields = if dense && entry.shape == [stream, groups] { 0 } else { fields };
            if fields != 0 {
                expect_shape(&entry, &[rows.div_ceil(fields), groups], "zero points packed down the rows")?;
            }
            (ZeroPoint::Integer, Zeros::DownRows { entry, bits, fields }, None)
        }
    };
    let groups = match granularity {
        Granularity::Group(size) => columns.div_ceil(size),
        _ => 1,
    };
    let group_of_column = match parts.optional(&format!("{module}.weight_g_idx")) {
        Some(entry) if granularity != Granularity::Tensor => {
            act_order(checkpoint, &entry, columns, groups, granularity)?
        }
        _ => None,
    };
    let whole = granularity == Granularity::Tensor;
    let matrix = CodedMatrix {
        rows,
        columns,
        codec: Codec {
            element: Element::Integer { bits },
            granularity,
            scale: scale_format(scales.dtype),
            zero,
            outliers: None,
        },
        group_of_column,
        codes,
        scales: if whole { Scales::Tensor } else { Scales::Rows { entry: scales.clone() } },
        zeros,
        tensor_scale: whole.then(|| scales.clone()),
        tensor_zero,
        outliers: None,
    };
    Ok(Found::matrix(parts, config.decoded_type(scales.dtype), matrix))
}

/// Whether the writer's version packed whole codes into words; asked where a row has as many words either way.
fn whole_words(config: &QuantizationConfig) -> bool {
    let version = config.value["version"].as_str().unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < (0, 17),
        _ => false,
    }
}

/// The columns that `weight_shape` tells.
fn stored_columns(checkpoint: &Checkpoint, entry: &TensorEntry, rows: usize) -> Result<usize, LayoutError> {
    expect_type(entry, &[Dtype::I64, Dtype::I32], "I64")?;
    if elements(entry) != 2 {
        return Err(shape_error(entry, "[2]".to_owned()));
    }
    let bytes = checkpoint.bytes(entry);
    let lengths: Vec<i64> = match entry.dtype {
        Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|&length| i64::from_le_bytes(length)).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|&length| i64::from(i32::from_le_bytes(length))).collect(),
    };
    match (usize::try_from(lengths[0]), usize::try_from(lengths[1])) {
        (Ok(stored_rows), Ok(columns)) if stored_rows == rows && columns > 0 => Ok(columns),
        _ => Err(LayoutError::Value {
            tensor: entry.name.clone(),
            message: format!("tells the shape {lengths:?}; expected {rows} rows and at least one column"),
        }),
    }
}

/// Zero points as signed bytes, one for each scale.
fn signed_zeros(
    entry: TensorEntry,
    scales: &TensorEntry,
    granularity: Granularity,
    bits: u8,
) -> Result<(ZeroPoint, Zeros, Option<TensorEntry>), LayoutError> {
    if elements(&entry) != elements(scales) {
        return Err(shape_error(&entry, format!("{:?}, one zero point for each scale", scales.shape)));
    }
    Ok(match granularity {
        Granularity::Tensor if bits == 8 => (ZeroPoint::Integer, Zeros::None, Some(entry)),
        Granularity::Tensor => return Err(shape_error(&entry, "one for each row or group".to_owned())),
        _ => (ZeroPoint::Integer, Zeros::Signed { entry, bits }, None),
    })
}

/// FP4 codes, two a byte: NVFP4 with a global scale, else MXFP4.
fn find_fp4(
    config: &QuantizationConfig,
    mut parts: Parts,
    module: &str,
    packed: TensorEntry,
    scales: TensorEntry,
) -> Result<Found, LayoutError> {
    let [rows, bytes] = matrix_shape(&packed)?;
    let columns = bytes.saturating_mul(2);
    addressable(&packed, rows, columns)?;
    let global = parts.optional(&format!("{module}.weight_global_scale"));
    let (size, scale) = if let Some(global) = &global {
        expect_type(global, &[Dtype::F32], "F32")?;
        if elements(global) != 1 {
            return Err(shape_error(global, "[1]".to_owned()));
        }
        expect_type(&scales, &[Dtype::F8_E4M3], "F8_E4M3")?;
        (16, ScaleFormat::E4M3OverGlobal)
    } else {
        expect_type(&scales, &[Dtype::U8, Dtype::F8_E8M0], "U8 (MXFP4; NVFP4 has a `weight_global_scale`)")?;
        (32, ScaleFormat::E8M0)
    };
    expect_shape(&scales, &[rows, columns.div_ceil(size)], &format!("a scale for each {size} columns"))?;
    let matrix = CodedMatrix {
        rows,
        columns,
        codec: Codec {
            element: Element::Fp4E2M1,
            granularity: Granularity::Group(size),
            scale,
            zero: ZeroPoint::None,
            outliers: None,
        },
        group_of_column: None,
        codes: Codes::Stream { entry: packed, bits: 4, row_bytes: bytes, flip: 0 },
        scales: Scales::Rows { entry: scales },
        zeros: Zeros::None,
        tensor_scale: global,
        tensor_zero: None,
        outliers: None,
    };
    Ok(Found::matrix(parts, config.decoded_type(Dtype::BF16), matrix))
}

/// `weight` as int8 or FP8 bytes.
pub(super) fn find_naive(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    module: &str,
) -> Result<Found, LayoutError> {
    let mut parts = Parts::new(checkpoint, format!("{module}.weight"), FORMAT);
    let weight = parts.required(&format!("{module}.weight"))?;
    let [rows, columns] = matrix_shape(&weight)?;
    let integer = weight.dtype == Dtype::I8;
    let codes = Codes::Stream { entry: weight, bits: 8, row_bytes: columns, flip: if integer { 0x80 } else { 0 } };
    bytes_with_scales(checkpoint, config, parts, module, (rows, columns), integer, codes)
}

/// One code a byte, wherever the bytes lie: the scales that belong to them.
fn bytes_with_scales(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    mut parts: Parts,
    module: &str,
    (rows, columns): (usize, usize),
    integer: bool,
    codes: Codes,
) -> Result<Found, LayoutError> {
    let scales = parts.required(&format!("{module}.weight_scale"))?;
    claim_activation_parts(&mut parts, module);
    addressable(&scales, rows, columns)?;
    let element = if integer { Element::Integer { bits: 8 } } else { Element::Fp8E4M3 };
    let (granularity, scale) = if !integer && matches!(scales.dtype, Dtype::U8 | Dtype::F8_E8M0) {
        expect_shape(&scales, &[rows, columns.div_ceil(32)], "a scale for each 32 columns")?;
        (Granularity::Group(32), ScaleFormat::E8M0)
    } else {
        expect_float_scale(&scales)?;
        let weights = Weights::optional(config, module, &scales.name)?;
        (granularity(&scales, weights.as_ref(), rows, columns)?, scale_format(scales.dtype))
    };
    let zeros = checkpoint.tensor(&format!("{module}.weight_zero_point")).map(|entry| entry.name.clone());
    let (zero, zeros, tensor_zero) = match zeros.and_then(|name| parts.optional(&name)) {
        Some(entry) if integer => {
            expect_type(&entry, &[Dtype::I8], "I8")?;
            signed_zeros(entry, &scales, granularity, 8)?
        }
        _ => (ZeroPoint::None, Zeros::None, None),
    };
    let whole = granularity == Granularity::Tensor;
    let matrix = CodedMatrix {
        rows,
        columns,
        codec: Codec { element, granularity, scale, zero, outliers: None },
        group_of_column: None,
        codes,
        scales: if whole { Scales::Tensor } else { Scales::Rows { entry: scales.clone() } },
        zeros,
        tensor_scale: whole.then(|| scales.clone()),
        tensor_zero,
        outliers: None,
    };
    Ok(Found::matrix(parts, config.decoded_type(scales.dtype), matrix))
}

/// `compressed`, `bitmask` and `shape`: 2:4 sparsity, of plain weights or of codes.
pub(super) fn find_sparse(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    module: &str,
) -> Result<Found, LayoutError> {
    let mut parts = Parts::new(checkpoint, format!("{module}.weight"), "sparse-24-bitmask");
    let values = parts.required(&format!("{module}.compressed"))?;
    let mask = parts.required(&format!("{module}.bitmask"))?;
    let shape = parts.required(&format!("{module}.shape"))?;
    expect_type(&mask, &[Dtype::U8], "U8")?;
    let [rows, half] = matrix_shape(&values)?;
    let columns = stored_columns(checkpoint, &shape, rows)?;
    if columns != half.saturating_mul(2) {
        let expected = format!("[{rows}, {}], half of {columns} columns", columns / 2);
        return Err(shape_error(&values, expected));
    }
    addressable(&values, rows, columns)?;
    expect_shape(&mask, &[rows, columns.div_ceil(8)], "a bit for each weight")?;
    let matrix = SparseMatrix { rows, columns, values: values.clone(), mask: mask.clone() };
    let coded = checkpoint.tensor(&format!("{module}.weight_scale")).is_some();
    if coded && matches!(values.dtype, Dtype::I8 | Dtype::F8_E4M3) {
        let integer = values.dtype == Dtype::I8;
        super::check_mask(checkpoint, &matrix)?;
        let codes = Codes::Sparse24 { values, mask, flip: if integer { 0x80 } else { 0 } };
        return bytes_with_scales(checkpoint, config, parts, module, (rows, columns), integer, codes);
    }
    if !is_float(values.dtype) {
        return Err(LayoutError::Type { tensor: values.name, got: values.dtype, expected: "a float type" });
    }
    let logical = super::LogicalTensor {
        name: parts.name,
        shape: vec![rows, columns],
        dtype: values.dtype,
        codec: None,
        format: parts.format,
        parts: parts.names,
        stored_bytes: parts.stored_bytes,
        decoded_at_once: 0,
    };
    Ok(Found { logical, stored: Stored::Sparse(matrix) })
}
