//! Learning rates over the steps of a training.

use std::f64::consts::PI;

/// How the rate falls behind the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Not at all.
    Constant,
    /// Linearly.
    Linear,
    /// Along half a cosine.
    Cosine,
}

/// A rate that rises linearly to `peak` over `warmup` steps and falls to `last` until the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// The rate of the step behind the last one.
    pub last: f64,
    /// Steps of the warm-up; the first has the rate peak / warmup.
    pub warmup: u64,
    /// Steps in all.
    pub steps: u64,
    /// How it falls.
    pub decay: Decay,
}

impl Schedule {
    /// The rate of a step, from zero.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let fall = self.steps.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / fall as f64).min(1.0);
        let left = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + libm::cos(PI * progress)),
        };
        self.last + (self.peak - self.last) * left
    }
}

#[cfg(test)]
mod tests {
    use super::{Decay, Schedule};

    #[test]
    fn rates_rise_and_fall_as_they_should() {
        let schedule = Schedule { peak: 1.0, last: 0.2, warmup: 4, steps: 12, decay: Decay::Cosine };
        let rates: Vec<f64> = (0..13).map(|step| schedule.rate(step)).collect();
        assert_eq!(rates[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((rates[8] - 0.6).abs() < 1e-12 && (rates[12] - 0.2).abs() < 1e-12 && rates[12] == schedule.rate(99));
        let linear = Schedule { decay: Decay::Linear, ..schedule };
        assert!((linear.rate(6) - 0.8).abs() < 1e-12 && (linear.rate(12) - 0.2).abs() < 1e-12);
        assert_eq!(Schedule { decay: Decay::Constant, warmup: 0, ..schedule }.rate(7), 1.0);
    }
}
