//! What `plan` and `run` share: recipe, checkpoint, model map, plan.

use std::path::{Path, PathBuf};

use super::{ByteSize, CliError, Denied, Device, Output};
use crate::{
    checkpoint::Checkpoint,
    compute,
    layout::LogicalCheckpoint,
    manifest::Manifest,
    model::ModelMap,
    plan::{Inputs, Options, Plan},
    recipe::{Overrides, Recipe},
    remote::is_remote,
};

/// The arguments that decide the plan.
pub(super) struct Job<'a> {
    pub(super) recipe: &'a Path,
    pub(super) model: Option<&'a PathBuf>,
    pub(super) base: Option<&'a PathBuf>,
    pub(super) out: Option<&'a PathBuf>,
    /// Stands in where nothing names a target and none is written.
    pub(super) default_out: Option<&'static str>,
    pub(super) threads: Option<u16>,
    pub(super) max_memory: Option<ByteSize>,
    /// The kind of the device that will encode, if one will.
    pub(super) device: Option<compute::AdapterKind>,
    pub(super) deny: &'a [Denied],
    /// Whether statistics are gathered that other plans need.
    pub(super) gathers_statistics: bool,
}

/// Opens everything and plans.
pub(super) fn plan(job: &Job<'_>) -> Result<(LogicalCheckpoint, Plan), anyhow::Error> {
    let overrides = Overrides {
        model: job.model.cloned(),
        base: job.base.cloned(),
        out: job.out.cloned(),
        default_out: job.default_out.map(PathBuf::from),
    };
    let recipe = Recipe::read_with(job.recipe, &overrides)?;
    let mut source = open_model(&recipe.model, None)?;
    if let Some(base) = &recipe.base {
        source = source.with_base(open_model(base, None)?)?;
    }
    let merged = recipe.merged.iter().map(|model| open_model(model, None));
    source = source.with_merged(merged.collect::<Result<_, _>>()?);
    let map = ModelMap::of(&source);
    let options = Options {
        threads: threads(job.threads),
        max_memory_bytes: job.max_memory.map(|size| size.0),
        deny_fallbacks: job.deny.contains(&Denied::Fallback),
        device: job.device,
        gathers_statistics: job.gathers_statistics,
    };
    let plan = Plan::new(Inputs { recipe: &recipe, source: &source, model: &map }, &options)?;
    Ok((source, plan))
}

/// Opens a model; one that is stored as differences together with its base, which is read once to know it again.
pub(super) fn open_model(path: &Path, base: Option<&PathBuf>) -> Result<LogicalCheckpoint, anyhow::Error> {
    let source = LogicalCheckpoint::open(Checkpoint::open(path)?)?;
    let usage = |message: String, hint: &str| CliError::Usage { message, hint: Some(hint.into()) };
    match (base, source.is_delta()) {
        (None, false) => Ok(source),
        (None, true) => {
            let message = format!("{} holds differences from a base", path.display());
            Err(usage(message, "give the checkpoint that it was made from with --base DIR").into())
        }
        (Some(_), false) => {
            let message = format!("{} holds no differences: it needs no base", path.display());
            Err(usage(message, "leave --base out").into())
        }
        (Some(base), true) => {
            let base = LogicalCheckpoint::open(Checkpoint::open(base)?)?;
            let folder = if is_remote(path) { source.checkpoint().root() } else { path };
            Manifest::read(folder)?.require_base(path, base.checkpoint())?;
            Ok(source.with_base(base)?)
        }
    }
}

/// Threads to use: what was asked for, or one per core.
pub(super) fn threads(asked: Option<u16>) -> usize {
    asked.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
}

/// The graphics processor to compute on, with so much of its memory; `None` for the processor. `auto` is the processor here:
/// only `run` chooses by measuring, and only where that changes no byte.
pub(super) fn open_device(
    asked: Device,
    max_device_memory: Option<ByteSize>,
    output: &Output,
) -> Result<Option<compute::Device>, CliError> {
    if asked != Device::Gpu {
        output.detail("computing on the processor");
        return Ok(None);
    }
    let opened = device_choice(max_device_memory).and_then(|choice| compute::Device::open(&choice));
    let device = opened.map_err(|error| CliError::Environment {
        message: error.to_string(),
        hint: Some("leave --device out to compute on the processor; `bantam devices` lists adapters".into()),
    })?;
    output.detail(&format!("computing on {}", device.adapter().name));
    Ok(Some(device))
}

/// Which adapter to open: what the environment says, with the command line's memory.
pub(super) fn device_choice(max_device_memory: Option<ByteSize>) -> Result<compute::Choice, compute::ComputeError> {
    let choice = compute::Choice::from_environment()?;
    let memory_bytes = max_device_memory.map_or(choice.memory_bytes, |size| size.0);
    Ok(compute::Choice { memory_bytes, ..choice })
}

/// Makes every parallel loop of this process use so many threads.
pub(super) fn use_threads(asked: Option<u16>) -> Result<(), CliError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads(asked))
        .build_global()
        .map_err(|error| CliError::Environment { message: format!("cannot start threads: {error}"), hint: None })
}
