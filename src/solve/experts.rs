//! Solves the routed experts of a block, in waves whose moments fit.

use super::{
    Moments, Wanted,
    driver::Worker,
    matrices::{Factors, Given, solve_linear},
    streams::divided,
};
use crate::{
    Result,
    forward::{BlockSpec, Expert, Linear, LinearSpec, Matrix, Routing, WeightSource},
    plan::Encode,
};

/// One expert of a wave.
struct Member {
    index: usize,
    /// As the original model has it; none where only the compressed one runs.
    dense: Expert,
    /// As it will be stored.
    stored: Expert,
    inputs: Moments,
    hidden: Moments,
}

impl Worker<'_> {
    /// The experts of a block, wave by wave; their outputs are added to the states of both streams.
    pub(super) fn experts(&mut self, spec: &BlockSpec, source: &dyn WeightSource, index: usize) -> Result<()> {
        let job = self.job;
        let Some(experts) = &spec.experts else { return Ok(()) };
        let at_once = job.solve.experts_at_once(spec, &job.solve.limits);
        let count = experts.outputs.len();
        for first in (0..count).step_by(at_once) {
            self.check_stop(index)?;
            let range = first..count.min(first + at_once);
            (job.progress)(
                index,
                job.solve.model.blocks.len(),
                &format!("experts {}–{} of {count}", first + 1, range.end),
            );
            let mut members = Vec::with_capacity(range.len());
            for expert in range {
                let (Some(dense), Some(stored)) =
                    (Expert::read(spec, expert, job.source)?, Expert::read(spec, expert, source)?)
                else {
                    continue;
                };
                let make = |linears: &[LinearSpec]| {
                    let columns = linears.first().map_or(0, |linear| linear.columns);
                    if !self.needs_input(linears) || self.is_known(linears) {
                        return Moments::default();
                    }
                    let wanted = if self.is_solved(linears) { job.solve.wanted() } else { Wanted::default() };
                    Moments::new(columns, 0, wanted)
                };
                let inputs = make(&experts.inputs[expert]);
                let hidden = make(std::slice::from_ref(&experts.outputs[expert]));
                members.push(Member { index: expert, dense, stored, inputs, hidden });
            }
            let transforms = self.transforms.clone();
            let input_scales = |member: &Member| {
                experts.inputs[member.index].first().and_then(|linear| transforms.columns(linear)).map(<[f64]>::to_vec)
            };
            self.gather_experts(
                &mut members,
                |member| &mut member.inputs,
                |member, stored, x| if stored { x } else { divided(x, input_scales(member).as_deref()) },
            )?;
            for member in &mut members {
                member.inputs.finish();
                let mut factors = Factors::on(job.device);
                let specs = &experts.inputs[member.index];
                self.keep_ranges(specs, &member.inputs)?;
                for (linear, spec) in member.stored.inputs.iter_mut().zip(specs) {
                    self.store(linear, spec, &member.inputs, &mut factors)?;
                }
                member.inputs = Moments::default();
            }
            self.gather_experts(
                &mut members,
                |member| &mut member.hidden,
                |member, stored, x| {
                    if stored {
                        return member.stored.hidden(&x);
                    }
                    divided(member.dense.hidden(&x), transforms.columns(&experts.outputs[member.index]))
                },
            )?;
            for member in &mut members {
                member.hidden.finish();
                let mut factors = Factors::on(job.device);
                let spec = &experts.outputs[member.index];
                self.keep_ranges(std::slice::from_ref(spec), &member.hidden)?;
                self.store(&mut member.stored.output, spec, &member.hidden, &mut factors)?;
                member.hidden = Moments::default();
            }
            self.add_outputs(&members)?;
        }
        self.borrow_from_experts(experts)
    }

    fn store(
        &mut self,
        linear: &mut Linear,
        spec: &LinearSpec,
        moments: &Moments,
        factors: &mut Factors<'_>,
    ) -> Result<()> {
        let Some(encode) = self.encodes.get(spec.weight.as_str()) else { return Ok(()) };
        let encode: &Encode = encode;
        linear.input = self.rounding(encode, &spec.weight);
        let given = Given::of(self.job);
        linear.weight = solve_linear(&mut self.solutions, encode, spec, &linear.weight, moments, factors, given)?;
        Ok(())
    }

    /// One pass over all states, adding each member's tokens to the moments that `which` picks.
    fn gather_experts(
        &mut self,
        members: &mut [Member],
        which: impl Fn(&mut Member) -> &mut Moments,
        input: impl Fn(&Member, bool, Matrix) -> Matrix,
    ) -> Result<()> {
        if members.iter_mut().all(|member| which(member).columns == 0) {
            return Ok(());
        }
        let compressed = self.job.solve.compressed;
        for batch in 0..self.main.working.batches() {
            let main = self.main.working.read(batch)?;
            let dense = self.dense.as_ref().map(|stream| stream.working.read(batch)).transpose()?;
            for member in members.iter_mut() {
                if which(member).columns == 0 {
                    continue;
                }
                let routing = Routing::of(&main, member.index);
                if routing.tokens.is_empty() {
                    continue;
                }
                let x = input(member, compressed, routing.gather(&main));
                // The same tokens of the original model, wherever its own router sends them.
                let original = dense.as_ref().map(|dense| input(member, false, routing.gather(dense)));
                which(member).add(&x, original.as_ref());
            }
        }
        Ok(())
    }

    fn add_outputs(&mut self, members: &[Member]) -> Result<()> {
        let compressed = self.job.solve.compressed;
        for batch in 0..self.main.working.batches() {
            let mut state = self.main.working.read(batch)?;
            for member in members {
                let expert = if compressed { &member.stored } else { &member.dense };
                expert.add_to(&mut state, member.index);
            }
            self.main.working.write(batch, &state)?;
            if let Some(stream) = &mut self.dense {
                let mut state = stream.working.read(batch)?;
                for member in members {
                    member.dense.add_to(&mut state, member.index);
                }
                stream.working.write(batch, &state)?;
            }
        }
        Ok(())
    }
}
