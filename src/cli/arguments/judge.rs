//! Arguments of the commands that look at models and judge artifacts.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::compress::Device;
use crate::cli::ByteSize;

/// Arguments of `bantam inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArguments {
    /// A checkpoint or an artifact: a folder, or one .safetensors file
    pub path: PathBuf,
    /// Statistics of these tensors: a role, a glob, or a /regular expression/
    #[arg(long, value_name = "SELECTOR")]
    pub tensor: Vec<String>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArguments {
    /// The reference: a checkpoint or an artifact
    pub a: PathBuf,
    /// What is compared with it
    pub b: PathBuf,
    /// Exit with 1 when a tensor's signal-to-noise ratio is below this many decibels
    #[arg(long, value_name = "DB", allow_negative_numbers = true)]
    pub min_snr: Option<f64>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArguments {
    /// The folder that a run wrote
    pub artifact: PathBuf,
    /// The checkpoint it was made of: its hashes are checked and the error figures derived again
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta: its hashes are checked
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The findings as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArguments {
    /// The folder that a run wrote
    pub artifact: PathBuf,
    /// What it must be, a TOML file
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// How findings are written to stdout
    #[arg(long, value_enum, default_value_t = FindingsFormat::Text)]
    pub format: FindingsFormat,
}

/// How findings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FindingsFormat {
    /// For people
    Text,
    /// One JSON object
    Json,
    /// `JUnit` XML, for test reports
    Junit,
    /// SARIF 2.1.0, for code hosts
    Sarif,
}

/// Arguments of `bantam audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArguments {
    /// The folder that a run with pass `taylor_mlp` wrote
    pub artifact: PathBuf,
    /// The checkpoint it was made of: it judges what was recovered, and is not used to recover it
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArguments {
    /// The folder that a run wrote
    pub artifact: PathBuf,
    /// Another artifact, shown beside it
    #[arg(long, value_name = "OTHER")]
    pub against: Option<PathBuf>,
    /// The file to write; one of that name is replaced
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Form of the report [default: what the name of --out says, or markdown]
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    /// The checkpoint that it was made of, for histograms [default: where the run found it]
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Histograms of these tensors: a role, a glob, or a /regular expression/ [default: the worst, the median, the largest]
    #[arg(long, value_name = "SELECTOR")]
    pub tensor: Vec<String>,
    /// A row of the table of perplexities: what `bantam eval --json` printed; the row has the file's name
    #[arg(long, value_name = "FILE")]
    pub evaluation: Vec<PathBuf>,
    /// Evaluate source and artifacts on this text now
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens of a window of --text [default: what the model takes, at most 2048]
    #[arg(long, value_name = "N", value_parser = parse_context, requires = "text")]
    pub context: Option<usize>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Write a model card into the artifact, as README.md, and list it in the manifest
    #[arg(long)]
    pub card: bool,
    /// The original model on a hub, for the card [default: as the recipe names it]
    #[arg(long, value_name = "OWNER/NAME", requires = "card")]
    pub base_model: Option<String>,
    /// Replace a README.md that bantam did not write
    #[arg(long, requires = "card")]
    pub force: bool,
}

/// Forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// One file for a browser
    Html,
    /// Tables
    Markdown,
    /// One JSON object
    Json,
}

/// Arguments of `bantam eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArguments {
    /// A checkpoint or an artifact
    pub path: PathBuf,
    /// The text: .txt, .jsonl, or token ids in .safetensors; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub text: Vec<PathBuf>,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The model to compare with
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// Tokens of a window [default: what the model takes, at most 2048]
    #[arg(long, value_name = "N", value_parser = parse_context)]
    pub context: Option<usize>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Memory of the graphics processor that may be used, such as 6GiB
    #[arg(long, value_name = "SIZE")]
    pub max_device_memory: Option<ByteSize>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Memory that the evaluation may use, such as 8GiB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// Also measure retrieval: each window is a passage of half as many tokens and the same passage again, whose tokens are to
    /// be predicted
    #[arg(long)]
    pub retrieval: bool,
    /// Tokens whose keys and values are exact, instead of the window that an artifact of pass `lowrank_kv` records
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,
    /// Write all logits to this safetensors file, F32 [windows, context, vocabulary]
    #[arg(long, value_name = "FILE")]
    pub save_logits: Option<PathBuf>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

fn parse_context(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(context) if context >= 2 => Ok(context),
        _ => Err("expected a whole number of at least 2".to_owned()),
    }
}
