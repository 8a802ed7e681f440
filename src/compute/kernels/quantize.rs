//! Weights to codes and back.

use std::borrow::Cow;

use super::{Source, linear_groups, shader, words};
use crate::{
    codec::{Codec, Element, Granularity, ZeroPoint},
    compute::{Buffer, ComputeError, Device, Kernel, Launch, RowBinding},
};

pub(super) const TEXT: &str = shader!("quantize.wgsl", "source.wgsl", "linear.wgsl", "quotient.wgsl");

/// What a code means, and which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// The element.
    pub element: Element,
    /// The kind of zero points.
    pub zero: ZeroPoint,
    /// Columns that share a scale.
    pub width: u64,
    /// Rows that share a scale.
    pub rows_per_scale: u64,
}

/// Scales on the device. The processor makes them: WGSL's division is not exact enough for equal bytes.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// What level 1 stands for, F32 `[scale rows, groups]`: positive and finite. For NVFP4 already divided by the global
    /// scale.
    pub scales: &'a Buffer,
    /// Zero points, F32, shaped like the scales; `None` for symmetric codes.
    pub zeros: Option<&'a Buffer>,
}

impl Coding {
    /// The coding of a codec for matrices of so many columns.
    #[must_use]
    pub fn of(codec: &Codec, columns: u64) -> Self {
        let (width, rows_per_scale) = match codec.granularity {
            Granularity::Group(width) => (width as u64, 1),
            Granularity::Block { rows, columns } => (columns as u64, rows as u64),
            Granularity::Channel => (columns, 1),
            Granularity::Tensor => (columns, u64::from(u32::MAX)),
        };
        let (width, rows_per_scale) = (width.max(1), rows_per_scale.max(1));
        Self { element: codec.element, zero: codec.zero, width, rows_per_scale }
    }

    fn groups(&self, columns: u64) -> u64 {
        columns.div_ceil(self.width.max(1))
    }

    fn constants(&self, kernel: Kernel) -> Kernel {
        let element = match self.element {
            Element::Integer { .. } => 0.0,
            Element::Fp8E4M3 => 1.0,
            Element::Fp4E2M1 => 2.0,
        };
        let zero = match (self.element, self.zero) {
            (Element::Integer { .. }, ZeroPoint::Integer) => 1.0,
            (Element::Integer { .. }, ZeroPoint::Float | ZeroPoint::Minimum) => 2.0,
            _ => 0.0,
        };
        kernel.with("ELEMENT", element).with("ZERO", zero)
    }

    /// The uniform block of a window.
    fn shape(&self, rows: u64, columns: u64, first_row: u64) -> Vec<u8> {
        let bits = u64::from(self.element.bits());
        words(&[rows, columns, self.width, self.groups(columns), first_row, self.rows_per_scale, bits])
    }

    /// Scales and zero points as bindings of a kernel over rows: row by row where each row has its own.
    fn bindings<'a>(&self, scales: &Scales<'a>, columns: u64) -> [RowBinding<'a>; 2] {
        [scales.scales, scales.zeros.unwrap_or(scales.scales)].map(|buffer| {
            if self.rows_per_scale == 1 {
                RowBinding::Rows { buffer, row_bytes: self.groups(columns) * 4 }
            } else {
                RowBinding::Whole(buffer)
            }
        })
    }

    /// Which row's scales a window begins with, in the bindings that it sees.
    fn first_row(&self, window_first_row: u64) -> u64 {
        if self.rows_per_scale == 1 { 0 } else { window_first_row }
    }
}

/// Codes of the weights, one a byte, `[rows, columns]`: those of [`crate::codec`]'s row kernels, but that with float zero
/// points a code next to the middle of two may be one step off.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn quantize(
    device: &Device,
    source: &Source<'_>,
    coding: &Coding,
    scales: &Scales<'_>,
) -> Result<Buffer, ComputeError> {
    quantize_by(TEXT.into(), device, source, coding, scales)
}

/// The same by another text of the shader.
pub(super) fn quantize_by(
    text: Cow<'static, str>,
    device: &Device,
    source: &Source<'_>,
    coding: &Coding,
    scales: &Scales<'_>,
) -> Result<Buffer, ComputeError> {
    let (rows, columns) = (source.rows, source.columns);
    let out = device.allocate("codes", rows * columns)?;
    if rows == 0 || columns == 0 {
        return Ok(out);
    }
    let kernel = coding.constants(source.kernel("quantize", text, "quantize"));
    let [scale, zero] = coding.bindings(scales, columns);
    let bindings = [source.binding(), scale, zero, RowBinding::Rows { buffer: &out, row_bytes: columns }];
    device.dispatch_rows(&kernel, rows, &bindings, |window| Launch {
        uniform: coding.shape(window.rows, columns, coding.first_row(window.first_row)),
        groups: linear_groups(&device.limits(), (window.rows * columns).div_ceil(4)),
    })?;
    Ok(out)
}

/// What the codes (one a byte, `[rows, columns]`) decode to, F32 of the same shape.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn dequantize(
    device: &Device,
    codes: &Buffer,
    (rows, columns): (u64, u64),
    coding: &Coding,
    scales: &Scales<'_>,
) -> Result<Buffer, ComputeError> {
    let out = device.allocate("decoded weights", rows * columns * 4)?;
    if rows == 0 || columns == 0 {
        return Ok(out);
    }
    let kernel = Kernel::new("dequantize", shader!("dequantize.wgsl", "linear.wgsl"), "dequantize");
    let kernel = coding.constants(kernel);
    let [scale, zero] = coding.bindings(scales, columns);
    let codes = RowBinding::Rows { buffer: codes, row_bytes: columns };
    let bindings = [codes, scale, zero, RowBinding::Rows { buffer: &out, row_bytes: columns * 4 }];
    device.dispatch_rows(&kernel, rows, &bindings, |window| Launch {
        uniform: coding.shape(window.rows, columns, coding.first_row(window.first_row)),
        groups: linear_groups(&device.limits(), (window.rows * columns).div_ceil(4)),
    })?;
    Ok(out)
}
