//! Arguments of the commands that write what is not a model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Arguments of `bantam init`.
#[derive(Debug, Clone, Args)]
pub struct InitArguments {
    /// The checkpoint
    pub model: PathBuf,
    /// The recipe to write; it must not exist [default: recipe.toml]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `bantam schema`.
#[derive(Debug, Clone, Args)]
pub struct SchemaArguments {
    /// What of
    #[arg(value_enum)]
    pub of: Described,
}

/// What has a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Described {
    /// What `run` and `plan` read
    Recipe,
    /// What `check` reads
    Policy,
}

/// Arguments of `bantam completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArguments {
    /// For which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Arguments of `bantam man`.
#[derive(Debug, Clone, Args)]
pub struct ManArguments {
    /// A folder that gets a page for every command; without it the main page is printed
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Arguments of `bantam devices`.
#[derive(Debug, Clone, Args)]
pub struct DevicesArguments {
    /// The list as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}
