//! Sizes and error figures against their limits.

use super::{
    Artifact,
    policy::{GroupLimits, Limits},
    tensors::{Tensors, artifact_bytes, bits_per_weight, bytes, mean_relative_error, nothing_selected},
};
use crate::{manifest::OutputTensor, verify::Finding};

/// Decibels of a relative error.
fn decibels(relative: f64) -> f64 {
    -20.0 * relative.log10()
}

/// The limits of the whole artifact that its manifest and files tell; those of predictions are measured elsewhere.
pub(super) fn whole(artifact: &Artifact<'_>, limits: &Limits) -> Vec<Finding> {
    let manifest = artifact.manifest;
    let all: Vec<&OutputTensor> = manifest.tensors.iter().collect();
    let mut findings = Vec::new();
    if let Some(limit) = limits.bits_per_weight {
        findings.extend(match manifest.totals.bits_per_weight {
            Some(bits) => above("bits-per-weight", None, bits, limit, "stored bits per weight"),
            None => Some(Finding::of_all("bits-per-weight", "nothing in the artifact is compressed".into())),
        });
    }
    if let Some(limit) = limits.artifact_bytes {
        findings.extend(match artifact_bytes(artifact.folder, manifest) {
            Ok(bytes) if bytes > limit.0 => {
                Some(Finding::of_all("artifact-bytes", "the files are too long together".into()).with(bytes, limit.0))
            }
            Ok(_) => None,
            Err(error) => Some(Finding::of_all("artifact-bytes", format!("the files cannot be listed: {error}"))),
        });
    }
    findings.extend(worst(&all, limits.min_snr_db, limits.max_relative_error));
    findings.extend(together(&all, None, limits.min_mean_snr_db, limits.max_mean_relative_error));
    findings
}

/// The limits of some tensors.
pub(super) fn group(tensors: &Tensors<'_>, group: &GroupLimits) -> Vec<Finding> {
    let selected = tensors.selected(&group.select, &group.skip);
    if selected.is_empty() {
        return vec![nothing_selected("limit", &group.select)];
    }
    let words: Vec<&str> = group.select.iter().map(super::policy::Choice::as_str).collect();
    let about = words.join(", ");
    let mut findings = Vec::new();
    if let (Some(limit), Some(bits)) = (group.bits_per_weight, bits_per_weight(&selected)) {
        findings.extend(above("bits-per-weight", Some(&about), bits, limit, "stored bits per weight"));
    }
    if let Some(limit) = group.bytes
        && bytes(&selected) > limit.0
    {
        let message = "its tensors take too many bytes together".into();
        findings.push(Finding::new("bytes", &about, message).with(bytes(&selected), limit.0));
    }
    findings.extend(worst(&selected, group.min_snr_db, group.max_relative_error));
    findings.extend(together(&selected, Some(&about), group.min_mean_snr_db, group.max_mean_relative_error));
    findings
}

/// Every tensor that crosses a limit of single tensors, in the manifest's order.
fn worst(tensors: &[&OutputTensor], min_snr_db: Option<f64>, max_relative: Option<f64>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (tensor, error) in tensors.iter().filter_map(|tensor| Some((tensor, tensor.error?))) {
        let about = Some(tensor.name.as_str());
        // No ratio: the tensor is exact, or its error is not finite.
        let snr_db = error
            .snr_db
            .unwrap_or_else(|| if error.relative == 0.0 { f64::INFINITY } else { decibels(error.relative) });
        if let Some(limit) = min_snr_db {
            findings.extend(below("snr-db", about, snr_db, limit, "signal-to-noise ratio in decibels"));
        }
        if let Some(limit) = max_relative {
            findings.extend(above("relative-error", about, error.relative, limit, "relative error"));
        }
    }
    findings
}

/// The limits of all tensors together.
fn together(
    tensors: &[&OutputTensor],
    about: Option<&str>,
    min_snr_db: Option<f64>,
    max_relative: Option<f64>,
) -> Vec<Finding> {
    let Some(relative) = mean_relative_error(tensors.iter().copied()) else { return Vec::new() };
    let snr_db = if relative == 0.0 { f64::INFINITY } else { decibels(relative) };
    let of_snr =
        min_snr_db.and_then(|limit| below("mean-snr-db", about, snr_db, limit, "signal-to-noise ratio in decibels"));
    let of_relative =
        max_relative.and_then(|limit| above("mean-relative-error", about, relative, limit, "relative error"));
    of_snr.into_iter().chain(of_relative).collect()
}

/// A finding where a value is above its limit, or is no number.
pub(super) fn above(rule: &'static str, about: Option<&str>, value: f64, limit: f64, what: &str) -> Option<Finding> {
    crossed(value <= limit, rule, about, (value, limit), &format!("{what} above the limit"))
}

/// A finding where a value is below its limit, or is no number.
pub(super) fn below(rule: &'static str, about: Option<&str>, value: f64, limit: f64, what: &str) -> Option<Finding> {
    crossed(value >= limit, rule, about, (value, limit), &format!("{what} below the limit"))
}

fn crossed(
    holds: bool,
    rule: &'static str,
    about: Option<&str>,
    (value, limit): (f64, f64),
    message: &str,
) -> Option<Finding> {
    let finding = match about {
        Some(about) => Finding::new(rule, about, message.to_owned()),
        None => Finding::of_all(rule, message.to_owned()),
    };
    (!holds).then(|| finding.with(value, limit))
}
