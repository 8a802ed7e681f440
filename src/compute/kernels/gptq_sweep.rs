//! The sweep of GPTQ over the columns of a layer, for scales that are known.

use std::ops::Range;

use super::{DeviceMatrix, Number, Product, View, shader};
use crate::{
    codec::{Element, ZeroPoint},
    compute::{Batch, Binding, Buffer, ComputeError, Device, Kernel},
};

const SOURCE: &str = shader!("gptq_sweep.wgsl");
/// Columns that the shader sweeps at once, and rows of a workgroup.
const BLOCK: usize = 32;
const HEIGHT: usize = 64;
/// `work −= errors · U`.
const TAKE_AWAY: Product = Product { left_transposed: false, right_transposed: false, alpha: -1.0, beta: 1.0 };

/// What codes can be.
#[derive(Debug)]
pub struct Levels {
    /// The element type.
    pub element: Element,
    /// How zero points are stored.
    pub zero: ZeroPoint,
    /// Step and zero point of each group of each row, `[rows, groups]` pairs of F32: zero is the implied one where none
    /// is stored.
    pub scales: Buffer,
    /// The group of each column, `[columns]` U32.
    pub groups: Buffer,
    /// Groups of a row.
    pub groups_per_row: usize,
}

/// What a sweep leaves on the device. Columns are in the order of the sweep.
#[derive(Debug)]
pub struct Swept {
    /// A byte for each code, rows of [`Swept::code_row_bytes`].
    pub codes: Buffer,
    /// Bytes of a row of codes: the columns, rounded up to a multiple of 4.
    pub code_row_bytes: usize,
    /// Compensated errors, `[rows, columns]`.
    pub errors: DeviceMatrix,
    /// Each row's loss under the damped H, `[rows]` F32: the sum of its squared errors.
    pub losses: Buffer,
}

/// Sweeps over all columns of `work`, `[rows, columns]` in the order of the sweep, which is used up. `upper` is the upper
/// triangular factor of H⁻¹, `[columns, columns]` in the same order. Does not wait.
///
/// # Errors
/// As for [`Batch::add`] and [`Device::allocate`]; [`ComputeError::TooLarge`] where 64 rows exceed a binding.
///
/// # Panics
/// When the shapes do not fit together.
pub fn sweep(
    device: &Device,
    work: &DeviceMatrix,
    upper: &DeviceMatrix,
    levels: &Levels,
) -> Result<Swept, ComputeError> {
    let (rows, columns) = (work.rows, work.columns);
    assert_eq!((upper.rows, upper.columns), (columns, columns), "a factor has the columns of its layer");
    assert_eq!([work.number, upper.number], [Number::F32; 2], "a sweep is F32");
    let code_row_bytes = columns.next_multiple_of(4);
    let swept = Swept {
        codes: device.allocate("codes", (rows * code_row_bytes) as u64)?,
        code_row_bytes,
        errors: DeviceMatrix::zeros(device, "errors", rows, columns)?,
        losses: device.allocate("losses", rows as u64 * 4)?,
    };
    let widest = (columns * 4).max(levels.groups_per_row * 8).max(1);
    let fit = device.limits().binding_bytes as usize / widest;
    // Every list of so many rows begins at a byte that can be bound.
    let height = if fit >= rows { rows } else { (fit / HEIGHT * HEIGHT).max(HEIGHT) };
    let mut batch = device.batch();
    for first in (0..rows).step_by(height.max(1)) {
        let task = Task { device, work, upper, levels, swept: &swept, rows: first..rows.min(first + height) };
        task.columns(&mut batch, 0..columns)?;
    }
    batch.submit()?;
    Ok(swept)
}

/// Some rows.
struct Task<'a> {
    device: &'a Device,
    work: &'a DeviceMatrix,
    upper: &'a DeviceMatrix,
    levels: &'a Levels,
    swept: &'a Swept,
    rows: Range<usize>,
}

impl Task<'_> {
    /// Sweeps some columns, one half after the other: so most of the work is in products of large matrices.
    fn columns(&self, batch: &mut Batch<'_>, columns: Range<usize>) -> Result<(), ComputeError> {
        if columns.len() <= BLOCK {
            return self.block(batch, columns);
        }
        let middle = columns.start + columns.len().div_ceil(2).next_multiple_of(BLOCK);
        let (done, rest) = (columns.start..middle, middle..columns.end);
        self.columns(batch, done.clone())?;
        let errors = self.swept.errors.part(self.rows.clone(), done.clone());
        let to = self.work.part(self.rows.clone(), rest.clone());
        TAKE_AWAY.add(self.device, batch, &errors, &self.upper.part(done, rest.clone()), &to)?;
        self.columns(batch, rest)
    }

    fn block(&self, batch: &mut Batch<'_>, columns: Range<usize>) -> Result<(), ComputeError> {
        if columns.is_empty() {
            return Ok(());
        }
        let levels = self.levels;
        let upper: View<'_> = self.upper.part(columns.clone(), columns.clone());
        let upper = upper.bound(self.device);
        let (element, largest_code) = match levels.element {
            Element::Integer { bits } => (0.0, f32::from(1_u16 << bits) - 1.0),
            Element::Fp8E4M3 => (1.0, 0.0),
            Element::Fp4E2M1 => (2.0, 0.0),
        };
        let whole_zero = !levels.zero.is_float();
        let kernel = Kernel::new("gptq_sweep", SOURCE, "gptq_sweep")
            .with("ELEMENT", element)
            .with("WHOLE_ZERO", f64::from(u8::from(whole_zero)));
        let uniform = [
            self.rows.len() as u32,
            self.work.columns as u32,
            columns.start as u32,
            columns.len() as u32,
            levels.groups_per_row as u32,
            self.swept.code_row_bytes as u32 / 4,
            largest_code.to_bits(),
            upper.first,
        ];
        let bindings = [
            self.lines(&self.work.buffer, self.work.columns * 4),
            upper.binding,
            self.lines(&levels.scales, levels.groups_per_row * 8),
            Binding::Whole(&levels.groups),
            self.lines(&self.swept.errors.buffer, self.work.columns * 4),
            self.lines(&self.swept.codes, self.swept.code_row_bytes),
            self.lines(&self.swept.losses, 4),
        ];
        let groups = [self.rows.len().div_ceil(HEIGHT) as u32, 1, 1];
        batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups)
    }

    /// The part of a buffer that holds these rows.
    fn lines<'a>(&self, buffer: &'a Buffer, row_bytes: usize) -> Binding<'a> {
        let (offset, bytes) = ((self.rows.start * row_bytes) as u64, (self.rows.len() * row_bytes) as u64);
        Binding::Part { buffer, offset, bytes }
    }
}
