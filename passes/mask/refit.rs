//! The best weights under a mask: least squares under the whole H, for all rows of a chunk at once.
//!
//! Row by row min `(v − t) H (v − t)ᵀ` with v zero where the mask says so: `v_S H_SS = (t H)_S`. Each row has another
//! `H_SS`, so factors cannot be shared; but a product with H can. Conjugate gradients, preconditioned by the diagonal, need
//! one such product a step, for all rows together, with what the mask leaves out made zero. The damped H counts, as in the
//! sweep.

use super::rows::{Rows, dots};

/// Steps whose gains are added up to see whether a row is done.
const WINDOW: usize = 4;
/// Times that the gradient is computed anew, to be rid of what F32 has lost.
const RESTARTS: usize = 8;

/// When a refit ends.
#[derive(Debug, Clone, Copy)]
pub struct Refit {
    /// A row is done when some steps together gain less than this share of its loss.
    pub tolerance: f64,
    /// Most steps.
    pub steps: usize,
}

impl Refit {
    /// Moves the values that are kept to where each row's loss is least. No row's loss rises. Returns the steps.
    pub fn run(self, rows: &mut Rows) -> usize {
        let before = rows.losses();
        let old = rows.values.clone();
        let mut losses = before.clone();
        let mut steps = 0;
        for _ in 0..RESTARTS {
            let (count, gains) = self.descend(rows, &losses, self.steps - steps);
            steps += count;
            losses.iter_mut().zip(&gains).for_each(|(loss, gain)| *loss = (*loss - gain).max(0.0));
            let total: f64 = losses.iter().sum();
            if steps >= self.steps || gains.iter().sum::<f64>() <= self.tolerance * total {
                break;
            }
        }
        let lanes = rows.lanes;
        let after = rows.losses();
        // A sum that is not a number is not below anything either.
        for lane in (0..lanes).filter(|lane| after[*lane].partial_cmp(&before[*lane]) != Some(std::cmp::Ordering::Less))
        {
            for place in (lane..old.len()).step_by(lanes) {
                rows.values[place] = old[place];
            }
        }
        steps
    }

    /// Conjugate gradients from a true gradient. Returns the steps and what each row gained.
    fn descend(self, rows: &mut Rows, losses: &[f64], most: usize) -> (usize, Vec<f64>) {
        let (lanes, columns) = (rows.lanes, rows.factor.columns);
        let inverse: Vec<f32> =
            (0..columns).map(|column| 1.0 / rows.factor.hessian[column * columns + column]).collect();
        let difference: Vec<f32> = rows.target.iter().zip(&rows.values).map(|(target, value)| target - value).collect();
        let mut residual = vec![0.0; difference.len()];
        rows.product(&difference, 0..columns, &mut residual);
        rows.clear(&mut residual);
        let mut scaled = difference;
        precondition(&residual, &inverse, lanes, &mut scaled);
        let mut slopes = dots(&residual, &scaled, lanes);
        let mut direction = scaled.clone();
        let mut product = vec![0.0; direction.len()];
        let (mut gains, mut recent) = (vec![0.0; lanes], vec![[f64::INFINITY; WINDOW]; lanes]);
        let mut steps = 0;
        while steps < most {
            rows.product(&direction, 0..columns, &mut product);
            rows.clear(&mut product);
            let curvatures = dots(&direction, &product, lanes);
            let mut lengths = vec![0.0_f32; lanes];
            let mut any = false;
            for lane in 0..lanes {
                let left = (losses[lane] - gains[lane]).max(0.0);
                let done = recent[lane].iter().sum::<f64>() <= self.tolerance * left;
                let length = slopes[lane] / curvatures[lane];
                if done || !(slopes[lane] > 0.0 && curvatures[lane] > 0.0 && length.is_finite()) {
                    recent[lane] = [0.0; WINDOW];
                    continue;
                }
                lengths[lane] = length as f32;
                let gain = length * slopes[lane];
                gains[lane] += gain;
                recent[lane][steps % WINDOW] = gain;
                any = true;
            }
            if !any {
                break;
            }
            steps += 1;
            add_scaled(&mut rows.values, &lengths, 1.0, &direction);
            add_scaled(&mut residual, &lengths, -1.0, &product);
            precondition(&residual, &inverse, lanes, &mut scaled);
            let next = dots(&residual, &scaled, lanes);
            let shares: Vec<f32> = next.iter().zip(&slopes).map(|(next, slope)| share(*next, *slope)).collect();
            for (direction, scaled) in direction.chunks_exact_mut(lanes).zip(scaled.chunks_exact(lanes)) {
                for lane in 0..lanes {
                    direction[lane] = scaled[lane] + shares[lane] * direction[lane];
                }
            }
            slopes = next;
        }
        (steps, gains)
    }
}

fn share(next: f64, slope: f64) -> f32 {
    let share = (next / slope) as f32;
    if share.is_finite() { share } else { 0.0 }
}

/// `out = residual · D⁻¹`.
fn precondition(residual: &[f32], inverse: &[f32], lanes: usize, out: &mut [f32]) {
    for ((out, residual), inverse) in out.chunks_exact_mut(lanes).zip(residual.chunks_exact(lanes)).zip(inverse) {
        out.iter_mut().zip(residual).for_each(|(out, residual)| *out = residual * inverse);
    }
}

/// `to += sign · factors · from`, with a factor for each lane.
fn add_scaled(to: &mut [f32], factors: &[f32], sign: f32, from: &[f32]) {
    let lanes = factors.len();
    for (to, from) in to.chunks_exact_mut(lanes).zip(from.chunks_exact(lanes)) {
        for lane in 0..lanes {
            to[lane] += sign * factors[lane] * from[lane];
        }
    }
}
