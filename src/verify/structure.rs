//! What can be told without reading weights: files, names, shapes, sums, the layout's demands.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::Finding;
use crate::{
    checkpoint::Checkpoint,
    layout::{BaseTensors, GGUF_CONSTANT, LayoutName, LogicalCheckpoint, MatrixSpec, Refusal, layout as layout_of},
    manifest::{ContentHash, FILE_NAME, Manifest, OutputTensor, RUN_LOG_NAME},
};

/// Largest difference of a derived figure from the manifest's, relative; only the order of additions differs.
const TOLERANCE: f64 = 1e-9;

/// More weights than any tensor has; keeps sums over a manifest's claims from overflowing.
const MAX_WEIGHTS: u64 = 1 << 48;

/// Small files: those of the manifest are there and unchanged, and there are no others.
pub(super) fn files(folder: &Path, manifest: &Manifest) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &manifest.files {
        match fs::read(folder.join(&file.name)) {
            Err(error) => {
                findings.push(Finding::new("file-missing", &file.name, format!("cannot be read: {error}")));
            }
            Ok(bytes) => {
                let hash = ContentHash::of(&bytes);
                if hash != file.hash || bytes.len() as u64 != file.bytes {
                    let message =
                        format!("is not the file that was written ({} bytes, then {})", bytes.len(), file.bytes);
                    let finding = Finding::new("file-hash", &file.name, message);
                    findings.push(finding.with(hash.to_string(), file.hash.to_string()));
                }
            }
        }
    }
    let listed: BTreeSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    for name in present_files(folder) {
        let known = [FILE_NAME, RUN_LOG_NAME].contains(&name.as_str()) || is_weights(&name);
        if known || name.starts_with('.') || listed.contains(name.as_str()) {
            continue;
        }
        let (rule, message) = if name.ends_with(".index.json") {
            ("stale-index", "is an index that the run did not write; a loader may follow it")
        } else {
            ("file-unlisted", "is not in the manifest")
        };
        findings.push(Finding::new(rule, &name, message.into()));
    }
    findings
}

/// Names of the regular files of a folder (and links to some), sorted.
fn present_files(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether a file of this name holds weights that loaders may read.
fn is_weights(name: &str) -> bool {
    [".safetensors", ".gguf"].iter().any(|extension| name.ends_with(extension))
}

/// Every weight file of the folder is one that loaders read.
pub(super) fn weight_files(folder: &Path, checkpoint: &Checkpoint) -> Vec<Finding> {
    let used: BTreeSet<_> = checkpoint.files().iter().filter_map(|file| file.path.file_name()).collect();
    let mut findings = Vec::new();
    for name in present_files(folder).iter().filter(|name| is_weights(name)) {
        if !used.contains(std::ffi::OsStr::new(name)) {
            findings.push(Finding::new("file-unlisted", name, "holds no tensor of the artifact".into()));
        }
    }
    for file in checkpoint.files() {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        if checkpoint.gguf().is_none() && file.metadata.get("format").map(String::as_str) != Some("pt") {
            findings.push(Finding::new("header", &name, "lacks `\"format\": \"pt\"` in its header's metadata".into()));
        }
    }
    findings
}

/// Every stored tensor of the manifest is there with its type and shape, and there are no others.
pub(super) fn parts(manifest: &Manifest, checkpoint: &Checkpoint) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut listed = BTreeSet::new();
    for part in manifest.tensors.iter().flat_map(|tensor| &tensor.parts) {
        listed.insert(part.name.as_str());
        let Some(entry) = checkpoint.tensor(&part.name) else {
            findings.push(Finding::new(
                "tensor-missing",
                &part.name,
                "is in the manifest but in no weight file".into(),
            ));
            continue;
        };
        if entry.dtype != part.dtype || entry.shape != part.shape {
            let message = "has not the type and shape of the manifest".into();
            let finding = Finding::new("tensor-shape", &part.name, message);
            let found = format!("{:?} {:?}", entry.dtype, entry.shape);
            findings.push(finding.with(found, format!("{:?} {:?}", part.dtype, part.shape)));
        }
    }
    let constant = |name: &str| checkpoint.gguf().is_some() && name == GGUF_CONSTANT;
    let unlisted = checkpoint.tensors().filter(|entry| !listed.contains(entry.name.as_str()) && !constant(&entry.name));
    findings
        .extend(unlisted.map(|entry| Finding::new("tensor-unlisted", &entry.name, "is not in the manifest".into())));
    findings
}

/// The manifest's sums and combined hashes follow from its parts.
pub(super) fn sums(manifest: &Manifest) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut weights = 0;
    let mut compressed = Compressed::default();
    let mut artifact_bytes = 0;
    for tensor in &manifest.tensors {
        let Some(tensor_weights) = weights_of(&tensor.shape) else {
            let message = format!("shape {:?} is more than a tensor can have", tensor.shape);
            findings.push(Finding::new("tensor-shape", &tensor.name, message));
            continue;
        };
        let bytes: u64 = tensor.parts.iter().map(|part| part.bytes).sum();
        weights += tensor_weights;
        artifact_bytes += bytes;
        if tensor.matrix.is_some() {
            compressed.tensors += 1;
            compressed.weights += tensor_weights;
            compressed.bytes += bytes;
        }
        let bits = if tensor_weights == 0 { 0.0 } else { bytes as f64 * 8.0 / tensor_weights as f64 };
        if !close(bits, tensor.bits_per_weight) {
            let finding = Finding::new("bits-per-weight", &tensor.name, "is not what its parts take".into());
            findings.push(finding.with(bits, tensor.bits_per_weight));
        }
        let hashes: Vec<_> = tensor.parts.iter().map(|part| part.hash).collect();
        let combined = ContentHash::of_parts(&hashes);
        if combined != tensor.hash {
            let finding = Finding::new("tensor-hash", &tensor.name, "its hash is not that of its parts".into());
            findings.push(finding.with(combined.to_string(), tensor.hash.to_string()));
        }
    }
    let totals = &manifest.totals;
    let counts = [
        ("tensors", manifest.tensors.len() as u64, totals.tensors),
        ("compressed_tensors", compressed.tensors, totals.compressed_tensors),
        ("weights", weights, totals.weights),
        ("compressed_weights", compressed.weights, totals.compressed_weights),
        ("source_bytes", manifest.inputs.iter().map(|input| input.bytes).sum(), totals.source_bytes),
        ("artifact_bytes", artifact_bytes, totals.artifact_bytes),
    ];
    for (key, sum, stated) in counts {
        if sum != stated {
            let finding = Finding::new("totals", key, format!("totals.{key} is not the sum over the tensors"));
            findings.push(finding.with(sum, stated));
        }
    }
    let bits = (compressed.weights > 0).then(|| compressed.bytes as f64 * 8.0 / compressed.weights as f64);
    let agrees = match (bits, totals.bits_per_weight) {
        (Some(bits), Some(stated)) => close(bits, stated),
        (None, None) => true,
        _ => false,
    };
    if !agrees {
        let message = "totals.bits_per_weight does not follow from the compressed tensors".into();
        findings.push(Finding::new("totals", "bits_per_weight", message).with(bits, totals.bits_per_weight));
    }
    findings
}

#[derive(Default)]
struct Compressed {
    tensors: u64,
    weights: u64,
    bytes: u64,
}

fn weights_of(shape: &[usize]) -> Option<u64> {
    let product = shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n as u64));
    product.filter(|&weights| weights <= MAX_WEIGHTS)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * b.abs()
}

/// Every compressed tensor has the parts that its layout demands for its number format.
pub(super) fn layout(manifest: &Manifest) -> Vec<Finding> {
    let mut findings = Vec::new();
    for tensor in &manifest.tensors {
        match &tensor.matrix {
            Some(matrix) => findings.extend(coded(manifest, tensor, matrix)),
            None => findings.extend(plain(manifest, tensor)),
        }
    }
    findings
}

fn coded(manifest: &Manifest, tensor: &OutputTensor, matrix: &MatrixSpec) -> Option<Finding> {
    let finding = |message: String| Some(Finding::new("layout", &tensor.name, message));
    let weights = weights_of(&[matrix.rows, matrix.columns]);
    if matrix.name != tensor.name || weights.is_none() || weights != weights_of(&tensor.shape) {
        return finding("its number format is of a matrix of another name or size".into());
    }
    if let Err(error) = matrix.codec.validate(matrix.rows, matrix.columns) {
        return finding(error.to_string());
    }
    if tensor.codec != matrix.codec.name() {
        return finding(format!("is called {} but is {}", tensor.codec, matrix.codec.name()));
    }
    let layout = layout_of(manifest.layout);
    if let Err(Refusal::Shape(message) | Refusal::Format(message)) = layout.accepts(matrix) {
        return finding(format!("layout {} cannot hold it: {message}", manifest.layout.as_str()));
    }
    let demanded = layout.tensors(matrix);
    let describe = |name: &str, dtype, shape: &[usize]| format!("{name} {dtype:?} {shape:?}");
    let demanded: Vec<_> = demanded.iter().map(|part| describe(&part.name, part.dtype, &part.shape)).collect();
    let found: Vec<_> = tensor.parts.iter().map(|part| describe(&part.name, part.dtype, &part.shape)).collect();
    if demanded != found {
        let message = format!("has not the parts that layout {} demands", manifest.layout.as_str());
        return Some(Finding::new("layout", &tensor.name, message).with(found, demanded));
    }
    None
}

/// A tensor without codes is stored once, under its own name and shape; a copied one has its source's hash.
fn plain(manifest: &Manifest, tensor: &OutputTensor) -> Option<Finding> {
    if manifest.layout == LayoutName::Delta && ["same", "rows"].contains(&tensor.codec.as_str()) {
        return from_base(manifest, tensor);
    }
    let [part] = tensor.parts.as_slice() else {
        let message = format!("has no codes but {} parts", tensor.parts.len());
        return Some(Finding::new("layout", &tensor.name, message));
    };
    let layout = layout_of(manifest.layout);
    let name = layout.plain(&tensor.name, part.dtype, &tensor.shape).map_or_else(|_| tensor.name.clone(), |spec| spec.name);
    if part.name != name || part.shape != tensor.shape {
        return Some(Finding::new("layout", &tensor.name, "is stored under another name or shape".into()));
    }
    let [source] = tensor.source.as_slice() else { return None };
    let input = manifest.inputs.iter().find(|input| input.name == *source)?;
    let kept = layout.keeps_sources_bytes(&tensor.name);
    let copied = kept && tensor.passes.is_empty() && input.dtype == part.dtype && input.shape == part.shape;
    if copied && input.hash != part.hash {
        let finding = Finding::new("copy", &tensor.name, "no pass took it, but it is not its source".into());
        return Some(finding.with(part.hash.to_string(), input.hash.to_string()));
    }
    None
}

/// A tensor of which the base has all or most is not stored, or by some rows.
fn from_base(manifest: &Manifest, tensor: &OutputTensor) -> Option<Finding> {
    let base = manifest.base.iter().find(|base| base.name == tensor.name);
    let Some(base) = base else {
        return Some(Finding::new(
            "layout",
            &tensor.name,
            "is to be read from the base, which does not have it".into(),
        ));
    };
    let fits = if tensor.codec == "same" {
        tensor.parts.is_empty() && base.shape == tensor.shape
    } else {
        let count = tensor.parts.first().map_or(0, |part| part.shape.iter().product());
        let demanded = BaseTensors::stored_rows(&tensor.name, base.dtype, &tensor.shape, count);
        let found = tensor.parts.iter().map(|part| (&part.name, part.dtype, &part.shape));
        demanded.iter().map(|part| (&part.name, part.dtype, &part.shape)).eq(found)
    };
    (!fits).then(|| Finding::new("layout", &tensor.name, "has not the parts that layout delta demands".into()))
}

/// `config.json` announces the layout to runtimes.
pub(super) fn config(manifest: &Manifest, checkpoint: &Checkpoint) -> Vec<Finding> {
    let matrices: Vec<MatrixSpec> = manifest.tensors.iter().filter_map(|tensor| tensor.matrix.clone()).collect();
    let expected = if matrices.is_empty() && manifest.layout != LayoutName::Delta {
        None
    } else {
        layout_of(manifest.layout).quantization_config(&matrices, &[])
    };
    let config = checkpoint.config().map(|config| &config.value);
    let finding = |message: String| vec![Finding::new("config", "config.json", message)];
    match layout_of(manifest.layout).config_members(&matrices, config) {
        Ok(members) => {
            let get = |key: &str| config.and_then(|config| config.get(key)).cloned().unwrap_or_default();
            if let Some((key, expected)) = members.into_iter().find(|(key, expected)| get(key) != *expected) {
                let finding = Finding::new("config", "config.json", format!("`{key}` is wrong"));
                return vec![finding.with(get(key), expected)];
            }
        }
        Err(Refusal::Format(message) | Refusal::Shape(message)) => return finding(message),
    }
    let found = config.and_then(|config| config.get("quantization_config"));
    match (expected, found) {
        (None, Some(_)) if matrices.is_empty() => {
            finding("has a `quantization_config`, but nothing is compressed".into())
        }
        (None, _) => Vec::new(),
        (Some(_), None) => finding("has no `quantization_config`: a runtime would take codes for weights".into()),
        (Some(expected), Some(found)) => {
            let keys = ["quant_method", "format", "checkpoint_format", "version"];
            let wrong = keys.into_iter().filter(|&key| expected.get(key) != found.get(key)).map(|key| {
                let finding = Finding::new("config", "config.json", format!("quantization_config.{key} is wrong"));
                finding
                    .with(found.get(key).cloned().unwrap_or_default(), expected.get(key).cloned().unwrap_or_default())
            });
            wrong.collect()
        }
    }
}

/// Read back, the artifact has the manifest's tensors with their shapes and number formats.
pub(super) fn logical(manifest: &Manifest, artifact: &LogicalCheckpoint) -> Vec<Finding> {
    let read: BTreeMap<&str, _> = artifact.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut findings = Vec::new();
    for tensor in &manifest.tensors {
        let Some(found) = read.get(tensor.name.as_str()) else {
            findings.push(Finding::new(
                "read-back",
                &tensor.name,
                "does not read back as a tensor of the model".into(),
            ));
            continue;
        };
        let codec = found.codec.as_ref().map(crate::codec::Coding::name);
        let stated = tensor.matrix.as_ref().and_then(|matrix| layout_of(manifest.layout).reads_back(matrix));
        let stated = stated.as_ref().map(crate::codec::Coding::name);
        if found.shape != tensor.shape || codec != stated {
            let describe =
                |codec: Option<String>, shape: &[usize]| format!("{} {shape:?}", codec.as_deref().unwrap_or("plain"));
            let finding =
                Finding::new("read-back", &tensor.name, "reads back with another shape or number format".into());
            findings.push(finding.with(describe(codec, &found.shape), describe(stated, &tensor.shape)));
        }
    }
    findings
}
