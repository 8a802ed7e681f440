//! Reads checkpoints: finds the files, maps them, checks every header before a byte is used, hands out views.
//!
//! Physical level: named tensors as stored. What they mean (codes, scales, dense weights) is [`crate::layout`]'s.

pub mod config_text;
mod dtype;
pub mod header;

pub use dtype::{Dtype, bits_of, decode_to_f32, encode_from_f32, is_float};
pub use header::{canonical_order, header_bytes, write_file};

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

/// Where one tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name, unique over all files of the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// Byte offset from the start of the file (not of the data section).
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// One mapped safetensors file.
#[derive(Debug)]
pub struct SourceFile {
    /// Path as found (before links are followed).
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
    /// The header's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    map: memmap2::Mmap,
}

/// A checkpoint: a folder of safetensors, or one file, mapped and validated.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    files: Vec<SourceFile>,
    tensors: BTreeMap<String, TensorEntry>,
    config: Option<Config>,
    companions: Vec<PathBuf>,
}

/// `config.json`: its exact text and its value.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file's text, byte for byte.
    pub text: String,
    /// The same, parsed; always an object.
    pub value: serde_json::Value,
}

impl Checkpoint {
    /// Opens `path`: a folder with `model.safetensors`, or with shards and an index, or one `.safetensors` file, or a
    /// hub-cache snapshot (links into its own blobs). Every header is validated; no weight is read.
    ///
    /// # Errors
    /// [`CheckpointError`], one variant per way in which the input can be wrong.
    pub fn open(_path: &Path) -> Result<Self, CheckpointError> {
        todo!()
    }

    /// The folder the checkpoint lies in.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The mapped files, sorted by name.
    #[must_use]
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorEntry> {
        self.tensors.values()
    }

    /// One tensor by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.get(name)
    }

    /// `config.json`, where the checkpoint has one.
    #[must_use]
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The small files to carry along (tokenizer, generation config, licence, …): paths of regular files in the root
    /// that are neither weights, nor an index of them, nor `config.json`. Sorted.
    #[must_use]
    pub fn companions(&self) -> &[PathBuf] {
        &self.companions
    }

    /// The stored bytes of a tensor of this checkpoint. Little-endian, at any alignment.
    #[must_use]
    pub fn bytes(&self, entry: &TensorEntry) -> &[u8] {
        let start = usize::try_from(entry.offset).expect("validated against the map's length");
        let length = usize::try_from(entry.bytes).expect("validated against the map's length");
        &self.files[entry.file].map[start..start + length]
    }

    /// Gives the mapped pages wholly inside `range` (bytes of this tensor) back to the system; reading them again is
    /// allowed and costs a page fault.
    pub fn release(&self, _entry: &TensorEntry, _range: Range<usize>) {
        todo!()
    }
}

/// Every way in which a checkpoint can be wrong.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {}

impl CheckpointError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        None
    }
}
