//! Figures over the tokens of an evaluation, with their standard errors. Tokens of a window depend on each other, windows
//! are taken as independent draws.

use serde::Serialize;

/// A figure with its standard error, from the differences between windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The figure over all predicted tokens.
    pub value: f64,
    /// Its standard error; 0 for a single window, which tells nothing about it.
    pub standard_error: f64,
}

impl Figure {
    /// A figure that there is nothing to make of.
    pub const NONE: Self = Self { value: 0.0, standard_error: 0.0 };

    /// The mean over windows of equal length.
    #[must_use]
    pub fn mean(windows: &[Vec<f64>]) -> Self {
        let count = windows.len() as f64;
        let means: Vec<f64> =
            windows.iter().map(|window| window.iter().sum::<f64>() / window.len().max(1) as f64).collect();
        let value = means.iter().sum::<f64>() / count;
        let variance = means.iter().map(|mean| (mean - value).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        Self { value, standard_error: (variance / count).sqrt() }
    }

    /// The least value that at least `share` of all values do not exceed.
    ///
    /// Its error is half the distance between the percentiles one standard error of the share below and above (Woodruff,
    /// "Confidence Intervals for Medians and Other Position Measures", J. Am. Stat. Assoc. 47, 1952).
    #[must_use]
    pub fn percentile(windows: &[Vec<f64>], share: f64) -> Self {
        let mut sorted: Vec<f64> = windows.iter().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (sorted.len() as f64 * share.clamp(0.0, 1.0)).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        let value = at(share);
        let within: Vec<Vec<f64>> = windows
            .iter()
            .map(|window| window.iter().map(|other| f64::from(u8::from(*other <= value))).collect())
            .collect();
        let error = Self::mean(&within).standard_error;
        Self { value, standard_error: (at(share + error) - at(share - error)) / 2.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(windows: usize, length: usize) -> Vec<Vec<f64>> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        (0..windows).map(|_| (0..length).map(|_| next()).collect()).collect()
    }

    #[test]
    fn errors_are_those_of_independent_draws_where_tokens_are_independent() {
        let windows = uniform(400, 100);
        let count = 40_000.0_f64;
        let mean = Figure::mean(&windows);
        assert!((mean.value - 0.5).abs() < 4.0 * mean.standard_error);
        // A uniform number has the variance 1/12.
        assert!((mean.standard_error / (1.0 / 12.0 / count).sqrt() - 1.0).abs() < 0.1);
        let p99 = Figure::percentile(&windows, 0.99);
        assert!((p99.value - 0.99).abs() < 4.0 * p99.standard_error);
        // Where the density is 1, a percentile has the error of its share.
        assert!((p99.standard_error / (0.99 * 0.01 / count).sqrt() - 1.0).abs() < 0.25, "{p99:?}");
    }

    #[test]
    fn what_windows_have_in_common_makes_errors_larger() {
        let windows: Vec<Vec<f64>> = uniform(400, 1).iter().map(|window| vec![window[0]; 100]).collect();
        let p90 = Figure::percentile(&windows, 0.9);
        assert!((p90.standard_error / (0.9 * 0.1 / 400.0_f64).sqrt() - 1.0).abs() < 0.5, "{p90:?}");
    }

    #[test]
    fn a_percentile_of_few_values_is_one_of_them() {
        let windows = vec![vec![1.0, 5.0], vec![2.0, 4.0], vec![3.0, 6.0]];
        assert_eq!(Figure::percentile(&windows, 0.5).value, 3.0);
        assert_eq!(Figure::percentile(&windows, 0.99).value, 6.0);
        assert_eq!(Figure::percentile(&[], 0.99), Figure::NONE);
    }
}
