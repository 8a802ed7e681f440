//! Rounds the input of linears as runtimes with quantized activations do.

use rayon::prelude::*;

use super::{InputFormat, Matrix};
use crate::codec::float8;

/// The input as such a runtime sees it.
#[must_use]
pub fn rounded(x: &Matrix, format: InputFormat) -> Matrix {
    let mut out = x.clone();
    out.values.par_chunks_mut(x.columns.max(1)).with_min_len(16).for_each(|row| round_row(row, format));
    out
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
