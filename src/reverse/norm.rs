//! Norms of rows, and their reverse.

use rayon::prelude::*;

use super::{
    Matrix, Real,
    matrix::{dot, sum_of},
};
use crate::forward::{self, NormKind};

/// Rows whose parameter gradients one task adds up.
pub(super) const ROWS_PER_TASK: usize = 32;

/// A norm with its weights: `x̂ · weight + bias` with `x̂ = (x − mean) / √(mean square + epsilon)`, the mean for layer
/// norms only.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm<T> {
    /// Whether the mean is taken off first.
    pub centred: bool,
    /// `[channels]`, the one already added for Gemma's; empty means ones.
    pub weight: Vec<T>,
    /// `[channels]`, or empty.
    pub bias: Vec<T>,
    /// Added to the mean square.
    pub epsilon: T,
}

/// Gradients of a norm's parameters, shaped as they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NormGradient<T> {
    /// `[channels]`, or empty.
    pub weight: Vec<T>,
    /// `[channels]`, or empty.
    pub bias: Vec<T>,
}

impl<T: Real> NormGradient<T> {
    /// Adds another of the same norm.
    pub fn add(&mut self, other: &Self) {
        for (sum, other) in self.weight.iter_mut().zip(&other.weight).chain(self.bias.iter_mut().zip(&other.bias)) {
            *sum += *other;
        }
    }
}

impl<T: Real> From<forward::Norm> for Norm<T> {
    fn from(norm: forward::Norm) -> Self {
        Self {
            centred: norm.kind == NormKind::Layer,
            weight: T::from_singles(norm.weight),
            bias: T::from_singles(norm.bias),
            epsilon: T::of(f64::from(norm.epsilon)),
        }
    }
}

impl<T: Real> Norm<T> {
    /// x̂ in place; gives 1 / √(mean square + epsilon).
    fn normalize(&self, row: &mut [T]) -> T {
        let count = T::of(row.len().max(1) as f64);
        if self.centred {
            let mean = sum_of(row, row, |x, _| x) / count;
            for value in row.iter_mut() {
                *value -= mean;
            }
        }
        let inverse = T::ONE / (dot(row, row) / count + self.epsilon).sqrt();
        for value in row.iter_mut() {
            *value *= inverse;
        }
        inverse
    }

    /// Normalises one vector.
    pub fn apply_row(&self, row: &mut [T]) {
        self.normalize(row);
        for (value, weight) in row.iter_mut().zip(&self.weight) {
            *value *= *weight;
        }
        for (value, bias) in row.iter_mut().zip(&self.bias) {
            *value += *bias;
        }
    }

    /// Normalises every row.
    #[must_use]
    pub fn apply(&self, x: &Matrix<T>) -> Matrix<T> {
        let mut out = x.clone();
        out.values.par_chunks_mut(x.columns.max(1)).with_min_len(16).for_each(|row| self.apply_row(row));
        out
    }

    /// No gradient yet.
    pub(super) fn no_gradient(&self) -> NormGradient<T> {
        NormGradient { weight: vec![T::ZERO; self.weight.len()], bias: vec![T::ZERO; self.bias.len()] }
    }

    /// Turns the gradient of the output, `d`, into that of the input `x`, and adds those of the parameters. `scratch` is
    /// as long as they are.
    ///
    /// With ĝ = d · weight and r the inverse deviation: r (ĝ − mean(ĝ) − x̂ mean(ĝ x̂)), the mean for layer norms only.
    pub(super) fn reverse_row(&self, x: &[T], d: &mut [T], scratch: &mut [T], gradient: &mut NormGradient<T>) {
        scratch.copy_from_slice(x);
        let inverse = self.normalize(scratch);
        for (sum, d) in gradient.bias.iter_mut().zip(d.iter()) {
            *sum += *d;
        }
        for ((sum, d), x) in gradient.weight.iter_mut().zip(d.iter()).zip(scratch.iter()) {
            *sum += *d * *x;
        }
        for (d, weight) in d.iter_mut().zip(&self.weight) {
            *d *= *weight;
        }
        let count = T::of(x.len().max(1) as f64);
        let mean = if self.centred { sum_of(d, d, |d, _| d) / count } else { T::ZERO };
        let along = dot(d, scratch) / count;
        for (d, x) in d.iter_mut().zip(scratch.iter()) {
            *d = inverse * (*d - mean - *x * along);
        }
    }

    /// Turns the gradient of the output into that of the input, in place.
    ///
    /// `x` and `d` are `[tokens, channels]`.
    pub fn reverse(&self, x: &Matrix<T>, d: &mut Matrix<T>) -> NormGradient<T> {
        let columns = x.columns.max(1);
        let parts: Vec<NormGradient<T>> = d
            .values
            .par_chunks_mut(columns * ROWS_PER_TASK)
            .zip(x.values.par_chunks(columns * ROWS_PER_TASK))
            .map(|(d, x)| {
                let (mut part, mut scratch) = (self.no_gradient(), vec![T::ZERO; columns]);
                for (d, x) in d.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
                    self.reverse_row(x, d, &mut scratch, &mut part);
                }
                part
            })
            .collect();
        let mut gradient = self.no_gradient();
        for part in &parts {
            gradient.add(part);
        }
        gradient
    }
}
