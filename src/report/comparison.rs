//! Two artifacts beside each other.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Opened, TensorRow};

/// Changes that are listed.
const LISTED: usize = 20;

/// How an artifact differs from the one beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Whether both were made of the same tensors, by their hashes.
    pub same_source: bool,
    /// Tensors that both have.
    pub common: u64,
    /// Of these, with another error or another size.
    pub changed: u64,
    /// Tensors that only this artifact has.
    pub only_here: u64,
    /// Tensors that only the other one has.
    pub only_there: u64,
    /// The 20 tensors whose relative error changed most, most first.
    pub largest: Vec<Change>,
}

/// One tensor in both. A copied tensor's error is 0.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Number format here.
    pub codec: String,
    /// And there.
    pub codec_against: String,
    /// Bytes here.
    pub bytes: u64,
    /// And there.
    pub bytes_against: u64,
    /// Relative error here; infinite is `null`.
    pub relative_error: f64,
    /// And there.
    pub relative_error_against: f64,
    /// Signal-to-noise ratio here; `null` where exact.
    pub snr_db: Option<f64>,
    /// And there.
    pub snr_db_against: Option<f64>,
}

impl Comparison {
    pub(super) fn of(here: &Opened, there: &Opened) -> Self {
        let others: BTreeMap<&str, &TensorRow> =
            there.facts.tensors.iter().map(|row| (row.name.as_str(), row)).collect();
        let pairs = here.facts.tensors.iter().filter_map(|row| Some((row, *others.get(row.name.as_str())?)));
        let mut changes: Vec<Change> = pairs.map(|(row, other)| change(row, other)).collect();
        let common = changes.len() as u64;
        changes.retain(|change| change.distance() > 0.0 || change.bytes != change.bytes_against);
        changes.sort_by(|a, b| {
            let bytes = |change: &Change| change.bytes.abs_diff(change.bytes_against);
            let by_error = b.distance().total_cmp(&a.distance());
            by_error.then_with(|| bytes(b).cmp(&bytes(a))).then_with(|| a.name.cmp(&b.name))
        });
        let changed = changes.len() as u64;
        changes.truncate(LISTED);
        Self {
            same_source: here.manifest.inputs == there.manifest.inputs,
            common,
            changed,
            only_here: here.facts.tensors.len() as u64 - common,
            only_there: there.facts.tensors.len() as u64 - common,
            largest: changes,
        }
    }
}

fn change(row: &TensorRow, other: &TensorRow) -> Change {
    Change {
        name: row.name.clone(),
        codec: row.codec.clone(),
        codec_against: other.codec.clone(),
        bytes: row.bytes,
        bytes_against: other.bytes,
        relative_error: row.relative_error.unwrap_or(0.0),
        relative_error_against: other.relative_error.unwrap_or(0.0),
        snr_db: row.snr_db,
        snr_db_against: other.snr_db,
    }
}

impl Change {
    /// How far the relative error moved; of two infinite ones not at all.
    fn distance(&self) -> f64 {
        if self.relative_error == self.relative_error_against {
            return 0.0;
        }
        (self.relative_error - self.relative_error_against).abs()
    }
}
