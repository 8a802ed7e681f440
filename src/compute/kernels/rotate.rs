//! Rotary position embeddings.

use super::{View, groups_for, matrix, shader};
use crate::compute::{Batch, Binding, Buffer, ComputeError, Device, Kernel};

const SOURCE: &str = shader!("rotate.wgsl");
/// Invocations of a workgroup.
const SIZE: usize = 64;

/// The angles of all positions, on the device.
#[derive(Debug)]
pub struct Angles {
    pairs: Buffer,
    half: usize,
    length: usize,
    interleaved: bool,
}

impl Angles {
    /// From cosines and sines, `[length, half]` each; `interleaved` rotates channels 2i and 2i + 1 together instead of i
    /// and i + half.
    ///
    /// # Errors
    /// As for [`Device::upload`].
    pub fn upload(
        device: &Device,
        half: usize,
        interleaved: bool,
        cosines: &[f32],
        sines: &[f32],
    ) -> Result<Self, ComputeError> {
        let pairs: Vec<[f32; 2]> = cosines.iter().zip(sines).map(|(cosine, sine)| [*cosine, *sine]).collect();
        let length = pairs.len() / half.max(1);
        Ok(Self { pairs: device.upload("angles", bytemuck::cast_slice(&pairs))?, half, length, interleaved })
    }

    /// Adds to the batch: rotates each of the `heads` equally wide parts of each row of `values` in place. Rows are
    /// tokens of whole sequences, as long as there are positions; channels past the rotated ones stay.
    ///
    /// # Errors
    /// As for [`Batch::add`].
    ///
    /// # Panics
    /// When a head has fewer channels than are rotated.
    pub fn rotate(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        values: &View<'_>,
        heads: usize,
    ) -> Result<(), ComputeError> {
        let width = values.columns.len() / heads;
        assert!(2 * self.half <= width, "a head has the channels that are rotated");
        let kernel = Kernel::new("rotate", SOURCE, "rotate");
        for rows in matrix::windows(device, &[values]) {
            let values = values.some_rows(rows.clone());
            let bound = values.bound(device);
            let shape = [rows.len(), heads, self.half, self.length].map(|count| count as u32);
            let place = [bound.first, values.stride(), width as u32, u32::from(self.interleaved)];
            let uniform = [shape, place, [rows.start as u32, 0, 0, 0]];
            let bindings = [Binding::Whole(&self.pairs), bound.binding];
            let groups = groups_for(device, rows.len() * heads * self.half, SIZE);
            batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups)?;
        }
        Ok(())
    }
}
