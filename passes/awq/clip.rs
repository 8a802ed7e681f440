//! Clip limits by group.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use crate::passes::folding::{Consumer, FoldStatistics, Measure};

/// Rows that one task takes; a multiple of every block of rows that shares scales.
const ROWS: usize = 128;
/// Limits that are tried: (1 − i/20) of the largest magnitude.
const STEPS: usize = 10;

/// The limit of each (row, group) with the least `Δ_g H_gg Δ_gᵀ`, where Δ is what rounding the clipped group changes;
/// infinite where not clipping is best. `[rows, groups]`, ready for a list of limits per group of
/// [`Consumer::group`] columns (whole rows where there is none). None without second moments.
#[must_use]
pub fn clip(statistics: &FoldStatistics<'_>, consumer: &Consumer<'_>) -> Option<Vec<f32>> {
    let width = consumer.weights.len().checked_div(consumer.rows).unwrap_or(0);
    if width == 0 {
        return Some(Vec::new());
    }
    let group = consumer.group.unwrap_or(width).clamp(1, width);
    let gathered;
    let hessian = match Measure::new(statistics, width)? {
        Measure::Hessian { matrix, .. } => matrix,
        Measure::Sample(sample) => {
            gathered = second_moments(&sample.values, width);
            Measure::new(&FoldStatistics { hessian: Some(&gathered), ..*statistics }, width).and_then(|measure| {
                match measure {
                    Measure::Hessian { matrix, .. } => Some(matrix),
                    Measure::Sample(_) => None,
                }
            })?
        }
    };
    let hessian = MatRef::from_row_major_slice(&hessian.values, width, width);
    let groups = width.div_ceil(group);
    let mut limits = vec![f32::INFINITY; consumer.rows * groups];
    limits.par_chunks_mut(ROWS * groups).zip(consumer.weights.par_chunks(ROWS * width)).for_each(
        |(limits, weights)| {
            search(weights, width, group, hessian, consumer.quantize, limits);
        },
    );
    Some(limits)
}

fn search(
    weights: &[f32],
    width: usize,
    group: usize,
    hessian: MatRef<'_, f32>,
    quantize: &(dyn Fn(&[f32], usize) -> Vec<f32> + Sync),
    limits: &mut [f32],
) {
    let (rows, groups) = (weights.len() / width, width.div_ceil(group));
    let largest: Vec<f32> = weights
        .chunks_exact(width)
        .flat_map(|row| row.chunks(group))
        .map(|part| part.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs())))
        .collect();
    let mut least = vec![f64::INFINITY; largest.len()];
    let mut product = vec![0.0_f32; rows * group];
    for step in 0..STEPS {
        let share = 1.0 - step as f32 / 20.0;
        let mut clipped = weights.to_vec();
        if step > 0 {
            let parts = clipped.chunks_exact_mut(width).flat_map(|row| row.chunks_mut(group));
            for (part, largest) in parts.zip(&largest) {
                let limit = largest * share;
                for weight in part {
                    *weight = weight.clamp(-limit, limit);
                }
            }
        }
        let mut difference = quantize(&clipped, rows);
        difference.iter_mut().zip(weights).for_each(|(value, weight)| *value -= weight);
        let difference = MatRef::from_row_major_slice(&difference, rows, width);
        for index in 0..groups {
            let (first, count) = (index * group, group.min(width - index * group));
            let part = difference.subcols(first, count);
            let target = MatMut::from_row_major_slice_mut(&mut product[..rows * count], rows, count);
            matmul(target, Accum::Replace, part, hessian.submatrix(first, first, count, count), 1.0, Par::Seq);
            for row in 0..rows {
                let products = &product[row * count..][..count];
                let loss: f64 =
                    products.iter().enumerate().map(|(c, p)| f64::from(*p) * f64::from(part[(row, c)])).sum();
                let place = row * groups + index;
                if loss < least[place] {
                    least[place] = loss;
                    limits[place] = if step == 0 { f32::INFINITY } else { largest[place] * share };
                }
            }
        }
    }
}

/// Σ x xᵀ of token rows.
fn second_moments(sample: &[f32], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0_f64; width * width];
    sums.par_chunks_mut(width).enumerate().for_each(|(row, sums)| {
        for token in sample.chunks_exact(width) {
            let own = f64::from(token[row]);
            for (sum, value) in sums.iter_mut().zip(token) {
                *sum += own * f64::from(*value);
            }
        }
    });
    sums
}
