//! The files beside the weights: `config.json`, and what is carried along unchanged.

use std::path::{Path, PathBuf};

use super::{
    CheckpointError, Config,
    confine::{Confinement, exists},
    json::{self, Twice, UniqueObject},
};

/// `config.json` is read whole only up to this many bytes.
const CONFIG_CAP_BYTES: u64 = 64 << 20;
/// Anything larger is not a small file; the largest tokenizers have some 40 MB.
const COMPANION_CAP_BYTES: u64 = 256 << 20;

/// Files that the artifact has its own of, and what other quantization tools leave behind, which would contradict it.
const MADE_ANEW: [&str; 10] = [
    "config.json",
    "manifest.json",
    "run.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "smash_config.json",
    "recipe.yaml",
    "modeling_bantam_lowrank_kv.py",
    "modeling_bantam_taylor_mlp.py",
];

/// Extensions of weights, of whatever framework.
const WEIGHTS: [&str; 17] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "pkl",
    "pickle",
    "gguf",
    "ggml",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "tflite",
    "npz",
    "npy",
    "nemo",
];

/// `config.json` of the folder, where there is one.
pub(super) fn config(confinement: &Confinement) -> Result<Option<Config>, CheckpointError> {
    let path = confinement.folder().join("config.json");
    if !exists(&path) {
        return Ok(None);
    }
    confinement.check(&path)?;
    let text = json::read_text(&path, CONFIG_CAP_BYTES)?;
    let twice = Twice::default();
    let members = json::parse(&path, &text, &twice, UniqueObject::<serde_json::Value>::new(&twice))?;
    let value = serde_json::Value::Object(members.into_iter().collect());
    Ok(Some(Config { text, value }))
}

/// The small files to carry along: every regular file in the folder itself but weights and their indexes, files that
/// are made anew, hidden files, and files larger than 256 MiB. Sub-folders stay behind. Sorted.
pub(super) fn companions(confinement: &Confinement) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut companions = Vec::new();
    for name in file_names(confinement.folder())? {
        let path = confinement.folder().join(&name);
        if name.starts_with('.') || name.ends_with(".index.json") || is_weights(&name) || MADE_ANEW.contains(&&*name) {
            continue;
        }
        confinement.check(&path)?;
        let facts = std::fs::metadata(&path).map_err(|source| CheckpointError::Io {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        if facts.is_file() && facts.len() <= COMPANION_CAP_BYTES {
            companions.push(path);
        }
    }
    Ok(companions)
}

/// Whether a file holds weights, of whatever framework, by its name.
pub(crate) fn is_weights(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    WEIGHTS.iter().any(|weights| weights.eq_ignore_ascii_case(extension))
}

/// Names of the files and links of a folder, sorted. A name that is not UTF-8 belongs to no model and is passed over.
pub(super) fn file_names(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let io = |source| CheckpointError::Io { doing: "read folder", path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let kind = entry.file_type().map_err(io)?;
        let folder = kind.is_dir() || (kind.is_symlink() && entry.path().is_dir());
        if let (false, Ok(name)) = (folder, entry.file_name().into_string()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
