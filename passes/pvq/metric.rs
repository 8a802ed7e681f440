//! What errors of columns cost: H damped, or nothing but their squares where nothing is known of the input.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use crate::passes::gptq::Factor;

/// The damped H of a layer, or the identity.
#[derive(Debug, Clone, Copy)]
pub struct Metric<'a> {
    /// Columns of the weights.
    pub columns: usize,
    /// The factored moments; none for the identity.
    pub factor: Option<&'a Factor>,
}

impl<'a> Metric<'a> {
    /// The column at a place of the sweep.
    pub fn column(&self, place: usize) -> usize {
        self.factor.map_or(place, |factor| factor.permutation[place])
    }

    /// `H_jj`.
    pub fn diagonal(&self, column: usize) -> f32 {
        self.factor.map_or(1.0, |factor| factor.hessian[column * self.columns + column])
    }

    /// Some of a row of H; none where only the diagonal is not zero.
    pub fn row(&self, column: usize, range: Range<usize>) -> Option<&'a [f32]> {
        self.factor.map(|factor| &factor.hessian[column * self.columns..][range])
    }

    /// d H for some columns; d is stored column after column, each of `rows` rows, and so is the result.
    pub fn product(&self, range: Range<usize>, differences: &[f32], rows: usize) -> Vec<f32> {
        let Some(factor) = self.factor else {
            return differences[range.start * rows..range.end * rows].to_vec();
        };
        let mut product = vec![0.0; range.len() * rows];
        let hessian = MatRef::from_row_major_slice(&factor.hessian, self.columns, self.columns);
        let differences = MatRef::from_column_major_slice(differences, rows, self.columns);
        let to = MatMut::from_column_major_slice_mut(&mut product, rows, range.len());
        // H is symmetric, and its rows lie in one piece.
        let hessian = hessian.subrows(range.start, range.len()).transpose();
        matmul(to, Accum::Replace, differences, hessian, 1.0, Par::Seq);
        product
    }

    /// The loss d H dᵀ of each row, damped.
    pub fn losses(&self, differences: &[f32], rows: usize) -> Vec<f64> {
        const PANEL: usize = 256;
        let mut losses = vec![0.0; rows];
        for start in (0..self.columns).step_by(PANEL) {
            let range = start..self.columns.min(start + PANEL);
            let product = self.product(range.clone(), differences, rows);
            let differences = &differences[range.start * rows..range.end * rows];
            for (index, (difference, product)) in differences.iter().zip(&product).enumerate() {
                losses[index % rows] += f64::from(*difference) * f64::from(*product);
            }
        }
        losses
    }

    /// What damping adds to each row's loss.
    pub fn added(&self, differences: &[f32], rows: usize) -> Vec<f64> {
        let mut losses = vec![0.0; rows];
        if let Some(factor) = self.factor {
            for (column, added) in differences.chunks_exact(rows).zip(&factor.added) {
                for (loss, difference) in losses.iter_mut().zip(column) {
                    *loss += added * f64::from(*difference) * f64::from(*difference);
                }
            }
        }
        losses
    }
}
