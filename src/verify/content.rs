//! Hashes of every stored tensor, going in and coming out.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::Finding;
use crate::{
    checkpoint::{Checkpoint, TensorEntry},
    layout::LogicalCheckpoint,
    manifest::{ContentHash, Manifest},
};

/// Counts bytes read.
pub(super) struct Meter<'a> {
    done: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl<'a> Meter<'a> {
    pub(super) fn new(
        manifest: &Manifest,
        source: Option<&LogicalCheckpoint>,
        progress: &'a (dyn Fn(u64, u64) + Sync),
    ) -> Self {
        let inputs = if source.is_some() { manifest.totals.source_bytes } else { 0 };
        Self { done: AtomicU64::new(0), total: manifest.totals.artifact_bytes.saturating_add(inputs), progress }
    }

    fn add(&self, bytes: usize) {
        let done = self.done.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        (self.progress)(done.min(self.total), self.total);
    }
}

/// Every stored tensor of the artifact has the bytes it was written with.
pub(super) fn outputs(manifest: &Manifest, checkpoint: &Checkpoint, meter: &Meter<'_>) -> Vec<Finding> {
    let parts: Vec<_> = manifest.tensors.iter().flat_map(|tensor| &tensor.parts).collect();
    let findings = parts.into_par_iter().filter_map(|part| {
        let hash = hash_of(checkpoint, checkpoint.tensor(&part.name)?, meter);
        let finding = || Finding::new("hash", &part.name, "its bytes are not those that were written".into());
        (hash != part.hash).then(|| finding().with(hash.to_string(), part.hash.to_string()))
    });
    findings.collect()
}

/// The source has exactly the tensors that the artifact was made of.
pub(super) fn inputs(manifest: &Manifest, source: &Checkpoint, meter: &Meter<'_>) -> Vec<Finding> {
    let findings = manifest.inputs.par_iter().filter_map(|input| {
        let Some(entry) = source.tensor(&input.name) else {
            let message = "the artifact was made of it, but the source does not have it".into();
            return Some(Finding::new("input-missing", &input.name, message));
        };
        let hash = hash_of(source, entry, meter);
        let same = hash == input.hash && entry.dtype == input.dtype && entry.shape == input.shape;
        let finding =
            || Finding::new("input-hash", &input.name, "the source's tensor is not the one that went in".into());
        (!same).then(|| finding().with(hash.to_string(), input.hash.to_string()))
    });
    let mut findings: Vec<Finding> = findings.collect();
    for entry in source.tensors() {
        if !manifest.inputs.iter().any(|input| input.name == entry.name) {
            let message = "the source has it, but the artifact was not made of it".into();
            findings.push(Finding::new("input-unlisted", &entry.name, message));
        }
    }
    findings
}

fn hash_of(checkpoint: &Checkpoint, entry: &TensorEntry, meter: &Meter<'_>) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    for (start, chunk) in checkpoint.pieces(entry, 0..entry.bytes as usize) {
        hasher.update(&chunk);
        checkpoint.release(entry, start..start + chunk.len());
        meter.add(chunk.len());
    }
    hasher.finalize().into()
}
