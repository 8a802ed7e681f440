//! What rounding scaled weights costs on an input.

use super::{Consumer, FoldStatistics};
use crate::forward::{InputFormat, Matrix, multiply_transposed, rounded};

/// Most rows of one consumer that a search looks at.
const ROWS: usize = 512;
/// Most rows of all consumers together: those of many experts are thinned out.
const ALL_ROWS: usize = 4096;
/// Fewest rows of one consumer.
const FEWEST: usize = 8;

/// Evenly spaced rows of every consumer.
#[derive(Debug)]
pub struct LossRows {
    /// `[rows, channels]` of each consumer.
    pub weights: Vec<Matrix>,
    /// Rows that each of them stands for.
    shares: Vec<f64>,
}

impl LossRows {
    /// Takes them; the same every time.
    #[must_use]
    pub fn new(consumers: &[Consumer<'_>], width: usize) -> Self {
        let most = (ALL_ROWS / consumers.len().max(1)).clamp(FEWEST, ROWS);
        let (mut weights, mut shares) = (Vec::new(), Vec::new());
        for consumer in consumers {
            let count = consumer.rows.min(most);
            let mut rows = Matrix::zeros(count, width);
            for row in 0..count {
                let from = row * consumer.rows / count;
                rows.row_mut(row).copy_from_slice(&consumer.weights[from * width..][..width]);
            }
            weights.push(rows);
            shares.push(consumer.rows as f64 / count.max(1) as f64);
        }
        Self { weights, shares }
    }

    /// Σ over consumers of tr(Δ H Δᵀ), Δ = Q(W·S)·S⁻¹ − W, each consumer's rows weighted by how many they stand for.
    /// Infinite where a scaled weight overflows.
    #[must_use]
    pub fn weight_loss(&self, consumers: &[Consumer<'_>], measure: &Measure, scales: &[f64]) -> f64 {
        let mut sum = 0.0;
        for ((consumer, rows), share) in consumers.iter().zip(&self.weights).zip(&self.shares) {
            let mut difference = scaled(rows, scales);
            difference.values = (consumer.quantize)(&difference.values, rows.rows);
            for (row, weights) in difference.values.chunks_exact_mut(scales.len().max(1)).zip(0..rows.rows) {
                for ((value, scale), weight) in row.iter_mut().zip(scales).zip(rows.row(weights)) {
                    *value = (f64::from(*value) / scale - f64::from(*weight)) as f32;
                }
            }
            sum += share * measure.of(&difference);
        }
        if sum.is_finite() { sum } else { f64::INFINITY }
    }

    /// Σ over consumers of ‖X Wᵀ − Q(X S⁻¹) Q(W·S)ᵀ‖²: the input is rounded too.
    #[must_use]
    pub fn output_loss(&self, consumers: &[Consumer<'_>], sample: &Matrix, absmax: &[f32], scales: &[f64]) -> f64 {
        let inverse: Vec<f64> = scales.iter().map(|scale| 1.0 / scale).collect();
        let divided = scaled(sample, &inverse);
        let largest = absmax.iter().zip(&inverse).map(|(value, inverse)| f64::from(*value) * inverse);
        let largest = largest.fold(0.0_f64, f64::max) as f32;
        let mut kept: Option<(InputFormat, Matrix)> = None;
        let mut sum = 0.0;
        for ((consumer, rows), share) in consumers.iter().zip(&self.weights).zip(&self.shares) {
            // A static scale follows the largest magnitude that is left.
            let format = consumer.input.for_largest(largest);
            if kept.as_ref().is_none_or(|(other, _)| *other != format) {
                kept = Some((format, rounded(&divided, format)));
            }
            let Some((_, input)) = &kept else { continue };
            let mut weights = scaled(rows, scales);
            weights.values = (consumer.quantize)(&weights.values, rows.rows);
            let exact = multiply_transposed(sample, rows);
            let lossy = multiply_transposed(input, &weights);
            let squares = exact.values.iter().zip(&lossy.values).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
            sum += share * squares.sum::<f64>();
        }
        if sum.is_finite() { sum } else { f64::INFINITY }
    }
}

/// Columns multiplied, in F64 and rounded once.
fn scaled(matrix: &Matrix, scales: &[f64]) -> Matrix {
    let mut out = matrix.clone();
    for row in out.values.chunks_exact_mut(scales.len().max(1)) {
        for (value, scale) in row.iter_mut().zip(scales) {
            *value = (f64::from(*value) * scale) as f32;
        }
    }
    out
}

/// Second moments, or the tokens themselves where there are none.
#[derive(Debug)]
pub enum Measure {
    /// H divided by the factor, so that F32 holds it.
    Hessian {
        /// `[channels, channels]`.
        matrix: Matrix,
        /// What it is multiplied by.
        factor: f64,
    },
    /// Token rows.
    Sample(Matrix),
}

impl Measure {
    /// From statistics; none where they have neither.
    #[must_use]
    pub fn new(statistics: &FoldStatistics<'_>, width: usize) -> Option<Self> {
        if let Some(hessian) = statistics.hessian {
            let mean = (0..width).map(|i| hessian[i * width + i]).sum::<f64>() / width.max(1) as f64;
            let factor = if mean > 0.0 { mean } else { 1.0 };
            let values = hessian.iter().map(|value| (value / factor) as f32).collect();
            return Some(Self::Hessian { matrix: Matrix { rows: width, columns: width, values }, factor });
        }
        statistics.sample.map(|sample| Self::Sample(sample.clone()))
    }

    /// tr(Δ H Δᵀ). Products are F32, sums F64.
    #[must_use]
    pub fn of(&self, difference: &Matrix) -> f64 {
        match self {
            Self::Hessian { matrix, factor } => {
                let product = multiply_transposed(difference, matrix);
                let pairs = product.values.iter().zip(&difference.values);
                factor * pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            }
            Self::Sample(sample) => {
                multiply_transposed(sample, difference).values.iter().map(|value| f64::from(*value).powi(2)).sum()
            }
        }
    }
}
