//! Does one wave: reads, hashes, encodes, measures, writes. The only place where workers share anything.

mod merge;
mod output;
mod streamed;
mod stripes;
mod whole;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use output::finish_slab;
use stripes::{Stripe, carry_stripe, changed_rows, decode_stripe, finish_stripe, refuse_denied};

use super::{
    RunError,
    device::{Job, RunDevice},
    journal::Record,
    staging::Staging,
};
use crate::{
    Result,
    checkpoint::{TensorEntry, is_float, scan_non_finite, scan_tensor},
    codec::{CodecError, CodedMatrix, MatrixParameters, RowSource},
    evaluate::ErrorSums,
    layout::{Layout, LogicalCheckpoint, Piece},
    manifest::ContentHash,
    passes::{Deviations, MatrixEncoder},
    plan::{Action, COPY_CHUNK_BYTES, Encode, Plan, Slab, Unit},
    solve::{
        Outcome,
        transforms::{TransformedRows, Turned},
    },
};

/// What all workers read.
pub(super) struct Context<'a> {
    pub(super) plan: &'a Plan,
    pub(super) source: &'a LogicalCheckpoint,
    pub(super) layout: &'a dyn Layout,
    pub(super) staging: &'a Staging,
    pub(super) found: Option<&'a Outcome>,
    pub(super) device: &'a RunDevice<'a>,
    pub(super) deny_fallbacks: bool,
    /// Of the base's tensors that were read whole, while their pages were there.
    pub(super) base_hashes: Mutex<BTreeMap<String, ContentHash>>,
}

/// A unit between its first slab and its last.
pub(super) struct UnitState<'a> {
    inputs: Vec<blake3::Hasher>,
    outputs: Vec<blake3::Hasher>,
    /// Bytes of each output written so far.
    written: Vec<u64>,
    /// Whole tensors, for layouts whose pieces interleave; empty otherwise.
    buffers: Vec<Vec<u8>>,
    sums: ErrorSums,
    deviations: BTreeMap<String, u64>,
    /// Whether the device encoded some of it.
    on_device: bool,
    work: Work<'a>,
}

enum Work<'a> {
    Copy,
    /// Codes as the source has them.
    Carry,
    Decode {
        rows: Box<dyn RowSource + 'a>,
    },
    /// Some rows, as they are.
    Rows {
        rows: Box<dyn RowSource + 'a>,
    },
    /// The changes of several models.
    Merge(merge::Sources<'a>),
    /// Whole matrices, one after the other.
    Whole {
        rows: Box<dyn RowSource + 'a>,
        /// As for [`Work::Encode`].
        unclipped: Option<Box<dyn RowSource + 'a>>,
        /// What calibration found, by expert.
        solved: Vec<(CodedMatrix, Deviations)>,
    },
    Encode {
        rows: Box<dyn RowSource + 'a>,
        /// What errors are measured against, where that is not `rows`: the same before clipping.
        unclipped: Option<Box<dyn RowSource + 'a>>,
        encoder: Box<dyn MatrixEncoder>,
        parameters: MatrixParameters,
    },
}

/// One task of a wave; results are joined in this order.
enum Task {
    /// Hash the slab's share of the source.
    Hash { slab: usize },
    /// Hash the base's tensor, all of which the slab is the difference from.
    Base { slab: usize },
    /// Copy a chunk.
    Chunk { slab: usize, range: Range<u64> },
    /// Encode or decode stripes: these rows.
    Stripes { slab: usize, first_row: usize, rows: usize },
}

/// Stripes of a task where a device encodes: enough that some are always on their way.
const STRIPES_AT_ONCE: usize = 8;

enum Done {
    Hash { slab: usize, inputs: Vec<blake3::Hasher> },
    Chunk,
    Stripes { slab: usize, stripes: Vec<Stripe> },
}

/// Lets the disk begin with what the next wave will read.
pub(super) fn announce(context: &Context<'_>, wave: &[Slab]) {
    for slab in wave {
        let unit = &context.plan.units[slab.unit];
        let whole = || 0..usize::try_from(unit.source_bytes).unwrap_or(usize::MAX);
        for entry in entries(context, unit) {
            let range = contiguous(unit, slab).unwrap_or_else(whole);
            context.source.checkpoint().announce(entry, range.start..range.end.min(entry.bytes as usize));
        }
    }
}

/// Does the slabs of `wave`; returns the records of the units that are complete with it.
pub(super) fn run<'a>(
    context: &Context<'a>,
    wave: &[Slab],
    open: &mut BTreeMap<usize, UnitState<'a>>,
) -> Result<Vec<Record>> {
    let begun: Vec<(usize, Result<UnitState<'a>>)> = wave
        .par_iter()
        .filter(|slab| slab.range.start == 0)
        .map(|slab| (slab.unit, begin(context, &context.plan.units[slab.unit])))
        .collect();
    for (unit, state) in begun {
        open.insert(unit, state?);
    }
    let tasks = tasks(context, wave, open);
    let done: Vec<Result<Done>> = tasks.par_iter().map(|task| perform(context, wave, open, task)).collect();
    let mut stripes: Vec<Vec<Piece>> = wave.iter().map(|_| Vec::new()).collect();
    for result in done {
        match result? {
            Done::Chunk => {}
            Done::Hash { slab, inputs } => {
                if let Some(state) = open.get_mut(&wave[slab].unit) {
                    state.inputs = inputs;
                }
            }
            Done::Stripes { slab, stripes: done } => {
                for stripe in done {
                    if let Some(state) = open.get_mut(&wave[slab].unit) {
                        state.sums.merge(&stripe.sums);
                        state.on_device |= stripe.on_device;
                        for (kind, count) in stripe.deviations {
                            *state.deviations.entry(kind.to_owned()).or_default() += count;
                        }
                    }
                    stripes[slab].extend(stripe.pieces);
                }
            }
        }
    }
    let states: Vec<(usize, UnitState<'a>)> =
        wave.iter().filter_map(|slab| Some((slab.unit, open.remove(&slab.unit)?))).collect();
    let written: Vec<Result<(UnitState<'a>, Option<Record>)>> = states
        .into_par_iter()
        .zip(wave.par_iter().zip(stripes))
        .map(|((_, state), (slab, pieces))| finish_slab(context, slab, state, pieces))
        .collect();
    let mut records = Vec::new();
    for (slab, result) in wave.iter().zip(written) {
        let (state, record) = result?;
        match record {
            Some(record) => records.push(record),
            None => {
                open.insert(slab.unit, state);
            }
        }
    }
    Ok(records)
}

fn begin<'a>(context: &Context<'a>, unit: &Unit) -> Result<UnitState<'a>> {
    let work = match &unit.action {
        Action::Copy | Action::Same => Work::Copy,
        Action::Rows(_) => Work::Rows { rows: context.source.rows(&unit.name, false)? },
        Action::Decode | Action::Cast => {
            Work::Decode { rows: context.layout.stored_rows(&unit.name, context.source.rows(&unit.name, false)?) }
        }
        Action::Carry(_) => Work::Carry,
        Action::Transform => Work::Decode { rows: context.layout.stored_rows(&unit.name, transformed(context, unit)?) },
        Action::Merge(how) => Work::Merge(merge::Sources::open(context, unit, how)?),
        Action::Encode(encode) => {
            let rows = context.source.rows(&unit.name, encode.matrix.transposed)?;
            let (rows, unclipped): (Box<dyn RowSource + 'a>, Option<Box<dyn RowSource + 'a>>) = match context.found {
                Some(found) if found.transforms.touches(&unit.name) => {
                    let again = context.source.rows(&unit.name, encode.matrix.transposed)?;
                    let scaled =
                        |rows, clipped| Box::new(TransformedRows::new(rows, &found.transforms, &unit.name, clipped));
                    (scaled(rows, true), Some(scaled(again, false)))
                }
                _ => (rows, None),
            };
            if encode.matrix.is_whole() {
                let solved = solved_matrices(context, unit, encode);
                let work = Work::Whole { rows, unclipped, solved };
                return Ok(UnitState::new(unit, work));
            }
            let encoder = encoder(context, unit, encode);
            let parameters =
                encoder.prepare(&Released(rows.as_ref())).map_err(|error| encoding_error(context, unit, error))?;
            Work::Encode { rows, unclipped, encoder, parameters }
        }
    };
    Ok(UnitState::new(unit, work))
}

impl<'a> UnitState<'a> {
    fn new(unit: &Unit, work: Work<'a>) -> Self {
        Self {
            inputs: unit.parts.iter().map(|_| blake3::Hasher::new()).collect(),
            outputs: unit.outputs.iter().map(|_| blake3::Hasher::new()).collect(),
            written: vec![0; unit.outputs.len()],
            buffers: Vec::new(),
            sums: ErrorSums::default(),
            deviations: BTreeMap::new(),
            on_device: false,
            work,
        }
    }
}

/// What calibration found of a matrix that is encoded as a whole; empty where nothing had to be known.
fn solved_matrices(context: &Context<'_>, unit: &Unit, encode: &Encode) -> Vec<(CodedMatrix, Deviations)> {
    let wanted = encode.is_solved() || encode.settings.training().is_some();
    let Some(found) = context.found.filter(|_| wanted) else { return Vec::new() };
    let (rows, columns) = (encode.matrix.expert_rows(), encode.matrix.columns);
    let experts = encode.matrix.experts.unwrap_or(1);
    if let Some(trained) = found.solutions.trained(&unit.name, &encode.choice.codec, rows, columns) {
        return vec![trained];
    }
    let codes = |expert| found.solutions.matrix(&unit.name, expert, &encode.choice.codec, rows, columns);
    // Matrices outside of the blocks are not calibrated; the plan has named them.
    (0..experts).map(codes).collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// A dense tensor as calibration scaled it, in its stored order.
fn transformed<'a>(context: &Context<'a>, unit: &Unit) -> Result<Box<dyn RowSource + 'a>> {
    let Some(found) = context.found else { return Ok(context.source.rows(&unit.name, false)?) };
    let turned = found.transforms.transposed(&unit.name);
    let rows = context.source.rows(&unit.name, turned)?;
    let rows: Box<dyn RowSource + 'a> = Box::new(TransformedRows::new(rows, &found.transforms, &unit.name, false));
    let experts = if unit.shape.len() == 3 { unit.shape[0] } else { 1 };
    Ok(if turned { Box::new(Turned::new(rows, experts)) } else { rows })
}

/// The encoder of a unit: it hands out what calibration found, or rounds to nearest.
fn encoder(context: &Context<'_>, unit: &Unit, encode: &Encode) -> Box<dyn MatrixEncoder> {
    let (codec, experts) = (encode.matrix.scalar(), encode.matrix.experts.unwrap_or(1));
    let solved = encode.is_solved().then_some(context.found).flatten().and_then(|found| {
        found.solutions.encoder(&unit.name, codec, experts, encode.matrix.expert_rows(), encode.matrix.columns)
    });
    match solved {
        Some(solved) => Box::new(solved),
        None => encode.settings.encoder(&encode.pass_matrix, &encode.choice),
    }
}

/// Gives pages back behind a reader that goes through the whole matrix once.
struct Released<'a>(&'a dyn RowSource);

impl RowSource for Released<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn columns(&self) -> usize {
        self.0.columns()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> std::result::Result<(), CodecError> {
        self.0.read_rows(first_row, out)?;
        self.0.release_rows(first_row..first_row + out.len() / self.columns().max(1));
        Ok(())
    }
}

fn tasks(context: &Context<'_>, wave: &[Slab], open: &BTreeMap<usize, UnitState<'_>>) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (index, slab) in wave.iter().enumerate() {
        let unit = &context.plan.units[slab.unit];
        tasks.push(Task::Hash { slab: index });
        if unit.base_bytes > 0 && slab.range == (0..unit.extent()) {
            tasks.push(Task::Base { slab: index });
        }
        if matches!(unit.action, Action::Copy | Action::Same) {
            let mut at = slab.range.start;
            while at < slab.range.end {
                let end = (at + COPY_CHUNK_BYTES).min(slab.range.end);
                tasks.push(Task::Chunk { slab: index, range: at..end });
                at = end;
            }
            continue;
        }
        let at_once = match open.get(&slab.unit).map(|state| &state.work) {
            Some(Work::Encode { encoder, .. }) if context.device.takes(encoder.as_ref()) => {
                // Every worker has some.
                let stripes = (slab.range.end - slab.range.start) as usize / unit.stripe_rows();
                (stripes / rayon::current_num_threads().max(1)).clamp(1, STRIPES_AT_ONCE)
            }
            _ => 1,
        };
        let (mut at, end) = (slab.range.start as usize, slab.range.end as usize);
        while at < end {
            let rows = (at_once * unit.stripe_rows()).min(end - at);
            tasks.push(Task::Stripes { slab: index, first_row: at, rows });
            at += rows;
        }
    }
    tasks
}

fn perform(context: &Context<'_>, wave: &[Slab], open: &BTreeMap<usize, UnitState<'_>>, task: &Task) -> Result<Done> {
    let (Task::Hash { slab } | Task::Base { slab } | Task::Chunk { slab, .. } | Task::Stripes { slab, .. }) = task;
    let unit = &context.plan.units[wave[*slab].unit];
    let state = &open[&wave[*slab].unit];
    match task {
        Task::Hash { slab } => Ok(Done::Hash { slab: *slab, inputs: hash_inputs(context, unit, &wave[*slab], state) }),
        Task::Base { .. } => {
            hash_base(context, unit);
            Ok(Done::Chunk)
        }
        Task::Chunk { range, .. } => copy_chunk(context, unit, range).map(|()| Done::Chunk),
        Task::Stripes { slab, first_row, rows } => match &state.work {
            Work::Encode { rows: source, unclipped, encoder, parameters } => {
                let exact = unclipped.as_deref().unwrap_or(source.as_ref());
                let Action::Encode(encode) = &unit.action else { unreachable!("begun as an encoding") };
                let job = Job { encoder: encoder.as_ref(), source: source.as_ref(), parameters };
                let step = unit.stripe_rows();
                let end = first_row + rows;
                let ranges = (*first_row..end).step_by(step).map(|first| (first, step.min(end - first)));
                let mut stripes = Vec::new();
                context.device.encode(job, ranges, |_, _, encoded| {
                    let encoded = encoded.map_err(|error| encoding_error(context, unit, error))?;
                    stripes.push(finish_stripe(context, unit, encode, exact, parameters, encoded)?);
                    Ok::<_, crate::Error>(())
                })?;
                Ok(Done::Stripes { slab: *slab, stripes })
            }
            Work::Whole { rows: source, unclipped, solved } => {
                let exact = unclipped.as_deref().unwrap_or(source.as_ref());
                let Action::Encode(encode) = &unit.action else { unreachable!("begun as an encoding") };
                whole::encode(context, unit, encode, source.as_ref(), exact, solved, *first_row)
                    .map(|stripe| Done::Stripes { slab: *slab, stripes: vec![stripe] })
            }
            Work::Merge(sources) => {
                let Action::Merge(how) = &unit.action else { unreachable!("begun as a merge") };
                merge::merge(context, unit, how, sources, *first_row, *rows)
                    .map(|stripe| Done::Stripes { slab: *slab, stripes: vec![stripe] })
            }
            Work::Rows { rows: source } => changed_rows(context, unit, source.as_ref(), *first_row, *rows)
                .map(|stripe| Done::Stripes { slab: *slab, stripes: vec![stripe] }),
            Work::Decode { rows: source } => decode_stripe(context, unit, source.as_ref(), *first_row, *rows)
                .map(|stripe| Done::Stripes { slab: *slab, stripes: vec![stripe] }),
            Work::Carry => carry_stripe(context, unit, *first_row, *rows)
                .map(|stripe| Done::Stripes { slab: *slab, stripes: vec![stripe] }),
            Work::Copy => unreachable!("copies have chunks"),
        },
    }
}

fn entries<'a>(context: &Context<'a>, unit: &Unit) -> Vec<&'a TensorEntry> {
    // The plan took the names from this checkpoint.
    unit.parts.iter().filter_map(|part| context.source.checkpoint().tensor(part)).collect()
}

/// The bytes of the unit's single part that a slab covers; `None` where rows are not contiguous bytes.
fn contiguous(unit: &Unit, slab: &Slab) -> Option<Range<usize>> {
    if !unit.rows_are_contiguous() {
        return None;
    }
    let per_row = unit.source_bytes / unit.extent().max(1);
    Some((slab.range.start * per_row) as usize..(slab.range.end * per_row) as usize)
}

fn hash_inputs(context: &Context<'_>, unit: &Unit, slab: &Slab, state: &UnitState<'_>) -> Vec<blake3::Hasher> {
    let mut inputs = state.inputs.clone();
    let checkpoint = context.source.checkpoint();
    let entries = entries(context, unit);
    match contiguous(unit, slab) {
        Some(range) => {
            if let (Some(hasher), Some(entry)) = (inputs.first_mut(), entries.first()) {
                for (_, piece) in checkpoint.pieces(entry, range) {
                    hasher.update(&piece);
                }
            }
        }
        // Scattered rows: the parts are hashed whole, once, when the unit begins.
        None if slab.range.start == 0 => {
            for (hasher, entry) in inputs.iter_mut().zip(entries) {
                for (_, piece) in checkpoint.pieces(entry, 0..entry.bytes as usize) {
                    hasher.update(&piece);
                }
            }
        }
        None => {}
    }
    inputs
}

/// Hashes the base's tensor where that is stored as it is.
fn hash_base(context: &Context<'_>, unit: &Unit) {
    let Some((base, entry)) = context.source.base().and_then(|base| base.stored_bytes_of(&unit.name)) else { return };
    let mut hasher = blake3::Hasher::new();
    for (_, piece) in base.pieces(entry, 0..entry.bytes as usize) {
        hasher.update(&piece);
    }
    let hash = ContentHash::from(hasher.finalize());
    let mut known = context.base_hashes.lock().unwrap_or_else(PoisonError::into_inner);
    known.insert(entry.name.clone(), hash);
}

fn copy_chunk(context: &Context<'_>, unit: &Unit, range: &Range<u64>) -> Result<()> {
    let checkpoint = context.source.checkpoint();
    let Some(entry) = entries(context, unit).first().copied() else { return Ok(()) };
    let bytes = checkpoint.range(entry, range.start as usize..range.end as usize);
    if is_float(entry.dtype) && scan_non_finite(entry.dtype, &bytes).is_some() {
        refuse_or_keep(context, unit)?;
    }
    // Nothing is written of a tensor that is the base's.
    let Some(output) = unit.outputs.first() else { return Ok(()) };
    context.staging.write(context.plan, output.file, output.offset + range.start, &bytes)?;
    Ok(())
}

/// A copied tensor has non-finite weights: an error, unless the plan keeps such tensors.
fn refuse_or_keep(context: &Context<'_>, unit: &Unit) -> Result<()> {
    if context.plan.fallbacks.iter().any(|fallback| fallback.kind == "non-finite-kept" && fallback.tensor == unit.name)
    {
        return Ok(());
    }
    Err(non_finite(context, unit).into())
}

/// The full report of a tensor's non-finite weights.
fn non_finite(context: &Context<'_>, unit: &Unit) -> RunError {
    let checkpoint = context.source.checkpoint();
    let report = entries(context, unit).first().and_then(|entry| scan_tensor(checkpoint, entry));
    let (count, first_index) = report.map_or((0, 0), |report| (report.count, report.first_index));
    RunError::NonFinite { tensor: unit.name.clone(), count, first_index }
}

fn encoding_error(context: &Context<'_>, unit: &Unit, error: CodecError) -> crate::Error {
    match error {
        CodecError::NonFinite { .. } if unit.parts.len() == 1 => non_finite(context, unit).into(),
        source => RunError::Codec { tensor: unit.name.clone(), source }.into(),
    }
}
