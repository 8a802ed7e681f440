//! Encodes the rows of one matrix.

use std::ops::Range as Columns;

use super::{
    Range, Settings,
    grid::{Grid, GroupScale},
    hqq::half_quadratic,
    kernels::{self, Extent},
    matrix::{WholeMatrix, normal, outlier_columns},
    outliers,
    search::least_squares,
    stripes::not_finite,
};
use crate::{
    codec::{Codec, CodecError, CodedRows, Granularity, MatrixParameters, Outliers, RowSource, ScaleFormat, ZeroPoint},
    passes::{Deviations, EncodedStripe, Matrix, MatrixEncoder},
};

/// A matrix's encoder.
pub struct Encoder {
    codec: Codec,
    range: Range,
    grid: Grid,
    columns: usize,
}

/// What a stripe's rows have become so far.
#[derive(Default)]
struct Stripe {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    scales_clamped: u64,
    zeros_clamped: u64,
}

/// Rows that share scales: one, or a row of blocks.
struct Tile<'a> {
    first_row: usize,
    weights: &'a [f32],
    outliers: Option<&'a Outliers>,
}

impl Encoder {
    /// The encoder for a codec that [`Settings::codec`] or [`crate::passes::choose`] gave.
    pub fn new(settings: &Settings, matrix: &Matrix, codec: &Codec) -> Self {
        Self {
            codec: codec.clone(),
            range: settings.range,
            grid: Grid::new(codec, matrix.dense_dtype, matrix.minimum_zero_point),
            columns: matrix.columns,
        }
    }

    /// Rows and columns that share a scale.
    fn tile(&self) -> (usize, usize) {
        let (rows, columns) = match self.codec.granularity {
            Granularity::Group(columns) => (1, columns),
            Granularity::Block { rows, columns } => (rows, columns),
            Granularity::Channel | Granularity::Tensor => (1, self.columns),
        };
        (rows.max(1), columns.max(1))
    }

    /// Scale and zero point of weights that share them.
    fn group_scale(&self, grid: &Grid, weights: &[f32], extent: Extent) -> Result<GroupScale, CodecError> {
        match self.range {
            Range::Minmax => Ok(grid.min_max(extent)),
            Range::Mse => least_squares(weights, grid, extent),
            Range::Hqq => Ok(half_quadratic(weights, grid, extent)),
        }
    }

    fn encode_tile(
        &self,
        grid: &Grid,
        tensor: Option<&GroupScale>,
        tile: &Tile,
        stripe: &mut Stripe,
    ) -> Result<(), CodecError> {
        let (_, width) = self.tile();
        let start = stripe.codes.len();
        stripe.codes.resize(start + tile.weights.len(), 0);
        for first in (0..self.columns).step_by(width) {
            let range = first..self.columns.min(first + width);
            let weights = tile.normal(self.columns, &range);
            let extent = kernels::extent(&weights).ok_or_else(|| tile.not_finite(self.columns))?;
            let group = if let Some(group) = tensor {
                *group
            } else {
                let group = self.group_scale(grid, &weights, extent)?;
                stripe.push(&group, self.codec.zero);
                group
            };
            for (row, weights) in tile.weights.chunks(self.columns).enumerate() {
                let codes = &mut stripe.codes[start + row * self.columns..][range.clone()];
                grid.encode(&weights[range.clone()], &group, codes);
                for column in outlier_columns(tile.outliers, tile.first_row + row, &range) {
                    codes[*column as usize - first] = grid.zero_code(&group);
                }
            }
        }
        Ok(())
    }
}

impl Tile<'_> {
    /// The weights in these columns but the outliers.
    fn normal(&self, columns: usize, range: &Columns<usize>) -> std::borrow::Cow<'_, [f32]> {
        if self.weights.len() == columns {
            return normal(self.weights, range, outlier_columns(self.outliers, self.first_row, range));
        }
        let mut weights = Vec::with_capacity(range.len() * self.weights.len() / columns);
        for (row, row_weights) in self.weights.chunks(columns).enumerate() {
            let outliers = outlier_columns(self.outliers, self.first_row + row, range);
            weights.extend_from_slice(&normal(row_weights, range, outliers));
        }
        weights.into()
    }

    fn not_finite(&self, columns: usize) -> CodecError {
        let row = self.weights.iter().position(|weight| !weight.is_finite()).unwrap_or(0) / columns;
        not_finite(self.first_row + row, &self.weights[row * columns..][..columns])
    }
}

impl Stripe {
    fn push(&mut self, group: &GroupScale, zero: ZeroPoint) {
        self.scales.push(group.scale);
        if zero != ZeroPoint::None {
            self.zeros.push(group.zero);
        }
        self.scales_clamped += u64::from(group.scale_clamped);
        self.zeros_clamped += u64::from(group.zero_clamped);
    }

    fn finish(self, first_row: usize, rows: usize, columns: usize) -> EncodedStripe {
        let counts = [("scale-clamped", self.scales_clamped), ("zero-point-clamped", self.zeros_clamped)];
        EncodedStripe {
            rows: CodedRows { first_row, rows, columns, codes: self.codes, scales: self.scales, zeros: self.zeros },
            deviations: counts.into_iter().filter(|(_, count)| *count > 0).collect::<Deviations>(),
        }
    }
}

impl MatrixEncoder for Encoder {
    fn prepare(&self, source: &dyn RowSource) -> Result<MatrixParameters, CodecError> {
        let outliers = match self.codec.outliers {
            Some(outliers) => Some(outliers::select(source, outliers.count)?),
            None => None,
        };
        let matrix = WholeMatrix { source, outliers: outliers.as_ref() };
        let mut parameters = MatrixParameters::default();
        if self.codec.scale == ScaleFormat::E4M3OverGlobal {
            parameters.tensor_scale = Some(self.grid.global_for(matrix.extent()?.absmax()));
        } else if self.codec.granularity == Granularity::Tensor {
            let extent = matrix.extent()?;
            let group = match self.range {
                Range::Mse => least_squares(&matrix, &self.grid, extent)?,
                Range::Minmax | Range::Hqq => self.grid.min_max(extent),
            };
            parameters.tensor_scale = Some(group.scale);
            parameters.tensor_zero = (self.codec.zero != ZeroPoint::None).then_some(group.zero);
        }
        parameters.outliers = outliers;
        Ok(parameters)
    }

    fn encode(
        &self,
        source: &dyn RowSource,
        parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<EncodedStripe, CodecError> {
        let groups = rows.div_ceil(self.tile().0) * self.columns.div_ceil(self.tile().1);
        let mut stripe = Stripe {
            codes: Vec::with_capacity(rows * self.columns),
            scales: Vec::with_capacity(groups),
            ..Stripe::default()
        };
        if self.columns == 0 {
            return Ok(stripe.finish(first_row, rows, 0));
        }
        let (grid, tensor) = match parameters.tensor_scale {
            Some(global) if self.codec.scale == ScaleFormat::E4M3OverGlobal => (self.grid.with_global(global), None),
            Some(scale) => (self.grid.clone(), Some(self.grid.stored(scale, parameters.tensor_zero))),
            None => (self.grid.clone(), None),
        };
        let mut weights = vec![0.0; self.tile().0.min(rows) * self.columns];
        for first in (first_row..first_row + rows).step_by(self.tile().0) {
            let height = self.tile().0.min(first_row + rows - first);
            let weights = &mut weights[..height * self.columns];
            source.read_rows(first, weights)?;
            let tile = Tile { first_row: first, weights, outliers: parameters.outliers.as_ref() };
            self.encode_tile(&grid, tensor.as_ref(), &tile, &mut stripe)?;
        }
        Ok(stripe.finish(first_row, rows, self.columns))
    }
}
