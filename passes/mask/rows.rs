//! A fixed number of rows, worked on together by one thread.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::Pattern;
use crate::{
    codec::sparse::Mask,
    passes::gptq::{
        Factor,
        chunk::{transpose, transpose_back},
        lanes::LANES,
    },
};

/// Rows of a layer in the making. Matrices are stored column after column, each of `lanes` rows, in the original order of
/// columns; rows beyond `count` are padding of zeros.
pub struct Rows<'a> {
    /// What is shared by all layers of the input.
    pub factor: &'a Factor,
    /// How many of how many are kept.
    pub pattern: Pattern,
    /// Rows.
    pub count: usize,
    /// Rows with padding.
    pub lanes: usize,
    /// What the weights are to come close to under H.
    pub target: Vec<f32>,
    /// The weights; what is not kept is +0.
    pub values: Vec<f32>,
    /// For each whole group, in the original order, and each lane: bit i for each place i that is kept.
    pub kept: Vec<u8>,
}

impl<'a> Rows<'a> {
    /// Rows of a target given row-major; nothing is decided yet.
    pub fn new(factor: &'a Factor, pattern: Pattern, target: &[f32]) -> Self {
        let columns = factor.columns;
        let count = target.len() / columns;
        let lanes = count.next_multiple_of(LANES);
        let mut transposed = vec![0.0; columns * lanes];
        transpose(target, columns, &mut transposed, lanes);
        let all = u8::MAX >> (8 - pattern.of);
        let kept = vec![all; columns / pattern.of * lanes];
        Self { factor, pattern, count, lanes, values: transposed.clone(), target: transposed, kept }
    }

    /// Columns that belong to whole groups.
    pub fn whole(&self) -> usize {
        self.pattern.whole_columns(self.factor.columns)
    }

    /// Takes the mask's rows from `first` on.
    pub fn take_mask(&mut self, mask: &Mask, first: usize) {
        let of = self.pattern.of;
        // Padding keeps the first weights of each group, so that its masks are masks too.
        self.kept.fill(u8::MAX >> (8 - self.pattern.keep));
        for (group, kept) in self.kept.chunks_exact_mut(self.lanes).enumerate() {
            for (row, kept) in kept[..self.count].iter_mut().enumerate() {
                *kept = (0..of)
                    .fold(0, |bits, place| bits | u8::from(mask.keeps(first + row, group * of + place)) << place);
            }
        }
    }

    /// The bits of the rows, as [`Mask`] has them.
    pub fn mask_bits(&self) -> Vec<u8> {
        let (columns, of) = (self.factor.columns, self.pattern.of);
        let row_bytes = Mask::row_bytes(columns);
        let mut bits = vec![0; self.count * row_bytes];
        for (row, bits) in bits.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            for (group, kept) in self.kept.chunks_exact(self.lanes).enumerate() {
                for place in (0..of).filter(|place| kept[row] >> place & 1 == 1) {
                    let column = group * of + place;
                    bits[column / 8] |= 1 << (column % 8);
                }
            }
            (self.whole()..columns).for_each(|column| bits[column / 8] |= 1 << (column % 8));
        }
        bits
    }

    /// Makes what is not kept of a matrix stored like the values +0.
    pub fn clear(&self, matrix: &mut [f32]) {
        let (lanes, of) = (self.lanes, self.pattern.of);
        for (column, values) in matrix.chunks_exact_mut(lanes).enumerate().take(self.whole()) {
            let kept = &self.kept[column / of * lanes..][..lanes];
            for (value, kept) in values.iter_mut().zip(kept) {
                *value = if kept >> (column % of) & 1 == 1 { *value } else { 0.0 };
            }
        }
    }

    /// v − t.
    pub fn differences(&self) -> Vec<f32> {
        self.values.iter().zip(&self.target).map(|(value, target)| value - target).collect()
    }

    /// A matrix stored like the values times the damped H, for some columns.
    pub fn product(&self, matrix: &[f32], columns: std::ops::Range<usize>, out: &mut [f32]) {
        let all = self.factor.columns;
        let hessian = MatRef::from_row_major_slice(&self.factor.hessian, all, all);
        let from = MatRef::from_column_major_slice(matrix, self.lanes, all);
        let to = MatMut::from_column_major_slice_mut(out, self.lanes, columns.len());
        // H is symmetric, and its rows lie in one piece.
        let hessian = hessian.subrows(columns.start, columns.len()).transpose();
        matmul(to, Accum::Replace, from, hessian, 1.0, Par::Seq);
    }

    /// (v − t) H (v − t)ᵀ of each lane with the damped H.
    pub fn losses(&self) -> Vec<f64> {
        let differences = self.differences();
        let mut product = vec![0.0; differences.len()];
        self.product(&differences, 0..self.factor.columns, &mut product);
        dots(&differences, &product, self.lanes)
    }

    /// The weights, row-major.
    pub fn weights(&self) -> Vec<f32> {
        let columns = self.factor.columns;
        let mut weights = vec![0.0; self.count * columns];
        transpose_back(&self.values, self.lanes, &mut weights, columns);
        weights
    }
}

/// Products of two matrices, summed for each lane in F64.
pub fn dots(a: &[f32], b: &[f32], lanes: usize) -> Vec<f64> {
    let mut sums = vec![0.0_f64; lanes];
    for (a, b) in a.chunks_exact(lanes).zip(b.chunks_exact(lanes)) {
        add_dots(a, b, &mut sums);
    }
    sums
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn add_dots(a: &[f32], b: &[f32], sums: &mut [f64]) {
    for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
        *sum += f64::from(*a) * f64::from(*b);
    }
}
