//! An artifact is no worse than an earlier one.

use super::{Artifact, policy::Baseline, tensors::artifact_bytes};
use crate::{Result, manifest::Manifest, verify::Finding};

/// Size and errors beside the baseline's. A tensor that the baseline does not have, or has exact, may have no error.
pub(super) fn no_worse(artifact: &Artifact<'_>, baseline: &Baseline) -> Result<Vec<Finding>> {
    let before = Manifest::read(&baseline.artifact)?;
    let mut findings = Vec::new();
    let bytes = artifact_bytes(artifact.folder, artifact.manifest)? as f64;
    let bytes_before = artifact_bytes(&baseline.artifact, &before)? as f64;
    let limit = bytes_before * (1.0 + baseline.max_size_increase);
    if bytes > limit {
        let message = format!("is longer than the baseline's {bytes_before} bytes allow");
        findings.push(Finding::of_all("baseline-size", message).with(bytes, limit));
    }
    for tensor in &artifact.manifest.tensors {
        let Some(error) = tensor.error else { continue };
        let stated = before.tensor(&tensor.name).map(|tensor| tensor.error);
        let (relative_before, what) = match stated {
            Some(Some(error)) => (error.relative, "is further from its source than in the baseline"),
            Some(None) => (0.0, "is exact in the baseline"),
            None => {
                findings.push(Finding::new("baseline-error", &tensor.name, "is not in the baseline".into()));
                continue;
            }
        };
        let limit = relative_before * (1.0 + baseline.max_error_increase);
        if error.relative.is_nan() || error.relative > limit {
            findings.push(Finding::new("baseline-error", &tensor.name, what.into()).with(error.relative, limit));
        }
    }
    let missing = before.tensors.iter().filter(|tensor| artifact.manifest.tensor(&tensor.name).is_none());
    findings.extend(
        missing
            .map(|tensor| Finding::new("baseline-tensor", &tensor.name, "is in the baseline and missing here".into())),
    );
    Ok(findings)
}
