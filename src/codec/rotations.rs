//! Matrices stored rotated: W' = `Q_out` W `Q_inᵀ`, undone when they are read.

use serde::{Deserialize, Serialize};

use crate::linalg::Rotation;

/// The rotations that a stored matrix has gone through, each determined by the seed and the length of its axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotations {
    /// Decides the signs.
    pub seed: u64,
    /// Whether inputs (columns) are rotated.
    pub inputs: bool,
    /// Whether outputs (rows) are rotated.
    pub outputs: bool,
}

impl Rotations {
    /// The rotation of inputs of this length. Matrices that share an input share it.
    #[must_use]
    pub fn of_inputs(&self, columns: usize) -> Option<Rotation> {
        self.inputs.then(|| Rotation::new(columns, self.seed))
    }

    /// The rotation of outputs of this length.
    #[must_use]
    pub fn of_outputs(&self, rows: usize) -> Option<Rotation> {
        // Other signs than those of inputs of the same length.
        self.outputs.then(|| Rotation::new(rows, !self.seed))
    }

    /// `Q_out W Q_inᵀ`, in place; `[rows, columns]` row-major.
    pub fn apply(&self, values: &mut [f32], rows: usize, columns: usize) {
        if let Some(rotation) = self.of_inputs(columns) {
            rotation.rows_forward(values);
        }
        if let Some(rotation) = self.of_outputs(rows) {
            rotation.columns_forward(values, columns);
        }
    }

    /// `Q_outᵀ W' Q_in`, in place.
    pub fn undo(&self, values: &mut [f32], rows: usize, columns: usize) {
        if let Some(rotation) = self.of_outputs(rows) {
            rotation.columns_inverse(values, columns);
        }
        if let Some(rotation) = self.of_inputs(columns) {
            rotation.rows_inverse(values);
        }
    }
}
