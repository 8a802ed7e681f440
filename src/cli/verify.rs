//! `bantam verify`: an artifact is what its manifest says.

use std::fmt::Write;

use serde::Serialize;

use super::{Output, Style, VerifyArguments, meter::Meter, table::wrapped};
use crate::{
    ExitCode,
    checkpoint::Checkpoint,
    layout::LogicalCheckpoint,
    verify::{Finding, verify},
};

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    passed: bool,
    findings: Vec<Finding>,
}

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
        output.json_result(&Report { schema: "bantam.check/1", passed, findings })?;
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
        return format!("{} {name} {what}", output.paint(Style::Green, "passed"));
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    for finding in findings {
        let about = finding.tensor.as_deref().unwrap_or("the artifact");
        let line = wrapped(&format!("{}: {about}: {}", finding.rule, finding.message), 4);
        let _ = writeln!(text, "{line}");
        if let (Some(value), Some(limit)) = (&finding.value, &finding.limit) {
            let _ = writeln!(text, "    found    {value}\n    expected {limit}");
        }
    }
    let count = match findings.len() {
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    };
    let _ = writeln!(text, "{} {name}: {count}", output.paint(Style::Red, "failed"));
    text
}
