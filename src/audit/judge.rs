//! How much of the original a recovery is: units are found again by their gates, and columns compared.

use std::collections::HashMap;

use super::{
    layer::{Layer, dense},
    recover::{Columns, Reading},
};
use crate::{checkpoint::Checkpoint, forward::Matrix};

/// What the recovery of a layer is held against.
#[derive(Debug)]
pub struct Original {
    /// `[outputs, hidden units]`.
    down: Matrix,
    /// `[hidden units, inputs]`.
    gate: Matrix,
    /// The same, where the activation is multiplied.
    up: Option<Matrix>,
}

/// A unit of the artifact as the original has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    /// Its index in the original.
    pub unit: usize,
    /// What its gate's row was multiplied with.
    pub gate: f64,
    /// What its row of the up projection was multiplied with.
    pub up: f64,
}

impl Original {
    /// Reads a layer's matrices; none where the source has no such layer.
    #[must_use]
    pub fn of(source: &Checkpoint, layer: &Layer<'_>) -> Option<Self> {
        let down = dense(source, &format!("{}.weight", layer.module), layer.outputs)?;
        let gate = dense(source, layer.gate_name()?, layer.hidden_units)?;
        let up = layer.up_name().and_then(|name| dense(source, name, layer.hidden_units));
        (down.columns == layer.hidden_units).then_some(Self { down, gate, up })
    }

    /// Finds every protected unit of the artifact among the original's, by its gate's row up to a factor ±2^k.
    #[must_use]
    pub fn matches(&self, layer: &Layer<'_>) -> Vec<Option<Match>> {
        let nothing = vec![None; layer.units.len()];
        let Some(gate) = layer.gate() else { return nothing };
        let up = layer.up();
        if gate.columns != self.gate.columns || up.is_some() != self.up.is_some() {
            return nothing;
        }
        let mut places: HashMap<Vec<u32>, Vec<usize>> = HashMap::new();
        for unit in (0..self.gate.rows).rev() {
            places.entry(canonical(self.gate.row(unit)).0).or_default().push(unit);
        }
        let find = |unit: &usize| {
            let (row, factor) = canonical(gate.row(*unit));
            let among = places.get_mut(&row)?;
            // Where rows repeat, the one that is at the same place.
            let index = among.iter().position(|place| place == unit).unwrap_or(among.len().checked_sub(1)?);
            let original = among.remove(index);
            let before = canonical(self.gate.row(original)).1;
            let up = match (&up, &self.up) {
                (Some(stored), Some(up)) => canonical(stored.row(*unit)).1 / canonical(up.row(original)).1,
                _ => 1.0,
            };
            Some(Match { unit: original, gate: factor / before, up })
        };
        layer.units.iter().map(find).collect()
    }

    /// The relative error of every recovered column, times its factor, against the original's; infinite where the unit was not
    /// found.
    #[must_use]
    pub fn errors(&self, columns: &Columns, matches: &[Option<Match>]) -> Vec<f64> {
        let error = |(place, found): (usize, &Option<Match>)| {
            found.map_or(f64::INFINITY, |found| self.error(columns, place, found.unit, found.up))
        };
        matches.iter().enumerate().map(error).collect()
    }

    /// The same taking the columns as they are, at the places where they are.
    #[must_use]
    pub fn errors_in_place(&self, columns: &Columns, units: &[usize]) -> Vec<f64> {
        units.iter().enumerate().map(|(place, unit)| self.error(columns, place, *unit, 1.0)).collect()
    }

    fn error(&self, columns: &Columns, place: usize, unit: usize, factor: f64) -> f64 {
        let (mut wrong, mut all) = (0.0, 0.0);
        for row in 0..self.down.rows {
            let original = f64::from(self.down.row(row)[unit]);
            let found = f64::from(columns.values.row(row)[place]) * factor;
            wrong += (found - original).powi(2);
            all += original * original;
        }
        if wrong == 0.0 { 0.0 } else { (wrong / all).sqrt() }
    }
}

/// A row divided by the sign and the power of two of its first number that is not zero, as bits; and what it was divided by.
fn canonical(row: &[f32]) -> (Vec<u32>, f64) {
    let first = row.iter().find(|value| **value != 0.0).copied().unwrap_or(1.0);
    let exponent = libm::frexp(f64::from(first)).1;
    let factor = libm::ldexp(f64::from(first).signum(), exponent);
    // In F32 nothing is lost but subnormals.
    let bits = row.iter().map(|value| {
        let scaled = (f64::from(*value) / factor) as f32;
        // Zeros of both signs are one.
        if scaled == 0.0 { 0 } else { scaled.to_bits() }
    });
    (bits.collect(), factor)
}

/// What the artifact alone says about the factors of up projections: units of a trained model have much the same ratio of the
/// lengths of their up row and their column, so the ratio of those that are not protected tells the others' 2^k. The magnitude of
/// each factor; none where nothing is left to compare with.
#[must_use]
pub fn guessed_factors(layer: &Layer<'_>, columns: &Columns) -> Option<Vec<f64>> {
    let (plain, up) = (layer.plain()?, layer.up()?);
    let mut protected = layer.units.iter().peekable();
    let others: Vec<usize> = (0..layer.hidden_units).filter(|unit| protected.next_if_eq(&unit).is_none()).collect();
    let lengths = |matrix: &Matrix| {
        let mut squares = vec![0.0_f64; matrix.columns];
        for row in matrix.values.chunks_exact(matrix.columns.max(1)) {
            squares.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
        }
        squares
    };
    let up_square = |unit: usize| up.row(unit).iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    // log2 of |u| / |w|, from squares.
    let ratio = |up: f64, column: f64| (up / column).log2() / 2.0;
    let mut usual: Vec<f64> =
        others.iter().zip(lengths(&plain)).map(|(unit, column)| ratio(up_square(*unit), column)).collect();
    usual.retain(|ratio| ratio.is_finite());
    let usual = median(&mut usual)?;
    let guess = |(unit, column): (&usize, f64)| {
        let exponent = ((ratio(up_square(*unit), column) - usual) / 2.0).round();
        if exponent.is_finite() { exponent.exp2() } else { 1.0 }
    };
    Some(layer.units.iter().zip(lengths(&columns.values)).map(guess).collect())
}

/// The relative error of the merged zeroth terms as predicted from what was recovered.
#[must_use]
pub fn merged_error(layer: &Layer<'_>, columns: &Columns, readings: &[Reading]) -> Option<f64> {
    let merged = layer.merged()?;
    let zeroth: Vec<f64> = readings.iter().map(|reading| reading.zeroth).collect();
    let up = layer.up().map(|up| {
        let mut values = Vec::with_capacity(layer.units.len() * up.columns);
        layer.units.iter().for_each(|unit| values.extend_from_slice(up.row(*unit)));
        Matrix { rows: layer.units.len(), columns: up.columns, values }
    });
    let predicted = crate::passes::taylor_mlp::hardened::merged(&columns.values, &zeroth, up.as_ref());
    if (predicted.rows, predicted.columns) != (merged.rows, merged.columns) {
        return None;
    }
    let (mut wrong, mut all) = (0.0_f64, 0.0_f64);
    for (predicted, stored) in predicted.values.iter().zip(&merged.values) {
        wrong += (f64::from(*predicted) - f64::from(*stored)).powi(2);
        all += f64::from(*stored).powi(2);
    }
    Some(if wrong == 0.0 { 0.0 } else { (wrong / all).sqrt() })
}

/// The middle of some numbers, which are sorted; none of none.
pub(super) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
