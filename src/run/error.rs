//! Why a run stops.

use std::path::PathBuf;

use crate::ExitCode;

/// Every way in which a run fails. What was done so far stays in the work folder, and the same command continues.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The operating system refused something.
    #[error("cannot {doing} `{path}`: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Something else stands where the artifact should go.
    #[error("`{out}` exists already and is not the artifact of this recipe and model")]
    TargetExists {
        /// The target.
        out: PathBuf,
    },
    /// `--fresh` would delete something that bantam did not write.
    #[error("`{out}` exists already and bantam did not write it (it has no manifest.json of bantam's)")]
    TargetForeign {
        /// The target.
        out: PathBuf,
    },
    /// Another process works on the same target.
    #[error("another run is writing `{out}` (it holds `{lock}`)")]
    Locked {
        /// The target.
        out: PathBuf,
        /// The lock file.
        lock: PathBuf,
    },
    /// The work folder belongs to another plan.
    #[error("`{work}` holds an unfinished run of another recipe, model, device or version")]
    OtherRun {
        /// The work folder.
        work: PathBuf,
    },
    /// Non-finite weights.
    #[error("tensor `{tensor}` has {count} non-finite weights, the first at index {first_index}")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// How many.
        count: u64,
        /// Flat index of the first.
        first_index: u64,
    },
    /// A unit could not be encoded or decoded.
    #[error("tensor `{tensor}`: {source}")]
    Codec {
        /// The tensor.
        tensor: String,
        /// Why.
        source: crate::codec::CodecError,
    },
    /// A pass and the plan disagree: a defect of bantam.
    #[error("tensor `{tensor}`: {message}; this is a defect of bantam, please report it")]
    Defect {
        /// The tensor.
        tensor: String,
        /// What disagrees.
        message: String,
    },
    /// A fallback was needed and is denied.
    #[error("tensor `{tensor}`: {kind} ({count} times), and `--deny fallback` forbids it")]
    FallbackDenied {
        /// The tensor.
        tensor: String,
        /// The kind.
        kind: String,
        /// How often.
        count: u64,
    },
    /// What was written does not read back the same.
    #[error("`{name}` in `{folder}` does not read back as written: expected {expected}, got {got}")]
    Verify {
        /// The tensor.
        name: String,
        /// Where.
        folder: PathBuf,
        /// Hash when written.
        expected: String,
        /// Hash now.
        got: String,
    },
    /// Asked to stop.
    #[error("stopped after {done} of {total} tensors")]
    Stopped {
        /// Units done.
        done: usize,
        /// Units in all.
        total: usize,
    },
}

impl RunError {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Io { .. } | Self::TargetExists { .. } | Self::TargetForeign { .. } | Self::Locked { .. } => {
                ExitCode::Environment
            }
            Self::Verify { .. } | Self::Defect { .. } | Self::OtherRun { .. } => ExitCode::Environment,
            Self::NonFinite { .. } | Self::Codec { .. } => ExitCode::Input,
            Self::FallbackDenied { .. } => ExitCode::Difference,
            Self::Stopped { .. } => ExitCode::Stopped,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some space and run the same command again: it continues where it stopped".into()
            }
            Self::Io { .. } => "mend the cause and run the same command again: it continues where it stopped".into(),
            Self::TargetExists { .. } => "give another --out, or --fresh to replace it".into(),
            Self::TargetForeign { .. } => "give another --out, or remove it yourself".into(),
            Self::Locked { .. } => "wait for it to end, or give another --out".into(),
            Self::OtherRun { .. } => "give --fresh to start over, or another --out to keep both".into(),
            Self::NonFinite { .. } => {
                "mend the checkpoint, or write `non_finite = \"keep\"` under [input] to keep such tensors as they are"
                    .into()
            }
            Self::FallbackDenied { .. } => "`skip` the tensor or change the setting".into(),
            Self::Verify { .. } => "check the disk, then run the same command with --fresh".into(),
            Self::Stopped { .. } => "run the same command again to continue".into(),
            Self::Codec { .. } | Self::Defect { .. } => return None,
        })
    }
}
