//! MLPs of which some hidden units are stored as terms of polynomials: `y = W h + Σ_n Θ_n (s^n ∘ u)`.

use rayon::prelude::*;

use super::{ForwardError, InputFormat, Matrix, WeightSource, multiply_transposed};
use crate::{
    codec::taylor::{Expansion, Points},
    layout::LogicalCheckpoint,
};

/// The expanded hidden units of an MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct Expanded {
    /// Which they are, ascending.
    units: Vec<usize>,
    points: Points,
    /// `[outputs, units]` by power.
    terms: Vec<Matrix>,
}

impl Expanded {
    /// Reads the terms of a down-projection.
    #[must_use]
    pub fn new(expansion: &Expansion<'_>) -> Self {
        let (rows, units) = (expansion.rows, expansion.units.len());
        let terms = (0..=expansion.format.order).map(|power| {
            let mut terms = Matrix::zeros(rows, units);
            expansion.read_terms(power, 0, &mut terms.values);
            terms
        });
        Self { units: expansion.units.clone(), points: expansion.points.clone(), terms: terms.collect() }
    }

    /// s and u, each `[tokens, units]`, from the outputs of gate and up side by side (or of the only up-projection).
    #[must_use]
    pub fn arguments(&self, y: &Matrix, gated: bool) -> [Matrix; 2] {
        let units = self.units.len();
        let (mut s, mut u) = (Matrix::zeros(y.rows, units), Matrix::zeros(y.rows, units));
        let width = if gated { y.columns / 2 } else { y.columns };
        let Points { z0, h, lo, hi } = &self.points;
        let rows = s.values.par_chunks_mut(units.max(1)).zip(u.values.par_chunks_mut(units.max(1)));
        rows.zip(y.values.par_chunks(y.columns.max(1))).for_each(|((s, u), y)| {
            for (at, unit) in self.units.iter().enumerate() {
                s[at] = (y[*unit].clamp(lo[at], hi[at]) - z0[at]) / h[at];
                u[at] = if gated { y[width + unit] } else { 1.0 };
            }
        });
        [s, u]
    }

    /// Adds `Σ_n Θ_n (s^n ∘ u)` to outputs `[tokens, outputs]`. Powers grow by a product with s, which Horner's rule would
    /// multiply the sum with: s is of a unit and the sum of an output, so that only the former is a product of matrices.
    pub fn add_to(&self, y: &mut Matrix, s: &Matrix, u: &Matrix) {
        let mut power = u.clone();
        for (n, terms) in self.terms.iter().enumerate() {
            if n > 0 {
                power.values.par_chunks_mut(1 << 14).zip(s.values.par_chunks(1 << 14)).for_each(|(power, s)| {
                    power.iter_mut().zip(s).for_each(|(power, s)| *power *= s);
                });
            }
            y.add(&multiply_transposed(&power, terms));
        }
    }
}

/// A checkpoint whose expanded down-projections are computed with as stored, as a runtime does, not with the weights that
/// [`LogicalCheckpoint`] finds behind them.
#[derive(Clone, Copy)]
pub struct AsStored<'a>(pub &'a LogicalCheckpoint);

impl WeightSource for AsStored<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        WeightSource::shape(self.0, name)
    }

    fn read(&self, name: &str, transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        if let Some(expansion) = self.0.expansion(name)? {
            expansion.read_plain(first_row, out);
            return Ok(());
        }
        if !self.0.is_signed(name) {
            return self.0.read(name, transposed, first_row, out);
        }
        let rows = self.0.rows_as_stored(name, transposed)?;
        rows.read_rows(first_row, out).map_err(|source| ForwardError::Codec { tensor: name.to_owned(), source })
    }

    fn activations(&self, weight: &str) -> InputFormat {
        self.0.activations(weight)
    }

    fn expanded(&self, down: &str) -> Result<Option<Expanded>, ForwardError> {
        Ok(self.0.expansion(down)?.as_ref().map(Expanded::new))
    }
}
