//! Linears and the gradients of their weights, which are made only as far as someone asks for them.

use std::ops::Range;

use faer::{Accum, MatMut};
use rayon::prelude::*;

use super::{Matrix, Real, ReverseError, matrix};
use crate::forward::{self, InputFormat, WeightSource};

/// Rows of a direction that are in memory at a time.
const DIRECTION_ROWS: usize = 256;

/// A linear in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear<T> {
    /// `[output, input]`.
    pub weight: Matrix<T>,
    /// `[output]` or empty.
    pub bias: Vec<T>,
}

impl<T: Real> Linear<T> {
    /// Takes over a linear that was read.
    ///
    /// # Errors
    /// [`ReverseError::Unsupported`] where its input is rounded at run time; [`ReverseError::Shape`] for a bias that does
    /// not fit.
    pub fn new(name: &str, linear: forward::Linear) -> Result<Self, ReverseError> {
        exact(name, linear.input)?;
        if !linear.bias.is_empty() {
            shape(&format!("{name} (bias)"), linear.weight.rows, linear.bias.len())?;
        }
        Ok(Self { weight: linear.weight.into(), bias: T::from_singles(linear.bias) })
    }
}

fn exact(name: &str, input: InputFormat) -> Result<(), ReverseError> {
    if input == InputFormat::Exact {
        return Ok(());
    }
    Err(ReverseError::Unsupported { place: format!("`{name}`"), part: "an input that is rounded at run time" })
}

/// Whether a linear reads its input as it is.
pub(super) fn exact_input(source: &dyn WeightSource, name: &str) -> Result<(), ReverseError> {
    exact(name, source.activations(name))
}

/// Whether `what` has as many values as it should.
pub(super) fn shape(what: &str, expected: usize, found: usize) -> Result<(), ReverseError> {
    if expected == found { Ok(()) } else { Err(ReverseError::Shape { what: what.to_owned(), expected, found }) }
}

/// The outputs of linears that share one input, side by side: `[tokens, Σ output]`.
#[must_use]
pub fn apply_together<T: Real>(linears: &[Linear<T>], x: &Matrix<T>) -> Matrix<T> {
    let total = linears.iter().map(|linear| linear.weight.rows).sum();
    let mut out = Matrix::zeros(x.rows, total);
    let mut first = 0;
    for linear in linears {
        let rows = linear.weight.rows;
        let target = out.view_mut().subcols_mut(first, rows);
        matrix::multiply(target, Accum::Replace, x.view(), linear.weight.view().transpose());
        if !linear.bias.is_empty() {
            out.values.par_chunks_mut(total.max(1)).with_min_len(16).for_each(|row| {
                for (value, bias) in row[first..].iter_mut().zip(&linear.bias) {
                    *value += *bias;
                }
            });
        }
        first += rows;
    }
    out
}

/// The gradient of the shared input, `Σ d_l W_l`, from that of the outputs side by side.
#[must_use]
pub fn reverse_together<T: Real>(linears: &[Linear<T>], d: &Matrix<T>) -> Matrix<T> {
    let mut out = Matrix::zeros(d.rows, linears.first().map_or(0, |linear| linear.weight.columns));
    let mut first = 0;
    for linear in linears {
        let rows = linear.weight.rows;
        matrix::multiply(out.view_mut(), Accum::Add, d.view().subcols(first, rows), linear.weight.view());
        first += rows;
    }
    out
}

/// dL/dW = dᵀ x of one linear for the tokens of a batch, not yet multiplied out.
#[derive(Debug, Clone, Copy)]
pub struct WeightGradient<'a, T> {
    /// The linear's place: stage, and index among those of the stage.
    pub place: (usize, usize),
    /// Its input, `[tokens, input]`.
    pub x: &'a Matrix<T>,
    /// Gradient of the outputs of all linears of the stage, `[tokens, Σ output]`.
    pub d: &'a Matrix<T>,
    /// The linear's first column in `d`.
    pub first: usize,
    /// Its outputs.
    pub outputs: usize,
}

impl<T: Real> WeightGradient<'_, T> {
    /// The whole matrix, `[output, input]`.
    #[must_use]
    pub fn weight(&self) -> Matrix<T> {
        self.weight_rows(0..self.outputs)
    }

    /// Some of its rows.
    #[must_use]
    pub fn weight_rows(&self, rows: Range<usize>) -> Matrix<T> {
        let mut out = Matrix::zeros(rows.len(), self.x.columns);
        let d = self.d.view().subcols(self.first + rows.start, rows.len());
        matrix::multiply(out.view_mut(), Accum::Replace, d.transpose(), self.x.view());
        out
    }

    /// Gradient of the bias, `[output]`.
    #[must_use]
    pub fn bias(&self) -> Vec<T> {
        let mut sums = vec![0.0_f64; self.outputs];
        for token in 0..self.d.rows {
            for (sum, d) in sums.iter_mut().zip(&self.d.row(token)[self.first..]) {
                *sum += d.wide();
            }
        }
        sums.into_iter().map(T::of).collect()
    }

    /// `⟨dL/dWᵢ, Sᵢ⟩` of every row i for a direction S of the weight's shape. `direction` writes rows of S,
    /// `[rows, input]`, when they are needed: neither S nor dL/dW is ever whole in memory.
    ///
    /// By `⟨(dᵀ x)ᵢ, Sᵢ⟩ = Σₜ dₜᵢ (x Sᵀ)ₜᵢ`, whose sums over tokens are F64.
    #[must_use]
    pub fn row_products(&self, direction: &dyn Fn(Range<usize>, &mut [T])) -> Vec<f64> {
        let columns = self.x.columns;
        let mut out = Vec::with_capacity(self.outputs);
        for start in (0..self.outputs).step_by(DIRECTION_ROWS) {
            let rows = start..self.outputs.min(start + DIRECTION_ROWS);
            let mut along = Matrix::zeros(rows.len(), columns);
            direction(rows.clone(), &mut along.values);
            let mut products = vec![T::ZERO; rows.len() * self.x.rows];
            // Row i holds the products of all tokens with Sᵢ.
            let target = MatMut::from_row_major_slice_mut(&mut products, rows.len(), self.x.rows);
            matrix::multiply(target, Accum::Replace, along.view(), self.x.view().transpose());
            out.extend(products.chunks(self.x.rows.max(1)).zip(rows).map(|(products, row)| {
                let at = |token: usize| self.d.row(token)[self.first + row].wide();
                products.iter().enumerate().map(|(token, product)| at(token) * product.wide()).sum::<f64>()
            }));
        }
        out
    }
}
