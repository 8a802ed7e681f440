//! `bantam schema`, `bantam completions` and `bantam man`: what is generated from the code itself.

use std::path::Path;

use clap::CommandFactory as _;

use super::{CliError, CommandLine, CompletionsArguments, Described, ManArguments, Output, SchemaArguments};
use crate::{ExitCode, check::Policy, recipe};

/// Prints a JSON schema.
///
/// # Errors
/// When stdout cannot be written.
pub fn schema(arguments: &SchemaArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    output.json_result(&match arguments.of {
        Described::Recipe => recipe::schema(),
        Described::Policy => Policy::schema(),
    })?;
    Ok(ExitCode::Done)
}

/// Prints completions for a shell.
///
/// # Errors
/// When stdout cannot be written.
pub fn completions(arguments: &CompletionsArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::command(), "bantam", &mut text);
    output.result(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::Done)
}

/// Prints the man page, or writes all of them into a folder.
///
/// # Errors
/// When stdout or the folder cannot be written.
pub fn man(arguments: &ManArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let command = CommandLine::command();
    let Some(folder) = &arguments.out else {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text)?;
        output.result(&String::from_utf8_lossy(&text))?;
        return Ok(ExitCode::Done);
    };
    let failed = |path: &Path, source: std::io::Error| CliError::Environment {
        message: format!("cannot write man pages to `{}`: {source}", path.display()),
        hint: None,
    };
    std::fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    clap_mangen::generate_to(command, folder).map_err(|source| failed(folder, source))?;
    Ok(ExitCode::Done)
}
