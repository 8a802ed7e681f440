//! The same encoding on a graphics processor: it finds extremes and codes, the processor makes the scales between.
//!
//! Weights go over once, in the type that they are stored in; extremes come back, scales go over, codes come back. Both
//! kernels give the processor's bits, so the stripe is the same as [`Encoder`] gives without a device.

use super::{Range, encoder::Encoder, encoder::Stripe, kernels::Extent};
use crate::{
    codec::{Granularity, MatrixParameters, RowSource, ZeroPoint},
    compute::{
        ComputeError, Device,
        kernels::{Coding, Scales, Source, SourceFormat, extents, quantize},
    },
    passes::EncodedStripe,
};

impl Encoder {
    /// Whether the device's kernels do all that this encoding needs: searched ranges and outliers they do not know, and
    /// float zero points not to the bit.
    fn fits_device(&self) -> bool {
        let scale_is_known = self.codec.granularity == Granularity::Tensor;
        self.codec.outliers.is_none()
            && self.codec.zero != ZeroPoint::Float
            && (scale_is_known || self.range == Range::Minmax)
    }

    /// See [`crate::passes::MatrixEncoder::encode_on`].
    pub(super) fn on_device(
        &self,
        device: &Device,
        source: &dyn RowSource,
        parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<Option<EncodedStripe>, ComputeError> {
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
        let buffer = device.upload("weights", bytes)?;
        let source = Source { buffer: &buffer, format, rows: rows as u64, columns: self.columns as u64 };

        let Some(rows_of_extents) = self.device_extents(device, &source)? else { return Ok(None) };
        let (mut stripe, steps, zeros) = self.scales(&rows_of_extents, parameters);
        let (height, width) = self.tile();
        let coding = Coding {
            element: self.codec.element,
            zero: self.codec.zero,
            width: width as u64,
            rows_per_scale: height as u64,
        };
        let steps = device.upload("scales", bytemuck::cast_slice(&steps))?;
        let zeros = match self.codec.zero {
            ZeroPoint::None => None,
            _ => Some(device.upload("zero points", bytemuck::cast_slice(&zeros))?),
        };
        let scales = Scales { scales: &steps, zeros: zeros.as_ref() };
        let codes = quantize(device, &source, &coding, &scales)?;
        stripe.codes = device.read(&codes)?;
        Ok(Some(stripe.finish(first_row, rows, self.columns)))
    }

    /// Extremes of each group of each row, `[rows, groups]`; `None` when a weight is not finite.
    fn device_extents(&self, device: &Device, source: &Source<'_>) -> Result<Option<Vec<Extent>>, ComputeError> {
        let magnitudes = self.codec.zero == ZeroPoint::None;
        let found = device.read(&extents(device, source, self.tile().1 as u64, magnitudes)?)?;
        let words = found.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
        let values: Vec<f32> = words.collect();
        if !values.iter().all(|value| value.is_finite()) {
            return Ok(None);
        }
        Ok(Some(if magnitudes {
            values.iter().map(|max| Extent { min: -max, max: *max }).collect()
        } else {
            values.as_chunks::<2>().0.iter().map(|[min, max]| Extent { min: *min, max: *max }).collect()
        }))
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
                    stripe.push(&group, self.codec.zero);
                }
                steps.push(grid.step(&group));
                zeros.push(group.zero);
            }
        }
        (stripe, steps, zeros)
    }
}
