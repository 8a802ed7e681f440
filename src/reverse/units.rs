//! Parameters in units of their own.

use super::{Matrix, Moment, Parametrization, Real, WeightGradient};

/// Another parametrization, whose parameters are `unit` times these: with one learning rate, tensors of large and of
/// small scale move by the same share.
#[derive(Debug, Clone)]
pub struct InUnits<P> {
    /// What it stands for.
    pub inner: P,
    /// What 1 means.
    pub unit: f32,
}

impl<P> InUnits<P> {
    fn inner_parameters<T: Real>(&self, parameters: &[T]) -> Vec<T> {
        let unit = T::of(f64::from(self.unit));
        parameters.iter().map(|parameter| *parameter * unit).collect()
    }

    fn add<T: Real>(&self, inner: Vec<T>, out: &mut [T]) {
        let unit = T::of(f64::from(self.unit));
        for (out, inner) in out.iter_mut().zip(inner) {
            *out += unit * inner;
        }
    }
}

impl<T: Real, P: Parametrization<T>> Parametrization<T> for InUnits<P> {
    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn parameters(&self) -> usize {
        self.inner.parameters()
    }

    fn needs_base(&self) -> bool {
        self.inner.needs_base()
    }

    fn weight(&self, parameters: &[T], base: Matrix<T>, moment: Moment) -> Matrix<T> {
        self.inner.weight(&self.inner_parameters(parameters), base, moment)
    }

    fn gradient(
        &self,
        parameters: &[T],
        base: &Matrix<T>,
        product: &WeightGradient<'_, T>,
        moment: Moment,
        out: &mut [T],
    ) {
        let mut inner = vec![T::ZERO; out.len()];
        self.inner.gradient(&self.inner_parameters(parameters), base, product, moment, &mut inner);
        self.add(inner, out);
    }

    fn penalty(&self, parameters: &[T], base: &Matrix<T>, moment: Moment, out: &mut [T]) -> f64 {
        let mut inner = vec![T::ZERO; out.len()];
        let penalty = self.inner.penalty(&self.inner_parameters(parameters), base, moment, &mut inner);
        self.add(inner, out);
        penalty
    }
}
