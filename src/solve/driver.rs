//! Takes the streams through the model and solves every stage on the way.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    Coverage, Head, Identity, Key, Moments, Note, Part, Solutions, SolveFailure, SolvePlan, Statistics, Wanted, Writer,
    gather,
    matrices::{Factors, Given, solve_linear},
    ranges,
    streams::{Both, Pending, Stream, open_states, resumable, states_path},
    transforms::{Transformed, Transforms},
};
use crate::{
    Result,
    compute::SharedDevice,
    forward::{Block, BlockSpec, Kind, Linear, LinearSpec, Store, WeightSource},
    layout::LogicalCheckpoint,
    plan::{Action, Encode, Plan},
};

/// Everything that solving needs.
pub struct Job<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its part for solving.
    pub solve: &'a SolvePlan,
    /// The model's weights.
    pub source: &'a dyn WeightSource,
    /// The same as stored.
    pub checkpoint: &'a LogicalCheckpoint,
    /// The folder for solutions and states.
    pub folder: PathBuf,
    /// Identity of the source's files.
    pub identity: &'a str,
    /// What computes beside the processor: the forward pass, moments, and most of the solving.
    pub device: Option<&'a SharedDevice>,
    /// Treat a deviation as an error.
    pub deny_fallbacks: bool,
    /// Set from outside to stop.
    pub stop: &'a AtomicBool,
    /// Hears what is being done: block, blocks, what.
    pub progress: &'a dyn Fn(usize, usize, &str),
    /// Hears of every step of a training: how many are done, of how many, and the loss before it.
    pub training: &'a dyn Fn(u64, u64, f64),
}

/// What was found.
pub struct Outcome {
    /// Codes of matrices.
    pub solutions: Solutions,
    /// Scales of folds, and signs of gates.
    pub transforms: Transforms,
    /// Units that are expanded.
    pub selections: ranges::Selections,
}

/// Gathers statistics of every input of the original model into one file. Gives the coverage of experts.
///
/// # Errors
/// As [`solve`].
pub fn calibrate(job: &Job<'_>, out: &Path) -> Result<Vec<Coverage>> {
    let head = Head {
        schema: "bantam.solve/1".into(),
        plan: "calibrate".into(),
        source: job.identity.to_owned(),
        tokens: job.solve.tokens.hash.to_string(),
        device: job.device.map(SharedDevice::name),
    };
    let mut solve_worker = Worker::new(job, Solutions::open(&job.folder, &head)?, BTreeMap::new(), 0, None)?;
    let tokens = solve_worker.tokens();
    let wanted = Wanted { hessian: true, sample: true, ..Wanted::default() };
    let blocks = &job.solve.model.blocks;
    let per_block: Vec<Vec<gather::Input>> =
        blocks.iter().map(|spec| gather::inputs(spec, tokens, &|_, _, _| Some(wanted))).collect();
    let identity = Identity::of(job.checkpoint, &job.solve.tokens, &job.solve.calibration, job.device);
    // Its suffix is what the reader of coverage takes for safetensors.
    let temporary = out.with_extension("unfinished.safetensors");
    let writer = Writer::create(&temporary, &per_block.concat(), Some(&identity))?;
    let mut coverage = Vec::new();
    for (spec, inputs) in blocks.iter().zip(&per_block) {
        let last = solve_worker.gather_block(spec, inputs, &writer)?;
        let block = Block::read(spec, job.source, solve_worker.length())?;
        solve_worker.end_block(&Both { main: &block, dense: &block }, spec.index, last.as_ref())?;
        if spec.experts.is_some() {
            let statistics = Statistics::open(&temporary)?;
            let of_inputs = inputs.iter().filter(|(key, ..)| matches!(key.expert, Some((_, false))));
            let count = |key| statistics.moments(key).map_or(0, |moments| moments.count);
            coverage.extend(Coverage::of(spec, of_inputs.map(|(key, ..)| count(*key)).collect()));
        }
    }
    drop(writer);
    std::fs::rename(&temporary, out).map_err(|source| SolveFailure::io(out, source))?;
    Ok(coverage)
}

/// The work in hand.
pub(super) struct Worker<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) solutions: Solutions,
    pub(super) transforms: Transforms,
    pub(super) encodes: BTreeMap<&'a str, &'a Encode>,
    /// The stream that encodings see.
    pub(super) main: Stream,
    /// The original model's, where it runs beside.
    pub(super) dense: Option<Stream>,
    /// Statistics of the whole model from an earlier `calibrate`.
    pub(super) saved: Option<Statistics>,
    /// Statistics of the block in hand.
    gathered: Option<Statistics>,
    /// What a device did for them, by stage.
    pub(super) notes: BTreeMap<usize, Note>,
}

/// Finds everything, or takes up what an earlier run found.
///
/// # Errors
/// [`SolveFailure`], or whatever the forward pass fails with. What was found stays in the folder.
pub fn solve(job: &Job<'_>) -> Result<Outcome> {
    let head = Head {
        schema: "bantam.solve/1".into(),
        plan: job.plan.digest.clone(),
        source: job.identity.to_owned(),
        tokens: job.solve.tokens.hash.to_string(),
        device: job.device.map(SharedDevice::name),
    };
    let mut solutions = Solutions::open(&job.folder, &head)?;
    let selections = ranges::select(job, &mut solutions)?;
    let blocks = job.solve.model.blocks.len();
    // With nothing to know of inputs, nothing has to flow through the model.
    let first = if job.solve.needs_inputs { resumable(job, &solutions) } else { blocks };
    let saved = match &job.solve.calibration.statistics {
        Some(path) => {
            let identity = Identity::of(job.checkpoint, &job.solve.tokens, &job.solve.calibration, job.device);
            Some(Statistics::open_for(path, &identity)?)
        }
        None => None,
    };
    let encodes = job
        .plan
        .units
        .iter()
        .filter_map(|unit| match &unit.action {
            Action::Encode(encode) => Some((unit.name.as_str(), encode.as_ref())),
            _ => None,
        })
        .collect();
    let mut worker = Worker::new(job, solutions, encodes, first, saved)?;
    if first < blocks {
        worker.find_strength()?;
    }
    // Transforms add up from block to block: the last block's file has all.
    if first > 0 && job.solve.needs_inputs {
        worker.transform(&job.solve.model.blocks[first - 1], first - 1)?;
    }
    for index in first..blocks {
        worker.block(index)?;
    }
    worker.train()?;
    let Worker { solutions, mut transforms, .. } = worker;
    ranges::scale(job, &selections, &mut transforms);
    Ok(Outcome { solutions, transforms, selections })
}

impl<'a> Worker<'a> {
    fn new(
        job: &'a Job<'a>,
        solutions: Solutions,
        encodes: BTreeMap<&'a str, &'a Encode>,
        first: usize,
        saved: Option<Statistics>,
    ) -> Result<Self> {
        let blocks = job.solve.model.blocks.len();
        // With everything known of the original model, nothing has to flow through it.
        let unneeded = saved.is_some() && !job.solve.compressed;
        let stream = |name: &'static str| -> Result<Stream> {
            let current = if first == blocks || unneeded {
                // Nothing is left to be computed.
                Store::create(None, 0, 0, 0).map_err(|source| SolveFailure::io(&job.folder, source))?
            } else if first == 0 {
                job.solve.model.embed_all(
                    job.source,
                    &job.solve.tokens.sequences,
                    &job.solve.limits,
                    Some(&states_path(&job.folder, name, 0)),
                )?
            } else {
                open_states(job, name, first)?
            };
            let (batches, length) = (current.batches(), current.length());
            let values = job.solve.limits.batch_sequences(length) * length * job.solve.model.state_width();
            let path = job.folder.join(format!("working-{name}"));
            let working = Store::create(Some(&path), batches, values, length)
                .map_err(|source| SolveFailure::io(&path, source))?;
            Ok(Stream { name, current, working })
        };
        let dense = if job.solve.both_streams { Some(stream("dense")?) } else { None };
        let main = stream("main")?;
        let transforms = Transforms::default();
        Ok(Self { job, solutions, transforms, encodes, main, dense, saved, gathered: None, notes: BTreeMap::new() })
    }

    /// Tokens of a sequence.
    pub(super) fn length(&self) -> usize {
        self.main.current.length()
    }

    /// Tokens of the whole text.
    pub(super) fn tokens(&self) -> usize {
        self.job.solve.tokens.sequences.len() * self.length()
    }

    pub(super) fn batches(&self) -> usize {
        self.main.current.batches()
    }

    /// The stream of the original model.
    pub(super) fn original_and_clock(&mut self) -> (&mut Stream, &super::Clock) {
        (self.dense.as_mut().unwrap_or(&mut self.main), &self.solutions.clock)
    }

    /// The stream of the original model.
    pub(super) fn original_mut(&mut self) -> &mut Stream {
        self.dense.as_mut().unwrap_or(&mut self.main)
    }

    pub(super) fn check_stop(&self, block: usize) -> std::result::Result<(), SolveFailure> {
        if self.job.stop.load(Ordering::SeqCst) {
            return Err(SolveFailure::Stopped { block: block + 1, blocks: self.job.solve.model.blocks.len() });
        }
        Ok(())
    }

    fn block(&mut self, index: usize) -> Result<()> {
        let job = self.job;
        let spec: &'a BlockSpec = &job.solve.model.blocks[index];
        let last = self.gather_statistics(spec)?;
        self.transform(spec, index)?;
        let transforms = self.transforms.clone();
        let source = &Transformed { inner: job.source, transforms: &transforms, clipped: true };
        let length = self.length();
        let plain = Block::read(spec, job.source, length)?;
        if !job.solve.compressed {
            self.solve_original(spec, source)?;
            return self.end_block(&Both { main: &plain, dense: &plain }, index, last.as_ref());
        }
        let scaled = Block::read(spec, source, length)?;
        let block = Both { main: &scaled, dense: &plain };
        let mut pending: Option<Pending> = None;
        for (stage, description) in spec.stages.iter().enumerate() {
            self.check_stop(index)?;
            (job.progress)(index, job.solve.model.blocks.len(), description.kind.name());
            if description.kind == Kind::Experts {
                self.pass(&block, stage, pending.take().as_ref(), None)?;
                self.experts(spec, source, index)?;
                pending = Some(Pending { stage, dense: Vec::new(), compressed: Vec::new() });
                continue;
            }
            let (moments, note) = self.gather(&block, stage, pending.take().as_ref())?;
            self.note_inputs(&description.linears, &note)?;
            self.keep_ranges(&description.linears, &moments)?;
            self.borrow_alone(&description.linears)?;
            pending = Some(self.solve_stage(stage, source, &description.linears, &moments)?);
        }
        self.end_block(&block, index, pending.as_ref())
    }

    /// Statistics of one input of the original model.
    pub(super) fn statistics(&self, key: Key) -> Option<Moments> {
        self.saved.as_ref().or(self.gathered.as_ref())?.moments(key)
    }

    /// Gathers what the block's transforms, and encodings calibrated with the original model, need to know. Gives the
    /// last stage, not yet applied.
    fn gather_statistics(&mut self, spec: &BlockSpec) -> Result<Option<Pending>> {
        self.gathered = None;
        self.notes.clear();
        let original = !self.job.solve.compressed;
        if self.saved.is_some() || (self.job.solve.transforms.is_empty() && !original) {
            return Ok(None);
        }
        let mut inputs = self.fold_inputs(spec);
        if original {
            let wanted = |linears: &[LinearSpec]| {
                let wanted = Wanted { hessian: self.is_solved(linears), ..Wanted::default() };
                self.needs_input(linears).then_some(wanted)
            };
            let seen = gather::inputs(spec, self.tokens(), &|_, _, linears| wanted(linears));
            for (key, columns, wanted, tokens) in seen {
                match inputs.iter_mut().find(|(known, ..)| *known == key) {
                    Some((_, _, known, _)) => known.hessian |= wanted.hessian,
                    None => inputs.push((key, columns, wanted, tokens)),
                }
            }
        }
        if inputs.is_empty() && !original {
            return Ok(None);
        }
        let path = self.job.folder.join("statistics.safetensors");
        let writer = Writer::create(&path, &inputs, None)?;
        let last = self.gather_block(spec, &inputs, &writer)?;
        drop(writer);
        self.gathered = if inputs.is_empty() { None } else { Some(Statistics::open(&path)?) };
        Ok(last)
    }

    /// Solves a block from the original model's statistics alone: H' = S⁻¹ H S⁻¹ where folds have scaled the input.
    fn solve_original(&mut self, spec: &BlockSpec, source: &dyn WeightSource) -> Result<()> {
        for (stage, description) in spec.stages.iter().enumerate() {
            self.check_stop(spec.index)?;
            (self.job.progress)(spec.index, self.job.solve.model.blocks.len(), description.kind.name());
            self.solve_group(Key { block: spec.index, stage, expert: None }, source, &description.linears)?;
            let Some(experts) = spec.experts.as_ref().filter(|_| description.kind == Kind::Experts) else { continue };
            for (expert, (inputs, output)) in experts.inputs.iter().zip(&experts.outputs).enumerate() {
                self.check_stop(spec.index)?;
                let key = |hidden| Key { block: spec.index, stage, expert: Some((expert, hidden)) };
                self.solve_group(key(false), source, inputs)?;
                self.solve_group(key(true), source, std::slice::from_ref(output))?;
            }
            self.borrow_from_experts(experts)?;
        }
        Ok(())
    }

    fn solve_group(&mut self, key: Key, source: &dyn WeightSource, linears: &[LinearSpec]) -> Result<()> {
        if !self.needs_input(linears) || self.is_known(linears) {
            return Ok(());
        }
        let mut moments = self.statistics(key).unwrap_or_default();
        if let Some(scales) = linears.first().and_then(|linear| self.transforms.columns(linear)) {
            moments.divide(scales);
        }
        let note = self.noted(key.stage);
        self.note_inputs(linears, &note)?;
        self.keep_ranges(linears, &moments)?;
        if key.expert.is_none() {
            self.borrow_alone(linears)?;
        }
        let mut factors = Factors::on(self.job.device);
        self.solve_shared(source, linears, &moments, &mut factors)?;
        for linear in linears {
            let Some(encode) = self.encodes.get(linear.weight.as_str()).copied() else { continue };
            if encode.is_solved() {
                let weights = linear.read_weight(source)?;
                let given = Given::of(self.job);
                solve_linear(&mut self.solutions, encode, linear, &weights, &moments, &mut factors, given)?;
            }
        }
        Ok(())
    }

    /// Whether a stage has a linear that is solved with second moments.
    pub(super) fn is_solved(&self, linears: &[LinearSpec]) -> bool {
        linears.iter().any(|linear| self.encodes.get(linear.weight.as_str()).is_some_and(|encode| encode.is_solved()))
    }

    fn solve_stage(
        &mut self,
        stage: usize,
        source: &dyn WeightSource,
        linears: &[LinearSpec],
        moments: &Moments,
    ) -> Result<Pending> {
        let job = self.job;
        let mut pending = Pending { stage, dense: Vec::new(), compressed: Vec::new() };
        let mut factors = Factors::on(job.device);
        let dense_runs = job.solve.both_streams || !job.solve.compressed;
        self.solve_shared(source, linears, moments, &mut factors)?;
        for linear in linears {
            let original = self.solutions.clock.time(Part::Weights, || linear.read(source))?;
            let stored = match self.encodes.get(linear.weight.as_str()) {
                Some(encode) => {
                    let encode: &Encode = encode;
                    let (weights, given) = (&original.weight, Given::of(job));
                    let weight =
                        solve_linear(&mut self.solutions, encode, linear, weights, moments, &mut factors, given)?;
                    Some(Linear { weight, bias: original.bias.clone(), input: self.rounding(encode, &linear.weight) })
                }
                None => None,
            };
            if job.solve.compressed {
                pending.compressed.push(match stored {
                    Some(stored) => stored,
                    None => original.clone(),
                });
            }
            if dense_runs {
                // The original model's stream takes no part in transforms.
                let changed = self.transforms.touches(&linear.weight);
                pending.dense.push(if changed { linear.read(job.source)? } else { original });
            }
        }
        Ok(pending)
    }
}
