//! What the activations of MLPs see of the calibration text, and which hidden units are expanded with it.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use super::{Part, Solutions, SolveFailure, driver::Job, record::Line, transforms::Transforms};
use crate::{
    Result,
    checkpoint::Dtype,
    codec::taylor::Taylor,
    forward::{Block, BlockSpec, Kind, Linear, LinearSpec, Matrix, apply_together},
    passes::taylor_mlp::{Ranges, Selection, Settings},
    plan::{expanded_format, expanded_gate, expanded_up},
};

/// The file of ranges in the work folder.
pub(super) const FILE: &str = "ranges.safetensors";

/// What is known of each expanded matrix.
pub type Selections = BTreeMap<String, Selection>;

/// An MLP to be expanded.
struct Target<'a> {
    block: &'a BlockSpec,
    down: &'a LinearSpec,
    settings: &'a Settings,
    format: &'a Taylor,
    seed: u64,
}

fn targets<'a>(job: &Job<'a>) -> Vec<Target<'a>> {
    let encodes: BTreeMap<&str, _> = job
        .plan
        .units
        .iter()
        .filter_map(|unit| match &unit.action {
            crate::plan::Action::Encode(encode) => Some((unit.name.as_str(), encode.as_ref())),
            _ => None,
        })
        .collect();
    let of_block = |block: &'a BlockSpec| {
        let down = block.stages.iter().find(|stage| stage.kind == Kind::MlpOutput)?.linears.first()?;
        let encode = encodes.get(down.weight.as_str())?;
        let (settings, format) = expanded_format(encode)?;
        Some(Target { block, down, settings, format, seed: encode.pass_matrix.seed })
    };
    job.solve.model.blocks.iter().filter_map(of_block).collect()
}

/// Finds the units of every matrix that is expanded, or takes up the ranges that an earlier run found.
///
/// # Errors
/// [`SolveFailure::TooFewUnits`] with the largest share that works, or whatever the forward pass fails with.
pub(super) fn select(job: &Job<'_>, solutions: &mut Solutions) -> Result<Selections> {
    let targets = targets(job);
    if targets.is_empty() {
        return Ok(Selections::new());
    }
    let known = solutions.ranges.and_then(|hash| solutions.lists(FILE, hash));
    let lists = if let Some(lists) = known {
        lists
    } else {
        let lists = gather(job, solutions, &targets)?;
        let hash = solutions.keep_lists(FILE, &lists)?;
        solutions.append(Line::Ranges { hash })?;
        lists
    };
    let ranges: BTreeMap<&str, Ranges> = lists.iter().map(|(name, values)| (name.as_str(), restored(values))).collect();
    let mut found = Selections::new();
    let mut worst: Option<SolveFailure> = None;
    let mut least = f64::INFINITY;
    for target in &targets {
        let name = &target.down.weight;
        let ranges = ranges.get(name.as_str()).filter(|ranges| ranges.lowest.len() == target.down.columns);
        let ranges =
            ranges.ok_or_else(|| SolveFailure::io(&job.folder.join(FILE), std::io::ErrorKind::InvalidData.into()))?;
        match Selection::new(target.settings, target.format, ranges, (target.seed, name)) {
            Ok(mut selection) => {
                let down = target.down.read_weight(job.source)?;
                selection.see(&down, ranges);
                if let (true, Some(gate)) = (target.format.hardened, expanded_gate(target.block)) {
                    let up = expanded_up(target.block).map(|up| up.read_weight(job.source)).transpose()?;
                    let dtype = job.checkpoint.tensor(&gate.weight).map_or(Dtype::F32, |tensor| tensor.dtype);
                    let gate = gate.read_weight(job.source)?;
                    selection.harden((target.seed, name), &down, &gate, up.as_ref(), dtype);
                }
                found.insert(name.clone(), selection);
            }
            Err(few) if few.largest_share() < least => {
                least = few.largest_share();
                let (tensor, wanted, qualifying, units) = (name.clone(), few.wanted, few.qualifying, few.units);
                worst = Some(SolveFailure::TooFewUnits { tensor, wanted, qualifying, units, share: least });
            }
            Err(_) => {}
        }
    }
    match worst {
        Some(failure) => Err(failure.into()),
        None => Ok(found),
    }
}

/// Scales the rows of gates, and their biases, as the selections say, and those of ups with the columns behind them.
pub(super) fn scale(job: &Job<'_>, selections: &Selections, transforms: &mut Transforms) {
    for target in targets(job) {
        let (Some(selection), Some(gate)) = (selections.get(&target.down.weight), expanded_gate(target.block)) else {
            continue;
        };
        let over = |factors: &[f32]| -> Vec<f64> { factors.iter().map(|factor| 1.0 / f64::from(*factor)).collect() };
        if target.format.perturbed {
            transforms.divide_rows(gate, &selection.units, &over(&selection.gate));
        }
        if let (true, Some(up)) = (target.format.hardened, expanded_up(target.block)) {
            let factors = over(&selection.up);
            transforms.divide_rows(up, &selection.units, &factors);
            transforms.multiply_columns(target.down, &selection.units, &factors);
        }
    }
}

/// Sums over tokens of each hidden unit.
struct Sums {
    ranges: Ranges,
    tokens: u64,
}

impl Sums {
    fn new(units: usize) -> Self {
        let ranges = Ranges {
            lowest: vec![f64::INFINITY; units],
            highest: vec![f64::NEG_INFINITY; units],
            mean: vec![0.0; units],
            deviation: vec![0.0; units],
            largest_up: vec![0.0; units],
        };
        Self { ranges, tokens: 0 }
    }

    /// Of the outputs of gate and up, side by side.
    fn of(y: &Matrix, units: usize, gated: bool) -> Self {
        let mut sums = Self::new(units);
        let ranges = &mut sums.ranges;
        for token in 0..y.rows {
            let (gate, up) = y.row(token).split_at(units);
            for (unit, z) in gate.iter().enumerate() {
                let z = f64::from(*z);
                ranges.lowest[unit] = ranges.lowest[unit].min(z);
                ranges.highest[unit] = ranges.highest[unit].max(z);
                ranges.mean[unit] += z;
                ranges.deviation[unit] += z * z;
            }
            for (largest, u) in ranges.largest_up.iter_mut().zip(up) {
                *largest = largest.max(f64::from(u.abs()));
            }
        }
        if !gated {
            ranges.largest_up = vec![1.0; units];
        }
        sums.tokens = y.rows as u64;
        sums
    }

    fn add(&mut self, other: &Self) {
        let join = |into: &mut Vec<f64>, other: &[f64], how: fn(f64, f64) -> f64| {
            into.iter_mut().zip(other).for_each(|(into, other)| *into = how(*into, *other));
        };
        let (into, other_ranges) = (&mut self.ranges, &other.ranges);
        join(&mut into.lowest, &other_ranges.lowest, f64::min);
        join(&mut into.highest, &other_ranges.highest, f64::max);
        join(&mut into.mean, &other_ranges.mean, |a, b| a + b);
        join(&mut into.deviation, &other_ranges.deviation, |a, b| a + b);
        join(&mut into.largest_up, &other_ranges.largest_up, f64::max);
        self.tokens += other.tokens;
    }

    fn finish(mut self) -> Ranges {
        let tokens = self.tokens.max(1) as f64;
        for (mean, square) in self.ranges.mean.iter_mut().zip(&mut self.ranges.deviation) {
            *mean /= tokens;
            *square = (*square / tokens - *mean * *mean).max(0.0).sqrt();
        }
        self.ranges
    }
}

fn saved(ranges: &Ranges) -> Vec<f64> {
    let Ranges { lowest, highest, mean, deviation, largest_up } = ranges;
    [lowest, highest, mean, deviation, largest_up].into_iter().flatten().copied().collect()
}

fn restored(values: &[f64]) -> Ranges {
    let mut parts = values.chunks_exact((values.len() / 5).max(1)).map(<[f64]>::to_vec);
    let mut part = || parts.next().unwrap_or_default();
    Ranges { lowest: part(), highest: part(), mean: part(), deviation: part(), largest_up: part() }
}

/// Takes the text through the original model up to the last of these MLPs, one stage's linears in memory at a time.
fn gather(job: &Job<'_>, solutions: &Solutions, targets: &[Target<'_>]) -> Result<Vec<(String, Vec<f64>)>> {
    let (model, source) = (&job.solve.model, job.source);
    let path = job.folder.join("states-ranges");
    let store = model.embed_all(source, &job.solve.tokens.sequences, &job.solve.limits, Some(&path))?;
    let blocks = model.blocks.len();
    let mut lists = Vec::new();
    for spec in &model.blocks {
        if lists.len() == targets.len() {
            break;
        }
        if job.stop.load(Ordering::SeqCst) {
            return Err(SolveFailure::Stopped { block: spec.index + 1, blocks }.into());
        }
        (job.progress)(spec.index, blocks, "ranges of activations");
        if spec.experts.is_some() {
            model.advance(spec.index, source, &store, &job.solve.limits)?;
            continue;
        }
        let target = targets.iter().find(|target| target.block.index == spec.index);
        let block = Block::read(spec, source, store.length())?;
        for (stage, description) in spec.stages.iter().enumerate() {
            let linears: Vec<Linear> =
                description.linears.iter().map(|linear| linear.read(source)).collect::<std::result::Result<_, _>>()?;
            let watched = target.filter(|_| description.kind == Kind::Mlp);
            let step = |batch: usize| -> Result<Option<Sums>> {
                let mut state = store.read(batch).map_err(|source| SolveFailure::io(&path, source))?;
                let y = apply_together(&linears, &block.input(stage, &state));
                let sums = watched.map(|target| Sums::of(&y, target.down.columns, spec.gated));
                block.finish(stage, &mut state, y)?;
                store.write(batch, &state).map_err(|source| SolveFailure::io(&path, source))?;
                Ok(sums)
            };
            let mut all = watched.map(|target| Sums::new(target.down.columns));
            for first in (0..store.batches()).step_by(2) {
                let second = || if first + 1 < store.batches() { step(first + 1) } else { Ok(None) };
                let (one, two) = solutions.clock.time(Part::Forward, || rayon::join(|| step(first), second));
                for sums in [one?, two?].into_iter().flatten() {
                    if let Some(all) = &mut all {
                        all.add(&sums);
                    }
                }
            }
            if let (Some(all), Some(target)) = (all, watched) {
                lists.push((target.down.weight.clone(), saved(&all.finish())));
            }
        }
    }
    drop(store);
    std::fs::remove_file(&path).map_err(|source| SolveFailure::io(&path, source))?;
    Ok(lists)
}
