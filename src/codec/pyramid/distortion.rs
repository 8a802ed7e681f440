//! How far points of a pyramid are from the vectors that they stand for.

use libm::{cos, exp2, log, log2};

use super::{
    Counts, Pyramid,
    lanes::{LANES, Scratch, nearest_directions},
    law,
};

/// The relative squared error of the best scalar quantizer of a normal law, by bits from 1 on (Max, 1960).
const NORMAL: [f64; 8] = [0.3634, 0.1175, 0.03454, 0.009_497, 0.002_499, 0.000_641_7, 0.000_162_5, 0.000_040_9];

/// About what share of the energy is lost where directions are uniform: Σ (w − ŵ)² / Σ w².
///
/// V points on the sphere in D dimensions leave c · V^(−2/(D − 1)); a pyramid's c, which hardly depends on the pulses, is
/// fitted to [`measured_distortion`]. Lengths vary by 1/√(2 D) of their mean, of which gains leave what the best scalar
/// quantizer leaves. A pyramid that cannot be stored loses everything.
#[must_use]
pub fn expected_distortion(pyramid: &Pyramid, counts: &Counts) -> f64 {
    let dimension = pyramid.dimension as f64;
    let Some(points) = counts.of(pyramid.dimension, pyramid.pulses) else { return 1.0 };
    // The share per cell of a sphere cut into as many.
    let cell = exp2(-2.0 * log2(points as f64) / (dimension - 1.0));
    let direction = ((1.515 + 6.5 / (dimension * dimension)) * cell * (1.0 - 0.16 * cell)).min(1.0);
    let lengths = NORMAL[usize::from(pyramid.gain_bits.clamp(1, 8)) - 1] / (2.0 * dimension);
    direction + (1.0 - direction) * lengths
}

/// The same for `vectors` normal vectors, rounded up to whole lanes, by search: of directions alone with gains kept as
/// they are, and with gains of the law's levels.
#[must_use]
pub fn measured_distortion(pyramid: &Pyramid, vectors: usize) -> (f64, f64) {
    let dimension = pyramid.dimension;
    let mut state = 0_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    let (mut x, mut y) = (vec![[0.0_f32; LANES]; dimension], vec![[0.0_f32; LANES]; dimension]);
    let mut scratch = Scratch::default();
    let (mut energy, mut lost) = (0.0, 0.0);
    let (mut gains, mut lengths) = (Vec::new(), 0.0);
    for _ in 0..vectors.div_ceil(LANES) {
        for x in x.iter_mut().flatten() {
            *x = ((-2.0 * log(uniform())).sqrt() * cos(std::f64::consts::TAU * uniform())) as f32;
        }
        nearest_directions(&x, pyramid.pulses, &mut y, &mut scratch);
        for lane in 0..LANES {
            let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
                x.iter().zip(&y).map(|(x, y)| of(f64::from(x[lane]), f64::from(y[lane]))).sum()
            };
            let (length, square, product) = (sum(&|x, _| x * x), sum(&|_, y| y * y), sum(&|x, y| x * y));
            let gain = product / square.sqrt();
            energy += length;
            lost += length - gain * gain;
            lengths += length.sqrt();
            gains.push(gain);
        }
    }
    let shrink = gains.iter().sum::<f64>() / lengths;
    let unit = (dimension as f64).sqrt() * shrink;
    let levels = law::levels(dimension, 1 << 22, 1 << pyramid.gain_bits);
    let nearest = |gain: f64| levels.iter().map(|level| (gain - level * unit).powi(2)).fold(f64::MAX, f64::min);
    let of_gains: f64 = gains.iter().map(|gain| nearest(*gain)).sum();
    (lost / energy, (lost + of_gains) / energy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_vectors_lose_what_the_tables_say() {
        // Of greedy search alone; moving single pulses afterwards wins up to three hundredths of it.
        for (dimension, pulses, expected) in [
            (8, 36, 0.00300),
            (16, 12, 0.0827),
            (16, 27, 0.0194),
            (16, 58, 0.00436),
            (32, 22, 0.0920),
            (32, 50, 0.0215),
            (32, 105, 0.00510),
        ] {
            let pyramid = Pyramid { dimension, pulses, gain_bits: 4 };
            let (found, _) = measured_distortion(&pyramid, 8192);
            assert!(found < 1.01 * expected && found > 0.96 * expected, "{}: {found}", pyramid.name());
        }
        for (dimension, pulses, gain_bits, expected) in [
            (16, 58, 5, 0.00445),
            (16, 58, 4, 0.00465),
            (16, 27, 4, 0.0197),
            (32, 105, 4, 0.00524),
            (8, 36, 5, 0.00318),
        ] {
            let pyramid = Pyramid { dimension, pulses, gain_bits };
            let (_, found) = measured_distortion(&pyramid, 8192);
            assert!(found < 1.01 * expected && found > 0.95 * expected, "{}: {found}", pyramid.name());
        }
    }

    #[test]
    fn what_is_expected_is_what_is_measured() {
        let counts = Counts::new(32, 105);
        for (dimension, pulses, gain_bits) in [
            (8, 36, 5),
            (8, 10, 3),
            (12, 16, 3),
            (16, 12, 3),
            (16, 58, 4),
            (20, 40, 4),
            (24, 9, 2),
            (32, 22, 3),
            (32, 105, 4),
        ] {
            let pyramid = Pyramid { dimension, pulses, gain_bits };
            let (_, measured) = measured_distortion(&pyramid, 4096);
            let expected = expected_distortion(&pyramid, &counts);
            assert!((expected / measured - 1.0).abs() < 0.03, "{}: {expected} {measured}", pyramid.name());
        }
    }
}
