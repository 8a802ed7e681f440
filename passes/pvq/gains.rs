//! Levels of gains.

use crate::codec::pyramid::lanes::{LANES, Lane};

/// Rounds of Lloyd's iteration on a sample.
const ROUNDS: usize = 50;

/// The levels, ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    levels: Vec<f32>,
    /// Half-way between neighbours.
    edges: Vec<f32>,
}

impl Levels {
    /// Takes levels in any order.
    pub fn new(mut levels: Vec<f32>) -> Self {
        levels.sort_by(f32::total_cmp);
        let edges = levels.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
        Self { levels, edges }
    }

    /// All of them.
    pub fn all(&self) -> &[f32] {
        &self.levels
    }

    /// That of a gain.
    #[inline(always)]
    pub fn of(&self, gain: u8) -> f32 {
        self.levels[usize::from(gain)]
    }

    /// The nearest to each; of two the lower.
    pub fn nearest(&self, ratios: &Lane, gains: &mut [u8; LANES]) {
        *gains = [0; LANES];
        for edge in &self.edges {
            for lane in 0..LANES {
                gains[lane] += u8::from(ratios[lane] > *edge);
            }
        }
    }

    /// The best levels for a sample of ratios and what each counts, from these on (Lloyd's iteration, which only lowers
    /// the error): these if no others are better.
    pub fn fitted(&self, sample: &[(f32, f64)]) -> Self {
        let (mut best, mut least) = (self.clone(), self.error(sample));
        for _ in 0..ROUNDS {
            let mut sums = vec![(0.0, 0.0); best.levels.len()];
            for (ratio, weight) in sample {
                let (sum, total) = &mut sums[best.place(*ratio)];
                *sum += weight * f64::from(*ratio);
                *total += weight;
            }
            let mean = |(old, (sum, total)): (&f32, (f64, f64))| if total > 0.0 { (sum / total) as f32 } else { *old };
            let next = Self::new(best.levels.iter().zip(sums).map(mean).collect());
            let error = next.error(sample);
            if error.is_nan() || error >= least {
                break;
            }
            (best, least) = (next, error);
        }
        best
    }

    fn place(&self, ratio: f32) -> usize {
        self.edges.partition_point(|edge| ratio > *edge)
    }

    /// What is lost of a sample.
    pub fn error(&self, sample: &[(f32, f64)]) -> f64 {
        sample.iter().map(|(ratio, weight)| weight * f64::from(ratio - self.levels[self.place(*ratio)]).powi(2)).sum()
    }
}
