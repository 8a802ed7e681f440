//! Error figures against sums in F64.

use super::{SHAPES, device, source, weights};
use crate::compute::kernels::{SourceFormat, error_sums};

/// Of sums of squares: 16 additions a thread, 8 levels of halves, each at most 2⁻²⁴ of the sum.
const SQUARES_TOLERANCE: f64 = 24.0 / 16_777_216.0;

#[test]
fn sums_of_errors_are_those_of_f64() {
    let Some(device) = device() else { return };
    for (rows, columns, _) in SHAPES {
        let (_, mut values) = weights(SourceFormat::F32, rows * columns, 3);
        for value in &mut values {
            // Squares of the others leave F32's range, which is the next test's.
            *value = if value.abs() < 1e-3 { 0.01 } else { value.clamp(-10.0, 10.0) };
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let decoded: Vec<f32> = values.iter().map(|value| (value * 7.0).round() / 7.0 + 0.001).collect();
        let weights = device.upload("weights", &bytes).unwrap();
        let buffer = device.upload("decoded", bytemuck::cast_slice(&decoded)).unwrap();
        let source = source(&weights, SourceFormat::F32, rows, columns);
        let sums = error_sums(&device, &source, &buffer).unwrap().unwrap();
        let again = error_sums(&device, &source, &buffer).unwrap().unwrap();
        assert_eq!(sums, again, "not the same twice");

        let pairs = || values.iter().zip(&decoded).map(|(w, d)| (f64::from(*w), f64::from(*d)));
        let squares: f64 = pairs().map(|(w, _)| w * w).sum();
        let decoded_squares: f64 = pairs().map(|(_, d)| d * d).sum();
        let products: f64 = pairs().map(|(w, d)| w * d).sum();
        let worst = values.iter().zip(&decoded).map(|(w, d)| (d - w).abs()).fold(0.0, f32::max);
        let errors: f64 = pairs().map(|(w, d)| (d - w).powi(2)).sum();
        // Each difference is rounded once, which counts twice in its square.
        let rounding = 2.0 * f64::from(f32::EPSILON) * (squares.sqrt() * errors.sqrt());
        for (name, found, expected, tolerance) in [
            ("Σ w²", sums.source_squares, squares, SQUARES_TOLERANCE * squares),
            ("Σ ŵ²", sums.decoded_squares, decoded_squares, SQUARES_TOLERANCE * decoded_squares),
            ("Σ w·ŵ", sums.products, products, SQUARES_TOLERANCE * (squares * decoded_squares).sqrt()),
            ("Σ (ŵ − w)²", sums.error_squares, errors, SQUARES_TOLERANCE * errors + rounding),
        ] {
            assert!((found - expected).abs() <= tolerance, "{name} of {rows} × {columns}: {found:e}, not {expected:e}");
        }
        assert_eq!(sums.max_abs, worst, "{rows} × {columns}");
    }
}

#[test]
fn squares_beyond_the_range_of_f32_are_left_to_the_processor() {
    let Some(device) = device() else { return };
    for (weight, decoded) in [(1e30_f32, 1e30_f32), (1e-30, 2e-30), (1.0, f32::NAN), (1.0, f32::INFINITY)] {
        let weights = device.upload("weights", &weight.to_le_bytes()).unwrap();
        let decoded = device.upload("decoded", &decoded.to_le_bytes()).unwrap();
        let source = source(&weights, SourceFormat::F32, 1, 1);
        assert_eq!(error_sums(&device, &source, &decoded).unwrap(), None, "{weight:e}");
    }
}
