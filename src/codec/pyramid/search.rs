//! The point of a pyramid that is nearest to a vector in direction, one vector at a time.
//!
//! Greedy pulses, as in Opus and Daala (`vq.c`, `pvq_encoder.c`), then moves of single pulses until none helps, from two
//! starts. This is the plain version, the reference of [`super::lanes`], which does the same for many vectors at once:
//! the same operations in the same order, so the same points.

/// How much better a move must be than F32 sums are exact, or rounding could make moves cycle.
pub const WORTH: f32 = 1.0 + 1.0 / (1 << 20) as f32;
/// Rounds over the coordinates after a start; far more than are ever made.
pub const ROUNDS: usize = 16;

/// Finds y with Σ |y| = `pulses` so that the cosine of x and y is about as large as it can be: no move of a single pulse
/// makes it larger. Ties go to the lowest coordinate; the point of a zero vector has all pulses in the first.
///
/// x must be finite.
///
/// # Panics
/// When y is not as long as x.
pub fn nearest_direction(x: &[f32], pulses: u32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "a point has as many coordinates as the vector");
    let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let unit = if largest > 0.0 { largest } else { 1.0 };
    let magnitudes: Vec<f32> = x.iter().map(|x| x.abs() / unit).collect();
    let total: f32 = magnitudes.iter().sum();
    let total = if total > 0.0 { total } else { 1.0 };

    let from_zero = climb(&magnitudes, vec![0.0; x.len()], pulses);
    let projected = magnitudes.iter().map(|m| (pulses as f32 * m / total).floor()).collect();
    let from_projection = climb(&magnitudes, projected, pulses);
    let cosine = |point: &[f32]| {
        let product: f32 = magnitudes.iter().zip(point).map(|(m, y)| m * y).sum();
        (product * product, point.iter().map(|y| y * y).sum::<f32>())
    };
    let ((one, one_square), (other, other_square)) = (cosine(&from_zero), cosine(&from_projection));
    let better = if other * one_square > one * other_square { from_projection } else { from_zero };
    for ((y, magnitude), x) in y.iter_mut().zip(better).zip(x) {
        *y = if *x < 0.0 { 0.0 - magnitude } else { magnitude };
    }
}

/// Adds the missing pulses where each helps most, then moves pulses as long as that helps.
fn climb(m: &[f32], mut y: Vec<f32>, pulses: u32) -> Vec<f32> {
    let mut product: f32 = m.iter().zip(&y).map(|(m, y)| m * y).sum();
    let mut square: f32 = y.iter().map(|y| y * y).sum();
    let placed = y.iter().sum::<f32>() as u32;
    for _ in placed..pulses {
        let mut best = 0;
        let (mut best_product, mut best_square) = (product + m[0], square + (2.0 * y[0] + 1.0));
        for j in 1..m.len() {
            let (product, square) = (product + m[j], square + (2.0 * y[j] + 1.0));
            if product * product * best_square > best_product * best_product * square {
                (best, best_product, best_square) = (j, product, square);
            }
        }
        y[best] += 1.0;
        (product, square) = (best_product, best_square);
    }
    // Settled when a whole round has moved nothing.
    let mut still = 0;
    for i in (0..m.len()).cycle().take(ROUNDS * m.len()) {
        let mut best = None;
        let (mut best_product, mut best_square) = (product, square);
        let mut best_energy = product * product * WORTH;
        let (without, square_without) = (product - m[i], square - (2.0 * y[i] - 1.0));
        for j in (0..m.len()).filter(|j| *j != i && y[i] > 0.0) {
            let (product, square) = (without + m[j], square_without + (2.0 * y[j] + 1.0));
            if product * product * best_square > best_energy * square {
                best = Some(j);
                (best_energy, best_product, best_square) = (product * product, product, square);
            }
        }
        still += 1;
        if let Some(j) = best {
            y[i] -= 1.0;
            y[j] += 1.0;
            (product, square) = (best_product, best_square);
            still = 0;
        }
        if still == m.len() {
            break;
        }
    }
    y
}
