//! Other projects' own files. CSKV's pairs of factors, both ways, in `cskv`. BitDelta's, both ways: `diff.pt`, and the same names in safetensors (FasterDecoding/BitDelta, `bitdelta/diff.py`).
//!
//! For the weight `X.weight` `[outputs, inputs]` of a linear: `X.mask` I32 `[inputs / 32, outputs]`, bit b of word k of a
//! column is the sign of input 32 k + b, 1 for +1; `X.coeff`, a number. The weight is the base's + (2 · bit − 1) · coeff.
//! Every other trained tensor stands there whole, under its own name. What is missing is the base's.

mod cskv;
mod cskv_import;
mod export;
mod import;

pub use cskv::{ExportedCskv, cskv_pair, export_cskv, has_factors, is_cskv};
pub use cskv_import::{CskvChoice, ImportedCskv, import_cskv};
pub use export::{Exported, export};
pub use import::{Imported, import};

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    ExitCode,
    checkpoint::{Checkpoint, CheckpointError},
    codec::CodecError,
    decode::DecodeError,
    forward::ForwardError,
    layout::LayoutError,
    manifest::ManifestError,
    torch_file::TorchFileError,
};

/// What stands after a module's name.
const MASK: &str = ".mask";
const COEFFICIENT: &str = ".coeff";

/// Signs in a word.
const WORD: usize = 32;

/// Whether a path is, by its name or by what it holds, a file of BitDelta's.
#[must_use]
pub fn is_bitdelta(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "pt" | "pth" | "bin" => path.is_file(),
        "safetensors" => Checkpoint::open(path)
            .is_ok_and(|checkpoint| checkpoint.tensors().any(|tensor| tensor.name.ends_with(COEFFICIENT))),
        _ => false,
    }
}

/// Why a file of BitDelta's cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The file cannot be opened, or is no safetensors file.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file is none of `torch.save`'s, or holds something else than tensors.
    #[error("{}: {source}", path.display())]
    TorchFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TorchFileError,
    },
    /// A tensor is not what its name says, or does not fit the base.
    #[error("tensor `{name}`: {problem}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// Nothing in it is a difference.
    #[error("{} holds no signs: no tensor is called `….mask`", path.display())]
    NoDifference {
        /// The file.
        path: PathBuf,
    },
    /// The artifact holds something that BitDelta's files cannot.
    #[error("`{name}` {problem}")]
    Unknown {
        /// The tensor.
        name: String,
        /// Why not.
        problem: String,
    },
    /// A model or a file that does not have CSKV's form.
    #[error("`{name}` {problem}")]
    Cskv {
        /// The matrix or the file.
        name: String,
        /// Why not.
        problem: String,
    },
    /// The model's projections cannot be told.
    #[error(transparent)]
    Model(#[from] ForwardError),
    /// The artifact cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A tensor's bytes are malformed.
    #[error("tensor `{name}`: {source}")]
    Codec {
        /// The tensor.
        name: String,
        /// Why.
        source: CodecError,
    },
    /// The folder cannot be written.
    #[error(transparent)]
    Write(#[from] DecodeError),
    /// The manifest cannot be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The operating system refused something.
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl ExchangeError {
    fn tensor(name: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), problem: problem.into() }
    }

    fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Io { .. } => ExitCode::Environment,
            Self::Write(error) => error.exit_code(),
            Self::Layout(error) => error.exit_code(),
            Self::Unknown { .. } => ExitCode::Usage,
            Self::Checkpoint(_)
            | Self::Cskv { .. }
            | Self::Model(_)
            | Self::TorchFile { .. }
            | Self::Tensor { .. }
            | Self::NoDifference { .. }
            | Self::Codec { .. }
            | Self::Manifest(_) => ExitCode::Input,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::Write(error) => error.hint(),
            Self::Layout(error) => error.hint(),
            Self::Unknown { .. } => Some(
                "run `bitdelta` with planes = 1 and scale = \"matrix\", the form that BitDelta's files have".into(),
            ),
            Self::TorchFile { .. }
            | Self::Tensor { .. }
            | Self::Cskv { .. }
            | Self::Model(_)
            | Self::NoDifference { .. }
            | Self::Codec { .. }
            | Self::Manifest(_)
            | Self::Io { .. } => None,
        }
    }
}
