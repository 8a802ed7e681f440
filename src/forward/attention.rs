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

/// Keys and values as one place holds them.
#[derive(Clone, Copy)]
pub(super) struct Branch<'a> {
    /// Which of the kinds that a query sees.
    pub kind: usize,
    /// Keys, `[tokens, …]`.
    pub key: Heads<'a>,
    /// Values.
    pub value: Heads<'a>,
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
        self.by_heads(query, length, |rows, head| {
            let key_head = self.key_head(head);
            let own = rows.clone();
            self.one_head(
                |range| query.view(head, rows.start + range.start..rows.start + range.end, self.key_width),
                key.view(key_head, own.clone(), self.key_width),
                value.view(key_head, own, self.value_width),
                sinks.get(head).copied(),
            )
        })
    }

    /// The same where each query sees keys and values of some indices from one place, those of others from another: `seen`
    /// gives for a query the indices that it sees of each kind of branch, and their ends never move back from a query to
    /// the next.
    pub(super) fn compute_parts(
        &self,
        query: Heads<'_>,
        branches: &[Branch<'_>],
        seen: &(dyn Fn(usize) -> [Range<usize>; 3] + Sync),
        length: usize,
        sinks: &[f32],
    ) -> Matrix {
        self.by_heads(query, length, |rows, head| {
            let (key_head, sink) = (self.key_head(head), sinks.get(head).copied());
            let mut output = vec![0.0; length * self.value_width];
            let (mut scores, mut part) = (Vec::new(), Vec::new());
            for first in (0..length).step_by(QUERY_BLOCK) {
                let last = length.min(first + QUERY_BLOCK);
                let (count, start) = (last - first, self.seen(first, length).start);
                let width = last - start;
                scores.clear();
                scores.resize(count * width, 0.0);
                // What the queries of this block see of a kind, together and each.
                let together = |kind: usize| seen(first)[kind].start.max(start)..seen(last - 1)[kind].end.max(start);
                let each = |kind: usize, query: usize, all: &Range<usize>| {
                    let (seen, from) = (seen(query)[kind].clone(), self.seen(query, length).start);
                    let from = seen.start.max(from).clamp(all.start, all.end);
                    from..seen.end.clamp(from, all.end)
                };
                let queries = query.view(head, rows.start + first..rows.start + last, self.key_width);
                for branch in branches {
                    let all = together(branch.kind);
                    if all.is_empty() {
                        continue;
                    }
                    part.clear();
                    part.resize(count * all.len(), 0.0);
                    let keys = branch.key.view(key_head, rows.start + all.start..rows.start + all.end, self.key_width);
                    let target = MatMut::from_row_major_slice_mut(&mut part, count, all.len());
                    matmul(target, Accum::Replace, queries, keys.transpose(), self.scale, Par::Seq);
                    for (row, (scores, part)) in
                        scores.chunks_exact_mut(width).zip(part.chunks_exact(all.len())).enumerate()
                    {
                        let own = each(branch.kind, first + row, &all);
                        let from = &part[own.start - all.start..own.end - all.start];
                        scores[own.start - start..own.end - start].copy_from_slice(from);
                    }
                }
                for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
                    let own = self.seen(first + row, length);
                    let own = &mut scores[own.start - start..own.end - start];
                    if let Some(cap) = self.soft_cap {
                        kernels::soft_cap(own, cap);
                    }
                    kernels::softmax(own, sink);
                }
                let output = &mut output[first * self.value_width..last * self.value_width];
                for branch in branches {
                    let all = together(branch.kind);
                    if all.is_empty() {
                        continue;
                    }
                    part.clear();
                    part.resize(count * all.len(), 0.0);
                    for (row, (scores, part)) in
                        scores.chunks_exact(width).zip(part.chunks_exact_mut(all.len())).enumerate()
                    {
                        let own = each(branch.kind, first + row, &all);
                        let from = &scores[own.start - start..own.end - start];
                        part[own.start - all.start..own.end - all.start].copy_from_slice(from);
                    }
                    let values =
                        branch.value.view(key_head, rows.start + all.start..rows.start + all.end, self.value_width);
                    let target = MatMut::from_row_major_slice_mut(&mut *output, count, self.value_width);
                    let shares = MatRef::from_row_major_slice(&part, count, all.len());
                    matmul(target, Accum::Add, shares, values, 1.0, Par::Seq);
                }
            }
            output
        })
    }

    fn key_head(&self, head: usize) -> usize {
        head / (self.heads / self.key_value_heads.max(1)).max(1)
    }

    /// What `one` gives for each head of each sequence, given its rows, side by side.
    fn by_heads(
        &self,
        query: Heads<'_>,
        length: usize,
        one: impl Fn(Range<usize>, usize) -> Vec<f32> + Sync,
    ) -> Matrix {
        let (tokens, width) = (query.matrix.rows, self.heads * self.value_width);
        let sequences = tokens / length.max(1);
        let tasks: Vec<(usize, usize)> =
            (0..sequences).flat_map(|sequence| (0..self.heads).map(move |head| (sequence, head))).collect();
        let outputs: Vec<Vec<f32>> =
            tasks.par_iter().map(|&(sequence, head)| one(sequence * length..(sequence + 1) * length, head)).collect();
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
