//! Decoding: a compressed model becomes dense safetensors that any runtime loads.
//!
//! Like a run, it fixes every tensor's place first, then writes from many threads, and gives the folder its name last.

mod error;
mod places;
mod staging;
mod write;

pub use error::DecodeError;
pub(crate) use staging::Staging;

use std::path::{Path, PathBuf};

use crate::{
    checkpoint::{Checkpoint, Dtype, config_text},
    layout::{LogicalCheckpoint, remote_code},
};

/// Largest file, as Hugging Face tools cut them: 5 GB.
const SHARD_BYTES: u64 = 5_000_000_000;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Decoded {
    /// The folder.
    pub out: PathBuf,
    /// All tensors.
    pub tensors: u64,
    /// Of these, decoded from codes.
    pub decoded: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The weight files' names.
    pub files: Vec<String>,
}

/// Writes the model behind `source` as plain tensors into the new folder `out`. With `dtype`, every float tensor gets
/// that type; without, coded tensors get the type the artifact names and plain ones are copied byte for byte.
/// `progress` is told the bytes written so far and in all, from many threads.
///
/// # Errors
/// [`DecodeError`]; then nothing of it stays on the disk.
pub fn decode(
    source: &LogicalCheckpoint,
    out: &Path,
    dtype: Option<Dtype>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Decoded, DecodeError> {
    let places = places::plan(source, dtype, SHARD_BYTES);
    let staging = staging::Staging::open(out)?;
    write::weights(source, &places, staging.folder(), progress)?;
    for (name, bytes) in small_files(source.checkpoint(), dtype, &places) {
        staging.write(&name, &bytes)?;
    }
    for path in source.checkpoint().companions() {
        staging.copy(path)?;
    }
    staging.publish(out)?;
    Ok(Decoded {
        out: out.to_owned(),
        tensors: places.tensors.len() as u64,
        decoded: places.tensors.iter().filter(|tensor| tensor.from == places::From::Codes).count() as u64,
        bytes: places.tensors.iter().map(|tensor| tensor.bytes).sum(),
        files: places.files.iter().map(|file| file.name.clone()).collect(),
    })
}

/// `config.json` without the quantization, and the index where there are several weight files.
fn small_files(checkpoint: &Checkpoint, dtype: Option<Dtype>, places: &places::Places) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    if let Some(config) = checkpoint.config() {
        files.push(("config.json".into(), dense_config(&config.text, dtype).into_bytes()));
    }
    if places.files.len() > 1 {
        files.push(("model.safetensors.index.json".into(), places.index()));
    }
    files
}

/// The config of the dense model: the source's text but for what speaks of quantization and, when asked for, the type.
fn dense_config(text: &str, dtype: Option<Dtype>) -> String {
    let text = remote_code::restored_config(text);
    let mut text = config_text::remove_member(&text, "quantization_config");
    text = config_text::remove_member(&text, "compression_config");
    let name = match dtype {
        Some(Dtype::BF16) => "\"bfloat16\"",
        Some(Dtype::F16) => "\"float16\"",
        Some(Dtype::F32) => "\"float32\"",
        _ => return text,
    };
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let present: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|key| value.get(key).is_some()).collect();
    // Every version of transformers reads `torch_dtype`.
    let keys = if present.is_empty() { vec!["torch_dtype"] } else { present };
    keys.into_iter().fold(text, |text, key| config_text::set_member(&text, key, name))
}

#[cfg(test)]
mod tests {
    use super::dense_config;
    use crate::checkpoint::Dtype;

    #[test]
    fn only_the_quantization_leaves_the_config() {
        let text = "{\n  \"a\": 1.50,\n  \"torch_dtype\": \"bfloat16\",\n  \"quantization_config\": {\"bits\": 4}\n}\n";
        assert_eq!(dense_config(text, None), "{\n  \"a\": 1.50,\n  \"torch_dtype\": \"bfloat16\"\n}\n");
        assert_eq!(dense_config(text, Some(Dtype::F16)), "{\n  \"a\": 1.50,\n  \"torch_dtype\": \"float16\"\n}\n");
    }

    #[test]
    fn a_type_is_added_where_none_is_named() {
        let config = dense_config("{\n  \"a\": 1\n}\n", Some(Dtype::F32));
        assert_eq!(config, "{\n  \"a\": 1,\n  \"torch_dtype\": \"float32\"\n}\n");
    }
}
