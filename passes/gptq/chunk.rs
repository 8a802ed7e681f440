//! A fixed number of rows, worked on together by one thread.

use super::{
    factor::Factor,
    lanes::{LANES, Lanes},
    options::Linear,
};
use crate::{
    codec::{Codec, Element, Granularity, ZeroPoint, sparse::Mask},
    passes::rtn::grid::{Grid, GroupScale},
};

/// Rows of a chunk: wide enough for the products of matrices, small enough for the caches and for many cores.
pub const ROWS: usize = 64;

/// Rows of a layer in the making. Matrices are stored column after column, each of [`Chunk::lanes`] rows, in the
/// original order of columns; rows beyond [`Chunk::rows`] are padding of zeros.
pub struct Chunk<'a> {
    /// What is shared by all layers of the input.
    pub factor: &'a Factor,
    /// The levels, with the global scale.
    pub grid: &'a Grid,
    /// The format.
    pub codec: &'a Codec,
    /// The first row in the layer.
    pub first: usize,
    /// Rows.
    pub rows: usize,
    /// Rows with padding.
    pub lanes: usize,
    /// What the codes are to decode to.
    pub target: Vec<f32>,
    /// Levels found: (code − zero point), or the value of a float code.
    pub levels: Vec<f32>,
    /// Scale and zero point of each group, the rows of one group after the other.
    pub groups: Vec<Vec<GroupScale>>,
    /// Which weights a mask keeps, stored like the target; the levels of all others stay 0.
    pub kept: Option<Vec<bool>>,
    /// Whether scales and zero points belong to this chunk, and may be changed by it.
    pub own_scales: bool,
}

impl<'a> Chunk<'a> {
    /// The chunk of rows from `first`, of a target given row-major, with groups still to be found.
    pub fn new(factor: &'a Factor, linear: &Linear<'a>, grid: &'a Grid, first: usize, target: &[f32]) -> Self {
        let columns = factor.columns;
        let rows = target.len() / columns;
        let lanes = rows.next_multiple_of(LANES);
        let mut transposed = vec![0.0; columns * lanes];
        transpose(target, columns, &mut transposed, lanes);
        Self {
            factor,
            grid,
            codec: linear.codec,
            first,
            rows,
            lanes,
            target: transposed,
            levels: vec![0.0; columns * lanes],
            groups: vec![Vec::new(); linear.codec.groups_per_row(columns)],
            kept: None,
            own_scales: matches!(linear.codec.granularity, Granularity::Channel | Granularity::Group(_)),
        }
    }

    /// Takes the rows of a mask. Padding is kept, as without one.
    pub fn take_mask(&mut self, mask: &Mask) {
        let mut kept = vec![true; self.target.len()];
        for row in 0..self.rows {
            let places = kept[row..].iter_mut().step_by(self.lanes);
            places.enumerate().for_each(|(column, kept)| *kept = mask.keeps(self.first + row, column));
        }
        self.kept = Some(kept);
    }

    /// What the mask keeps of some columns, where there is one.
    pub fn kept_of(&self, columns: std::ops::Range<usize>) -> Option<&[bool]> {
        Some(&self.kept.as_ref()?[columns.start * self.lanes..columns.end * self.lanes])
    }

    /// Columns of a group; the last may be short.
    pub fn width(&self) -> usize {
        self.codec.group_columns(self.factor.columns)
    }

    /// The columns of a group.
    pub fn columns_of(&self, group: usize) -> std::ops::Range<usize> {
        let width = self.width();
        group * width..self.factor.columns.min((group + 1) * width)
    }

    /// The group's scales, ready for the kernels.
    pub fn lanes_of(&self, group: usize) -> Lanes {
        Lanes::new(self.grid, &self.groups[group])
    }

    /// What the levels decode to, stored like the target.
    pub fn values(&self) -> Vec<f32> {
        let mut values = self.levels.clone();
        for (group, scales) in self.groups.iter().enumerate() {
            let steps: Vec<f32> = scales.iter().map(|scale| self.grid.step(scale)).collect();
            let columns = self.columns_of(group);
            for column in values[columns.start * self.lanes..columns.end * self.lanes].chunks_exact_mut(self.lanes) {
                if self.grid.zero_point() == ZeroPoint::Minimum {
                    for (value, group) in column.iter_mut().zip(scales) {
                        *value = self.grid.decode((*value + group.zero).round_ties_even() as u8, group);
                    }
                } else {
                    column.iter_mut().zip(&steps).for_each(|(value, step)| *value *= step);
                }
            }
        }
        values
    }

    /// Writes the codes of the rows, row-major.
    pub fn codes(&self, codes: &mut [u8]) {
        let columns = self.factor.columns;
        let width = self.width();
        let mut levels = vec![0.0; self.rows * columns];
        transpose_back(&self.levels, self.lanes, &mut levels, columns);
        if self.grid.element() == Element::Fp4E2M1 {
            // The encoder takes the sign of −0 away, but that of a level says where it was rounded from.
            let zeros = levels.iter_mut().filter(|level| **level == 0.0 && level.is_sign_negative());
            zeros.for_each(|level| *level = -f32::MIN_POSITIVE);
        }
        let ones = vec![1.0; self.groups.len()];
        for (row, (levels, codes)) in levels.chunks_exact(columns).zip(codes.chunks_exact_mut(columns)).enumerate() {
            let zeros: Vec<f32> = self.groups.iter().map(|group| group[row].zero).collect();
            self.grid.encode_row(levels, &ones, &zeros, width, codes);
        }
    }
}

/// Rows of `columns` elements to columns of `lanes` elements.
pub fn transpose(from: &[f32], columns: usize, to: &mut [f32], lanes: usize) {
    for (row, from) in from.chunks_exact(columns).enumerate() {
        for (column, value) in from.iter().enumerate() {
            to[column * lanes + row] = *value;
        }
    }
}

/// The way back; padding is left out.
pub fn transpose_back(from: &[f32], lanes: usize, to: &mut [f32], columns: usize) {
    for (row, to) in to.chunks_exact_mut(columns).enumerate() {
        for (column, value) in to.iter_mut().enumerate() {
            *value = from[column * lanes + row];
        }
    }
}
