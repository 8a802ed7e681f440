//! `bantam plan`: says exactly what a run would write.

use super::{
    Output, PlanArguments,
    job::{self, Job},
    plan_text::plan_text,
};
use crate::ExitCode;

/// Executes the command.
///
/// # Errors
/// Whatever a run would stop at before its first byte.
pub fn execute(arguments: &PlanArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let (_, plan) = job::plan(&Job {
        recipe: &arguments.recipe,
        model: arguments.model.as_ref(),
        base: arguments.base.as_ref(),
        out: arguments.out.as_ref(),
        default_out: Some("artifact"),
        threads: arguments.threads,
        max_memory: arguments.max_memory,
        device: None,
        deny: &[],
        gathers_statistics: false,
    })?;
    if output.json() {
        output.json_result(&plan.to_json())?;
    } else {
        output.result(&plan_text(&plan))?;
    }
    plan.check_disk(crate::run::staged_bytes(&plan))?;
    Ok(ExitCode::Done)
}
