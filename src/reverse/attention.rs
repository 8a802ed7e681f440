//! Scaled dot-product attention and its reverse. Probabilities are computed again instead of being kept: a block of
//! queries at a time, so that memory does not grow with the square of the length.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef};
use rayon::prelude::*;

use super::{Matrix, Real, matrix::dot};
use crate::forward::Attention;

/// Queries that are scored at a time.
const QUERY_BLOCK: usize = 64;

/// Attention over rows `[query | key | value]` of whole sequences.
pub(super) struct Attend<'a, T> {
    pub(super) rule: &'a Attention,
    /// `[tokens, query + key + value]`, heads normed and rotated.
    pub(super) y: &'a Matrix<T>,
    /// Tokens of a sequence.
    pub(super) length: usize,
    /// One per query head, or empty.
    pub(super) sinks: &'a [T],
}

/// Probabilities of some queries and what their reverse needs.
struct Scored<T> {
    /// Queries.
    queries: Range<usize>,
    /// Keys that any of them sees.
    keys: Range<usize>,
    /// `[queries, keys]`.
    probabilities: Vec<T>,
    /// Slope of the soft cap, `[queries, keys]`; empty without one.
    slopes: Vec<T>,
    /// The sink's share of each query.
    sink_shares: Vec<T>,
}

/// Gradients of what one key head serves, in one sequence.
struct HeadGradient<T> {
    /// `[query heads of the group, length, key_width]`.
    query: Vec<T>,
    /// `[length, key_width]`.
    key: Vec<T>,
    /// `[length, value_width]`.
    value: Vec<T>,
    /// One per query head of the group.
    sinks: Vec<T>,
}

impl<'a, T: Real> Attend<'a, T> {
    fn group(&self) -> usize {
        self.rule.heads / self.rule.key_value_heads
    }

    /// Rows of a sequence, columns of one head.
    fn view(&self, sequence: usize, first: usize, width: usize) -> MatRef<'a, T> {
        self.y.view().submatrix(sequence * self.length, first, self.length, width)
    }

    fn query(&self, sequence: usize, head: usize) -> MatRef<'a, T> {
        self.view(sequence, head * self.rule.key_width, self.rule.key_width)
    }

    fn key(&self, sequence: usize, head: usize) -> MatRef<'a, T> {
        self.query(sequence, self.rule.heads + head)
    }

    fn value(&self, sequence: usize, head: usize) -> MatRef<'a, T> {
        let first = (self.rule.heads + self.rule.key_value_heads) * self.rule.key_width;
        self.view(sequence, first + head * self.rule.value_width, self.rule.value_width)
    }

    fn score(&self, query: MatRef<'_, T>, key: MatRef<'_, T>, queries: Range<usize>, sink: Option<T>) -> Scored<T> {
        let start = self.rule.seen(queries.start, self.length).start;
        let keys = start..self.rule.seen(queries.end - 1, self.length).end;
        let (rows, width) = (queries.len(), keys.len());
        let mut scores = vec![T::ZERO; rows * width];
        T::multiply(
            MatMut::from_row_major_slice_mut(&mut scores, rows, width),
            Accum::Replace,
            query.subrows(queries.start, rows),
            key.subrows(start, width).transpose(),
            T::of(f64::from(self.rule.scale)),
        );
        let mut slopes = if self.rule.soft_cap.is_some() { vec![T::ZERO; rows * width] } else { Vec::new() };
        let mut sink_shares = vec![T::ZERO; rows];
        for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
            let seen = self.rule.seen(queries.start + row, self.length);
            let (from, to) = (seen.start - start, seen.end - start);
            scores[..from].fill(T::ZERO);
            scores[to..].fill(T::ZERO);
            let scores = &mut scores[from..to];
            if let Some(cap) = self.rule.soft_cap {
                let cap = T::of(f64::from(cap));
                for (score, slope) in scores.iter_mut().zip(&mut slopes[row * width + from..]) {
                    let t = (*score / cap).tanh();
                    (*score, *slope) = (cap * t, T::ONE - t * t);
                }
            }
            sink_shares[row] = soft_max(scores, sink);
        }
        Scored { queries, keys, probabilities: scores, slopes, sink_shares }
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let length = self.length;
        (0..length).step_by(QUERY_BLOCK).map(move |first| first..length.min(first + QUERY_BLOCK))
    }

    /// The outputs of all heads side by side, `[tokens, heads · value_width]`.
    pub(super) fn forward(&self) -> Matrix<T> {
        let (heads, width) = (self.rule.heads, self.rule.value_width);
        let sequences = self.y.rows / self.length.max(1);
        let outputs: Vec<Vec<T>> = (0..sequences * heads)
            .into_par_iter()
            .map(|task| {
                let (sequence, head) = (task / heads, task % heads);
                let key_head = head / self.group();
                let (query, key) = (self.query(sequence, head), self.key(sequence, key_head));
                let value = self.value(sequence, key_head);
                let mut output = vec![T::ZERO; self.length * width];
                for queries in self.blocks() {
                    let scored = self.score(query, key, queries, self.sinks.get(head).copied());
                    T::multiply(
                        rows_mut(&mut output, scored.queries.clone(), width),
                        Accum::Replace,
                        scored.view(&scored.probabilities),
                        value.subrows(scored.keys.start, scored.keys.len()),
                        T::ONE,
                    );
                }
                output
            })
            .collect();
        let mut out = Matrix::zeros(self.y.rows, heads * width);
        out.values.par_chunks_mut((heads * width).max(1)).enumerate().for_each(|(token, row)| {
            let (sequence, position) = (token / self.length, token % self.length);
            for (head, row) in row.chunks_exact_mut(width).enumerate() {
                row.copy_from_slice(&outputs[sequence * heads + head][position * width..][..width]);
            }
        });
        out
    }

    /// Gradients of `y` and of the sinks from that of the output, `[tokens, heads · value_width]`.
    pub(super) fn reverse(&self, d: &Matrix<T>) -> (Matrix<T>, Vec<T>) {
        let (rule, group) = (self.rule, self.group());
        let sequences = self.y.rows / self.length.max(1);
        let parts: Vec<HeadGradient<T>> = (0..sequences * rule.key_value_heads)
            .into_par_iter()
            .map(|task| self.reverse_head(d, task / rule.key_value_heads, task % rule.key_value_heads))
            .collect();
        let mut out = Matrix::zeros(self.y.rows, self.y.columns);
        let (key_width, value_width) = (rule.key_width, rule.value_width);
        out.values.par_chunks_mut(self.y.columns.max(1)).enumerate().for_each(|(token, row)| {
            let (sequence, position) = (token / self.length, token % self.length);
            let part = |key_head: usize| &parts[sequence * rule.key_value_heads + key_head];
            let (query, rest) = row.split_at_mut(rule.heads * key_width);
            let (key, value) = rest.split_at_mut(rule.key_value_heads * key_width);
            for (head, row) in query.chunks_exact_mut(key_width).enumerate() {
                let at = (head % group) * self.length + position;
                row.copy_from_slice(&part(head / group).query[at * key_width..][..key_width]);
            }
            for (head, row) in key.chunks_exact_mut(key_width).enumerate() {
                row.copy_from_slice(&part(head).key[position * key_width..][..key_width]);
            }
            for (head, row) in value.chunks_exact_mut(value_width).enumerate() {
                row.copy_from_slice(&part(head).value[position * value_width..][..value_width]);
            }
        });
        let mut sinks = vec![T::ZERO; self.sinks.len()];
        for parts in parts.chunks_exact(rule.key_value_heads) {
            for (sum, part) in sinks.iter_mut().zip(parts.iter().flat_map(|part| &part.sinks)) {
                *sum += *part;
            }
        }
        (out, sinks)
    }

    /// With P the probabilities and dP = dO Vᵀ: `dS = P ∘ (dP − rowsum(P ∘ dP))`, dQ = scale dS K, dK = scale dSᵀ Q,
    /// dV = Pᵀ dO; a sink's score gets −share · rowsum(P ∘ dP).
    fn reverse_head(&self, d: &Matrix<T>, sequence: usize, key_head: usize) -> HeadGradient<T> {
        let (rule, group, length) = (self.rule, self.group(), self.length);
        let (key_width, value_width) = (rule.key_width, rule.value_width);
        let scale = T::of(f64::from(rule.scale));
        let (key, value) = (self.key(sequence, key_head), self.value(sequence, key_head));
        let mut out = HeadGradient {
            query: vec![T::ZERO; group * length * key_width],
            key: vec![T::ZERO; length * key_width],
            value: vec![T::ZERO; length * value_width],
            sinks: vec![T::ZERO; group],
        };
        for member in 0..group {
            let head = key_head * group + member;
            let query = self.query(sequence, head);
            let d = d.view().submatrix(sequence * length, head * value_width, length, value_width);
            for queries in self.blocks() {
                let scored = self.score(query, key, queries, self.sinks.get(head).copied());
                let (rows, width) = (scored.queries.len(), scored.keys.len());
                let d = d.subrows(scored.queries.start, rows);
                let mut slopes = vec![T::ZERO; rows * width];
                T::multiply(
                    MatMut::from_row_major_slice_mut(&mut slopes, rows, width),
                    Accum::Replace,
                    d,
                    value.subrows(scored.keys.start, width).transpose(),
                    T::ONE,
                );
                for (row, slopes) in slopes.chunks_exact_mut(width).enumerate() {
                    let probabilities = &scored.probabilities[row * width..][..width];
                    let mean = dot(probabilities, slopes);
                    for (slope, probability) in slopes.iter_mut().zip(probabilities) {
                        *slope = *probability * (*slope - mean);
                    }
                    out.sinks[member] -= scored.sink_shares[row] * mean;
                }
                for (slope, cap) in slopes.iter_mut().zip(&scored.slopes) {
                    *slope *= *cap;
                }
                let slopes = scored.view(&slopes);
                let at = member * length + scored.queries.start;
                T::multiply(
                    rows_mut(&mut out.query, at..at + rows, key_width),
                    Accum::Replace,
                    slopes,
                    key.subrows(scored.keys.start, width),
                    scale,
                );
                T::multiply(
                    rows_mut(&mut out.key, scored.keys.clone(), key_width),
                    Accum::Add,
                    slopes.transpose(),
                    query.subrows(scored.queries.start, rows),
                    scale,
                );
                T::multiply(
                    rows_mut(&mut out.value, scored.keys.clone(), value_width),
                    Accum::Add,
                    scored.view(&scored.probabilities).transpose(),
                    d,
                    T::ONE,
                );
            }
        }
        out
    }
}

impl<T: Real> Scored<T> {
    fn view<'v>(&self, values: &'v [T]) -> MatRef<'v, T> {
        MatRef::from_row_major_slice(values, self.queries.len(), self.keys.len())
    }
}

fn rows_mut<T>(values: &mut [T], rows: Range<usize>, width: usize) -> MatMut<'_, T> {
    let count = rows.len();
    MatMut::from_row_major_slice_mut(&mut values[rows.start * width..rows.end * width], count, width)
}

/// Turns scores into probabilities in place and gives the share of the sink, which is one more score.
fn soft_max<T: Real>(scores: &mut [T], sink: Option<T>) -> T {
    let largest = scores
        .iter()
        .copied()
        .chain(sink)
        .fold(T::LOWEST, |largest, score| if score > largest { score } else { largest });
    for score in scores.iter_mut() {
        *score = (*score - largest).exp();
    }
    let sink = sink.map_or(T::ZERO, |sink| (sink - largest).exp());
    let inverse = T::ONE / (super::matrix::sum_of(scores, scores, |score, _| score) + sink);
    for score in scores.iter_mut() {
        *score *= inverse;
    }
    sink * inverse
}
