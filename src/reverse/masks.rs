//! Learned 2:4 masks.
//!
//! Fang et al., "MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models" (arXiv 2409.17481, §3.2, §3.3):
//! each quad of four input columns keeps two weights; which two is one of six candidates, chosen by Gumbel-softmax over
//! six logits while training and by the largest logit in the end.

use rayon::prelude::*;

use super::{Matrix, Moment, Parametrization, Real, WeightGradient, random::Stream};

/// The candidates, in the paper's order: which of four columns stay.
pub const CANDIDATES: [[u8; 4]; 6] =
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]];
/// Rows whose gradient one task takes; the weight's gradient is whole for this many.
pub(super) const BAND: usize = 64;

/// How sharp the choice is, from the first step to the last, linearly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sharpness {
    /// κ, what logits are multiplied by.
    pub scale: [f64; 2],
    /// τ, what the noisy logits are divided by.
    pub temperature: [f64; 2],
    /// What the Gumbel noise is multiplied by; 0 for a plain softmax.
    pub noise: f64,
    /// λ of the penalty −λ (1 − progress) ‖W‖², which keeps large weights; 0 for none.
    pub regularisation: f64,
}

impl Default for Sharpness {
    /// The authors' script.
    fn default() -> Self {
        Self { scale: [1e2, 5e2], temperature: [4.0, 0.05], noise: 1.0, regularisation: 1e-5 }
    }
}

/// `W = base ∘ Σ_c p_c M_c` for every quad, `p = softmax((κ logits + Gumbel noise) / τ)`: parameters
/// `[output, input / 4, 6]`. The noise belongs to seed, tensor and step.
#[derive(Debug, Clone)]
pub struct MaskLogits {
    rows: usize,
    quads: usize,
    tensor: String,
    seed: u64,
    sharpness: Sharpness,
}

fn between([first, last]: [f64; 2], progress: f64) -> f64 {
    first + (last - first) * progress
}

impl MaskLogits {
    /// Masks of a `[rows, columns]` weight; none when columns are not a multiple of four.
    #[must_use]
    pub fn new(rows: usize, columns: usize, tensor: &str, seed: u64, sharpness: Sharpness) -> Option<Self> {
        let quads = columns / 4;
        (columns == quads * 4).then(|| Self { rows, quads, tensor: tensor.to_owned(), seed, sharpness })
    }

    /// Logits to start from: normal with deviation 0.01, and where there is a prior mask, `[output, input]` of ones and
    /// zeros, more for candidates that agree with it: `(overlap − 1) · deviation · strength`, overlap 0 to 2.
    #[must_use]
    pub fn initial(&self, prior: Option<&[bool]>, strength: f64) -> Vec<f32> {
        let stream = Stream::new(self.seed, &format!("{} initial", self.tensor), 0);
        let mut logits: Vec<f64> =
            (0..self.rows * self.quads * 6).into_par_iter().map(|at| 0.01 * stream.normal(at as u64)).collect();
        if let Some(prior) = prior {
            let count = logits.len().max(1) as f64;
            let mean = logits.iter().sum::<f64>() / count;
            let deviation = (logits.iter().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count).sqrt();
            for (logits, prior) in logits.chunks_exact_mut(6).zip(prior.chunks_exact(4)) {
                for (logit, candidate) in logits.iter_mut().zip(&CANDIDATES) {
                    let overlap = candidate.iter().zip(prior).filter(|(keep, prior)| **keep == 1 && **prior).count();
                    *logit += (overlap as f64 - 1.0) * deviation * strength;
                }
            }
        }
        logits.into_iter().map(|logit| logit as f32).collect()
    }

    /// The mask that the logits mean in the end, `[output, input]`: the largest of each quad, the first of equals.
    #[must_use]
    pub fn mask(logits: &[f32]) -> Vec<bool> {
        let best = |quad: &[f32]| (0..quad.len()).fold(0, |best, at| if quad[at] > quad[best] { at } else { best });
        logits.chunks_exact(6).flat_map(|quad| CANDIDATES[best(quad)].map(|keep| keep == 1)).collect()
    }

    /// Outputs and inputs of the weights.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.rows, 4 * self.quads)
    }

    /// κ / τ.
    pub(super) fn slope(&self, moment: Moment) -> f64 {
        let progress = moment.progress();
        between(self.sharpness.scale, progress) / between(self.sharpness.temperature, progress)
    }

    /// −λ (1 − progress).
    pub(super) fn penalty_factor(&self, moment: Moment) -> f64 {
        -self.sharpness.regularisation * (1.0 - moment.progress())
    }

    pub(super) fn noise(&self, moment: Moment) -> Stream {
        Stream::new(self.seed, &self.tensor, moment.step)
    }

    /// Probabilities of a quad's candidates.
    pub(super) fn probabilities<T: Real>(&self, logits: &[T], quad: usize, noise: Stream, moment: Moment) -> [T; 6] {
        let progress = moment.progress();
        let (scale, temperature) =
            (between(self.sharpness.scale, progress), between(self.sharpness.temperature, progress));
        let mut scores = [0.0; 6];
        for (at, (score, logit)) in scores.iter_mut().zip(&logits[quad * 6..]).enumerate() {
            let drawn = match self.sharpness.noise {
                0.0 => 0.0,
                share => share * noise.gumbel((quad * 6 + at) as u64),
            };
            *score = (scale * logit.wide() + drawn) / temperature;
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares = scores.map(|score| libm::exp(score - largest));
        let total: f64 = shares.iter().sum();
        shares.map(|share| T::of(share / total))
    }

    /// Adds the gradient of some rows' logits from that of their weights.
    fn add_rows<T: Real>(
        &self,
        first_row: usize,
        d: &Matrix<T>,
        (parameters, base): (&[T], &Matrix<T>),
        moment: Moment,
        out: &mut [T],
    ) {
        let (noise, slope) = (self.noise(moment), T::of(self.slope(moment)));
        out.par_chunks_mut((self.quads * 6).max(1)).enumerate().for_each(|(row, out)| {
            let (d, base) = (d.row(row), base.row(first_row + row));
            for (at, out) in out.chunks_exact_mut(6).enumerate() {
                let p = self.probabilities(parameters, (first_row + row) * self.quads + at, noise, moment);
                let along = CANDIDATES.map(|candidate| {
                    let mut sum = T::ZERO;
                    for (keep, column) in candidate.iter().zip(4 * at..) {
                        if *keep == 1 {
                            sum += d[column] * base[column];
                        }
                    }
                    sum
                });
                let mut mean = T::ZERO;
                for (p, along) in p.iter().zip(&along) {
                    mean += *p * *along;
                }
                for ((out, p), along) in out.iter_mut().zip(p).zip(along) {
                    *out += slope * p * (along - mean);
                }
            }
        });
    }
}

impl<T: Real> Parametrization<T> for MaskLogits {
    fn shape(&self) -> (usize, usize) {
        self.size()
    }

    fn parameters(&self) -> usize {
        self.rows * self.quads * 6
    }

    fn needs_base(&self) -> bool {
        true
    }

    fn weight(&self, parameters: &[T], mut base: Matrix<T>, moment: Moment) -> Matrix<T> {
        let noise = self.noise(moment);
        base.values.par_chunks_mut((4 * self.quads).max(1)).enumerate().for_each(|(row, values)| {
            for (at, values) in values.chunks_exact_mut(4).enumerate() {
                let p = self.probabilities(parameters, row * self.quads + at, noise, moment);
                for (column, value) in values.iter_mut().enumerate() {
                    let mut share = T::ZERO;
                    for (p, candidate) in p.iter().zip(&CANDIDATES) {
                        if candidate[column] == 1 {
                            share += *p;
                        }
                    }
                    *value *= share;
                }
            }
        });
        base
    }

    fn gradient(
        &self,
        parameters: &[T],
        base: &Matrix<T>,
        product: &WeightGradient<'_, T>,
        moment: Moment,
        out: &mut [T],
    ) {
        let per_row = self.quads * 6;
        for first in (0..self.rows).step_by(BAND) {
            let rows = first..self.rows.min(first + BAND);
            let d = product.weight_rows(rows.clone());
            let out = &mut out[rows.start * per_row..rows.end * per_row];
            self.add_rows(first, &d, (parameters, base), moment, out);
        }
    }

    /// −λ (1 − progress) ‖W‖².
    fn penalty(&self, parameters: &[T], base: &Matrix<T>, moment: Moment, out: &mut [T]) -> f64 {
        let factor = self.penalty_factor(moment);
        if factor == 0.0 {
            return 0.0;
        }
        let mut d = self.weight(parameters, base.clone(), moment);
        let sums: Vec<f64> = d
            .values
            .par_chunks_mut((4 * self.quads).max(1))
            .map(|row| {
                let mut sum = 0.0;
                for value in row {
                    sum += value.wide() * value.wide();
                    *value *= T::of(2.0 * factor);
                }
                sum
            })
            .collect();
        self.add_rows(0, &d, (parameters, base), moment, out);
        factor * sums.iter().sum::<f64>()
    }
}
