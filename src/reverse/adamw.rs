//! [`AdamW`]: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101, algorithm 2), with clipping of
//! the gradients' common norm.

use rayon::prelude::*;

/// Parameters that one task moves.
const CHUNK: usize = 1 << 14;

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// β₁ and β₂, how much of the running means stays.
    pub betas: [f64; 2],
    /// Added to the root of the second mean.
    pub epsilon: f64,
    /// Share of a parameter that is taken off, times the rate.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; larger ones are scaled down to it.
    pub clip: Option<f64>,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.01, clip: Some(1.0) }
    }
}

/// The optimizer's state: running means of gradients and of their squares, shaped as the parameters are.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Steps done.
    pub step: u64,
    /// Running means of the gradients.
    pub first: Vec<Vec<f32>>,
    /// Running means of their squares.
    pub second: Vec<Vec<f32>>,
}

/// Norm of all gradients together. Sums of fixed pieces, in F64 and in order.
#[must_use]
pub fn norm(gradients: &[Vec<f32>]) -> f64 {
    let squares = |part: &[f32]| part.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
    let of_list = |list: &Vec<f32>| list.par_chunks(CHUNK).map(squares).collect::<Vec<_>>().into_iter().sum::<f64>();
    gradients.iter().map(of_list).sum::<f64>().sqrt()
}

impl AdamW {
    /// The state before the first step.
    #[must_use]
    pub fn new(parameters: &[Vec<f32>]) -> Self {
        let zeros = || parameters.iter().map(|list| vec![0.0; list.len()]).collect();
        Self { step: 0, first: zeros(), second: zeros() }
    }

    /// Moves the parameters one step and gives the norm of the gradients before clipping. Nothing moves when that is not
    /// finite.
    pub fn update(
        &mut self,
        settings: &AdamWSettings,
        rate: f64,
        parameters: &mut [Vec<f32>],
        gradients: &[Vec<f32>],
    ) -> f64 {
        let norm = norm(gradients);
        if !norm.is_finite() {
            return norm;
        }
        let factor = match settings.clip {
            Some(clip) if norm > clip => clip / norm,
            _ => 1.0,
        };
        self.step += 1;
        let [beta_1, beta_2] = settings.betas;
        let power = |beta: f64| libm::pow(beta, self.step as f64);
        let (unbias_1, unbias_2) = (1.0 / (1.0 - power(beta_1)), 1.0 / (1.0 - power(beta_2)));
        let keep = 1.0 - rate * settings.weight_decay;
        let one = |((value, gradient), (first, second)): ((&mut f32, &f32), (&mut f32, &mut f32))| {
            let gradient = f64::from(*gradient) * factor;
            let mean = beta_1 * f64::from(*first) + (1.0 - beta_1) * gradient;
            let square = beta_2 * f64::from(*second) + (1.0 - beta_2) * gradient * gradient;
            let step = mean * unbias_1 / ((square * unbias_2).sqrt() + settings.epsilon);
            *value = (f64::from(*value) * keep - rate * step) as f32;
            (*first, *second) = (mean as f32, square as f32);
        };
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((values, gradients), (first, second)) in parameters.iter_mut().zip(gradients).zip(moments) {
            values
                .par_iter_mut()
                .zip(gradients)
                .zip(first.par_iter_mut().zip(second))
                .with_min_len(CHUNK)
                .for_each(one);
        }
        norm
    }
}

#[cfg(test)]
mod tests {
    use super::{AdamW, AdamWSettings};

    #[test]
    fn steps_are_those_of_the_definition() {
        // As torch.optim.AdamW moves them: θ ← θ (1 − lr λ), then θ ← θ − lr m̂ / (√v̂ + ε).
        let settings = AdamWSettings { betas: [0.9, 0.95], epsilon: 1e-5, weight_decay: 0.1, clip: None };
        let start = [0.5_f64, -1.25, 3.0];
        let mut parameters = vec![vec![0.5_f32, -1.25], vec![3.0]];
        let mut optimizer = AdamW::new(&parameters);
        let (mut exact, mut m, mut v) = (start, [0.0; 3], [0.0; 3]);
        for step in 1..=20_i32 {
            let gradient: Vec<f64> = exact.iter().map(|x| (x * f64::from(step)).sin()).collect();
            let lists = vec![vec![gradient[0] as f32, gradient[1] as f32], vec![gradient[2] as f32]];
            let rate = 0.01 * f64::from(step);
            optimizer.update(&settings, rate, &mut parameters, &lists);
            for at in 0..3 {
                m[at] = 0.9 * m[at] + 0.1 * gradient[at];
                v[at] = 0.95 * v[at] + 0.05 * gradient[at].powi(2);
                exact[at] -= rate * 0.1 * exact[at];
                let (mean, square) = (m[at] / (1.0 - 0.9_f64.powi(step)), v[at] / (1.0 - 0.95_f64.powi(step)));
                exact[at] -= rate * mean / (square.sqrt() + 1e-5);
            }
        }
        for (found, exact) in parameters.concat().iter().zip(exact) {
            assert!((f64::from(*found) - exact).abs() < 1e-5, "{found} {exact}");
        }
    }

    #[test]
    fn large_gradients_are_clipped_together_and_infinite_ones_move_nothing() {
        let settings = AdamWSettings { clip: Some(1.0), ..AdamWSettings::default() };
        let gradients = vec![vec![30.0_f32], vec![-40.0]];
        let mut parameters = vec![vec![0.0_f32], vec![0.0]];
        let mut optimizer = AdamW::new(&parameters);
        assert_eq!(optimizer.update(&settings, 0.1, &mut parameters, &gradients), 50.0);
        assert!((optimizer.first[0][0] - 0.06).abs() < 1e-7 && (optimizer.first[1][0] + 0.08).abs() < 1e-7);
        let (before, state) = (parameters.clone(), optimizer.clone());
        let infinite = vec![vec![f32::INFINITY], vec![0.0]];
        assert!(!optimizer.update(&settings, 0.1, &mut parameters, &infinite).is_finite());
        assert_eq!((before, state), (parameters, optimizer));
    }
}
