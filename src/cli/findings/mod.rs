//! Findings as text, as JSON, and as CI systems read them, for the commands that look for some.

mod junit;
mod sarif;

pub use junit::junit;
pub use sarif::sarif;

use std::fmt::Write;

use serde::Serialize;

use super::{Output, Style, table::wrapped};
use crate::verify::Finding;

/// The JSON form.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    schema: &'static str,
    passed: bool,
    findings: &'a [Finding],
}

impl<'a> Report<'a> {
    /// Of all that was found; nothing is a pass.
    #[must_use]
    pub fn new(findings: &'a [Finding]) -> Self {
        Self { schema: "bantam.check/1", passed: findings.is_empty(), findings }
    }
}

/// The text form of one finding or more, about what is called `name`.
#[must_use]
pub fn text(name: &str, findings: &[Finding], output: &Output) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for finding in findings {
        let about = finding.tensor.as_deref().unwrap_or("the artifact");
        let line = wrapped(&format!("{}: {about}: {}", finding.rule, finding.message), 4);
        let _ = writeln!(text, "{line}");
        if let (Some(value), Some(limit)) = (&finding.value, &finding.limit) {
            let _ = writeln!(text, "    found    {value}\n    expected {limit}");
        }
    }
    let count = match findings.len() {
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    };
    let _ = writeln!(text, "{} {name}: {count}", output.paint(Style::Red, "failed"));
    text
}
