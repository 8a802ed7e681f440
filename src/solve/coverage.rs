//! How many tokens of the calibration text each routed expert sees.

use std::sync::{Mutex, PoisonError, atomic::Ordering};

use super::{Job, SolveFailure, matrices::fewest_tokens};
use crate::{
    Result,
    forward::{BlockSpec, Limits, Routing},
};

/// How many tokens the experts of a block saw.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Coverage {
    /// The block.
    pub block: usize,
    /// Tokens of each expert.
    pub tokens: Vec<u64>,
    /// Tokens that all matrices of an expert need to be solved.
    pub needed: u64,
    /// Experts that saw fewer: some or all of their matrices are rounded to nearest.
    pub starved: usize,
    /// Of these, experts that saw none.
    pub unseen: usize,
}

impl Coverage {
    /// What these tokens of each expert mean for a block; `None` for a block without experts.
    #[must_use]
    pub fn of(spec: &BlockSpec, tokens: Vec<u64>) -> Option<Self> {
        let experts = spec.experts.as_ref()?;
        let linears = experts.inputs.iter().flatten().chain(&experts.outputs);
        let needed = linears.map(|linear| fewest_tokens(linear.columns)).max()?;
        let below = |limit: u64| tokens.iter().filter(|count| **count < limit).count();
        let (starved, unseen) = (below(needed), below(1));
        Some(Self { block: spec.index, tokens, needed, starved, unseen })
    }

    /// The least, the median (of an even number the upper one) and the most tokens of an expert.
    #[must_use]
    pub fn spread(&self) -> [u64; 3] {
        let mut tokens = self.tokens.clone();
        tokens.sort_unstable();
        [0, tokens.len() / 2, tokens.len().saturating_sub(1)].map(|at| tokens.get(at).copied().unwrap_or(0))
    }
}

/// Takes the text through the original model and counts, and does nothing else: states lie in an unnamed file in the
/// folder for temporary files. Gives the blocks with experts; stops behind the last of them.
///
/// # Errors
/// Whatever the forward pass fails with; [`SolveFailure::Stopped`].
pub fn coverage(job: &Job<'_>, limits: &Limits) -> Result<Vec<Coverage>> {
    let model = &job.solve.model;
    let Some(last) = model.blocks.iter().rposition(|block| block.experts.is_some()) else { return Ok(Vec::new()) };
    let store = model.embed_all(job.source, &job.solve.tokens.sequences, limits, None)?;
    let mut found = Vec::new();
    for (index, spec) in model.blocks[..=last].iter().enumerate() {
        if job.stop.load(Ordering::SeqCst) {
            return Err(SolveFailure::Stopped { block: index + 1, blocks: last + 1 }.into());
        }
        (job.progress)(index, last + 1, "coverage");
        let tokens = Mutex::new(vec![0; spec.experts.as_ref().map_or(0, |experts| experts.outputs.len())]);
        model.advance_watching(job.device, index, job.source, &store, limits, &|state| {
            Routing::count(state, &mut tokens.lock().unwrap_or_else(PoisonError::into_inner));
        })?;
        found.extend(Coverage::of(spec, tokens.into_inner().unwrap_or_else(PoisonError::into_inner)));
    }
    Ok(found)
}
