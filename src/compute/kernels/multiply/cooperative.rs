//! Products on the units of an adapter that multiply small matrices whole.

use std::sync::OnceLock;

use super::{Bound, ONE, Product, tile::Tile};
use crate::compute::{
    Batch, ComputeError, Device, Kernel,
    kernels::{DeviceMatrix, Number, View, shader},
};

const OF_16: &str = shader!("multiply_cooperative.wgsl", "cooperative_16.wgsl", "product.wgsl");
const OF_8: &str = shader!("multiply_cooperative.wgsl", "cooperative_8.wgsl", "product.wgsl");
/// Threads of a workgroup.
const THREADS: u32 = 128;
/// Rows, columns and depth of which a product has to have as many for the units to gain anything.
const SMALLEST: [usize; 3] = [16, 16, 32];
/// Rows, columns and depth of the product that shows whether the units are right: beyond tiles and steps.
const CHECK: [usize; 3] = [70, 83, 75];
/// Largest difference from the tiled kernel in that check: F32 sums of 75 products of at most 1.
const TOLERANCE: f32 = 1e-3;

/// Cooperative matrices of an adapter that were found to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooperative {
    /// Rows, columns and depth of a matrix: 8 or 16.
    pub(super) edge: u32,
}

/// Whether a device's cooperative matrices are right; found out at the first product that could use them.
pub(in crate::compute) type Checked = OnceLock<Option<Cooperative>>;

impl Cooperative {
    /// Those of a device, for products of this shape and these operands.
    pub(super) fn of(device: &Device, shape: [usize; 3], operands: [&View<'_>; 2]) -> Option<Self> {
        let edge = device.cooperative_edge()?;
        let fits = operands.iter().all(|view| view.matrix.number == Number::F16)
            && shape.iter().zip(SMALLEST).all(|(size, smallest)| *size >= smallest);
        if !fits {
            return None;
        }
        let checked = || Self::check(device, Self { edge }).unwrap_or(false).then_some(Self { edge });
        *device.inner.cooperative.get_or_init(checked)
    }

    /// The shader for matrices of this size.
    fn source(self) -> &'static str {
        if self.edge == 16 { OF_16 } else { OF_8 }
    }

    /// Whether a product comes out as by tiles: the interface is new, and drivers differ.
    ///
    /// # Errors
    /// [`ComputeError`] when the driver refuses it.
    pub(super) fn check(device: &Device, cooperative: Self) -> Result<bool, ComputeError> {
        let [rows, columns, depth] = CHECK;
        let bits: Vec<u16> = (0..rows.max(columns) * depth)
            .map(|index| half::f16::from_f32((index * 37 % 251) as f32 / 125.0 - 1.0).to_bits())
            .collect();
        let operand = |rows: usize| {
            let bytes = bytemuck::cast_slice(&bits[..rows * depth]);
            DeviceMatrix::stored(device, "cooperative check", depth, Number::F16, bytes)
        };
        let (left, right) = (operand(rows)?, operand(columns)?);
        let found = DeviceMatrix::zeros(device, "cooperative check", rows, columns)?;
        let expected = DeviceMatrix::zeros(device, "cooperative check", rows, columns)?;
        let mut batch = device.batch();
        let views = [left.view(), right.view(), found.view()];
        let places = views.each_ref().map(|view| (view, view.bound(device)));
        Product::TRANSPOSED.launch_cooperative(device, &mut batch, CHECK, places, cooperative)?;
        let tiled = [&views[0], &views[1], &expected.view()];
        Product::TRANSPOSED.add_by(device, &mut batch, tiled, Some(Tile::SMALL))?;
        batch.submit()?;
        let (found, expected) = (found.download(device)?, expected.download(device)?);
        Ok(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() <= TOLERANCE))
    }
}

impl Product {
    /// Adds one product of F16 matrices to the batch.
    pub(super) fn launch_cooperative(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        shape: [usize; 3],
        places: [(&View<'_>, Bound<'_>); 3],
        cooperative: Cooperative,
    ) -> Result<(), ComputeError> {
        debug_assert!(device.cooperative_edge().is_some(), "only where there are such units");
        let uniform = self.uniform(shape, &places, &ONE);
        let name = "multiply_cooperative";
        // The largest subgroups make the fewest of them.
        let rounds = match device.adapter().subgroup.1 {
            0 => 4,
            largest => (4 * largest).div_ceil(THREADS).min(4),
        };
        let kernel = self
            .constants(Kernel::new(name, cooperative.source(), name), &places, &uniform)
            .with("ROUNDS", f64::from(rounds));
        let tile = 4 * cooperative.edge as usize;
        let groups = [shape[1].div_ceil(tile) as u32, shape[0].div_ceil(tile) as u32, 1];
        let bindings = places.map(|(_, bound)| bound.binding);
        batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups)
    }
}
