//! Rounds the input of linears as runtimes with quantized activations do.

use rayon::prelude::*;

use super::{InputFormat, Matrix};
use crate::codec::float8;

/// The code of the largest magnitude under a static scale.
const INT8_MAX: f32 = 127.0;

/// The input as such a runtime sees it.
#[must_use]
pub fn rounded(x: &Matrix, format: InputFormat) -> Matrix {
    let mut out = x.clone();
    out.values.par_chunks_mut(x.columns.max(1)).with_min_len(16).for_each(|row| round_row(row, format));
    out
}

impl InputFormat {
    /// With the scale of an input whose largest magnitude is `largest`, where the scale is static: largest / 127, or
    /// largest / 448 for FP8, not yet rounded to any storage type. Other formats have none and stay as they are.
    #[must_use]
    pub fn for_largest(self, largest: f32) -> Self {
        match self {
            Self::Int8Static(_) => Self::Int8Static((largest / INT8_MAX).max(f32::MIN_POSITIVE)),
            Self::Fp8Static(_) => Self::Fp8Static((largest / float8::E4M3_MAX).max(f32::MIN_POSITIVE)),
            other => other,
        }
    }
}

fn round_row(row: &mut [f32], format: InputFormat) {
    let absmax = || row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    match format {
        InputFormat::Exact => {}
        InputFormat::Int8PerToken => {
            let scale = (absmax() / 127.5).max(f32::MIN_POSITIVE);
            int8(row, scale);
        }
        InputFormat::Int8Static(scale) => int8(row, scale),
        InputFormat::Fp8PerToken => {
            let scale = (absmax() / float8::E4M3_MAX).max(f32::MIN_POSITIVE);
            fp8(row, scale);
        }
        InputFormat::Fp8Static(scale) => fp8(row, scale),
    }
}

fn int8(row: &mut [f32], scale: f32) {
    for value in row {
        *value = (*value / scale).round_ties_even().clamp(-128.0, 127.0) * scale;
    }
}

fn fp8(row: &mut [f32], scale: f32) {
    for value in row {
        let clamped = (*value / scale).clamp(-float8::E4M3_MAX, float8::E4M3_MAX);
        *value = float8::e4m3_to_f32(float8::f32_to_e4m3(clamped)) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in F64 that the format holds, as multiples of its scale.
    fn grid(format: InputFormat) -> (f64, Vec<f64>) {
        match format {
            InputFormat::Int8Static(scale) => (f64::from(scale), (-128..=127).map(f64::from).collect()),
            InputFormat::Fp8Static(scale) => {
                let finite = (0..=255_u8).map(|code| f64::from(float8::e4m3_to_f32(code))).filter(|v| v.is_finite());
                (f64::from(scale), finite.collect())
            }
            other => panic!("{other:?} has no one scale"),
        }
    }

    #[test]
    fn a_static_scale_gives_the_nearest_value_of_its_grid_and_clamps() {
        for format in [
            InputFormat::Int8Static(0.037),
            InputFormat::Int8Static(1.0),
            InputFormat::Fp8Static(0.0123),
            InputFormat::Fp8Static(2.0),
        ] {
            let (scale, grid) = grid(format);
            let reach = grid.iter().copied().fold(0.0, f64::max) * scale;
            let values: Vec<f32> = (-3000..=3000).map(|at| (f64::from(at) / 2000.0 * reach) as f32).collect();
            let x = Matrix { rows: 1, columns: values.len(), values };
            let mut clamped = 0;
            for (value, got) in x.values.iter().zip(&rounded(&x, format).values) {
                let (value, got) = (f64::from(*value), f64::from(*got));
                let least = grid.iter().map(|code| (code * scale - value).abs()).fold(f64::INFINITY, f64::min);
                // Where two values are as near, F32 may divide to the other side.
                assert!((got - value).abs() <= least + 1e-6 * reach, "{format:?}: {value} to {got}, {least} away");
                let code = got / scale;
                assert!(grid.iter().any(|known| (known - code).abs() <= 1e-5 * known.abs()), "{format:?}: code {code}");
                clamped += usize::from(value.abs() > reach * 1.1 && (got.abs() - reach).abs() <= 0.01 * reach);
            }
            assert!(clamped > 1000, "{format:?}: {clamped} values beyond the range");
        }
    }

    #[test]
    fn the_largest_magnitude_has_the_largest_code() {
        for (format, steps) in [(InputFormat::Int8Static(0.0), 127.0), (InputFormat::Fp8Static(0.0), 448.0)] {
            for largest in [1e-3_f32, 0.7, 5.0, 1234.5] {
                let (scale, _) = grid(format.for_largest(largest));
                assert!((scale * steps / f64::from(largest) - 1.0).abs() < 1e-6, "{format:?} {largest}: {scale}");
                let x = Matrix { rows: 1, columns: 2, values: vec![largest, -largest] };
                for got in rounded(&x, format.for_largest(largest)).values {
                    assert!((f64::from(got.abs()) / f64::from(largest) - 1.0).abs() < 1e-6, "{got} of {largest}");
                }
            }
        }
        for other in [InputFormat::Exact, InputFormat::Int8PerToken, InputFormat::Fp8PerToken] {
            assert_eq!(other.for_largest(3.0), other);
        }
    }
}
