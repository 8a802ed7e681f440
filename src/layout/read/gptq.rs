//! Finds GPTQ matrices, versions 1 and 2, with or without act-order.

use super::{
    Found, Parts,
    codes::Codes,
    config::QuantizationConfig,
    matrix::CodedMatrix,
    parts::{addressable, expect_float_scale, expect_shape, expect_type, matrix_shape, shape_error},
    scales::{Scales, Zeros},
};
use crate::{
    checkpoint::{Checkpoint, Dtype, TensorEntry},
    codec::{Codec, Element, Granularity, ScaleFormat, ZeroPoint},
    layout::{
        LayoutError,
        streams::{pack_rows, word_row},
    },
};

const WORDS: (&[Dtype], &str) = (&[Dtype::I32, Dtype::U32], "I32");

/// The scale format of a float type.
pub(super) fn scale_format(dtype: Dtype) -> ScaleFormat {
    match dtype {
        Dtype::F16 => ScaleFormat::F16,
        Dtype::BF16 => ScaleFormat::BF16,
        _ => ScaleFormat::F32,
    }
}

/// The columns of a group: the configured size where it gives this many groups, else an even division.
pub(super) fn granularity(
    scales: &TensorEntry,
    config: &QuantizationConfig,
    columns: usize,
    groups: usize,
) -> Result<Granularity, LayoutError> {
    if let Some(size) = config.value["group_size"].as_u64().and_then(|size| usize::try_from(size).ok())
        && size > 0
        && columns.div_ceil(size) == groups
    {
        return Ok(Granularity::Group(size));
    }
    match groups {
        1 => Ok(Granularity::Channel),
        _ if columns.is_multiple_of(groups) => Ok(Granularity::Group(columns / groups)),
        _ => Err(shape_error(scales, format!("a number of groups that divides {columns} columns"))),
    }
}

/// The group of each column where groups are not consecutive columns; `None` where they are.
pub(super) fn act_order(
    checkpoint: &Checkpoint,
    entry: &TensorEntry,
    columns: usize,
    groups: usize,
    granularity: Granularity,
) -> Result<Option<Vec<u32>>, LayoutError> {
    expect_type(entry, WORDS.0, WORDS.1)?;
    expect_shape(entry, &[columns], "a group for each column")?;
    let bytes = checkpoint.bytes(entry);
    let indices: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
    if let Some(column) = indices.iter().position(|&group| group as usize >= groups) {
        let message = format!("column {column} is in group {} of {groups}", indices[column].cast_signed());
        return Err(LayoutError::Value { tensor: entry.name.clone(), message });
    }
    let size = match granularity {
        Granularity::Group(size) => size,
        _ => columns,
    };
    let regular = indices.iter().enumerate().all(|(column, &group)| group as usize == column / size);
    Ok(if regular { None } else { Some(indices) })
}

pub(super) fn find(checkpoint: &Checkpoint, config: &QuantizationConfig, module: &str) -> Result<Found, LayoutError> {
    let mut parts = Parts::new(checkpoint, format!("{module}.weight"), "gptq");
    let qweight = parts.required(&format!("{module}.qweight"))?;
    let qzeros = parts.required(&format!("{module}.qzeros"))?;
    let scales = parts.required(&format!("{module}.scales"))?;
    let group_index = parts.optional(&format!("{module}.g_idx"));
    for entry in [&qweight, &qzeros] {
        expect_type(entry, WORDS.0, WORDS.1)?;
    }
    expect_float_scale(&scales)?;
    let ([words, rows], [groups, zero_words]) = (matrix_shape(&qweight)?, matrix_shape(&qzeros)?);
    expect_shape(&scales, &[groups, rows], "a scale for each group and output")?;
    // The width follows from the zero points, whatever overrides a configuration has.
    let bits = [2u8, 3, 4, 8].into_iter().find(|&bits| rows.checked_mul(bits as usize) == Some(zero_words * 32));
    let Some(bits) = bits else {
        return Err(shape_error(&qzeros, format!("{rows} zero points of 2, 3, 4 or 8 bits in each row of words")));
    };
    if !words.is_multiple_of(bits as usize) {
        return Err(shape_error(&qweight, format!("rows of words in multiples of {bits}, for {bits}-bit codes")));
    }
    let columns = words / bits as usize * 32;
    addressable(&qweight, rows, columns)?;
    let added = match config.value["checkpoint_format"].as_str().or_else(|| config.value["format"].as_str()) {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(_) => return Err(config.needed("checkpoint_format", &qweight.name, "\"gptq\" or \"gptq_v2\"")),
    };
    let granularity = granularity(&scales, config, columns, groups)?;
    let group_of_column = match &group_index {
        Some(entry) => act_order(checkpoint, entry, columns, groups, granularity)?,
        None => None,
    };
    // Symmetric matrices store the same zero point everywhere; then none need be read again.
    let mask = ((1u16 << bits) - 1) as u8;
    let implied = vec![(1u8 << (bits - 1)).wrapping_sub(added) & mask; rows];
    let row = pack_rows(&implied, rows, bits, word_row(rows, bits));
    let symmetric = checkpoint.bytes(&qzeros).chunks_exact(row.len()).all(|stored| stored == row);
    let matrix = CodedMatrix {
        rows,
        columns,
        codec: Codec {
            element: Element::Integer { bits },
            granularity,
            scale: scale_format(scales.dtype),
            zero: if symmetric { ZeroPoint::None } else { ZeroPoint::Integer },
            outliers: None,
        },
        group_of_column,
        codes: Codes::AlongInput { entry: qweight, bits, rows },
        zeros: if symmetric { Zeros::None } else { Zeros::AlongRows { entry: qzeros, bits, added } },
        tensor_scale: None,
        tensor_zero: None,
        outliers: None,
        scales: Scales::Turned { entry: scales.clone() },
    };
    Ok(Found::matrix(parts, config.decoded_type(scales.dtype), matrix))
}
