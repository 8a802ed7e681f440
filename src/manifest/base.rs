//! The base that differences are from: which tensors it has, and whether a checkpoint is it.

use std::{collections::BTreeMap, path::Path};

use rayon::prelude::*;

use super::{ContentHash, InputTensor, Manifest, ManifestError};
use crate::checkpoint::{Checkpoint, TensorEntry};

/// Every tensor of a checkpoint with its hash, by name. Those of `known` are not read.
#[must_use]
pub fn base_tensors(base: &Checkpoint, known: &BTreeMap<String, ContentHash>) -> Vec<InputTensor> {
    let entries: Vec<&TensorEntry> = base.tensors().collect();
    let mut tensors: Vec<InputTensor> = entries
        .into_par_iter()
        .map(|entry| InputTensor {
            name: entry.name.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            bytes: entry.bytes,
            hash: known.get(&entry.name).copied().unwrap_or_else(|| hash(base, entry)),
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

/// Hash of a stored tensor, whose pages are given back as it goes.
pub fn hash(checkpoint: &Checkpoint, entry: &TensorEntry) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    for (start, chunk) in checkpoint.pieces(entry, 0..entry.bytes as usize) {
        hasher.update(&chunk);
        checkpoint.release(entry, start..start + chunk.len());
    }
    hasher.finalize().into()
}

impl Manifest {
    /// Reads all of `base` and compares it with what the differences of the artifact in `folder` are from.
    ///
    /// # Errors
    /// [`ManifestError::OtherBase`] naming the first tensor, by name, that is missing or another.
    pub fn require_base(&self, folder: &Path, base: &Checkpoint) -> Result<(), ManifestError> {
        let wrong = self.base.par_iter().map(|expected| {
            let name = &expected.name;
            match base.tensor(name) {
                None => Some(format!("it has no tensor `{name}`")),
                Some(entry) if (entry.dtype, &entry.shape) != (expected.dtype, &expected.shape) => Some(format!(
                    "its tensor `{name}` is {:?} {:?}; expected {:?} {:?}",
                    entry.dtype, entry.shape, expected.dtype, expected.shape
                )),
                Some(entry) if hash(base, entry) != expected.hash => {
                    Some(format!("its tensor `{name}` has other values"))
                }
                Some(_) => None,
            }
        });
        let wrong: Vec<Option<String>> = wrong.collect();
        match wrong.into_iter().flatten().next() {
            None => Ok(()),
            Some(message) => {
                Err(ManifestError::OtherBase { artifact: folder.to_owned(), base: base.root().to_owned(), message })
            }
        }
    }
}
