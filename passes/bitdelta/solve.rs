//! Signs and scales under the second moments of the input.
//!
//! The error of the outputs, `tr(E H Eᵀ)` with E = D − Σ α S, falls in two steps that take turns. With the signs fixed,
//! scales are a least squares problem of as many unknowns as planes (one plane: α = ⟨D H, S⟩ / ⟨S H, S⟩). With the scales
//! fixed, signs are found by coordinate descent: column by column each weight takes the sum of ±α that leaves the least
//! error given all others of its row. Neither step can raise the error, so nothing has to be tuned.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{Plane, Share, Signs, decompose};
use crate::{
    forward::Matrix,
    passes::{
        Deviations,
        gptq::{
            Factor, Moments, SolveError,
            target::{self, Correction},
        },
    },
};

/// Rows that one task takes.
const BAND: usize = 64;
/// Most sweeps over the columns of a row with the same scales.
const SWEEPS: usize = 8;

/// How to solve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SolveOptions {
    /// Share of H's mean diagonal that is added to the diagonal.
    pub damping: f64,
    /// Share of the correction for the lossy input, from 0 to 1.
    pub drift_share: f64,
    /// Most rounds of signs and scales; 0 for the signs of the difference and the best scales of those.
    pub rounds: usize,
}

impl Default for SolveOptions {
    fn default() -> Self {
        Self { damping: 0.01, drift_share: 1.0, rounds: 8 }
    }
}

/// A matrix and what it was before.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Weights, `[rows, columns]` row-major.
    pub weights: &'a [f32],
    /// The base's, likewise.
    pub base: &'a [f32],
    /// Output features.
    pub rows: usize,
    /// Planes.
    pub planes: usize,
    /// What a scale is of.
    pub share: Share,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// The planes.
    pub planes: Vec<Plane>,
    /// What deviates from what was asked.
    pub deviations: Deviations,
}

/// The planes of `weights − base` for an input with these moments; `residual` is `Σ (r_dense − r) xᵀ`, where it is known,
/// `[rows, columns]`. Same input, same result, whatever the number of threads.
///
/// # Errors
/// [`SolveError`] when lengths do not fit or a weight is not finite.
pub fn solve(
    factor: &Factor,
    moments: &Moments<'_>,
    linear: &Linear<'_>,
    residual: Option<&[f32]>,
    options: &SolveOptions,
) -> Result<Solution, SolveError> {
    let (rows, columns) = (linear.rows, moments.columns);
    SolveError::check("factor's channels", columns, factor.columns)?;
    for (what, expected, length) in [
        ("weights", rows * columns, linear.weights.len()),
        ("base's weights", rows * columns, linear.base.len()),
        ("drift", columns * columns, moments.drift.map_or(columns * columns, <[f32]>::len)),
        ("residual", rows * columns, residual.map_or(rows * columns, <[f32]>::len)),
    ] {
        SolveError::check(what, expected, length)?;
    }
    let correction = Correction { drift: moments.drift, residual, share: options.drift_share };
    let corrects = options.drift_share != 0.0 && (moments.drift.is_some() || residual.is_some());
    let mut values =
        if corrects { target::corrected(factor, linear.weights, &correction) } else { linear.weights.to_vec() };
    for (value, base) in values.iter_mut().zip(linear.base) {
        *value -= base;
    }
    if let Some(index) = crate::codec::range::first_non_finite(&values) {
        return Err(SolveError::Target { row: index / columns, column: index % columns });
    }
    let difference = Matrix { rows, columns, values };
    let planes = descend(&difference, &factor.hessian, linear.planes, linear.share, options.rounds);
    let counts = [("damping-raised", factor.escalations as u64), ("dead-columns", factor.dead.len() as u64)];
    Ok(Solution { planes, deviations: counts.into_iter().filter(|(_, count)| *count > 0).collect() })
}

/// The planes of a difference under a positive definite H, `[columns, columns]`.
pub(super) fn descend(difference: &Matrix, hessian: &[f32], planes: usize, share: Share, rounds: usize) -> Vec<Plane> {
    let start = decompose(difference.clone(), planes, share, None);
    if difference.values.is_empty() {
        return start;
    }
    let mut bands = Band::all(difference, hessian, &start);
    fit(&mut bands, share);
    for _ in 0..rounds {
        let changed: Vec<bool> = bands.par_iter_mut().map(Band::choose).collect();
        if !changed.contains(&true) {
            break;
        }
        fit(&mut bands, share);
    }
    (0..planes).map(|plane| Band::plane(&bands, plane, share, (difference.rows, difference.columns))).collect()
}

/// Finds the best scales of the signs that are there: of each row, or of all together.
fn fit(bands: &mut [Band<'_>], share: Share) {
    let systems: Vec<Vec<System>> = bands.par_iter().map(Band::systems).collect();
    match share {
        Share::Row => {
            for (band, systems) in bands.iter_mut().zip(&systems) {
                for (scales, system) in band.scales.iter_mut().zip(systems) {
                    system.solve(scales);
                }
            }
        }
        Share::Matrix => {
            let mut total = System::default();
            systems.iter().flatten().for_each(|system| total.add(system));
            let Some(mut scales) = bands.first().and_then(|band| band.scales.first()).cloned() else { return };
            total.solve(&mut scales);
            bands.iter_mut().flat_map(|band| &mut band.scales).for_each(|row| row.clone_from(&scales));
        }
    }
}

/// The normal equations of some scales: `⟨S_p H, S_q⟩` and `⟨S_p H, D⟩`.
#[derive(Debug, Clone, Default)]
struct System {
    left: Vec<f64>,
    right: Vec<f64>,
}

impl System {
    fn add(&mut self, other: &Self) {
        if self.right.is_empty() {
            self.clone_from(other);
            return;
        }
        for (sums, values) in [(&mut self.left, &other.left), (&mut self.right, &other.right)] {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }

    /// Gaussian elimination with the largest diagonal first. Planes that say the same as others keep their scales, and
    /// so do all where the result is no number.
    fn solve(&self, scales: &mut [f64]) {
        let count = self.right.len();
        let (mut left, mut right) = (self.left.clone(), self.right.clone());
        let mut open: Vec<usize> = (0..count).collect();
        let mut order = Vec::new();
        let most = (0..count).map(|at| left[at * count + at]).fold(0.0, f64::max);
        while let Some(place) =
            (0..open.len()).max_by(|a, b| left[open[*a] * (count + 1)].total_cmp(&left[open[*b] * (count + 1)]))
        {
            let pivot = open.swap_remove(place);
            if left[pivot * (count + 1)].is_nan() || left[pivot * (count + 1)] <= 1e-9 * most {
                break;
            }
            for &row in &open {
                let factor = left[row * count + pivot] / left[pivot * (count + 1)];
                for column in 0..count {
                    left[row * count + column] -= factor * left[pivot * count + column];
                }
                right[row] -= factor * right[pivot];
            }
            order.push(pivot);
        }
        let mut found = scales.to_vec();
        for (done, &pivot) in order.iter().enumerate().rev() {
            // What is eliminated before has no column left here; what kept its scale has one.
            let known = (0..count).filter(|at| !order[..=done].contains(at));
            let rest: f64 = known.map(|at| left[pivot * count + at] * found[at]).sum();
            found[pivot] = (right[pivot] - rest) / left[pivot * (count + 1)];
        }
        if found.iter().all(|scale| scale.is_finite()) {
            scales.copy_from_slice(&found);
        }
    }
}

/// Some rows: the difference, and which sign each plane has at each weight.
struct Band<'a> {
    columns: usize,
    difference: &'a [f32],
    hessian: &'a [f32],
    /// Bit p: the sign of plane p is +1.
    codes: Vec<u8>,
    /// Of every row, one for each plane.
    scales: Vec<Vec<f64>>,
}

impl<'a> Band<'a> {
    fn all(difference: &'a Matrix, hessian: &'a [f32], planes: &[Plane]) -> Vec<Self> {
        let columns = difference.columns;
        let band = |(band, values): (usize, &'a [f32])| {
            let rows = band * BAND..band * BAND + values.len() / columns;
            let code = |row: usize, column: usize| {
                let bits = planes.iter().enumerate();
                bits.fold(0, |code, (at, plane)| code | u8::from(plane.signs.is_positive(row, column)) << at)
            };
            let codes = rows.clone().flat_map(|row| (0..columns).map(move |column| code(row, column))).collect();
            let scales = rows.map(|row| planes.iter().map(|plane| f64::from(plane.scale(row))).collect()).collect();
            Self { columns, difference: values, hessian, codes, scales }
        };
        difference.values.par_chunks(BAND * columns).enumerate().map(band).collect()
    }

    /// `X H` for rows X.
    fn through(&self, rows: &[f32]) -> Vec<f32> {
        let (count, columns) = (rows.len() / self.columns, self.columns);
        let mut out = vec![0.0; rows.len()];
        let hessian = MatRef::from_row_major_slice(self.hessian, columns, columns);
        let target = MatMut::from_row_major_slice_mut(&mut out, count, columns);
        matmul(target, Accum::Replace, MatRef::from_row_major_slice(rows, count, columns), hessian, 1.0, Par::Seq);
        out
    }

    fn signs(&self, plane: usize) -> Vec<f32> {
        self.codes.iter().map(|code| if code >> plane & 1 == 1 { 1.0 } else { -1.0 }).collect()
    }

    fn systems(&self) -> Vec<System> {
        let planes = self.scales.first().map_or(0, Vec::len);
        let signs: Vec<Vec<f32>> = (0..planes).map(|plane| self.signs(plane)).collect();
        let through: Vec<Vec<f32>> = signs.iter().map(|signs| self.through(signs)).collect();
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        (0..self.scales.len())
            .map(|row| {
                let part = row * self.columns..(row + 1) * self.columns;
                let of = |list: &[f32], other: &[f32]| product(&list[part.clone()], other);
                System {
                    left: through.iter().flat_map(|t| signs.iter().map(|s| of(t, &s[part.clone()]))).collect(),
                    right: through.iter().map(|t| of(t, &self.difference[part.clone()])).collect(),
                }
            })
            .collect()
    }

    /// Coordinate descent over the signs; whether any changed.
    fn choose(&mut self) -> bool {
        let columns = self.columns;
        let planes = self.scales.first().map_or(0, Vec::len);
        let levels: Vec<Vec<f32>> = self
            .scales
            .iter()
            .map(|scales| {
                let sum = |code: usize| -> f64 {
                    scales.iter().enumerate().map(|(at, scale)| if code >> at & 1 == 1 { *scale } else { -scale }).sum()
                };
                (0..1 << planes).map(|code| sum(code) as f32).collect()
            })
            .collect();
        let places = self.codes.iter().enumerate().map(|(at, code)| levels[at / columns][usize::from(*code)]);
        let mut errors: Vec<f32> = self.difference.iter().zip(places).map(|(value, level)| value - level).collect();
        let mut slopes = self.through(&errors);
        let mut changed = false;
        for (row, levels) in levels.iter().enumerate() {
            let part = row * columns..(row + 1) * columns;
            let (codes, errors) = (&mut self.codes[part.clone()], &mut errors[part.clone()]);
            let slopes = &mut slopes[part];
            for _ in 0..SWEEPS {
                if !sweep(self.hessian, levels, codes, errors, slopes) {
                    break;
                }
                changed = true;
            }
        }
        changed
    }

    /// A plane of all bands together.
    fn plane(bands: &[Self], plane: usize, share: Share, (rows, columns): (usize, usize)) -> Plane {
        let values: Vec<f32> = bands.iter().flat_map(|band| band.signs(plane)).collect();
        let mut scales: Vec<f32> =
            bands.iter().flat_map(|band| &band.scales).map(|scales| scales[plane] as f32).collect();
        if share == Share::Matrix {
            scales.truncate(1);
        }
        Plane { signs: Signs::of(rows, columns, &values), scales }
    }
}

/// One sweep over a row. The error falls by `−(2 δ (e H)_j + δ² H_jj)` where weight j's level goes down by δ.
fn sweep(hessian: &[f32], levels: &[f32], codes: &mut [u8], errors: &mut [f32], slopes: &mut [f32]) -> bool {
    let columns = codes.len();
    let mut changed = false;
    for column in 0..columns {
        let line = &hessian[column * columns..][..columns];
        let (slope, weight, now) = (slopes[column], line[column], levels[usize::from(codes[column])]);
        // The level without an error, and the nearest to it.
        let wanted = now + slope / weight;
        let distance = |level: f32| (level - wanted).abs();
        let mut best = usize::from(codes[column]);
        for (code, level) in levels.iter().enumerate() {
            if distance(*level) < distance(levels[best]) {
                best = code;
            }
        }
        let step = now - levels[best];
        if step == 0.0 {
            continue;
        }
        codes[column] = best as u8;
        errors[column] += step;
        slopes.iter_mut().zip(line).for_each(|(slope, moment)| *slope += step * moment);
        changed = true;
    }
    changed
}
