//! Takes the states of a whole text through a model, with at most one block's weights in memory.

use super::{
    Block, BlockSpec, Expert, ForwardError, Kind, Model, State, Store, WeightSource, on_device::Stages, weights::Linear,
};
use crate::compute::SharedDevice;

/// How much may be in memory.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens that are computed together; whole sequences, at least one.
    pub batch_tokens: usize,
    /// Bytes of experts that are kept at a time.
    pub expert_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { batch_tokens: 2048, expert_bytes: 1 << 30 }
    }
}

impl Limits {
    /// Limits for a budget of so many bytes: half of it for experts, an eighth for the activations of two batches.
    #[must_use]
    pub fn within(bytes: u64, model: &Model, length: usize) -> Self {
        let per_token = 16 * model.state_width() as u64;
        let tokens = (bytes / 16 / per_token.max(1)) as usize;
        Self { batch_tokens: tokens.clamp(length, 4096.max(length)), expert_bytes: bytes / 2 }
    }

    /// Sequences of one batch.
    #[must_use]
    pub fn batch_sequences(&self, length: usize) -> usize {
        (self.batch_tokens / length.max(1)).max(1)
    }

    /// Experts of `block` that are in memory at a time.
    #[must_use]
    pub fn experts_at_once(&self, block: &BlockSpec) -> usize {
        let Some(experts) = &block.experts else { return 1 };
        let weights = |expert: usize| -> usize {
            experts.inputs[expert]
                .iter()
                .chain(std::iter::once(&experts.outputs[expert]))
                .map(super::weights::LinearSpec::weights)
                .sum()
        };
        let largest = (0..experts.outputs.len()).map(weights).max().unwrap_or(1).max(1);
        ((self.expert_bytes / (4 * largest as u64)) as usize).clamp(1, experts.outputs.len().max(1))
    }
}

/// Does something with each batch, with two at a time: while one is read or written, the other is computed.
///
/// # Errors
/// The first one that `work` gives.
pub fn in_pairs<E: Send>(batches: usize, work: impl Fn(usize) -> Result<(), E> + Sync) -> Result<(), E> {
    for first in (0..batches).step_by(2) {
        let second = || if first + 1 < batches { work(first + 1) } else { Ok(()) };
        let (first, second) = rayon::join(|| work(first), second);
        first?;
        second?;
    }
    Ok(())
}

impl Model {
    /// Numbers of one token that lie between two stages at most.
    #[must_use]
    pub fn state_width(&self) -> usize {
        let widths = self.blocks.iter().map(|block| {
            let attention = &block.attention;
            let mixed = attention.heads * attention.value_width.max(attention.key_width);
            let latent = block.latent.map_or(0, |l| mixed.max(l.query.unwrap_or(0)) + l.key_value + l.rotated);
            let hidden = block.stages.iter().flat_map(|stage| &stage.linears).map(|linear| linear.columns).max();
            let experts = block.experts.as_ref().map_or(0, |experts| 2 * self.hidden + 2 * experts.top);
            self.hidden + mixed.max(latent).max(hidden.unwrap_or(0) + experts)
        });
        widths.max().unwrap_or(self.hidden).max(self.hidden)
    }

    /// Embeds all sequences, batch by batch.
    ///
    /// # Errors
    /// As [`Model::embed`]; [`ForwardError::Store`].
    pub fn embed_all(
        &self,
        source: &dyn WeightSource,
        sequences: &[Vec<u32>],
        limits: &Limits,
        path: Option<&std::path::Path>,
    ) -> Result<Store, ForwardError> {
        let length = sequences.first().map_or(0, Vec::len);
        let count = limits.batch_sequences(length);
        let values = count * length * self.state_width();
        let store = Store::create(path, sequences.len().div_ceil(count), values, length)?;
        for (batch, sequences) in sequences.chunks(count).enumerate() {
            store.write(batch, &self.embed(source, sequences)?)?;
        }
        Ok(store)
    }

    /// Takes all states through one block.
    ///
    /// # Errors
    /// As [`Block::finish`]; [`ForwardError::Store`].
    pub fn advance(
        &self,
        index: usize,
        source: &dyn WeightSource,
        store: &Store,
        limits: &Limits,
    ) -> Result<(), ForwardError> {
        self.advance_watching(None, index, source, store, limits, &|_| {}).map(|_| ())
    }

    /// The same, on a device where there is one: all but routed experts. Gives the number of batches that the device
    /// failed at and the processor did instead.
    ///
    /// # Errors
    /// As [`Model::advance`].
    pub fn advance_on(
        &self,
        device: Option<&SharedDevice>,
        index: usize,
        source: &dyn WeightSource,
        store: &Store,
        limits: &Limits,
    ) -> Result<u64, ForwardError> {
        self.advance_watching(device, index, source, store, limits, &|_| {})
    }

    /// The same as [`Model::advance_on`], and shows `look` every batch, in any order, behind the block's router, where it has one.
    ///
    /// # Errors
    /// As [`Model::advance`].
    pub fn advance_watching(
        &self,
        device: Option<&SharedDevice>,
        index: usize,
        source: &dyn WeightSource,
        store: &Store,
        limits: &Limits,
        look: &(dyn Fn(&State) + Sync),
    ) -> Result<u64, ForwardError> {
        let spec = &self.blocks[index];
        let length = store.length();
        let block = Block::read(spec, source, length)?;
        let split = spec.stages.iter().position(|stage| stage.kind == Kind::Experts).unwrap_or(spec.stages.len());
        let linears = spec.stages[..split]
            .iter()
            .map(|stage| stage.linears.iter().map(|linear| linear.read(source)).collect::<Result<Vec<Linear>, _>>())
            .collect::<Result<Vec<_>, _>>()?;
        let done = |batch: usize, state: &State| -> Result<(), ForwardError> {
            if split < spec.stages.len() {
                look(state);
            }
            Ok(store.write(batch, state)?)
        };
        let mut failures = 0;
        if device.is_some() {
            // One batch after the other: what fits into the device's memory must not depend on chance.
            let mut stages = Stages::new(&block, &linears, device);
            for batch in 0..store.batches() {
                done(batch, &stages.apply(store.read(batch)?)?)?;
            }
            failures = stages.failures;
        } else {
            in_pairs(store.batches(), |batch| -> Result<(), ForwardError> {
                let mut state = store.read(batch)?;
                for (stage, linears) in linears.iter().enumerate() {
                    block.apply(stage, &mut state, linears)?;
                }
                done(batch, &state)
            })?;
        }
        drop(linears);
        if split == spec.stages.len() {
            return Ok(failures);
        }
        let experts = spec.experts.as_ref().map_or(0, |experts| experts.outputs.len());
        let at_once = limits.experts_at_once(spec);
        for first in (0..experts).step_by(at_once) {
            let range = first..experts.min(first + at_once);
            let loaded =
                range.clone().map(|expert| Expert::read(spec, expert, source)).collect::<Result<Vec<_>, _>>()?;
            in_pairs(store.batches(), |batch| -> Result<(), ForwardError> {
                let mut state: State = store.read(batch)?;
                for (expert, loaded) in range.clone().zip(&loaded) {
                    if let Some(loaded) = loaded {
                        loaded.add_to(&mut state, expert);
                    }
                }
                if range.end == experts {
                    block.apply(split, &mut state, &[])?;
                }
                Ok(store.write(batch, &state)?)
            })?;
        }
        Ok(failures)
    }
}
