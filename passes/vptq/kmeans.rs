//! Weighted k-means: Lloyd's iteration ("Least squares quantization in PCM", 1982) from the seeds of k-means++ (Arthur
//! and Vassilvitskii, 2007), first on a sample, then on everything.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    book::squares,
    kernel::{LANES, Winners, nearest, with_norms},
    random::Random,
};

/// Runs of points whose sums are made one after the other; more threads than that are of no use.
const BANDS: usize = 16;
/// Draws of seeds between updates of the distances: this share of all centroids.
const SEED_ROUNDS: usize = 64;
/// A fall of the error by less than this share ends the iteration.
const WORTH: f64 = 5e-4;
/// Distances below this share of the squared norm are rounding.
const ROUNDING: f32 = 1e-6;

/// Where points come from, in blocks of as many as there are lanes.
pub trait Points: Sync {
    /// Components of a point.
    fn length(&self) -> usize;
    /// Blocks.
    fn blocks(&self) -> usize;
    /// Writes a block: points as `[length, LANES]`, and their weights, which are 0 for lanes without a point.
    fn load(&self, block: usize, x: &mut [f32], weights: &mut [f32; LANES]);
}

/// Points in memory.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Components of a point.
    pub length: usize,
    /// `[blocks, length, LANES]`.
    pub x: Vec<f32>,
    /// `[blocks, LANES]`.
    pub weights: Vec<[f32; LANES]>,
}

impl Points for Stored {
    fn length(&self) -> usize {
        self.length
    }

    fn blocks(&self) -> usize {
        self.weights.len()
    }

    fn load(&self, block: usize, x: &mut [f32], weights: &mut [f32; LANES]) {
        x.copy_from_slice(&self.x[block * self.length * LANES..][..self.length * LANES]);
        *weights = self.weights[block];
    }
}

/// How long to look for centroids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Points of the sample for each centroid.
    pub sample: usize,
    /// Most rounds on the sample.
    pub sample_rounds: usize,
    /// Most rounds on all points.
    pub rounds: usize,
}

/// Centroids `[count, length]` of the points, and the weighted squared error before each round on the sample, then on all
/// points.
pub fn centroids(points: &dyn Points, count: usize, effort: Effort, random: &mut Random) -> (Vec<f32>, [Vec<f64>; 2]) {
    let sample = sample(points, (count * effort.sample).div_ceil(LANES), random);
    let mut centroids = seed(&sample, count, random);
    let errors = lloyd(&sample, &mut centroids, effort.sample_rounds);
    let whole = sample.blocks() == points.blocks();
    let more = if whole { Vec::new() } else { lloyd(points, &mut centroids, effort.rounds) };
    (centroids, [errors, more])
}

/// Some of the blocks, in their order; all where there are no more.
fn sample(points: &dyn Points, wanted: usize, random: &mut Random) -> Stored {
    let (length, blocks) = (points.length(), points.blocks());
    let mut chosen: Vec<usize> = (0..blocks).collect();
    if wanted < blocks {
        for place in 0..wanted {
            let other = place + random.below(blocks - place);
            chosen.swap(place, other);
        }
        chosen.truncate(wanted);
        chosen.sort_unstable();
    }
    let mut stored =
        Stored { length, x: vec![0.0; chosen.len() * length * LANES], weights: vec![[0.0; LANES]; chosen.len()] };
    let to = stored.x.par_chunks_mut(length * LANES).zip(&mut stored.weights).zip(&chosen);
    to.for_each(|((x, weights), block)| points.load(*block, x, weights));
    stored
}

/// Points drawn one batch after the other, each with a probability that grows with its weighted squared distance from
/// those drawn before.
pub fn seed(points: &Stored, count: usize, random: &mut Random) -> Vec<f32> {
    let length = points.length;
    let mut centroids: Vec<f32> = Vec::with_capacity(count * length);
    let push = |centroids: &mut Vec<f32>, point: usize| {
        let block = &points.x[point / LANES * length * LANES..];
        centroids.extend((0..length).map(|component| block[component * LANES + point % LANES]));
    };
    let all_weights: Vec<f32> = points.weights.as_flattened().to_vec();
    let mut distances = vec![f32::INFINITY; all_weights.len()];
    let mut batch = draw(&all_weights, 1, random);
    while !batch.is_empty() {
        let first = centroids.len();
        for point in &batch {
            push(&mut centroids, *point);
        }
        let missing = count - centroids.len() / length;
        if missing == 0 {
            return centroids;
        }
        let rows = with_norms(&centroids[first..], length);
        let blocks = points.x.par_chunks(length * LANES).zip(distances.par_chunks_mut(LANES));
        blocks.for_each(|(x, distances)| {
            let mut winners = Winners::NONE;
            nearest(length, x, &rows, &mut winners);
            for (lane, square) in squares(x).into_iter().enumerate() {
                let distance = square - 2.0 * winners.score[lane];
                let distance = if distance <= ROUNDING * square { 0.0 } else { distance };
                distances[lane] = distances[lane].min(distance);
            }
        });
        let weighted: Vec<f32> =
            distances.iter().zip(&all_weights).map(|(distance, weight)| distance * weight).collect();
        batch = draw(&weighted, (count / SEED_ROUNDS).clamp(1, missing), random);
    }
    // Fewer points than centroids: the rest stays unused.
    centroids.resize(count * length, 0.0);
    centroids
}

/// Some distinct indices with probabilities in proportion to their weights; none where all weights are zero.
fn draw(weights: &[f32], count: usize, random: &mut Random) -> Vec<usize> {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    if total <= 0.0 {
        return Vec::new();
    }
    let mut marks: Vec<f64> = (0..count).map(|_| random.uniform() * total).collect();
    marks.sort_by(f64::total_cmp);
    let mut marks = marks.into_iter().peekable();
    let (mut drawn, mut sum) = (Vec::new(), 0.0);
    let mut last = 0;
    for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        last = index;
        sum += f64::from(*weight);
        if marks.next_if(|mark| *mark < sum).is_some() {
            drawn.push(index);
            while marks.next_if(|mark| *mark < sum).is_some() {}
        }
    }
    if drawn.is_empty() {
        // Rounding of the sum put the mark beyond the end.
        drawn.push(last);
    }
    drawn
}

/// Moves centroids to the weighted means of what is nearest to them, until that helps little. Centroids to which nothing
/// is nearest go to the points with the largest weighted errors. Returns the weighted squared error before each round.
pub fn lloyd(points: &dyn Points, centroids: &mut [f32], rounds: usize) -> Vec<f64> {
    let length = points.length();
    let mut errors: Vec<f64> = Vec::new();
    for _ in 0..rounds {
        let rows = with_norms(centroids, length);
        let sums = assign(points, &rows);
        let settled = errors.last().is_some_and(|last| last - sums.error <= WORTH * last);
        errors.push(sums.error);
        if settled {
            break;
        }
        let mut empty = Vec::new();
        let mut used = Vec::with_capacity(centroids.len());
        for (index, centroid) in centroids.chunks_exact_mut(length).enumerate() {
            let weight = sums.weights[index];
            if weight > 0.0 {
                for (value, sum) in centroid.iter_mut().zip(&sums.points[index * length..]) {
                    *value = (sum / weight) as f32;
                }
                used.extend_from_slice(centroid);
            } else {
                empty.push(index);
            }
        }
        if !empty.is_empty() {
            let far = farthest(points, &with_norms(&used, length), empty.len());
            for (index, point) in empty.into_iter().zip(far.chunks_exact(length)) {
                centroids[index * length..][..length].copy_from_slice(point);
            }
        }
    }
    errors
}

/// What a round sums up.
struct Sums {
    /// Σ w x of each centroid.
    points: Vec<f64>,
    /// Σ w.
    weights: Vec<f64>,
    /// Σ w |x − c|² of all.
    error: f64,
}

fn bands(blocks: usize) -> Vec<Range<usize>> {
    let count = BANDS.min(blocks);
    (0..count).map(|band| band * blocks / count..(band + 1) * blocks / count).collect()
}

/// Assigns all points.
fn assign(points: &dyn Points, rows: &[f32]) -> Sums {
    let length = points.length();
    let count = rows.len() / (length + 1);
    let parts: Vec<Sums> = bands(points.blocks())
        .into_par_iter()
        .map(|band| {
            let mut sums = Sums { points: vec![0.0; count * length], weights: vec![0.0; count], error: 0.0 };
            let (mut x, mut weights) = (vec![0.0; length * LANES], [0.0; LANES]);
            let mut winners = Winners::NONE;
            for block in band {
                points.load(block, &mut x, &mut weights);
                nearest(length, &x, rows, &mut winners);
                let squares = squares(&x);
                for (lane, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                    let (weight, index) = (f64::from(*weight), winners.index[lane] as usize);
                    sums.weights[index] += weight;
                    for (component, sum) in sums.points[index * length..][..length].iter_mut().enumerate() {
                        *sum += weight * f64::from(x[component * LANES + lane]);
                    }
                    sums.error += weight * f64::from((squares[lane] - 2.0 * winners.score[lane]).max(0.0));
                }
            }
            sums
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut total =
        parts.next().unwrap_or(Sums { points: vec![0.0; count * length], weights: vec![0.0; count], error: 0.0 });
    for part in parts {
        total.points.iter_mut().zip(part.points).for_each(|(sum, more)| *sum += more);
        total.weights.iter_mut().zip(part.weights).for_each(|(sum, more)| *sum += more);
        total.error += part.error;
    }
    total
}

/// The points with the largest weighted errors, as many as asked for or as have any.
fn farthest(points: &dyn Points, rows: &[f32], count: usize) -> Vec<f32> {
    let length = points.length();
    let mut errors: Vec<(f32, usize)> = (0..points.blocks())
        .into_par_iter()
        .flat_map_iter(|block| {
            let (mut x, mut weights) = (vec![0.0; length * LANES], [0.0; LANES]);
            points.load(block, &mut x, &mut weights);
            let mut winners = Winners::NONE;
            nearest(length, &x, rows, &mut winners);
            let squares = squares(&x);
            (0..LANES).filter_map(move |lane| {
                let distance = squares[lane] - 2.0 * winners.score[lane];
                (distance > ROUNDING * squares[lane] && weights[lane] > 0.0)
                    .then_some((distance * weights[lane], block * LANES + lane))
            })
        })
        .collect();
    let order = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if count < errors.len() {
        errors.select_nth_unstable_by(count, order);
        errors.truncate(count);
    }
    errors.sort_unstable_by(order);
    let (mut x, mut weights) = (vec![0.0; length * LANES], [0.0; LANES]);
    let mut far = Vec::with_capacity(errors.len() * length);
    for (_, point) in errors {
        points.load(point / LANES, &mut x, &mut weights);
        far.extend((0..length).map(|component| x[component * LANES + point % LANES]));
    }
    far
}
