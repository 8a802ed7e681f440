//! Takes the original model through one block and gathers statistics of every input that is asked for.

use super::{
    Moments, Part, Wanted,
    driver::Worker,
    on_device::{self, Progress, Streams},
    statistics::{Key, Writer},
    streams::{Pending, Stream},
};
use crate::{
    Result,
    forward::{Block, BlockSpec, Expert, Kind, Linear, LinearSpec, Matrix, Routing, State},
};

/// An input of a block: which, its channels, what to gather, and how many tokens it sees at most.
pub type Input = (Key, usize, Wanted, usize);

/// What to gather of the input that some linears of a stage (and expert) share.
pub type WantedOf<'a> = dyn Fn(usize, Option<usize>, &[LinearSpec]) -> Option<Wanted> + 'a;

/// Every input of a block's linears. `wanted` says what to gather of each, if anything.
pub fn inputs(spec: &BlockSpec, tokens: usize, wanted: &WantedOf<'_>) -> Vec<Input> {
    let block = spec.index;
    let mut inputs = Vec::new();
    for (stage, description) in spec.stages.iter().enumerate() {
        if description.kind == Kind::Experts {
            let Some(experts) = &spec.experts else { continue };
            let hidden = experts.inputs.first().and_then(|linears| linears.first()).map_or(0, |linear| linear.columns);
            let all: Vec<LinearSpec> = experts.inputs.iter().flatten().cloned().collect();
            if let Some(wanted) = wanted(stage, None, &all) {
                inputs.push((Key { block, stage, expert: None }, hidden, wanted, tokens));
            }
            for expert in 0..experts.outputs.len() {
                let output = std::slice::from_ref(&experts.outputs[expert]);
                for (linears, is_hidden) in [(&experts.inputs[expert][..], false), (output, true)] {
                    if let Some(wanted) = wanted(stage, Some(expert), linears) {
                        let key = Key { block, stage, expert: Some((expert, is_hidden)) };
                        inputs.push((key, linears[0].columns, wanted, tokens));
                    }
                }
            }
        } else if let Some(first) = description.linears.first()
            && let Some(wanted) = wanted(stage, None, &description.linears)
        {
            inputs.push((Key { block, stage, expert: None }, first.columns, wanted, tokens));
        }
    }
    inputs
}

impl Worker<'_> {
    /// Gathers these inputs of a block into `writer`, and leaves the states before its last stage in the working store.
    pub(super) fn gather_block(
        &mut self,
        spec: &BlockSpec,
        inputs: &[Input],
        writer: &Writer,
    ) -> Result<Option<Pending>> {
        let source = self.job.source;
        let block = Block::read(spec, source, self.length())?;
        let find = |stage: usize, expert: Option<(usize, bool)>| {
            inputs.iter().find(|(key, ..)| key.stage == stage && key.expert == expert)
        };
        let mut pending: Option<Pending> = None;
        for (stage, description) in spec.stages.iter().enumerate() {
            self.check_stop(spec.index)?;
            let blocks = self.job.solve.model.blocks.len();
            (self.job.progress)(spec.index, blocks, &format!("statistics, {}", description.kind.name()));
            let wanted = find(stage, None);
            let mut moments = wanted.map(|(_, columns, wanted, tokens)| Moments::new(*columns, *tokens, *wanted));
            let is_experts = description.kind == Kind::Experts;
            let input = |state: &State| {
                wanted.map(|_| if is_experts { state.carried[0].clone() } else { block.input(stage, state) })
            };
            let taken = pending.take();
            let on_device = if is_experts {
                Progress::default()
            } else {
                self.original_on_device(&block, stage, taken.as_ref(), moments.as_mut())?
            };
            if !on_device.complete {
                let (states, gathered) = (on_device.states, on_device.moments);
                self.original_pass(&block, stage, taken.as_ref(), states, input, |batch, x| {
                    if let Some(moments) = moments.as_mut().filter(|_| batch >= gathered) {
                        moments.add(x, None);
                    }
                })?;
            }
            self.deny(&description.linears, &on_device.note)?;
            self.notes.insert(stage, on_device.note);
            if let (Some(mut moments), Some((key, ..))) = (moments, wanted) {
                moments.finish();
                writer.write(*key, &moments)?;
            }
            if is_experts {
                self.gather_original_experts(spec, stage, inputs, writer)?;
            }
            let linears = description
                .linears
                .iter()
                .map(|linear| linear.read(source))
                .collect::<std::result::Result<Vec<Linear>, _>>()?;
            pending = Some(Pending { stage, dense: linears, compressed: Vec::new() });
        }
        Ok(pending)
    }

    fn gather_original_experts(
        &mut self,
        spec: &BlockSpec,
        stage: usize,
        inputs: &[Input],
        writer: &Writer,
    ) -> Result<()> {
        let count = spec.experts.as_ref().map_or(0, |experts| experts.outputs.len());
        let at_once = self.job.solve.experts_at_once(spec, &self.job.solve.limits);
        for first in (0..count).step_by(at_once) {
            self.check_stop(spec.index)?;
            let mut members = Vec::new();
            for expert in first..count.min(first + at_once) {
                let Some(loaded) = Expert::read(spec, expert, self.job.source)? else { continue };
                let make = |hidden: bool| {
                    let found =
                        inputs.iter().find(|(key, ..)| key.stage == stage && key.expert == Some((expert, hidden)));
                    found.map(|(key, columns, wanted, tokens)| (*key, Moments::new(*columns, *tokens, *wanted)))
                };
                members.push((expert, loaded, make(false), make(true)));
            }
            for batch in 0..self.batches() {
                let stream = self.original_mut();
                let mut state = stream.working.read(batch)?;
                for (expert, loaded, input, hidden) in &mut members {
                    let routing = Routing::of(&state, *expert);
                    if routing.tokens.is_empty() {
                        continue;
                    }
                    let x = routing.gather(&state);
                    let inner = loaded.hidden(&x);
                    if let Some((_, moments)) = input {
                        moments.add(&x, None);
                    }
                    if let Some((_, moments)) = hidden {
                        moments.add(&inner, None);
                    }
                    let y = loaded.output(&inner);
                    routing.scatter(&mut state, &y);
                }
                stream.working.write(batch, &state)?;
            }
            for (key, moments) in members.iter_mut().flat_map(|(_, _, input, hidden)| [input, hidden]).flatten() {
                moments.finish();
                writer.write(*key, moments)?;
            }
        }
        Ok(())
    }

    /// The same on the device, if there is one.
    fn original_on_device(
        &mut self,
        block: &Block<'_>,
        stage: usize,
        pending: Option<&Pending>,
        moments: Option<&mut Moments>,
    ) -> Result<Progress> {
        let Some(shared) = self.job.device else { return Ok(Progress::default()) };
        let batches = self.batches();
        let (stream, clock) = self.original_and_clock();
        let pending = pending.map(|pending| (pending.stage, &pending.dense[..]));
        let streams = Streams { main: (stream, block, pending), dense: None, scales: None };
        on_device::pass(shared, clock, &streams, stage, batches, moments)
    }

    /// One pass of the original model over all states, within the block in hand. What `input` takes of a state goes to
    /// `add`, in the order of batches. The first `done` batches are behind the pending stage already.
    fn original_pass(
        &mut self,
        block: &Block<'_>,
        stage: usize,
        pending: Option<&Pending>,
        done: usize,
        input: impl Fn(&State) -> Option<Matrix> + Sync,
        mut add: impl FnMut(usize, &Matrix),
    ) -> Result<()> {
        let batches = self.batches();
        let (stream, clock) = self.original_and_clock();
        let stream: &Stream = stream;
        let produce = |batch: usize| -> Result<Option<Matrix>> {
            let mut state = if stage == 0 { stream.current.read(batch)? } else { stream.working.read(batch)? };
            let pending = pending.filter(|_| batch >= done);
            if let Some(pending) = pending {
                block.apply(pending.stage, &mut state, &pending.dense)?;
            }
            if stage == 0 || pending.is_some() {
                stream.working.write(batch, &state)?;
            }
            Ok(input(&state))
        };
        for first in (0..batches).step_by(2) {
            let second = || if first + 1 < batches { produce(first + 1) } else { Ok(None) };
            let produced = clock.time(Part::Forward, || rayon::join(|| produce(first), second));
            for (batch, x) in [(first, produced.0?), (first + 1, produced.1?)] {
                if let Some(x) = x {
                    clock.time(Part::Moments, || add(batch, &x));
                }
            }
        }
        Ok(())
    }
}
