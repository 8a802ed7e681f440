//! Masks that are trained through the whole model together with the weights that they keep, from a mask that was found
//! layer by layer.
//!
//! Fang et al., "MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models" (arXiv 2409.17481, §3.2, §3.3):
//! Gumbel-softmax over six candidates per quad, a prior, a penalty that keeps weights large. MaskLLM leaves the weights as
//! they are and sees billions of tokens; on little text most is gained by weights that move along.

use serde::{Serializer, ser::SerializeMap};
use toml::Value;

use super::{Mask, Pattern};
use crate::{
    codec::{CodecError, StoredMatrix, sparse::Sparse},
    passes::TrainingSettings,
    reverse::{AdamWSettings, Decay, Loss, MaskLogits, MaskedWeights, Parametrization, Schedule, Sharpness, Training},
};

/// Keys of learning, sorted.
pub const KEYS: [&str; 11] = [
    "batch",
    "learning_rate",
    "logit_scale",
    "loss",
    "noise",
    "prior",
    "prior_strength",
    "regularisation",
    "steps",
    "temperature",
    "weight_rate",
];

/// How masks are learned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learning {
    /// Steps.
    pub steps: u64,
    /// Sequences of a step.
    pub batch: usize,
    /// The highest learning rate of logits.
    pub learning_rate: f64,
    /// That of weights, as a share of their matrix's root mean square.
    pub weight_rate: f64,
    /// By how many deviations of the logits each weight that a candidate shares with the prior sets it apart.
    pub prior_strength: f64,
    /// How sharp the choice is.
    pub sharpness: Sharpness,
    /// What is made small: [`Loss::Divergence`] from the dense model, or [`Loss::NextToken`].
    pub loss: Loss,
}

impl Default for Learning {
    fn default() -> Self {
        let sharpness = Sharpness { scale: [1e2, 5e2], temperature: [1.0, 0.2], noise: 0.0, regularisation: 0.0 };
        Self {
            steps: 40,
            batch: 12,
            learning_rate: 0.0016,
            weight_rate: 0.007,
            prior_strength: 6.0,
            sharpness,
            loss: Loss::Divergence,
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::Integer(number) => Some(*number as f64),
        _ => None,
    }
}

impl Learning {
    /// Takes one of [`KEYS`] but `prior`.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<(), &'static str> {
        let whole = |most: i64, expected| match value {
            Value::Integer(number) if (1..=most).contains(number) => Ok(*number as usize),
            _ => Err(expected),
        };
        let within = |low: f64, high: f64, expected| {
            number(value).filter(|number| (low..=high).contains(number)).ok_or(expected)
        };
        let pair = |expected: &'static str| -> Result<[f64; 2], &'static str> {
            let list = value.as_array().filter(|list| list.len() == 2).ok_or(expected)?;
            let at = |index: usize| number(&list[index]).filter(|number| (1e-6..=1e6).contains(number)).ok_or(expected);
            Ok([at(0)?, at(1)?])
        };
        match key {
            "steps" => self.steps = whole(1_000_000, "a whole number from 1 to 1000000")? as u64,
            "batch" => self.batch = whole(4096, "a whole number from 1 to 4096")?,
            "learning_rate" => self.learning_rate = within(1e-9, 1.0, "a number above 0.0, at most 1.0")?,
            "weight_rate" => self.weight_rate = within(0.0, 1.0, "a number from 0.0 to 1.0")?,
            "prior_strength" => self.prior_strength = within(0.0, 1e3, "a number from 0.0 to 1000.0")?,
            "noise" => self.sharpness.noise = within(0.0, 10.0, "a number from 0.0 to 10.0")?,
            "regularisation" => self.sharpness.regularisation = within(0.0, 1.0, "a number from 0.0 to 1.0")?,
            "logit_scale" => self.sharpness.scale = pair("the first and the last, `[100.0, 500.0]`")?,
            "temperature" => self.sharpness.temperature = pair("the first and the last, `[1.0, 0.2]`")?,
            _ => {
                self.loss = match value.as_str() {
                    Some("divergence") => Loss::Divergence,
                    Some("next-token") => Loss::NextToken,
                    _ => return Err("\"divergence\" or \"next-token\""),
                }
            }
        }
        Ok(())
    }

    /// Its entries of a resolved recipe.
    pub(super) fn serialize_into<S: Serializer>(&self, map: &mut S::SerializeMap) -> Result<(), S::Error> {
        map.serialize_entry("batch", &self.batch)?;
        map.serialize_entry("learning_rate", &self.learning_rate)?;
        map.serialize_entry("logit_scale", &self.sharpness.scale)?;
        map.serialize_entry("loss", if self.loss == Loss::NextToken { "next-token" } else { "divergence" })?;
        map.serialize_entry("noise", &self.sharpness.noise)?;
        map.serialize_entry("prior_strength", &self.prior_strength)?;
        map.serialize_entry("regularisation", &self.sharpness.regularisation)?;
        map.serialize_entry("steps", &self.steps)?;
        map.serialize_entry("temperature", &self.sharpness.temperature)?;
        map.serialize_entry("weight_rate", &self.weight_rate)
    }

    /// How it is trained.
    #[must_use]
    pub fn training(&self) -> TrainingSettings {
        let Self { steps, batch, learning_rate: peak, loss, .. } = *self;
        let schedule = Schedule { peak, last: peak / 20.0, warmup: steps.min(5), steps, decay: Decay::Cosine };
        // The gradient of a logit is far below 1e-8 where the choice is clear.
        let optimizer = AdamWSettings { betas: [0.9, 0.95], epsilon: 1e-10, weight_decay: 0.0, clip: None };
        TrainingSettings { training: Training { optimizer, schedule, batch, shuffle: None }, loss }
    }
}

/// Numbers that are trained for each weight of a matrix.
#[must_use]
pub fn parameters(rows: usize, columns: usize) -> u64 {
    (rows * columns / 4 * 6 + rows * columns) as u64
}

/// What is trained of a matrix, and the parameters that it starts from.
pub type Start = (Box<dyn Parametrization<f32>>, Vec<f32>);

/// A matrix as [`Sparse`] stores it.
#[derive(Debug, Clone, Copy)]
pub struct Prior<'a> {
    /// The format.
    pub sparse: &'a Sparse,
    /// What is stored.
    pub stored: &'a StoredMatrix,
    /// The dense weights, `[rows, columns]`.
    pub dense: &'a [f32],
    /// Their shape.
    pub shape: (usize, usize),
}

impl Prior<'_> {
    fn masks(&self, learning: &Learning, name: &str, seed: u64) -> Result<MaskLogits, CodecError> {
        let ((rows, columns), Pattern { keep, of }) = (self.shape, self.sparse.pattern());
        let masks = MaskLogits::new(rows, columns, name, seed, learning.sharpness);
        masks.filter(|_| self.sparse.pattern() == Pattern::TWO_OF_FOUR).ok_or(CodecError::Pattern { keep, of })
    }

    /// What a parameter of 1 means as a weight: with the learning rate of logits, weights move at their own.
    fn unit(&self, learning: &Learning) -> f64 {
        let squares: f64 = self.dense.iter().map(|weight| f64::from(*weight) * f64::from(*weight)).sum();
        let unit = (squares / self.dense.len().max(1) as f64).sqrt();
        let unit = unit * learning.weight_rate / learning.learning_rate;
        // Where weights do not move, any unit does.
        if unit > 0.0 { unit } else { 1.0 }
    }

    fn of(&self, learning: &Learning, name: &str, seed: u64) -> Result<MaskedWeights, CodecError> {
        Ok(MaskedWeights::new(self.masks(learning, name, seed)?, self.unit(learning)))
    }

    /// Mask and weights as something to train, and the parameters to begin with: the weights kept as they are stored, the
    /// others dense.
    ///
    /// # Errors
    /// [`CodecError`] when what is stored is not of this format, or of another pattern than 2:4.
    pub fn parametrization(&self, learning: &Learning, name: &str, seed: u64) -> Result<Start, CodecError> {
        let (rows, columns) = self.shape;
        let parts: Vec<&[u8]> = self.stored.iter().map(Vec::as_slice).collect();
        let weights = self.sparse.decode(rows, columns, &parts)?;
        let mask = self.sparse.mask(rows, columns, parts.get(1).copied().unwrap_or_default())?;
        let kept: Vec<bool> = (0..rows * columns).map(|index| mask.keeps(index / columns, index % columns)).collect();
        let mut start = self.masks(learning, name, seed)?.initial(Some(&kept), learning.prior_strength);
        let unit = self.unit(learning);
        let all = weights.iter().zip(self.dense).zip(&kept);
        start
            .extend(all.map(|((stored, dense), kept)| (f64::from(if *kept { *stored } else { *dense }) / unit) as f32));
        Ok((Box::new(self.of(learning, name, seed)?), start))
    }

    /// What is stored of parameters of [`Prior::parametrization`]: of each quad the candidate with the largest logit.
    ///
    /// # Errors
    /// [`CodecError`] when the parameters are not those of this matrix.
    pub fn store(
        &self,
        learning: &Learning,
        name: &str,
        seed: u64,
        parameters: &[f32],
    ) -> Result<StoredMatrix, CodecError> {
        let (rows, columns) = self.shape;
        let both = self.of(learning, name, seed)?;
        let expected = both.logits() + rows * columns;
        if parameters.len() != expected {
            return Err(CodecError::Length { what: "parameters", expected, got: parameters.len() });
        }
        let kept = MaskLogits::mask(&parameters[..both.logits()]);
        let row_bytes = Mask::row_bytes(columns);
        let mut bits = vec![0_u8; rows * row_bytes];
        for (index, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
            let (row, column) = (index / columns, index % columns);
            bits[row * row_bytes + column / 8] |= 1 << (column % 8);
        }
        let mask = Mask::new(Pattern::TWO_OF_FOUR, rows, columns, bits)?;
        Ok(self.sparse.encode(&both.weights(parameters), &mask)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::Dtype,
        forward::Matrix,
        passes::mask::magnitude,
        reverse::{self, Moment},
    };

    const SHAPE: (usize, usize) = (6, 24);

    fn dense() -> Vec<f32> {
        (0..SHAPE.0 * SHAPE.1).map(|index| ((index * 37 % 101) as f32 - 50.3) / 64.0).collect()
    }

    /// Everything that a prior borrows: weights that are half of the dense ones where they are kept.
    fn stored(sparse: &Sparse) -> (Vec<f32>, Mask, StoredMatrix) {
        let dense = dense();
        let mask = magnitude(&dense, SHAPE.0, SHAPE.1, sparse.pattern()).unwrap();
        let halves: Vec<f32> = dense.iter().map(|weight| weight / 2.0).collect();
        let stored = sparse.encode(&halves, &mask).unwrap().into();
        (dense, mask, stored)
    }

    #[test]
    fn training_begins_with_the_prior_and_what_it_comes_to_is_stored() {
        let sparse = Sparse { keep: 2, of: 4, dtype: Dtype::F32 };
        let (dense, mask, stored) = stored(&sparse);
        let prior = Prior { sparse: &sparse, stored: &stored, dense: &dense, shape: SHAPE };
        let learning = Learning { prior_strength: 20.0, ..Learning::default() };
        let (parametrization, start) = prior.parametrization(&learning, "w", 7).unwrap();
        assert_eq!(start.len() as u64, parameters(SHAPE.0, SHAPE.1));
        assert_eq!(start.len(), parametrization.parameters());
        // Sharp as it is, the choice is the prior's from the first step on.
        let base = reverse::Matrix::<f32>::from(Matrix { rows: SHAPE.0, columns: SHAPE.1, values: dense.clone() });
        let weight = parametrization.weight(&start, base, Moment { step: 0, steps: 9 });
        for (index, (found, dense)) in weight.values.iter().zip(&dense).enumerate() {
            let expected = if mask.keeps(index / SHAPE.1, index % SHAPE.1) { dense / 2.0 } else { 0.0 };
            assert!((found - expected).abs() < 1e-5, "{index}: {found}, expected {expected}");
        }
        let same = prior.store(&learning, "w", 7, &start).unwrap();
        assert_eq!(same[1], stored[1]);

        // A quad whose largest logit is of another candidate: the weights there are what was dense.
        let mut moved = start.clone();
        let quad = 9;
        let kept: Vec<bool> = (0..4).map(|column| mask.keeps(quad / 6, quad % 6 * 4 + column)).collect();
        let opposite =
            reverse::CANDIDATES.iter().position(|c| c.iter().zip(&kept).all(|(c, k)| (*c == 0) == *k)).unwrap();
        moved[quad * 6 + opposite] = 9.0;
        let parts = prior.store(&learning, "w", 7, &moved).unwrap();
        let bytes: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let decoded = sparse.decode(SHAPE.0, SHAPE.1, &bytes).unwrap();
        for (column, kept) in kept.iter().enumerate() {
            let at = quad * 4 + column;
            let expected = if *kept { 0.0 } else { dense[at] };
            assert!((decoded[at] - expected).abs() < 1e-5, "column {column}");
        }
        assert!(prior.store(&learning, "w", 7, &moved[1..]).is_err());
    }

    #[test]
    fn other_patterns_and_broken_matrices_are_refused() {
        let sparse = Sparse { keep: 1, of: 4, dtype: Dtype::F32 };
        let (dense, _, mut stored) = stored(&sparse);
        let learning = Learning::default();
        let refused = |stored: &StoredMatrix, sparse: &Sparse| {
            Prior { sparse, stored, dense: &dense, shape: SHAPE }.parametrization(&learning, "w", 7).is_err()
        };
        assert!(refused(&stored, &sparse));
        stored.pop();
        assert!(refused(&stored, &Sparse { keep: 2, of: 4, dtype: Dtype::F32 }));
    }
}
