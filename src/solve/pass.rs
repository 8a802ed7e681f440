//! Passes over all states of a block: what is pending is applied, what the next stage needs to know is gathered.

use super::{
    Moments, Part, SolveFailure, Wanted,
    driver::Worker,
    record::Line,
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
    pub(super) fn gather(&mut self, block: &Both<'_>, stage: usize, pending: Option<&Pending>) -> Result<Moments> {
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
        self.pass(block, stage, pending, moments.as_mut())?;
        let mut moments = moments.unwrap_or_default();
        moments.finish();
        Ok(moments)
    }

    /// One pass over all states: applies what is pending, and gathers the input of `stage`.
    pub(super) fn pass(
        &mut self,
        block: &Both<'_>,
        stage: usize,
        pending: Option<&Pending>,
        mut moments: Option<&mut Moments>,
    ) -> Result<()> {
        let gathers = moments.is_some();
        let (main, dense, compressed) = (&self.main, self.dense.as_ref(), self.job.solve.compressed);
        let pending_dense = pending.map(|pending| (pending.stage, &pending.dense[..]));
        let pending_main =
            if compressed { pending.map(|pending| (pending.stage, &pending.compressed[..])) } else { pending_dense };
        let scales = block.main.spec.stages[stage].linears.first().and_then(|linear| self.transforms.columns(linear));
        let produce = |batch: usize| -> Result<Option<Gathered>> {
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
            let produced = self.solutions.clock.time(Part::Forward, || {
                rayon::join(
                    || produce(first),
                    || if at_once == 2 && second < batches { produce(second) } else { Ok(None) },
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
        Ok(())
    }

    /// Applies the last stage and puts the states behind the block aside.
    pub(super) fn end_block(&mut self, block: &Both<'_>, index: usize, pending: Option<&Pending>) -> Result<()> {
        let job = self.job;
        let compressed = job.solve.compressed;
        let last = index + 1 == job.solve.model.blocks.len();
        let mut hashes = Vec::new();
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
            let advance = |batch: usize| -> Result<()> {
                let mut state = stream.working.read(batch)?;
                if let Some(pending) = pending {
                    let (block, linears) = if is_main && compressed {
                        (block.main, &pending.compressed)
                    } else {
                        (block.dense, &pending.dense)
                    };
                    block.apply(pending.stage, &mut state, linears)?;
                }
                Ok(next.write(batch, &state)?)
            };
            let batches = stream.working.batches();
            self.solutions.clock.time(Part::Forward, || in_pairs(batches, advance))?;
            let hash = self.solutions.clock.time(Part::States, || hash_file(&path));
            hashes.push(hash.map_err(|source| SolveFailure::io(&path, source))?);
            stream.current = next;
        }
        self.solutions.append(Line::Block { block: index, states: hashes })?;
        Ok(())
    }
}
