//! Verification: an artifact is what its manifest says, and its layout is what its runtime expects.
//!
//! Whatever is wrong becomes a finding, so that one call shows all of it; only a folder without a readable manifest is
//! an error, since then there is nothing to hold the artifact against.

mod content;
mod errors;
mod sparsity;
mod structure;

pub use sparsity::{RULE as SPARSITY_RULE, sparsity};

use std::path::Path;

use serde::Serialize;

use crate::{
    checkpoint::Checkpoint,
    layout::LogicalCheckpoint,
    manifest::{Manifest, ManifestError},
    remote::is_remote,
};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Which rule is broken, by a fixed name.
    pub rule: &'static str,
    /// The tensor or file it is about.
    pub tensor: Option<String>,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What was found.
    pub value: Option<serde_json::Value>,
    /// What was expected.
    pub limit: Option<serde_json::Value>,
}

impl Finding {
    pub(crate) fn new(rule: &'static str, tensor: &str, message: String) -> Self {
        Self { rule, tensor: Some(tensor.to_owned()), message, value: None, limit: None }
    }

    /// About the artifact as a whole.
    pub(crate) fn of_all(rule: &'static str, message: String) -> Self {
        Self { rule, tensor: None, message, value: None, limit: None }
    }

    pub(crate) fn with(mut self, value: impl Into<serde_json::Value>, limit: impl Into<serde_json::Value>) -> Self {
        (self.value, self.limit) = (Some(value.into()), Some(limit.into()));
        self
    }
}

/// Verifies the artifact in `folder`: files, headers, hashes, sums, layout, codes, masks; with the `source`, also that it is
/// what the artifact was made of and that every error figure comes out again. With the `base`, for an artifact of
/// differences, that it is the one; without it such differences are decoded alone. Findings are in a fixed order.
/// `progress` is told the bytes read so far and in all, from many threads.
///
/// # Errors
/// [`ManifestError`] when there is no manifest to hold the artifact against.
pub fn verify(
    folder: &Path,
    source: Option<&LogicalCheckpoint>,
    base: Option<LogicalCheckpoint>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<Finding>, ManifestError> {
    // What is in an object store is looked at in the folder that stands for it.
    let opened =
        if is_remote(folder) { Some(Checkpoint::open(folder).map_err(ManifestError::Artifact)?) } else { None };
    let own = opened.as_ref().map(|checkpoint| checkpoint.root().to_owned());
    let folder = own.as_deref().unwrap_or(folder);
    let manifest = Manifest::read(folder)?;
    let mut findings = structure::files(folder, &manifest);
    findings.extend(structure::sums(&manifest));
    findings.extend(structure::layout(&manifest));
    let checkpoint = match opened.map_or_else(|| Checkpoint::open(folder), Ok) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            findings.push(Finding::of_all("structure", error.to_string()));
            return Ok(findings);
        }
    };
    findings.extend(structure::weight_files(folder, &checkpoint));
    findings.extend(structure::parts(&manifest, &checkpoint));
    findings.extend(structure::config(&manifest, &checkpoint));
    let artifact = match LogicalCheckpoint::open(checkpoint) {
        Ok(artifact) => artifact,
        Err(error) => {
            findings.push(Finding::of_all("layout", error.to_string()));
            return Ok(findings);
        }
    };
    findings.extend(structure::logical(&manifest, &artifact));
    let artifact = match base {
        None => artifact,
        Some(base) => {
            if let Err(error) = manifest.require_base(folder, base.checkpoint()) {
                findings.push(Finding::of_all("base", error.to_string()));
                return Ok(findings);
            }
            match artifact.with_base(base) {
                Ok(artifact) => artifact,
                Err(error) => {
                    findings.push(Finding::of_all("base", error.to_string()));
                    return Ok(findings);
                }
            }
        }
    };
    let meter = content::Meter::new(&manifest, source, progress);
    findings.extend(content::outputs(&manifest, artifact.checkpoint(), &meter));
    if let Some(source) = source {
        findings.extend(content::inputs(&manifest, source.checkpoint(), &meter));
        findings.extend(errors::compare_with_source(&manifest, source, &artifact));
    } else {
        findings.extend(errors::read_all(&manifest, &artifact));
    }
    findings.extend(sparsity::masked(&manifest, &artifact));
    Ok(findings)
}
