//! Why decoding fails.

use std::{io, path::PathBuf};

use crate::{ExitCode, checkpoint::Dtype, codec::CodecError, layout::LayoutError};

/// Every way in which decoding can fail.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The target is there already.
    #[error("`{}` exists already", out.display())]
    TargetExists {
        /// The target.
        out: PathBuf,
    },
    /// Another process decodes into the same target.
    #[error("another process is writing `{}`", out.display())]
    Locked {
        /// The target.
        out: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A tensor cannot be read.
    #[error("tensor `{tensor}`: {source}")]
    Layout {
        /// The tensor.
        tensor: String,
        /// Why.
        source: LayoutError,
    },
    /// A tensor's codes are malformed.
    #[error("tensor `{tensor}`: {source}")]
    Codec {
        /// The tensor.
        tensor: String,
        /// Why.
        source: CodecError,
    },
    /// Finite weights would become infinite.
    #[error("tensor `{tensor}`: {count} weights are too large for {dtype:?}")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        dtype: Dtype,
        /// How many weights.
        count: u64,
    },
}

impl DecodeError {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::TargetExists { .. } | Self::Locked { .. } | Self::Io { .. } => ExitCode::Environment,
            Self::Layout { source, .. } => source.exit_code(),
            Self::Codec { .. } | Self::Overflow { .. } => ExitCode::Input,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TargetExists { .. } => Some("give another --out, or remove it yourself".into()),
            Self::Locked { .. } => Some("wait for it to end, or give another --out".into()),
            Self::Overflow { .. } => Some("give --dtype bf16 or --dtype f32, which reach further".into()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space and run the same command again".into())
            }
            Self::Layout { source, .. } => source.hint(),
            Self::Io { .. } | Self::Codec { .. } => None,
        }
    }
}
