//! Trains the parameters of an objective.

use std::ops::ControlFlow;

use super::{
    AdamWSettings, Moment, Objective, ReverseError, Schedule, linear::shape, random::Stream,
    training_state::TrainingState,
};

/// How a training goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Training {
    /// The optimizer's settings.
    pub optimizer: AdamWSettings,
    /// The learning rates; `schedule.steps` is how long it goes.
    pub schedule: Schedule,
    /// Sequences of a step.
    pub batch: usize,
    /// Seed of the order of the sequences, another one in each epoch; none for the order in which they are given.
    pub shuffle: Option<u64>,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Which, from zero.
    pub step: u64,
    /// The loss before the step.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub rate: f64,
}

/// Hears of every step and of the state behind it; may end the training.
pub type AfterStep<'f> = dyn FnMut(&StepReport, &TrainingState) -> Result<ControlFlow<()>, ReverseError> + 'f;

impl Training {
    /// Steps of `epochs` rounds over so many sequences.
    #[must_use]
    pub fn steps_of(epochs: u64, sequences: usize, batch: usize) -> u64 {
        epochs * sequences.div_ceil(batch.max(1)) as u64
    }

    /// The sequences of a step, by index. Within an epoch each comes once; the last step of an epoch may have fewer.
    #[must_use]
    pub fn sequences_of(&self, step: u64, sequences: usize) -> Vec<usize> {
        let batch = self.batch.max(1);
        let per_epoch = sequences.div_ceil(batch).max(1) as u64;
        let (epoch, within) = (step / per_epoch, (step % per_epoch) as usize);
        let order = match self.shuffle {
            Some(seed) => Stream::new(seed, "order of sequences", epoch).order(sequences),
            None => (0..sequences).collect(),
        };
        order.into_iter().skip(within * batch).take(batch).collect()
    }

    /// Goes on from `state` until the schedule ends or `after_step` says so. A training that was stopped behind any step
    /// and goes on from the state there comes to the same bytes.
    ///
    /// # Errors
    /// As [`Objective::gradient`]; [`ReverseError::NotFinite`] when loss or gradients overflow, with the state as it was
    /// before the step; whatever `after_step` gives.
    pub fn run(
        &self,
        objective: &Objective<'_, f32>,
        state: &mut TrainingState,
        sequences: &[Vec<u32>],
        after_step: &mut AfterStep<'_>,
    ) -> Result<(), ReverseError> {
        let trained = objective.trained();
        if !trained.iter().map(|trained| &trained.tensor).eq(&state.names) {
            return Err(ReverseError::saved("is of other tensors than those that are trained"));
        }
        for lists in [&state.parameters, &state.optimizer.first, &state.optimizer.second] {
            shape("lists of parameters", trained.len(), lists.len())?;
            for (trained, list) in trained.iter().zip(lists) {
                shape(&trained.tensor, trained.parametrization.parameters(), list.len())?;
            }
        }
        if sequences.is_empty() {
            return Err(ReverseError::Sequences { what: "there are no sequences to train on".to_owned() });
        }
        let steps = self.schedule.steps;
        while state.step() < steps {
            let step = state.step();
            let chosen: Vec<Vec<u32>> =
                self.sequences_of(step, sequences.len()).into_iter().map(|index| sequences[index].clone()).collect();
            let (loss, gradients) = objective.gradient(&chosen, &state.parameters, Moment { step, steps })?;
            if !loss.is_finite() {
                return Err(ReverseError::NotFinite { step, what: "loss" });
            }
            let rate = self.schedule.rate(step);
            let gradient_norm = state.optimizer.update(&self.optimizer, rate, &mut state.parameters, &gradients);
            if !gradient_norm.is_finite() {
                return Err(ReverseError::NotFinite { step, what: "gradient" });
            }
            if after_step(&StepReport { step, loss, gradient_norm, rate }, state)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
