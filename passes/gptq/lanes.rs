//! The inner loops: one column at a time, over all rows of a chunk at once.

use multiversion::multiversion;

use crate::{
    codec::{Element, ZeroPoint},
    passes::rtn::{
        grid::{Grid, GroupScale},
        kernels::{to_e2m1, to_e4m3, to_integer},
    },
};

/// Rows are padded to a multiple of this, so that loops over them need no remainder.
pub const LANES: usize = 16;
/// Columns whose sums stay in F32.
const RUN: usize = 128;

/// Scale and levels of one group, for each row of a chunk.
#[derive(Debug, Clone, Default)]
pub struct Lanes {
    /// The weight that level 1 stands for.
    pub step: Vec<f32>,
    /// A zero point that is not whole, else 0: added before rounding, subtracted after.
    pub offset: Vec<f32>,
    /// Smallest rounded value.
    pub low: Vec<f32>,
    /// Largest rounded value.
    pub high: Vec<f32>,
}

impl Lanes {
    /// Those of one group per row.
    pub fn new(grid: &Grid, groups: &[GroupScale]) -> Self {
        let mut lanes = Self::default();
        for group in groups {
            lanes.push(grid, group);
        }
        lanes
    }

    fn push(&mut self, grid: &Grid, group: &GroupScale) {
        let (offset, low, high) = match (grid.element(), grid.zero_point()) {
            (Element::Integer { .. }, ZeroPoint::Float | ZeroPoint::Minimum) => (group.zero, 0.0, grid.largest_code()),
            (Element::Integer { .. }, _) => (0.0, -group.zero, grid.largest_code() - group.zero),
            (Element::Fp8E4M3 | Element::Fp4E2M1, _) => (0.0, 0.0, 0.0),
        };
        self.step.push(grid.step(group));
        self.offset.push(offset);
        self.low.push(low);
        self.high.push(high);
    }
}

/// The level nearest to a weight in units of its step.
#[inline(always)]
fn level(element: Element, x: f32, offset: f32, low: f32, high: f32) -> f32 {
    match element {
        Element::Integer { .. } => to_integer(x + offset, low, high) - offset,
        Element::Fp8E4M3 => to_e4m3(x),
        Element::Fp4E2M1 => to_e2m1(x),
    }
}

/// Rounds one column: `levels` nearest to the weights. Divides as the codec does, so that codes are equal to the bit.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn round(element: Element, weights: &[f32], lanes: &Lanes, levels: &mut [f32]) {
    let count = weights.len();
    let (step, offset) = (&lanes.step[..count], &lanes.offset[..count]);
    let (low, high, levels) = (&lanes.low[..count], &lanes.high[..count], &mut levels[..count]);
    // The choice is made outside of the loops, so that each of them becomes vector instructions.
    match element {
        Element::Integer { .. } => {
            for i in 0..count {
                levels[i] = level(Element::Integer { bits: 8 }, weights[i] / step[i], offset[i], low[i], high[i]);
            }
        }
        Element::Fp8E4M3 => (0..count).for_each(|i| levels[i] = to_e4m3(weights[i] / step[i])),
        // The sum takes the sign of −0 away: E2M1 codes keep that of what rounds to zero only.
        Element::Fp4E2M1 => (0..count).for_each(|i| levels[i] = to_e2m1(weights[i] / step[i] + 0.0)),
    }
}

/// Makes the levels that are not kept +0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn keep_only(levels: &mut [f32], kept: &[bool]) {
    for (level, kept) in levels.iter_mut().zip(kept) {
        *level = if *kept { *level } else { 0.0 };
    }
}

/// `to += factor · from`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// `to[i] += factors[i] · from` for the columns of `to`, each as long as `from`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn add_outer(to: &mut [f32], factors: &[f32], sign: f32, from: &[f32]) {
    for (to, factor) in to.chunks_exact_mut(from.len()).zip(factors) {
        let factor = sign * factor;
        for (to, from) in to.iter_mut().zip(from) {
            *to += factor * from;
        }
    }
}

/// Sums over one group and row, weighted by the importance of columns; x is the weight in units of the step, q its level.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Σ h (q − x)².
    pub error_squares: f64,
    /// Σ h x q.
    pub products: f64,
    /// Σ h q².
    pub level_squares: f64,
    /// Σ h q.
    pub levels: f64,
    /// Σ h x.
    pub weights: f64,
}

/// The sums of each row for the columns of `weights`, each as long as there are rows.
pub fn weighted_sums(element: Element, weights: &[f32], importance: &[f32], lanes: &Lanes) -> Vec<Sums> {
    let rows = lanes.step.len();
    let mut sums = vec![Sums::default(); rows];
    for (columns, importance) in weights.chunks(RUN * rows).zip(importance.chunks(RUN)) {
        match element {
            Element::Integer { .. } => integer_sums(columns, importance, lanes, &mut sums),
            Element::Fp8E4M3 => e4m3_sums(columns, importance, lanes, &mut sums),
            Element::Fp4E2M1 => e2m1_sums(columns, importance, lanes, &mut sums),
        }
    }
    sums
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn integer_sums(weights: &[f32], importance: &[f32], lanes: &Lanes, sums: &mut [Sums]) {
    sums_of(Element::Integer { bits: 8 }, weights, importance, lanes, sums);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn e4m3_sums(weights: &[f32], importance: &[f32], lanes: &Lanes, sums: &mut [Sums]) {
    sums_of(Element::Fp8E4M3, weights, importance, lanes, sums);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn e2m1_sums(weights: &[f32], importance: &[f32], lanes: &Lanes, sums: &mut [Sums]) {
    sums_of(Element::Fp4E2M1, weights, importance, lanes, sums);
}

#[inline(always)]
fn sums_of(element: Element, weights: &[f32], importance: &[f32], lanes: &Lanes, sums: &mut [Sums]) {
    let rows = lanes.step.len();
    let take = |values: &[f32], first: usize| -> [f32; LANES] {
        let mut tile = [0.0; LANES];
        tile.copy_from_slice(&values[first..first + LANES]);
        tile
    };
    for first in (0..rows).step_by(LANES) {
        let inverse = take(&lanes.step, first).map(|step| 1.0 / step);
        let (offset, low, high) = (take(&lanes.offset, first), take(&lanes.low, first), take(&lanes.high, first));
        let mut total = [[0.0_f32; LANES]; 5];
        for (column, h) in weights.chunks_exact(rows).zip(importance) {
            let column = take(column, first);
            for lane in 0..LANES {
                let x = column[lane] * inverse[lane];
                let q = level(element, x, offset[lane], low[lane], high[lane]);
                total[0][lane] += h * ((q - x) * (q - x));
                total[1][lane] += h * (x * q);
                total[2][lane] += h * (q * q);
                total[3][lane] += h * q;
                total[4][lane] += h * x;
            }
        }
        for (lane, sums) in sums[first..first + LANES].iter_mut().enumerate() {
            sums.error_squares += f64::from(total[0][lane]);
            sums.products += f64::from(total[1][lane]);
            sums.level_squares += f64::from(total[2][lane]);
            sums.levels += f64::from(total[3][lane]);
            sums.weights += f64::from(total[4][lane]);
        }
    }
}
