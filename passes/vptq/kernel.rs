//! The inner loop of everything here: of many centroids the nearest one to each of some vectors.
//!
//! |x − c|² is least where x·c − |c|²/2 is largest. Half the squared norm is stored beside each centroid, so that a
//! centroid costs as many fused multiplications as it has components, a comparison and two choices, for as many vectors
//! at once as there are lanes.

use multiversion::multiversion;

/// Vectors that are worked on at once.
pub const LANES: usize = 16;
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
            holder.insert(&mut challenger);
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
    // Copies on the stack, which become registers.
    let mut components = [[0.0_f32; LANES]; LENGTH];
    for (component, x) in components.iter_mut().zip(x.as_chunks::<LANES>().0) {
        *component = *x;
    }
    let mut best = winners.clone();
    for (index, row) in (first..).zip(rows.chunks_exact(LENGTH + 1)) {
        let mut score = [row[LENGTH]; LANES];
        for component in 0..LENGTH {
            score = multiply_add(&components[component], row[component], &score);
        }
        best.challenge(&score, index);
    }
    *winners = best;
}

#[inline(always)]
fn compete_any(length: usize, x: &[f32], rows: &[f32], first: u32, winners: &mut Winners) {
    let components = x.as_chunks::<LANES>().0;
    let mut best = winners.clone();
    for (index, row) in (first..).zip(rows.chunks_exact(length + 1)) {
        let mut score = [row[length]; LANES];
        for (component, value) in components.iter().zip(&row[..length]) {
            score = multiply_add(component, *value, &score);
        }
        best.challenge(&score, index);
    }
    *winners = best;
}

/// `a · b + c`, one vector instruction where there is one.
#[inline(always)]
fn multiply_add(a: &[f32; LANES], b: f32, c: &[f32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for lane in 0..LANES {
        out[lane] = a[lane].mul_add(b, c[lane]);
    }
    out
}

impl Winners {
    /// Keeps the better of two in each lane, and hands out the other.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "several arrays, one lane")]
    fn insert(&mut self, challenger: &mut Self) {
        // One loop for each array: the compiler turns these into vector instructions, but not one loop for all.
        let (held, new) = (self.clone(), challenger.clone());
        let mut better = [false; LANES];
        for lane in 0..LANES {
            better[lane] = new.score[lane] > held.score[lane];
        }
        let [mut scores, mut others] = [[0.0; LANES]; 2];
        for lane in 0..LANES {
            scores[lane] = if better[lane] { new.score[lane] } else { held.score[lane] };
        }
        for lane in 0..LANES {
            others[lane] = if better[lane] { held.score[lane] } else { new.score[lane] };
        }
        (self.score, challenger.score) = (scores, others);
        let [mut indices, mut others] = [[0; LANES]; 2];
        for lane in 0..LANES {
            indices[lane] = if better[lane] { new.index[lane] } else { held.index[lane] };
        }
        for lane in 0..LANES {
            others[lane] = if better[lane] { held.index[lane] } else { new.index[lane] };
        }
        (self.index, challenger.index) = (indices, others);
    }

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "several arrays, one lane")]
    fn challenge(&mut self, score: &[f32; LANES], index: u32) {
        for lane in 0..LANES {
            let better = score[lane] > self.score[lane];
            self.score[lane] = if better { score[lane] } else { self.score[lane] };
            self.index[lane] = if better { index } else { self.index[lane] };
        }
    }
}
