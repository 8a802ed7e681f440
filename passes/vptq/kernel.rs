//! The inner loop of everything here: of many centroids the nearest one to each of some vectors.
//!
//! |x − c|² is least where x·c − |c|²/2 is largest. Half the squared norm is stored beside each centroid, so that a
//! centroid costs as many fused multiplications as it has components, a comparison and two choices, for as many vectors
//! at once as there are lanes.

use multiversion::multiversion;

/// Vectors that are worked on at once.
pub const LANES: usize = 32;
/// Parts of a codebook, for each candidate wanted, whose winners compete to be candidates.
const SLOTS_PER_CANDIDATE: usize = 4;

/// The best score so far and whose it is, for each lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Winners {
    /// x·c − |c|²/2.
    pub score: [f32; LANES],
    /// The centroid.
    pub index: [u32; LANES],
}

impl Winners {
    /// Before any centroid was looked at.
    pub const NONE: Self = Self { score: [f32::NEG_INFINITY; LANES], index: [0; LANES] };
}

/// Centroids `[count, length]` with minus half their squared norm behind each: `[count, length + 1]`.
pub fn with_norms(centroids: &[f32], length: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(centroids.len() / length.max(1) * (length + 1));
    for centroid in centroids.chunks_exact(length.max(1)) {
        rows.extend_from_slice(centroid);
        let square: f64 = centroid.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        rows.push((-0.5 * square) as f32);
    }
    rows
}

/// Finds the nearest centroid of each lane's vector; of equally near ones the first. `x` is `[length, LANES]`, `rows` are
/// [`with_norms`].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub fn nearest(length: usize, x: &[f32], rows: &[f32], winners: &mut Winners) {
    *winners = Winners::NONE;
    compete(length, x, rows, 0, winners);
}

/// Finds several near centroids, best first. The nearest is always among them; the others are the best of those that are
/// the nearest of their part of the codebook. With few centroids, these are all that are near.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub fn nearest_several(length: usize, x: &[f32], rows: &[f32], candidates: &mut [Winners]) {
    candidates.fill(Winners::NONE);
    let count = rows.len() / (length + 1);
    let slots = (SLOTS_PER_CANDIDATE * candidates.len()).min(count);
    for slot in 0..slots {
        let (first, next) = (slot * count / slots, (slot + 1) * count / slots);
        let mut challenger = Winners::NONE;
        compete(length, x, &rows[first * (length + 1)..next * (length + 1)], first as u32, &mut challenger);
        for holder in candidates.iter_mut() {
            for lane in 0..LANES {
                let better = challenger.score[lane] > holder.score[lane];
                let (score, index) = (holder.score[lane], holder.index[lane]);
                holder.score[lane] = if better { challenger.score[lane] } else { score };
                holder.index[lane] = if better { challenger.index[lane] } else { index };
                challenger.score[lane] = if better { score } else { challenger.score[lane] };
                challenger.index[lane] = if better { index } else { challenger.index[lane] };
            }
        }
    }
}

/// The number of components is known to the compiler where it is usual.
#[inline(always)]
fn compete(length: usize, x: &[f32], rows: &[f32], first: u32, winners: &mut Winners) {
    match length {
        1 => compete_fixed::<1>(x, rows, first, winners),
        2 => compete_fixed::<2>(x, rows, first, winners),
        3 => compete_fixed::<3>(x, rows, first, winners),
        4 => compete_fixed::<4>(x, rows, first, winners),
        5 => compete_fixed::<5>(x, rows, first, winners),
        6 => compete_fixed::<6>(x, rows, first, winners),
        8 => compete_fixed::<8>(x, rows, first, winners),
        10 => compete_fixed::<10>(x, rows, first, winners),
        12 => compete_fixed::<12>(x, rows, first, winners),
        16 => compete_fixed::<16>(x, rows, first, winners),
        _ => compete_any(length, x, rows, first, winners),
    }
}

#[inline(always)]
fn compete_fixed<const LENGTH: usize>(x: &[f32], rows: &[f32], first: u32, winners: &mut Winners) {
    let mut components = [[0.0_f32; LANES]; LENGTH];
    for (component, x) in components.iter_mut().zip(x.as_chunks::<LANES>().0) {
        *component = *x;
    }
    let (mut best, mut best_index) = (winners.score, winners.index);
    for (index, row) in (first..).zip(rows.chunks_exact(LENGTH + 1)) {
        let mut score = [row[LENGTH]; LANES];
        for (component, value) in components.iter().zip(row) {
            for lane in 0..LANES {
                score[lane] = component[lane].mul_add(*value, score[lane]);
            }
        }
        keep(&score, index, &mut best, &mut best_index);
    }
    (winners.score, winners.index) = (best, best_index);
}

#[inline(always)]
fn compete_any(length: usize, x: &[f32], rows: &[f32], first: u32, winners: &mut Winners) {
    let components = x.as_chunks::<LANES>().0;
    let (mut best, mut best_index) = (winners.score, winners.index);
    for (index, row) in (first..).zip(rows.chunks_exact(length + 1)) {
        let mut score = [row[length]; LANES];
        for (component, value) in components.iter().zip(&row[..length]) {
            for lane in 0..LANES {
                score[lane] = component[lane].mul_add(*value, score[lane]);
            }
        }
        keep(&score, index, &mut best, &mut best_index);
    }
    (winners.score, winners.index) = (best, best_index);
}

#[inline(always)]
fn keep(score: &[f32; LANES], index: u32, best: &mut [f32; LANES], best_index: &mut [u32; LANES]) {
    for lane in 0..LANES {
        let better = score[lane] > best[lane];
        best[lane] = if better { score[lane] } else { best[lane] };
        best_index[lane] = if better { index } else { best_index[lane] };
    }
}
