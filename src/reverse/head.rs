//! What follows the last block: final norm, projection, classes, soft cap; and its reverse.

use rayon::prelude::*;

use super::{
    Linear, Matrix, Norm, NormGradient, Real, ReverseError, TakeGradient, WeightGradient,
    block::read_norm,
    linear::{apply_together, reverse_together, shape},
    matrix::multiply_transposed,
};
use crate::forward::{Model, WeightSource};

/// Places of a head's linears in [`WeightGradient::place`]: the projection in front of the classes, and the classes,
/// with the first class as index.
pub const PROJECTION: usize = 0;
/// See [`PROJECTION`].
pub const CLASSES: usize = 1;

/// The head of a model with its small weights in memory. The classes' weights are read piece by piece.
#[derive(Debug, Clone)]
pub struct Head<'a, T> {
    model: &'a Model,
    /// The final norm.
    pub norm: Option<Norm<T>>,
    /// OPT's projection to narrower embeddings.
    pub projection: Option<Linear<T>>,
    cap: Option<T>,
}

/// What a head's reverse needs of its forward pass.
#[derive(Debug)]
pub struct HeadTape<T> {
    hidden: Matrix<T>,
    /// Input of the projection, where there is one.
    normed: Option<Matrix<T>>,
}

/// Gradients of a head's input and of its norm.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadGradient<T> {
    /// `[tokens, hidden]`.
    pub hidden: Matrix<T>,
    /// Of [`Head::norm`].
    pub norm: Option<NormGradient<T>>,
}

impl<'a, T: Real> Head<'a, T> {
    /// Reads the small weights.
    ///
    /// # Errors
    /// [`ReverseError::Unsupported`] for an encoder's head or a model without one; as [`WeightSource::read`].
    pub fn read(model: &'a Model, source: &dyn WeightSource) -> Result<Self, ReverseError> {
        let missing = |part| ReverseError::Unsupported { place: "the model's head".to_owned(), part };
        let Some(classes) = &model.head else { return Err(missing("no classes")) };
        if model.transform.is_some() || model.head_bias.is_some() {
            return Err(missing("a transform or bias of its own"));
        }
        let norm = model.final_norm.as_ref().map(|norm| read_norm(norm, source, model.hidden)).transpose()?;
        let projection = match &model.project_out {
            Some(linear) => Some(Linear::new(&linear.weight, linear.read(source)?)?),
            None => None,
        };
        let top = match &projection {
            Some(linear) => {
                shape("the head's projection", model.hidden, linear.weight.columns)?;
                linear.weight.rows
            }
            None => model.hidden,
        };
        shape(&classes.weight, top, classes.columns)?;
        Ok(Self { model, norm, projection, cap: model.logit_cap.map(|cap| T::of(f64::from(cap))) })
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.model.classes()
    }

    /// Channels that the classes read.
    #[must_use]
    pub fn width(&self) -> usize {
        self.projection.as_ref().map_or(self.model.hidden, |linear| linear.weight.rows)
    }

    /// What the classes read, `[tokens, width]`, from the last hidden states, `[tokens, hidden]`.
    #[must_use]
    pub fn forward(&self, hidden: Matrix<T>) -> (Matrix<T>, HeadTape<T>) {
        let normed = self.norm.as_ref().map_or_else(|| hidden.clone(), |norm| norm.apply(&hidden));
        match &self.projection {
            Some(linear) => {
                let top = apply_together(std::slice::from_ref(linear), &normed);
                (top, HeadTape { hidden, normed: Some(normed) })
            }
            None => (normed, HeadTape { hidden, normed: None }),
        }
    }

    /// Gradients from that of what the classes read; that of the projection goes to `take`.
    ///
    /// # Errors
    /// The one that `take` gives.
    pub fn reverse(
        &self,
        tape: &HeadTape<T>,
        d: Matrix<T>,
        take: &mut TakeGradient<'_, T>,
    ) -> Result<HeadGradient<T>, ReverseError> {
        let mut hidden = match (&self.projection, &tape.normed) {
            (Some(linear), Some(normed)) => {
                let outputs = linear.weight.rows;
                take(&WeightGradient { place: (PROJECTION, 0), x: normed, d: &d, first: 0, outputs })?;
                reverse_together(std::slice::from_ref(linear), &d)
            }
            _ => d,
        };
        let norm = self.norm.as_ref().map(|norm| norm.reverse(&tape.hidden, &mut hidden));
        Ok(HeadGradient { hidden, norm })
    }

    /// Weights of the classes `first..first + rows`, `[rows, width]`.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn class_weights(
        &self,
        source: &dyn WeightSource,
        first: usize,
        rows: usize,
    ) -> Result<Matrix<T>, ReverseError> {
        let Some(classes) = &self.model.head else { return Ok(Matrix::default()) };
        let mut values = vec![0.0; rows * classes.columns];
        source.read(&classes.weight, false, first, &mut values)?;
        Ok(Matrix { rows, columns: classes.columns, values: T::from_singles(values) })
    }

    /// Logits of the classes whose weights are given, `[tokens, classes]`.
    #[must_use]
    pub fn logits(&self, top: &Matrix<T>, weights: &Matrix<T>) -> Matrix<T> {
        let mut logits = multiply_transposed(top, weights);
        if let Some(cap) = self.cap {
            logits.values.par_chunks_mut(1 << 14).for_each(|part| {
                for logit in part {
                    *logit = cap * (*logit / cap).tanh();
                }
            });
        }
        logits
    }

    /// Turns the gradient of capped logits into that of the logits before.
    pub(super) fn reverse_cap(&self, logits: &Matrix<T>, d: &mut Matrix<T>) {
        let Some(cap) = self.cap else { return };
        d.values.par_chunks_mut(1 << 14).zip(logits.values.par_chunks(1 << 14)).for_each(|(d, logits)| {
            for (d, logit) in d.iter_mut().zip(logits) {
                let t = *logit / cap;
                *d *= T::ONE - t * t;
            }
        });
    }
}
