//! The recovery: d numbers of a column share one polynomial, so that the ratios of its terms tell the polynomial.

use rayon::prelude::*;

use super::layer::Layer;
use crate::{
    codec::taylor::{Basis, coefficients},
    forward::Matrix,
};

/// Rows whose sums are made together.
const CHUNK: usize = 64;
/// Largest exponent of a factor ±2^k that is tried on hardened gates.
const LARGEST_EXPONENT: i32 = 8;
/// Hidden points are looked for between minus this and this.
const FARTHEST_POINT: f64 = 16.0;
/// From one tried point to the next.
const STEP: f64 = 0.25;
/// How many of the best tried points, of all factors and bases, are looked at more closely.
const CLOSER: usize = 12;
/// The inverse of the golden ratio.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// How a column's polynomial is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// The stored point is taken for true, up to the factor of the gate.
    Point,
    /// The point is taken for unknown and solved for, from the ratios of the terms.
    Ratios,
}

impl Attack {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Point => "point",
            Self::Ratios => "ratios",
        }
    }
}

/// What is read off from the terms of one unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The factor of its gate row.
    pub gate: f64,
    /// Where its activation is expanded.
    pub point: f64,
    /// The zeroth coefficient.
    pub zeroth: f64,
    /// The coefficients of the powers that have terms.
    pub polynomial: Vec<f64>,
    /// How far the ratios of the terms are from those of the polynomial.
    residual: f64,
}

/// Adds what one row of all terms has to sums, `[powers, units]` each.
type AddRow<'a> = dyn Fn(&[Vec<f32>], &mut [f64]) + Sync + 'a;

/// Ratios of the terms: for every unit, the best multiples of one column that the terms are, of length one.
#[must_use]
pub fn profiles(layer: &Layer<'_>) -> Vec<Vec<f64>> {
    let (units, powers) = (layer.units.len(), layer.powers);
    let sums = |add: &AddRow<'_>| -> Vec<f64> {
        let chunks: Vec<Vec<f64>> = (0..layer.outputs.div_ceil(CHUNK))
            .into_par_iter()
            .map(|chunk| {
                let mut terms = vec![vec![0.0; units]; powers];
                let mut sums = vec![0.0; powers * units];
                for row in chunk * CHUNK..((chunk + 1) * CHUNK).min(layer.outputs) {
                    terms.iter_mut().enumerate().for_each(|(index, term)| layer.read_term(index, row, term));
                    add(&terms, &mut sums);
                }
                sums
            })
            .collect();
        let mut total = vec![0.0; powers * units];
        for chunk in chunks {
            total.iter_mut().zip(chunk).for_each(|(total, part)| *total += part);
        }
        total
    };
    let energies = sums(&|terms, sums| {
        for (sums, term) in sums.chunks_exact_mut(units).zip(terms) {
            sums.iter_mut().zip(term).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
        }
    });
    let strongest: Vec<usize> = (0..units)
        .map(|unit| {
            let energy = |index: &usize| energies[index * units + unit];
            (0..powers).max_by(|a, b| energy(a).total_cmp(&energy(b))).unwrap_or(0)
        })
        .collect();
    let products = sums(&|terms, sums| {
        for (sums, term) in sums.chunks_exact_mut(units).zip(terms) {
            for (unit, (sum, value)) in sums.iter_mut().zip(term).enumerate() {
                *sum += f64::from(*value) * f64::from(terms[strongest[unit]][unit]);
            }
        }
    });
    (0..units).map(|unit| normalized((0..powers).map(|index| products[index * units + unit]).collect())).collect()
}

fn normalized(mut values: Vec<f64>) -> Vec<f64> {
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    if length > 0.0 {
        for value in &mut values {
            *value /= length;
        }
    }
    values
}

/// Reads every unit's polynomial off from the ratios of its terms.
#[must_use]
pub fn read(layer: &Layer<'_>, profiles: &[Vec<f64>], attack: Attack) -> Vec<Reading> {
    let exponents = if layer.is_hardened() { -LARGEST_EXPONENT..=LARGEST_EXPONENT } else { 0..=0 };
    let gates: Vec<f64> = exponents.flat_map(|k| [2_f64.powi(k), -2_f64.powi(k)]).collect();
    let best = |unit: usize| {
        let bases = [Basis::Taylor, Basis::Chebyshev];
        let candidates: Vec<Unknown<'_>> = gates
            .iter()
            .flat_map(|gate| bases.map(|basis| Unknown { layer, unit, profile: &profiles[unit], gate: *gate, basis }))
            .collect();
        let readings: Vec<Reading> = match attack {
            Attack::Point => {
                let point = |unknown: &Unknown<'_>| f64::from(layer.points.z0[unit]) / unknown.gate;
                candidates.iter().map(|unknown| unknown.reading(point(unknown))).collect()
            }
            Attack::Ratios => {
                let mut tried: Vec<_> = candidates.iter().flat_map(Unknown::minima).collect();
                tried.sort_by(|a, b| a.0.total_cmp(&b.0));
                tried.truncate(CLOSER);
                tried.into_iter().map(|(_, unknown, point)| unknown.reading(unknown.closer(point))).collect()
            }
        };
        readings.into_iter().reduce(|best, other| if other.residual < best.residual { other } else { best })
    };
    (0..layer.units.len()).into_par_iter().filter_map(best).collect()
}

/// A unit, and what is assumed of it.
struct Unknown<'a> {
    layer: &'a Layer<'a>,
    unit: usize,
    profile: &'a [f64],
    gate: f64,
    basis: Basis,
}

impl Unknown<'_> {
    fn reading(&self, point: f64) -> Reading {
        let layer = self.layer;
        let half = f64::from(layer.points.h[self.unit]) / self.gate.abs();
        let order = layer.lowest_power + layer.powers - 1;
        let mut polynomial = coefficients(layer.activation, self.basis, order, point, half);
        if self.gate < 0.0 {
            polynomial.iter_mut().skip(1).step_by(2).for_each(|coefficient| *coefficient = -*coefficient);
        }
        let zeroth = polynomial[0];
        let polynomial = polynomial.split_off(layer.lowest_power);
        let expected = normalized(polynomial.clone());
        let cosine: f64 = expected.iter().zip(self.profile).map(|(a, b)| a * b).sum();
        // Not from the cosine itself, which is one to rounding long before the difference is zero.
        let difference = |(a, b): (&f64, &f64)| (a * cosine.signum() - b).powi(2);
        let residual = expected.iter().zip(self.profile).map(difference).sum::<f64>();
        // A polynomial of zeros or of no numbers is none.
        let residual = if residual.is_finite() { residual } else { f64::MAX };
        Reading { gate: self.gate, point, zeroth, polynomial, residual }
    }

    fn residual(&self, point: f64) -> f64 {
        self.reading(point).residual
    }

    /// Tried points with a smaller residual than their neighbours, and their residuals.
    fn minima(&self) -> Vec<(f64, &Self, f64)> {
        let count = (2.0 * FARTHEST_POINT / STEP) as usize;
        let point = |index: usize| index as f64 * STEP - FARTHEST_POINT;
        let residuals: Vec<f64> = (0..=count).map(|index| self.residual(point(index))).collect();
        let is_least = |index: &usize| {
            let before = index.checked_sub(1).and_then(|before| residuals.get(before));
            [before, residuals.get(index + 1)].into_iter().flatten().all(|other| residuals[*index] <= *other)
        };
        (0..=count).filter(is_least).map(|index| (residuals[index], self, point(index))).collect()
    }

    /// The point of the least residual near a tried one, by golden sections.
    fn closer(&self, tried: f64) -> f64 {
        let residual = |point: f64| self.residual(point);
        let (mut low, mut high) = (tried - STEP, tried + STEP);
        let (mut left, mut right) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
        let (mut at_left, mut at_right) = (residual(left), residual(right));
        // Each step leaves 0.618 of the interval: 2^-35 of it after 50.
        for _ in 0..50 {
            if at_left < at_right {
                (high, right, at_right) = (right, left, at_left);
                left = high - GOLDEN * (high - low);
                at_left = residual(left);
            } else {
                (low, left, at_left) = (left, right, at_right);
                right = low + GOLDEN * (high - low);
                at_right = residual(right);
            }
        }
        f64::midpoint(low, high)
    }
}

/// Columns that were recovered.
#[derive(Debug)]
pub struct Columns {
    /// `[outputs, units]`.
    pub values: Matrix,
    /// Of each unit, the relative error of its terms as predicted from its column.
    pub inconsistency: Vec<f64>,
}

/// Solves `Θ_n = w p_n` over all n, by least squares, for the column w of every unit.
#[must_use]
pub fn columns(layer: &Layer<'_>, readings: &[Reading]) -> Columns {
    let (units, powers) = (layer.units.len(), layer.powers);
    let mut values = Matrix::zeros(layer.outputs, units);
    let square = |reading: &Reading| reading.polynomial.iter().map(|p| p * p).sum::<f64>().max(f64::MIN_POSITIVE);
    let squares: Vec<f64> = readings.iter().map(square).collect();
    let sums: Vec<Vec<[f64; 2]>> = values
        .values
        .par_chunks_mut(CHUNK * units)
        .enumerate()
        .map(|(chunk, out)| {
            let mut terms = vec![vec![0.0; units]; powers];
            let mut sums = vec![[0.0; 2]; units];
            for (offset, out) in out.chunks_exact_mut(units).enumerate() {
                let row = chunk * CHUNK + offset;
                terms.iter_mut().enumerate().for_each(|(index, term)| layer.read_term(index, row, term));
                for unit in 0..units {
                    let polynomial = &readings[unit].polynomial;
                    let pairs = || polynomial.iter().zip(&terms).map(|(p, term)| (p, f64::from(term[unit])));
                    let value = pairs().map(|(p, term)| p * term).sum::<f64>() / squares[unit];
                    sums[unit][0] += pairs().map(|(p, term)| (term - p * value).powi(2)).sum::<f64>();
                    sums[unit][1] += pairs().map(|(_, term)| term * term).sum::<f64>();
                    out[unit] = value as f32;
                }
            }
            sums
        })
        .collect();
    let total = |unit: usize| {
        let [wrong, all] = sums.iter().fold([0.0; 2], |[a, b], chunk| [a + chunk[unit][0], b + chunk[unit][1]]);
        if wrong > 0.0 { (wrong / all).sqrt() } else { 0.0 }
    };
    Columns { inconsistency: (0..units).map(total).collect(), values }
}
