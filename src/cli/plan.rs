//! `bantam plan`: says exactly what a run would write.

use super::{Output, PlanArguments};
use crate::ExitCode;

/// Executes the command.
///
/// # Errors
/// Whatever a run would stop at before its first byte.
pub fn execute(_arguments: &PlanArguments, _output: &Output) -> Result<ExitCode, anyhow::Error> {
    todo!()
}
