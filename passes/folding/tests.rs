//! Statistics and losses against their definitions.

use super::*;

pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
    };
    // Sums of uniform numbers: outliers are not extreme by themselves.
    (0..count).map(|_| next() + next() + next()).collect()
}

/// Tokens with a few channels that are much larger than the rest.
pub fn tokens(rows: usize, columns: usize, seed: u64) -> Matrix {
    let mut values = noise(rows * columns, seed);
    for row in values.chunks_exact_mut(columns) {
        for (channel, value) in row.iter_mut().enumerate() {
            *value *= if channel % 7 == 3 { 30.0 } else { 1.0 };
        }
    }
    Matrix { rows, columns, values }
}

pub fn statistics(sample: &Matrix) -> OwnedStatistics {
    let n = sample.columns;
    let (mut absmax, mut mean_abs, mut hessian) = (vec![0.0_f32; n], vec![0.0_f32; n], vec![0.0; n * n]);
    for token in sample.values.chunks_exact(n) {
        for (i, x) in token.iter().enumerate() {
            absmax[i] = absmax[i].max(x.abs());
            mean_abs[i] += x.abs() / sample.rows as f32;
            for (j, y) in token.iter().enumerate() {
                hessian[i * n + j] += f64::from(*x) * f64::from(*y);
            }
        }
    }
    OwnedStatistics { absmax, mean_abs, hessian: Some(hessian), sample: Some(sample.clone()) }
}

/// Asymmetric rounding in groups of 8 to 4 bits.
pub fn round_groups(weights: &[f32], _rows: usize) -> Vec<f32> {
    let mut out = weights.to_vec();
    for group in out.chunks_mut(8) {
        let least = group.iter().fold(0.0_f32, |a, b| a.min(*b));
        let largest = group.iter().fold(0.0_f32, |a, b| a.max(*b));
        let step = ((largest - least) / 15.0).max(1e-30);
        let zero = (-least / step).round_ties_even();
        for weight in group {
            *weight = ((*weight / step).round_ties_even() + zero).clamp(0.0, 15.0).mul_add(step, -zero * step);
        }
    }
    out
}

pub fn consumer(weights: &[f32], rows: usize, input: InputFormat) -> Consumer<'_> {
    Consumer { weights, rows, quantize: &round_groups, group: Some(8), input }
}

/// Σ ‖X Δᵀ‖² in F64.
fn direct(sample: &Matrix, difference: &[f32]) -> f64 {
    let dot = |x: &[f32], d: &[f32]| x.iter().zip(d).map(|(x, d)| f64::from(*x) * f64::from(*d)).sum::<f64>();
    let tokens = sample.values.chunks_exact(sample.columns);
    tokens.flat_map(|x| difference.chunks_exact(sample.columns).map(move |d| dot(x, d).powi(2))).sum()
}

#[test]
fn loss_through_second_moments_is_that_of_the_tokens() {
    let sample = tokens(50, 24, 1);
    let owned = statistics(&sample);
    let difference = Matrix { rows: 9, columns: 24, values: noise(9 * 24, 2) };
    let expected = direct(&sample, &difference.values);
    let with = Measure::new(&owned.view(), 24).unwrap().of(&difference);
    let without = Measure::new(&FoldStatistics { hessian: None, ..owned.view() }, 24).unwrap().of(&difference);
    assert!((with / expected - 1.0).abs() < 1e-5);
    assert!((without / expected - 1.0).abs() < 1e-5);
    assert!(Measure::new(&FoldStatistics::default(), 24).is_none());
}

#[test]
fn weight_loss_is_that_of_all_rows_where_there_are_few() {
    let sample = tokens(40, 24, 3);
    let owned = statistics(&sample);
    let weights = noise(16 * 24, 4);
    let consumers = [consumer(&weights, 16, InputFormat::Exact)];
    let scales: Vec<f64> = (0..24).map(|i| 0.5 + f64::from(i) / 10.0).collect();
    let scaled: Vec<f32> = weights.iter().enumerate().map(|(i, w)| (f64::from(*w) * scales[i % 24]) as f32).collect();
    let difference: Vec<f32> = round_groups(&scaled, 16)
        .iter()
        .enumerate()
        .map(|(i, q)| (f64::from(*q) / scales[i % 24] - f64::from(weights[i])) as f32)
        .collect();
    let measure = Measure::new(&owned.view(), 24).unwrap();
    let loss = LossRows::new(&consumers, 24).weight_loss(&consumers, &measure, &scales);
    assert!((loss / direct(&sample, &difference) - 1.0).abs() < 1e-5);
}

#[test]
fn rescaled_statistics_are_those_of_rescaled_tokens() {
    let sample = tokens(30, 12, 5);
    let scales: Vec<f64> = (0..12).map(|i| 2f64.powi(i - 6)).collect();
    let divided = Matrix {
        values: sample.values.iter().enumerate().map(|(i, x)| (f64::from(*x) / scales[i % 12]) as f32).collect(),
        ..sample.clone()
    };
    let (rescaled, expected) = (rescale_statistics(&statistics(&sample).view(), &scales), statistics(&divided));
    // Powers of two: to the last bit.
    assert_eq!(rescaled, expected);
}

#[test]
fn channels_share_scales() {
    let of = [0, 1, 0, 1, 2, 3, 2, 3];
    let channels = Channels { count: 4, of: Some(&of) };
    let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0];
    assert_eq!(channels.largest(&values), [3.0, 4.0, 7.0, 9.0]);
    assert_eq!(channels.mean(&values), [2.0, 3.0, 6.0, 7.5]);
    assert_eq!(channels.spread(&[1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
}
