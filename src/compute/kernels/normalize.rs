//! Norms of rows and of heads.

use super::{DeviceMatrix, View, by_subgroups, groups_for, matrix, shader};
use crate::compute::{Batch, ComputeError, Device, Kernel};

const BY_SUBGROUPS: &str = shader!("normalize.wgsl", "reduce_subgroup.wgsl");
const BY_MEMORY: &str = shader!("normalize.wgsl", "reduce.wgsl");

/// A norm with its weights on the device.
#[derive(Debug)]
pub struct DeviceNorm {
    /// Whether the mean is taken away: layer norm. Else root mean square.
    pub centred: bool,
    /// `[1, width]`, the one already added for Gemma's; none means ones.
    pub weight: Option<DeviceMatrix>,
    /// `[1, width]`.
    pub bias: Option<DeviceMatrix>,
    /// Added to the mean square.
    pub epsilon: f32,
}

impl DeviceNorm {
    /// Adds to the batch: `out` becomes the norm of each of the `heads` equally wide parts of each row of `x`. Both are
    /// F32, of one shape, and different matrices.
    ///
    /// # Errors
    /// As for [`Batch::add`].
    ///
    /// # Panics
    /// When the shapes do not fit together.
    pub fn add(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        x: &View<'_>,
        heads: usize,
        out: &View<'_>,
    ) -> Result<(), ComputeError> {
        assert_eq!((x.rows.len(), x.columns.len()), (out.rows.len(), out.columns.len()), "a norm keeps the shape");
        let width = x.columns.len() / heads;
        assert_eq!(width * heads, x.columns.len(), "heads are equally wide");
        let kernel = Kernel::new("normalize", by_subgroups(device, BY_SUBGROUPS, BY_MEMORY), "normalize_vectors");
        for rows in matrix::windows(device, &[x, out]) {
            let [x, out] = [x, out].map(|view| view.some_rows(rows.clone()));
            let (from, to) = (x.bound(device), out.bound(device));
            // Something has to be bound where there is nothing.
            let [weight, bias] = [&self.weight, &self.bias].map(|values| match values {
                Some(values) => values.view().bound(device).binding,
                None => from.binding,
            });
            let flag = |flag: bool| u32::from(flag);
            let vectors = rows.len() * heads;
            #[rustfmt::skip]
            let uniform = [
                vectors as u32, heads as u32, width as u32, flag(self.centred),
                from.first, x.stride(), width as u32, flag(self.weight.is_some()),
                to.first, out.stride(), width as u32, flag(self.bias.is_some()),
                self.epsilon.to_bits(), 0, 0, 0,
            ];
            let bindings = [from.binding, weight, bias, to.binding];
            batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups_for(device, vectors, 1))?;
        }
        Ok(())
    }
}
