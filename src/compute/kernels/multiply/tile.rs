//! Tiles of products: which there are, and which of them an adapter is fastest with.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::Product;
use crate::compute::{
    AdapterKind, ComputeError, Device, Limits,
    kernels::{DeviceMatrix, Number, View},
};

/// Tiles of the largest kind that keep the units of a large adapter busy; a product of fewer is cut into small ones.
const MANY_TILES: usize = 128;
/// Operations that a device has been given in large products before it is worth finding out which tile is fastest: a
/// tenth of a second or more on any card.
const WORTH_MEASURING: u64 = 1 << 38;
/// Edge and depth of the product that tiles are measured with.
const PROBE: [usize; 2] = [2048, 512];
/// Runs of which the fastest counts.
const RUNS: usize = 3;

/// A tile of `multiply.wgsl`: so many invocations along columns and rows, which make eight times as many sums each way, and
/// the depth of a step. The sums of a product do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub(super) wide: usize,
    pub(super) tall: usize,
    pub(super) step: usize,
}

/// What is known of a device's tiles.
#[derive(Debug, Default)]
pub struct Tiles {
    operations: AtomicU64,
    fastest: OnceLock<Tile>,
}

impl Tile {
    /// For products of few tiles.
    pub(super) const SMALL: Self = Self { wide: 8, tall: 8, step: 8 };
    /// For all others where nothing is measured.
    pub(super) const LARGE: Self = Self { wide: 16, tall: 16, step: 16 };
    /// All that are tried.
    pub(super) const ALL: [Self; 6] = [
        Self::LARGE,
        Self { wide: 16, tall: 16, step: 8 },
        Self { wide: 16, tall: 8, step: 8 },
        Self { wide: 8, tall: 16, step: 8 },
        Self { wide: 8, tall: 32, step: 8 },
        Self::SMALL,
    ];

    /// Rows of the product in a tile.
    pub(super) fn rows(self) -> usize {
        8 * self.tall
    }

    /// Columns of the product in a tile.
    pub(super) fn columns(self) -> usize {
        8 * self.wide
    }

    /// Whether a workgroup may have so many invocations and so much memory.
    pub(super) fn fits(self, limits: &Limits) -> bool {
        let bytes = 32 * self.step * (self.tall + self.wide);
        limits.workgroup_memory_bytes as usize >= bytes
            && limits.workgroup_invocations as usize >= self.tall * self.wide
    }

    /// The tile of as many rows as columns for so many of them, by the adapter's limits alone.
    pub(super) fn choose_square(device: &Device, rows: usize, columns: usize) -> Self {
        let tiles = rows.div_ceil(Self::LARGE.rows()) * columns.div_ceil(Self::LARGE.columns());
        if tiles >= MANY_TILES && Self::LARGE.fits(&device.limits()) { Self::LARGE } else { Self::SMALL }
    }

    /// The tile for `layers` products of this shape.
    pub(super) fn choose(device: &Device, [rows, columns, depth]: [usize; 3], layers: usize) -> Self {
        let square = Self::choose_square(device, rows, columns * layers);
        if square == Self::SMALL || device.adapter().kind == AdapterKind::Software {
            return square;
        }
        let known = &device.inner.tiles;
        if let Some(tile) = known.fastest.get() {
            return *tile;
        }
        let operations = 2 * (rows * columns * depth * layers) as u64;
        if known.operations.fetch_add(operations, Ordering::Relaxed) < WORTH_MEASURING {
            return Self::LARGE;
        }
        // A device that has no memory left for the probe does without; one that is lost says so at the product itself.
        *known.fastest.get_or_init(|| Self::measure(device, PROBE).unwrap_or(Self::LARGE))
    }

    /// The fastest tile for a product of `edge × edge × depth`. Those whose product has other bits than that of
    /// [`Tile::LARGE`] are left out, so that the choice, which depends on time, changes no result.
    ///
    /// # Errors
    /// [`ComputeError`] for want of memory, or of a device.
    pub(super) fn measure(device: &Device, [edge, depth]: [usize; 2]) -> Result<Self, ComputeError> {
        let values: Vec<f32> = (0..edge * depth).map(|index| (index * 37 % 251) as f32 / 125.0 - 1.0).collect();
        let left = DeviceMatrix::upload(device, "tiles: left", depth, &values)?;
        let out = DeviceMatrix::zeros(device, "tiles: out", edge, edge)?;
        let bits: Vec<u16> = values[..71 * 47].iter().map(|value| half::bf16::from_f32(*value).to_bits()).collect();
        let odd = DeviceMatrix::stored(device, "tiles: odd", 47, Number::BF16, bytemuck::cast_slice(&bits))?;
        let product = |tile: Self, left: &View<'_>, right: &View<'_>, out: &View<'_>| {
            let mut batch = device.batch();
            Product::TRANSPOSED.add_by(device, &mut batch, [left, right, out], Some(tile))?;
            batch.submit()?;
            device.finish()
        };
        let sums = |tile: Self| -> Result<Vec<u8>, ComputeError> {
            // Beyond every tile's edge, from odd elements on.
            let [rows, columns, depth] = [edge.min(257), edge.min(131), depth.min(75)];
            let (one, other) = (left.part(0..rows, 0..depth), left.part(edge - columns..edge, 0..depth));
            let found = DeviceMatrix::zeros(device, "tiles: sums", rows, columns)?;
            product(tile, &one, &other, &found.view())?;
            let mut bytes = device.read(&found.buffer)?;
            product(tile, &odd.part(1..71, 1..46), &odd.part(0..67, 2..47), &found.part(0..70, 0..67))?;
            bytes.extend(device.read(&found.buffer)?);
            Ok(bytes)
        };
        let expected = sums(Self::LARGE)?;
        let mut fastest = (Duration::MAX, Self::LARGE);
        for tile in Self::ALL.into_iter().filter(|tile| tile.fits(&device.limits())) {
            if tile != Self::LARGE && sums(tile)? != expected {
                continue;
            }
            // The first run makes the pipeline.
            product(tile, &left.view(), &left.view(), &out.view())?;
            for _ in 0..RUNS {
                let start = Instant::now();
                product(tile, &left.view(), &left.view(), &out.view())?;
                fastest = if start.elapsed() < fastest.0 { (start.elapsed(), tile) } else { fastest };
            }
        }
        Ok(fastest.1)
    }
}
