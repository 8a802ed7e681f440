//! `bantam report`: what was done to a model and what it cost.

use std::path::{Path, PathBuf};

use super::{CliError, Device, EvalArguments, Output, ReportArguments, ReportFormat, eval, inspect, job};
use crate::{
    ExitCode,
    layout::LogicalCheckpoint,
    report::{
        CARD_NAME, CardFacts, Chosen, Evaluation, Histograms, Opened, Report, ReportError, Sides, card, default_choice,
        html, markdown, replace, write_card,
    },
};

/// Histograms that one report may have.
const MOST_HISTOGRAMS: usize = 48;

/// Executes the command.
///
/// # Errors
/// When an artifact has no manifest, an evaluation or a selector is wrong, or a file cannot be written.
pub fn execute(arguments: &ReportArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    job::use_threads(arguments.threads)?;
    let format = format(arguments)?;
    let artifact = Opened::read(&arguments.artifact)?;
    let against = arguments.against.as_deref().map(Opened::read).transpose()?;
    let mut evaluations =
        arguments.evaluation.iter().map(|path| Evaluation::read(path)).collect::<Result<Vec<_>, _>>()?;
    let source = source(arguments, &artifact);
    if let Some(text) = &arguments.text {
        evaluations.extend(evaluate(arguments, text, (&artifact, against.as_ref()), source.as_deref().ok(), output)?);
    }
    let chosen = chosen(arguments, &artifact)?;
    let histograms = match &source {
        Ok(_) if chosen.is_empty() => Histograms::none("No tensor was rounded.".into()),
        Ok(path) => histograms(arguments, path, (&artifact, against.as_ref()), &chosen)?,
        Err(reason) => Histograms::none(reason.clone()),
    };
    let report = Report::new(&artifact, against.as_ref(), evaluations, histograms);
    if let Some(format) = format {
        let text = match format {
            ReportFormat::Html => html(&report)?,
            ReportFormat::Markdown => markdown(&report),
            ReportFormat::Json => report.json()?,
        };
        deliver(arguments, &text, output)?;
    }
    if arguments.card {
        let sources = [source.as_deref().ok(), Some(artifact.folder.as_path())];
        let folders: Vec<&Path> = sources.into_iter().flatten().collect();
        let facts = CardFacts::of(arguments.base_model.clone(), &folders);
        let path = write_card(&artifact, &card(&report, &artifact, &facts), arguments.force)?;
        let said = format!("wrote {}, listed in the manifest", path.display());
        // The report itself may be on stdout.
        if format.is_some() && arguments.out.is_none() { output.note(&said) } else { output.result(&said)? }
    }
    Ok(ExitCode::Done)
}

/// The form to write; none where only a card is asked for.
fn format(arguments: &ReportArguments) -> Result<Option<ReportFormat>, CliError> {
    if arguments.format.is_some() {
        return Ok(arguments.format);
    }
    let Some(out) = &arguments.out else {
        return Ok((!arguments.card).then_some(ReportFormat::Markdown));
    };
    let extension = out.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("html" | "htm") => Ok(Some(ReportFormat::Html)),
        Some("md" | "markdown") => Ok(Some(ReportFormat::Markdown)),
        Some("json") => Ok(Some(ReportFormat::Json)),
        _ => Err(CliError::Usage {
            message: format!("the name `{}` does not say what form the report is to have", out.display()),
            hint: Some("end it in .html, .md or .json, or give --format".into()),
        }),
    }
}

/// Where the source is, or why it is not known.
fn source(arguments: &ReportArguments, artifact: &Opened) -> Result<PathBuf, String> {
    let advice = "--source DIR shows weights before and after";
    match (&arguments.source, &artifact.source) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(path)) if path.exists() => Ok(path.clone()),
        (None, Some(_)) => Err(format!("The source is not where the run found it; {advice}.")),
        (None, None) => Err(format!("The run log does not say where the source is; {advice}.")),
    }
}

/// The tensors to show: those asked for, or three that tell most.
fn chosen(arguments: &ReportArguments, artifact: &Opened) -> Result<Vec<Chosen>, CliError> {
    if arguments.tensor.is_empty() {
        return Ok(default_choice(&artifact.facts));
    }
    let matched = inspect::statistics::chosen(&arguments.tensor, &artifact.map)?;
    let names = artifact.map.tensors.iter().zip(matched).filter(|(_, chosen)| *chosen).map(|(tensor, _)| &tensor.name);
    let chosen: Vec<Chosen> = names.map(|name| Chosen { name: name.clone(), why: "As chosen" }).collect();
    if chosen.len() > MOST_HISTOGRAMS {
        return Err(CliError::Usage {
            message: format!("--tensor matches {} tensors; a report shows at most {MOST_HISTOGRAMS}", chosen.len()),
            hint: Some("choose fewer: a glob such as 'model.layers.0.*' takes one layer".into()),
        });
    }
    Ok(chosen)
}

/// Reads the weights. What is not there or cannot be opened is told in the report, unless it was asked for.
fn histograms(
    arguments: &ReportArguments,
    source: &Path,
    (artifact, against): (&Opened, Option<&Opened>),
    chosen: &[Chosen],
) -> Result<Histograms, anyhow::Error> {
    let asked = arguments.source.is_some() || !arguments.tensor.is_empty();
    let open = |path: &Path, base: Option<&PathBuf>| -> Result<Result<LogicalCheckpoint, String>, anyhow::Error> {
        match job::open_model(path, base) {
            Ok(model) => Ok(Ok(model)),
            Err(error) if asked => Err(error),
            Err(error) => Ok(Err(format!("No weights are shown: {error}."))),
        }
    };
    let source = open(source, None)?;
    let stored = open(&artifact.folder, arguments.base.as_ref())?;
    let (source, stored) = match (source, stored) {
        (Ok(source), Ok(stored)) => (source, stored),
        (Err(reason), _) | (_, Err(reason)) => return Ok(Histograms::none(reason)),
    };
    let other = against.and_then(|against| job::open_model(&against.folder, None).ok());
    let sides = Sides { source: &source, artifact: &stored, against: other.as_ref() };
    Ok(Histograms::of(artifact, sides, chosen)?)
}

/// Source and artifacts on one text; the artifacts compared with the source, where it is there.
fn evaluate(
    arguments: &ReportArguments,
    text: &Path,
    (artifact, against): (&Opened, Option<&Opened>),
    source: Option<&Path>,
    output: &Output,
) -> Result<Vec<Evaluation>, anyhow::Error> {
    let one = |name: &str, path: &Path, base: Option<&PathBuf>, reference: Option<&Path>| {
        let asked = EvalArguments {
            path: path.to_owned(),
            text: vec![text.to_owned()],
            base: base.cloned(),
            reference: reference.map(Path::to_owned),
            context: arguments.context,
            device: Device::Cpu,
            max_device_memory: None,
            threads: None,
            max_memory: None,
            retrieval: false,
            window: None,
            save_logits: None,
            json: false,
        };
        let measured = serde_json::to_value(eval::evaluate(&asked, output)?)?;
        let wrong = |message| ReportError::Evaluation { path: path.to_owned(), message };
        Ok::<_, anyhow::Error>(Evaluation::of(name.to_owned(), measured).map_err(wrong)?)
    };
    let mut evaluations = Vec::new();
    if let Some(path) = source {
        evaluations.push(one(artifact.facts.model.as_deref().unwrap_or("source"), path, None, None)?);
    }
    evaluations.push(one(&artifact.facts.name, &artifact.folder, arguments.base.as_ref(), source)?);
    if let Some(against) = against {
        evaluations.push(one(&against.facts.name, &against.folder, None, source)?);
    }
    Ok(evaluations)
}

/// Writes the report to its file, or to stdout.
fn deliver(arguments: &ReportArguments, text: &str, output: &Output) -> Result<(), anyhow::Error> {
    let Some(out) = &arguments.out else { return Ok(output.result(text)?) };
    replace(out, text)?;
    let folder = |path: &Path| std::fs::canonicalize(path).ok();
    let beside = std::path::absolute(out).ok().and_then(|out| folder(out.parent()?));
    if beside.is_some() && beside == folder(&arguments.artifact) {
        output.warning(&format!(
            "`{}` lies in the artifact and is not in its manifest: `bantam verify` will say so; only {CARD_NAME} by --card belongs there",
            out.display()
        ));
    }
    Ok(output.result(&format!("wrote {}", out.display()))?)
}
