//! `bantam decode`: a compressed model becomes dense safetensors.

use serde::Serialize;

use super::{ByteSize, DecodeArguments, Output, job, meter::Meter};
use crate::{
    ExitCode,
    decode::{Decoded, decode},
    layout::LogicalTensor,
};

#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    #[serde(flatten)]
    decoded: &'a Decoded,
}

/// Executes the command.
///
/// # Errors
/// When the artifact is invalid or the target cannot be written.
pub fn execute(arguments: &DecodeArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let source = job::open_model(&arguments.artifact, arguments.base.as_ref())?;
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
