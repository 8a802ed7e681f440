//! `bantam calibrate`: saves statistics of a model's activations for later runs, or counts the tokens of experts.

use std::path::Path;

use serde::Serialize;

use super::{
    CalibrateArguments, CliError, Output,
    job::{self, Job},
    plan_text::bytes_text,
    progress::Steps,
};
use crate::{
    ExitCode,
    compute::SharedDevice,
    forward::Limits,
    layout::LogicalCheckpoint,
    plan::Plan,
    run::source_identity,
    solve::{self, Coverage, SolvePlan},
};

/// The result of the command.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    #[serde(flatten)]
    written: Option<Written>,
    tokens: usize,
    blocks: usize,
    experts: Vec<Coverage>,
}

#[derive(Debug, Serialize)]
struct Written {
    file: String,
    bytes: u64,
}

/// Executes the command.
///
/// # Errors
/// When the recipe, the model or the text is invalid, or the file cannot be written.
pub fn execute(arguments: &CalibrateArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    job::use_threads(arguments.threads)?;
    let device = job::open_device(arguments.device, arguments.max_device_memory, output)?.map(SharedDevice::new);
    let (source, mut plan) = job::plan(&Job {
        recipe: &arguments.recipe,
        model: arguments.model.as_ref(),
        base: None,
        out: None,
        default_out: Some("artifact"),
        threads: arguments.threads,
        // Counting takes less than the run that is planned here.
        max_memory: arguments.max_memory.filter(|_| !arguments.coverage),
        device: None,
        deny: &[],
        gathers_statistics: true,
    })?;
    let Some(solve) = plan.solve.take() else {
        return Err(CliError::Usage {
            message: "no pass of this recipe needs to see data: there is nothing to calibrate".into(),
            hint: Some("write a [[pass]] such as `use = \"gptq\"`".into()),
        }
        .into());
    };
    let (tokens, blocks) = (solve.tokens.sequences.iter().map(Vec::len).sum(), solve.model.blocks.len());
    let (written, experts) = match &arguments.out {
        Some(out) => save(arguments, output, out, &source, &plan, solve, device.as_ref())?,
        None => (None, count(arguments, output, &source, &plan, &solve, device.as_ref())?),
    };
    if let Some(failure) = device.as_ref().and_then(SharedDevice::failure) {
        output.warning(&format!("{failure}; what it failed at was computed on the processor"));
    }
    let report = Report { schema: "bantam.calibrate/1", written, tokens, blocks, experts };
    if output.json() {
        output.json_result(&report)?;
    } else {
        output.result(&render(&report))?;
    }
    Ok(ExitCode::Done)
}

fn save(
    arguments: &CalibrateArguments,
    output: &Output,
    out: &Path,
    source: &LogicalCheckpoint,
    plan: &Plan,
    mut solve: SolvePlan,
    device: Option<&SharedDevice>,
) -> Result<(Option<Written>, Vec<Coverage>), anyhow::Error> {
    // The original model alone, with all second moments, and nothing of an earlier file.
    (solve.compressed, solve.both_streams, solve.drift, solve.encodes) = (false, false, false, true);
    solve.calibration.statistics = None;
    solve.fit(arguments.max_memory.map(|size| size.0), 0).map_err(crate::Error::from)?;
    let folder = tempfile::Builder::new().prefix(".bantam-calibrate").tempdir_in(parent(out)).map_err(|error| {
        CliError::Environment { message: format!("cannot write beside `{}`: {error}", out.display()), hint: None }
    })?;
    let coverage = with_job(output, source, plan, &solve, folder.path(), device, |job| solve::calibrate(job, out))?;
    let bytes = std::fs::metadata(out).map_or(0, |metadata| metadata.len());
    Ok((Some(Written { file: out.display().to_string(), bytes }), coverage))
}

fn count(
    arguments: &CalibrateArguments,
    output: &Output,
    source: &LogicalCheckpoint,
    plan: &Plan,
    solve: &SolvePlan,
    device: Option<&SharedDevice>,
) -> Result<Vec<Coverage>, anyhow::Error> {
    let length = solve.tokens.sequences.first().map_or(0, Vec::len);
    let limits = arguments.max_memory.map_or_else(Limits::default, |size| Limits::within(size.0, &solve.model, length));
    with_job(output, source, plan, solve, Path::new(""), device, |job| solve::coverage(job, &limits))
}

/// Does something with the job of these, and shows which block is in hand.
fn with_job<T>(
    output: &Output,
    source: &LogicalCheckpoint,
    plan: &Plan,
    solve: &SolvePlan,
    folder: &Path,
    device: Option<&SharedDevice>,
    work: impl FnOnce(&solve::Job<'_>) -> crate::Result<T>,
) -> Result<T, anyhow::Error> {
    let steps = Steps::new(output, "block");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let identity = source_identity(source);
    let result = work(&solve::Job {
        plan,
        solve,
        source,
        checkpoint: source,
        folder: folder.to_owned(),
        identity: &identity,
        device,
        deny_fallbacks: false,
        stop: &stop,
        progress: &|block, blocks, _| steps.show(block, blocks),
        training: &|_, _, _| {},
    });
    steps.finish();
    Ok(result?)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn render(report: &Report) -> String {
    let tokens = super::grouped(report.tokens as u64);
    let mut lines = Vec::new();
    match &report.written {
        Some(Written { file, bytes }) => lines.push(format!(
            "{file}: {}, statistics of {} blocks over {tokens} tokens",
            bytes_text(*bytes),
            report.blocks
        )),
        None if report.experts.is_empty() => {
            lines.push(format!("no block has experts: every linear sees all {tokens} tokens"));
        }
        None => lines.push(format!(
            "{} of {} blocks have experts; the text has {tokens} tokens",
            report.experts.len(),
            report.blocks
        )),
    }
    lines.extend(report.experts.iter().map(render_block));
    lines.join("\n")
}

fn render_block(coverage: &Coverage) -> String {
    let [least, median, most] = coverage.spread();
    let Coverage { block, tokens, needed, starved, unseen } = coverage;
    let experts = tokens.len();
    let fate = match starved {
        0 => format!("; all have the {needed} that gptq needs"),
        _ => format!(
            "\n  {starved} have fewer than the {needed} that gptq needs for all of their matrices: rounded to nearest \
             (starved-expert), {unseen} of them without any token (no-statistics)"
        ),
    };
    format!("block {block}: {experts} experts; tokens of an expert: least {least}, median {median}, most {most}{fate}")
}
