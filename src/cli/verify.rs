//! `bantam verify`: an artifact is what its manifest says.

use super::{Output, Style, VerifyArguments, findings, meter::Meter, table};
use crate::{
    ExitCode,
    checkpoint::Checkpoint,
    layout::LogicalCheckpoint,
    verify::{Finding, verify},
};

/// Executes the command.
///
/// # Errors
/// When there is no manifest to hold the artifact against, or the source is invalid.
pub fn execute(arguments: &VerifyArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let source = match &arguments.source {
        Some(path) => Some(LogicalCheckpoint::open(Checkpoint::open(path)?)?),
        None => None,
    };
    let base = match &arguments.base {
        Some(path) => Some(LogicalCheckpoint::open(Checkpoint::open(path)?)?),
        None => None,
    };
    let meter = Meter::new(output, "verifying");
    let findings = verify(&arguments.artifact, source.as_ref(), base, &|done, total| meter.bytes(done, total))?;
    meter.finish();
    let passed = findings.is_empty();
    if output.json() {
        output.json_result(&findings::Report::new(&findings))?;
    } else {
        output.result(&render(arguments, &findings, output))?;
    }
    Ok(if passed { ExitCode::Done } else { ExitCode::Difference })
}

fn render(arguments: &VerifyArguments, findings: &[Finding], output: &Output) -> String {
    let name = arguments.artifact.display();
    if findings.is_empty() {
        let what = match &arguments.source {
            Some(source) => format!("is what was made of {}; every error figure comes out again", source.display()),
            None => "is what its manifest says; --source would check the error figures too".into(),
        };
        return table::wrapped(&format!("{} {name} {what}", output.paint(Style::Green, "passed")), 4);
    }
    findings::text(&name.to_string(), findings, output)
}
