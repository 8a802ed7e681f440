//! MLPs of which some hidden units are stored as terms of polynomials: `y = W h + Σ_n Θ_n (s^n ∘ u)`.

use rayon::prelude::*;

use super::{ForwardError, InputFormat, Matrix, WeightSource, add_terms, matrix::add_multiply_transposed};
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
    /// The power of the first of these.
    lowest_power: usize,
    /// The terms of power zero of all units together: `[outputs, inputs]`, or `[1, outputs]` where nothing multiplies the
    /// activation.
    merged: Option<Matrix>,
}

impl Expanded {
    /// Reads the terms of a down-projection.
    #[must_use]
    pub fn new(expansion: &Expansion<'_>) -> Self {
        let (rows, units) = (expansion.rows, expansion.units.len());
        let terms = expansion.format.powers().map(|power| {
            let mut terms = Matrix::zeros(rows, units);
            expansion.read_terms(power, 0, &mut terms.values);
            terms
        });
        let merged = expansion.merged().map(|values| {
            let rows = if expansion.format.gated { rows } else { 1 };
            Matrix { rows, columns: values.len() / rows.max(1), values }
        });
        Self {
            units: expansion.units.clone(),
            points: expansion.points.clone(),
            terms: terms.collect(),
            lowest_power: *expansion.format.powers().start(),
            merged,
        }
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

    /// Adds `Σ_n Θ_n (s^n ∘ u)` to outputs `[tokens, outputs]`, and what is merged of the MLP's inputs `x`, `[tokens, inputs]`.
    pub fn add_to(&self, y: &mut Matrix, s: &Matrix, u: &Matrix, x: impl FnOnce() -> Matrix, gated: bool) {
        let terms: Vec<_> = self.terms.iter().map(Matrix::view).collect();
        add_terms(&terms, self.lowest_power, s, u, y);
        match &self.merged {
            Some(merged) if gated => add_multiply_transposed(&x(), merged.view(), y),
            Some(merged) => {
                for row in y.values.chunks_exact_mut(y.columns.max(1)) {
                    row.iter_mut().zip(&merged.values).for_each(|(y, merged)| *y += merged);
                }
            }
            None => {}
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
