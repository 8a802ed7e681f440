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
    codec::{
        Codec, CodecError, CodedRows, Granularity, MatrixParameters, Outliers, RowSource, ScaleFormat, ZeroPoint, range,
    },
    compute::{ComputeError, Device},
    passes::{Deviations, EncodedStripe, Matrix, MatrixEncoder, StripeOnDevice},
};

/// A matrix's encoder.
pub struct Encoder {
    pub(super) codec: Codec,
    pub(super) range: Range,
    pub(super) grid: Grid,
    pub(super) columns: usize,
}

/// What a stripe's rows have become so far.
#[derive(Default)]
pub(super) struct Stripe {
    pub(super) codes: Vec<u8>,
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
    pub(super) fn tile(&self) -> (usize, usize) {
        let (rows, columns) = match self.codec.granularity {
            Granularity::Group(columns) => (1, columns),
            Granularity::Block { rows, columns } => (rows, columns),
            Granularity::Channel | Granularity::Tensor => (1, self.columns),
        };
        (rows.max(1), columns.max(1))
    }

    /// The grid of a matrix, and the scale of all its weights where there is only one.
    pub(super) fn grid_for(&self, parameters: &MatrixParameters) -> (Grid, Option<GroupScale>) {
        match parameters.tensor_scale {
            Some(global) if self.codec.scale == ScaleFormat::E4M3OverGlobal => (self.grid.with_global(global), None),
            Some(scale) => (self.grid.clone(), Some(self.grid.stored(scale, parameters.tensor_zero))),
            None => (self.grid.clone(), None),
        }
    }

    /// Extremes of each group of the tile; for symmetric codes only their magnitude counts.
    fn extents(&self, tile: &Tile, scratch: &mut Scratch) -> Result<(), CodecError> {
        let width = self.tile().1;
        let groups = self.columns.div_ceil(width);
        let finite = if tile.outliers.is_some() || tile.weights.len() > self.columns {
            scratch.extents.clear();
            for first in (0..self.columns).step_by(width) {
                let weights = tile.normal(self.columns, &(first..self.columns.min(first + width)));
                let extent = kernels::extent(&weights).ok_or_else(|| tile.not_finite(self.columns))?;
                scratch.extents.push(extent);
            }
            true
        } else {
            let Scratch { extents, min, max, .. } = scratch;
            min.resize(groups, 0.0);
            max.resize(groups, 0.0);
            extents.clear();
            if self.codec.zero == ZeroPoint::None {
                let finite = range::absmax_per_group(tile.weights, width, max);
                extents.extend(max.iter().map(|max| Extent { min: -max, max: *max }));
                finite
            } else {
                let finite = range::minmax_per_group(tile.weights, width, min, max);
                extents.extend(min.iter().zip(max).map(|(min, max)| Extent { min: *min, max: *max }));
                finite
            }
        };
        if finite { Ok(()) } else { Err(tile.not_finite(self.columns)) }
    }

    fn encode_tile(
        &self,
        grid: &Grid,
        tensor: Option<&GroupScale>,
        tile: &Tile,
        scratch: &mut Scratch,
        stripe: &mut Stripe,
    ) -> Result<(), CodecError> {
        let width = self.tile().1;
        self.extents(tile, scratch)?;
        scratch.steps.clear();
        scratch.zeros.clear();
        for (index, extent) in scratch.extents.iter().enumerate() {
            let group = match (tensor, self.range) {
                (Some(group), _) => *group,
                (None, Range::Minmax) => grid.min_max(*extent),
                (None, range) => {
                    let first = index * width;
                    let weights = tile.normal(self.columns, &(first..self.columns.min(first + width)));
                    if range == Range::Mse {
                        least_squares(&*weights, grid, *extent)?
                    } else {
                        half_quadratic(&weights, grid, *extent)
                    }
                }
            };
            if tensor.is_none() {
                stripe.push(&group, grid);
            }
            scratch.steps.push(grid.step(&group));
            scratch.zeros.push(group.zero);
        }
        for (row, weights) in tile.weights.chunks(self.columns).enumerate() {
            let start = stripe.codes.len();
            stripe.codes.resize(start + self.columns, 0);
            let codes = &mut stripe.codes[start..];
            grid.encode_row(weights, &scratch.steps, &scratch.zeros, width, codes);
            for column in outlier_columns(tile.outliers, tile.first_row + row, &(0..self.columns)) {
                let group = *column as usize / width;
                let code = &mut codes[*column as usize..=*column as usize];
                grid.encode_row(&[0.0], &scratch.steps[group..], &scratch.zeros[group..], 1, code);
            }
        }
        Ok(())
    }
}

/// Space for what is known of a tile, kept from one to the next.
#[derive(Default)]
struct Scratch {
    min: Vec<f32>,
    max: Vec<f32>,
    extents: Vec<Extent>,
    steps: Vec<f32>,
    zeros: Vec<f32>,
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
    pub(super) fn push(&mut self, group: &GroupScale, grid: &Grid) {
        self.scales.push(group.scale);
        if grid.zero_point() != ZeroPoint::None {
            self.zeros.push(grid.stored_zero(group));
        }
        self.scales_clamped += u64::from(group.scale_clamped);
        self.zeros_clamped += u64::from(group.zero_clamped);
    }

    pub(super) fn finish(self, first_row: usize, rows: usize, columns: usize) -> EncodedStripe {
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
            parameters.tensor_zero = (self.codec.zero != ZeroPoint::None).then(|| self.grid.stored_zero(&group));
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
        let (grid, tensor) = self.grid_for(parameters);
        let mut scratch = Scratch::default();
        let height = self.tile().0;
        let at_once = height * source.rows_at_once().div_ceil(height).max(1);
        let mut weights = vec![0.0; at_once.min(rows) * self.columns];
        for first in (first_row..first_row + rows).step_by(at_once) {
            let weights = &mut weights[..at_once.min(first_row + rows - first) * self.columns];
            source.read_rows(first, weights)?;
            for (index, weights) in weights.chunks(height * self.columns).enumerate() {
                let outliers = parameters.outliers.as_ref();
                let tile = Tile { first_row: first + index * height, weights, outliers };
                self.encode_tile(&grid, tensor.as_ref(), &tile, &mut scratch, &mut stripe)?;
            }
        }
        Ok(stripe.finish(first_row, rows, self.columns))
    }

    fn runs_on_devices(&self) -> bool {
        self.fits_device()
    }

    fn start_on<'a>(
        &'a self,
        device: &'a Device,
        source: &'a dyn RowSource,
        parameters: &'a MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<Option<Box<dyn StripeOnDevice + 'a>>, ComputeError> {
        let started = self.on_device(device, source, parameters, first_row, rows)?;
        Ok(started.map(|started| Box::new(started) as Box<dyn StripeOnDevice + 'a>))
    }
}
