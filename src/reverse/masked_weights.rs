//! Masks that are learned together with the weights that they keep.

use rayon::prelude::*;

use super::{
    MaskLogits, Matrix, Moment, Parametrization, Real, WeightGradient,
    masks::{BAND, CANDIDATES},
};

/// [`MaskLogits`] of weights that are trained too: parameters `[output, input / 4, 6]` logits, then `[output, input]`
/// weights, whatever the mask says of them, in units of `unit`. There is no base.
#[derive(Debug, Clone)]
pub struct MaskedWeights {
    masks: MaskLogits,
    unit: f64,
}

impl MaskedWeights {
    /// Weights whose parameters mean `unit` each: with one learning rate, weights move by that share of it.
    #[must_use]
    pub fn new(masks: MaskLogits, unit: f64) -> Self {
        Self { masks, unit }
    }

    /// How many of the parameters, the first ones, are logits.
    #[must_use]
    pub fn logits(&self) -> usize {
        let (rows, columns) = self.masks.size();
        rows * columns / 4 * 6
    }

    /// The weights `[output, input]` that parameters mean, before any mask.
    #[must_use]
    pub fn weights<T: Real>(&self, parameters: &[T]) -> Vec<T> {
        let unit = T::of(self.unit);
        parameters[self.logits()..].iter().map(|parameter| *parameter * unit).collect()
    }

    /// Adds the gradient of some rows from that of the masked weights, `d`; `weights`, `logits` and the two outputs are of
    /// all rows, and of these rows.
    fn add_rows<T: Real>(
        &self,
        rows: std::ops::Range<usize>,
        d: &Matrix<T>,
        (logits, weights): (&[T], &[T]),
        moment: Moment,
        (of_logits, of_weights): (&mut [T], &mut [T]),
    ) {
        let (_, columns) = self.masks.size();
        let (quads, unit) = (columns / 4, T::of(self.unit));
        let (noise, slope) = (self.masks.noise(moment), T::of(self.masks.slope(moment)));
        let outputs = of_logits.par_chunks_mut((quads * 6).max(1)).zip(of_weights.par_chunks_mut(columns.max(1)));
        outputs.enumerate().for_each(|(index, (of_logits, of_weights))| {
            let row = rows.start + index;
            let (d, weights) = (d.row(index), &weights[row * columns..][..columns]);
            let out = of_logits.chunks_exact_mut(6).zip(of_weights.chunks_exact_mut(4));
            for (at, (of_logits, of_weights)) in out.enumerate() {
                let p = self.masks.probabilities(logits, row * quads + at, noise, moment);
                let (d, weights) = (&d[4 * at..][..4], &weights[4 * at..][..4]);
                let (mut along, mut mean, mut shares) = ([T::ZERO; 6], T::ZERO, [T::ZERO; 4]);
                for ((candidate, p), along) in CANDIDATES.iter().zip(&p).zip(&mut along) {
                    for column in (0..4).filter(|column| candidate[*column] == 1) {
                        *along += d[column] * weights[column];
                        shares[column] += *p;
                    }
                    mean += *p * *along;
                }
                for ((out, p), along) in of_logits.iter_mut().zip(p).zip(along) {
                    *out += slope * p * (along - mean);
                }
                for ((out, d), share) in of_weights.iter_mut().zip(d).zip(shares) {
                    *out += unit * *d * share;
                }
            }
        });
    }
}

impl<T: Real> Parametrization<T> for MaskedWeights {
    fn shape(&self) -> (usize, usize) {
        self.masks.size()
    }

    fn parameters(&self) -> usize {
        let (rows, columns) = self.masks.size();
        self.logits() + rows * columns
    }

    fn weight(&self, parameters: &[T], mut base: Matrix<T>, moment: Moment) -> Matrix<T> {
        base.values = self.weights(parameters);
        self.masks.weight(&parameters[..self.logits()], base, moment)
    }

    fn gradient(
        &self,
        parameters: &[T],
        _base: &Matrix<T>,
        product: &WeightGradient<'_, T>,
        moment: Moment,
        out: &mut [T],
    ) {
        let (all, columns) = self.masks.size();
        let (weights, logits) = (self.weights(parameters), &parameters[..self.logits()]);
        let (of_logits, of_weights) = out.split_at_mut(self.logits());
        for first in (0..all).step_by(BAND) {
            let rows = first..all.min(first + BAND);
            let d = product.weight_rows(rows.clone());
            let place = |width: usize| rows.start * width..rows.end * width;
            let out = (&mut of_logits[place(columns / 4 * 6)], &mut of_weights[place(columns)]);
            self.add_rows(rows.clone(), &d, (logits, &weights), moment, out);
        }
    }

    /// That of [`MaskLogits`], of the weights as they are.
    fn penalty(&self, parameters: &[T], _base: &Matrix<T>, moment: Moment, out: &mut [T]) -> f64 {
        let factor = self.masks.penalty_factor(moment);
        if factor == 0.0 {
            return 0.0;
        }
        let (rows, columns) = self.masks.size();
        let (weights, logits) = (self.weights(parameters), &parameters[..self.logits()]);
        let whole = Matrix { rows, columns, values: weights.clone() };
        let mut d = self.masks.weight(logits, whole, moment);
        let sums: Vec<f64> = d
            .values
            .par_chunks_mut(columns.max(1))
            .map(|row| {
                let squares = row.iter().map(|value| value.wide() * value.wide()).sum::<f64>();
                for value in row {
                    *value *= T::of(2.0 * factor);
                }
                squares
            })
            .collect();
        let (of_logits, of_weights) = out.split_at_mut(self.logits());
        self.add_rows(0..rows, &d, (logits, &weights), moment, (of_logits, of_weights));
        factor * sums.iter().sum::<f64>()
    }
}
