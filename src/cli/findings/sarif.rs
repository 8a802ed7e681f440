//! Findings as SARIF 2.1.0: what code hosts show beside a change.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use serde_json::{Value, json};

use crate::{manifest, verify::Finding};

/// Where the format is described.
const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// One run of the tool with a result for each finding. What a finding is about is a logical location; the physical one is
/// the artifact's manifest, since code hosts drop results without a file.
#[must_use]
pub fn sarif(artifact: &Path, findings: &[Finding]) -> Value {
    let rules: BTreeSet<&str> = findings.iter().map(|finding| finding.rule).collect();
    let index = |rule: &str| rules.iter().position(|known| *known == rule);
    let file = artifact.join(manifest::FILE_NAME);
    let file = file.to_string_lossy().replace('\\', "/");
    let results: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let mut location = json!({ "physicalLocation": {
                "artifactLocation": { "uri": uri(&file) },
                "region": { "startLine": 1 },
            } });
            if let Some(tensor) = &finding.tensor {
                location["logicalLocations"] = json!([{ "fullyQualifiedName": tensor, "kind": "member" }]);
            }
            let mut text = finding.message.clone();
            if let Some(tensor) = &finding.tensor {
                text = format!("{tensor}: {text}");
            }
            if let (Some(value), Some(limit)) = (&finding.value, &finding.limit) {
                text = format!("{text} (found {value}, expected {limit})");
            }
            json!({
                "ruleId": finding.rule,
                "ruleIndex": index(finding.rule),
                "level": "error",
                "message": { "text": text },
                "locations": [location],
                "properties": { "value": finding.value, "limit": finding.limit },
            })
        })
        .collect();
    let rules: Vec<Value> = rules.iter().map(|rule| json!({ "id": rule })).collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": env!("CARGO_PKG_NAME"),
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "results": results,
        }],
    })
}

/// A path as a relative reference: what is not allowed in one is escaped.
fn uri(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}
