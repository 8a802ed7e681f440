//! `bantam inspect`: what a checkpoint or an artifact is.

mod deltas;
mod page;
mod sparse;
pub(super) mod statistics;

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use super::{CliError, InspectArguments, Output};
use crate::{
    ExitCode,
    checkpoint::{Checkpoint, Dtype, bits_of},
    evaluate::Sparsity,
    forward::{CacheBytes, Model},
    layout::{CachePolicy, LayoutError, LayoutName, LogicalCheckpoint, LogicalTensor},
    manifest::{FILE_NAME, Fallback, Manifest, Tool, Totals},
    model::{ModelMap, NamedShape},
};

/// What is known of a model: the result of the command.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    path: String,
    architecture: String,
    known_architecture: bool,
    blocks: usize,
    parameters: u64,
    bytes: u64,
    tied_embeddings: bool,
    quantization_method: Option<String>,
    files: Vec<File>,
    dtypes: BTreeMap<String, Stored>,
    roles: Vec<RoleRow>,
    compressed: Option<Compressed>,
    /// n:m sparsity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sparse: Vec<sparse::Row>,
    /// What a runtime keeps of earlier tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CacheBytes>,
    /// Of an artifact of differences.
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<deltas::Delta>,
    notes: Vec<String>,
    artifact: Option<Artifact>,
    tensors: Vec<TensorRow>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statistics: Vec<statistics::Row>,
}

#[derive(Debug, Serialize)]
struct File {
    name: String,
    bytes: u64,
}

/// Tensors of one element type.
#[derive(Debug, Default, Serialize)]
struct Stored {
    tensors: u64,
    bytes: u64,
}

/// Tensors of one role in one number format.
#[derive(Debug, Serialize)]
struct RoleRow {
    role: String,
    codec: String,
    tensors: u64,
    parameters: u64,
    bytes: u64,
    bits_per_weight: f64,
}

/// All tensors in codes.
#[derive(Debug, Serialize)]
struct Compressed {
    tensors: u64,
    parameters: u64,
    bytes: u64,
    bits_per_weight: f64,
}

/// What the manifest tells of an artifact.
#[derive(Debug, Serialize)]
struct Artifact {
    tool: Tool,
    layout: LayoutName,
    fallbacks: Vec<Fallback>,
    totals: Totals,
}

#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    role: String,
    block: Option<usize>,
    codec: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
    parts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sparsity: Option<Sparsity>,
}

/// Executes the command.
///
/// # Errors
/// When the checkpoint is invalid, or a selector is wrong or matches nothing.
pub fn execute(arguments: &InspectArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    if let Some(folder) = deltas::Folder::open(&arguments.path) {
        if output.json() {
            output.json_result(&folder)?;
        } else {
            output.result(&folder.render())?;
        }
        return Ok(ExitCode::Done);
    }
    let checkpoint = Checkpoint::open(&arguments.path)?;
    let (tensors, logical) = match LogicalCheckpoint::open(checkpoint) {
        Ok(logical) => (logical.tensors().to_vec(), Ok(logical)),
        Err(error) if arguments.tensor.is_empty() => {
            output.warning(&format!("{error}; its tensors are shown as stored"));
            let checkpoint = Checkpoint::open(&arguments.path)?;
            (as_stored(&checkpoint), Err(checkpoint))
        }
        Err(error) => return Err(error.into()),
    };
    let checkpoint = match &logical {
        Ok(logical) => logical.checkpoint(),
        Err(checkpoint) => checkpoint,
    };
    let shapes: Vec<_> = tensors.iter().map(|t| NamedShape { name: t.name.clone(), shape: t.shape.clone() }).collect();
    let map = ModelMap::new(checkpoint.config().map(|config| &config.value), &shapes);
    let mut report = report(&arguments.path, checkpoint, &tensors, &map, output);
    if logical.as_ref().is_ok_and(LogicalCheckpoint::is_delta) {
        let totals = report.artifact.as_ref().map(|artifact| &artifact.totals);
        report.delta = Some(deltas::Delta::new(&tensors, totals));
    }
    if let (Ok(logical), true) = (&logical, arguments.tensor.is_empty()) {
        report.cache = cache(logical)?;
        // It looks into every tensor, which of a store would fetch the whole model.
        if !checkpoint.is_remote() {
            report.find_sparsity(logical, &map);
        }
    }
    if let (Ok(logical), false) = (&logical, arguments.tensor.is_empty()) {
        report.statistics = statistics::gather(&arguments.tensor, logical, &map)?;
    }
    if output.json() {
        output.json_result(&report)?;
    } else if report.statistics.is_empty() {
        output.result(&page::render(&report, output))?;
    } else {
        output.result(&statistics::render(&report.statistics, output))?;
    }
    Ok(ExitCode::Done)
}

/// What a runtime keeps of earlier tokens, where bantam knows what the model computes. Keys and values have the type of the
/// model's first matrix.
fn cache(logical: &LogicalCheckpoint) -> Result<Option<CacheBytes>, LayoutError> {
    let Some(config) = logical.checkpoint().config().map(|config| &config.value) else { return Ok(None) };
    let policy = CachePolicy::of(config)?;
    let Ok(model) = Model::new(Some(config), logical) else { return Ok(None) };
    let keys = model.blocks.first().and_then(|block| block.linears().next());
    let dtype = keys.and_then(|linear| logical.tensor(&linear.weight)).map_or(Dtype::BF16, |tensor| tensor.dtype);
    Ok(CacheBytes::of(&model, (bits_of(dtype) / 8) as u64, policy.as_ref()))
}

/// The stored tensors, each taken for itself.
fn as_stored(checkpoint: &Checkpoint) -> Vec<LogicalTensor> {
    let plain = |entry: &crate::checkpoint::TensorEntry| LogicalTensor {
        name: entry.name.clone(),
        shape: entry.shape.clone(),
        dtype: entry.dtype,
        codec: None,
        parts: vec![entry.name.clone()],
        stored_bytes: entry.bytes,
        format: "plain",
        decoded_at_once: 0,
    };
    checkpoint.tensors().map(plain).collect()
}

fn report(path: &Path, checkpoint: &Checkpoint, tensors: &[LogicalTensor], map: &ModelMap, output: &Output) -> Report {
    let file_name = |path: &Path| path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut dtypes: BTreeMap<String, Stored> = BTreeMap::new();
    for entry in checkpoint.tensors() {
        let stored = dtypes.entry(format!("{:?}", entry.dtype)).or_default();
        stored.tensors += 1;
        stored.bytes += entry.bytes;
    }
    let rows: Vec<TensorRow> = tensors
        .iter()
        .map(|tensor| {
            let mapped = map.tensor(&tensor.name);
            TensorRow {
                name: tensor.name.clone(),
                role: mapped.map_or_else(|| "other".into(), |mapped| mapped.role.to_string()),
                block: mapped.and_then(|mapped| mapped.block),
                codec: tensor.describe(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                bytes: tensor.stored_bytes,
                parts: tensor.parts.clone(),
                sparsity: None,
            }
        })
        .collect();
    let method = checkpoint.config().and_then(|config| config.value.get("quantization_config"));
    let method = method.and_then(|quantization| quantization.get("quant_method")).and_then(|method| method.as_str());
    Report {
        schema: "bantam.inspect/1",
        path: path.display().to_string(),
        architecture: map.architecture.clone(),
        known_architecture: map.known,
        blocks: map.blocks,
        parameters: tensors.iter().map(parameters).sum(),
        bytes: checkpoint.tensors().map(|entry| entry.bytes).sum(),
        tied_embeddings: map.tied_embeddings,
        quantization_method: method.map(str::to_owned),
        files: checkpoint.files().iter().map(|f| File { name: file_name(&f.path), bytes: f.bytes }).collect(),
        dtypes,
        roles: role_rows(tensors, &rows),
        compressed: compressed(tensors),
        sparse: Vec::new(),
        cache: None,
        delta: None,
        notes: map.notes.clone(),
        artifact: artifact(checkpoint.root(), output),
        tensors: rows,
        statistics: Vec::new(),
    }
}

impl Report {
    fn find_sparsity(&mut self, logical: &LogicalCheckpoint, map: &ModelMap) {
        for (row, found) in self.tensors.iter_mut().zip(sparse::patterns(logical, map)) {
            row.sparsity = found;
        }
        let parameters = logical.tensors().iter().map(parameters);
        let found = self.tensors.iter().zip(parameters);
        self.sparse = sparse::sums(found.filter_map(|(row, parameters)| Some((parameters, row.sparsity.as_ref()?))));
    }
}

fn parameters(tensor: &LogicalTensor) -> u64 {
    tensor.shape.iter().map(|&n| n as u64).product()
}

fn bits_per_weight(bytes: u64, parameters: u64) -> f64 {
    bytes as f64 * 8.0 / parameters.max(1) as f64
}

/// Sums by role, where all experts count as one, and number format.
fn role_rows(tensors: &[LogicalTensor], rows: &[TensorRow]) -> Vec<RoleRow> {
    let mut sums: BTreeMap<(String, String), (u64, u64, u64)> = BTreeMap::new();
    for (tensor, row) in tensors.iter().zip(rows) {
        let words = row.role.split('.').filter(|word| word.parse::<usize>().is_err());
        let role = words.collect::<Vec<_>>().join(".");
        let sum = sums.entry((role, row.codec.clone())).or_default();
        *sum = (sum.0 + 1, sum.1 + parameters(tensor), sum.2 + tensor.stored_bytes);
    }
    let row = |((role, codec), (tensors, parameters, bytes)): ((String, String), (u64, u64, u64))| {
        let bits_per_weight = bits_per_weight(bytes, parameters);
        RoleRow { role, codec, tensors, parameters, bytes, bits_per_weight }
    };
    sums.into_iter().map(row).collect()
}

fn compressed(tensors: &[LogicalTensor]) -> Option<Compressed> {
    let coded = || tensors.iter().filter(|tensor| !tensor.is_plain());
    let (parameters, bytes) = (coded().map(parameters).sum(), coded().map(|tensor| tensor.stored_bytes).sum());
    let tensors = coded().count() as u64;
    let bits_per_weight = bits_per_weight(bytes, parameters);
    (tensors > 0).then_some(Compressed { tensors, parameters, bytes, bits_per_weight })
}

/// The manifest, where there is one; a broken one is worth a warning, not a failure.
fn artifact(root: &Path, output: &Output) -> Option<Artifact> {
    if !root.join(FILE_NAME).exists() {
        return None;
    }
    match Manifest::read(root) {
        Ok(Manifest { tool, layout, fallbacks, totals, .. }) => Some(Artifact { tool, layout, fallbacks, totals }),
        Err(error) => {
            output.warning(&error.to_string());
            None
        }
    }
}

/// A selector's error as one of the command line.
fn usage(message: String) -> CliError {
    let hint = "a selector is a role (`attention.key`), a glob (`*.down_proj.weight`) or a `/regular expression/`";
    CliError::Usage { message, hint: Some(hint.into()) }
}
