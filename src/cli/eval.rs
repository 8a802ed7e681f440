//! `bantam eval`: perplexity of a model, and how far it is from another.

use std::{fs::File, io::Write as _, path::Path};

use serde::Serialize;

use super::{CliError, EvalArguments, Output, job, progress::Steps};
use crate::{
    ExitCode, calibration,
    checkpoint::{Checkpoint, Dtype, METADATA, header_bytes},
    compute::SharedDevice,
    evaluate::{Evaluated, Figure, ModelFigures, Windows, evaluate_model},
    forward::{AsStored, Limits, Matrix, Model},
    layout::{CachePolicy, LogicalCheckpoint},
};

/// Windows when `--context` does not say.
const DEFAULT_CONTEXT: usize = 2048;

/// The result of the command.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: &'static str,
    perplexity: Option<f64>,
    perplexity_standard_error: Option<f64>,
    tokens: usize,
    context: usize,
    windows: usize,
    #[serde(flatten)]
    comparison: Option<ComparisonReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retrieval: Option<Retrieval>,
    text: Vec<String>,
    /// The graphics processor, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Batches that it failed at and the processor did.
    #[serde(skip_serializing_if = "is_zero")]
    device_failures: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// How well a model repeats a passage that stands right before.
#[derive(Debug, Serialize)]
struct Retrieval {
    /// Share of the repeated tokens that were the most likely ones.
    accuracy: f64,
    /// Their mean negative log-likelihood, in nats.
    mean_nll: f64,
    /// How many there were.
    tokens: usize,
}

/// The part with a reference.
#[derive(Debug, Serialize)]
struct ComparisonReport {
    mean_kl_divergence: Option<f64>,
    mean_kl_divergence_standard_error: Option<f64>,
    p99_kl_divergence: Option<f64>,
    p99_kl_divergence_standard_error: Option<f64>,
    top1_agreement: Option<f64>,
    top1_agreement_standard_error: Option<f64>,
    hidden_relative_error: f64,
}

/// Executes the command.
///
/// # Errors
/// When a model or the text is invalid.
pub fn execute(arguments: &EvalArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    job::use_threads(arguments.threads)?;
    let report = evaluate(arguments, output)?;
    if output.json() {
        output.json_result(&report)?;
    } else {
        output.result(&render(&report))?;
    }
    Ok(ExitCode::Done)
}

/// Evaluates, on the threads there are.
pub(super) fn evaluate(arguments: &EvalArguments, output: &Output) -> Result<Report, anyhow::Error> {
    let device = job::open_device(arguments.device, arguments.max_device_memory, output)?.map(SharedDevice::new);
    let source = job::open_model(&arguments.path, arguments.base.as_ref())?;
    let model = with_cache(&source, arguments.window)?;
    let reference_source = match &arguments.reference {
        Some(path) => Some(LogicalCheckpoint::open(Checkpoint::open(path)?)?),
        None => None,
    };
    let reference = match &reference_source {
        Some(source) => Some(with_cache(source, None)?),
        None => None,
    };
    let reference_stored = reference_source.as_ref().map(AsStored);
    check_reference(&model, reference.as_ref())?;
    let limit = model.max_positions;
    let context = arguments.context.unwrap_or_else(|| limit.unwrap_or(DEFAULT_CONTEXT).min(DEFAULT_CONTEXT));
    let folder = source.checkpoint().root().to_owned();
    let tokens =
        calibration::windows(&folder, model.vocabulary, limit, &arguments.text, context).map_err(crate::Error::from)?;
    if !model.causal && reference.is_none() && arguments.save_logits.is_none() {
        return Err(CliError::Usage {
            message: "an encoder predicts no next token: it has no perplexity".into(),
            hint: Some("give --reference DIR to compare its outputs with another model's".into()),
        }
        .into());
    }
    let limits = arguments.max_memory.map_or_else(Limits::default, |size| Limits::within(size.0, &model, context));
    let mut writer = match &arguments.save_logits {
        Some(path) => Some(LogitWriter::create(path, &model, tokens.sequences.len(), context)?),
        None => None,
    };
    let steps = Steps::new(output, "block");
    let mut write = |matrix: &Matrix| writer.as_mut().map_or(Ok(()), |writer| writer.write(matrix));
    let figures = evaluate_model(
        Evaluated { model: &model, source: &AsStored(&source) },
        reference.as_ref().zip(reference_stored.as_ref()).map(|(model, source)| Evaluated { model, source }),
        Windows::all(&tokens.sequences),
        &limits,
        device.as_ref(),
        arguments.save_logits.is_some().then_some(&mut write),
        &|done, of| steps.show(done, of),
    );
    steps.finish();
    let mut report = report(&figures?, context, tokens.sequences.len(), model.has_head(), tokens.description);
    if arguments.retrieval {
        report.retrieval = Some(retrieval(arguments, (&model, &source), context, &limits, device.as_ref())?);
    }
    report.device = device.as_ref().map(SharedDevice::name);
    if let Some(failure) = device.as_ref().and_then(SharedDevice::failure) {
        output.warning(&format!("{failure}; what it failed at was computed on the processor"));
    }
    Ok(report)
}

/// The model as a runtime with its cache computes it.
fn with_cache(source: &LogicalCheckpoint, window: Option<usize>) -> Result<Model, anyhow::Error> {
    let config = source.checkpoint().config().map(|config| &config.value);
    if window.is_some() && config.map(CachePolicy::of).transpose()?.flatten().is_none() {
        let name = source.checkpoint().root().display();
        return Err(CliError::Usage {
            message: format!("{name} keeps no latents instead of keys and values"),
            hint: Some("--window is for artifacts of pass lowrank_kv".into()),
        }
        .into());
    }
    Ok(Model::as_run(source, window)?)
}

/// Passages of half a window, each followed by itself; what is predicted of the second ones.
fn retrieval(
    arguments: &EvalArguments,
    (model, source): (&Model, &LogicalCheckpoint),
    context: usize,
    limits: &Limits,
    device: Option<&SharedDevice>,
) -> Result<Retrieval, anyhow::Error> {
    let half = context / 2;
    if half == 0 || !model.causal || !model.has_head() {
        let message = "retrieval needs windows of two tokens and more, and a model that predicts the next token".into();
        return Err(CliError::Usage { message, hint: None }.into());
    }
    let folder = source.checkpoint().root();
    let passages = calibration::windows(folder, model.vocabulary, model.max_positions, &arguments.text, half);
    let mut sequences = passages.map_err(crate::Error::from)?.sequences;
    for passage in &mut sequences {
        passage.extend_from_within(..);
    }
    let windows = Windows { sequences: &sequences, scored_from: half };
    let source = &AsStored(source);
    let figures = evaluate_model(Evaluated { model, source }, None, windows, limits, device, None, &|_, _| {})?;
    let value = |figure: Option<Figure>| figure.map_or(f64::NAN, |figure| figure.value);
    Ok(Retrieval { accuracy: value(figures.accuracy), mean_nll: value(figures.loss), tokens: figures.tokens })
}

fn check_reference(model: &Model, reference: Option<&Model>) -> Result<(), CliError> {
    let Some(reference) = reference else { return Ok(()) };
    let same = (model.vocabulary, model.classes()) == (reference.vocabulary, reference.classes());
    if same && model.has_head() || (model.hidden == reference.hidden) {
        return Ok(());
    }
    Err(CliError::Usage {
        message: format!(
            "the models cannot be compared: vocabularies of {} and {} tokens, heads of {} and {} classes",
            model.vocabulary,
            reference.vocabulary,
            model.classes(),
            reference.classes()
        ),
        hint: Some("--reference takes the model that this one was made of".into()),
    })
}

fn report(figures: &ModelFigures, context: usize, windows: usize, has_head: bool, text: Vec<String>) -> Report {
    let perplexity = figures.loss.map(|loss| loss.value.exp());
    Report {
        schema: "bantam.eval/1",
        perplexity,
        // The error of an exponential, to first order.
        perplexity_standard_error: figures.loss.map(|loss| loss.value.exp() * loss.standard_error),
        tokens: figures.tokens,
        context,
        windows,
        comparison: figures.comparison.as_ref().map(|comparison| {
            let of_head = |value: f64| has_head.then_some(value);
            let error = |figure: Figure| of_head(figure.standard_error);
            ComparisonReport {
                mean_kl_divergence: of_head(comparison.divergence.value),
                mean_kl_divergence_standard_error: error(comparison.divergence),
                p99_kl_divergence: of_head(comparison.divergence_p99.value),
                p99_kl_divergence_standard_error: error(comparison.divergence_p99),
                top1_agreement: of_head(comparison.agreement.value),
                top1_agreement_standard_error: error(comparison.agreement),
                hidden_relative_error: comparison.hidden_error,
            }
        }),
        retrieval: None,
        text,
        device: None,
        device_failures: figures.device_failures,
    }
}

fn render(report: &Report) -> String {
    let mut lines = Vec::new();
    if let (Some(perplexity), Some(error)) = (report.perplexity, report.perplexity_standard_error) {
        lines.push(format!("perplexity       {perplexity:.4} ± {error:.4}"));
    }
    if let Some(comparison) = &report.comparison {
        if let (Some(mean), Some(error), Some(p99)) =
            (comparison.mean_kl_divergence, comparison.mean_kl_divergence_standard_error, comparison.p99_kl_divergence)
        {
            let p99_error = comparison.p99_kl_divergence_standard_error.unwrap_or_default();
            lines.push(format!(
                "KL divergence    {mean:.5} ± {error:.5} nats, 99th percentile {p99:.4} ± {p99_error:.4}"
            ));
        }
        if let (Some(mean), Some(error)) = (comparison.top1_agreement, comparison.top1_agreement_standard_error) {
            lines.push(format!("top-1 agreement  {mean:.4} ± {error:.4}"));
        }
        lines.push(format!("hidden states    {:.3e} relative error", comparison.hidden_relative_error));
    }
    if let Some(Retrieval { accuracy, mean_nll, tokens }) = &report.retrieval {
        let tokens = super::grouped(*tokens as u64);
        lines.push(format!("retrieval        {accuracy:.4} of {tokens} repeated tokens, {mean_nll:.4} nats each"));
    }
    lines.push(format!(
        "over {} tokens: {} windows of {} ({})",
        super::grouped(report.tokens as u64),
        report.windows,
        report.context,
        report.text.join(", ")
    ));
    lines.join("\n")
}

/// Writes all logits as one F32 tensor, `[windows, context, classes]`; of a model without a head the last hidden states.
struct LogitWriter {
    file: std::io::BufWriter<File>,
}

impl LogitWriter {
    fn create(path: &Path, model: &Model, windows: usize, context: usize) -> Result<Self, anyhow::Error> {
        let (name, width) = if model.has_head() { ("logits", model.classes()) } else { ("hidden", model.hidden) };
        let header = header_bytes([(name, Dtype::F32, &[windows, context, width][..])], METADATA);
        let failed = |error: std::io::Error| CliError::Environment {
            message: format!("cannot write `{}`: {error}", path.display()),
            hint: None,
        };
        let mut file = std::io::BufWriter::new(File::create(path).map_err(failed)?);
        file.write_all(&header).map_err(failed)?;
        Ok(Self { file })
    }

    fn write(&mut self, matrix: &Matrix) -> std::io::Result<()> {
        self.file.write_all(bytemuck::cast_slice(&matrix.values))?;
        self.file.flush()
    }
}
