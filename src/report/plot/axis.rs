//! Axes: what they reach over, and where their marks stand.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// A linear axis with marks of our own choice.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// From `low` to `high`, which is more, with marks at these places.
    pub(super) fn new(low: f64, high: f64, ticks: Vec<f64>) -> Self {
        Self { low, high, ticks }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        (f64::from(limit.0) + share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

/// What stands at a mark: as many decimals as tell it from the next one.
pub(super) fn label(value: f64, ticks: &[f64]) -> String {
    let [first, second, ..] = ticks else { return crate::report::text::figure(value) };
    let step = second - first;
    let decimals = (-(step.log10() + 1e-9).floor()).max(0.0) as usize;
    // No minus before a zero that rounding left.
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    if decimals > 5 { format!("{value:.1e}") } else { format!("{value:.decimals$}") }
}

/// Multiples of 1, 2 or 5 times a power of ten between two ends, about so many.
pub(super) fn ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let step = step((high - low) / about.max(1) as f64);
    if !step.is_finite() || step <= 0.0 {
        return vec![low];
    }
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|multiple| multiple as f64 * step).collect()
}

/// Marks for whole numbers from 0.
pub(super) fn whole_ticks(count: usize, about: usize) -> Vec<f64> {
    let step = step(count as f64 / about.max(1) as f64).max(1.0) as usize;
    (0..count).step_by(step).map(|tick| tick as f64).collect()
}

fn step(raw: f64) -> f64 {
    let power = 10_f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= raw * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// Most marks of an axis of logarithms.
const MOST_TICKS: usize = 8;

/// Marks of an axis of logarithms between two positive ends: of three sets of round numbers the fullest that is not too full.
pub(super) fn decade_ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let inside = |factors: &[f64]| -> Vec<f64> {
        let all = powers.clone().flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let sets: [&[f64]; 2] = [&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0], &[1.0, 2.0, 5.0]];
    sets.into_iter().map(inside).find(|ticks| ticks.len() <= MOST_TICKS).unwrap_or_else(|| inside(&[1.0]))
}

/// Widens a range that is too narrow to show differences by, then by a margin on both sides.
pub(super) fn widened(low: f64, high: f64, narrowest: f64) -> (f64, f64) {
    let centre = f64::midpoint(low, high);
    let half = ((high - low) / 2.0).max(narrowest / 2.0) * 1.08;
    (centre - half, centre + half)
}

/// Smallest and largest of some numbers; none of no numbers.
pub(super) fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, value| match ends {
        None => Some((value, value)),
        Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
    })
}

#[cfg(test)]
mod tests {
    use super::{decade_ticks, label, ticks, whole_ticks, widened};

    #[test]
    fn marks_can_be_told_apart() {
        let labels = |low, high| -> Vec<String> {
            let ticks = ticks(low, high, 4);
            ticks.iter().map(|tick| label(*tick, &ticks)).collect()
        };
        assert_eq!(labels(163.1, 164.6), ["163.5", "164.0", "164.5"]);
        assert_eq!(labels(0.0, 80.0), ["0", "20", "40", "60", "80"]);
        assert_eq!(labels(-0.16, 0.17), ["-0.1", "0.0", "0.1"]);
        assert_eq!(labels(1e-7, 5e-7), ["1.0e-7", "2.0e-7", "3.0e-7", "4.0e-7", "5.0e-7"]);
    }

    #[test]
    fn marks_are_round_and_inside() {
        let same = |found: &[f64], expected: &[f64]| {
            let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(found.len() == expected.len() && near, "{found:?}, not {expected:?}");
        };
        same(&ticks(0.0, 10.0, 5), &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        same(&ticks(18.1, 19.7, 4), &[18.5, 19.0, 19.5]);
        same(&ticks(-0.16, 0.17, 4), &[-0.1, 0.0, 0.1]);
        same(&ticks(3.0, 3.0, 4), &[3.0]);
        same(&whole_ticks(4, 8), &[0.0, 1.0, 2.0, 3.0]);
        same(&whole_ticks(80, 8), &[0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0]);
        same(&decade_ticks(0.004, 0.6), &[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]);
        same(&decade_ticks(0.09, 0.42), &[0.1, 0.15, 0.2, 0.3, 0.4]);
        assert_eq!(decade_ticks(1e-5, 0.9).len(), 5);
        same(&<[f64; 2]>::from(widened(4.0, 4.0, 1.0)), &[3.46, 4.54]);
    }
}
