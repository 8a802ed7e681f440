//! Every way in which an audit can fail.

use std::path::PathBuf;

/// Why an artifact cannot be audited.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is nothing that the recovery is for.
    #[error("`{}` has no expanded layers: no tensor's name ends with `_terms.weight`", path.display())]
    NotExpanded {
        /// The artifact.
        path: PathBuf,
    },
    /// A stored tensor is not what it must be.
    #[error("tensor `{tensor}` {problem}")]
    Malformed {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// The activation has no power series, or the config names none.
    #[error("`config.json` names activation `{name}`, for which there are no expanded layers")]
    Activation {
        /// The name.
        name: String,
    },
    /// The source is another model.
    #[error("the source has no dense gate and down projection of the shape that `{module}` has")]
    Source {
        /// The layer.
        module: String,
    },
}

impl AuditError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotExpanded { .. } => Some("audit what pass `taylor_mlp` wrote; other passes hide nothing".into()),
            Self::Source { .. } => Some("give the checkpoint that the artifact was made of with `--source`".into()),
            Self::Malformed { .. } | Self::Activation { .. } => None,
        }
    }
}
