//! The files beside the weights: `config.json`, the index, what the layout wants, and what is carried along.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Value, json};

use super::{PlanError, Unit, WeightFile};
use crate::{
    checkpoint::{Checkpoint, config_text},
    layout::remote_code,
};

/// A small file of the artifact.
#[derive(Debug)]
pub struct SmallFile {
    /// File name.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Where its bytes come from.
    pub content: SmallContent,
}

/// Where a small file's bytes come from.
#[derive(Debug)]
pub enum SmallContent {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A copy of this file.
    CopyOf(PathBuf),
}

/// All small files, sorted by name; the layout's own files win over the source's of the same name.
pub(super) fn small_files(
    checkpoint: &Checkpoint,
    (quantization_config, members): (Option<&Value>, &[(&'static str, Value)]),
    extra_files: Vec<(String, Vec<u8>)>,
    units: &[Unit],
    files: &[WeightFile],
) -> Result<Vec<SmallFile>, PlanError> {
    let mut found: BTreeMap<String, SmallContent> = BTreeMap::new();
    for path in checkpoint.companions() {
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            found.insert(name.to_owned(), SmallContent::CopyOf(path.clone()));
        }
    }
    let source_config = checkpoint.config().map(|config| remote_code::restored_config(&config.text));
    let source_config = source_config.as_deref();
    if source_config.is_some() || quantization_config.is_some() || !members.is_empty() {
        let text = config_with(source_config.unwrap_or("{}\n"), quantization_config);
        let text = members
            .iter()
            .fold(text, |text, (key, value)| config_text::set_member(&text, key, &config_text::indented(value)));
        found.insert("config.json".into(), SmallContent::Bytes(text.into_bytes()));
    }
    for (name, bytes) in extra_files {
        found.insert(name, SmallContent::Bytes(bytes));
    }
    if files.len() > 1 {
        found.insert("model.safetensors.index.json".into(), SmallContent::Bytes(index(units, files)));
    }
    found
        .into_iter()
        .map(|(name, content)| {
            let bytes = match &content {
                SmallContent::Bytes(bytes) => bytes.len() as u64,
                SmallContent::CopyOf(path) => {
                    std::fs::metadata(path).map_err(|source| PlanError::Companion { path: path.clone(), source })?.len()
                }
            };
            Ok(SmallFile { name, bytes, content })
        })
        .collect()
}

fn config_with(source: &str, quantization_config: Option<&Value>) -> String {
    match quantization_config {
        Some(value) => config_text::set_member(source, "quantization_config", &config_text::indented(value)),
        None => config_text::remove_member(source, "quantization_config"),
    }
}

/// The index that Hugging Face loaders read when there are several files.
fn index(units: &[Unit], files: &[WeightFile]) -> Vec<u8> {
    let outputs = || units.iter().flat_map(|unit| &unit.outputs);
    let weight_map: BTreeMap<&str, &str> =
        outputs().map(|output| (output.spec.name.as_str(), files[output.file].name.as_str())).collect();
    let total_size: u64 = outputs().map(|output| output.spec.bytes()).sum();
    let total_parameters: u64 = units.iter().map(|unit| unit.weights).sum();
    let value = json!({
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": weight_map,
    });
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}
