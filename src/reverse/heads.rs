//! Norms and rotations of query and key heads, and their reverse.

use rayon::prelude::*;

use super::{Matrix, Norm, NormGradient, Real, norm::ROWS_PER_TASK};
use crate::forward;

/// Cosines and sines of all positions, as [`crate::forward`] computes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation<T> {
    half: usize,
    interleaved: bool,
    cosines: Vec<T>,
    sines: Vec<T>,
}

impl<T: Real> From<forward::Rotation> for Rotation<T> {
    fn from(rotation: forward::Rotation) -> Self {
        Self {
            half: rotation.half,
            interleaved: rotation.interleaved,
            cosines: T::from_singles(rotation.cosines),
            sines: T::from_singles(rotation.sines),
        }
    }
}

impl<T: Real> Rotation<T> {
    /// Channels of a head that are rotated.
    #[must_use]
    pub fn channels(&self) -> usize {
        2 * self.half
    }

    /// Rotates a head at a position in place, or applies the transposed map, which its gradient needs.
    fn apply(&self, position: usize, head: &mut [T], transposed: bool) {
        let cosines = &self.cosines[position * self.half..][..self.half];
        let sines = &self.sines[position * self.half..][..self.half];
        for (index, (cosine, sine)) in cosines.iter().zip(sines).enumerate() {
            let (one, two) = if self.interleaved { (2 * index, 2 * index + 1) } else { (index, index + self.half) };
            let sine = if transposed { -*sine } else { *sine };
            let (first, second) = (head[one], head[two]);
            head[one] = first * *cosine - second * sine;
            head[two] = second * *cosine + first * sine;
        }
    }
}

/// What is done with query and key heads before they meet, in rows `[query | key | value]`.
#[derive(Clone, Copy)]
pub(super) struct HeadPreparation<'a, T> {
    pub(super) norms: Option<&'a [Norm<T>; 2]>,
    pub(super) rotation: Option<&'a Rotation<T>>,
    /// Query heads, and query and key heads together.
    pub(super) query_heads: usize,
    pub(super) heads: usize,
    /// Channels of a head.
    pub(super) width: usize,
    /// Tokens of a sequence.
    pub(super) length: usize,
}

impl<T: Real> HeadPreparation<'_, T> {
    /// In place.
    pub(super) fn apply(&self, y: &mut Matrix<T>) {
        y.values.par_chunks_mut(y.columns.max(1)).enumerate().with_min_len(8).for_each(|(token, row)| {
            for (index, head) in row[..self.heads * self.width].chunks_exact_mut(self.width).enumerate() {
                if let Some(norms) = self.norms {
                    norms[usize::from(index >= self.query_heads)].apply_row(head);
                }
                if let Some(rotation) = self.rotation {
                    rotation.apply(token % self.length, head, false);
                }
            }
        });
    }

    /// Turns the gradient of the prepared heads into that of the heads `y` before, in place. `y` is read where there are
    /// norms only.
    pub(super) fn reverse(&self, y: Option<&Matrix<T>>, d: &mut Matrix<T>) -> Option<[NormGradient<T>; 2]> {
        let columns = d.columns.max(1);
        let empty = || self.norms.map(|[query, key]| [query.no_gradient(), key.no_gradient()]);
        let parts: Vec<Option<[NormGradient<T>; 2]>> = d
            .values
            .par_chunks_mut(columns * ROWS_PER_TASK)
            .enumerate()
            .map(|(task, rows)| {
                let (mut part, mut scratch) = (empty(), vec![T::ZERO; self.width]);
                for (row, d) in rows.chunks_exact_mut(columns).enumerate() {
                    let token = task * ROWS_PER_TASK + row;
                    for (index, d) in d[..self.heads * self.width].chunks_exact_mut(self.width).enumerate() {
                        if let Some(rotation) = self.rotation {
                            rotation.apply(token % self.length, d, true);
                        }
                        if let (Some(norms), Some(part), Some(y)) = (self.norms, part.as_mut(), y) {
                            let which = usize::from(index >= self.query_heads);
                            let x = &y.row(token)[index * self.width..][..self.width];
                            norms[which].reverse_row(x, d, &mut scratch, &mut part[which]);
                        }
                    }
                }
                part
            })
            .collect();
        let mut gradient = empty();
        if let Some([query, key]) = gradient.as_mut() {
            for [query_part, key_part] in parts.iter().flatten() {
                query.add(query_part);
                key.add(key_part);
            }
        }
        gradient
    }
}
