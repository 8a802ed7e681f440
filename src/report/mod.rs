//! Reports: what was done to a model and what it cost, as one page for people or one JSON object for programs.
//!
//! [`Report`] is the data, made from manifests (and, where the source is there, from weights); [`html`], [`markdown`] and
//! [`card`] are pure functions of it, so that the same artifacts give the same bytes.

mod artifact;
mod card;
mod comparison;
mod error;
mod evaluation;
mod histograms;
mod html;
mod markdown;
mod plot;
mod tables;
mod text;

pub use artifact::{Artifact, LayerError, Opened, RoleSize, TensorRow};
pub use card::{CARD_NAME, CardFacts, card, replace, write_card};
pub use comparison::{Change, Comparison};
pub use error::ReportError;
pub use evaluation::Evaluation;
pub use histograms::{Chosen, Histograms, Sides, TensorHistogram, default_choice};
pub use html::html;
pub use markdown::markdown;

use serde::Serialize;

use crate::manifest::Tool;

/// The schema of a report's JSON form.
pub const SCHEMA: &str = "bantam.report/1";

/// All that a report says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// What wrote the report.
    pub tool: Tool,
    /// The artifact that it is about.
    pub artifact: Artifact,
    /// The one beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Artifact>,
    /// How the two differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// What `bantam eval` measured, in the order given.
    pub evaluations: Vec<Evaluation>,
    /// Weights of some tensors before and after.
    pub histograms: Histograms,
}

impl Report {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        artifact: &Opened,
        against: Option<&Opened>,
        evaluations: Vec<Evaluation>,
        histograms: Histograms,
    ) -> Self {
        Self {
            schema: SCHEMA,
            tool: Tool::default(),
            comparison: against.map(|against| Comparison::of(artifact, against)),
            artifact: artifact.facts.clone(),
            against: against.map(|against| against.facts.clone()),
            evaluations,
            histograms,
        }
    }

    /// The artifact, and the one beside it where there is one.
    pub(crate) fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        std::iter::once(&self.artifact).chain(&self.against)
    }

    /// The JSON form: indented, a line feed at the end. A figure that is infinite is `null`.
    ///
    /// # Errors
    /// [`ReportError::Json`] when it cannot be written.
    pub fn json(&self) -> Result<String, ReportError> {
        let mut text = serde_json::to_string_pretty(self).map_err(|source| ReportError::Json { source })?;
        text.push('\n');
        Ok(text)
    }
}
