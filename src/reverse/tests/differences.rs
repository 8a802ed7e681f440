//! Gradients against central differences.

use super::models::Noise;

/// Largest relative error of a gradient.
const TOLERANCE: f64 = 1e-6;
/// Half the distance of the outer points. A power of two: weights that are F32 can be moved by it exactly.
const STEP: f64 = 1.0 / 1024.0;

/// The derivative of `loss` at 0, by central differences at two distances (Richardson: fourth order).
pub(super) fn derivative(mut loss: impl FnMut(f64) -> f64) -> f64 {
    let mut central = |step: f64| (loss(step) - loss(-step)) / (2.0 * step);
    (4.0 * central(STEP / 2.0) - central(STEP)) / 3.0
}

/// Whether `gradient` is that of `loss`, which gets what is added to the parameters: along a random direction, and for
/// the parameter whose gradient is the largest and one by chance.
pub(super) fn check(name: &str, gradient: &[f64], mut loss: impl FnMut(&[f64]) -> f64) {
    assert!(!gradient.is_empty(), "{name}: no parameters");
    let mut noise = Noise::new(name);
    let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
    assert!(norm > 0.0, "{name}: the gradient is zero");
    let largest =
        (0..gradient.len()).fold(0, |best, i| if gradient[i].abs() > gradient[best].abs() { i } else { best });
    let chance = noise.below(gradient.len());
    let single = |index: usize| {
        let mut direction = vec![0.0; gradient.len()];
        direction[index] = 1.0;
        direction
    };
    // A direction in which the derivative is not small beside the gradient.
    let random: Vec<f64> =
        gradient.iter().map(|g| 0.5 * g / norm + 0.5 * noise.next() / (gradient.len() as f64).sqrt()).collect();
    for (what, direction) in [("random", random), ("largest", single(largest)), ("chance", single(chance))] {
        let expected: f64 = direction.iter().zip(gradient).map(|(d, g)| d * g).sum();
        let moved = |step: f64| direction.iter().map(|d| d * step).collect::<Vec<_>>();
        let found = derivative(|step| loss(&moved(step)));
        // A parameter by chance may have next to no gradient of its own.
        let scale =
            if what == "chance" { expected.abs().max(norm / (gradient.len() as f64).sqrt()) } else { expected.abs() };
        let error = (found - expected).abs() / scale;
        assert!(
            error < TOLERANCE,
            "{name}, {what}: {found} by differences, {expected} by the reverse pass ({error:e})"
        );
    }
}
