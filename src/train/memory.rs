//! What a training takes: the parameters, and one block with one batch's tape.

use crate::forward::{BlockSpec, LinearSpec, Model};

/// Tokens that are computed together, whole sequences. The same for every budget: sums over other batches would round
/// otherwise.
pub const BATCH_TOKENS: usize = 1024;
/// Bytes of logits and classes' weights.
pub const CLASS_BYTES: usize = 64 << 20;
/// The process, its threads' blocks of attention, and rows of matrices in work.
const BASE_BYTES: u64 = 160 << 20;
/// A parameter, its gradient, two running means; and the last three twice over while they are saved.
const PARAMETER_BYTES: u64 = 16 + 24;

/// What the subjects of a training hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Parameters of all.
    pub parameters: u64,
    /// Bytes that do not change: signs, masks.
    pub fixed_bytes: u64,
    /// Whether gradients read the bases ([`crate::reverse::Parametrization::needs_base`]).
    pub needs_bases: bool,
}

/// Bytes of memory that a training takes at most, over sequences of `length` tokens, `batch` of them a step.
#[must_use]
pub fn peak_bytes(model: &Model, length: usize, batch: usize, held: Held) -> u64 {
    let at_once = (BATCH_TOKENS / length.max(1)).max(1).min(batch.max(1));
    let tokens = (at_once * length) as u64;
    let block = model.blocks.iter().map(|block| block_bytes(block, model, tokens, held.needs_bases)).max();
    let top = 4 * tokens * 8 * model.hidden as u64 + 2 * CLASS_BYTES as u64;
    BASE_BYTES + PARAMETER_BYTES * held.parameters + held.fixed_bytes + block.unwrap_or(0).max(top)
}

/// Bytes on disk: hidden states of a step behind every block, the teacher's, and the saved state twice.
#[must_use]
pub fn disk_bytes(model: &Model, length: usize, batch: usize, held: Held) -> u64 {
    let states = (model.blocks.len() + 1 + 2) as u64 * (batch * length) as u64 * 4 * model.hidden as u64;
    states + 2 * 12 * held.parameters + (64 << 10)
}

fn block_bytes(block: &BlockSpec, model: &Model, tokens: u64, needs_bases: bool) -> u64 {
    let weights: u64 = block.linears().map(|linear| linear.weights() as u64).sum();
    let largest = block.linears().map(|linear| linear.weights() as u64).max().unwrap_or(0);
    let inputs: u64 = block.stages.iter().filter_map(|stage| stage.linears.first()).map(columns).sum();
    let outputs: u64 = block.linears().map(|linear| linear.rows as u64).sum();
    let hidden = model.hidden as u64;
    // The tape, its gradients, and what lies between them for a while.
    let tape = 3 * 4 * tokens * (4 * hidden + inputs + 2 * outputs);
    let bases = if needs_bases { weights } else { 0 };
    4 * (weights + bases + 3 * largest) + tape
}

fn columns(linear: &LinearSpec) -> u64 {
    linear.columns as u64
}
