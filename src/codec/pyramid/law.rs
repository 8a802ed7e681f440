//! How long a block of a randomly rotated vector is, and the best levels for that.
//!
//! Of a vector of n coordinates whose direction is uniform, a block of D has the share r² ~ Beta(D/2, (n − D)/2) of the
//! energy. Levels by Lloyd ("Least squares quantization in PCM", 1982) and Max (1960): each is the mean of its cell, and
//! cells part half-way between levels. Means have a closed form in the regularized incomplete Beta function.

use libm::{exp, lgamma, log};

/// Rounds of Lloyd's iteration; what moves after so many moves less than F32 tells.
const ROUNDS: usize = 2000;
const SETTLED: f64 = 1e-9;

/// The levels, ascending, for the length of a block of `dimension` coordinates out of `total`, in units of its root
/// mean square √(dimension/total) times the vector's length.
///
/// All are 1 where the block is the whole vector.
#[must_use]
pub fn levels(dimension: usize, total: usize, count: usize) -> Vec<f64> {
    if total <= dimension {
        return vec![1.0; count];
    }
    let (a, b) = (dimension as f64 / 2.0, (total - dimension) as f64 / 2.0);
    let unit = (dimension as f64 / total as f64).sqrt();
    let mean = exp(log_beta(a + 0.5, b) - log_beta(a, b));
    let deviation = (unit * unit - mean * mean).max(0.0).sqrt();
    // Levels spread as those of a normal law do, more or less.
    let reach = 1.0 + 0.45 * (count as f64).log2();
    let start = |index: usize| mean + deviation * reach * (2.0 * (index as f64 + 0.5) / count as f64 - 1.0);
    let mut levels: Vec<f64> = (0..count).map(|index| start(index).clamp(1e-9, 1.0)).collect();
    for _ in 0..ROUNDS {
        let mut moved = 0.0_f64;
        let mut low = (0.0, 0.0);
        for index in 0..count {
            let high = match levels.get(index + 1) {
                Some(next) => {
                    let edge = f64::midpoint(levels[index], *next).powi(2);
                    (incomplete_beta(a, b, edge), incomplete_beta(a + 0.5, b, edge))
                }
                None => (1.0, 1.0),
            };
            let (mass, moment) = (high.0 - low.0, high.1 - low.1);
            if mass > 1e-14 {
                let level = mean * moment / mass;
                moved = moved.max((level - levels[index]).abs());
                levels[index] = level;
            }
            low = high;
        }
        if moved < SETTLED * unit {
            break;
        }
    }
    levels.iter().map(|level| level / unit).collect()
}

fn log_beta(a: f64, b: f64) -> f64 {
    lgamma(a) + lgamma(b) - lgamma(a + b)
}

/// The regularized incomplete Beta function `I_x(a, b)`, by its continued fraction (DLMF 8.17.22) in Lentz's way.
#[must_use]
pub fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast on this side of the mean.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let tiny = 1e-300;
    let keep = |value: f64| if value.abs() < tiny { tiny } else { value };
    let (mut c, mut d) = (1.0, 1.0 / keep(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for step in 1..2000 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / keep(1.0 + even * d);
        c = keep(1.0 + even / c);
        fraction *= c * d;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / keep(1.0 + odd * d);
        c = keep(1.0 + odd / c);
        fraction *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    exp(a * log(x) + b * log(1.0 - x) - log_beta(a, b)) * fraction / a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_incomplete_beta_function_is_the_integral() {
        for (a, b, x) in [(0.5, 0.5, 0.3), (8.0, 2040.0, 0.004), (8.5, 20.0, 0.4), (3.0, 1.0, 0.9), (16.0, 16.0, 0.5)] {
            // The substitution t = sin² u takes the ends' singularities away.
            let end = f64::asin(f64::sqrt(x));
            let steps = 200_000;
            let height = |u: f64| 2.0 * u.sin().powf(2.0 * a - 1.0) * u.cos().powf(2.0 * b - 1.0);
            let width = end / f64::from(steps);
            let sum: f64 = (0..steps).map(|step| height((f64::from(step) + 0.5) * width)).sum();
            let expected = sum * width / exp(log_beta(a, b));
            assert!((incomplete_beta(a, b, x) - expected).abs() < 1e-7, "I_{x}({a}, {b})");
        }
    }

    #[test]
    fn levels_are_the_means_of_their_cells() {
        // Of the chi law, which that of a small block out of many coordinates is. The known levels are of samples.
        let total = 1 << 22;
        for (dimension, expected) in [
            (16, vec![0.74091, 0.91670, 1.07585, 1.27045]),
            (16, vec![0.64460, 0.77089, 0.86735, 0.95425, 1.04021, 1.13234, 1.24114, 1.39478]),
            (32, vec![0.81459, 0.94150, 1.05436, 1.19062]),
        ] {
            let levels = levels(dimension, total, expected.len());
            for (index, (level, expected)) in levels.iter().zip(&expected).enumerate() {
                assert!((level - expected).abs() < 1.5e-3, "{dimension}: {levels:?}");
                let low = if index == 0 { 0.0 } else { f64::midpoint(levels[index - 1], *level) };
                let high = levels.get(index + 1).map_or(4.0, |next| f64::midpoint(*level, *next));
                let n = dimension as f64;
                let (mut mass, mut moment) = (0.0, 0.0);
                for step in 0..20_000 {
                    let r = low + (high - low) * (f64::from(step) + 0.5) / 20_000.0;
                    let density = exp((n - 1.0) * log(r) - n * (r * r - 1.0) / 2.0);
                    mass += density;
                    moment += density * r;
                }
                assert!((moment / mass - level).abs() < 1e-5, "{dimension}: {levels:?} {}", moment / mass);
            }
        }
    }

    #[test]
    fn blocks_vary_as_the_chi_law_does() {
        for (dimension, expected) in [(8, 0.254), (16, 0.178), (32, 0.1255), (64, 0.0886), (128, 0.0626)] {
            let (a, b) = (f64::from(dimension) / 2.0, 1e7);
            let mean = exp(log_beta(a + 0.5, b) - log_beta(a, b));
            let deviation = (a / (a + b) - mean * mean).sqrt();
            assert!((deviation / mean - expected).abs() < 5e-4, "{dimension}: {}", deviation / mean);
        }
    }

    #[test]
    fn a_block_that_is_the_whole_has_one_length() {
        assert_eq!(levels(16, 16, 4), [1.0; 4]);
        let nearly = levels(16, 32, 8);
        assert!(nearly.is_sorted() && nearly[7] < 2.0_f64.sqrt() && nearly[0] > 0.0, "{nearly:?}");
    }
}
