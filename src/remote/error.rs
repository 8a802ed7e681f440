//! What can go wrong with an object store.

use std::{io, path::PathBuf};

use crate::ExitCode;

/// Every way in which reading from or writing to an object store can fail. No message holds a credential.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what their messages say")]
pub enum RemoteError {
    /// Not of the form of a location.
    #[error("`{url}` is no location in an object store: {problem}")]
    Malformed { url: String, problem: &'static str },
    /// Built without the feature.
    #[error("`{url}` is in an object store, and this bantam was built without the feature `object-store`")]
    NotBuilt { url: String },
    /// The environment does not say how to reach the store.
    #[error("cannot use `{url}`: {message}")]
    Client { url: String, message: String },
    /// A request failed, after all retries.
    #[error("cannot {doing} `{url}`: {message}")]
    Request { doing: &'static str, url: String, message: String },
    /// The object is not the one that was opened.
    #[error("`{url}` has changed since it was opened: {message}")]
    Changed { url: String, message: String },
    /// There is nothing below the location.
    #[error("there is no checkpoint at `{url}`: no object begins with it")]
    Missing { url: String },
    /// Too many objects to be one model.
    #[error("`{url}` holds more than {most} objects: that is no single model")]
    TooMany { url: String, most: usize },
    /// The disk fails.
    #[error("cannot {doing} `{path}`: {source}")]
    Disk { doing: &'static str, path: PathBuf, source: io::Error },
    /// Something that is not ours is at the target.
    #[error("`{url}` holds objects that are not of this run, such as `{name}`")]
    Foreign { url: String, name: String },
    /// The environment names no folder for what is uploaded.
    #[error("there is no folder for what is uploaded: none of BANTAM_STAGING, XDG_CACHE_HOME and HOME is set")]
    NoStaging,
}

impl RemoteError {
    pub(crate) fn disk(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { doing, path, source }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Malformed { .. } => "write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX".into(),
            Self::NotBuilt { .. } => "build it with `--features object-store`, which is on by default".into(),
            Self::Client { .. } | Self::Request { .. } => {
                "credentials and endpoint come from the environment: docs/storage.md lists the variables".into()
            }
            Self::Changed { .. } => "the same command again reads the model as it is now".into(),
            Self::Missing { .. } | Self::TooMany { .. } => "name the prefix that holds config.json".into(),
            Self::Foreign { .. } => "give another target; `--fresh` replaces an artifact of bantam's".into(),
            Self::Disk { .. } | Self::NoStaging => return None,
        })
    }

    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Malformed { .. } | Self::NotBuilt { .. } => ExitCode::Usage,
            Self::Changed { .. } | Self::Missing { .. } | Self::TooMany { .. } => ExitCode::Input,
            Self::Client { .. } | Self::Request { .. } | Self::Foreign { .. } | Self::Disk { .. } | Self::NoStaging => {
                ExitCode::Environment
            }
        }
    }
}
