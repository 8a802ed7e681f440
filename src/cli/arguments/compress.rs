//! Arguments of the commands that compress.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::ByteSize;

/// Arguments of `bantam run`.
#[derive(Debug, Clone, Args)]
pub struct RunArguments {
    /// The recipe, a TOML file
    pub recipe: PathBuf,
    /// The checkpoint, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The checkpoint that differences are taken from, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The folder to write, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Memory that the run may use, such as 8GiB or 500MB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// Memory of the graphics processor that the run may use, such as 6GiB
    #[arg(long, value_name = "SIZE")]
    pub max_device_memory: Option<ByteSize>,
    /// Start over, throwing away what an earlier run left unfinished
    #[arg(long)]
    pub fresh: bool,
    /// Fail instead of doing something else than asked for
    #[arg(long, value_enum, value_name = "WHAT")]
    pub deny: Vec<Denied>,
    /// One JSON object per event on stdout, the manifest last
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArguments {
    /// The recipe, a TOML file
    pub recipe: PathBuf,
    /// The checkpoint, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The checkpoint that differences are taken from, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The folder that would be written, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Number of threads that the run would use [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Memory that the run may use, such as 8GiB or 500MB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// The plan as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam calibrate`.
#[derive(Debug, Clone, Args)]
pub struct CalibrateArguments {
    /// The recipe, a TOML file
    pub recipe: PathBuf,
    /// The file to write, in safetensors
    #[arg(long, value_name = "FILE", required_unless_present = "coverage")]
    pub out: Option<PathBuf>,
    /// Only count the tokens that each expert sees, and write nothing
    #[arg(long, conflicts_with = "out")]
    pub coverage: bool,
    /// The checkpoint, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Memory of the graphics processor that may be used, such as 6GiB
    #[arg(long, value_name = "SIZE")]
    pub max_device_memory: Option<ByteSize>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Memory that it may use, such as 8GiB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// What was found as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Device {
    /// What a measurement finds to be faster, where that changes no byte
    #[default]
    Auto,
    /// The processor
    Cpu,
    /// The graphics processor
    Gpu,
}

/// `--deny`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Denied {
    /// A tensor kept dense or treated otherwise than asked for
    Fallback,
}
