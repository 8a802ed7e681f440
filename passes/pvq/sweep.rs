//! The sweep over the columns: find the vectors of one, let those still to come take its error.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::{
    chunk::{Chunk, Found},
    gains::Levels,
    metric::Metric,
    scales::Scales,
};
use crate::{codec::Pyramid, passes::gptq::lanes};

/// What all chunks share.
#[derive(Debug, Clone, Copy)]
pub struct Sweep<'a> {
    /// What errors cost.
    pub metric: Metric<'a>,
    /// The format.
    pub pyramid: Pyramid,
    /// The columns' scales.
    pub scales: &'a Scales,
    /// The gains' levels.
    pub levels: &'a Levels,
    /// Columns between updates of the rest.
    pub block: usize,
}

impl Sweep<'_> {
    /// Finds all vectors of a chunk.
    pub fn run(&self, chunk: &mut Chunk) {
        let (rows, columns) = (chunk.rows(), self.metric.columns);
        let mut found = Found::new(chunk.dimension);
        let Some(factor) = self.metric.factor else {
            for column in 0..columns {
                let weights = &chunk.target[column * rows..][..rows];
                found.search(&self.pyramid, weights, self.scales.values[column], self.levels);
                chunk.take(column, &found, |_| true);
            }
            return;
        };
        let mut work = vec![0.0; columns * rows];
        for (to, column) in work.chunks_exact_mut(rows).zip(&factor.permutation) {
            to.copy_from_slice(&chunk.target[column * rows..][..rows]);
        }
        let upper = MatRef::from_row_major_slice(&factor.upper, columns, columns);
        let block_size = self.block.clamp(1, columns.max(1));
        let mut errors = vec![0.0; block_size * rows];
        for start in (0..columns).step_by(block_size) {
            let end = columns.min(start + block_size);
            for place in start..end {
                let column = self.metric.column(place);
                let (done, rest) = work[..end * rows].split_at_mut((place + 1) * rows);
                let weights = &done[place * rows..];
                found.search(&self.pyramid, weights, self.scales.values[column], self.levels);
                chunk.take(column, &found, |_| true);
                let row = &factor.upper[place * columns..][..end];
                let inverse = 1.0 / row[place];
                let error = &mut errors[(place - start) * rows..][..rows];
                for ((error, weight), value) in error.iter_mut().zip(weights).zip(found.values.as_flattened()) {
                    *error = (weight - value) * inverse;
                }
                lanes::add_outer(rest, &row[place + 1..], -1.0, error);
            }
            let rest = columns - end;
            if rest > 0 {
                let errors = MatRef::from_column_major_slice(&errors[..(end - start) * rows], rows, end - start);
                let to = MatMut::from_column_major_slice_mut(&mut work[end * rows..], rows, rest);
                matmul(to, Accum::Add, errors, upper.submatrix(start, end, end - start, rest), -1.0, Par::Seq);
            }
        }
    }
}
