//! `bantam check`: holds an artifact against a policy. Whatever is wrong becomes a finding that names rule, tensor, value
//! and limit, so that one call shows all of it.

mod baseline;
mod content;
mod evaluation;
mod limits;
mod policy;
mod provenance;
mod reproduce;
pub mod runtimes;
pub(crate) mod tensors;

pub use policy::{Policy, PolicyError};

use std::path::Path;

use crate::{
    Result,
    checkpoint::Checkpoint,
    layout::LogicalCheckpoint,
    manifest::Manifest,
    model::ModelMap,
    verify::{Finding, verify},
};

use tensors::Tensors;

/// What a check works with.
pub struct Job<'a> {
    /// The artifact's folder.
    pub folder: &'a Path,
    /// What it must be.
    pub policy: &'a Policy,
    /// Told bytes read so far and in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Everything about the artifact that rules look at.
struct Artifact<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    model: &'a LogicalCheckpoint,
    map: &'a ModelMap,
}

/// Verifies the artifact, then holds it against the policy. Findings are in a fixed order: verification, limits,
/// requirements, provenance, baseline, evaluation, reproduction. Where the artifact cannot even be read, the rest of the
/// rules has nothing to look at and only verification's findings come back.
///
/// # Errors
/// When there is no manifest, or what the policy names (source, reference, baseline, text) cannot be used.
pub fn check(job: &Job<'_>) -> Result<Vec<Finding>> {
    let policy = job.policy;
    let open = |path: &Path| -> Result<LogicalCheckpoint> { Ok(LogicalCheckpoint::open(Checkpoint::open(path)?)?) };
    let source = policy.provenance.source.as_deref().map(open).transpose()?;
    let base = policy.provenance.base.as_deref().map(open).transpose()?;
    let mut findings = verify(job.folder, source.as_ref(), base, job.progress)?;
    let manifest = Manifest::read(job.folder)?;
    let model = match open(job.folder) {
        Ok(model) => model,
        // Verification has said why.
        Err(_) if !findings.is_empty() => return Ok(findings),
        Err(error) => return Err(error),
    };
    let model = match policy.provenance.base.as_deref() {
        Some(base) if model.is_delta() => model.with_base(open(base)?)?,
        _ => model,
    };
    let map = ModelMap::of(&model);
    let artifact = Artifact { folder: job.folder, manifest: &manifest, model: &model, map: &map };
    let tensors = Tensors::new(&artifact);
    findings.extend(limits::whole(&artifact, &policy.limits));
    for group in &policy.limit {
        findings.extend(limits::group(&tensors, group));
    }
    findings.extend(content::required(&artifact, &tensors, &policy.require));
    findings.extend(content::forbidden(&tensors, &policy.forbid));
    findings.extend(provenance::provenance(&manifest, &policy.provenance)?);
    if let Some(baseline) = &policy.baseline {
        findings.extend(baseline::no_worse(&artifact, baseline)?);
    }
    if let Some(evaluation) = policy.evaluation.as_ref().filter(|_| policy.limits.evaluates()) {
        findings.extend(evaluation::predictions(&artifact, evaluation, &policy.limits)?);
    }
    if let (true, Some(recipe)) = (policy.require.reproduce, &policy.provenance.recipe) {
        findings.extend(reproduce::reproduce(&artifact, recipe, &policy.provenance)?);
    }
    Ok(findings)
}
