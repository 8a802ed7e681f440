//! What must be in an artifact and what must not: fallbacks, number formats, masks, finite weights, layouts, runtimes.

use rayon::prelude::*;

use super::{
    Artifact,
    policy::{Forbidden, Required},
    tensors::{Tensors, nothing_selected},
};
use crate::{
    evaluate::map_stripes,
    layout::{LayoutError, LogicalCheckpoint},
    verify::{Finding, SPARSITY_RULE, sparsity},
};

pub(super) fn required(artifact: &Artifact<'_>, tensors: &Tensors<'_>, required: &Required) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(allowed) = &required.fallbacks {
        for fallback in artifact.manifest.fallbacks.iter().filter(|fallback| !allowed.0.contains(&fallback.kind)) {
            let message = format!("{}: {}", fallback.kind, fallback.message);
            findings.push(Finding::new("fallback", &fallback.tensor, message).with(fallback.count, 0));
        }
    }
    for (select, globs) in &required.codecs.0 {
        let selected = tensors.selected(std::slice::from_ref(select), &[]);
        if selected.is_empty() {
            findings.push(nothing_selected("codec", std::slice::from_ref(select)));
        }
        for tensor in selected.iter().filter(|tensor| !globs.matches(&tensor.codec)) {
            let message = "is not stored in a required number format".into();
            findings.push(Finding::new("codec", &tensor.name, message).with(tensor.codec.as_str(), globs.text()));
        }
    }
    for (select, ratio) in &required.sparsity.0 {
        let selected = tensors.selected(std::slice::from_ref(select), &[]);
        if selected.is_empty() {
            findings.push(nothing_selected(SPARSITY_RULE, std::slice::from_ref(select)));
        }
        let found = selected.par_iter().filter_map(|tensor| {
            let transposed = artifact.map.tensor(&tensor.name)?.matrix.as_ref()?.transposed;
            sparsity(artifact.model, &tensor.name, transposed, ratio.0)
        });
        findings.extend(found.collect::<Vec<_>>());
    }
    if required.finite {
        let all = artifact.model.tensors().par_iter();
        findings.extend(all.filter_map(|tensor| finite(artifact.model, &tensor.name)).collect::<Vec<_>>());
    }
    if let Some(layouts) = &required.layouts
        && !layouts.contains(&artifact.manifest.layout)
    {
        let names: Vec<&str> = layouts.iter().map(|layout| layout.as_str()).collect();
        let finding = Finding::of_all("layout", "has another layout than the policy wants".into());
        findings.push(finding.with(artifact.manifest.layout.as_str(), names.join(" or ")));
    }
    let config = artifact.model.checkpoint().config().map(|config| &config.value);
    for runtime in &required.runtimes {
        findings.extend(runtime.findings(artifact.manifest, config));
    }
    findings
}

pub(super) fn forbidden(tensors: &Tensors<'_>, forbidden: &Forbidden) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (select, globs) in &forbidden.codecs.0 {
        let selected = tensors.selected(std::slice::from_ref(select), &[]);
        if selected.is_empty() {
            findings.push(nothing_selected("forbidden-codec", std::slice::from_ref(select)));
        }
        for tensor in selected.iter().filter(|tensor| globs.matches(&tensor.codec)) {
            let message = "is stored in a forbidden number format".into();
            let limit = format!("not {}", globs.text());
            findings.push(Finding::new("forbidden-codec", &tensor.name, message).with(tensor.codec.as_str(), limit));
        }
    }
    findings
}

/// Whether every weight of a tensor is a finite number; integers are.
fn finite(model: &LogicalCheckpoint, name: &str) -> Option<Finding> {
    let tensor = model.tensor(name)?;
    if !crate::checkpoint::is_float(tensor.dtype) {
        return None;
    }
    let rows = match model.rows(name, false) {
        Ok(rows) => rows,
        Err(LayoutError::NeedsBase { .. }) => return None,
        Err(error) => return Some(Finding::new("non-finite", name, error.to_string())),
    };
    let columns = rows.columns();
    let counts = map_stripes(rows.rows(), columns, |range| {
        let mut values = vec![0.0_f32; range.len() * columns];
        rows.read_rows(range.start, &mut values)?;
        rows.release_rows(range);
        Ok::<_, crate::codec::CodecError>(values.iter().filter(|value| !value.is_finite()).count() as u64)
    });
    match counts {
        Ok(counts) => {
            let count: u64 = counts.into_iter().sum();
            let message = format!("{count} weights are no finite numbers");
            (count > 0).then(|| Finding::new("non-finite", name, message).with(count, 0))
        }
        // Verification names broken codes too.
        Err(error) => Some(Finding::new("non-finite", name, error.to_string())),
    }
}
