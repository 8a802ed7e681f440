//! Findings as text, as JSON, and as CI systems read them, for the commands that look for some.

mod junit;
mod sarif;

pub use junit::junit;
pub use sarif::sarif;

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::{
    Output, Style,
    table::{self, wrapped},
};
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

/// The text form of one finding or more, about what is called `name`: those of one rule stand together.
#[must_use]
pub fn text(name: &str, findings: &[Finding], output: &Output) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for same in findings.chunk_by(|a, b| (a.rule, &a.message) == (b.rule, &b.message)) {
        let _ = writeln!(text, "{}", wrapped(&format!("{}: {}", same[0].rule, same[0].message), 4));
        let rows: Option<Vec<_>> = same.iter().map(row).collect();
        match rows {
            Some(rows) => {
                let _ = writeln!(text, "{}", table::render(&["", "found", "expected"], 1, rows));
            }
            None => same.iter().for_each(|finding| lines(&mut text, finding)),
        }
        text.push('\n');
    }
    let count = match findings.len() {
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    };
    let _ = writeln!(text, "{} {name}: {count}", output.paint(Style::Red, "failed"));
    text
}

/// What a finding without a tensor is about.
const WHOLE: &str = "the artifact";

/// The longest value that stands in a table: hashes and lists have lines of their own.
const SHORT: usize = 20;

fn row(finding: &Finding) -> Option<Vec<String>> {
    let (value, limit) = (shown(finding.value.as_ref()?), shown(finding.limit.as_ref()?));
    let about = finding.tensor.as_deref().unwrap_or(WHOLE).to_owned();
    (value.chars().count() <= SHORT && limit.chars().count() <= SHORT).then(|| vec![about, value, limit])
}

fn lines(text: &mut String, finding: &Finding) {
    let _ = writeln!(text, "  {}", finding.tensor.as_deref().unwrap_or(WHOLE));
    if let (Some(value), Some(limit)) = (&finding.value, &finding.limit) {
        let _ = writeln!(text, "    found    {}\n    expected {}", shown(value), shown(limit));
    }
}

/// A value as people read it: numbers that are not whole to six digits, which JSON has in full.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let digits = 5 - number.abs().log10().floor().clamp(-300.0, 5.0) as i32;
            let text = format!("{number:.*}", digits.max(0) as usize);
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Finding, shown, text};
    use crate::cli::{GlobalArguments, Output};

    #[test]
    fn numbers_are_short_and_keep_what_matters() {
        let cases = [
            (json!(18.789_912_345), "18.7899"),
            (json!(4.0), "4"),
            (json!(0.000_123_456_789), "0.000123457"),
            (json!(-100.0), "-100"),
            (json!(123_456_789.25), "123456789"),
            (json!(0.0), "0"),
            (json!(3), "3"),
            (json!("2:4"), "2:4"),
        ];
        for (value, expected) in cases {
            assert_eq!(shown(&value), expected);
        }
    }

    #[test]
    fn findings_of_one_rule_are_one_table() {
        let snr = |name, value: f64| Finding::new("snr-db", name, "too low".into()).with(value, 30.0);
        let hash = Finding::of_all("recipe-hash", "another recipe".into()).with("a".repeat(64), "b".repeat(64));
        let text = text(
            "artifact",
            &[snr("first.weight", 18.5), snr("second.weight", 7.25), hash],
            &Output::new(&GlobalArguments::default(), false),
        );
        let expected = format!(
            "snr-db: too low\n               found  expected\nfirst.weight    18.5        30\nsecond.weight   7.25        \
             30\n\nrecipe-hash: another recipe\n  the artifact\n    found    {}\n    expected {}\n\nfailed artifact: 3 \
             findings\n",
            "a".repeat(64),
            "b".repeat(64)
        );
        assert_eq!(text, expected);
    }
}
