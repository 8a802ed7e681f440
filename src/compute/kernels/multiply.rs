//! Products of matrices.

mod cooperative;
mod tile;

pub(in crate::compute) use self::{cooperative::Checked, tile::Tiles};

use self::{cooperative::Cooperative, tile::Tile};
use super::{Number, View, matrix::Bound, shader};
use crate::compute::{Batch, ComputeError, Device, Kernel};

const SOURCE: &str = shader!("multiply.wgsl", "product.wgsl");
/// The deepest product of one launch: systems reset an adapter that works on one for seconds, and Mesa's software adapter
/// leaves loops after 65535 turns.
const DEEPEST: usize = 32768;
/// Most rows and columns of one launch: as many as the smallest tiles make in the largest grid.
const MOST_LINES: usize = 65535 * 32;

/// `out = alpha · L · R + beta · out`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Whether L is given as its transpose, `[depth, rows]`.
    pub left_transposed: bool,
    /// Whether R is given as its transpose, `[columns, depth]`, as weights are.
    pub right_transposed: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what was there; with 0 it is not read.
    pub beta: f32,
}

/// Many products of the same shape, one for each head of each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Sequences.
    pub sequences: usize,
    /// Heads of a sequence.
    pub heads: usize,
    /// Heads that share one of R.
    pub share: usize,
    /// Elements from a sequence to the next, of L, R and out.
    pub sequence_strides: [usize; 3],
    /// Elements from a head to the next, of L, R and out.
    pub head_strides: [usize; 3],
    /// Which part of the product counts.
    pub causal: Causal,
    /// The query that the first row belongs to.
    pub first_query: usize,
}

/// Which part of a product counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Causal {
    /// All of it.
    Everything,
    /// What is above the diagonal is not used and need not be computed.
    Below,
    /// L has zeros above its diagonal.
    UpToRow,
}

/// A product that is not one of many.
const ONE: Heads = Heads {
    sequences: 1,
    heads: 1,
    share: 1,
    sequence_strides: [0; 3],
    head_strides: [0; 3],
    causal: Causal::Everything,
    first_query: 0,
};

impl Product {
    /// `x wᵀ`.
    pub const TRANSPOSED: Self = Self { left_transposed: false, right_transposed: true, alpha: 1.0, beta: 0.0 };

    /// Adds the product to the batch. L and R may be F32, F16 or BF16, `out` is F32; sums are F32. Where L or R must be
    /// cut along the depth to be bound, its parts are added up one after the other. Where both are F16 and the adapter
    /// has cooperative matrices, those multiply; the sums are F32 then too, in the adapter's order.
    ///
    /// # Errors
    /// As for [`Batch::add`]; [`ComputeError::TooLarge`] where one row exceeds a binding.
    ///
    /// # Panics
    /// When the shapes do not fit together.
    pub fn add(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        left: &View<'_>,
        right: &View<'_>,
        out: &View<'_>,
    ) -> Result<(), ComputeError> {
        self.add_by(device, batch, [left, right, out], None)
    }

    /// The same by a tile of the caller's choice, not by cooperative matrices then.
    fn add_by(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        [left, right, out]: [&View<'_>; 3],
        tile: Option<Tile>,
    ) -> Result<(), ComputeError> {
        let [rows, columns, depth] = self.shape(left, right, out);
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let [l, r, o] = [left, right, out].map(|view| view.bound(device));
        let limit = device.limits().binding_bytes;
        let (left_large, right_large) = (l.bytes > limit, r.bytes > limit);
        let too_tall = (o.bytes > limit || rows > MOST_LINES || left_large && !self.left_transposed) && rows > 1;
        let too_deep = depth > DEEPEST
            || (left_large && self.left_transposed || right_large && !self.right_transposed) && depth > 1;
        let too_wide = (right_large && self.right_transposed || columns > MOST_LINES) && columns > 1;
        if too_tall {
            for rows in halves(rows) {
                let left =
                    if self.left_transposed { left.some_columns(rows.clone()) } else { left.some_rows(rows.clone()) };
                self.add_by(device, batch, [&left, right, &out.some_rows(rows)], tile)?;
            }
            return Ok(());
        }
        if too_wide {
            for columns in halves(columns) {
                let right = if self.right_transposed {
                    right.some_rows(columns.clone())
                } else {
                    right.some_columns(columns.clone())
                };
                self.add_by(device, batch, [left, &right, &out.some_columns(columns)], tile)?;
            }
            return Ok(());
        }
        if too_deep {
            for depths in halves(depth) {
                let beta = if depths.start == 0 { self.beta } else { 1.0 };
                let left = if self.left_transposed {
                    left.some_rows(depths.clone())
                } else {
                    left.some_columns(depths.clone())
                };
                let right = if self.right_transposed { right.some_columns(depths) } else { right.some_rows(depths) };
                Self { beta, ..*self }.add_by(device, batch, [&left, &right, out], tile)?;
            }
            return Ok(());
        }
        let shape = [rows, columns, depth];
        if tile.is_none()
            && let Some(cooperative) = Cooperative::of(device, shape, [left, right])
        {
            return self.launch_cooperative(device, batch, shape, [(left, l), (right, r), (out, o)], cooperative);
        }
        self.launch(device, batch, shape, [(left, l), (right, r), (out, o)], &ONE, tile)
    }

    /// Adds the products of all heads to the batch. The views are those of the first head of the first sequence.
    ///
    /// # Errors
    /// As for [`Batch::add`]; [`ComputeError::TooLarge`] where all heads of a matrix together exceed a binding.
    ///
    /// # Panics
    /// When the shapes do not fit together.
    pub fn add_heads(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        [left, right, out]: [&View<'_>; 3],
        heads: &Heads,
    ) -> Result<(), ComputeError> {
        let shape = self.shape(left, right, out);
        let (views, of_right) = ([left, right, out], heads.heads.div_ceil(heads.share));
        let bounds = [0, 1, 2].map(|index| {
            let (view, count) = (views[index], [heads.heads, of_right, heads.heads][index]);
            let last = (heads.sequences - 1) * heads.sequence_strides[index] + (count - 1) * heads.head_strides[index];
            (view, view.with_rows_after(last / view.matrix.columns).bound(device))
        });
        self.launch(device, batch, shape, bounds, heads, None)
    }

    fn shape(&self, left: &View<'_>, right: &View<'_>, out: &View<'_>) -> [usize; 3] {
        let sides = |view: &View<'_>, transposed: bool| {
            let (rows, columns) = (view.rows.len(), view.columns.len());
            if transposed { (columns, rows) } else { (rows, columns) }
        };
        let ((rows, depth), (depth_too, columns)) =
            (sides(left, self.left_transposed), sides(right, self.right_transposed));
        assert_eq!(depth, depth_too, "depths of a product agree");
        assert_eq!((rows, columns), sides(out, false), "a product has the shape of its result");
        assert_eq!(out.matrix.number, Number::F32, "products are F32");
        [rows, columns, depth]
    }

    fn launch(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        shape: [usize; 3],
        places: [(&View<'_>, Bound<'_>); 3],
        heads: &Heads,
        tile: Option<Tile>,
    ) -> Result<(), ComputeError> {
        let layers = heads.sequences * heads.heads;
        let tile = tile.unwrap_or_else(|| Tile::choose(device, shape, layers));
        let uniform = self.uniform(shape, &places, heads);
        let kernel = self
            .constants(Kernel::new("multiply", SOURCE, "multiply"), &places, &uniform)
            .with("WIDE", tile.wide as f64)
            .with("TALL", tile.tall as f64)
            .with("STEP", tile.step as f64);
        let groups = [shape[1].div_ceil(tile.columns()), shape[0].div_ceil(tile.rows()), layers];
        let bindings = places.map(|(_, bound)| bound.binding);
        batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups.map(|count| count as u32))
    }

    /// The structure `Shape` of the shaders.
    fn uniform(
        &self,
        [rows, columns, depth]: [usize; 3],
        places: &[(&View<'_>, Bound<'_>); 3],
        heads: &Heads,
    ) -> Vec<u32> {
        let mut uniform = Vec::with_capacity(24);
        for (index, (view, bound)) in places.iter().enumerate() {
            let strides = [heads.sequence_strides[index] as u32, heads.head_strides[index] as u32];
            uniform.extend([bound.first, view.stride(), strides[0], strides[1]]);
        }
        uniform.extend([rows as u32, columns as u32, depth as u32, heads.heads as u32]);
        uniform.extend([self.alpha.to_bits(), self.beta.to_bits(), heads.share as u32, heads.causal as u32]);
        uniform.extend([heads.first_query as u32, 0, 0, 0]);
        uniform
    }

    /// The kernel with what `parts/product.wgsl` has to know.
    fn constants(&self, kernel: Kernel, places: &[(&View<'_>, Bound<'_>); 3], uniform: &[u32]) -> Kernel {
        let aligned = |place: usize| f64::from(u8::from(uniform[4 * place..][..4].iter().all(|n| n.is_multiple_of(4))));
        let flag = |flag: bool| f64::from(u8::from(flag));
        kernel
            .with("LEFT_TRANSPOSED", flag(self.left_transposed))
            .with("RIGHT_TRANSPOSED", flag(self.right_transposed))
            .with("LEFT_TYPE", places[0].0.matrix.number.constant())
            .with("RIGHT_TYPE", places[1].0.matrix.number.constant())
            .with("LEFT_ALIGNED", aligned(0))
            .with("RIGHT_ALIGNED", aligned(1))
    }
}

/// The edge of a workgroup for kernels that know square tiles only: large ones load less, small ones are more, so that
/// few rows still keep an adapter busy.
pub(super) fn edge(device: &Device, rows: usize, columns: usize) -> usize {
    Tile::choose_square(device, rows, columns).wide
}

/// The two halves of `0..count`, the first a multiple of 64 where that is possible, so that alignment stays.
pub(super) fn halves(count: usize) -> [std::ops::Range<usize>; 2] {
    let middle = count.div_ceil(2);
    let middle = if count > 64 { middle.next_multiple_of(64).min(count - 1) } else { middle };
    [0..middle, middle..count]
}

#[cfg(test)]
mod tests;
