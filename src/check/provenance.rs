//! Where an artifact comes from: tool, recipe, inputs.

use std::fmt::Write as _;

use super::policy::Provenance;
use crate::{
    Result,
    checkpoint::Checkpoint,
    layout::LogicalCheckpoint,
    manifest::{ContentHash, Manifest},
    verify::Finding,
};

pub(super) fn provenance(manifest: &Manifest, wanted: &Provenance) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if let Some(versions) = &wanted.tool_version {
        let written = &manifest.tool.version;
        let fits = semver::Version::parse(written).is_ok_and(|version| versions.matches(&version));
        if !fits {
            let finding = Finding::of_all("tool-version", "was written by another version of the tool".into());
            findings.push(finding.with(written.as_str(), versions.to_string()));
        }
    }
    let mut compare = |rule, what: &str, found: ContentHash, wanted: Option<ContentHash>| {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            let finding = Finding::of_all(rule, format!("{what} is another than the policy wants"));
            findings.push(finding.with(found.to_string(), wanted.to_string()));
        }
    };
    compare("recipe-hash", "the recipe", recipe_hash(&manifest.recipe), wanted.recipe_hash);
    compare("inputs-hash", "the source", inputs_hash(manifest), wanted.inputs_hash);
    // The tensors of `source` are compared by verification; here only what it cannot see: another number of them.
    if let Some(path) = &wanted.source {
        let source = LogicalCheckpoint::open(Checkpoint::open(path)?)?;
        let (found, expected) = (manifest.inputs.len(), source.checkpoint().tensors().len());
        if found != expected {
            let message = "was made of another number of tensors than the source has".into();
            findings.push(Finding::of_all("source", message).with(found, expected));
        }
    }
    Ok(findings)
}

/// The hash of a recipe as resolved: of its JSON with sorted keys and without spaces. Where it stood and where it wrote do
/// not count.
pub(super) fn recipe_hash(resolved: &serde_json::Value) -> ContentHash {
    ContentHash::of(without_paths(resolved).to_string().as_bytes())
}

/// A recipe as resolved, without the folders it names.
pub(super) fn without_paths(resolved: &serde_json::Value) -> serde_json::Value {
    let mut resolved = resolved.clone();
    if let Some(recipe) = resolved.as_object_mut() {
        recipe.remove("model");
        recipe.remove("base");
        if let Some(artifact) = recipe.get_mut("artifact").and_then(serde_json::Value::as_object_mut) {
            artifact.remove("out");
        }
    }
    resolved
}

/// A hash over everything the artifact was made of: one line `NAME HASH` for each input tensor, by name; the base's and
/// those of merged models behind them.
pub(super) fn inputs_hash(manifest: &Manifest) -> ContentHash {
    let mut text = String::new();
    let models = std::iter::once(&manifest.inputs).chain(std::iter::once(&manifest.base)).chain(&manifest.merged);
    for model in models {
        for input in model {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {}", input.name, input.hash);
        }
        text.push('\n');
    }
    ContentHash::of(text.as_bytes())
}
