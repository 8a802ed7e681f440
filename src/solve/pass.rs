//! Passes over all states of a block: what is pending is applied, what the next stage needs to know is gathered.

use super::{
    Moments, Note, Part, SolveFailure, Wanted,
    driver::Worker,
    on_device,
    record::{Line, Step},
    streams::{Both, Pending, divided, hash_file, states_path},
};
use crate::{
    Result,
    forward::{Matrix, Store, in_pairs},
};

/// What a batch adds to the moments of an input.
struct Gathered {
    x: Matrix,
    /// The original model's.
    original: Option<Matrix>,
    /// The residual streams of both models.
    hidden: Option<(Matrix, Matrix)>,
}

impl Worker<'_> {
    /// Gathers what has to be known of the input of a stage, and tells what a device did for it.
    pub(super) fn gather(
        &mut self,
        block: &Both<'_>,
        stage: usize,
        pending: Option<&Pending>,
    ) -> Result<(Moments, Note)> {
        let spec = block.main.spec;
        let linears = &spec.stages[stage].linears;
        let columns = linears.first().map_or(0, |linear| linear.columns);
        let tokens = self.job.solve.tokens.sequences.len() * self.main.current.length();
        let solved = self.is_solved(linears);
        let wanted = if solved { self.job.solve.wanted_at(spec, stage) } else { Wanted::default() };
        let mut moments = if self.needs_input(linears) && !self.is_known(linears) {
            Some(Moments::new(columns, tokens, wanted))
        } else {
            None
        };
        let note = self.pass(block, stage, pending, moments.as_mut())?;
        let mut moments = moments.unwrap_or_default();
        moments.finish();
        Ok((moments, note))
    }

    /// One pass over all states: applies what is pending, and gathers the input of `stage`.
    pub(super) fn pass(
        &mut self,
        block: &Both<'_>,
        stage: usize,
        pending: Option<&Pending>,
        mut moments: Option<&mut Moments>,
    ) -> Result<Note> {
        let on_device = self.pass_on_device(block, stage, pending, moments.as_deref_mut())?;
        if on_device.complete {
            return Ok(on_device.note);
        }
        // What a device has done is not done again.
        let wants = moments.is_some();
        let gathers = |batch: usize| wants && batch >= on_device.moments;
        let (main, dense, compressed) = (&self.main, self.dense.as_ref(), self.job.solve.compressed);
        let pending_dense = pending.map(|pending| (pending.stage, &pending.dense[..]));
        let pending_main =
            if compressed { pending.map(|pending| (pending.stage, &pending.compressed[..])) } else { pending_dense };
        let scales = block.main.spec.stages[stage].linears.first().and_then(|linear| self.transforms.columns(linear));
        let moves = |batch: usize| batch >= on_device.states;
        let produce = |batch: usize, gathers: bool| -> Result<Option<Gathered>> {
            if !gathers && !moves(batch) {
                return Ok(None);
            }
            let (pending_main, pending_dense) =
                (pending_main.filter(|_| moves(batch)), pending_dense.filter(|_| moves(batch)));
            let (main, dense) = rayon::join(
                || main.step(block.main, stage, pending_main, batch),
                || dense.map(|dense| dense.step(block.dense, stage, pending_dense, batch)).transpose(),
            );
            let (main, dense) = (main?, dense?);
            let gathered = || {
                let x = block.main.input(stage, &main);
                let original = dense.as_ref().map(|dense| divided(block.dense.input(stage, dense), scales));
                Gathered { x, original, hidden: dense.map(|dense| (main.hidden, dense.hidden)) }
            };
            Ok(gathers.then(gathered))
        };
        // Two streams keep two threads busy while one waits for its file; so do two batches of a single stream.
        let at_once = if self.dense.is_some() { 1 } else { 2 };
        let batches = self.main.working.batches();
        for first in (0..batches).step_by(at_once) {
            let second = first + 1;
            let wanted = [first, second].map(gathers);
            let produced = self.solutions.clock.time(Part::Forward, || {
                rayon::join(
                    || produce(first, wanted[0]),
                    || if at_once == 2 && second < batches { produce(second, wanted[1]) } else { Ok(None) },
                )
            });
            let Some(moments) = moments.as_deref_mut() else {
                produced.0?;
                produced.1?;
                continue;
            };
            for gathered in [produced.0?, produced.1?].into_iter().flatten() {
                self.solutions.clock.time(Part::Moments, || {
                    moments.add(&gathered.x, gathered.original.as_ref());
                    if let Some((main, dense)) = &gathered.hidden {
                        moments.add_residual(&gathered.x, dense, main);
                    }
                });
            }
        }
        Ok(on_device.note)
    }

    /// Applies the last stage and puts the states behind the block aside.
    pub(super) fn end_block(&mut self, block: &Both<'_>, index: usize, pending: Option<&Pending>) -> Result<()> {
        let job = self.job;
        let compressed = job.solve.compressed;
        let last = index + 1 == job.solve.model.blocks.len();
        let mut hashes = Vec::new();
        let mut failures = 0;
        let hidden = job.solve.model.hidden;
        for (stream, is_main) in
            [(Some(&mut self.main), true), (self.dense.as_mut(), false)].into_iter().filter_map(|(s, m)| Some((s?, m)))
        {
            if last {
                break;
            }
            if self.saved.is_some() && !compressed {
                break;
            }
            let path = states_path(&job.folder, stream.name, index + 1);
            let length = stream.current.length();
            let values = job.solve.limits.batch_sequences(length) * length * hidden;
            let next = Store::create(Some(&path), stream.working.batches(), values, length)
                .map_err(|source| SolveFailure::io(&path, source))?;
            let pending = pending.map(|pending| {
                let compressed = is_main && compressed;
                let linears = if compressed { &pending.compressed[..] } else { &pending.dense[..] };
                (if compressed { block.main } else { block.dense }, pending.stage, linears)
            });
            let done = match (job.device, pending) {
                (Some(device), Some((block, stage, linears))) => {
                    let work = || on_device::advance(device, &stream.working, &next, block, (stage, linears));
                    self.solutions.clock.time(Part::Forward, work)?
                }
                _ => on_device::Progress::default(),
            };
            failures += done.note.failures;
            let advance = |batch: usize| -> Result<()> {
                if batch < done.states {
                    return Ok(());
                }
                let mut state = stream.working.read(batch)?;
                if let Some((block, stage, linears)) = pending {
                    block.apply(stage, &mut state, linears)?;
                }
                Ok(next.write(batch, &state)?)
            };
            let batches = stream.working.batches();
            self.solutions.clock.time(Part::Forward, || in_pairs(batches, advance))?;
            let hash = self.solutions.clock.time(Part::States, || hash_file(&path));
            hashes.push(hash.map_err(|source| SolveFailure::io(&path, source))?);
            stream.current = next;
        }
        if failures > 0
            && let Some(last) = block.main.spec.linears().last()
        {
            // The states are behind the block's last linear, whatever that is stored as.
            let note = Note { device: None, failures };
            self.deny(std::slice::from_ref(last), &note)?;
            self.solutions.note(&last.weight, Step::States, &note)?;
        }
        self.solutions.append(Line::Block { block: index, states: hashes })?;
        Ok(())
    }
}
