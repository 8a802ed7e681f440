//! Activations of the MLP, and the residual stream.

use super::{View, groups_for, matrix, shader};
use crate::{
    compute::{Batch, ComputeError, Device, Kernel},
    forward::Activation,
};

const SOURCE: &str = shader!("activate.wgsl");
const ADD_SOURCE: &str = shader!("add.wgsl");
/// Invocations of a workgroup.
const SIZE: usize = 64;

/// What becomes of an MLP's inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// `f(x)`.
    Plain(Activation),
    /// `f(gate) · up` for rows `[gate | up]`.
    Halves(Activation),
    /// gpt-oss's: `min(gate, limit) · σ(alpha · gate) · (clamp(up, ±limit) + 1)`, gate and up in turn.
    Alternating {
        /// Factor of the gate inside of σ.
        alpha: f32,
        /// Largest gate, and magnitude of up.
        limit: f32,
    },
}

impl Gate {
    /// Adds it to the batch: `x` is `[tokens, width]`, or twice as wide where it holds gate and up; `out` is
    /// `[tokens, width]`. Both are F32 and different matrices.
    ///
    /// # Errors
    /// As for [`Batch::add`].
    ///
    /// # Panics
    /// When the shapes do not fit together.
    pub fn add(self, device: &Device, batch: &mut Batch<'_>, x: &View<'_>, out: &View<'_>) -> Result<(), ComputeError> {
        let (entry, inputs, activation, alpha, limit) = match self {
            Self::Plain(activation) => ("activate", 1, activation, 0.0, 0.0),
            Self::Halves(activation) => ("gated", 2, activation, 0.0, 0.0),
            Self::Alternating { alpha, limit } => ("clamped_gate", 2, Activation::Silu, alpha, limit),
        };
        let width = out.columns.len();
        assert_eq!((x.rows.len(), x.columns.len()), (out.rows.len(), inputs * width), "inputs fit the outputs");
        let function = match activation {
            Activation::Silu => 0.0,
            Activation::Gelu => 1.0,
            Activation::GeluTanh => 2.0,
            Activation::GeluQuick => 3.0,
            Activation::Relu => 4.0,
        };
        let kernel = Kernel::new("activate", SOURCE, entry).with("FUNCTION", function);
        for rows in matrix::windows(device, &[x, out]) {
            let [x, out] = [x, out].map(|view| view.some_rows(rows.clone()));
            let (from, to) = (x.bound(device), out.bound(device));
            let shape = [rows.len() as u32, width as u32, alpha.to_bits(), limit.to_bits()];
            let uniform = [shape, [from.first, x.stride(), to.first, out.stride()]];
            let groups = groups_for(device, rows.len() * width, SIZE);
            batch.add(&kernel, &[from.binding, to.binding], bytemuck::cast_slice(&uniform), groups)?;
        }
        Ok(())
    }
}

/// Adds to the batch: `sum += branch`, of one shape, both F32 and different matrices.
///
/// # Errors
/// As for [`Batch::add`].
///
/// # Panics
/// When the shapes differ.
pub fn add_branch(
    device: &Device,
    batch: &mut Batch<'_>,
    branch: &View<'_>,
    sum: &View<'_>,
) -> Result<(), ComputeError> {
    let width = sum.columns.len();
    assert_eq!((branch.rows.len(), branch.columns.len()), (sum.rows.len(), width), "terms of a sum have one shape");
    let kernel = Kernel::new("add", ADD_SOURCE, "add");
    for rows in matrix::windows(device, &[branch, sum]) {
        let [branch, sum] = [branch, sum].map(|view| view.some_rows(rows.clone()));
        let (from, to) = (branch.bound(device), sum.bound(device));
        let shape = [rows.len() as u32, width as u32, from.first, branch.stride()];
        let uniform = [shape, [to.first, sum.stride(), 0, 0]];
        let groups = groups_for(device, rows.len() * width, SIZE);
        batch.add(&kernel, &[from.binding, to.binding], bytemuck::cast_slice(&uniform), groups)?;
    }
    Ok(())
}
