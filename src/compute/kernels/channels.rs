//! Figures of channels: sums, magnitudes, squares, extremes.

use super::{DeviceMatrix, Number, View, groups_for, matrix, shader};
use crate::compute::{Batch, ComputeError, Device, Kernel};

const SOURCE: &str = shader!("channels.wgsl");
/// Invocations of a workgroup.
const SIZE: usize = 64;
/// Rows that are added up in F32.
const RUN: usize = 64;

/// Figures of the channels of some rows, over runs of at most 64 rows each: their sums are F32, so whoever adds up the runs
/// does so in F64.
#[derive(Debug)]
pub struct ChannelFigures {
    figures: DeviceMatrix,
}

/// Figures of one run of rows, `[channels]` each.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Σ x.
    pub sum: &'a [f32],
    /// Σ |x|.
    pub magnitudes: &'a [f32],
    /// Σ x².
    pub squares: &'a [f32],
    /// Largest |x|.
    pub largest: &'a [f32],
}

impl ChannelFigures {
    /// Queues the figures of `x`, `[rows, channels]` in F32. Does not wait.
    ///
    /// # Errors
    /// As for [`Batch::add`] and [`Device::allocate`].
    ///
    /// # Panics
    /// When `x` is not F32.
    pub fn of(device: &Device, batch: &mut Batch<'_>, x: &View<'_>) -> Result<Self, ComputeError> {
        assert_eq!(x.matrix.number, Number::F32, "figures are those of F32");
        let width = x.columns.len();
        // Windows begin with a run, unless not even one run fits.
        let fits = matrix::windows(device, &[x]).next().map_or(RUN, |window| window.len());
        let step = if fits >= RUN { fits / RUN * RUN } else { fits.max(1) };
        let runs = if fits >= RUN { x.rows.len().div_ceil(RUN) } else { x.rows.len().div_ceil(step) };
        let figures = DeviceMatrix::zeros(device, "channel figures", 4 * runs, width)?;
        let kernel = Kernel::new("channels", SOURCE, "channel_figures");
        let mut done = 0;
        for first in (0..x.rows.len()).step_by(step) {
            let rows = first..x.rows.len().min(first + step);
            let runs = rows.len().div_ceil(RUN);
            let x = x.some_rows(rows.clone());
            let out = figures.part(4 * done..4 * (done + runs), 0..width);
            let (from, to) = (x.bound(device), out.bound(device));
            let uniform = [rows.len() as u32, width as u32, from.first, x.stride(), to.first, 0, 0, 0];
            let groups = groups_for(device, runs * width, SIZE);
            batch.add(&kernel, &[from.binding, to.binding], bytemuck::cast_slice(&uniform), groups)?;
            done += runs;
        }
        Ok(Self { figures })
    }

    /// Reads them back and shows `take` every run in order; waits.
    ///
    /// # Errors
    /// As for [`Device::read`].
    pub fn read(&self, device: &Device, mut take: impl FnMut(Run<'_>)) -> Result<(), ComputeError> {
        let width = self.figures.columns;
        for run in self.figures.download(device)?.chunks_exact((4 * width).max(1)) {
            let part = |index: usize| &run[index * width..(index + 1) * width];
            take(Run { sum: part(0), magnitudes: part(1), squares: part(2), largest: part(3) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::kernels::testing::{HOSTILE, devices, random, upload};

    /// Largest error of a sum of at most 64 terms of at most one, of which up to three such sums are added.
    const TOLERANCE: f64 = 2e-5;

    #[test]
    fn figures_agree_with_f64() {
        for device in devices() {
            for (rows, columns) in HOSTILE.into_iter().chain([(200, 40)]) {
                let x = random(rows, columns, 1);
                let stored = upload(&device, &x);
                let mut batch = device.batch();
                let figures = ChannelFigures::of(&device, &mut batch, &stored.view()).unwrap();
                batch.submit().unwrap();
                let mut found = [(); 3].map(|()| vec![0.0_f64; columns]);
                let mut largest = vec![0.0_f32; columns];
                figures
                    .read(&device, |run| {
                        for (sums, parts) in found.iter_mut().zip([run.sum, run.magnitudes, run.squares]) {
                            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += f64::from(*part));
                        }
                        largest.iter_mut().zip(run.largest).for_each(|(all, one)| *all = all.max(*one));
                    })
                    .unwrap();
                for column in 0..columns {
                    let values = || (0..rows).map(|row| f64::from(x.row(row)[column]));
                    let exact = [
                        values().sum::<f64>(),
                        values().map(f64::abs).sum::<f64>(),
                        values().map(|value| value * value).sum::<f64>(),
                    ];
                    for (found, exact) in found.iter().zip(exact) {
                        assert!((found[column] - exact).abs() <= TOLERANCE, "{rows} × {columns}, {column}");
                    }
                    let exact = (0..rows).map(|row| x.row(row)[column].abs()).fold(0.0, f32::max);
                    assert_eq!(largest[column], exact, "{rows} × {columns}, {column}");
                }
            }
        }
    }
}
