//! Sums of outer products: the second moments of an input.

use super::{View, multiply, shader};
use crate::compute::{Batch, Binding, Buffer, ComputeError, Device, Kernel};

const SOURCE: &str = shader!("rank_update.wgsl");
/// Rows whose products are added up in F32.
const CHUNK: usize = 1024;
/// Most rows of one launch: systems reset an adapter that works on one for seconds, and Mesa's software adapter leaves
/// loops after 65535 turns.
const MOST_ROWS: usize = 32 * CHUNK;
/// Bytes of a sum: two F32.
const SUM_BYTES: u64 = 8;

/// `Σ x xᵀ` over all rows x added so far, the lower triangle, each sum a pair of F32 on the device.
#[derive(Debug)]
pub struct SecondMoments {
    sums: Buffer,
    columns: usize,
}

impl SecondMoments {
    /// Zeros, for so many channels; 8 bytes for each element of the square.
    ///
    /// # Errors
    /// As for [`Device::allocate`].
    pub fn new(device: &Device, columns: usize) -> Result<Self, ComputeError> {
        let sums = device.allocate("second moments", (columns * columns) as u64 * SUM_BYTES)?;
        Ok(Self { sums, columns })
    }

    /// Adds the rows of `x`, `[tokens, columns]` in F32, F16 or BF16, as a step of the batch.
    ///
    /// # Errors
    /// As for [`Batch::add`]; [`ComputeError::TooLarge`] where one row exceeds a binding.
    ///
    /// # Panics
    /// When `x` has another number of columns.
    pub fn add(&self, device: &Device, batch: &mut Batch<'_>, x: &View<'_>) -> Result<(), ComputeError> {
        assert_eq!(x.columns.len(), self.columns, "an input has the channels of its moments");
        let (limits, rows) = (device.limits(), x.rows.len());
        if rows > MOST_ROWS || x.bound(device).bytes > limits.binding_bytes && rows > 1 {
            // At a multiple of the chunk where possible: then sums are the same as without a limit.
            let middle = rows.div_ceil(2);
            let middle = if rows > CHUNK { middle.next_multiple_of(CHUNK).min(rows - 1) } else { middle };
            self.add(device, batch, &x.some_rows(0..middle))?;
            return self.add(device, batch, &x.some_rows(middle..rows));
        }
        let line_bytes = self.columns as u64 * SUM_BYTES;
        // Any number of lines that is a multiple of this begins at a byte that can be bound.
        let step = limits.alignment_bytes as usize / SUM_BYTES as usize;
        let lines = (limits.binding_bytes / line_bytes.max(1)) as usize;
        let lines = if lines >= self.columns { self.columns } else { lines / step.max(1) * step.max(1) };
        if lines == 0 && self.columns > 0 {
            let (label, what) = ("second moments".to_owned(), "in the fewest lines that can be bound");
            let bytes = line_bytes * step as u64;
            return Err(ComputeError::TooLarge { label, what, bytes, limit: limits.binding_bytes });
        }
        for first in (0..self.columns).step_by(lines.max(1)) {
            self.launch(device, batch, x, first, lines.min(self.columns - first))?;
        }
        Ok(())
    }

    fn launch(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        x: &View<'_>,
        first_line: usize,
        lines: usize,
    ) -> Result<(), ComputeError> {
        let bound = x.bound(device);
        let columns = first_line + lines;
        let edge = multiply::edge(device, lines, columns.div_ceil(2));
        let [rows, all] = [x.rows.len(), self.columns].map(|count| count as u32);
        let uniform = [rows, all, bound.first, x.stride(), first_line as u32, lines as u32, 0, 0];
        let aligned = bound.first.is_multiple_of(4) && x.stride().is_multiple_of(4);
        let kernel = Kernel::new("rank_update", SOURCE, "rank_update")
            .with("EDGE", edge as f64)
            .with("CHUNK", CHUNK as f64)
            .with("TYPE", x.matrix.number.constant())
            .with("ALIGNED", f64::from(u8::from(aligned)));
        let line_bytes = self.columns as u64 * SUM_BYTES;
        let (offset, bytes) = (first_line as u64 * line_bytes, lines as u64 * line_bytes);
        let sums = Binding::Part { buffer: &self.sums, offset, bytes };
        let tiles = |side: usize| side.div_ceil(8 * edge) as u32;
        batch.add(&kernel, &[bound.binding, sums], bytemuck::cast_slice(&uniform), [tiles(columns), tiles(lines), 1])
    }

    /// Reads the sums back and adds their lower triangle to `hessian`, `[columns, columns]`; waits.
    ///
    /// # Errors
    /// As for [`Device::read`].
    pub fn add_to(&self, device: &Device, hessian: &mut [f64]) -> Result<(), ComputeError> {
        let pairs: Vec<[f32; 2]> = bytemuck::pod_collect_to_vec(&device.read(&self.sums)?);
        for (row, (sums, pairs)) in
            hessian.chunks_exact_mut(self.columns.max(1)).zip(pairs.chunks_exact(self.columns.max(1))).enumerate()
        {
            for (sum, [high, low]) in sums[..=row].iter_mut().zip(pairs) {
                *sum += f64::from(*high) + f64::from(*low);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compute::kernels::{
            Number,
            testing::{HOSTILE, devices, random, upload_as},
        },
        forward::Matrix,
        solve::{Moments, Wanted},
    };

    /// Largest error of a sum, as a share of the sum of the magnitudes of its terms: chains of 1024 roundings at most.
    const TOLERANCE: f64 = 1e-6;

    /// Worst error of the device and of the processor against F64, as a share of the magnitudes of the terms.
    fn errors(device: &Device, batches: &[Matrix], number: Number) -> [f64; 2] {
        let columns = batches[0].columns;
        let sums = SecondMoments::new(device, columns).unwrap();
        let wanted = Wanted { hessian: true, ..Wanted::default() };
        let mut moments = Moments::new(columns, 0, wanted);
        let (mut exact, mut magnitudes) = (vec![0.0; columns * columns], vec![1e-30; columns * columns]);
        for x in batches {
            let (stored, x) = upload_as(device, x, number);
            let mut batch = device.batch();
            sums.add(device, &mut batch, &stored.view()).unwrap();
            batch.submit().unwrap();
            moments.add(&x, None);
            for row in 0..x.rows {
                for (i, left) in x.row(row).iter().enumerate() {
                    for (j, right) in x.row(row)[..=i].iter().enumerate() {
                        let term = f64::from(*left) * f64::from(*right);
                        exact[i * columns + j] += term;
                        magnitudes[i * columns + j] += term.abs();
                    }
                }
            }
        }
        let mut found = vec![0.0; columns * columns];
        sums.add_to(device, &mut found).unwrap();
        let lower = |index: &usize| index % columns <= index / columns;
        assert!((0..columns * columns).all(|index| lower(&index) || found[index] == 0.0));
        [found, moments.hessian].map(|found| {
            let error = |index: usize| (found[index] - exact[index]).abs() / magnitudes[index];
            (0..columns * columns).filter(lower).map(error).fold(0.0, f64::max)
        })
    }

    #[test]
    fn sums_over_batches_agree_with_f64() {
        for device in devices() {
            for (index, (rows, columns)) in HOSTILE.into_iter().enumerate() {
                let number = [Number::F32, Number::F16, Number::BF16][index % 3];
                let batches = [random(rows, columns, 1), random(rows + 70, columns, 2)];
                for (who, error) in ["device", "processor"].into_iter().zip(errors(&device, &batches, number)) {
                    assert!(error <= TOLERANCE, "{who}, {rows} × {columns} {number:?}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_lost_between_the_parts_of_a_sum() {
        let Some(device) = devices().into_iter().next() else { return };
        // Whole numbers from 0 to 63: a part of the sum is exact in F32, but all of it needs 30 bits, of which one F32
        // has 24.
        let mut x = random(200_001, 3, 1);
        x.values.iter_mut().for_each(|value| *value = (*value * 32.0 + 32.0).floor());
        assert_eq!(errors(&device, &[x], Number::F32)[0], 0.0);
    }
}
