//! The manifest: the proof of what was done, `manifest.json` beside the tensors of every artifact.
//!
//! It holds what went in and what came out, each with its hash, and how far every tensor is from its source. It holds
//! no time and no fact about the machine but the graphics processor that was used, if one was: the same recipe on the same
//! checkpoint gives the same manifest on every processor.

mod base;
mod hash;
mod read;

pub use base::base_tensors;
pub(crate) use base::hash as hash_of_tensor;
pub use hash::ContentHash;
pub use read::ManifestError;

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::Dtype,
    codec::sparse::Pattern,
    evaluate::ErrorFigures,
    layout::{LayoutName, MatrixSpec},
    solve::{InputRange, Solved},
};

/// The schema this version writes and reads.
pub const SCHEMA: &str = "bantam.manifest/1";

/// Name of the manifest's file in an artifact.
pub const FILE_NAME: &str = "manifest.json";

/// Name of the file with times and host facts, which no hash covers.
pub const RUN_LOG_NAME: &str = "run.json";

/// All of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: String,
    /// What wrote the artifact.
    pub tool: Tool,
    /// The recipe as resolved: presets expanded, defaults filled in.
    pub recipe: serde_json::Value,
    /// The artifact's layout.
    pub layout: LayoutName,
    /// Every tensor of the base that differences are from, as stored there; by name; absent where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<InputTensor>,
    /// Every tensor of each further model that was merged with the source, in the recipe's order; absent for most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged: Vec<Vec<InputTensor>>,
    /// Every tensor of the source, as stored there; by name.
    pub inputs: Vec<InputTensor>,
    /// Every logical tensor of the artifact; by name.
    pub tensors: Vec<OutputTensor>,
    /// Every other file of the artifact but this one and the run log; by name.
    pub files: Vec<FileEntry>,
    /// Where something else was done than asked for; by tensor, then kind.
    pub fallbacks: Vec<Fallback>,
    /// How what was trained was trained; absent where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<crate::train::Report>,
    /// Sums over all tensors.
    pub totals: Totals,
}

/// The program that wrote an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `bantam`.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Default for Tool {
    fn default() -> Self {
        Self { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// One stored tensor of the source. How the source is cut into files is not in it: it does not decide any byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputTensor {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Length in bytes.
    pub bytes: u64,
    /// Hash of the stored bytes.
    pub hash: ContentHash,
}

/// One logical tensor of the artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputTensor {
    /// The dense tensor's name.
    pub name: String,
    /// Names of the stored source tensors it was made of.
    pub source: Vec<String>,
    /// The passes it went through, in order; none for a tensor that was copied.
    pub passes: Vec<String>,
    /// The number format in short (`int4-g128`), or the element type of a plain tensor (`bf16`).
    pub codec: String,
    /// The number format in full; `null` for a plain tensor.
    pub matrix: Option<MatrixSpec>,
    /// How many of each so many weights of a row are kept, all others being +0, whatever stores them; absent where
    /// nothing is masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Pattern>,
    /// Shape of the dense tensor.
    pub shape: Vec<usize>,
    /// The stored tensors, in the layout's order.
    pub parts: Vec<Part>,
    /// Every stored bit over the number of weights; of an empty tensor 0.
    pub bits_per_weight: f64,
    /// How far it is from its source; `null` for a tensor that was copied.
    pub error: Option<ErrorFigures>,
    /// How it was solved with calibration data; absent where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Solved>,
    /// The graphics processor that computed it, or some of it; absent where that was the processor alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The static scale of its input and what it follows from; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<InputRange>,
    /// What the polynomials promise that stand for an activation; absent where none do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expansion: Option<crate::passes::taylor_mlp::Figures>,
    /// [`ContentHash::of_parts`] of the parts' hashes.
    pub hash: ContentHash,
}

/// One stored tensor of the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Length in bytes.
    pub bytes: u64,
    /// Hash of the stored bytes.
    pub hash: ContentHash,
}

/// One file beside the tensors: `config.json`, the index, the tokenizer, ….
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name in the artifact's folder.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Hash of the content.
    pub hash: ContentHash,
}

/// Something that was done differently than asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// What happened, by a fixed name (`shape-kept-dense`, `scale-clamped`, …).
    pub kind: String,
    /// The logical tensor.
    pub tensor: String,
    /// How many times in it.
    pub count: u64,
    /// The same in a sentence.
    pub message: String,
}

/// Sums over the whole artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Number of logical tensors.
    pub tensors: u64,
    /// Of these, stored in codes.
    pub compressed_tensors: u64,
    /// Weights of all tensors.
    pub weights: u64,
    /// Of these, stored in codes.
    pub compressed_weights: u64,
    /// Every stored bit of the compressed tensors over their weights; `null` when nothing is compressed.
    pub bits_per_weight: Option<f64>,
    /// Bytes of all tensors of the source.
    pub source_bytes: u64,
    /// Bytes of all tensors of the artifact.
    pub artifact_bytes: u64,
}

impl Manifest {
    /// The text of `manifest.json`: lists sorted as documented, two-space indentation, a line feed at the end.
    ///
    /// # Errors
    /// [`ManifestError::Unwritable`] when a figure is not a finite number, which JSON cannot hold.
    pub fn to_json(&self) -> Result<String, ManifestError> {
        self.check_finite()?;
        let mut sorted = self.clone();
        sorted.base.sort_by(|a, b| a.name.cmp(&b.name));
        sorted.merged.iter_mut().for_each(|model| model.sort_by(|a, b| a.name.cmp(&b.name)));
        sorted.inputs.sort_by(|a, b| a.name.cmp(&b.name));
        sorted.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        sorted.files.sort_by(|a, b| a.name.cmp(&b.name));
        sorted.fallbacks.sort_by(|a, b| (&a.tensor, &a.kind).cmp(&(&b.tensor, &b.kind)));
        let mut text = serde_json::to_string_pretty(&sorted)
            .map_err(|source| ManifestError::Unwritable { key: "manifest".into(), message: source.to_string() })?;
        text.push('\n');
        Ok(text)
    }

    /// One logical tensor by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&OutputTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    fn check_finite(&self) -> Result<(), ManifestError> {
        let unwritable = self.tensors.iter().find(|tensor| !tensor.bits_per_weight.is_finite());
        if let Some(tensor) = unwritable {
            return Err(ManifestError::Unwritable {
                key: format!("tensors.{}.bits_per_weight", tensor.name),
                message: format!("{} is not a finite number", tensor.bits_per_weight),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
