//! Every way in which a report can fail.

use std::path::PathBuf;

use crate::{ExitCode, manifest::ManifestError};

/// Every way in which a report can fail.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The folder is not what a run wrote.
    #[error("{} has no manifest.json: there is nothing to report on", folder.display())]
    NoManifest {
        /// The folder.
        folder: PathBuf,
    },
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// `config.json` is not JSON, or cannot be read.
    #[error("{}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A file of an evaluation is not what `bantam eval --json` prints.
    #[error("{}: {message}", path.display())]
    Evaluation {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A plot cannot be drawn.
    #[error("cannot draw the plot `{plot}`: {message}")]
    Draw {
        /// Which one.
        plot: &'static str,
        /// Why.
        message: String,
    },
    /// The page cannot be put together.
    #[error("cannot write the page: {source}")]
    Page {
        /// Why.
        source: minijinja::Error,
    },
    /// The report is no JSON.
    #[error("cannot write the report as JSON: {source}")]
    Json {
        /// Why.
        source: serde_json::Error,
    },
    /// A model card stands there that bantam did not write.
    #[error("`{}` is there, and bantam did not write it", path.display())]
    CardStands {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io {
        /// Read or write.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ReportError {
    /// The exit code of this failure.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoManifest { .. } | Self::Manifest(_) | Self::Config { .. } => ExitCode::Input,
            Self::Evaluation { .. } => ExitCode::Usage,
            Self::Draw { .. } | Self::Page { .. } | Self::Json { .. } | Self::CardStands { .. } | Self::Io { .. } => {
                ExitCode::Environment
            }
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoManifest { folder } => Some(format!(
                "a report is of a folder that `bantam run` wrote; `bantam inspect {}` tells about any checkpoint",
                folder.display()
            )),
            Self::Evaluation { .. } => {
                Some("make it with `bantam eval MODEL --text FILE --json > FILE.json`".to_owned())
            }
            Self::CardStands { .. } => Some("--force replaces it".to_owned()),
            _ => None,
        }
    }
}
