//! Kernels that read weights as they lie in a checkpoint.

use std::borrow::Cow;

use super::{THREADS, by_subgroups, groups, linear_groups, shader, words};
use crate::{
    checkpoint::Dtype,
    compute::{Binding, Buffer, ComputeError, Device, Kernel, Launch, RowBinding},
    evaluate::ErrorSums,
};

/// Elements of a block of `shaders/errors.wgsl`.
const ERROR_BLOCK: u64 = 4096;
/// Beyond these a block's sum of squares in F32 may have lost digits.
const SAFE: std::ops::Range<f32> = 1e-28..1e28;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceFormat {
    /// Four bytes.
    F32,
    /// Two bytes.
    Bf16,
    /// Two bytes.
    F16,
}

impl SourceFormat {
    /// The format of a type that kernels read.
    #[must_use]
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            _ => None,
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn constant(self) -> f64 {
        match self {
            Self::F32 => 0.0,
            Self::Bf16 => 1.0,
            Self::F16 => 2.0,
        }
    }
}

/// Weights on the device, row-major `[rows, columns]`, little-endian.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The elements.
    pub buffer: &'a Buffer,
    /// How they are stored.
    pub format: SourceFormat,
    /// Output features.
    pub rows: u64,
    /// Input features.
    pub columns: u64,
}

impl<'a> Source<'a> {
    pub(super) fn binding(&self) -> RowBinding<'a> {
        RowBinding::Rows { buffer: self.buffer, row_bytes: self.columns * self.format.bytes() }
    }

    pub(super) fn kernel(&self, name: &'static str, text: impl Into<Cow<'static, str>>, entry: &'static str) -> Kernel {
        Kernel::new(name, text, entry).with("SOURCE", self.format.constant())
    }

    fn is_empty(&self) -> bool {
        self.rows == 0 || self.columns == 0
    }
}

/// The weights as F32, `[rows, columns]`; exact.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn convert(device: &Device, source: &Source<'_>) -> Result<Buffer, ComputeError> {
    let out = device.allocate("weights in F32", source.rows * source.columns * 4)?;
    if source.is_empty() {
        return Ok(out);
    }
    let kernel = source.kernel("convert", shader!("convert.wgsl", "source.wgsl", "linear.wgsl"), "convert");
    let bindings = [source.binding(), RowBinding::Rows { buffer: &out, row_bytes: source.columns * 4 }];
    device.dispatch_rows(&kernel, source.rows, &bindings, |window| {
        let count = window.rows * source.columns;
        Launch { uniform: words(&[count]), groups: linear_groups(&device.limits(), count) }
    })?;
    Ok(out)
}

/// Extremes of each group of `width` columns: smallest and largest weight, F32 `[rows, groups, 2]`, or with
/// `magnitudes` the largest magnitude, `[rows, groups]`. A group with a weight that is not finite gets an infinity or
/// not-a-number. The same bits as [`crate::codec::range`]'s.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn extents(device: &Device, source: &Source<'_>, width: u64, magnitudes: bool) -> Result<Buffer, ComputeError> {
    let width = width.max(1);
    let of_row = source.columns.div_ceil(width);
    let group_bytes = if magnitudes { 4 } else { 8 };
    let out = device.allocate("extremes", source.rows * of_row * group_bytes)?;
    if source.is_empty() {
        return Ok(out);
    }
    // As many threads as keep each of them busy with some elements.
    let lanes = (width / 4).next_power_of_two().clamp(1, THREADS);
    let with = shader!("extents.wgsl", "extremes_subgroup.wgsl", "source.wgsl", "linear.wgsl");
    let text = by_subgroups(device, with, shader!("extents.wgsl", "extremes.wgsl", "source.wgsl", "linear.wgsl"));
    let entry = if magnitudes { "absmax" } else { "minmax" };
    let kernel = source.kernel("extents", text, entry).with("LANES", lanes as f64);
    let bindings = [source.binding(), RowBinding::Rows { buffer: &out, row_bytes: of_row * group_bytes }];
    device.dispatch_rows(&kernel, source.rows, &bindings, |window| Launch {
        uniform: words(&[window.rows, source.columns, width, of_row]),
        groups: groups(&device.limits(), (window.rows * of_row).div_ceil(THREADS / lanes)),
    })?;
    Ok(out)
}

/// Sums of errors between the weights and what they decode to (F32, `[rows, columns]`); waits for them. `None` where
/// squares leave F32's range: then only the processor has enough digits.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn error_sums(device: &Device, source: &Source<'_>, decoded: &Buffer) -> Result<Option<ErrorSums>, ComputeError> {
    let mut sums = ErrorSums::default();
    if source.is_empty() {
        return Ok(Some(sums));
    }
    let text = shader!("errors.wgsl", "source.wgsl", "linear.wgsl");
    let kernel = source.kernel("errors", text, "errors");
    // Blocks do not end where rows do, so windows are of single elements.
    let count = source.rows * source.columns;
    let most = (device.limits().binding_bytes / 4 / ERROR_BLOCK).max(1) * ERROR_BLOCK;
    for first in (0..count).step_by(most as usize) {
        let here = most.min(count - first);
        let blocks = here.div_ceil(ERROR_BLOCK);
        let part = |buffer, element_bytes: u64| Binding::Part {
            buffer,
            offset: first * element_bytes,
            bytes: here * element_bytes,
        };
        let out = device.allocate("sums of some blocks", blocks * 20)?;
        let bindings = [part(source.buffer, source.format.bytes()), part(decoded, 4), (&out).into()];
        device.dispatch(&kernel, &bindings, &words(&[here]), groups(&device.limits(), blocks))?;
        let bytes = device.read(&out)?;
        for block in bytes.as_chunks::<20>().0 {
            let figure = |index: usize| {
                f32::from_le_bytes([block[4 * index], block[4 * index + 1], block[4 * index + 2], block[4 * index + 3]])
            };
            let (squares, worst) = ([figure(0), figure(1), figure(3)], figure(4));
            let safe = |square: f32| square == 0.0 && worst == 0.0 || SAFE.contains(&square);
            if !squares.into_iter().all(safe) {
                return Ok(None);
            }
            sums.merge(&ErrorSums {
                source_squares: f64::from(squares[0]),
                decoded_squares: f64::from(squares[1]),
                products: f64::from(figure(2)),
                error_squares: f64::from(squares[2]),
                max_abs: worst,
            });
        }
    }
    Ok(Some(sums))
}
