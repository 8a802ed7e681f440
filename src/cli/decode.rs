//! `bantam decode`: a compressed model becomes dense safetensors.

use std::path::Path;

use serde::Serialize;

use super::{ByteSize, CliError, DecodeArguments, Output, job, meter::Meter};
use crate::{
    ExitCode,
    decode::{Decoded, decode},
    exchange,
    layout::LogicalTensor,
};

#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    #[serde(flatten)]
    decoded: &'a Decoded,
}

/// A file of BitDelta's as an artifact, in a folder beside the target that goes when it is decoded.
fn import(arguments: &DecodeArguments, base: &Path) -> Result<tempfile::TempDir, anyhow::Error> {
    let parent = arguments.out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new().prefix(".bantam-import-").tempdir_in(parent);
    let folder = folder.map_err(|error| CliError::Environment {
        message: format!("cannot make a folder in `{}`: {error}", parent.display()),
        hint: None,
    })?;
    exchange::import(&arguments.artifact, &job::open_model(base, None)?, &folder.path().join("delta"))?;
    Ok(folder)
}

/// Executes the command.
///
/// # Errors
/// When the artifact is invalid or the target cannot be written.
pub fn execute(arguments: &DecodeArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let imported = match &arguments.base {
        Some(base) if exchange::is_bitdelta(&arguments.artifact) => Some(import(arguments, base)?),
        _ => None,
    };
    let artifact = imported.as_ref().map_or_else(|| arguments.artifact.clone(), |folder| folder.path().join("delta"));
    let source = job::open_model(&artifact, arguments.base.as_ref())?;
    if source.tensors().iter().all(LogicalTensor::is_plain) {
        output.warning(&format!("{} is not compressed; its tensors are copied", arguments.artifact.display()));
    }
    let meter = Meter::new(output, "decoding");
    let decoded = decode(&source, &arguments.out, arguments.dtype.map(Into::into), &|done, total| {
        meter.bytes(done, total);
    })?;
    meter.finish();
    if output.json() {
        output.json_result(&Report { schema: "bantam.decode/1", decoded: &decoded })?;
    } else {
        let Decoded { out, tensors, decoded, bytes, .. } = &decoded;
        output.result(&format!(
            "{}: {} in {tensors} tensors, {decoded} of them decoded",
            out.display(),
            ByteSize(*bytes)
        ))?;
    }
    Ok(ExitCode::Done)
}
