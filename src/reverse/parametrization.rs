//! What a linear's weight is made of while it is trained.

use super::{Matrix, Real, WeightGradient};

/// Where in a training one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
}

impl Moment {
    /// From 0 at the first step to 1 at the last.
    #[must_use]
    pub fn progress(self) -> f64 {
        if self.steps < 2 { 0.0 } else { self.step.min(self.steps - 1) as f64 / (self.steps - 1) as f64 }
    }
}

/// A weight as a function of trained parameters and of a fixed base.
///
/// For one moment it must give the same weight whenever it is asked: the forward pass and its reverse compute it apart.
pub trait Parametrization<T: Real>: Send + Sync {
    /// Outputs and inputs of the weights that it makes.
    fn shape(&self) -> (usize, usize);

    /// Number of parameters.
    fn parameters(&self) -> usize;

    /// Whether [`Self::gradient`] and [`Self::penalty`] read the base.
    fn needs_base(&self) -> bool {
        false
    }

    /// The weight, `[output, input]`, from the base of the same shape.
    fn weight(&self, parameters: &[T], base: Matrix<T>, moment: Moment) -> Matrix<T>;

    /// Adds a batch's gradient of the parameters to `out`. `base` is empty unless [`Self::needs_base`].
    fn gradient(
        &self,
        parameters: &[T],
        base: &Matrix<T>,
        product: &WeightGradient<'_, T>,
        moment: Moment,
        out: &mut [T],
    );

    /// What is added to the loss besides, once per step; its gradient goes to `out`. `base` is as in [`Self::gradient`].
    fn penalty(&self, _parameters: &[T], _base: &Matrix<T>, _moment: Moment, _out: &mut [T]) -> f64 {
        0.0
    }
}
