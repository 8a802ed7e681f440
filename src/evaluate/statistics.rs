//! What the values of one tensor look like: moments, extremes and a histogram.

use serde::Serialize;

use super::stripes::map_stripes;
use crate::codec::{CodecError, RowSource};

/// Bins of a histogram.
pub const HISTOGRAM_BINS: usize = 64;

/// Standard deviations from the mean beyond which a weight counts as an outlier.
pub const OUTLIER_SIGMAS: f64 = 6.0;

/// Standard deviations from the mean at which the histogram ends; what is beyond counts in the outermost bins.
const HISTOGRAM_SIGMAS: f64 = 4.0;

/// Statistics of the finite values of one tensor. A figure that an empty tensor does not have is 0.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Statistics {
    /// Number of finite values.
    pub finite: u64,
    /// Number of values that are infinite or not a number.
    pub non_finite: u64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Largest magnitude.
    pub absmax: f64,
    /// Mean.
    pub mean: f64,
    /// Standard deviation (over n, not n − 1).
    pub std: f64,
    /// Excess kurtosis: 0 of a normal distribution, larger with heavier tails.
    pub kurtosis: f64,
    /// Share of exact zeros.
    pub zeros: f64,
    /// Share of values more than [`OUTLIER_SIGMAS`] standard deviations from the mean.
    pub outliers: f64,
    /// Counts of values in equal bins.
    pub histogram: Histogram,
}

/// Counts of values in equal bins from `low` to `high`; values beyond are counted in the first and the last bin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Histogram {
    /// Left edge of the first bin.
    pub low: f64,
    /// Right edge of the last bin.
    pub high: f64,
    /// Values of each bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Counts the finite values of a tensor in [`HISTOGRAM_BINS`] bins from `low` to `high`, stripe by stripe on all cores: two
    /// tensors with the same edges can be laid over each other.
    ///
    /// # Errors
    /// [`CodecError`] when the tensor cannot be read.
    pub fn count(source: &dyn RowSource, low: f64, high: f64) -> Result<Self, CodecError> {
        Ok(Self { low, high, counts: distribution(source, 0.0, f64::INFINITY, low, high)?.counts })
    }
}

#[derive(Clone, Copy)]
struct First {
    finite: u64,
    non_finite: u64,
    zeros: u64,
    min: f32,
    max: f32,
    sum: f64,
}

struct Second {
    squares: f64,
    fourths: f64,
}

struct Third {
    outliers: u64,
    counts: Vec<u64>,
}

impl Statistics {
    /// Reads the tensor three times, stripe by stripe on all cores: extremes and mean, then the moments about the mean,
    /// then the histogram. The same figures for any number of threads.
    ///
    /// # Errors
    /// [`CodecError`] when the tensor cannot be read.
    pub fn of(source: &dyn RowSource) -> Result<Self, CodecError> {
        let first = extremes(source)?;
        let count = first.finite.max(1) as f64;
        let mean = first.sum / count;
        let second = moments(source, mean)?;
        let variance = second.squares / count;
        let std = variance.sqrt();
        let kurtosis = if variance > 0.0 { second.fourths / count / (variance * variance) - 3.0 } else { 0.0 };
        let (min, max) = (f64::from(first.min), f64::from(first.max));
        let low = min.max(mean - HISTOGRAM_SIGMAS * std);
        let high = max.min(mean + HISTOGRAM_SIGMAS * std);
        let third = distribution(source, mean, std, low, high)?;
        Ok(Self {
            finite: first.finite,
            non_finite: first.non_finite,
            min,
            max,
            absmax: min.abs().max(max.abs()),
            mean,
            std,
            kurtosis,
            zeros: first.zeros as f64 / count,
            outliers: third.outliers as f64 / count,
            histogram: Histogram { low, high, counts: third.counts },
        })
    }
}

/// Does `work` on the finite values of every stripe.
fn map_finite<T: Send>(source: &dyn RowSource, work: impl Fn(&[f32]) -> T + Sync) -> Result<Vec<T>, CodecError> {
    let columns = source.columns();
    map_stripes(source.rows(), columns, |rows| {
        let mut values = vec![0.0; rows.len() * columns];
        source.read_rows(rows.start, &mut values)?;
        source.release_rows(rows);
        Ok(work(&values))
    })
}

fn extremes(source: &dyn RowSource) -> Result<First, CodecError> {
    let empty = First { finite: 0, non_finite: 0, zeros: 0, min: f32::INFINITY, max: f32::NEG_INFINITY, sum: 0.0 };
    let parts = map_finite(source, |values| {
        let mut part = empty;
        for &value in values {
            if !value.is_finite() {
                part.non_finite += 1;
                continue;
            }
            part.finite += 1;
            part.zeros += u64::from(value == 0.0);
            part.min = part.min.min(value);
            part.max = part.max.max(value);
            part.sum += f64::from(value);
        }
        part
    })?;
    let mut total = empty;
    for part in parts {
        total.finite += part.finite;
        total.non_finite += part.non_finite;
        total.zeros += part.zeros;
        total.min = total.min.min(part.min);
        total.max = total.max.max(part.max);
        total.sum += part.sum;
    }
    if total.finite == 0 {
        (total.min, total.max) = (0.0, 0.0);
    }
    Ok(total)
}

fn moments(source: &dyn RowSource, mean: f64) -> Result<Second, CodecError> {
    let parts = map_finite(source, |values| {
        let mut part = Second { squares: 0.0, fourths: 0.0 };
        for &value in values.iter().filter(|value| value.is_finite()) {
            let square = (f64::from(value) - mean).powi(2);
            part.squares += square;
            part.fourths += square * square;
        }
        part
    })?;
    let mut total = Second { squares: 0.0, fourths: 0.0 };
    for part in parts {
        total.squares += part.squares;
        total.fourths += part.fourths;
    }
    Ok(total)
}

fn distribution(source: &dyn RowSource, mean: f64, std: f64, low: f64, high: f64) -> Result<Third, CodecError> {
    let per_unit = if high > low { HISTOGRAM_BINS as f64 / (high - low) } else { 0.0 };
    let parts = map_finite(source, |values| {
        let mut part = Third { outliers: 0, counts: vec![0; HISTOGRAM_BINS] };
        for &value in values.iter().filter(|value| value.is_finite()) {
            let value = f64::from(value);
            part.outliers += u64::from((value - mean).abs() > OUTLIER_SIGMAS * std);
            // A cast to an integer saturates: below `low` it is bin 0.
            let bin = ((value - low) * per_unit) as usize;
            part.counts[bin.min(HISTOGRAM_BINS - 1)] += 1;
        }
        part
    })?;
    let mut total = Third { outliers: 0, counts: vec![0; HISTOGRAM_BINS] };
    for part in parts {
        total.outliers += part.outliers;
        for (sum, count) in total.counts.iter_mut().zip(part.counts) {
            *sum += count;
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::{HISTOGRAM_BINS, Histogram, Statistics};
    use crate::evaluate::test_matrix::Matrix;

    #[test]
    fn values_beyond_given_edges_count_in_the_outermost_bins() {
        let matrix = Matrix::new(3, 100, |i| [-9.0, 0.25, 9.0, f32::NAN][i % 4]);
        let histogram = Histogram::count(&matrix, -1.0, 1.0).unwrap();
        let counts = &histogram.counts;
        assert_eq!((counts[0], counts[40], counts[HISTOGRAM_BINS - 1]), (75, 75, 75));
        assert_eq!(counts.iter().sum::<u64>(), 225);
    }

    #[test]
    fn known_values_give_known_figures() {
        // Two values, −1 and 3, equally often: mean 1, deviation 2, kurtosis 1 − 3.
        let statistics = Statistics::of(&Matrix::new(700, 1000, |i| if i % 2 == 0 { -1.0 } else { 3.0 })).unwrap();
        assert_eq!((statistics.min, statistics.max, statistics.absmax), (-1.0, 3.0, 3.0));
        assert_eq!((statistics.mean, statistics.std, statistics.kurtosis), (1.0, 2.0, -2.0));
        assert_eq!((statistics.zeros, statistics.outliers, statistics.finite), (0.0, 0.0, 700_000));
        let counts = &statistics.histogram.counts;
        assert_eq!((counts[0], counts[HISTOGRAM_BINS - 1]), (350_000, 350_000));
        assert_eq!(counts.iter().sum::<u64>(), 700_000);
    }

    #[test]
    fn an_outlier_and_zeros_are_counted_and_non_finite_values_left_out() {
        let statistics = Statistics::of(&Matrix::new(10, 1000, |i| match i {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => 100.0,
            _ if i % 2 == 0 => 0.0,
            _ => 0.5,
        }))
        .unwrap();
        assert_eq!((statistics.non_finite, statistics.finite), (2, 9998));
        assert_eq!(statistics.outliers, 1.0 / 9998.0);
        assert_eq!(statistics.zeros, 4998.0 / 9998.0);
        assert!(statistics.kurtosis > 100.0 && statistics.histogram.high < 10.0);
        assert_eq!(statistics.histogram.counts[HISTOGRAM_BINS - 1], 1);
    }

    #[test]
    fn nothing_and_a_constant_give_finite_figures() {
        for matrix in [Matrix::new(0, 4, |_| 1.0), Matrix::new(3, 4, |_| f32::NAN), Matrix::new(3, 4, |_| 2.5)] {
            let s = Statistics::of(&matrix).unwrap();
            for figure in [s.min, s.max, s.mean, s.std, s.kurtosis, s.zeros, s.outliers, s.histogram.low] {
                assert!(figure.is_finite());
            }
            assert_eq!(s.histogram.counts.iter().sum::<u64>(), s.finite);
        }
    }
}
