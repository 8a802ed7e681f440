//! Differences of two streams of activations.

use super::{DeviceMatrix, View, groups_for, matrix, shader};
use crate::compute::{Batch, ComputeError, Device, Kernel};

const SOURCE: &str = shader!("difference.wgsl");
/// Invocations of a workgroup.
const SIZE: usize = 64;

/// Adds to the batch: `out = left · factor − right` of one shape, all F32, `out` another matrix than the others. `factors`
/// is `[1, columns]`, a factor of each column of `left`.
///
/// # Errors
/// As for [`Batch::add`].
///
/// # Panics
/// When the shapes differ.
pub fn difference(
    device: &Device,
    batch: &mut Batch<'_>,
    left: &View<'_>,
    factors: Option<&DeviceMatrix>,
    right: &View<'_>,
    out: &View<'_>,
) -> Result<(), ComputeError> {
    let width = out.columns.len();
    for side in [left, right] {
        assert_eq!((side.rows.len(), side.columns.len()), (out.rows.len(), width), "a difference has one shape");
    }
    assert!(factors.is_none_or(|factors| factors.columns == width), "every column has a factor");
    let kernel = Kernel::new("difference", SOURCE, "difference");
    for rows in matrix::windows(device, &[left, right, out]) {
        let [left, right, out] = [left, right, out].map(|view| view.some_rows(rows.clone()));
        let [l, r, o] = [&left, &right, &out].map(|view| view.bound(device));
        let factors = factors.map(|factors| factors.view().bound(device));
        #[rustfmt::skip]
        let uniform = [
            rows.len() as u32, width as u32, u32::from(factors.is_some()), l.first,
            left.stride(), r.first, right.stride(), factors.as_ref().map_or(0, |factors| factors.first),
            o.first, out.stride(), 0, 0,
        ];
        // Something has to be bound where there are no factors, but not what is written.
        let factors = factors.map_or(l.binding, |factors| factors.binding);
        let groups = groups_for(device, rows.len() * width, SIZE);
        batch.add(&kernel, &[l.binding, r.binding, factors, o.binding], bytemuck::cast_slice(&uniform), groups)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::kernels::testing::{HOSTILE, devices, random, upload, worst};

    /// A product and a difference of numbers of at most 3, each rounded once.
    const TOLERANCE: f64 = 5e-7;

    #[test]
    fn differences_agree_with_f64() {
        for device in devices() {
            for (rows, columns) in HOSTILE {
                let (left, right) = (random(rows, columns, 1), random(rows, columns, 2));
                let mut factors = random(1, columns, 3);
                factors.values.iter_mut().for_each(|factor| *factor += 1.5);
                for with in [false, true] {
                    let [l, r, f] = [&left, &right, &factors].map(|matrix| upload(&device, matrix));
                    let out = DeviceMatrix::zeros(&device, "out", rows, columns).unwrap();
                    let mut batch = device.batch();
                    let scale = with.then_some(&f);
                    difference(&device, &mut batch, &l.view(), scale, &r.view(), &out.view()).unwrap();
                    batch.submit().unwrap();
                    let exact: Vec<f64> = (0..rows * columns)
                        .map(|i| {
                            let factor = if with { f64::from(factors.values[i % columns]) } else { 1.0 };
                            f64::from(left.values[i]) * factor - f64::from(right.values[i])
                        })
                        .collect();
                    let error = worst(&out.download(&device).unwrap(), &exact, |_| 1.0);
                    assert!(error <= TOLERANCE, "{rows} × {columns}, {with}: {error:e}");
                }
            }
        }
    }
}
