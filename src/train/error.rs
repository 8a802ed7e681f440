//! Why a training ends early.

use std::path::{Path, PathBuf};

use crate::{ExitCode, reverse::ReverseError};

/// Why a training ends early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Gradients cannot be computed, or overflow.
    #[error(transparent)]
    Reverse(#[from] ReverseError),
    /// The file of the saved state fails.
    #[error("`{path}`: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Rules ask for different trainings, and there is one for all.
    #[error("`{first}` and `{second}` are trained together, but their rules set {what} differently")]
    Different {
        /// A tensor.
        first: String,
        /// Another.
        second: String,
        /// What differs.
        what: &'static str,
    },
    /// Asked to stop.
    #[error("stopped behind step {step} of {steps} of the training")]
    Stopped {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
    },
}

impl TrainError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// The exit code of this failure.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Reverse(error) => error.exit_code(),
            Self::Io { .. } => ExitCode::Environment,
            Self::Different { .. } => ExitCode::Usage,
            Self::Stopped { .. } => ExitCode::Stopped,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Different { .. } => Some("give all rules and overrides that train the same settings".into()),
            Self::Stopped { .. } => Some("run the same command again to continue".into()),
            Self::Reverse(_) | Self::Io { .. } => None,
        }
    }
}
