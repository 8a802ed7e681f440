//! A fixed number of vectors of each column, worked on together by one thread.

use super::gains::Levels;
use crate::codec::{
    Pyramid,
    pyramid::lanes::{LANES, Lane, Scratch, nearest_directions},
};

/// [`LANES`] vectors of each column. Matrices are stored column after column in their original order; in each, coordinate
/// after coordinate of the vectors, so that a vector is a lane. Vectors beyond the matrix are zero.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Rows of a vector.
    pub dimension: usize,
    /// The first vector in its column.
    pub first: usize,
    /// What the points are to decode to.
    pub target: Vec<f32>,
    /// Coordinates found.
    pub points: Vec<i16>,
    /// Gains found, [`LANES`] of each column.
    pub gains: Vec<u8>,
    /// What they decode to.
    pub values: Vec<f32>,
}

impl Chunk {
    /// The chunk from vector `first` on, of a target `[rows, columns]` row-major.
    pub fn new(dimension: usize, first: usize, target: &[f32], columns: usize) -> Self {
        let rows = dimension * LANES;
        let mut chunk = Self {
            dimension,
            first,
            target: vec![0.0; rows * columns],
            points: vec![0; rows * columns],
            gains: vec![0; LANES * columns],
            values: vec![0.0; rows * columns],
        };
        for (row, weights) in target.chunks_exact(columns).skip(first * dimension).take(rows).enumerate() {
            let place = row % dimension * LANES + row / dimension;
            for (column, weight) in weights.iter().enumerate() {
                chunk.target[column * rows + place] = *weight;
            }
        }
        chunk
    }

    /// Rows with padding.
    pub fn rows(&self) -> usize {
        self.dimension * LANES
    }

    /// v − t.
    pub fn differences(&self) -> Vec<f32> {
        self.values.iter().zip(&self.target).map(|(value, target)| value - target).collect()
    }

    /// Takes over what was found for a column, for the lanes that are asked for.
    pub fn take(&mut self, column: usize, found: &Found, wanted: impl Fn(usize) -> bool) {
        let rows = self.rows();
        let points = self.points[column * rows..][..rows].as_chunks_mut::<LANES>().0;
        let values = self.values[column * rows..][..rows].as_chunks_mut::<LANES>().0;
        for lane in (0..LANES).filter(|lane| wanted(*lane)) {
            for place in 0..self.dimension {
                points[place][lane] = found.points[place][lane] as i16;
                values[place][lane] = found.values[place][lane];
            }
            self.gains[column * LANES + lane] = found.gains[lane];
        }
    }

    /// Computes a column's values anew.
    pub fn update(&mut self, column: usize, scale: f32, levels: &Levels) {
        let rows = self.rows();
        let points = self.points[column * rows..][..rows].as_chunks::<LANES>().0;
        let values = self.values[column * rows..][..rows].as_chunks_mut::<LANES>().0;
        let gains = &self.gains[column * LANES..][..LANES];
        let mut steps = squares(points);
        for (step, gain) in steps.iter_mut().zip(gains) {
            *step = Pyramid::step(scale, levels.of(*gain), *step);
        }
        for (values, points) in values.iter_mut().zip(points) {
            for lane in 0..LANES {
                values[lane] = steps[lane] * f32::from(points[lane]);
            }
        }
    }

    /// The vectors that are the matrix's, and not padding.
    pub fn vectors(&self, blocks: usize) -> usize {
        LANES.min(blocks - self.first)
    }
}

/// Σ y² of each lane.
pub fn squares(points: &[[i16; LANES]]) -> Lane {
    let mut squares = [0.0; LANES];
    for points in points {
        for lane in 0..LANES {
            squares[lane] += f32::from(points[lane]) * f32::from(points[lane]);
        }
    }
    squares
}

/// The nearest points to the vectors of one column of a chunk.
#[derive(Debug, Clone)]
pub struct Found {
    /// Points, `[dimension]`.
    pub points: Vec<Lane>,
    /// Their gains.
    pub gains: [u8; LANES],
    /// What they decode to, `[dimension]`.
    pub values: Vec<Lane>,
    scratch: Scratch,
}

impl Found {
    /// Room for vectors of so many rows.
    pub fn new(dimension: usize) -> Self {
        let lanes = || vec![[0.0; LANES]; dimension];
        Self { points: lanes(), gains: [0; LANES], values: lanes(), scratch: Scratch::default() }
    }

    /// Finds the points nearest in direction and the gains nearest to the projections.
    pub fn search(&mut self, pyramid: &Pyramid, weights: &[f32], scale: f32, levels: &Levels) {
        let weights = weights.as_chunks::<LANES>().0;
        nearest_directions(weights, pyramid.pulses, &mut self.points, &mut self.scratch);
        self.gain(weights, scale, levels);
    }

    /// Keeps given points and finds the gains.
    pub fn regain(&mut self, points: &[i16], weights: &[f32], scale: f32, levels: &Levels) {
        for (to, from) in self.points.iter_mut().zip(points.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                to[lane] = f32::from(from[lane]);
            }
        }
        self.gain(weights.as_chunks::<LANES>().0, scale, levels);
    }

    fn gain(&mut self, weights: &[Lane], scale: f32, levels: &Levels) {
        let (mut product, mut square) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        for (weights, points) in weights.iter().zip(&self.points) {
            for lane in 0..LANES {
                product[lane] += weights[lane] * points[lane];
                square[lane] += points[lane] * points[lane];
            }
        }
        let mut ratio = [0.0_f32; LANES];
        for lane in 0..LANES {
            ratio[lane] = if scale > 0.0 { product[lane] / square[lane].sqrt() / scale } else { 0.0 };
        }
        levels.nearest(&ratio, &mut self.gains);
        let mut step = [0.0_f32; LANES];
        for lane in 0..LANES {
            step[lane] = Pyramid::step(scale, levels.of(self.gains[lane]), square[lane]);
        }
        for (values, points) in self.values.iter_mut().zip(&self.points) {
            for lane in 0..LANES {
                values[lane] = step[lane] * points[lane];
            }
        }
    }

    /// Squared distances to the weights.
    pub fn errors(&self, weights: &[f32]) -> Lane {
        squared_errors(self.values.as_flattened(), weights)
    }
}

/// Squared distances of vectors of a column.
pub fn squared_errors(values: &[f32], weights: &[f32]) -> Lane {
    let mut errors = [0.0_f32; LANES];
    for (values, weights) in values.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            errors[lane] += (values[lane] - weights[lane]) * (values[lane] - weights[lane]);
        }
    }
    errors
}
