//! Element by element and row by row: norms, activations, soft-max. Exponentials are our own, so that loops become vector
//! instructions; they agree with the exact function to two units in the last place.

use multiversion::multiversion;
use rayon::prelude::*;

use super::Matrix;

/// Elements that one task takes.
const CHUNK: usize = 1 << 14;

/// e^x: argument reduction by ln 2 in two parts, then a polynomial of degree 6 (Cephes' coefficients).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Below this the result underflows to zero, above it overflows.
    let clamped = if x > -87.3 { x } else { -87.3 };
    let clamped = if clamped < 88.7 { clamped } else { 88.7 };
    let rounded = (clamped * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = clamped - rounded * 0.693_359_4;
    let r = r - rounded * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let power = p * r * r + r + 1.0;
    // Two factors, because 2^128 is no F32.
    let half = ((rounded as i32) >> 1) + 127;
    let rest = rounded as i32 - ((rounded as i32) >> 1) + 127;
    let value = power * f32::from_bits((half as u32) << 23) * f32::from_bits((rest as u32) << 23);
    if x < -87.3 { 0.0 } else { value }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Near zero the quotient loses digits; the odd series does not.
    let e = exp(2.0 * x);
    let quotient = 1.0 - 2.0 / (e + 1.0);
    let square = x * x;
    let series =
        x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * 62.0 / 2835.0))));
    if square < 0.04 { series } else { quotient }
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x).
    Silu,
    /// x · Φ(x), by the error function.
    Gelu,
    /// Its approximation by the hyperbolic tangent.
    GeluTanh,
    /// x · σ(1.702 x).
    GeluQuick,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// By the name that configs use.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Some(Self::GeluTanh),
            "quick_gelu" => Some(Self::GeluQuick),
            "relu" => Some(Self::Relu),
            _ => None,
        }
    }

    /// Applies it in place.
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Self::Silu => silu(values),
            Self::Gelu => {
                for value in values {
                    *value *= 0.5 * (1.0 + libm::erff(*value * std::f32::consts::FRAC_1_SQRT_2));
                }
            }
            Self::GeluTanh => gelu_tanh(values),
            Self::GeluQuick => gelu_quick(values),
            Self::Relu => {
                for value in values {
                    *value = value.max(0.0);
                }
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2+fma", "x86_64+sse4.1"))]
fn silu(values: &mut [f32]) {
    for value in values {
        *value *= sigmoid(*value);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2+fma", "x86_64+sse4.1"))]
fn gelu_quick(values: &mut [f32]) {
    for value in values {
        *value *= sigmoid(1.702 * *value);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2+fma", "x86_64+sse4.1"))]
fn gelu_tanh(values: &mut [f32]) {
    for value in values {
        let x = *value;
        *value = 0.5 * x * (1.0 + tanh(0.797_884_6 * (x + 0.044715 * x * x * x)));
    }
}

/// gpt-oss's gate: `min(gate, limit) · σ(alpha · gate) · (clamp(up, ±limit) + 1)`, gate and up in turn in `pairs`.
pub fn clamped_gate(pairs: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    for (pair, out) in pairs.chunks_exact(2).zip(out) {
        let gate = pair[0].min(limit);
        let up = pair[1].clamp(-limit, limit);
        *out = gate * sigmoid(gate * alpha) * (up + 1.0);
    }
}

/// How a norm computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) · w.
    RootMeanSquare,
    /// x / rms(x) · (1 + w): Gemma.
    RootMeanSquareOffset,
    /// (x − mean) / deviation · w + b.
    Layer,
}

/// A norm with its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Its rule.
    pub kind: NormKind,
    /// `[channels]`, the one already added for Gemma's; empty means ones.
    pub weight: Vec<f32>,
    /// `[channels]`, or empty.
    pub bias: Vec<f32>,
    /// Added to the mean square.
    pub epsilon: f32,
}

impl Norm {
    /// Normalises one vector.
    pub fn apply_row(&self, row: &mut [f32]) {
        normalize(row, self.kind == NormKind::Layer, self.epsilon);
        for (value, weight) in row.iter_mut().zip(&self.weight) {
            *value *= weight;
        }
        for (value, bias) in row.iter_mut().zip(&self.bias) {
            *value += bias;
        }
    }

    /// Normalises every row.
    pub fn apply(&self, matrix: &mut Matrix) {
        let columns = matrix.columns.max(1);
        matrix.values.par_chunks_mut(columns).with_min_len(16).for_each(|row| self.apply_row(row));
    }
}

/// Sixteen running sums, joined at the end: a fixed order that is also fast.
#[inline(always)]
fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for chunk in whole {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += term(*value);
    }
    lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>() as f32
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2+fma", "x86_64+sse4.1"))]
fn normalize(row: &mut [f32], centred: bool, epsilon: f32) {
    let count = row.len().max(1) as f32;
    if centred {
        let mean = sum(row, |value| value) / count;
        for value in row.iter_mut() {
            *value -= mean;
        }
    }
    let inverse = 1.0 / (sum(row, |value| value * value) / count + epsilon).sqrt();
    for value in row.iter_mut() {
        *value *= inverse;
    }
}

/// Turns scores into probabilities in place; `sink` is one more score that takes its share and is dropped.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2+fma", "x86_64+sse4.1"))]
pub fn softmax(scores: &mut [f32], sink: Option<f32>) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in scores.chunks(16) {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *lane = if *score > *lane { *score } else { *lane };
        }
    }
    let largest = lanes.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let total = sum(scores, |score| score) + sink.map_or(0.0, |sink| exp(sink - largest));
    let inverse = 1.0 / total;
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}

/// cap · tanh(x / cap) in place.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2+fma", "x86_64+sse4.1"))]
pub fn soft_cap(values: &mut [f32], cap: f32) {
    for value in values {
        *value = cap * tanh(*value / cap);
    }
}

/// `activation(gate) · up` for rows `[gate | up]`: `[tokens, 2 n]` to `[tokens, n]`.
#[must_use]
pub fn gated(gate_up: &Matrix, activation: Activation) -> Matrix {
    let width = gate_up.columns / 2;
    let mut out = Matrix::zeros(gate_up.rows, width);
    out.values.par_chunks_mut(width.max(1)).zip(gate_up.values.par_chunks(gate_up.columns.max(1))).for_each(
        |(out, row)| {
            let (gate, up) = row.split_at(width);
            out.copy_from_slice(gate);
            activation.apply(out);
            for (out, up) in out.iter_mut().zip(up) {
                *out *= up;
            }
        },
    );
    out
}

/// Applies an activation to a whole matrix.
pub fn activate(matrix: &mut Matrix, activation: Activation) {
    matrix.values.par_chunks_mut(CHUNK).for_each(|part| activation.apply(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_agree_with_the_exact_ones() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= exact * 2.5e-7, "{x}: {} {exact}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-1e9), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn activations_agree_with_their_definitions_in_f64() {
        for i in -4000..4000 {
            let x = i as f32 * 5e-3;
            let y = f64::from(x);
            let sigma = |y: f64| 1.0 / (1.0 + (-y).exp());
            let cdf = 0.5 * (1.0 + libm::erf(y * std::f64::consts::FRAC_1_SQRT_2));
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y * y * y);
            for (activation, exact) in [
                (Activation::Silu, y * sigma(y)),
                (Activation::Gelu, y * cdf),
                (Activation::GeluTanh, 0.5 * y * (1.0 + inner.tanh())),
                (Activation::GeluQuick, y * sigma(1.702 * y)),
                (Activation::Relu, y.max(0.0)),
            ] {
                let mut value = [x];
                activation.apply(&mut value);
                let error = (f64::from(value[0]) - exact).abs();
                assert!(error <= 4e-7 * y.abs().max(1e-3), "{activation:?} {x}: {} {exact}", value[0]);
            }
        }
    }

    #[test]
    fn probabilities_sum_to_one_and_the_sink_takes_its_share() {
        let scores: Vec<f32> = (0..37).map(|i| (i * i % 17) as f32 * 0.3 - 2.0).collect();
        for sink in [None, Some(1.5_f32)] {
            let mut found = scores.clone();
            softmax(&mut found, sink);
            let all: Vec<f64> = scores.iter().copied().chain(sink).map(|score| f64::from(score).exp()).collect();
            let total: f64 = all.iter().sum();
            for (found, exact) in found.iter().zip(&all) {
                assert!((f64::from(*found) - exact / total).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn norms_follow_their_formulas() {
        let row: Vec<f32> = (0..21).map(|i| (i as f32 * 0.7).sin() * 3.0 + 1.0).collect();
        let weight: Vec<f32> = (0..21).map(|i| 0.5 + i as f32 * 0.05).collect();
        let mean: f64 = row.iter().map(|x| f64::from(*x)).sum::<f64>() / 21.0;
        for kind in [NormKind::RootMeanSquare, NormKind::Layer] {
            let centre = if kind == NormKind::Layer { mean } else { 0.0 };
            let square: f64 = row.iter().map(|x| (f64::from(*x) - centre).powi(2)).sum::<f64>() / 21.0;
            let norm = Norm { kind, weight: weight.clone(), bias: vec![0.25; 21], epsilon: 1e-5 };
            let mut found = row.clone();
            norm.apply_row(&mut found);
            for ((found, x), w) in found.iter().zip(&row).zip(&weight) {
                let exact = (f64::from(*x) - centre) / (square + 1e-5).sqrt() * f64::from(*w) + 0.25;
                assert!((f64::from(*found) - exact).abs() < 1e-6);
            }
        }
    }
}
