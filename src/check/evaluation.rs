//! Perplexity and divergence against their limits.

use super::{
    Artifact,
    limits::{above, below},
    policy::{Evaluation, Limits},
};
use crate::{
    Result, calibration,
    checkpoint::Checkpoint,
    evaluate::{Evaluated, ModelFigures, Windows, evaluate_model},
    forward::{self, AsStored, Model},
    layout::LogicalCheckpoint,
    verify::Finding,
};

/// Windows where the policy does not say, as for `bantam eval`.
const DEFAULT_CONTEXT: usize = 2048;

pub(super) fn predictions(artifact: &Artifact<'_>, on: &Evaluation, limits: &Limits) -> Result<Vec<Finding>> {
    let model = Model::as_run(artifact.model, None)?;
    let context = on.context.unwrap_or_else(|| model.max_positions.unwrap_or(DEFAULT_CONTEXT).min(DEFAULT_CONTEXT));
    let root = artifact.model.checkpoint().root();
    let sequences = calibration::windows(root, model.vocabulary, model.max_positions, &on.text, context)?.sequences;
    let reference_source = match on.reference.as_ref().filter(|_| limits.compares()) {
        Some(path) => Some(LogicalCheckpoint::open(Checkpoint::open(path)?)?),
        None => None,
    };
    let reference = reference_source.as_ref().map(|source| Model::as_run(source, None)).transpose()?;
    let reference_stored = reference_source.as_ref().map(AsStored);
    if let Some(reference) = &reference
        && (reference.vocabulary, reference.classes()) != (model.vocabulary, model.classes())
    {
        let message = "the reference has another vocabulary: predictions cannot be compared".into();
        let finding = Finding::of_all("reference", message);
        return Ok(vec![finding.with(model.vocabulary, reference.vocabulary)]);
    }
    let memory = forward::Limits::default();
    let reference = reference.as_ref().zip(reference_stored.as_ref());
    let reference = reference.map(|(model, source)| Evaluated { model, source });
    let this = Evaluated { model: &model, source: &AsStored(artifact.model) };
    let figures = evaluate_model(this, reference, Windows::all(&sequences), &memory, None, None, &|_, _| {})?;
    let before = match reference.filter(|_| limits.max_perplexity_increase.is_some()) {
        Some(reference) => {
            Some(evaluate_model(reference, None, Windows::all(&sequences), &memory, None, None, &|_, _| {})?)
        }
        None => None,
    };
    Ok(findings(&figures, before.as_ref(), limits))
}

fn findings(figures: &ModelFigures, before: Option<&ModelFigures>, limits: &Limits) -> Vec<Finding> {
    let perplexity = |figures: &ModelFigures| figures.loss.map_or(f64::NAN, |loss| loss.value.exp());
    let value = perplexity(figures);
    let comparison = figures.comparison.as_ref();
    let compared = |figure: Option<f64>| figure.unwrap_or(f64::NAN);
    let increase = before.map_or(f64::NAN, |before| value - perplexity(before));
    let divergence = compared(comparison.map(|comparison| comparison.divergence.value));
    let divergence_p99 = compared(comparison.map(|comparison| comparison.divergence_p99.value));
    let agreement = compared(comparison.map(|comparison| comparison.agreement.value));
    let at_most = [
        ("perplexity", limits.max_perplexity, value, "perplexity"),
        ("perplexity-increase", limits.max_perplexity_increase, increase, "perplexity over the reference's"),
        ("mean-kl-divergence", limits.max_mean_kl_divergence, divergence, "mean KL divergence from the reference"),
        ("p99-kl-divergence", limits.max_p99_kl_divergence, divergence_p99, "99th percentile of KL divergence"),
    ];
    let mut findings: Vec<Finding> =
        at_most.into_iter().filter_map(|(rule, limit, value, what)| above(rule, None, value, limit?, what)).collect();
    findings.extend(limits.min_top1_agreement.and_then(|limit| {
        below("top1-agreement", None, agreement, limit, "share of tokens whose most likely successor agrees")
    }));
    findings
}
