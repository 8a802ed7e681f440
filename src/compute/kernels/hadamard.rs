//! The Hadamard transform of rows.

use super::{DeviceMatrix, Number, groups_for, matrix, shader};
use crate::compute::{Batch, ComputeError, Device, Kernel};

const SOURCE: &str = shader!("hadamard.wgsl");
/// Elements that a workgroup transforms in its own memory, and invocations of a workgroup.
const CAPACITY: usize = 4096;
const SIZE: usize = 256;

/// Adds to the batch: every run of `size` elements of each row becomes its orthogonal Hadamard transform H x / √size, in
/// place; see the shader for the order. Doing it twice gives the rows back.
///
/// # Errors
/// As for [`Batch::add`]; [`ComputeError::TooLarge`] where one row exceeds a binding.
///
/// # Panics
/// When `size` is no power of two or does not divide the rows, or elements are not F32.
pub fn hadamard(
    device: &Device,
    batch: &mut Batch<'_>,
    values: &DeviceMatrix,
    size: usize,
) -> Result<(), ComputeError> {
    assert!(size.is_power_of_two() && values.columns.is_multiple_of(size), "rows are cut into powers of two");
    assert_eq!(values.number, Number::F32, "a transform in place is F32");
    let near = size.min(CAPACITY);
    for rows in matrix::windows(device, &[&values.view()]) {
        let elements = rows.len() * values.columns;
        let bound = values.part(rows, 0..values.columns).bound(device);
        let mut step = |entry: &'static str, distance: usize, set: usize, scale: f32| {
            let kernel = Kernel::new("hadamard", SOURCE, entry);
            let counts = [elements, near, distance, set].map(|count| count as u32);
            let uniform = [counts, [scale.to_bits(), bound.first, 0, 0]];
            let groups = if distance == 0 {
                groups_for(device, elements, CAPACITY)
            } else {
                groups_for(device, elements / set, SIZE)
            };
            batch.add(&kernel, &[bound.binding], bytemuck::cast_slice(&uniform), groups)
        };
        step("near", 0, 1, 1.0 / (size as f32).sqrt())?;
        let mut distance = near;
        while distance < size {
            let set = if 4 * distance <= size { 4 } else { 2 };
            step("far", distance, set, 1.0)?;
            distance *= set;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::kernels::testing::{devices, random, upload, worst};

    /// Largest error of an element of a vector, as a share of the vector's length.
    const TOLERANCE: f64 = 1e-6;

    /// Every so many elements by the definition: the sign is that of the number of ones in common.
    fn exact(vector: &[f32], every: usize) -> Vec<f64> {
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let scale = (vector.len() as f64).sqrt();
        let row = |i: usize| vector.iter().enumerate().map(|(j, x)| sign(i, j) * f64::from(*x)).sum::<f64>() / scale;
        (0..vector.len()).step_by(every).map(row).collect()
    }

    #[test]
    fn transforms_agree_with_f64_and_are_their_own_inverse() {
        for device in devices() {
            let limit = device.limits().binding_bytes as usize;
            // Runs of one element up to two beyond what a workgroup holds, and several in a row.
            for (rows, size, runs) in [
                (1, 1, 1),
                (137, 1, 3),
                (7, 2, 13),
                (67, 64, 1),
                (5, 128, 3),
                (2, 4096, 1),
                (1, 8192, 1),
                (3, 16384, 1),
                (1, 32768, 1),
            ] {
                let columns = size * runs;
                if columns * 4 + 256 > limit {
                    continue;
                }
                let before = random(rows, columns, 1);
                let values = upload(&device, &before);
                let mut batch = device.batch();
                hadamard(&device, &mut batch, &values, size).unwrap();
                batch.submit().unwrap();
                let found = values.download(&device).unwrap();
                // The definition takes size² steps; an odd stride meets every position of a workgroup's elements.
                let every = (size / 100) | 1;
                for vector in (0..rows * runs).take(150) {
                    let range = vector * size..(vector + 1) * size;
                    let vector = &before.values[range.clone()];
                    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                    let found: Vec<f32> = found[range].iter().step_by(every).copied().collect();
                    let error = worst(&found, &exact(vector, every), |_| length);
                    assert!(error <= TOLERANCE, "{rows} × {runs} · {size}: {error:e}");
                }
                let mut batch = device.batch();
                hadamard(&device, &mut batch, &values, size).unwrap();
                batch.submit().unwrap();
                let given: Vec<f64> = before.values.iter().copied().map(f64::from).collect();
                let error = worst(&values.download(&device).unwrap(), &given, |_| (size as f64).sqrt());
                assert!(error <= TOLERANCE, "{rows} × {runs} · {size}, twice: {error:e}");
            }
        }
    }
}
