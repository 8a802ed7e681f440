//! Finds AWQ matrices, version GEMM.

use super::{
    Found, Parts,
    codes::Codes,
    config::QuantizationConfig,
    gptq::{granularity, scale_format},
    matrix::CodedMatrix,
    parts::{addressable, expect_float_scale, expect_shape, expect_type, matrix_shape},
    scales::{Scales, Zeros},
};
use crate::{
    checkpoint::{Checkpoint, Dtype},
    codec::{Codec, Element, ZeroPoint},
    layout::LayoutError,
};

pub(super) fn find(checkpoint: &Checkpoint, config: &QuantizationConfig, module: &str) -> Result<Found, LayoutError> {
    let mut parts = Parts::new(checkpoint, format!("{module}.weight"), "awq");
    let qweight = parts.required(&format!("{module}.qweight"))?;
    let qzeros = parts.required(&format!("{module}.qzeros"))?;
    let scales = parts.required(&format!("{module}.scales"))?;
    for entry in [&qweight, &qzeros] {
        expect_type(entry, &[Dtype::I32, Dtype::U32], "I32")?;
    }
    expect_float_scale(&scales)?;
    let version = config.value["version"].as_str().unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(config.needed("version", &qweight.name, "\"gemm\""));
    }
    if config.value["bits"].as_u64().is_some_and(|bits| bits != 4) {
        return Err(config.needed("bits", &qweight.name, "4"));
    }
    let ([columns, words], [groups, _]) = (matrix_shape(&qweight)?, matrix_shape(&qzeros)?);
    expect_shape(&qzeros, &[groups, words], "as many outputs as the codes have")?;
    let rows = words.saturating_mul(8);
    addressable(&qweight, rows, columns)?;
    expect_shape(&scales, &[groups, rows], "a scale for each group and output")?;
    // Zero points are always stored; those of a symmetric matrix are all 8.
    let symmetric = checkpoint.bytes(&qzeros).iter().all(|&pair| pair == 0x88);
    let matrix = CodedMatrix {
        rows,
        columns,
        codec: Codec {
            element: Element::Integer { bits: 4 },
            granularity: granularity(&scales, config, columns, groups)?,
            scale: scale_format(scales.dtype),
            zero: if symmetric { ZeroPoint::None } else { ZeroPoint::Integer },
            outliers: None,
        },
        group_of_column: None,
        codes: Codes::AwqWords { entry: qweight, rows },
        zeros: if symmetric { Zeros::None } else { Zeros::AwqWords { entry: qzeros, rows } },
        tensor_scale: None,
        tensor_zero: None,
        outliers: None,
        scales: Scales::Turned { entry: scales.clone() },
    };
    Ok(Found::matrix(parts, config.decoded_type(scales.dtype), matrix))
}
