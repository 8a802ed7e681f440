//! Scaled dot-product attention of whole sequences: causal or not, with windows, soft caps and sinks.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{Matrix, kernels};

/// Queries that are scored at a time.
const QUERY_BLOCK: usize = 64;

/// What attention computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Channels of a query or key head.
    pub key_width: usize,
    /// Channels of a value head.
    pub value_width: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// How many tokens a token sees at most, itself included.
    pub window: Option<usize>,
    /// Soft cap of scores.
    pub soft_cap: Option<f32>,
}

/// Heads that lie side by side in rows of a larger matrix.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// The rows.
    pub matrix: &'a Matrix,
    /// Column of the first head.
    pub first: usize,
    /// Columns from one head to the next.
    pub stride: usize,
}

impl<'a> Heads<'a> {
    fn view(&self, head: usize, rows: Range<usize>, width: usize) -> MatRef<'a, f32> {
        let columns = self.matrix.columns;
        let start = rows.start * columns + self.first + head * self.stride;
        let end = (rows.end - 1) * columns + self.first + head * self.stride + width;
        MatRef::from_row_major_slice_with_stride(&self.matrix.values[start..end], rows.len(), width, columns)
    }
}

impl Attention {
    /// The outputs of all heads side by side, `[tokens, heads · value_width]`, for sequences of `length` tokens each.
    #[must_use]
    pub fn compute(&self, query: Heads<'_>, key: Heads<'_>, value: Heads<'_>, length: usize, sinks: &[f32]) -> Matrix {
        let tokens = query.matrix.rows;
        let (group, width) = (self.heads / self.key_value_heads.max(1), self.heads * self.value_width);
        let sequences = tokens / length.max(1);
        let tasks: Vec<(usize, usize)> =
            (0..sequences).flat_map(|sequence| (0..self.heads).map(move |head| (sequence, head))).collect();
        let outputs: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|&(sequence, head)| {
                let rows = sequence * length..(sequence + 1) * length;
                let sink = sinks.get(head).copied();
                let key_head = head / group.max(1);
                self.one_head(
                    |range| query.view(head, rows.start + range.start..rows.start + range.end, self.key_width),
                    key.view(key_head, rows.clone(), self.key_width),
                    value.view(key_head, rows.clone(), self.value_width),
                    sink,
                )
            })
            .collect();
        let mut out = Matrix::zeros(tokens, width);
        out.values.par_chunks_mut(width.max(1)).enumerate().for_each(|(token, row)| {
            let (sequence, position) = (token / length, token % length);
            for (head, row) in row.chunks_exact_mut(self.value_width).enumerate() {
                let output = &outputs[sequence * self.heads + head];
                row.copy_from_slice(&output[position * self.value_width..][..self.value_width]);
            }
        });
        out
    }

    /// The keys that a query sees.
    pub(crate) fn seen(&self, query: usize, length: usize) -> Range<usize> {
        let end = if self.causal { query + 1 } else { length };
        let start = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        start..end
    }

    fn one_head<'a>(
        &self,
        query: impl Fn(Range<usize>) -> MatRef<'a, f32>,
        key: MatRef<'_, f32>,
        value: MatRef<'_, f32>,
        sink: Option<f32>,
    ) -> Vec<f32> {
        let length = key.nrows();
        let mut output = vec![0.0; length * self.value_width];
        let mut scores = Vec::new();
        for first in (0..length).step_by(QUERY_BLOCK) {
            let last = length.min(first + QUERY_BLOCK);
            let start = self.seen(first, length).start;
            let keys = start..self.seen(last - 1, length).end;
            let (rows, width) = (last - first, keys.len());
            scores.clear();
            scores.resize(rows * width, 0.0);
            let part = key.subrows(keys.start, width);
            let target = MatMut::from_row_major_slice_mut(&mut scores, rows, width);
            matmul(target, Accum::Replace, query(first..last), part.transpose(), self.scale, Par::Seq);
            for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
                let seen = self.seen(first + row, length);
                let (from, to) = (seen.start - keys.start, seen.end - keys.start);
                scores[..from].fill(0.0);
                scores[to..].fill(0.0);
                if let Some(cap) = self.soft_cap {
                    kernels::soft_cap(&mut scores[from..to], cap);
                }
                kernels::softmax(&mut scores[from..to], sink);
            }
            let probabilities = MatRef::from_row_major_slice(&scores, rows, width);
            let target = &mut output[first * self.value_width..last * self.value_width];
            let target = MatMut::from_row_major_slice_mut(target, rows, self.value_width);
            matmul(target, Accum::Replace, probabilities, value.subrows(keys.start, width), 1.0, Par::Seq);
        }
        output
    }
}
