//! `bantam import` and `bantam export`: BitDelta's own files.

use serde::Serialize;

use super::{ByteSize, CliError, ExportArguments, ImportArguments, Output, job};
use crate::{
    ExitCode,
    checkpoint::Checkpoint,
    exchange::{self, Exported, Imported},
    layout::LogicalCheckpoint,
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
    if !artifact.is_delta() {
        let message = format!("{} holds no differences from a base", arguments.artifact.display());
        return Err(CliError::Usage { message, hint: Some("export takes artifacts of pass bitdelta".into()) }.into());
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
