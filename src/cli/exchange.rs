//! `bantam import` and `bantam export`: BitDelta's and CSKV's own files.

use serde::Serialize;

use super::{ByteSize, CliError, ExportArguments, ImportArguments, Output, job};
use crate::{
    ExitCode,
    checkpoint::Checkpoint,
    exchange::{self, CskvChoice, Exported, ExportedCskv, Imported, ImportedCskv},
    layout::{LayoutName, LogicalCheckpoint},
};

#[derive(Debug, Serialize)]
struct Report<'a, T> {
    schema: &'static str,
    #[serde(flatten)]
    done: &'a T,
}

/// Executes `bantam import`.
///
/// # Errors
/// When the file or the base is invalid, they do not go together, or the target cannot be written.
pub fn import(arguments: &ImportArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let base = job::open_model(&arguments.base, None)?;
    if exchange::is_cskv(&arguments.file) {
        return import_cskv(arguments, &base, output);
    }
    let done = exchange::import(&arguments.file, &base, &arguments.out)?;
    if output.json() {
        output.json_result(&Report { schema: "bantam.import/1", done: &done })?;
    } else {
        let Imported { out, differences, whole, same, bytes } = &done;
        output.result(&format!(
            "{}: {}, {differences} differences, {whole} tensors whole, {same} the base's",
            out.display(),
            ByteSize(*bytes)
        ))?;
    }
    Ok(ExitCode::Done)
}

/// Executes `bantam export`.
///
/// # Errors
/// When the artifact is invalid or of another form, or the target cannot be written.
pub fn export(arguments: &ExportArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let artifact = match &arguments.base {
        Some(_) => job::open_model(&arguments.artifact, arguments.base.as_ref())?,
        None => LogicalCheckpoint::open(Checkpoint::open(&arguments.artifact)?)?,
    };
    if exchange::has_factors(&artifact) {
        return export_cskv(arguments, &artifact, output);
    }
    if !artifact.is_delta() {
        let message = format!("{} holds no differences from a base", arguments.artifact.display());
        return Err(CliError::Usage {
            message,
            hint: Some("export takes artifacts of pass bitdelta or lowrank_kv".into()),
        }
        .into());
    }
    if artifact.base().is_none() && artifact.tensors().iter().any(|tensor| tensor.format == "rows") {
        let message = format!("{} stores only some rows of a tensor", arguments.artifact.display());
        return Err(CliError::Usage { message, hint: Some("give the base with --base DIR".into()) }.into());
    }
    let done = exchange::export(&artifact, &arguments.out)?;
    if output.json() {
        output.json_result(&Report { schema: "bantam.export/1", done: &done })?;
    } else {
        let Exported { out, differences, whole, same, bytes } = &done;
        output.result(&format!(
            "{}: {}, {differences} differences, {whole} tensors whole, {same} left to the base",
            out.display(),
            ByteSize(*bytes)
        ))?;
    }
    Ok(ExitCode::Done)
}

fn import_cskv(
    arguments: &ImportArguments,
    base: &LogicalCheckpoint,
    output: &Output,
) -> Result<ExitCode, anyhow::Error> {
    let layout =
        if arguments.layout == LayoutName::Bantam.as_str() { LayoutName::Bantam } else { LayoutName::RemoteCode };
    let choice = CskvChoice { layout, window: arguments.window };
    let done = exchange::import_cskv(&arguments.file, base, &arguments.out, choice)?;
    if output.json() {
        output.json_result(&Report { schema: "bantam.import/1", done: &done })?;
    } else {
        let ImportedCskv { out, layers, ranks: [keys, values], bytes } = &done;
        output.result(&format!(
            "{}: {}, {layers} layers with {keys} latent channels of keys and {values} of values",
            out.display(),
            ByteSize(*bytes)
        ))?;
    }
    Ok(ExitCode::Done)
}

fn export_cskv(
    arguments: &ExportArguments,
    artifact: &LogicalCheckpoint,
    output: &Output,
) -> Result<ExitCode, anyhow::Error> {
    let done = exchange::export_cskv(artifact, &arguments.out)?;
    if output.json() {
        output.json_result(&Report { schema: "bantam.export/1", done: &done })?;
    } else {
        let ExportedCskv { out: [keys, values], layers, ranks, bytes } = &done;
        output.result(&format!(
            "{} and {}: {}, {layers} layers with {} latent channels of keys and {} of values",
            keys.display(),
            values.display(),
            ByteSize(*bytes),
            ranks[0],
            ranks[1]
        ))?;
    }
    Ok(ExitCode::Done)
}
