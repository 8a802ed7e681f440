//! Activations with their slopes.

use rayon::prelude::*;

use super::{Matrix, Real};
use crate::forward::Activation;

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

/// The value of an activation and its slope there.
#[inline(always)]
fn value_and_slope<T: Real>(activation: Activation, x: T) -> (T, T) {
    let half = T::of(0.5);
    match activation {
        Activation::Silu => {
            let share = sigmoid(x);
            (x * share, share * (T::ONE + x * (T::ONE - share)))
        }
        Activation::Gelu => {
            let share = half * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
            let density = T::of(0.398_942_280_401_432_7) * (-half * x * x).exp();
            (x * share, share + x * density)
        }
        Activation::GeluTanh => {
            // √(2/π)
            let (root, cubic) = (T::of(0.797_884_560_802_865_4), T::of(0.044715));
            let t = (root * (x + cubic * x * x * x)).tanh();
            let inner = root * (T::ONE + T::of(3.0) * cubic * x * x);
            (half * x * (T::ONE + t), half * (T::ONE + t) + half * x * (T::ONE - t * t) * inner)
        }
        Activation::GeluQuick => {
            let factor = T::of(1.702);
            let share = sigmoid(factor * x);
            (x * share, share + factor * x * share * (T::ONE - share))
        }
        Activation::Relu => {
            if x > T::ZERO {
                (x, T::ONE)
            } else {
                (T::ZERO, T::ZERO)
            }
        }
    }
}

/// What an MLP does between its linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// The activation.
    pub activation: Activation,
    /// Whether rows are `[gate | up]` and the output is activation(gate) · up.
    pub gated: bool,
}

impl Gate {
    /// `[tokens, n]` from `[tokens, n]`, or from `[tokens, 2 n]` where gated.
    #[must_use]
    pub fn apply<T: Real>(self, x: &Matrix<T>) -> Matrix<T> {
        let width = if self.gated { x.columns / 2 } else { x.columns };
        let mut out = Matrix::zeros(x.rows, width);
        out.values.par_chunks_mut(width.max(1)).zip(x.values.par_chunks(x.columns.max(1))).for_each(|(out, row)| {
            let (gate, up) = row.split_at(width);
            for (out, gate) in out.iter_mut().zip(gate) {
                *out = value_and_slope(self.activation, *gate).0;
            }
            for (out, up) in out.iter_mut().zip(up) {
                *out *= *up;
            }
        });
        out
    }

    /// The gradient of `x` from that of the output.
    #[must_use]
    pub fn reverse<T: Real>(self, x: &Matrix<T>, d: &Matrix<T>) -> Matrix<T> {
        let mut out = Matrix::zeros(x.rows, x.columns);
        let width = d.columns.max(1);
        out.values
            .par_chunks_mut(x.columns.max(1))
            .zip(x.values.par_chunks(x.columns.max(1)))
            .zip(d.values.par_chunks(width))
            .for_each(|((out, x), d)| {
                let (gate, up) = x.split_at(width);
                let (out_gate, out_up) = out.split_at_mut(width);
                for (index, (out, gate)) in out_gate.iter_mut().zip(gate).enumerate() {
                    let (value, slope) = value_and_slope(self.activation, *gate);
                    let factor = up.get(index).copied().unwrap_or(T::ONE);
                    *out = d[index] * slope * factor;
                    if let Some(out) = out_up.get_mut(index) {
                        *out = d[index] * value;
                    }
                }
            });
        out
    }
}
