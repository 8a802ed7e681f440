//! `bantam run`: compresses a checkpoint.

use super::{Output, RunArguments};
use crate::ExitCode;

/// Executes the command.
///
/// # Errors
/// Whatever stops the run.
pub fn execute(_arguments: &RunArguments, _output: &Output) -> Result<ExitCode, anyhow::Error> {
    todo!()
}
