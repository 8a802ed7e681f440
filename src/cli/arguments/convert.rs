//! Arguments of the commands that turn artifacts into something else, and back.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::checkpoint::Dtype;

/// Arguments of `bantam decode`.
#[derive(Debug, Clone, Args)]
pub struct DecodeArguments {
    /// A compressed model, of bantam or of another tool
    pub artifact: PathBuf,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Element type of every float tensor [default: what the artifact says]
    #[arg(long, value_enum)]
    pub dtype: Option<DenseDtype>,
    /// What was written as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArguments {
    /// diff.pt, or a .safetensors file with the same names; or either one of CSKV's `NAME_k.ckpt` and `NAME_v.ckpt`
    pub file: PathBuf,
    /// The checkpoint that the differences are from, or that the factors were made for
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Of CSKV's files: tokens whose keys and values stay exact
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub window: usize,
    /// Of CSKV's files: the artifact's layout
    #[arg(long, value_name = "NAME", default_value = "remote-code", value_parser = ["remote-code", "bantam"])]
    pub layout: String,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What was written as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArguments {
    /// An artifact of pass bitdelta or `lowrank_kv`
    pub artifact: PathBuf,
    /// The checkpoint that the differences are from; needed where only some rows of a tensor are stored
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The file to write, in safetensors; of factors what stands before `_k.ckpt` and `_v.ckpt`. It must not exist
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What was written as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam masks`.
#[derive(Debug, Clone, Args)]
pub struct MasksArguments {
    /// The model: a checkpoint or an artifact
    pub model: PathBuf,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The file to write; one of that name is replaced
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What was written as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DenseDtype {
    /// 16 bits, 8 of them exponent
    Bf16,
    /// 16 bits, 5 of them exponent
    F16,
    /// 32 bits
    F32,
}

impl From<DenseDtype> for Dtype {
    fn from(dtype: DenseDtype) -> Self {
        match dtype {
            DenseDtype::Bf16 => Self::BF16,
            DenseDtype::F16 => Self::F16,
            DenseDtype::F32 => Self::F32,
        }
    }
}
