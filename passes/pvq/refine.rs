//! Refinement: after the sweep, the vectors of each column are found again with all other columns fixed, under the whole
//! H.
//!
//! With gradient g = (v − t) H, the loss of a column's vectors around `v_j − g_j / H_jj` is `H_jj` times the squared
//! distance: the nearest point to that is the best.

use super::{
    chunk::{Chunk, Found, squared_errors},
    gains::Levels,
    metric::Metric,
    scales::Scales,
};
use crate::{
    codec::{Pyramid, pyramid::lanes::LANES},
    passes::gptq::lanes,
};

/// Columns whose gradient is computed by one product.
const PANEL: usize = 128;
/// A vector must come so much nearer, or rounding could make it cycle.
const NEARER: f32 = 1.0 - 1e-4;

/// What all chunks share.
#[derive(Debug, Clone, Copy)]
pub struct Refinement<'a> {
    /// What errors cost.
    pub metric: Metric<'a>,
    /// The format.
    pub pyramid: Pyramid,
    /// The columns' scales.
    pub scales: &'a Scales,
    /// The gains' levels.
    pub levels: &'a Levels,
}

impl Refinement<'_> {
    /// Finds each column's vectors again, one column after the other. Returns how many vectors changed.
    pub fn run(&self, chunk: &mut Chunk) -> u64 {
        let (rows, columns) = (chunk.rows(), self.metric.columns);
        let mut differences = chunk.differences();
        let (mut found, mut regained) = (Found::new(chunk.dimension), Found::new(chunk.dimension));
        let (mut wanted, mut change) = (vec![0.0; rows], vec![0.0; rows]);
        let mut moved = 0;
        for start in (0..columns).step_by(PANEL) {
            let range = start..columns.min(start + PANEL);
            let mut gradient = self.metric.product(range.clone(), &differences, rows);
            for column in range.clone() {
                let inverse = 1.0 / self.metric.diagonal(column);
                let values = &chunk.values[column * rows..][..rows];
                let own = &gradient[(column - start) * rows..][..rows];
                for ((wanted, value), gradient) in wanted.iter_mut().zip(values).zip(own) {
                    *wanted = value - gradient * inverse;
                }
                let scale = self.scales.values[column];
                let before = squared_errors(values, &wanted);
                found.search(&self.pyramid, &wanted, scale, self.levels);
                regained.regain(&chunk.points[column * rows..][..rows], &wanted, scale, self.levels);
                let (anew, again) = (found.errors(&wanted), regained.errors(&wanted));
                let (mut takes, mut keeps) = ([false; LANES], [false; LANES]);
                for lane in 0..LANES {
                    let better = before[lane] * NEARER;
                    takes[lane] = anew[lane] < better && anew[lane] < again[lane];
                    keeps[lane] = again[lane] < better && !takes[lane];
                }
                let count = (0..LANES).filter(|lane| takes[*lane] || keeps[*lane]).count() as u64;
                if count == 0 {
                    continue;
                }
                moved += count;
                change.copy_from_slice(values);
                chunk.take(column, &found, |lane| takes[lane]);
                chunk.take(column, &regained, |lane| keeps[lane]);
                let place = column * rows..(column + 1) * rows;
                let given = chunk.values[place.clone()].iter().zip(&chunk.target[place.clone()]);
                for ((change, difference), (value, target)) in change.iter_mut().zip(&mut differences[place]).zip(given)
                {
                    *change = value - *change;
                    *difference = value - target;
                }
                if let Some(row) = self.metric.row(column, range.clone()) {
                    lanes::add_outer(&mut gradient, row, 1.0, &change);
                }
            }
        }
        moved
    }
}
