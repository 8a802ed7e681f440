//! Finds the weights to keep exact: those farthest from the mean of the matrix, an exact number of them, ties in order
//! of position. Nothing is sorted: two histograms over the bits of the distance find the smallest one kept.

use super::{
    kernels,
    stripes::{count_bins, fold, not_finite},
};
use crate::codec::{CodecError, Outliers, RowSource};

/// Mean and standard deviation of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// Mean.
    pub mean: f64,
    /// Standard deviation (of the population).
    pub deviation: f64,
}

/// Distance from the mean; never negative, so its bits order as it does.
fn distance(weight: f32, mean: f64) -> f32 {
    (f64::from(weight) - mean).abs() as f32
}

/// Mean and standard deviation of all weights.
///
/// # Errors
/// When a weight is not finite or cannot be read.
pub fn moments(source: &dyn RowSource) -> Result<Moments, CodecError> {
    let count = (source.rows() * source.columns()).max(1) as f64;
    let sums = fold(
        source,
        || 0.0_f64,
        |sum, row, weights| {
            kernels::extent(weights).ok_or_else(|| not_finite(row, weights))?;
            *sum += weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
            Ok(())
        },
    )?;
    let mean = sums.into_iter().sum::<f64>() / count;
    let squares = fold(
        source,
        || 0.0_f64,
        |sum, _, weights| {
            *sum += weights.iter().map(|weight| (f64::from(*weight) - mean).powi(2)).sum::<f64>();
            Ok(())
        },
    )?;
    Ok(Moments { mean, deviation: (squares.into_iter().sum::<f64>() / count).sqrt() })
}

/// How many weights are at least `sigmas` standard deviations from the mean.
///
/// # Errors
/// As [`moments`].
pub fn count_beyond(source: &dyn RowSource, sigmas: f64) -> Result<u64, CodecError> {
    let Moments { mean, deviation } = moments(source)?;
    let threshold = (sigmas * deviation) as f32;
    if threshold == 0.0 {
        return Ok(0);
    }
    let counts = fold(
        source,
        || 0_u64,
        |count, _, weights| {
            *count += weights.iter().filter(|weight| distance(**weight, mean) >= threshold).count() as u64;
            Ok(())
        },
    )?;
    Ok(counts.into_iter().sum())
}

/// Counts the distances of a matrix by a 16-bit part of their bits.
fn histogram(
    source: &dyn RowSource,
    mean: f64,
    bin: impl Fn(u32) -> Option<u16> + Sync,
) -> Result<Vec<u64>, CodecError> {
    count_bins(source, 1 << 16, |bins, weights| {
        for weight in weights {
            if let Some(bin) = bin(distance(*weight, mean).to_bits()) {
                bins[usize::from(bin)] += 1;
            }
        }
    })
}

/// The bin that holds the `count`-th from the top, and how many are above that bin.
fn bin_of(histogram: &[u64], count: u64) -> (u16, u64) {
    let mut above = 0;
    for (bin, inside) in histogram.iter().enumerate().rev() {
        if above + inside >= count {
            return (bin as u16, above);
        }
        above += inside;
    }
    (0, above)
}

/// The `count` weights farthest from the mean.
///
/// # Errors
/// As [`moments`].
pub fn select(source: &dyn RowSource, count: u64) -> Result<Outliers, CodecError> {
    let mean = moments(source)?.mean;
    let (high, above) = bin_of(&histogram(source, mean, |bits| Some((bits >> 16) as u16))?, count);
    let in_bin = |bits: u32| ((bits >> 16) as u16 == high).then_some(bits as u16);
    let (low, above_low) = bin_of(&histogram(source, mean, in_bin)?, count - above);
    let threshold = u32::from(high) << 16 | u32::from(low);
    // Of the weights at exactly the threshold, so many from the start of the matrix.
    let mut allowed = count - above - above_low;
    let ties = fold(
        source,
        || 0_u64,
        |count, _, weights| {
            *count += weights.iter().filter(|weight| distance(**weight, mean).to_bits() == threshold).count() as u64;
            Ok(())
        },
    )?;
    let allowances: Vec<u64> = ties
        .into_iter()
        .map(|ties| {
            let taken = ties.min(allowed);
            allowed -= taken;
            taken
        })
        .collect();
    collect(source, mean, threshold, &allowances)
}

#[derive(Default)]
struct Found {
    ends: Vec<u32>,
    columns: Vec<u32>,
    values: Vec<f32>,
    ties: u64,
}

fn collect(source: &dyn RowSource, mean: f64, threshold: u32, allowances: &[u64]) -> Result<Outliers, CodecError> {
    let stripes = fold(source, Found::default, |found, row, weights| {
        let allowance = allowances[row / crate::layout::STRIPE_ALIGNMENT];
        for (column, weight) in weights.iter().enumerate() {
            let bits = distance(*weight, mean).to_bits();
            let tie = bits == threshold && found.ties < allowance;
            if bits > threshold || tie {
                found.ties += u64::from(tie);
                found.columns.push(column as u32);
                found.values.push(*weight);
            }
        }
        found.ends.push(found.columns.len() as u32);
        Ok(())
    })?;
    let mut outliers = Outliers { row_starts: vec![0], ..Outliers::default() };
    for stripe in stripes {
        let before = outliers.columns.len() as u32;
        outliers.row_starts.extend(stripe.ends.iter().map(|end| before + end));
        outliers.columns.extend(stripe.columns);
        outliers.values.extend(stripe.values);
    }
    outliers.row_starts.resize(source.rows() + 1, outliers.columns.len() as u32);
    Ok(outliers)
}
