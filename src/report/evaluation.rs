//! What `bantam eval --json` measured, read back.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ReportError;

/// The schema of evaluations that are read.
const SCHEMA: &str = "bantam.eval/1";

/// One evaluation: a row of the table of perplexities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Of which model: the file's name without its extension, or what the command evaluated.
    #[serde(default)]
    pub name: String,
    /// Perplexity; none of an encoder.
    pub perplexity: Option<f64>,
    /// Its standard error over windows.
    pub perplexity_standard_error: Option<f64>,
    /// Predicted tokens.
    pub tokens: u64,
    /// Tokens of a window.
    pub context: u64,
    /// Windows.
    pub windows: u64,
    /// Mean Kullback–Leibler divergence from the reference, nats per token.
    pub mean_kl_divergence: Option<f64>,
    /// Its standard error.
    pub mean_kl_divergence_standard_error: Option<f64>,
    /// 99th percentile over tokens.
    pub p99_kl_divergence: Option<f64>,
    /// Share of tokens whose most likely successor is the reference's.
    pub top1_agreement: Option<f64>,
    /// Relative error of the last hidden states.
    pub hidden_relative_error: Option<f64>,
    /// Each file of text with its tokens.
    pub text: Vec<String>,
}

impl Evaluation {
    /// Reads what `bantam eval --json` printed; the row is named after the file.
    ///
    /// # Errors
    /// [`ReportError::Evaluation`] when it is something else.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let wrong = |message: String| ReportError::Evaluation { path: path.to_owned(), message };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("is not JSON: {error}")))?;
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        Self::of(name, value).map_err(wrong)
    }

    /// Takes an evaluation's JSON form.
    ///
    /// # Errors
    /// A sentence about what is wrong with it.
    pub fn of(name: String, value: Value) -> Result<Self, String> {
        match value.get("schema").and_then(Value::as_str) {
            Some(SCHEMA) => {}
            Some(other) => return Err(format!("its schema is `{other}`, expected `{SCHEMA}`")),
            None => return Err(format!("has no `schema`, expected `{SCHEMA}`")),
        }
        let read: Self = serde_json::from_value(value).map_err(|error| format!("is no evaluation: {error}"))?;
        Ok(Self { name, ..read })
    }
}
