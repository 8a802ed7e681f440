//! `bantam calibrate`: saves statistics of a model's activations for later runs.

use serde::Serialize;

use super::{
    CalibrateArguments, CliError, Output,
    job::{self, Job},
    plan_text::bytes_text,
    progress::Steps,
};
use crate::{
    ExitCode,
    run::source_identity,
    solve::{self, Coverage},
};

/// The result of the command.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    file: String,
    bytes: u64,
    tokens: usize,
    blocks: usize,
    experts: Vec<Coverage>,
}

/// Executes the command.
///
/// # Errors
/// When the recipe, the model or the text is invalid, or the file cannot be written.
pub fn execute(arguments: &CalibrateArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    job::use_threads(arguments.threads)?;
    let (source, mut plan) = job::plan(&Job {
        recipe: &arguments.recipe,
        model: arguments.model.as_ref(),
        out: None,
        default_out: Some("artifact"),
        threads: arguments.threads,
        max_memory: arguments.max_memory,
        deny: &[],
    })?;
    let Some(mut solve) = plan.solve.take() else {
        return Err(CliError::Usage {
            message: "no pass of this recipe needs to see data: there is nothing to calibrate".into(),
            hint: Some("write a [[pass]] such as `use = \"gptq\"`".into()),
        }
        .into());
    };
    // The original model alone, and nothing of an earlier file.
    (solve.compressed, solve.both_streams, solve.drift) = (false, false, false);
    solve.calibration.statistics = None;
    solve.fit(arguments.max_memory.map(|size| size.0), 0).map_err(crate::Error::from)?;
    let folder =
        tempfile::Builder::new().prefix(".bantam-calibrate").tempdir_in(parent(&arguments.out)).map_err(|error| {
            CliError::Environment {
                message: format!("cannot write beside `{}`: {error}", arguments.out.display()),
                hint: None,
            }
        })?;
    let steps = Steps::new(output, "block");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let identity = source_identity(&source);
    let coverage = solve::calibrate(
        &solve::Job {
            plan: &plan,
            solve: &solve,
            source: &source,
            checkpoint: &source,
            folder: folder.path().to_owned(),
            identity: &identity,
            deny_fallbacks: false,
            stop: &stop,
            progress: &|block, blocks, _| steps.show(block, blocks),
        },
        &arguments.out,
    );
    steps.finish();
    let report = Report {
        schema: "bantam.calibrate/1",
        file: arguments.out.display().to_string(),
        bytes: std::fs::metadata(&arguments.out).map_or(0, |metadata| metadata.len()),
        tokens: solve.tokens.sequences.iter().map(Vec::len).sum(),
        blocks: solve.model.blocks.len(),
        experts: coverage?,
    };
    if output.json() {
        output.json_result(&report)?;
    } else {
        output.result(&render(&report))?;
    }
    Ok(ExitCode::Done)
}

fn parent(path: &std::path::Path) -> &std::path::Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."))
}

fn render(report: &Report) -> String {
    let mut lines = vec![format!(
        "{}: {}, statistics of {} blocks over {} tokens",
        report.file,
        bytes_text(report.bytes),
        report.blocks,
        super::grouped(report.tokens as u64)
    )];
    for coverage in &report.experts {
        let mut tokens = coverage.tokens.clone();
        tokens.sort_unstable();
        let middle = tokens.get(tokens.len() / 2).copied().unwrap_or(0);
        lines.push(format!(
            "block {}: {} experts saw {} to {} tokens, half of them at least {middle}; {} saw too few and will be \
             rounded to nearest",
            coverage.block,
            tokens.len(),
            tokens.first().copied().unwrap_or(0),
            tokens.last().copied().unwrap_or(0),
            coverage.starved
        ));
    }
    lines.join("\n")
}
