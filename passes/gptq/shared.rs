//! Scales that rows share, which are found before the sweep; and rounding to nearest, to compare with.

use super::{
    chunk::Chunk,
    lanes,
    options::{Linear, SolveError, SolveOptions},
    search::Group,
};
use crate::{
    codec::{Granularity, MatrixParameters, ScaleFormat, ZeroPoint},
    passes::rtn::{
        grid::{Grid, GroupScale},
        kernels::extent,
        search::least_squares,
    },
};

/// Scales that are not those of single rows.
pub struct Shared {
    /// The levels, with the global scale.
    pub grid: Grid,
    /// What is known once per matrix.
    pub parameters: MatrixParameters,
    /// Scales of blocks or of the tensor, `[scale rows, groups]`.
    pub groups: Vec<GroupScale>,
    /// Rows that share them; 0 for none.
    pub height: usize,
}

impl Shared {
    /// Finds them; nothing to find where each row has its own.
    ///
    /// # Errors
    /// None that a matrix in memory can cause.
    pub fn new(linear: &Linear, target: &[f32], columns: usize, options: &SolveOptions) -> Result<Self, SolveError> {
        let mut shared =
            Self { grid: linear.grid.clone(), parameters: MatrixParameters::default(), groups: Vec::new(), height: 0 };
        let best = |grid: &Grid, weights: &[f32]| {
            let extent = extent(weights).unwrap_or_default();
            if options.search_steps == 0 { Ok(grid.min_max(extent)) } else { least_squares(weights, grid, extent) }
        };
        if linear.codec.scale == ScaleFormat::E4M3OverGlobal {
            let global = linear.grid.global_for(extent(target).unwrap_or_default().absmax());
            shared.grid = linear.grid.with_global(global);
            shared.parameters.tensor_scale = Some(global);
        }
        match linear.codec.granularity {
            Granularity::Tensor => {
                let group = best(&shared.grid, target)?;
                shared.parameters.tensor_scale = Some(group.scale);
                shared.parameters.tensor_zero =
                    (linear.codec.zero != ZeroPoint::None).then(|| shared.grid.stored_zero(&group));
                shared.groups = vec![group];
                shared.height = linear.rows.max(1);
            }
            Granularity::Block { rows, columns: width } if columns > 0 => {
                for band in target.chunks(rows * columns) {
                    for first in (0..columns).step_by(width) {
                        let last = columns.min(first + width);
                        let weights: Vec<f32> =
                            band.chunks(columns).flat_map(|row| &row[first..last]).copied().collect();
                        shared.groups.push(best(&shared.grid, &weights)?);
                    }
                }
                shared.height = rows;
            }
            _ => {}
        }
        Ok(shared)
    }

    /// Gives a chunk its scales, where they are shared.
    pub fn put(&self, chunk: &mut Chunk) {
        if self.height == 0 {
            return;
        }
        let groups = chunk.groups.len();
        for group in 0..groups {
            let of_lane = |lane: usize| {
                let row = chunk.first + lane.min(chunk.rows - 1);
                self.groups[row / self.height * groups + group]
            };
            chunk.groups[group] = (0..chunk.lanes).map(of_lane).collect();
        }
    }
}

/// What plain rounding to nearest, with scales of minimum and maximum, makes of the chunk's weights.
pub fn nearest(chunk: &Chunk) -> Vec<f32> {
    let mut values = chunk.target.clone();
    let rows = chunk.lanes;
    let mut levels = vec![0.0; rows];
    for group in 0..chunk.groups.len() {
        let columns = chunk.columns_of(group);
        let weights = &mut values[columns.start * rows..columns.end * rows];
        let mut groups = chunk.groups[group].clone();
        if groups.is_empty() {
            groups = Group { grid: chunk.grid, weights, importance: &[], rows }.min_max();
        }
        let scales = lanes::Lanes::new(chunk.grid, &groups);
        for column in weights.chunks_exact_mut(rows) {
            lanes::round(chunk.grid.element(), column, &scales, &mut levels);
            for lane in 0..rows {
                column[lane] = levels[lane] * scales.step[lane];
            }
        }
    }
    if let Some(kept) = &chunk.kept {
        lanes::keep_only(&mut values, kept);
    }
    values
}
