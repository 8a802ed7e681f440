//! Evaluates whole models: perplexity, and how far one model's predictions are from another's.
//!
//! Logits are never stored: for every token run the sums that the figures need, over pieces of the vocabulary.

use rayon::prelude::*;

use super::Figure;
use crate::{
    Result,
    compute::SharedDevice,
    forward::{Head, Limits, Matrix, Model, Store, WeightSource, exp, on_device},
};

/// Bytes of the output projection that are in memory at a time.
const CLASS_BYTES: usize = 64 << 20;

/// A model and its weights.
#[derive(Clone, Copy)]
pub struct Evaluated<'a> {
    /// What it computes.
    pub model: &'a Model,
    /// Its weights.
    pub source: &'a dyn WeightSource,
}

/// What a model is evaluated on.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// Windows of equal length.
    pub sequences: &'a [Vec<u32>],
    /// The first token of each window that counts as predicted.
    pub scored_from: usize,
}

impl<'a> Windows<'a> {
    /// All that can be predicted counts.
    #[must_use]
    pub fn all(sequences: &'a [Vec<u32>]) -> Self {
        Self { sequences, scored_from: 0 }
    }
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFigures {
    /// Predicted tokens.
    pub tokens: usize,
    /// Negative log-likelihood, nats per predicted token; none for encoders.
    pub loss: Option<Figure>,
    /// Share of predicted tokens that were the most likely ones; none for encoders.
    pub accuracy: Option<Figure>,
    /// Comparison with the reference model.
    pub comparison: Option<Comparison>,
    /// Batches that the device failed at and the processor did instead.
    pub device_failures: u64,
}

/// How far a model is from its reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// KL(reference ‖ model), nats per token.
    pub divergence: Figure,
    /// Its 99th percentile over tokens.
    pub divergence_p99: Figure,
    /// Share of tokens whose most likely class agrees.
    pub agreement: Figure,
    /// Relative error of the last hidden states.
    pub hidden_error: f64,
}

/// Sums of one token over the classes seen so far.
#[derive(Debug, Clone, Copy)]
struct Running {
    largest: f32,
    sum: f64,
    best: u32,
    target: f32,
    token: Option<u32>,
    reference_largest: f32,
    reference_sum: f64,
    reference_best: u32,
    /// Σ e^(r − largest) (r − m).
    gap: f64,
}

impl Running {
    const EMPTY: Self = Self {
        largest: f32::NEG_INFINITY,
        sum: 0.0,
        best: 0,
        target: 0.0,
        token: None,
        reference_largest: f32::NEG_INFINITY,
        reference_sum: 0.0,
        reference_best: 0,
        gap: 0.0,
    };

    /// Adds classes `first..` of one token.
    fn add(&mut self, logits: &[f32], reference: Option<&[f32]>, first: usize, target: Option<u32>) {
        self.token = target;
        if let Some(logit) =
            target.and_then(|target| (target as usize).checked_sub(first)).and_then(|at| logits.get(at))
        {
            self.target = *logit;
        }
        let (index, largest) = largest(logits);
        if largest > self.largest {
            self.sum *= f64::from(exp(self.largest - largest));
            (self.largest, self.best) = (largest, (first + index) as u32);
        }
        self.sum += sum_of(logits, |logit| exp(logit - self.largest));
        let Some(reference) = reference else { return };
        let (index, largest_reference) = self::largest(reference);
        if largest_reference > self.reference_largest {
            let factor = f64::from(exp(self.reference_largest - largest_reference));
            self.reference_sum *= factor;
            self.gap *= factor;
            (self.reference_largest, self.reference_best) = (largest_reference, (first + index) as u32);
        }
        let top = self.reference_largest;
        self.reference_sum += sum_of(reference, |logit| exp(logit - top));
        for (reference, logits) in reference.chunks(256).zip(logits.chunks(256)) {
            let mut gap = 0.0;
            for (r, m) in reference.iter().zip(logits) {
                gap += f64::from(exp(r - top) * (r - m));
            }
            self.gap += gap;
        }
    }

    fn log_sum(&self) -> f64 {
        f64::from(self.largest) + self.sum.ln()
    }

    fn loss(&self) -> f64 {
        self.log_sum() - f64::from(self.target)
    }

    fn hit(&self) -> f64 {
        f64::from(u8::from(self.token == Some(self.best)))
    }

    fn divergence(&self) -> f64 {
        let reference = f64::from(self.reference_largest) + self.reference_sum.ln();
        (self.gap / self.reference_sum - reference + self.log_sum()).max(0.0)
    }
}

fn largest(logits: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (index, *logit);
        }
    }
    best
}

fn sum_of(values: &[f32], term: impl Fn(f32) -> f32) -> f64 {
    values
        .chunks(256)
        .map(|chunk| {
            let mut lanes = [0.0_f32; 16];
            for part in chunk.chunks(16) {
                for (lane, value) in lanes.iter_mut().zip(part) {
                    *lane += term(*value);
                }
            }
            lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>()
        })
        .sum()
}

/// Takes some rows of logits.
pub type TakeLogits<'a> = dyn FnMut(&Matrix) -> std::io::Result<()> + 'a;

/// Evaluates `model` on windows, and next to `reference` where there is one. `logits` gets every
/// batch's logits (or last hidden states, of a model without a head), row after row, for whoever wants them whole.
/// `progress` hears of blocks done, of how many. A device computes blocks and the output projection, where there is one; the
/// sums over classes are made here.
///
/// # Errors
/// Whatever the forward pass or the disk fails with.
pub fn evaluate_model(
    model: Evaluated<'_>,
    reference: Option<Evaluated<'_>>,
    Windows { sequences: windows, scored_from }: Windows<'_>,
    limits: &Limits,
    device: Option<&SharedDevice>,
    mut logits: Option<&mut TakeLogits<'_>>,
    progress: &dyn Fn(usize, usize),
) -> Result<ModelFigures> {
    let length = windows.first().map_or(0, Vec::len);
    let blocks = model.model.blocks.len() + reference.map_or(0, |reference| reference.model.blocks.len());
    let (mut done, mut failures) = (0, 0);
    let mut run = |evaluated: Evaluated<'_>| -> Result<Store> {
        let store = evaluated.model.embed_all(evaluated.source, windows, limits, None)?;
        for index in 0..evaluated.model.blocks.len() {
            failures += evaluated.model.advance_on(device, index, evaluated.source, &store, limits)?;
            done += 1;
            progress(done, blocks);
        }
        let head = evaluated.model.head(evaluated.source)?;
        for batch in 0..store.batches() {
            let mut state = store.read(batch)?;
            state.hidden = head.top(&state.hidden);
            store.write(batch, &state)?;
        }
        Ok(store)
    };
    let tops = run(model)?;
    let reference_tops = reference.map(&mut run).transpose()?;
    let head = model.model.head(model.source)?;
    let reference_head = reference.map(|reference| reference.model.head(reference.source)).transpose()?;
    let mut running = vec![Running::EMPTY; windows.len() * length];
    let (mut difference, mut norm) = (0.0, 0.0);
    let classes = model.model.classes();
    let chunk = if logits.is_some() { classes } else { (CLASS_BYTES / 4 / model.model.hidden.max(1)).min(classes) };
    let chunk = chunk.max(1);
    let per_batch = limits.batch_sequences(length) * length;
    let shift = usize::from(model.model.causal);
    for first in (0..classes.max(1)).step_by(chunk) {
        let count = chunk.min(classes.saturating_sub(first));
        let weights = head.classes(model.source, first, count)?;
        let reference_weights = match (&reference_head, reference) {
            (Some(head), Some(reference)) => Some(head.classes(reference.source, first, count)?),
            _ => None,
        };
        for batch in 0..tops.batches() {
            let top = tops.read(batch)?.hidden;
            let reference_top = reference_tops.as_ref().map(|tops| tops.read(batch)).transpose()?.map(|s| s.hidden);
            if first == 0
                && let Some(reference) = &reference_top
            {
                for (value, reference) in top.values.iter().zip(&reference.values) {
                    difference += f64::from(value - reference).powi(2);
                    norm += f64::from(*reference).powi(2);
                }
            }
            if classes == 0 {
                if let Some(logits) = &mut logits {
                    logits(&top)?;
                }
                continue;
            }
            let mut logits_of = |head: &Head<'_>, top: &Matrix, weights: &Matrix| {
                let product = device.map(|device| device.attempt(|device| on_device::product(device, top, weights)));
                match product {
                    Some(Ok(product)) => head.finish(product, weights.rows, first),
                    Some(Err(_)) => {
                        failures += 1;
                        head.logits(top, weights, first)
                    }
                    None => head.logits(top, weights, first),
                }
            };
            let values = logits_of(&head, &top, &weights);
            if let Some(logits) = &mut logits {
                logits(&values)?;
            }
            let reference_values = match (&reference_head, &reference_top, &reference_weights) {
                (Some(head), Some(top), Some(weights)) => Some(logits_of(head, top, weights)),
                _ => None,
            };
            let tokens = &mut running[batch * per_batch..][..values.rows];
            tokens.par_iter_mut().enumerate().for_each(|(row, running)| {
                let token = batch * per_batch + row;
                let (window, position) = (token / length, token % length);
                let target = windows[window].get(position + 1).copied().filter(|_| shift == 1);
                running.add(values.row(row), reference_values.as_ref().map(|values| values.row(row)), first, target);
            });
        }
    }
    let predicted = length.saturating_sub(shift);
    let skipped = scored_from.saturating_sub(shift).min(predicted);
    let per_window = |value: &dyn Fn(&Running) -> f64| -> Vec<Vec<f64>> {
        running.chunks(length.max(1)).map(|window| window[skipped..predicted].iter().map(value).collect()).collect()
    };
    let predicts = model.model.causal && classes > 0;
    let loss = predicts.then(|| Figure::mean(&per_window(&Running::loss)));
    let accuracy = predicts.then(|| Figure::mean(&per_window(&Running::hit)));
    let comparison = reference.map(|_| {
        if classes == 0 {
            let hidden_error = (difference / norm.max(f64::MIN_POSITIVE)).sqrt();
            let none = Figure::NONE;
            return Comparison { divergence: none, divergence_p99: none, agreement: none, hidden_error };
        }
        let divergences = per_window(&Running::divergence);
        Comparison {
            divergence: Figure::mean(&divergences),
            divergence_p99: Figure::percentile(&divergences, 0.99),
            agreement: Figure::mean(&per_window(&|running| {
                f64::from(u8::from(running.best == running.reference_best))
            })),
            hidden_error: (difference / norm.max(f64::MIN_POSITIVE)).sqrt(),
        }
    });
    let tokens = windows.len() * (predicted - skipped);
    Ok(ModelFigures { tokens, loss, accuracy, comparison, device_failures: failures })
}
