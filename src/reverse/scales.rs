//! Weights that are a base and scaled signs: BitDelta's (arXiv 2402.10193, §3.1), whose scales are trained.

use rayon::prelude::*;

use super::{Matrix, Moment, Parametrization, Real, WeightGradient};
use crate::passes::bitdelta::Signs;

/// `W = base + Σ_p α_p S_p`: one parameter per plane.
#[derive(Debug, Clone)]
pub struct PerMatrixScale {
    /// Planes of one shape, at least one.
    pub planes: Vec<Signs>,
}

/// `W_i = base_i + Σ_p α_pi S_pi` for every row i: parameters `[planes, output]`.
#[derive(Debug, Clone)]
pub struct PerRowScale {
    /// Planes of one shape, at least one.
    pub planes: Vec<Signs>,
}

fn shape(planes: &[Signs]) -> (usize, usize) {
    planes.first().map_or((0, 0), |signs| (signs.rows(), signs.columns()))
}

fn add_planes<T: Real>(planes: &[Signs], mut base: Matrix<T>, scale: impl Fn(usize, usize) -> T + Sync) -> Matrix<T> {
    let columns = base.columns.max(1);
    base.values.par_chunks_mut(columns).enumerate().for_each(|(row, values)| {
        let mut addend = vec![T::ZERO; columns];
        for (plane, signs) in planes.iter().enumerate() {
            let scale = scale(plane, row);
            signs.fill(row, scale, -scale, &mut addend);
            for (value, addend) in values.iter_mut().zip(&addend) {
                *value += *addend;
            }
        }
    });
    base
}

/// ⟨dL/dWᵢ, Sᵢ⟩ of every row.
fn products<T: Real>(signs: &Signs, product: &WeightGradient<'_, T>) -> Vec<f64> {
    product.row_products(&|rows, out| {
        let columns = signs.columns().max(1);
        out.par_chunks_mut(columns).zip(rows).for_each(|(out, row)| signs.fill(row, T::ONE, -T::ONE, out));
    })
}

impl<T: Real> Parametrization<T> for PerMatrixScale {
    fn shape(&self) -> (usize, usize) {
        shape(&self.planes)
    }

    fn parameters(&self) -> usize {
        self.planes.len()
    }

    fn weight(&self, parameters: &[T], base: Matrix<T>, _moment: Moment) -> Matrix<T> {
        add_planes(&self.planes, base, |plane, _| parameters[plane])
    }

    fn gradient(&self, _: &[T], _: &Matrix<T>, product: &WeightGradient<'_, T>, _: Moment, out: &mut [T]) {
        for (signs, out) in self.planes.iter().zip(out) {
            *out += T::of(products(signs, product).iter().sum());
        }
    }
}

impl<T: Real> Parametrization<T> for PerRowScale {
    fn shape(&self) -> (usize, usize) {
        shape(&self.planes)
    }

    fn parameters(&self) -> usize {
        self.planes.len() * shape(&self.planes).0
    }

    fn weight(&self, parameters: &[T], base: Matrix<T>, _moment: Moment) -> Matrix<T> {
        let rows = shape(&self.planes).0;
        add_planes(&self.planes, base, |plane, row| parameters[plane * rows + row])
    }

    fn gradient(&self, _: &[T], _: &Matrix<T>, product: &WeightGradient<'_, T>, _: Moment, out: &mut [T]) {
        let rows = shape(&self.planes).0.max(1);
        for (signs, out) in self.planes.iter().zip(out.chunks_mut(rows)) {
            for (out, product) in out.iter_mut().zip(products(signs, product)) {
                *out += T::of(product);
            }
        }
    }
}
