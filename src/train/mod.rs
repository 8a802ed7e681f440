//! The training stage: finds what gradients through a whole model have to find, behind the closed forms.
//!
//! Whoever wants something trained brings, for each tensor, a [`Subject`]: a [`Parametrization`] of its weight and the
//! parameters to begin with. A [`Job`] adds what all of them share: a student and, where the loss has one, a teacher,
//! where the fixed parts of the weights lie, the text, and how to train. [`train`] gives the parameters back in the order
//! of the subjects. It knows neither passes nor codecs: what parameters mean is the caller's business
//! (`src/solve/trained.rs` makes subjects of encodings, and codes of parameters).
//!
//! Its state lies in one file of the work folder, replaced as a whole, that belongs to an identity. A run that was
//! stopped or killed goes on behind the last step that was saved and comes to the same bytes. Memory holds the
//! parameters with the optimizer's state, and beside them one block at a time ([`memory`]).

mod error;
pub mod memory;
mod saved;
#[cfg(test)]
mod tests;

pub use error::TrainError;
pub use memory::Held;

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};

use self::saved::Saved;
use crate::{
    forward::{Limits, WeightSource},
    reverse::{Budget, Loss, Objective, Parametrization, Trained, Training, TrainingState, Weighted},
};

/// A tensor that is trained.
pub struct Subject<'a> {
    /// Logical name of a linear's weight.
    pub tensor: String,
    /// What its weight is made of.
    pub parametrization: Box<dyn Parametrization<f32> + 'a>,
    /// The parameters before the first step.
    pub start: Vec<f32>,
}

/// Everything that a training needs.
pub struct Job<'a> {
    /// The model whose linears are trained; its source gives every other weight.
    pub student: Weighted<'a>,
    /// What its logits should be, where the loss has a teacher.
    pub teacher: Option<Weighted<'a>>,
    /// The fixed parts of the trained weights, under the same names.
    pub bases: &'a dyn WeightSource,
    /// What is trained.
    pub subjects: Vec<Subject<'a>>,
    /// What is made small.
    pub loss: Loss,
    /// How.
    pub training: Training,
    /// The text, sequences of equal length.
    pub sequences: &'a [Vec<u32>],
    /// Folder of the saved state and of hidden states.
    pub folder: PathBuf,
    /// What a saved state belongs to: whatever decides the result beside the names, the parameters to begin with, loss
    /// and settings, which are added here.
    pub identity: String,
    /// Set from outside to stop behind the step in hand.
    pub stop: &'a AtomicBool,
    /// Hears of every step: how many are done, of how many, and the loss before this one.
    pub progress: &'a dyn Fn(u64, u64, f64),
}

/// How a training went, for the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Steps.
    pub steps: u64,
    /// Mean loss over the first tenth of the steps, each before its step.
    pub first_loss: f64,
    /// The same over the last tenth.
    pub last_loss: f64,
}

impl Report {
    /// From the losses of all steps.
    #[must_use]
    pub fn of(losses: &[f64]) -> Self {
        let part = losses.len().div_ceil(10);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        let (first_loss, last_loss) = (mean(&losses[..part]), mean(&losses[losses.len() - part..]));
        Self { steps: losses.len() as u64, first_loss, last_loss }
    }
}

/// What a training came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Parameters of every subject, in their order.
    pub parameters: Vec<Vec<f32>>,
    /// How it went.
    pub report: Report,
}

/// Trains, or takes up what an earlier call with the same identity saved. Same job, same bytes, for any number of
/// threads and wherever it was interrupted.
///
/// # Errors
/// [`TrainError::Stopped`] when asked to stop, with the state saved; [`TrainError::Reverse`] for a model, parameters or
/// text that cannot be trained, or a loss that overflows; [`TrainError::Io`] when the disk fails.
pub fn train(job: Job<'_>) -> Result<Outcome, TrainError> {
    let identity = identity(&job);
    let (mut trained, mut start) = (Vec::new(), Vec::new());
    for Subject { tensor, parametrization, start: parameters } in job.subjects {
        trained.push(Trained { tensor, parametrization });
        start.push(parameters);
    }
    let names: Vec<String> = trained.iter().map(|trained| trained.tensor.clone()).collect();
    let mut saved = Saved::new(&job.folder, identity)?;
    let fresh = TrainingState::new(names, start);
    let (mut state, mut losses) = saved.read(&fresh).unwrap_or((fresh, Vec::new()));
    let limits = Limits { batch_tokens: memory::BATCH_TOKENS, ..Limits::default() };
    let budget = Budget { limits, class_bytes: memory::CLASS_BYTES, folder: Some(job.folder.clone()) };
    let objective = Objective::new(job.student, job.teacher, job.bases, trained, job.loss, budget)?;
    let steps = job.training.schedule.steps;
    let mut failure = None;
    job.training.run(&objective, &mut state, job.sequences, &mut |step, state| {
        losses.push(step.loss);
        (job.progress)(step.step + 1, steps, step.loss);
        let stop = job.stop.load(Ordering::SeqCst);
        if stop || step.step + 1 == steps || saved.is_due() {
            failure = saved.write(state, &losses).err();
        }
        Ok(if stop || failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    match failure {
        Some(failure) => Err(failure),
        None if state.step() < steps => Err(TrainError::Stopped { step: state.step(), steps }),
        None => Ok(Outcome { parameters: state.parameters, report: Report::of(&losses) }),
    }
}

/// What a saved state must have been made with.
fn identity(job: &Job<'_>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(job.identity.as_bytes());
    add(format!("{:?} {:?}", job.loss, job.training).as_bytes());
    for Subject { tensor, start, .. } in &job.subjects {
        add(tensor.as_bytes());
        add(bytemuck::cast_slice(start));
    }
    hasher.finalize().to_hex().to_string()
}
