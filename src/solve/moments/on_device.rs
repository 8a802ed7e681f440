//! Moments that are added up on a graphics processor.
//!
//! Products of a batch are F32 there as here; second moments are kept as pairs of F32 on the device from batch to batch,
//! which is as good as F64 for sums of F32, and come back once: reading the whole square back with every batch would take
//! as long as computing it. The difference from the dense input is F32 throughout, there as here. Figures of channels and
//! sample rows come back with every batch; they are small.

use super::Moments;
use crate::{
    compute::{
        ComputeError, Device,
        kernels::{ChannelFigures, DeviceMatrix, Product, SecondMoments, difference},
    },
    forward::Matrix,
};

/// `sum += leftᵀ right`.
const ADD: Product = Product { left_transposed: true, right_transposed: false, alpha: 1.0, beta: 1.0 };
/// Share of a batch's rows from which on all of them come back for the sample.
const MANY: usize = 8;

/// The streams at an input, on the device.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The input, `[tokens, columns]`.
    pub x: &'a DeviceMatrix,
    /// The original model's.
    pub dense: Option<&'a DeviceMatrix>,
    /// The streams that the outputs are added to, of the compressed model and of the original one.
    pub hidden: Option<(&'a DeviceMatrix, &'a DeviceMatrix)>,
}

/// Sums on the device, beside figures here.
#[derive(Debug)]
pub struct DeviceMoments {
    /// Figures, count and sample; no sums.
    figures: Moments,
    second: Option<SecondMoments>,
    drift: Option<DeviceMatrix>,
    residual: Option<DeviceMatrix>,
    /// What the original model's input is multiplied by, `[1, columns]`.
    factors: Option<DeviceMatrix>,
}

impl DeviceMoments {
    /// Starts what `like` is to hold, which has seen nothing. `scales` are those that folds divide the original model's
    /// input by. `None` where the sums would take more than half of the device memory that is left.
    ///
    /// # Errors
    /// As for [`Device::allocate`].
    pub fn new(device: &Device, like: &Moments, scales: Option<&[f64]>) -> Result<Option<Self>, ComputeError> {
        let columns = like.columns;
        let bytes = 8 * like.hessian.len() as u64 + 4 * (like.drift.len() + like.residual.len()) as u64;
        let (used, budget) = device.memory_bytes();
        let largest = device.limits().buffer_bytes;
        if bytes > (budget - used.min(budget)) / 2 || 8 * like.hessian.len() as u64 > largest {
            return Ok(None);
        }
        let zeros = |label: &str, list: &[f32]| match list.len() {
            0 => Ok(None),
            count => DeviceMatrix::zeros(device, label, count / columns, columns).map(Some),
        };
        let mut figures =
            Moments { hessian: Vec::new(), drift: Vec::new(), residual: Vec::new(), ..Moments::default() };
        figures.columns = columns;
        figures.absmax.clone_from(&like.absmax);
        figures.sum.clone_from(&like.sum);
        figures.sum_abs.clone_from(&like.sum_abs);
        figures.sum_squares.clone_from(&like.sum_squares);
        figures.sample = Matrix { rows: 0, columns, values: Vec::new() };
        figures.every = like.every;
        let factors: Option<Vec<f32>> = scales.map(|scales| scales.iter().map(|scale| (1.0 / scale) as f32).collect());
        Ok(Some(Self {
            figures,
            second: if like.hessian.is_empty() { None } else { Some(SecondMoments::new(device, columns)?) },
            drift: zeros("drift", &like.drift)?,
            residual: zeros("residual", &like.residual)?,
            factors: factors
                .map(|factors| DeviceMatrix::upload(device, "factors", factors.len(), &factors))
                .transpose()?,
        }))
    }

    /// Adds a batch. Waits for the figures of its channels.
    ///
    /// # Errors
    /// As for [`crate::compute::Batch::add`] and [`Device::allocate`].
    pub fn add(&mut self, device: &Device, seen: Seen<'_>) -> Result<(), ComputeError> {
        let Seen { x, dense, hidden } = seen;
        if x.rows == 0 || self.figures.columns == 0 {
            return Ok(());
        }
        let mut batch = device.batch();
        let channels = ChannelFigures::of(device, &mut batch, &x.view())?;
        if let Some(second) = &self.second {
            second.add(device, &mut batch, &x.view())?;
        }
        batch.submit()?;
        if let (Some(drift), Some(dense)) = (&self.drift, dense) {
            add_difference(device, drift, dense, self.factors.as_ref(), x, x)?;
        }
        if let (Some(residual), Some((main, dense))) = (&self.residual, hidden) {
            add_difference(device, residual, dense, None, main, x)?;
        }
        self.sample(device, x)?;
        let figures = &mut self.figures;
        channels.read(device, |run| {
            for ((all, magnitudes), (squares, largest)) in (figures.sum.iter_mut().zip(run.sum))
                .zip(figures.sum_abs.iter_mut().zip(run.magnitudes))
                .zip(figures.sum_squares.iter_mut().zip(run.squares).zip(figures.absmax.iter_mut().zip(run.largest)))
            {
                *all.0 += f64::from(*all.1);
                *magnitudes.0 += f64::from(*magnitudes.1);
                *squares.0 += f64::from(*squares.1);
                *largest.0 = if *largest.1 > *largest.0 { *largest.1 } else { *largest.0 };
            }
        })?;
        figures.count += x.rows as u64;
        Ok(())
    }

    /// The same rows that [`Moments::add`] keeps.
    fn sample(&mut self, device: &Device, x: &DeviceMatrix) -> Result<(), ComputeError> {
        let rows: Vec<usize> = self.figures.sampled(x.rows).collect();
        let sample = &mut self.figures.sample;
        if rows.len() * MANY > x.rows {
            let all = x.download(device)?;
            for row in &rows {
                sample.values.extend_from_slice(&all[row * x.columns..][..x.columns]);
            }
        } else {
            let bytes = x.columns as u64 * 4;
            for row in &rows {
                let row = device.read_later(&x.buffer, *row as u64 * bytes, bytes)?.wait()?;
                sample.values.extend(bytemuck::pod_collect_to_vec::<u8, f32>(&row));
            }
        }
        sample.rows += rows.len();
        Ok(())
    }

    /// Brings everything down into `moments`, which has seen nothing; waits.
    ///
    /// # Errors
    /// As for [`Device::read`]; `moments` is unchanged then.
    pub fn finish(self, device: &Device, moments: &mut Moments) -> Result<(), ComputeError> {
        let read = |sums: Option<DeviceMatrix>| sums.map(|sums| sums.download(device)).transpose();
        let (drift, residual) = (read(self.drift)?, read(self.residual)?);
        if let Some(second) = &self.second {
            // Nothing is added before everything has come back.
            second.add_to(device, &mut moments.hessian)?;
        }
        let hessian = std::mem::take(&mut moments.hessian);
        let (drift, residual) = (drift.unwrap_or_default(), residual.unwrap_or_default());
        *moments = Moments { hessian, drift, residual, ..self.figures };
        Ok(())
    }
}

/// `sum += (left · factors − right)ᵀ x`.
fn add_difference(
    device: &Device,
    sum: &DeviceMatrix,
    left: &DeviceMatrix,
    factors: Option<&DeviceMatrix>,
    right: &DeviceMatrix,
    x: &DeviceMatrix,
) -> Result<(), ComputeError> {
    let lost = DeviceMatrix::zeros(device, "difference", left.rows, left.columns)?;
    let mut batch = device.batch();
    difference(device, &mut batch, &left.view(), factors, &right.view(), &lost.view())?;
    ADD.add(device, &mut batch, &lost.view(), &x.view(), &sum.view())?;
    batch.submit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compute::kernels::testing::{devices, random, upload},
        solve::Wanted,
    };

    /// Largest error of a sum, as a share of the number of its terms, which are at most one each.
    const TOLERANCE: f64 = 2e-7;

    #[test]
    fn sums_are_those_of_the_processor() {
        for device in devices() {
            for every in [1, 30] {
                let (columns, outputs) = (37, 11);
                let wanted = Wanted { hessian: true, drift: true, sample: true, residual: outputs };
                let tokens = every * 512;
                let (mut here, mut moved) =
                    (Moments::new(columns, tokens, wanted), Moments::new(columns, tokens, wanted));
                let scales: Vec<f64> = (0..columns).map(|channel| 0.5 + channel as f64 * 0.07).collect();
                let mut there = DeviceMoments::new(&device, &moved, Some(&scales)).unwrap().unwrap();
                for (seed, rows) in [(1, 100), (2, 61), (3, 1)] {
                    let [x, dense] = [seed, seed + 10].map(|seed| random(rows, columns, seed));
                    let hidden = [seed + 20, seed + 30].map(|seed| random(rows, outputs, seed));
                    here.add(&x, Some(&crate::solve::streams::divided(dense.clone(), Some(&scales))));
                    here.add_residual(&x, &hidden[1], &hidden[0]);
                    let [x, dense, main, original] = [&x, &dense, &hidden[0], &hidden[1]].map(|it| upload(&device, it));
                    let seen = Seen { x: &x, dense: Some(&dense), hidden: Some((&main, &original)) };
                    there.add(&device, seen).unwrap();
                }
                there.finish(&device, &mut moved).unwrap();
                // Above the diagonal there is nothing to compare before.
                here.finish();
                moved.finish();
                assert_eq!((here.count, here.sample), (moved.count, moved.sample));
                assert_eq!(here.absmax, moved.absmax);
                let unit = TOLERANCE * 162.0;
                let doubles = [
                    (&here.hessian, &moved.hessian),
                    (&here.sum, &moved.sum),
                    (&here.sum_abs, &moved.sum_abs),
                    (&here.sum_squares, &moved.sum_squares),
                ];
                for (index, (a, b)) in doubles.into_iter().enumerate() {
                    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= unit), "{index}");
                }
                for (a, b) in [(&here.drift, &moved.drift), (&here.residual, &moved.residual)] {
                    let worst = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
                    // Twice as large as an input at most.
                    assert!(a.len() == b.len() && worst <= 4.0 * unit, "{worst:e}");
                }
            }
        }
    }

    #[test]
    fn sums_that_do_not_fit_are_left_to_the_processor() {
        let choice = crate::compute::Choice { memory_bytes: 100_000, ..crate::compute::tests::fixtures::choice() };
        let Some(device) = crate::compute::tests::fixtures::device_with(&choice) else { return };
        let like = |columns| Moments::new(columns, 1, Wanted { hessian: true, ..Wanted::default() });
        assert!(DeviceMoments::new(&device, &like(64), None).unwrap().is_some());
        assert!(DeviceMoments::new(&device, &like(96), None).unwrap().is_none());
    }
}
