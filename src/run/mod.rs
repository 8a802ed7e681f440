//! Makes the plan happen: wave by wave from the map through the codecs to the planned positions, with a journal.
//!
//! Order of events, each safe to be killed in: lock, reserve space, waves (bytes, then their journal records), sync
//! and read back, small files, manifest, rename. Running the same command again continues.

mod again;
mod choose;
mod device;
#[cfg(test)]
mod device_tests;
mod error;
mod finish;
mod journal;
mod progress;
mod staging;
mod wave;

pub use again::again;
pub use choose::{Chosen, choose};
pub(crate) use device::STRIPES_IN_FLIGHT;
pub use error::RunError;
pub use progress::{Progress, Silent, Status};

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use rayon::prelude::*;

use self::{
    device::RunDevice,
    journal::{Found, Head, Journal, Record},
    staging::Staging,
};
use crate::{
    Result,
    compute::{ComputeError, Device, SharedDevice},
    layout::{LogicalCheckpoint, layout, layout_for},
    manifest::{ContentHash, Manifest},
    plan::Plan,
    platform, solve,
};

/// What the allocator keeps adds up over waves; giving it back costs page faults, so not after every one.
const WAVES_PER_TRIM: usize = 16;

/// How to run a plan.
pub struct Options<'a> {
    /// Start over: discard unfinished work, replace an artifact of bantam's that stands at the target.
    pub fresh: bool,
    /// Treat a deviation as an error.
    pub deny_fallbacks: bool,
    /// The graphics processor that does what it has kernels for; none: everything is done on the processor.
    pub device: Option<&'a Device>,
    /// Whether the manifest tells what the device did: not where a measurement chose the device, since the same recipe
    /// must give the same manifest.
    pub record_device: bool,
    /// Set from outside to stop after the current wave.
    pub stop: &'a AtomicBool,
    /// Told how far the run is.
    pub progress: &'a dyn Progress,
}

/// What a run did.
#[derive(Debug)]
pub struct Outcome {
    /// The manifest as written.
    pub manifest: Manifest,
    /// Units taken over from an earlier, interrupted run.
    pub resumed: usize,
    /// Whether the artifact stood there already, complete.
    pub was_complete: bool,
    /// What went wrong first on the device; what it failed at was done on the processor and is among the fallbacks.
    pub device_failure: Option<ComputeError>,
}

/// Runs the plan to the end, or as far as it is let.
///
/// # Errors
/// [`RunError`]; what was done stays in the work folder and the same command continues.
pub fn run(plan: &Plan, source: &LogicalCheckpoint, options: &Options<'_>) -> Result<Outcome> {
    let identity = source_identity(source);
    if let Some(manifest) = finish::standing_artifact(plan, &identity, options.fresh)? {
        staging::remove_work_folder(&plan.out)?;
        return Ok(Outcome { manifest, resumed: 0, was_complete: true, device_failure: None });
    }
    plan.check_disk(if options.fresh { 0 } else { staged_bytes(plan) })?;
    let pool = workers(plan)?;
    pool.install(|| run_in_pool(plan, source, options, &identity))
}

/// As many threads as the plan counts on.
fn workers(plan: &Plan) -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(plan.memory.threads)
        .thread_name(|index| format!("worker-{index}"))
        .build()
        .map_err(|error| RunError::io("start threads for", &plan.out)(std::io::Error::other(error)))?;
    Ok(pool)
}

fn run_in_pool(plan: &Plan, source: &LogicalCheckpoint, options: &Options<'_>, identity: &str) -> Result<Outcome> {
    let start = Instant::now();
    let mut staging = Staging::open(&plan.out)?;
    let shared = options.device.cloned().map(SharedDevice::new);
    let head = Head::new(&plan.digest, &journal_identity(plan, identity, shared.as_ref()));
    if options.fresh {
        staging.clear()?;
    }
    let found = match journal::read(&staging.journal(), &head)? {
        Found::Other => return Err(RunError::OtherRun { work: staging::work_folder(&plan.out) }.into()),
        Found::Nothing => Vec::new(),
        Found::Records(records) => records,
    };
    staging.prepare(plan, true)?;
    let kept = survivors(plan, &staging, found)?;
    let resumed = kept.len();
    let mut journal = Journal::start(&staging.journal(), &head, &kept)?;
    let mut records: BTreeMap<usize, Record> = kept.into_iter().map(|record| (record.unit, record)).collect();
    let found = calibrate(plan, source, options, &staging, identity, shared.as_ref())?;
    platform::trim_heap();
    let device = RunDevice::new(shared.as_ref(), options.record_device);
    let base = work(plan, source, options, &staging, found.as_ref(), &device, &mut journal, &mut records, start)?;
    let found = found.as_ref();
    let manifest = finish::finish(plan, source, staging, options, &records, found, identity, resumed, start, &base)?;
    let device_failure = shared.as_ref().and_then(SharedDevice::failure);
    Ok(Outcome { manifest, resumed, was_complete: false, device_failure })
}

/// Finds what the plan leaves to calibration; `None` where it leaves nothing.
fn calibrate(
    plan: &Plan,
    source: &LogicalCheckpoint,
    options: &Options<'_>,
    staging: &Staging,
    identity: &str,
    device: Option<&SharedDevice>,
) -> Result<Option<solve::Outcome>> {
    let Some(solve) = &plan.solve else { return Ok(None) };
    let job = solve::Job {
        plan,
        solve,
        source,
        checkpoint: source,
        folder: staging.solved(),
        identity,
        device,
        deny_fallbacks: options.deny_fallbacks,
        stop: options.stop,
        progress: &|block, blocks, what| options.progress.calibrating(block, blocks, what),
        training: &|step, steps, loss| options.progress.training(step, steps, loss),
    };
    solve::solve(&job).map(Some)
}

/// What an unfinished run belongs to. Where calibration decides codes and scales, those of one device must not stand beside
/// those of another; rounding to nearest gives the same bytes on all.
fn journal_identity(plan: &Plan, source: &str, device: Option<&SharedDevice>) -> String {
    match device.filter(|_| plan.solve.is_some()) {
        Some(device) => format!("{source} on {}", device.name()),
        None => source.to_owned(),
    }
}

/// The recorded units whose bytes read back as recorded; the last record of a unit counts.
fn survivors(plan: &Plan, staging: &Staging, records: Vec<Record>) -> Result<Vec<Record>> {
    let latest: BTreeMap<usize, Record> = records
        .into_iter()
        .filter(|record| plan.units.get(record.unit).is_some_and(|unit| unit.outputs.len() == record.outputs.len()))
        .map(|record| (record.unit, record))
        .collect();
    let checked: Vec<Result<Option<Record>>> = latest
        .into_par_iter()
        .map(|(unit, record)| {
            for (output, expected) in plan.units[unit].outputs.iter().zip(&record.outputs) {
                let hash = staging.hash(plan, output.file, output.offset, output.spec.bytes())?;
                if hash != *expected {
                    return Ok(None);
                }
            }
            Ok(Some(record))
        })
        .collect();
    let mut kept = Vec::new();
    for record in checked {
        kept.extend(record?);
    }
    Ok(kept)
}

/// Does all waves. Returns the hashes of the base's tensors that were read for them.
#[expect(clippy::too_many_arguments, reason = "everything that the waves need, from as many owners")]
fn work(
    plan: &Plan,
    source: &LogicalCheckpoint,
    options: &Options<'_>,
    staging: &Staging,
    found: Option<&solve::Outcome>,
    device: &RunDevice<'_>,
    journal: &mut Journal,
    records: &mut BTreeMap<usize, Record>,
    start: Instant,
) -> Result<BTreeMap<String, ContentHash>> {
    let config = source.checkpoint().config().map(|config| &config.value);
    let target = layout_for(plan.layout, config).unwrap_or_else(|_| layout(plan.layout));
    let context = wave::Context {
        plan,
        source,
        layout: target.as_ref(),
        staging,
        found,
        device,
        deny_fallbacks: options.deny_fallbacks,
        base_hashes: Mutex::default(),
    };
    let mut status = Status::new(plan, records.keys().copied(), start);
    options.progress.update(&status);
    let mut open = BTreeMap::new();
    let writeback = staging.writeback();
    let waves: Vec<Vec<_>> = plan
        .memory
        .waves
        .iter()
        .map(|wave| wave.iter().filter(|slab| !records.contains_key(&slab.unit)).cloned().collect())
        .filter(|wave: &Vec<_>| !wave.is_empty())
        .collect();
    for (index, wave) in waves.iter().enumerate() {
        if options.stop.load(Ordering::SeqCst) {
            return Err(RunError::Stopped { done: records.len(), total: plan.units.len() }.into());
        }
        if let Some(next) = waves.get(index + 1) {
            wave::announce(&context, next);
        }
        let done = wave::run(&context, wave, &mut open)?;
        writeback.nudge();
        if index % WAVES_PER_TRIM == WAVES_PER_TRIM - 1 {
            platform::trim_heap();
        }
        journal.append(&done)?;
        status.advance(plan, wave, done.iter().map(|record| record.unit));
        records.extend(done.into_iter().map(|record| (record.unit, record)));
        options.progress.update(&status);
    }
    Ok(context.base_hashes.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Bytes that an unfinished run of this target has on the disk already.
#[must_use]
pub fn staged_bytes(plan: &Plan) -> u64 {
    let staged = staging::work_folder(&plan.out).join("artifact");
    plan.files.iter().map(|file| platform::allocated_bytes(&staged.join(&file.name))).sum()
}

/// Names, lengths and modification times of the source's files: when one changes, an unfinished run is not continued.
#[must_use]
pub fn source_identity(source: &LogicalCheckpoint) -> String {
    let mut hasher = blake3::Hasher::new();
    if let Some(base) = source.base() {
        hasher.update(source_identity(base).as_bytes());
    }
    for merged in source.merged() {
        hasher.update(source_identity(merged).as_bytes());
    }
    let checkpoint = source.checkpoint();
    for file in checkpoint.files() {
        hasher.update(file_identity(&file.path).as_bytes());
    }
    for path in checkpoint.companions() {
        hasher.update(file_identity(path).as_bytes());
    }
    if let Some(config) = checkpoint.config() {
        hasher.update(config.text.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn file_identity(path: &Path) -> String {
    let metadata = std::fs::metadata(path);
    let length = metadata.as_ref().map_or(0, std::fs::Metadata::len);
    let modified = metadata.and_then(|metadata| metadata.modified()).ok();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    format!("{name:?} {length} {modified:?}\n")
}

/// What the process used at most, for the run log.
fn peak_rss_bytes() -> Option<u64> {
    platform::peak_rss_bytes()
}
