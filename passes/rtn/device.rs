//! The same encoding on a graphics processor: it finds extremes and codes, the processor makes the scales between.
//!
//! Weights go over once, in the type that they are stored in; extremes come back, scales go over, codes come back. Both
//! kernels give the processor's bits, so the stripe is the same as [`Encoder`] gives without a device.

use super::{Range, encoder::Encoder, encoder::Stripe, kernels::Extent};
use crate::{
    codec::{Granularity, MatrixParameters, RowSource, ZeroPoint},
    compute::{
        Buffer, ComputeError, Device, Pending,
        kernels::{Coding, Scales, Source, SourceFormat, extents, quantize},
    },
    passes::{EncodedStripe, StripeOnDevice},
};

impl Encoder {
    /// Whether the device's kernels do all that this encoding needs: searched ranges and outliers they do not know, and
    /// float zero points not to the bit.
    pub(super) fn fits_device(&self) -> bool {
        let scale_is_known = self.codec.granularity == Granularity::Tensor;
        self.codec.outliers.is_none() && !self.codec.zero.is_float() && (scale_is_known || self.range == Range::Minmax)
    }

    /// See [`crate::passes::MatrixEncoder::start_on`].
    pub(super) fn on_device<'a>(
        &'a self,
        device: &'a Device,
        source: &dyn RowSource,
        parameters: &'a MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<Option<OnDevice<'a>>, ComputeError> {
        if !self.fits_device() || rows == 0 || self.columns == 0 {
            return Ok(None);
        }
        let stored = source.stored_rows(first_row..first_row + rows);
        let stored = stored.and_then(|(dtype, bytes)| Some((SourceFormat::of(dtype)?, bytes)));
        let mut weights = Vec::new();
        let (format, bytes) = if let Some(stored) = stored {
            stored
        } else {
            weights.resize(rows * self.columns, 0.0);
            if source.read_rows(first_row, &mut weights).is_err() {
                return Ok(None);
            }
            (SourceFormat::F32, bytemuck::cast_slice::<f32, u8>(&weights))
        };
        let weights = device.upload("weights", bytes)?;
        let source = Source { buffer: &weights, format, rows: rows as u64, columns: self.columns as u64 };
        let magnitudes = self.codec.zero == ZeroPoint::None;
        let found = extents(device, &source, self.tile().1 as u64, magnitudes)?;
        let coming = device.read_later(&found, 0, found.bytes())?;
        let state = State::Extents { _found: found, coming };
        Ok(Some(OnDevice { encoder: self, device, parameters, weights, format, first_row, rows, state }))
    }

    /// Scales of all tiles as stored in the stripe, and steps and zero points as kernels take them, `[tiles, groups]`.
    fn scales(&self, extents: &[Extent], parameters: &MatrixParameters) -> (Stripe, Vec<f32>, Vec<f32>) {
        let (grid, tensor) = self.grid_for(parameters);
        let (height, width) = self.tile();
        let groups = self.columns.div_ceil(width);
        let mut stripe = Stripe::default();
        let (mut steps, mut zeros) = (Vec::new(), Vec::new());
        for tile in extents.chunks(height * groups) {
            for index in 0..groups {
                let of_group = tile.iter().skip(index).step_by(groups);
                let extent = of_group.copied().reduce(Extent::union).unwrap_or_default();
                let group = tensor.unwrap_or_else(|| grid.min_max(extent));
                if tensor.is_none() {
                    stripe.push(&group, &grid);
                }
                steps.push(grid.step(&group));
                zeros.push(group.zero);
            }
        }
        (stripe, steps, zeros)
    }
}

/// A stripe between upload and read-back. What the device still reads is kept, so that its memory counts.
pub(super) struct OnDevice<'a> {
    encoder: &'a Encoder,
    device: &'a Device,
    parameters: &'a MatrixParameters,
    weights: Buffer,
    format: SourceFormat,
    first_row: usize,
    rows: usize,
    state: State,
}

enum State {
    /// Extremes of each group of each row, `[rows, groups]`, are on their way.
    Extents { _found: Buffer, coming: Pending },
    /// Codes are on their way.
    Codes { stripe: Stripe, _buffers: Vec<Buffer>, coming: Pending },
    /// A weight is not finite, or nothing came.
    Nothing,
}

impl StripeOnDevice for OnDevice<'_> {
    fn go_on(&mut self) -> Result<(), ComputeError> {
        let State::Extents { coming, .. } = std::mem::replace(&mut self.state, State::Nothing) else { return Ok(()) };
        let (encoder, device) = (self.encoder, self.device);
        let Some(extents) = encoder.extents_of(&coming.wait()?) else { return Ok(()) };
        let (stripe, steps, zeros) = encoder.scales(&extents, self.parameters);
        let (height, width) = encoder.tile();
        let coding = Coding {
            element: encoder.codec.element,
            zero: encoder.codec.zero,
            width: width as u64,
            rows_per_scale: height as u64,
        };
        let steps = device.upload("scales", bytemuck::cast_slice(&steps))?;
        let zeros = match encoder.codec.zero {
            ZeroPoint::None => None,
            _ => Some(device.upload("zero points", bytemuck::cast_slice(&zeros))?),
        };
        let (rows, columns) = (self.rows as u64, encoder.columns as u64);
        let source = Source { buffer: &self.weights, format: self.format, rows, columns };
        let scales = Scales { scales: &steps, zeros: zeros.as_ref() };
        let codes = quantize(device, &source, &coding, &scales)?;
        let coming = device.read_later(&codes, 0, codes.bytes())?;
        self.state = State::Codes { stripe, _buffers: [steps, codes].into_iter().chain(zeros).collect(), coming };
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Option<EncodedStripe>, ComputeError> {
        let State::Codes { mut stripe, coming, _buffers } = self.state else { return Ok(None) };
        stripe.codes = coming.wait()?;
        Ok(Some(stripe.finish(self.first_row, self.rows, self.encoder.columns)))
    }
}

impl Encoder {
    /// Extremes from the device's bytes; `None` when a weight is not finite.
    fn extents_of(&self, found: &[u8]) -> Option<Vec<Extent>> {
        let words = found.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
        let values: Vec<f32> = words.collect();
        if !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        Some(if self.codec.zero == ZeroPoint::None {
            values.iter().map(|max| Extent { min: -max, max: *max }).collect()
        } else {
            values.as_chunks::<2>().0.iter().map(|[min, max]| Extent { min: *min, max: *max }).collect()
        })
    }
}
