//! Which hidden units are expanded, and where.

use serde::{Deserialize, Serialize};

use super::{
    Middle, Settings,
    hardened::{Disguise, secret},
};
use crate::{
    checkpoint::Dtype,
    codec::taylor::{Basis, Points, Taylor, coefficients, radius, uniform_error},
    forward::Matrix,
};

/// Share of the radius of convergence that a range may reach.
const REACH: f64 = 0.7;

/// The least half width of a range: of a gate that never changes.
const LEAST_HALF: f64 = 1e-3;

/// What calibration saw of each hidden unit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranges {
    /// The least input of the activation, bias included.
    pub lowest: Vec<f64>,
    /// The largest.
    pub highest: Vec<f64>,
    /// The mean.
    pub mean: Vec<f64>,
    /// The standard deviation.
    pub deviation: Vec<f64>,
    /// The largest magnitude of what the activation is multiplied by; 1 where there is no such thing.
    pub largest_up: Vec<f64>,
}

/// Fewer units can be expanded than are to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TooFew {
    /// Units that can be.
    pub qualifying: usize,
    /// Units that are to be.
    pub wanted: usize,
    /// All units.
    pub units: usize,
}

impl TooFew {
    /// The largest share that can be, rounded down to four digits.
    #[must_use]
    pub fn largest_share(&self) -> f64 {
        (self.qualifying as f64 / self.units.max(1) as f64 * 1e4).floor() / 1e4
    }
}

/// What the polynomials of a matrix promise, for the manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Expanded units.
    pub units: usize,
    /// Units that reach beyond 0.7 of the radius of convergence and so stay plain, by number.
    pub outside: Vec<usize>,
    /// The largest |z − z0| of an expanded unit over its radius of convergence; absent where series have no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_reach: Option<f64>,
    /// The largest bound of |φ − polynomial| within the range, of all expanded units.
    pub largest_error: f64,
    /// The mean of these bounds.
    pub mean_error: f64,
    /// The bound of every expanded unit, in the order of their numbers, rounded up to three digits.
    #[serde(default)]
    pub unit_errors: Vec<f64>,
    /// The largest bound of what a single output is off by: Σ |W| |u| · bound, with the largest |u| that calibration saw.
    pub output_error: f64,
}

/// The units that are expanded and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// The units, ascending.
    pub units: Vec<usize>,
    /// Where their polynomials stand, as stored: of a negated gate.
    pub points: Points,
    /// What the gate's row is stored times: 1, −1 or, hardened, ±2^k.
    pub gate: Vec<f32>,
    /// What the up-projection's row is stored times, and the column is divided by: ±2^k; empty where not hardened.
    pub up: Vec<f32>,
    /// Bounds of |φ − polynomial| within the range.
    pub errors: Vec<f64>,
    /// The same in numbers for the manifest, but for the output's.
    pub figures: Figures,
}

/// A unit that may be expanded.
struct Candidate {
    unit: usize,
    gap: f64,
    z0: f32,
    h: f32,
    lo: f32,
    hi: f32,
    reach: f64,
}

impl Selection {
    /// Chooses the units with the smallest ranges among those whose series converge.
    ///
    /// # Errors
    /// [`TooFew`] when there are not as many.
    pub fn new(
        settings: &Settings,
        format: &Taylor,
        ranges: &Ranges,
        (seed, name): (u64, &str),
    ) -> Result<Self, TooFew> {
        let units = ranges.lowest.len();
        let all: Vec<Candidate> = (0..units).map(|unit| candidate(settings, format, ranges, unit)).collect();
        let (mut inside, outside): (Vec<Candidate>, Vec<Candidate>) =
            all.into_iter().partition(|candidate| format.basis == Basis::Chebyshev || candidate.reach <= REACH);
        if inside.len() < format.units {
            return Err(TooFew { qualifying: inside.len(), wanted: format.units, units });
        }
        inside.sort_by(|a, b| a.gap.total_cmp(&b.gap).then(a.unit.cmp(&b.unit)));
        inside.truncate(format.units);
        inside.sort_by_key(|candidate| candidate.unit);
        let errors: Vec<f64> = inside
            .iter()
            .map(|unit| {
                let (z0, h, lo, hi) = (f64::from(unit.z0), f64::from(unit.h), f64::from(unit.lo), f64::from(unit.hi));
                let powers = coefficients(format.activation, format.basis, format.order, z0, h);
                uniform_error(format.activation, &powers, z0, h, lo, hi)
            })
            .collect();
        let reach = inside.iter().map(|unit| unit.reach).fold(0.0, f64::max);
        let figures = Figures {
            units: inside.len(),
            outside: outside.iter().map(|unit| unit.unit).collect(),
            largest_reach: (reach > 0.0).then_some(reach),
            largest_error: errors.iter().copied().fold(0.0, f64::max),
            mean_error: errors.iter().sum::<f64>() / errors.len().max(1) as f64,
            unit_errors: errors.iter().map(|error| rounded_up(*error)).collect(),
            output_error: 0.0,
        };
        let negated: Vec<bool> = inside
            .iter()
            .map(|unit| settings.perturb && !settings.hardened && is_negated(seed, name, unit.unit))
            .collect();
        let mut selection = Self {
            units: inside.iter().map(|unit| unit.unit).collect(),
            points: Points::default(),
            gate: vec![1.0; inside.len()],
            up: Vec::new(),
            errors,
            figures,
        };
        for unit in &inside {
            selection.points.z0.push(unit.z0);
            selection.points.h.push(unit.h);
            selection.points.lo.push(unit.lo);
            selection.points.hi.push(unit.hi);
        }
        for at in (0..inside.len()).filter(|at| negated[*at]) {
            selection.negate(at);
        }
        Ok(selection)
    }

    /// Negates the gate of a unit, or takes that back.
    fn negate(&mut self, at: usize) {
        let Points { z0, lo, hi, .. } = &mut self.points;
        z0[at] = -z0[at];
        (lo[at], hi[at]) = (-hi[at], -lo[at]);
        self.gate[at] = -self.gate[at];
    }

    /// Hides what can be hidden, drawn from the weights: `down` `[rows, columns]`, all rows of gate and up as stored in `dtype`.
    /// Units whose weights are all zero stay as they are: nothing could tell later how their gate is stored.
    pub fn harden(
        &mut self,
        (seed, name): (u64, &str),
        down: &Matrix,
        gate: &Matrix,
        up: Option<&Matrix>,
        dtype: Dtype,
    ) {
        let own = |all: &Matrix| {
            let values = self.units.iter().flat_map(|unit| all.row(*unit)).copied().collect();
            Matrix { rows: self.units.len(), columns: all.columns, values }
        };
        let mut disguise = Disguise::draw(&secret(seed, name, &down.values), &own(gate), up.map(own).as_ref(), dtype);
        for (at, unit) in self.units.iter().enumerate() {
            if (0..down.rows).all(|row| down.row(row)[*unit] == 0.0) {
                (disguise.gate[at], disguise.up[at]) = (1.0, 1.0);
            }
        }
        self.points = disguise.points(&self.points, None);
        (self.gate, self.up) = (disguise.gate, disguise.up);
    }

    /// Takes the weights into account, `[rows, columns]`: what an output can be off by; and units whose weights are all zero,
    /// of which nothing could tell later that their gate is negated, are not.
    pub fn see(&mut self, weights: &Matrix, ranges: &Ranges) {
        for at in 0..self.units.len() {
            let unit = self.units[at];
            if self.gate[at] < 0.0 && (0..weights.rows).all(|row| weights.row(row)[unit] == 0.0) {
                self.negate(at);
            }
        }
        let of_row = |row: usize| -> f64 {
            let weights = weights.row(row);
            let parts = self.units.iter().zip(&self.errors);
            parts.map(|(unit, error)| f64::from(weights[*unit]).abs() * ranges.largest_up[*unit] * error).sum()
        };
        self.figures.output_error = (0..weights.rows).map(of_row).fold(0.0, f64::max);
    }
}

fn candidate(settings: &Settings, format: &Taylor, ranges: &Ranges, unit: usize) -> Candidate {
    let (mut lowest, mut highest) = (ranges.lowest[unit], ranges.highest[unit]);
    if let Some(deviations) = settings.deviations {
        let (mean, far) = (ranges.mean[unit], deviations * ranges.deviation[unit]);
        (lowest, highest) = (lowest.max(mean - far), highest.min(mean + far));
    }
    let gap = highest - lowest;
    let (lo, hi) = (lowest - settings.margin * gap, highest + settings.margin * gap);
    let (lo, hi) = (lo.min(lowest - LEAST_HALF) as f32, hi.max(highest + LEAST_HALF) as f32);
    let middle = f64::midpoint(f64::from(lo), f64::from(hi));
    let z0 = match settings.point {
        Middle::Mean if format.basis == Basis::Taylor => ranges.mean[unit] as f32,
        _ => middle as f32,
    };
    let z0 = z0.clamp(lo, hi);
    let far = f64::from(hi - z0).max(f64::from(z0 - lo));
    let h = if format.basis == Basis::Taylor { 1.0 } else { far.max(LEAST_HALF) as f32 };
    let radius = radius(format.activation, f64::from(z0));
    let reach = if radius.is_finite() { far / radius } else { 0.0 };
    Candidate { unit, gap, z0, h, lo, hi, reach }
}

/// A bound in three digits, not below it.
fn rounded_up(bound: f64) -> f64 {
    let digits = format!("{bound:.2e}").parse().unwrap_or(bound);
    let above = || format!("{:.2e}", bound * 1.006).parse().unwrap_or(bound);
    if digits >= bound { digits } else { above() }
}

/// A fair coin of each unit, the same for every run.
fn is_negated(seed: u64, name: &str, unit: usize) -> bool {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"bantam taylor_mlp sign");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(unit as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.finalize().as_bytes()[0] & 1 == 1
}
