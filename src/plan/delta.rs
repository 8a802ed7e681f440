//! How tensors that no rule takes are kept beside a base: nothing of them, some rows, or all.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use rayon::prelude::*;

use crate::{
    checkpoint::{Checkpoint, TensorEntry, is_float},
    layout::{BaseTensor, BaseTensors, LogicalCheckpoint, LogicalTensor, TensorSpec},
};

/// Bytes compared before their pages are given back.
const CHUNK_BYTES: usize = 4 << 20;

/// What is stored of a tensor whose bytes the base has, all or some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shared {
    /// Nothing.
    All,
    /// These rows, ascending.
    But(Vec<u64>),
}

/// Why a difference from the base cannot be taken, if so.
pub(super) fn obstacle(base: Option<&LogicalCheckpoint>, tensor: &LogicalTensor) -> Option<String> {
    let Some(found) = base.and_then(|base| base.tensor(&tensor.name)) else {
        return Some("the base has no such tensor".into());
    };
    if found.shape != tensor.shape {
        return Some(format!("its shape is {:?}, and {:?} in the base", tensor.shape, found.shape));
    }
    (!is_float(found.dtype)).then(|| format!("it is {:?} in the base", found.dtype))
}

/// Compares all tensors with the base's; by name, those that are the same in whole or in most rows. Of those to be encoded
/// only whether they are the same is asked, which mostly takes a look at the first rows.
pub(super) fn shared(
    source: &LogicalCheckpoint,
    base: &LogicalCheckpoint,
    encoded: &BTreeSet<&str>,
) -> BTreeMap<String, Shared> {
    let tensors = source.tensors().par_iter();
    let found = tensors.filter_map(|LogicalTensor { name, .. }| {
        Some((name.clone(), shared_of(source, base, name, encoded.contains(name.as_str()))?))
    });
    found.collect()
}

/// What the base has of one tensor: all, most rows, or `None`; with `all_or_nothing` not which rows.
pub(super) fn shared_of(
    source: &LogicalCheckpoint,
    base: &LogicalCheckpoint,
    name: &str,
    all_or_nothing: bool,
) -> Option<Shared> {
    compare(source.stored_bytes_of(name)?, base.stored_bytes_of(name)?, all_or_nothing)
}

fn compare(
    ours: (&Checkpoint, &TensorEntry),
    base: (&Checkpoint, &TensorEntry),
    all_or_nothing: bool,
) -> Option<Shared> {
    let (entry, base_entry) = (ours.1, base.1);
    let (first, before) = (entry.shape.split_first(), base_entry.shape.split_first());
    let rest = |parts: Option<(&usize, &[usize])>| parts.map(|(_, rest)| rest.to_vec());
    if entry.dtype != base_entry.dtype || rest(first) != rest(before) {
        return None;
    }
    let (bytes, base_bytes) = (entry.bytes as usize, base_entry.bytes as usize);
    let in_base = |range: Range<usize>| range.start.min(base_bytes)..range.end.min(base_bytes);
    let release = |range: Range<usize>| {
        base.0.release(base_entry, in_base(range.clone()));
        ours.0.release(entry, range);
    };
    let same_shape = entry.shape == base_entry.shape;
    if !(is_float(entry.dtype) && entry.shape.len() > 1) {
        let same = same_shape
            && ours.0.pieces(entry, 0..bytes).all(|(start, piece)| {
                let range = start..start + piece.len();
                let same = piece == base.0.range(base_entry, range.clone());
                release(range);
                same
            });
        return same.then_some(Shared::All);
    }
    let columns = entry.shape.last().copied().unwrap_or(1);
    let rows: usize = entry.shape[..entry.shape.len() - 1].iter().product();
    let row_bytes = bytes.checked_div(rows).filter(|&row_bytes| row_bytes > 0)?;
    let mut changed = Vec::new();
    let at_once = (CHUNK_BYTES / row_bytes).max(1);
    for first in (0..rows).step_by(at_once) {
        let last = rows.min(first + at_once);
        let range = first * row_bytes..last * row_bytes;
        let (some, before) = (ours.0.range(entry, range.clone()), base.0.range(base_entry, in_base(range.clone())));
        let row = |at: usize| (at - first) * row_bytes..(at + 1 - first) * row_bytes;
        changed.extend((first..last).filter(|&at| before.get(row(at)) != some.get(row(at))).map(|at| at as u64));
        release(range);
        if all_or_nothing && !changed.is_empty() {
            return None;
        }
    }
    if changed.is_empty() && same_shape {
        return Some(Shared::All);
    }
    let stored = BaseTensors::stored_rows("", entry.dtype, &[rows, columns], changed.len());
    let stored: u64 = stored.iter().map(TensorSpec::bytes).sum();
    (stored < entry.bytes).then_some(Shared::But(changed))
}

/// The part of the artifact's configuration that says what is read from the base.
pub(super) fn base_tensors<'a>(tensors: impl Iterator<Item = (&'a LogicalTensor, &'a Shared)>) -> BaseTensors {
    let mut found = BaseTensors::default();
    for (tensor, shared) in tensors {
        let group = match shared {
            Shared::All => &mut found.same,
            Shared::But(_) => &mut found.rows,
        };
        let entry = BaseTensor { dtype: tensor.dtype, shape: tensor.shape.clone() };
        group.insert(tensor.name.clone(), entry);
    }
    found
}

/// What the plan says of it, one line each.
pub(super) fn notes(source: &LogicalCheckpoint, base: &LogicalCheckpoint, notes: &mut Vec<String>) {
    notes.push("tensors were read to plan: they were compared with the base's".into());
    let missing = |a: &LogicalCheckpoint, b: &LogicalCheckpoint| {
        let names = a.tensors().iter().filter(|tensor| b.tensor(&tensor.name).is_none());
        names.map(|tensor| format!("`{}`", tensor.name)).collect::<Vec<_>>()
    };
    let mut say = |names: Vec<String>, what: &str| {
        if let Some(first) = names.first() {
            notes.push(match names.len() {
                1 => format!("{first} {what}"),
                count => format!("{first} and {} more tensors: {what}", count - 1),
            });
        }
    };
    say(missing(source, base), "is not in the base: stored whole");
    say(missing(base, source), "is in the base only: the model does without");
}
