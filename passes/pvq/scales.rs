//! Scales of columns.

use half::f16;

use super::{gains::Levels, metric::Metric};
use crate::codec::pyramid::ROOM;

/// The largest scale is brought to 2⁸ up to 2⁹, so that F16 holds in full those down to four millionths of it.
const LARGEST: i32 = 8;

/// Scales as they are stored, and the unit that the levels of gains carry for them.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// As they are stored.
    pub stored: Vec<f16>,
    /// The same numbers.
    pub values: Vec<f32>,
    /// What a scale of 1 stands for.
    pub unit: f64,
}

impl Scales {
    /// Rounds scales, none of them negative.
    pub fn new(wanted: &[f64]) -> Self {
        let largest = wanted.iter().fold(0.0_f64, |largest, scale| largest.max(*scale));
        let unit = if largest > 0.0 { libm::exp2(libm::floor(libm::log2(largest)) - f64::from(LARGEST)) } else { 1.0 };
        let stored: Vec<f16> = wanted.iter().map(|scale| rounded(scale / unit)).collect();
        let values = stored.iter().map(|scale| scale.to_f32()).collect();
        Self { stored, values, unit }
    }

    /// Sets one of them, given in units.
    pub fn set(&mut self, column: usize, scale: f64) {
        self.stored[column] = rounded(scale);
        self.values[column] = self.stored[column].to_f32();
    }

    /// How many are too small to be held in full.
    pub fn clamped(&self) -> u64 {
        self.values.iter().filter(|scale| **scale > 0.0 && **scale < f16::MIN_POSITIVE.to_f32()).count() as u64
    }

    /// Levels in these scales' unit, limited so that no weight is beyond F32.
    pub fn levels(&self, levels: impl Iterator<Item = f64>) -> Levels {
        let largest = self.values.iter().fold(f32::MIN_POSITIVE, |largest, scale| largest.max(*scale));
        let limit = f64::from(f32::MAX / ROOM / ROOM) / f64::from(largest).max(1.0);
        Levels::new(levels.map(|level| (level * self.unit).min(limit) as f32).collect())
    }
}

/// The nearest scale; a positive one stays positive and finite.
fn rounded(scale: f64) -> f16 {
    if scale > 0.0 { f16::from_f64(scale).clamp(f16::MIN_POSITIVE_SUBNORMAL, f16::MAX) } else { f16::ZERO }
}

/// The energy that each column will have when the sweep comes to it, from that of the target.
///
/// Column i loses about the share `lost` of its energy; later column j takes `U_ij / U_ii` of that error, which has
/// nothing to do with j's own weights. So scales are known before the sweep, and vectors can be swept apart.
pub fn foreseen(metric: &Metric, energies: &[f64], lost: f64) -> Vec<f64> {
    let Some(factor) = metric.factor else { return energies.to_vec() };
    let columns = metric.columns;
    let mut foreseen: Vec<f64> = factor.permutation.iter().map(|column| energies[*column]).collect();
    for place in 0..columns {
        let row = &factor.upper[place * columns..][..columns];
        let error = lost * foreseen[place] / f64::from(row[place]).powi(2);
        for (later, share) in foreseen[place + 1..].iter_mut().zip(&row[place + 1..]) {
            *later += error * f64::from(*share).powi(2);
        }
    }
    factor.places.iter().map(|place| foreseen[*place]).collect()
}
