//! Systems of equations with a triangular matrix.

use super::{Number, Product, View, shader};
use crate::compute::{Batch, ComputeError, Device, Kernel};

const SOURCE: &str = shader!("triangular_solve.wgsl");
/// Unknowns of the largest block that the shader solves at once, and its right-hand sides per workgroup.
const BLOCK: usize = 32;
const WIDTH: usize = 64;
/// `given −= L · solved`.
const TAKE_AWAY: Product = Product { left_transposed: false, right_transposed: false, alpha: -1.0, beta: 1.0 };

/// Adds to the batch the solution of `L X = B` for many right-hand sides: `lower` is L, `[order, order]`, of which the
/// lower triangle is read; `given` is B, `[order, columns]`, which is used up; `solved` becomes X. All are F32.
///
/// # Errors
/// As for [`Batch::add`]; [`ComputeError::TooLarge`] where one row exceeds a binding.
///
/// # Panics
/// When the shapes do not fit together.
pub fn solve_lower(
    device: &Device,
    batch: &mut Batch<'_>,
    lower: &View<'_>,
    given: &View<'_>,
    solved: &View<'_>,
) -> Result<(), ComputeError> {
    let (order, columns) = (lower.rows.len(), given.columns.len());
    assert_eq!(lower.columns.len(), order, "the matrix of a system is square");
    for side in [given, solved] {
        assert_eq!((side.rows.len(), side.columns.len()), (order, columns), "right-hand sides have a row per unknown");
    }
    assert!([lower, given, solved].iter().all(|view| view.matrix.number == Number::F32), "systems are F32");
    if order == 0 || columns == 0 {
        return Ok(());
    }
    let bounds = [lower, given, solved].map(|view| view.bound(device));
    let fits = bounds.iter().all(|bound| bound.bytes <= device.limits().binding_bytes);
    if order == 1 || order <= BLOCK && fits {
        let mut uniform = vec![order as u32, columns as u32];
        for (view, bound) in [lower, given, solved].iter().zip(&bounds) {
            uniform.extend([bound.first, view.stride()]);
        }
        let kernel = Kernel::new("triangular_solve", SOURCE, "triangular_solve");
        let bindings = bounds.map(|bound| bound.binding);
        let groups = [columns.div_ceil(WIDTH) as u32, 1, 1];
        return batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups);
    }
    let middle = order.div_ceil(2);
    let middle = if order > BLOCK { middle.next_multiple_of(BLOCK) } else { middle };
    let (above, below) = (0..middle, middle..order);
    let (first, second) = (solved.some_rows(above.clone()), given.some_rows(below.clone()));
    let part = lower.some_rows(above.clone()).some_columns(above.clone());
    solve_lower(device, batch, &part, &given.some_rows(above.clone()), &first)?;
    let beside = lower.some_rows(below.clone()).some_columns(above);
    TAKE_AWAY.add(device, batch, &beside, &first, &second)?;
    let part = lower.some_rows(below.clone()).some_columns(below.clone());
    solve_lower(device, batch, &part, &second, &solved.some_rows(below))
}

#[cfg(test)]
mod tests {
    use faer::{MatMut, MatRef, Par, linalg::triangular_solve::solve_lower_triangular_in_place};

    use super::*;
    use crate::compute::kernels::{
        DeviceMatrix,
        testing::{devices, random, upload, worst},
    };

    /// Largest error of an unknown, as a share of the largest one of its column.
    const TOLERANCE: f64 = 1e-5;

    #[test]
    fn solutions_agree_with_f64() {
        for device in devices() {
            for (order, columns) in [(1, 1), (1, 131), (137, 1), (7, 13), (32, 64), (33, 65), (131, 67), (300, 30)] {
                let (mut lower, given) = (random(order, order, 1), random(order, columns, 2));
                for row in 0..order {
                    let values = lower.row_mut(row);
                    for value in values.iter_mut() {
                        *value /= (order as f32).sqrt();
                    }
                    values[row] += 1.5;
                    values[row + 1..].fill(f32::NAN);
                }
                let mut exact = vec![0.0_f64; order * columns];
                for row in 0..order {
                    for column in 0..columns {
                        let done = (0..row).map(|i| f64::from(lower.row(row)[i]) * exact[i * columns + column]);
                        let rest = f64::from(given.row(row)[column]) - done.sum::<f64>();
                        exact[row * columns + column] = rest / f64::from(lower.row(row)[row]);
                    }
                }
                let mut host = given.clone();
                let matrix = MatRef::from_row_major_slice(&lower.values, order, order);
                let target = MatMut::from_row_major_slice_mut(&mut host.values, order, columns);
                solve_lower_triangular_in_place(matrix, target, Par::Seq);

                let [lower, given] = [&lower, &given].map(|matrix| upload(&device, matrix));
                let solved = DeviceMatrix::zeros(&device, "solved", order, columns).unwrap();
                let mut batch = device.batch();
                solve_lower(&device, &mut batch, &lower.view(), &given.view(), &solved.view()).unwrap();
                batch.submit().unwrap();
                let found = solved.download(&device).unwrap();
                let largest = |index: usize| {
                    let column = exact.iter().skip(index % columns).step_by(columns);
                    column.fold(0.0, |largest: f64, value| largest.max(value.abs()))
                };
                let largest: Vec<f64> = (0..columns).map(largest).collect();
                for (who, found) in [("device", &found), ("processor", &host.values)] {
                    let error = worst(found, &exact, |index| largest[index % columns]);
                    assert!(error <= TOLERANCE, "{who}, {order} × {columns}: {error:e}");
                }
            }
        }
    }
}
