//! What a few leading eigenvectors take: Gram products, rows made orthonormal, and the iteration of both.

use super::{DeviceMatrix, Number, Product, View, shader, solve_lower};
use crate::compute::{Batch, ComputeError, Device, Kernel};

const SOURCE: &str = shader!("cholesky.wgsl");
/// Share of the mean diagonal that is added in the first of three passes (shifted Cholesky QR; Fukaya et al., SIAM J. Sci.
/// Comput. 42(1), 2020, A477): enough for rows of any condition in F32.
const SHIFT: f32 = 1e-4;

/// `x wᵀ` and `x w`.
const TRANSPOSED: Product = Product::TRANSPOSED;
const PLAIN: Product = Product { left_transposed: false, right_transposed: false, alpha: 1.0, beta: 0.0 };

/// Adds `out = W H Wᵀ` to the batch: `weight` is W `[rows, columns]`, F32 or as stored; `hessian` is H `[columns, columns]`
/// and `scratch` has the shape of W, both F32; `out` is `[rows, rows]`.
///
/// # Errors
/// As for [`Product::add`].
///
/// # Panics
/// When the shapes do not fit together.
pub fn weighted_gram(
    device: &Device,
    batch: &mut Batch<'_>,
    [weight, hessian]: [&View<'_>; 2],
    scratch: &View<'_>,
    out: &View<'_>,
) -> Result<(), ComputeError> {
    PLAIN.add(device, batch, weight, hessian, scratch)?;
    TRANSPOSED.add(device, batch, scratch, weight, out)
}

/// Adds to the batch the Cholesky factor of a matrix `[order, order]`, F32, whose lower triangle it takes the place of.
/// `shift` times the mean of the diagonal is added to the diagonal first. Pivots that are not positive count as tiny ones.
///
/// # Errors
/// As for [`Batch::add`]; [`ComputeError::TooLarge`] for a matrix that exceeds a binding.
///
/// # Panics
/// When the matrix is not square or not F32.
pub fn cholesky(device: &Device, batch: &mut Batch<'_>, matrix: &View<'_>, shift: f32) -> Result<(), ComputeError> {
    let order = matrix.rows.len();
    assert_eq!(matrix.columns.len(), order, "a matrix with a Cholesky factor is square");
    assert_eq!(matrix.matrix.number, Number::F32, "Cholesky factors are F32");
    if order == 0 {
        return Ok(());
    }
    let bound = matrix.bound(device);
    let uniform = [order as u32, bound.first, matrix.stride(), shift.to_bits()];
    let kernel = Kernel::new("cholesky", SOURCE, "cholesky");
    batch.add(&kernel, &[bound.binding], bytemuck::cast_slice(&uniform), [1, 1, 1])
}

/// Adds to the batch what makes the rows of `rows` (`[count, width]`, F32, used up) orthonormal: `out` gets them.
///
/// # Errors
/// As for [`cholesky`] and [`Device::allocate`].
pub fn orthonormalize(
    device: &Device,
    batch: &mut Batch<'_>,
    rows: &DeviceMatrix,
    out: &DeviceMatrix,
    gram: &DeviceMatrix,
) -> Result<(), ComputeError> {
    for (from, to, shift) in [(rows, out, SHIFT), (out, rows, 0.0), (rows, out, 0.0)] {
        TRANSPOSED.add(device, batch, &from.view(), &from.view(), &gram.view())?;
        cholesky(device, batch, &gram.view(), shift)?;
        solve_lower(device, batch, &gram.view(), &from.view(), &to.view())?;
    }
    Ok(())
}

/// Takes the rows of `start` `[count, order]` so many times through the symmetric matrix `[order, order]`, made orthonormal
/// each time: they come to span its leading eigenvectors. All F32; waits for the result, `[count, order]`.
///
/// # Errors
/// As for [`orthonormalize`] and [`Device::read`].
pub fn iterate_subspace(
    device: &Device,
    matrix: &DeviceMatrix,
    start: &DeviceMatrix,
    times: usize,
) -> Result<Vec<f32>, ComputeError> {
    let (count, order) = (start.rows, start.columns);
    let zeros = |label, rows, columns| DeviceMatrix::zeros(device, label, rows, columns);
    let (moved, basis) = (zeros("moved rows", count, order)?, zeros("basis", count, order)?);
    let gram = zeros("gram", count, count)?;
    for turn in 0..times {
        let mut batch = device.batch();
        let from = if turn == 0 { start } else { &basis };
        TRANSPOSED.add(device, &mut batch, &from.view(), &matrix.view(), &moved.view())?;
        orthonormalize(device, &mut batch, &moved, &basis, &gram)?;
        batch.submit()?;
    }
    if times == 0 { start.download(device) } else { basis.download(device) }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayView2};

    use super::*;
    use crate::{
        compute::kernels::testing::{HOSTILE, devices, random, upload, worst},
        linalg::{default_backend, subspace::leading_eigenvectors},
    };

    /// Rounding of sums of up to 137 products, as a share of their magnitudes.
    const TOLERANCE: f64 = 1e-5;

    #[test]
    fn gram_products_agree_with_f64() {
        for device in devices() {
            for (rows, columns) in HOSTILE {
                let (weight, half) = (random(rows, columns, 1), random(columns, columns, 2));
                let symmetric = |i: usize, j: usize| half.row(i)[j] + half.row(j)[i];
                let values = (0..columns * columns).map(|at| symmetric(at / columns, at % columns)).collect();
                let hessian = crate::forward::Matrix { rows: columns, columns, values };
                let (mut exact, mut unit) = (Vec::new(), Vec::new());
                for i in 0..rows {
                    for j in 0..rows {
                        let (mut sum, mut size) = (0.0, 1e-30);
                        for k in 0..columns {
                            for l in 0..columns {
                                let [a, h, b] = [weight.row(i)[k], hessian.row(k)[l], weight.row(j)[l]].map(f64::from);
                                sum += a * h * b;
                                size += (a * h * b).abs();
                            }
                        }
                        exact.push(sum);
                        unit.push(size);
                    }
                }
                let [w, h] = [&weight, &hessian].map(|matrix| upload(&device, matrix));
                let scratch = DeviceMatrix::zeros(&device, "scratch", rows, columns).unwrap();
                let out = DeviceMatrix::zeros(&device, "out", rows, rows).unwrap();
                let mut batch = device.batch();
                let views = [&w.view(), &h.view()];
                weighted_gram(&device, &mut batch, views, &scratch.view(), &out.view()).unwrap();
                batch.submit().unwrap();
                let error = worst(&out.download(&device).unwrap(), &exact, |at| unit[at]);
                assert!(error <= TOLERANCE, "{rows} × {columns}: {error:e}");
            }
        }
    }

    /// A symmetric matrix whose eigenvalues fall by a third from one to the next.
    fn falling(order: usize) -> Array2<f64> {
        let noise = random(order, order, 3);
        let noise = Array2::from_shape_fn((order, order), |(i, j)| f64::from(noise.row(i)[j]));
        let vectors = default_backend().symmetric_eigen((&noise + &noise.t()).view()).unwrap().vectors;
        let scaled = Array2::from_shape_fn((order, order), |(i, j)| vectors[[i, j]] * (2.0_f64 / 3.0).powi(j as i32));
        scaled.dot(&vectors.t())
    }

    /// Σ qᵀ M q over the rows of a basis.
    fn energy(matrix: &Array2<f64>, basis: &ArrayView2<'_, f64>) -> f64 {
        (&basis.dot(matrix) * basis).sum()
    }

    #[test]
    fn device_and_processor_find_the_leading_subspace() {
        for (order, count) in [(7, 2), (67, 9), (129, 20)] {
            let matrix = falling(order);
            let full = default_backend().symmetric_eigen(matrix.view()).unwrap();
            let best: f64 = full.values.iter().rev().take(count).sum();
            let found = leading_eigenvectors(matrix.view(), count).unwrap();
            let here = energy(&matrix, &found.vectors.t());
            assert!((here - best).abs() <= 1e-12 * best, "{order} {count}: {here} {best}");
            for device in devices() {
                let values: Vec<f32> = matrix.iter().map(|value| *value as f32).collect();
                let there = DeviceMatrix::upload(&device, "matrix", order, &values).unwrap();
                let start = upload(&device, &random(count, order, 4));
                let basis = iterate_subspace(&device, &there, &start, 24).unwrap();
                let basis = Array2::from_shape_fn((count, order), |(i, j)| f64::from(basis[i * order + j]));
                let gram = basis.dot(&basis.t()) - Array2::<f64>::eye(count);
                let skew = gram.iter().fold(0.0_f64, |worst, value| worst.max(value.abs()));
                assert!(skew <= TOLERANCE, "{order} {count}: rows are orthonormal to {skew:e}");
                let here = energy(&matrix, &basis.view());
                assert!((here - best).abs() <= TOLERANCE * best, "{order} {count}: {here} {best}");
            }
        }
    }

    #[test]
    fn rows_that_depend_on_each_other_stay_finite() {
        for device in devices() {
            let mut rows = random(5, 23, 1);
            let first = rows.row(0).to_vec();
            rows.row_mut(3).copy_from_slice(&first);
            rows.row_mut(4).fill(0.0);
            let rows = upload(&device, &rows);
            let out = DeviceMatrix::zeros(&device, "out", 5, 23).unwrap();
            let gram = DeviceMatrix::zeros(&device, "gram", 5, 5).unwrap();
            let mut batch = device.batch();
            orthonormalize(&device, &mut batch, &rows, &out, &gram).unwrap();
            batch.submit().unwrap();
            let found = out.download(&device).unwrap();
            assert!(found.iter().all(|value| value.is_finite()));
            let norm: f32 = found[..23].iter().map(|value| value * value).sum();
            assert!((norm - 1.0).abs() < 1e-4, "{norm}");
        }
    }
}
