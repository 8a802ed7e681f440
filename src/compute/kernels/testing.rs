//! What the tests of all kernels share.

use super::{DeviceMatrix, Number};
use crate::{
    compute::{Choice, Device, tests::fixtures},
    forward::Matrix,
};

/// Shapes on which indices go wrong: one element, one row, one column, primes, just beyond a tile.
pub const HOSTILE: [(usize, usize); 6] = [(1, 1), (1, 131), (137, 1), (7, 13), (65, 67), (129, 64)];
/// A largest binding, in bytes, that the matrices of most tests exceed.
pub const SMALL_BINDING: u64 = 8192;

/// A device with the usual bindings, and one with [`SMALL_BINDING`] and no optional features; none, loudly, where there is
/// no adapter.
pub fn devices() -> Vec<Device> {
    fixtures::device(None).into_iter().chain(plain_device(Some(SMALL_BINDING))).collect()
}

/// A device without optional features.
pub fn plain_device(binding_bytes: Option<u64>) -> Option<Device> {
    fixtures::device_with(&Choice { binding_bytes, optional_features: false, ..fixtures::choice() })
}

/// Uniform between −1 and 1.
pub fn random(rows: usize, columns: usize, seed: u32) -> Matrix {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    Matrix { rows, columns, values: (0..rows * columns).map(|_| next()).collect() }
}

/// The matrix on the device.
pub fn upload(device: &Device, matrix: &Matrix) -> DeviceMatrix {
    let uploaded = DeviceMatrix::upload(device, "test", matrix.columns, &matrix.values).unwrap();
    DeviceMatrix { rows: matrix.rows, ..uploaded }
}

/// The matrix on the device in another format, and what that holds.
pub fn upload_as(device: &Device, matrix: &Matrix, number: Number) -> (DeviceMatrix, Matrix) {
    let bits: Vec<u16> = matrix
        .values
        .iter()
        .map(|value| match number {
            Number::F32 => 0,
            Number::F16 => half::f16::from_f32(*value).to_bits(),
            Number::BF16 => half::bf16::from_f32(*value).to_bits(),
        })
        .collect();
    if number == Number::F32 {
        return (upload(device, matrix), matrix.clone());
    }
    let widen = |bits: &u16| match number {
        Number::F16 => half::f16::from_bits(*bits).to_f32(),
        _ => half::bf16::from_bits(*bits).to_f32(),
    };
    let values = bits.iter().map(widen).collect();
    let stored = DeviceMatrix::stored(device, "test", matrix.columns, number, bytemuck::cast_slice(&bits)).unwrap();
    (stored, Matrix { values, ..matrix.clone() })
}

/// The largest of |found − exact| / unit, where both are lists of the same length.
pub fn worst(found: &[f32], exact: &[f64], unit: impl Fn(usize) -> f64) -> f64 {
    assert_eq!(found.len(), exact.len());
    let errors =
        found.iter().zip(exact).enumerate().map(|(i, (found, exact))| (f64::from(*found) - exact).abs() / unit(i));
    // A comparison with NaN is false, so that it counts as the largest.
    errors.fold(0.0, |worst, error| if error <= worst { worst } else { error })
}
