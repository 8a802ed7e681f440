//! How a failure becomes a message, a hint and an exit code.

use std::{error::Error as StdError, io};

use super::Output;
use crate::{
    Error, ExitCode, audit::AuditError, calibration::TokenError, check::PolicyError, checkpoint::CheckpointError,
    codec::CodecError, decode::DecodeError, exchange::ExchangeError, forward::ForwardError, layout::LayoutError,
    manifest::ManifestError, plan::PlanError, recipe::RecipeError, remote::RemoteError, report::ReportError,
    run::RunError,
};

/// Every way in which a command can fail on its own account.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The result cannot be written.
    #[error("cannot write to stdout: {source}")]
    Stdout {
        /// Why.
        source: io::Error,
    },
    /// The result cannot be put in JSON.
    #[error("cannot write the result as JSON: {source}")]
    Json {
        /// Why.
        source: serde_json::Error,
    },
    /// The arguments contradict each other or the input.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The machine lacks something.
    #[error("{message}")]
    Environment {
        /// What is missing.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl CliError {
    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Stdout { .. } | Self::Json { .. } | Self::Environment { .. } => ExitCode::Environment,
            Self::Usage { .. } => ExitCode::Usage,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } | Self::Environment { hint, .. } => hint.clone(),
            Self::Stdout { .. } | Self::Json { .. } => None,
        }
    }
}

/// Prints the error with its causes and its hint; gives the exit code.
pub fn report(error: &anyhow::Error, output: &Output) -> ExitCode {
    let (code, hint) = classify(error);
    output.error(&message(error), hint.as_deref());
    code
}

/// The message with its causes, leaving out a cause that the message above it already quotes.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if message.is_empty() {
            message.push_str(&text);
        } else if !last.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        last = text;
    }
    message
}

/// Finds the first typed error in the chain and asks it.
fn classify(error: &anyhow::Error) -> (ExitCode, Option<String>) {
    error.chain().find_map(classify_cause).unwrap_or((ExitCode::Environment, None))
}

fn classify_cause(cause: &(dyn StdError + 'static)) -> Option<(ExitCode, Option<String>)> {
    if let Some(error) = cause.downcast_ref::<CliError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<Error>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<AuditError>() {
        return Some((ExitCode::Input, error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<ReportError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<CheckpointError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<RemoteError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<TokenError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<LayoutError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<DecodeError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<ExchangeError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<PlanError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<RunError>() {
        return Some((error.exit_code(), error.hint()));
    }
    if let Some(error) = cause.downcast_ref::<ForwardError>() {
        return Some((error.exit_code(), None));
    }
    if let Some(error) = cause.downcast_ref::<RecipeError>() {
        return Some((ExitCode::Usage, error.hint()));
    }
    if cause.is::<PolicyError>() {
        return Some((ExitCode::Usage, None));
    }
    if cause.is::<CodecError>() || cause.is::<ManifestError>() {
        return Some((ExitCode::Input, None));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{io, path::PathBuf};

    use anyhow::Context;

    use super::{CliError, classify, message};
    use crate::{Error, ExitCode, decode::DecodeError, manifest::ManifestError};

    fn schema_error() -> ManifestError {
        ManifestError::Schema { path: PathBuf::from("m.json"), found: "x".into() }
    }

    #[test]
    fn typed_errors_keep_their_exit_code_under_context() {
        let bare = Err::<(), _>(schema_error()).context("cannot verify a").unwrap_err();
        assert_eq!(classify(&bare).0, ExitCode::Input);
        let gathered = Err::<(), _>(Error::from(schema_error())).context("cannot verify a").unwrap_err();
        assert_eq!(classify(&gathered).0, ExitCode::Input);
        let usage = anyhow::Error::from(CliError::Usage { message: "no".into(), hint: Some("do".into()) });
        assert_eq!(classify(&usage), (ExitCode::Usage, Some("do".into())));
        assert_eq!(classify(&anyhow::anyhow!("disk")).0, ExitCode::Environment);
    }

    #[test]
    fn a_cause_that_is_quoted_already_is_not_repeated() {
        let source = io::Error::other("disk on fire");
        let error = DecodeError::Io { doing: "create", path: PathBuf::from("x"), source };
        let error = Err::<(), _>(error).context("cannot decode a").unwrap_err();
        assert_eq!(message(&error), "cannot decode a: cannot create `x`: disk on fire");
    }
}
