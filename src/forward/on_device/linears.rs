//! Linears on the device: their weights go there once, as far as they fit, and piece by piece with every batch where they
//! do not.

use std::borrow::Cow;

use super::state::{down, up};
use crate::{
    compute::{
        ComputeError, Device,
        kernels::{DeviceMatrix, Number, Product},
    },
    forward::{InputFormat, Linear, Matrix, inputs},
};

/// Bytes of a weight that go to the device at a time where it does not stay there.
const PIECE_BYTES: usize = 64 << 20;

/// The linears of a stage, which share its input.
#[derive(Debug)]
pub struct DeviceLinears<'l> {
    linears: Vec<Placed<'l>>,
}

#[derive(Debug)]
struct Placed<'l> {
    linear: &'l Linear,
    /// None where it goes to the device with every batch.
    weight: Option<DeviceMatrix>,
    /// `[outputs, 1]`.
    bias: Option<DeviceMatrix>,
}

/// A weight's values as they go to the device: 16 bits where that loses nothing, as for a BF16 checkpoint's.
fn stored(values: &[f32]) -> (Number, Cow<'_, [u8]>) {
    if values.iter().any(|value| value.to_bits() & 0xffff != 0) {
        return (Number::F32, Cow::Borrowed(bytemuck::cast_slice(values)));
    }
    let halves: Vec<u8> = values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
    (Number::BF16, Cow::Owned(halves))
}

/// Some rows of a weight on the device.
fn place(device: &Device, weight: &Matrix, first: usize, rows: usize) -> Result<DeviceMatrix, ComputeError> {
    let (number, bytes) = stored(&weight.values[first * weight.columns..][..rows * weight.columns]);
    let placed = DeviceMatrix::stored(device, "weight", weight.columns, number, &bytes)?;
    Ok(DeviceMatrix { rows, ..placed })
}

impl<'l> DeviceLinears<'l> {
    /// Brings the weights to the device, as long as half of its budget is left for all else.
    ///
    /// # Errors
    /// As for [`Device::upload`].
    pub fn place(device: &Device, linears: &'l [Linear]) -> Result<Self, ComputeError> {
        let mut placed = Vec::with_capacity(linears.len());
        for linear in linears {
            let (used, budget) = device.memory_bytes();
            let bytes = 4 * linear.weight.values.len() as u64;
            let fits = used + bytes <= budget / 2 && bytes <= device.limits().buffer_bytes;
            let weight = fits.then(|| place(device, &linear.weight, 0, linear.weight.rows)).transpose()?;
            let bias = match &linear.bias[..] {
                [] => None,
                bias => Some(DeviceMatrix::upload(device, "bias", 1, bias)?),
            };
            placed.push(Placed { linear, weight, bias });
        }
        Ok(Self { linears: placed })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.linears.is_empty()
    }

    /// Queues the outputs of all of them side by side, `[tokens, Σ output]`. Inputs that a runtime would round come down,
    /// are rounded here, and go up again.
    ///
    /// # Errors
    /// As for [`crate::compute::Batch::add`] and [`Device::allocate`].
    pub fn apply(&self, device: &Device, x: &DeviceMatrix) -> Result<DeviceMatrix, ComputeError> {
        let total = self.linears.iter().map(|placed| placed.linear.weight.rows).sum();
        let out = DeviceMatrix::zeros(device, "outputs", x.rows, total)?;
        let ones = if self.linears.iter().any(|placed| placed.bias.is_some()) {
            Some(DeviceMatrix::upload(device, "ones", 1, &vec![1.0; x.rows])?)
        } else {
            None
        };
        let mut rounded: Option<(InputFormat, DeviceMatrix)> = None;
        let mut first = 0;
        for placed in &self.linears {
            let format = placed.linear.input;
            if format != InputFormat::Exact && rounded.as_ref().is_none_or(|(kept, _)| *kept != format) {
                let here = inputs::rounded(&down(device, x)?, format);
                rounded = Some((format, up(device, "rounded inputs", &here)?));
            }
            let x = match &rounded {
                Some((_, rounded)) if format != InputFormat::Exact => rounded,
                _ => x,
            };
            placed.queue(device, x, ones.as_ref(), &out, first)?;
            first += placed.linear.weight.rows;
        }
        Ok(out)
    }
}

impl Placed<'_> {
    fn queue(
        &self,
        device: &Device,
        x: &DeviceMatrix,
        ones: Option<&DeviceMatrix>,
        out: &DeviceMatrix,
        first: usize,
    ) -> Result<(), ComputeError> {
        let weight = &self.linear.weight;
        let columns = |from: usize, to: usize| out.part(0..out.rows, first + from..first + to);
        let all = x.view();
        let mut batch = device.batch();
        if let Some(placed) = &self.weight {
            Product::TRANSPOSED.add(device, &mut batch, &all, &placed.view(), &columns(0, weight.rows))?;
        } else {
            let rows = (PIECE_BYTES / (4 * weight.columns.max(1))).max(1);
            for from in (0..weight.rows).step_by(rows) {
                let to = weight.rows.min(from + rows);
                let piece = place(device, weight, from, to - from)?;
                let mut batch = device.batch();
                Product::TRANSPOSED.add(device, &mut batch, &all, &piece.view(), &columns(from, to))?;
                batch.submit()?;
            }
        }
        if let (Some(bias), Some(ones)) = (&self.bias, ones) {
            // A product of depth one is the bias in every row.
            let added = Product { beta: 1.0, ..Product::TRANSPOSED };
            added.add(device, &mut batch, &ones.view(), &bias.view(), &columns(0, weight.rows))?;
        }
        batch.submit()
    }
}

/// `x wᵀ` of matrices here, computed on the device.
///
/// # Errors
/// As for [`DeviceLinears::apply`].
pub fn product(device: &Device, x: &Matrix, weight: &Matrix) -> Result<Matrix, ComputeError> {
    let x = up(device, "inputs", x)?;
    let out = DeviceMatrix::zeros(device, "outputs", x.rows, weight.rows)?;
    let placed = place(device, weight, 0, weight.rows)?;
    let mut batch = device.batch();
    Product::TRANSPOSED.add(device, &mut batch, &x.view(), &placed.view(), &out.view())?;
    batch.submit()?;
    down(device, &out)
}
