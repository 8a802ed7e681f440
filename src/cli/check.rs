//! `bantam check`: an artifact is what a policy asks for.

use super::{CheckArguments, FindingsFormat, Output, Style, findings, meter::Meter};
use crate::{
    ExitCode,
    check::{Job, Policy, check},
};

/// Executes the command.
///
/// # Errors
/// When the policy is wrong, or the artifact has no manifest, or what the policy names cannot be used.
pub fn execute(arguments: &CheckArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let policy = Policy::read(&arguments.policy)?;
    let meter = Meter::new(output, "checking");
    let progress = |done, total| meter.bytes(done, total);
    let job = Job { folder: &arguments.artifact, policy: &policy, progress: &progress };
    let found = check(&job)?;
    meter.finish();
    let name = arguments.artifact.display().to_string();
    match arguments.format {
        FindingsFormat::Json => output.json_result(&findings::Report::new(&found))?,
        FindingsFormat::Junit => output.result(&findings::junit(&name, &found)?)?,
        FindingsFormat::Sarif => output.json_result(&findings::sarif(&arguments.artifact, &found))?,
        FindingsFormat::Text if found.is_empty() => {
            output.result(&format!(
                "{} {name} keeps to {}",
                output.paint(Style::Green, "passed"),
                arguments.policy.display()
            ))?;
        }
        FindingsFormat::Text => output.result(&findings::text(&name, &found, output))?,
    }
    Ok(if found.is_empty() { ExitCode::Done } else { ExitCode::Difference })
}
