//! Scales of columns and levels of gains fitted to the points found, under the whole H.

use std::borrow::Cow;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{
    chunk::{Chunk, squares},
    gains::Levels,
    metric::Metric,
    scales::Scales,
};
use crate::codec::pyramid::{ROOM, lanes::LANES};

/// Columns of a product at a time.
const PANEL: usize = 128;
/// Steps of conjugate gradients, and how far they go on.
const STEPS: usize = 60;
const ENOUGH: f64 = 1e-6;

/// All chunks of a layer, and what they share.
#[derive(Debug)]
pub struct Refit<'a> {
    /// What errors cost.
    pub metric: Metric<'a>,
    /// Rows of the matrix.
    pub rows: usize,
}

impl Refit<'_> {
    /// Fits levels, then scales; both only where the loss falls.
    pub fn run(&self, chunks: &mut [Chunk], scales: &mut Scales, levels: &mut Levels) {
        let mut gradients: Vec<Vec<f32>> = chunks
            .par_iter()
            .map(|chunk| self.metric.product(0..self.metric.columns, &chunk.differences(), chunk.rows()))
            .collect();
        self.levels(chunks, &mut gradients, scales, levels);
        self.scales(chunks, &gradients, scales, levels);
    }

    /// Whether a place in a column of a chunk is a row of the matrix.
    fn is_row(&self, chunk: &Chunk, place: usize) -> bool {
        (chunk.first + place % LANES) * chunk.dimension + place / LANES < self.rows
    }

    /// Values of the matrix's rows; zero for padding.
    fn values<'c>(&self, chunk: &'c Chunk) -> Cow<'c, [f32]> {
        let rows = chunk.rows();
        if (chunk.first + LANES) * chunk.dimension <= self.rows {
            return Cow::Borrowed(&chunk.values);
        }
        let value = |(place, value): (usize, &f32)| if self.is_row(chunk, place % rows) { *value } else { 0.0 };
        Cow::Owned(chunk.values.iter().enumerate().map(value).collect())
    }

    /// The levels that would be best if each vector were alone; then as far that way as the loss falls most.
    fn levels(&self, chunks: &mut [Chunk], gradients: &mut [Vec<f32>], scales: &Scales, levels: &mut Levels) {
        let count = levels.all().len();
        let sums: Vec<Vec<(f64, f64)>> = chunks
            .par_iter()
            .zip(&*gradients)
            .map(|(chunk, gradient)| self.level_sums(chunk, gradient, scales, count))
            .collect();
        let mut totals = vec![(0.0, 0.0); count];
        for sums in &sums {
            for ((slope, weight), (more_slope, more_weight)) in totals.iter_mut().zip(sums) {
                *slope += more_slope;
                *weight += more_weight;
            }
        }
        let steps: Vec<f64> =
            totals.iter().map(|(slope, weight)| if *weight > 0.0 { -slope / weight } else { 0.0 }).collect();
        // How much of its own value each vector would gain.
        let share = |gain: u8| {
            let level = levels.of(gain);
            if level > 0.0 { (steps[usize::from(gain)] / f64::from(level)) as f32 } else { 0.0 }
        };
        let changes: Vec<(Vec<f32>, f64, f64)> = chunks
            .par_iter()
            .zip(&*gradients)
            .map(|(chunk, gradient)| {
                let rows = chunk.rows();
                let mut change = self.values(chunk).into_owned();
                for (column, gains) in change.chunks_exact_mut(rows).zip(chunk.gains.chunks_exact(LANES)) {
                    let shares: Vec<f32> = gains.iter().map(|gain| share(*gain)).collect();
                    for values in column.chunks_exact_mut(LANES) {
                        values.iter_mut().zip(&shares).for_each(|(value, share)| *value *= share);
                    }
                }
                let product = self.metric.product(0..self.metric.columns, &change, rows);
                let (slope, curvature) = (dot(&change, gradient), dot(&change, &product));
                (product, slope, curvature)
            })
            .collect();
        let (slope, curvature) =
            changes.iter().fold((0.0, 0.0), |(a, b), (_, slope, curvature)| (a + slope, b + curvature));
        let far = -slope / curvature;
        if !(far > 0.0 && far.is_finite()) {
            return;
        }
        let moved = levels.all().iter().zip(&steps).map(|(level, step)| (f64::from(*level) + far * step) as f32);
        let moved: Vec<f32> = moved.collect();
        let ascending = moved.windows(2).all(|pair| pair[0] < pair[1]);
        let largest = scales.values.iter().fold(0.0_f32, |largest, scale| largest.max(*scale));
        if !ascending || moved[0] < 0.0 || !(moved[count - 1] * largest * ROOM).is_finite() {
            return;
        }
        *levels = Levels::new(moved);
        chunks.par_iter_mut().zip(&mut *gradients).zip(&changes).for_each(|((chunk, gradient), (product, _, _))| {
            gradient.iter_mut().zip(product).for_each(|(gradient, product)| *gradient += far as f32 * product);
            (0..self.metric.columns).for_each(|column| chunk.update(column, scales.values[column], levels));
        });
    }

    /// Of each level the slope of half the loss and its curvature if vectors were alone.
    fn level_sums(&self, chunk: &Chunk, gradient: &[f32], scales: &Scales, count: usize) -> Vec<(f64, f64)> {
        let rows = chunk.rows();
        let mut sums = vec![(0.0, 0.0); count];
        for column in 0..self.metric.columns {
            let scale = f64::from(scales.values[column]);
            let diagonal = f64::from(self.metric.diagonal(column));
            let points = chunk.points[column * rows..][..rows].as_chunks::<LANES>().0;
            let squares = squares(points);
            let mut products = [0.0_f64; LANES];
            for (index, (points, gradient)) in
                points.iter().zip(gradient[column * rows..][..rows].as_chunks::<LANES>().0).enumerate()
            {
                for lane in 0..LANES {
                    if self.is_row(chunk, index * LANES + lane) {
                        products[lane] += f64::from(points[lane]) * f64::from(gradient[lane]);
                    }
                }
            }
            for lane in 0..LANES {
                if (chunk.first + lane) * chunk.dimension < self.rows {
                    let (slope, weight) = &mut sums[usize::from(chunk.gains[column * LANES + lane])];
                    *slope += scale * products[lane] / f64::from(squares[lane]).sqrt();
                    *weight += diagonal * scale * scale;
                }
            }
        }
        sums
    }

    /// With v = z s, the loss is a quadratic form of all scales at once: its matrix is H times `ZᵀZ`, element by element.
    /// In shares of the scales as they are, its minimum solves `(H ∘ VᵀV) δ = −diag(Vᵀ g)`.
    fn scales(&self, chunks: &mut [Chunk], gradients: &[Vec<f32>], scales: &mut Scales, levels: &Levels) {
        let columns = self.metric.columns;
        let values: Vec<Cow<'_, [f32]>> = chunks.iter().map(|chunk| self.values(chunk)).collect();
        let rows = chunks.first().map_or(0, Chunk::rows);
        let slopes: Vec<f64> = (0..columns)
            .into_par_iter()
            .map(|column| {
                let place = column * rows..(column + 1) * rows;
                let of_chunk = values.iter().zip(gradients).map(|(v, g)| dot(&v[place.clone()], &g[place.clone()]));
                of_chunk.sum()
            })
            .collect();
        let system = match self.metric.factor {
            Some(_) => System::Full(self.system(&values, rows)),
            None => System::Diagonal(
                (0..columns)
                    .map(|column| {
                        let place = column * rows..(column + 1) * rows;
                        values.iter().map(|v| dot(&v[place.clone()], &v[place.clone()])).sum()
                    })
                    .collect(),
            ),
        };
        drop(values);
        let mut fitted = scales.clone();
        let largest = levels.all().last().copied().unwrap_or_default();
        for (column, share) in system.solve(&slopes).into_iter().enumerate() {
            // A scale stays about as large as it was; anything else is rounding's work.
            let scale = f64::from(scales.values[column]) * (1.0 + share);
            if share.abs() < 0.5 && (scale as f32 * largest * ROOM * ROOM).is_finite() {
                fitted.set(column, scale);
            }
        }
        // What storing them has made of them must be better, too.
        let share = |(new, old): (&f32, &f32)| if *old > 0.0 { f64::from(*new) / f64::from(*old) - 1.0 } else { 0.0 };
        let shares: Vec<f64> = fitted.values.iter().zip(&scales.values).map(share).collect();
        let image = system.product(&shares);
        let change: f64 = shares.iter().zip(&slopes).zip(&image).map(|((x, slope), ax)| x * (2.0 * slope + ax)).sum();
        if change < 0.0 {
            *scales = fitted;
            chunks.par_iter_mut().for_each(|chunk| {
                (0..columns).for_each(|column| chunk.update(column, scales.values[column], levels));
            });
        }
    }

    /// `H ∘ VᵀV`, `[columns, columns]`.
    fn system(&self, values: &[Cow<'_, [f32]>], rows: usize) -> Vec<f32> {
        let columns = self.metric.columns;
        let mut system = vec![0.0; columns * columns];
        system.par_chunks_mut(PANEL * columns).enumerate().for_each(|(panel, system)| {
            let (first, count) = (panel * PANEL, system.len() / columns);
            for values in values {
                let all = MatRef::from_column_major_slice(values, rows, columns);
                let to = MatMut::from_row_major_slice_mut(&mut *system, count, columns);
                matmul(to, Accum::Add, all.subcols(first, count).transpose(), all, 1.0, Par::Seq);
            }
            for (index, row) in system.chunks_exact_mut(columns).enumerate() {
                if let Some(hessian) = self.metric.row(first + index, 0..columns) {
                    row.iter_mut().zip(hessian).for_each(|(element, h)| *element *= h);
                }
            }
        });
        system
    }
}

/// The quadratic form of the scales.
enum System {
    /// All elements.
    Full(Vec<f32>),
    /// Where nothing but the diagonal is not zero.
    Diagonal(Vec<f64>),
}

impl System {
    fn product(&self, x: &[f64]) -> Vec<f64> {
        match self {
            Self::Full(elements) => {
                let of_row = |row: &[f32]| row.iter().zip(x).map(|(a, x)| f64::from(*a) * x).sum();
                elements.par_chunks_exact(x.len().max(1)).map(of_row).collect()
            }
            Self::Diagonal(diagonal) => diagonal.iter().zip(x).map(|(a, x)| a * x).collect(),
        }
    }

    /// Solves A x = −b by conjugate gradients with A's diagonal as the preconditioner; x is zero where that is.
    fn solve(&self, negative: &[f64]) -> Vec<f64> {
        let order = negative.len();
        let inverse = |index: usize| {
            let diagonal = match self {
                Self::Full(elements) => f64::from(elements[index * order + index]),
                Self::Diagonal(diagonal) => diagonal[index],
            };
            if diagonal > 0.0 { 1.0 / diagonal } else { 0.0 }
        };
        let inverses: Vec<f64> = (0..order).map(inverse).collect();
        let inner = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let precondition =
            |residual: &[f64]| -> Vec<f64> { residual.iter().zip(&inverses).map(|(r, i)| r * i).collect() };
        let mut x = vec![0.0; order];
        let mut residual: Vec<f64> = negative.iter().map(|b| -b).collect();
        let mut direction = precondition(&residual);
        let mut energy = inner(&residual, &direction);
        let enough = energy * ENOUGH;
        for _ in 0..STEPS {
            let image = self.product(&direction);
            let far = energy / inner(&direction, &image);
            if !far.is_finite() || energy <= enough {
                break;
            }
            x.iter_mut().zip(&direction).for_each(|(x, d)| *x += far * d);
            residual.iter_mut().zip(&image).for_each(|(r, i)| *r -= far * i);
            let scaled = precondition(&residual);
            let next = inner(&residual, &scaled);
            let turn = next / energy;
            direction.iter_mut().zip(&scaled).for_each(|(d, s)| *d = s + turn * *d);
            energy = next;
        }
        x
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
