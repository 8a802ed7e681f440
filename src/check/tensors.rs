//! The artifact's tensors, as selectors take them.

use std::collections::BTreeMap;

use super::{Artifact, policy::Choice};
use crate::{
    manifest::{Manifest, OutputTensor},
    model::MappedTensor,
    verify::Finding,
};

/// Tensors of the manifest with what they are for.
pub(super) struct Tensors<'a> {
    all: Vec<(&'a MappedTensor, &'a OutputTensor)>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(artifact: &Artifact<'a>) -> Self {
        let stated: BTreeMap<&str, &OutputTensor> =
            artifact.manifest.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let mapped = artifact.map.tensors.iter();
        Self { all: mapped.filter_map(|mapped| Some((mapped, *stated.get(mapped.name.as_str())?))).collect() }
    }

    /// What selectors take, as recipes would: of roles, patterns and modules the matrices; a tensor of another kind only by
    /// its own name. In the map's order.
    pub(super) fn selected(&self, select: &[Choice], skip: &[Choice]) -> Vec<&'a OutputTensor> {
        let takes = |choices: &[Choice], tensor: &MappedTensor| {
            choices.iter().any(|choice| {
                choice.0.matches(tensor) && (tensor.matrix.is_some() || choice.as_str() == tensor.name)
                    || choice.0.matches(tensor) && tensor.role.to_string().starts_with("embedding")
            })
        };
        let chosen = self.all.iter().filter(|(mapped, _)| takes(select, mapped) && !takes(skip, mapped));
        chosen.map(|(_, tensor)| *tensor).collect()
    }
}

/// The finding for a rule whose selectors take nothing: it would hold of any artifact.
pub(super) fn nothing_selected(rule: &'static str, select: &[Choice]) -> Finding {
    let words: Vec<&str> = select.iter().map(Choice::as_str).collect();
    Finding::of_all(rule, format!("{} selects no tensor of the artifact", words.join(", ")))
}

/// Root of the mean square of relative errors over the weights of the tensors that were changed; none where none was.
pub(crate) fn mean_relative_error<'a>(tensors: impl Iterator<Item = &'a OutputTensor>) -> Option<f64> {
    let (mut squares, mut weights) = (0.0, 0.0);
    for (error, count) in tensors.filter_map(|tensor| Some((tensor.error?, count(tensor)))) {
        squares += error.relative.powi(2) * count;
        weights += count;
    }
    (weights > 0.0).then(|| (squares / weights).sqrt())
}

/// Stored bits over weights; none where there are no weights.
pub(super) fn bits_per_weight(tensors: &[&OutputTensor]) -> Option<f64> {
    let weights: f64 = tensors.iter().map(|tensor| count(tensor)).sum();
    (weights > 0.0).then(|| bytes(tensors) as f64 * 8.0 / weights)
}

/// Stored bytes.
pub(super) fn bytes(tensors: &[&OutputTensor]) -> u64 {
    tensors.iter().flat_map(|tensor| &tensor.parts).map(|part| part.bytes).sum()
}

fn count(tensor: &OutputTensor) -> f64 {
    tensor.shape.iter().map(|&length| length as f64).product()
}

/// Bytes of all files of an artifact but its run log, which is not part of what is shipped.
pub(super) fn artifact_bytes(folder: &std::path::Path, manifest: &Manifest) -> std::io::Result<u64> {
    let files: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    let mut bytes = files;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().ends_with(".safetensors") || name == crate::manifest::FILE_NAME {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}
