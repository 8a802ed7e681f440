//! The hidden states of the models that run side by side, and their files.

use std::path::{Path, PathBuf};

use super::{Solutions, SolveFailure, driver::Job};
use crate::{
    Result,
    forward::{Block, Linear, Matrix, State, Store},
    manifest::ContentHash,
};

/// The hidden states of one model, in two generations and a working copy.
pub(super) struct Stream {
    pub(super) name: &'static str,
    /// States before the block in hand.
    pub(super) current: Store,
    /// States between its stages.
    pub(super) working: Store,
}

impl Stream {
    /// Takes one batch up to the input of `stage`, through a stage that is still to be applied.
    pub(super) fn step(
        &self,
        block: &Block<'_>,
        stage: usize,
        pending: Option<(usize, &[Linear])>,
        batch: usize,
    ) -> Result<State> {
        // The first stage starts from the states before the block.
        let source = if stage == 0 { &self.current } else { &self.working };
        let mut state = source.read(batch)?;
        if let Some((stage, linears)) = pending {
            block.apply(stage, &mut state, linears)?;
        }
        if stage == 0 || pending.is_some() {
            self.working.write(batch, &state)?;
        }
        Ok(state)
    }
}

/// A block as each stream has it: norms and routers may have been scaled.
pub(super) struct Both<'b> {
    pub(super) main: &'b Block<'b>,
    /// As the original model has it.
    pub(super) dense: &'b Block<'b>,
}

/// The original model's input as it would be behind the folds that scale it.
pub(super) fn divided(mut x: Matrix, scales: Option<&[f64]>) -> Matrix {
    if let Some(scales) = scales {
        for row in x.values.chunks_exact_mut(x.columns.max(1)) {
            for (value, scale) in row.iter_mut().zip(scales) {
                *value = (f64::from(*value) / scale) as f32;
            }
        }
    }
    x
}

/// The linears of a stage that is not yet applied.
pub(super) struct Pending {
    pub(super) stage: usize,
    /// As the original model has them.
    pub(super) dense: Vec<Linear>,
    /// As they will be stored.
    pub(super) compressed: Vec<Linear>,
}

pub(super) fn states_path(folder: &Path, name: &str, block: usize) -> PathBuf {
    folder.join(format!("states-{name}-{}", block % 2))
}

/// The first block that is still to be done.
pub(super) fn resumable(job: &Job<'_>, solutions: &Solutions) -> usize {
    let Some((block, hashes)) = &solutions.last_block else { return 0 };
    let next = block + 1;
    if next == job.solve.model.blocks.len() {
        return next;
    }
    let names: &[&str] = if job.solve.both_streams { &["main", "dense"] } else { &["main"] };
    let same = names
        .iter()
        .zip(hashes)
        .all(|(name, hash)| hash_file(&states_path(&job.folder, name, next)).is_ok_and(|found| found == *hash));
    if same && names.len() == hashes.len() { next } else { 0 }
}

pub(super) fn hash_file(path: &Path) -> std::io::Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().into())
}

pub(super) fn open_states(job: &Job<'_>, name: &str, block: usize) -> Result<Store> {
    let length = job.solve.tokens.sequences.first().map_or(0, Vec::len);
    let count = job.solve.limits.batch_sequences(length);
    let hidden = job.solve.model.hidden;
    let shapes: Vec<(usize, usize)> =
        job.solve.tokens.sequences.chunks(count).map(|sequences| (sequences.len() * length, hidden)).collect();
    let path = states_path(&job.folder, name, block);
    let values = count * length * hidden;
    Ok(Store::open(&path, &shapes, values, length).map_err(|source| SolveFailure::io(&path, source))?)
}
