//! The end of a run: sync, read back, small files, manifest, rename; and what to do with an artifact that stands there.

use std::{collections::BTreeMap, path::Path, time::Instant};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Options, RunError, journal::Record, peak_rss_bytes, staging, staging::Staging};
use crate::{
    Result,
    checkpoint::Checkpoint,
    compute::DEVICE_FAILED,
    layout::LogicalCheckpoint,
    manifest::{
        ContentHash, FILE_NAME, Fallback, FileEntry, InputTensor, Manifest, OutputTensor, Part, RUN_LOG_NAME, SCHEMA,
        Tool, Totals, base_tensors,
    },
    passes::breadcrumbs,
    plan::{Action, Plan, SmallContent, Unit},
    solve::Outcome,
};

/// `run.json`: what the manifest must not hold, since it differs from run to run.
#[derive(Debug, Serialize, Deserialize)]
struct RunLog {
    schema: String,
    plan: String,
    source: String,
    seconds: f64,
    threads: usize,
    resumed_tensors: usize,
    peak_rss_bytes: Option<u64>,
    planned_peak_bytes: u64,
    #[serde(default)]
    calibration_seconds: BTreeMap<String, f64>,
    finished_unix_seconds: u64,
    model: String,
}

/// The manifest of a finished artifact at the target, when it is this plan's and this source's; an error when
/// something else stands there and nothing says to replace it.
pub(super) fn standing_artifact(plan: &Plan, identity: &str, fresh: bool) -> Result<Option<Manifest>> {
    let out = &plan.out;
    if !out.exists() {
        return Ok(None);
    }
    let manifest = Manifest::read(out);
    if fresh {
        return match manifest {
            Ok(_) => Ok(None),
            Err(_) if is_empty_folder(out) => Ok(None),
            Err(_) => Err(RunError::TargetForeign { out: out.clone() }.into()),
        };
    }
    let log: Option<RunLog> =
        std::fs::read(out.join(RUN_LOG_NAME)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match (manifest, log) {
        (Ok(manifest), Some(log)) if log.plan == plan.digest && log.source == identity => Ok(Some(manifest)),
        _ if is_empty_folder(out) => Ok(None),
        _ => Err(RunError::TargetExists { out: out.clone() }.into()),
    }
}

fn is_empty_folder(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

#[expect(clippy::too_many_arguments, reason = "the end of a run joins all of its parts")]
pub(super) fn finish(
    plan: &Plan,
    source: &LogicalCheckpoint,
    staging: Staging,
    options: &Options<'_>,
    records: &BTreeMap<usize, Record>,
    found: Option<&Outcome>,
    identity: &str,
    resumed: usize,
    start: Instant,
    base: &BTreeMap<String, ContentHash>,
) -> Result<Manifest> {
    // The disk and the processor do their parts at the same time.
    let (synced, same) = std::thread::scope(|scope| {
        let sync = scope.spawn(|| staging.sync(plan));
        let same = read_back(plan, &staging, records);
        (sync.join(), same)
    });
    same?;
    synced.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let folder = staging.artifact();
    let mut files = Vec::new();
    for file in &plan.small_files {
        let path = folder.join(&file.name);
        let bytes = match &file.content {
            SmallContent::Bytes(bytes) => bytes.clone(),
            SmallContent::CopyOf(source) => std::fs::read(source).map_err(RunError::io("read", source))?,
        };
        staging::write_file(&path, &bytes)?;
        files.push(FileEntry { name: file.name.clone(), bytes: bytes.len() as u64, hash: ContentHash::of(&bytes) });
    }
    let manifest = manifest(plan, source, records, found, files, base);
    staging::write_file(&folder.join(FILE_NAME), manifest.to_json()?.as_bytes())?;
    let log = RunLog {
        schema: "bantam.run/1".into(),
        plan: plan.digest.clone(),
        source: identity.to_owned(),
        seconds: start.elapsed().as_secs_f64(),
        threads: plan.memory.threads,
        resumed_tensors: resumed,
        peak_rss_bytes: peak_rss_bytes(),
        planned_peak_bytes: plan.memory.peak_bytes,
        calibration_seconds: found.map(|found| found.solutions.clock.seconds()).unwrap_or_default(),
        finished_unix_seconds: std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs()),
        model: plan.model.display().to_string(),
    };
    let mut text = serde_json::to_string_pretty(&log).unwrap_or_default();
    text.push('\n');
    staging::write_file(&folder.join(RUN_LOG_NAME), text.as_bytes())?;
    staging.publish(&plan.out, options.fresh)?;
    Ok(manifest)
}

/// Opens the staged files as any reader would, and compares every tensor's bytes with what was meant.
fn read_back(plan: &Plan, staging: &Staging, records: &BTreeMap<usize, Record>) -> Result<()> {
    for file in &plan.files {
        // The strict reader: header, offsets, lengths.
        Checkpoint::open(&staging.artifact().join(&file.name))?;
    }
    records.par_iter().try_for_each(|(&unit, record)| {
        for (output, expected) in plan.units[unit].outputs.iter().zip(&record.outputs) {
            let hash = staging.hash(plan, output.file, output.offset, output.spec.bytes())?;
            if hash != *expected {
                return Err(RunError::Verify {
                    name: output.spec.name.clone(),
                    folder: staging.artifact(),
                    expected: expected.to_string(),
                    got: hash.to_string(),
                });
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn manifest(
    plan: &Plan,
    source: &LogicalCheckpoint,
    records: &BTreeMap<usize, Record>,
    found: Option<&Outcome>,
    files: Vec<FileEntry>,
    base: &BTreeMap<String, ContentHash>,
) -> Manifest {
    let mut inputs = Vec::new();
    let mut tensors = Vec::new();
    let mut fallbacks = plan.fallbacks.clone();
    for (&index, record) in records {
        let unit = &plan.units[index];
        inputs.extend(unit.parts.iter().zip(&record.inputs).filter_map(|(part, &hash)| {
            let entry = source.checkpoint().tensor(part)?;
            let (dtype, shape) = (entry.dtype, entry.shape.clone());
            Some(InputTensor { name: part.clone(), dtype, shape, bytes: entry.bytes, hash })
        }));
        let computed = found.map(|found| found.solutions.computed(&unit.name)).unwrap_or_default();
        let mut deviations = record.deviations.clone();
        if computed.failures > 0 {
            *deviations.entry(DEVICE_FAILED.to_owned()).or_default() += computed.failures;
        }
        fallbacks.extend(deviations.into_iter().map(|(kind, count)| Fallback {
            tensor: unit.name.clone(),
            count,
            message: if kind == DEVICE_FAILED {
                format!("`{}`: the device failed, {count} parts of it were computed on the processor", unit.name)
            } else {
                format!("`{}`: {kind}, {count} times", unit.name)
            },
            kind,
        }));
        let calibration = found.and_then(|found| found.solutions.report(&unit.name));
        let input = found.and_then(|found| found.solutions.inputs.get(&unit.name)).cloned();
        let expansion =
            found.and_then(|found| found.selections.get(&unit.name)).map(|selection| selection.figures.clone());
        let mut tensor = OutputTensor { calibration, input, expansion, ..output_tensor(unit, record) };
        tensor.device = tensor.device.or(computed.device);
        if let Some(transforms) = plan.solve.as_ref().and_then(|solve| solve.touched.get(&unit.name)) {
            tensor.passes.splice(0..0, transforms.iter().cloned());
        }
        tensors.push(tensor);
    }
    let encoded = || plan.units.iter().filter(|unit| matches!(unit.action, Action::Encode(_)));
    let totals = Totals {
        tensors: plan.units.len() as u64,
        compressed_tensors: encoded().count() as u64,
        weights: plan.units.iter().map(|unit| unit.weights).sum(),
        compressed_weights: encoded().map(|unit| unit.weights).sum(),
        bits_per_weight: (encoded().count() > 0).then(|| plan.bits_per_weight()),
        source_bytes: plan.units.iter().map(|unit| unit.source_bytes).sum(),
        artifact_bytes: plan.units.iter().map(Unit::bytes).sum(),
    };
    let recipe = plan.recipe.clone();
    let (schema, tool, layout) = (SCHEMA.to_owned(), Tool::default(), plan.layout);
    let base = source.base().map_or_else(Vec::new, |source| base_tensors(source.checkpoint(), base));
    let merged = source.merged().iter().map(|model| base_tensors(model.checkpoint(), &BTreeMap::new())).collect();
    let training = found.and_then(|found| found.solutions.training.clone());
    Manifest { schema, tool, recipe, layout, base, merged, inputs, tensors, files, fallbacks, training, totals }
}

fn output_tensor(unit: &Unit, record: &Record) -> OutputTensor {
    let parts = unit
        .outputs
        .iter()
        .zip(&record.outputs)
        .map(|(output, &hash)| Part {
            name: output.spec.name.clone(),
            dtype: output.spec.dtype,
            shape: output.spec.shape.clone(),
            bytes: output.spec.bytes(),
            hash,
        })
        .collect();
    let (passes, matrix, mask) = match &unit.action {
        Action::Encode(encode) => {
            let mask = encode.mask().map(|mask| mask.solve.pattern);
            (encode.passes(), Some(encode.matrix.clone()), mask)
        }
        Action::Merge(_) => (vec![breadcrumbs::INFO.name.to_owned()], None, None),
        Action::Copy | Action::Same | Action::Rows(_) | Action::Decode | Action::Cast | Action::Transform => (Vec::new(), None, None),
    };
    OutputTensor {
        name: unit.name.clone(),
        source: unit.parts.clone(),
        passes,
        codec: unit.codec_name(),
        matrix,
        mask,
        shape: unit.shape.clone(),
        parts,
        bits_per_weight: unit.bits_per_weight(),
        error: record.error,
        calibration: None,
        device: record.device.clone(),
        input: None,
        expansion: None,
        hash: ContentHash::of_parts(&record.outputs),
    }
}
