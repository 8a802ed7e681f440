//! Reads checkpoints: finds the files, maps them, checks every header before a byte is used, hands out views.
//!
//! Physical level: named tensors as stored. What they mean (codes, scales, dense weights) is [`crate::layout`]'s.

pub mod config_text;
mod confine;
mod discover;
mod dtype;
mod error;
mod finite;
pub mod gguf;
pub mod header;
mod index;
mod json;
mod mapped;
mod parse;
mod small_files;

pub use dtype::{Dtype, bits_of, decode_to_f32, encode_from_f32, is_float};
pub use error::CheckpointError;
pub use gguf::{GgmlType, Gguf};
pub use finite::{NonFiniteReport, scan_non_finite};
pub use header::{METADATA, canonical_order, data_bytes, header_bytes, write_file};
pub use index::Index;
pub(crate) use mapped::MappedFile;
pub use parse::{HEADER_CAP_BYTES, Header, HeaderTensor, MAXIMUM_RANK, parse_header};

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
    map: mapped::MappedFile,
}

/// A checkpoint: a folder of safetensors, or one file, mapped and validated; or one GGUF file.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    files: Vec<SourceFile>,
    tensors: BTreeMap<String, TensorEntry>,
    gguf: Option<Gguf>,
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
    /// Opens `path`: a folder with `model.safetensors`, or with shards and an index, or with shards alone, or one
    /// `.safetensors` file, or a hub-cache snapshot (links into its own blobs); or a GGUF file, or a folder with one. Every header is validated; no weight is
    /// read.
    ///
    /// # Errors
    /// [`CheckpointError`], one variant per way in which the input can be wrong.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let found = discover::discover(path)?;
        let root = found.confinement.folder().to_owned();
        let mut files: Vec<SourceFile> = Vec::with_capacity(found.files.len());
        let mut listed: Vec<TensorEntry> = Vec::new();
        let mut gguf = None;
        for (file, path) in found.files.into_iter().enumerate() {
            let map = mapped::MappedFile::open(&path)?;
            let bytes = map.bytes().len() as u64;
            if path.extension().is_some_and(|extension| extension == "gguf") {
                let header = gguf::parse_gguf(&path, map.bytes(), bytes)?;
                gguf = Some(list_gguf(header, file, &mut listed));
                files.push(SourceFile { path, bytes, metadata: BTreeMap::new(), map });
                continue;
            }
            let header = parse_header(&path, map.bytes(), bytes)?;
            listed.extend(header.tensors.into_iter().map(|HeaderTensor { name, dtype, shape, offset, bytes }| {
                TensorEntry { name, dtype, shape, file, offset, bytes }
            }));
            files.push(SourceFile { path, bytes, metadata: header.metadata, map });
        }
        // Stable, so that of two equal names the one of the earlier file comes first.
        listed.sort_by(|left, right| left.name.cmp(&right.name));
        if let Some([first, second]) = listed.array_windows().find(|[left, right]| left.name == right.name) {
            let (first_file, second_file) = (files[first.file].path.clone(), files[second.file].path.clone());
            let tensor = first.name.clone();
            return Err(CheckpointError::DuplicateAcrossFiles { tensor, first: first_file, second: second_file });
        }
        let tensors: BTreeMap<_, _> = listed.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        if tensors.is_empty() {
            return Err(CheckpointError::NoTensors { path: path.to_owned() });
        }
        if let Some(index) = found.index {
            index.check(&root, &tensors, &files)?;
        }
        let config = small_files::config(&found.confinement)?;
        // A lone file may lie in a folder of anything; only beside a model's configuration are its neighbours the model's.
        let companions =
            if found.single && config.is_none() { Vec::new() } else { small_files::companions(&found.confinement)? };
        Ok(Self { root, files, tensors, gguf, config, companions })
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

    /// What a GGUF file says beside its tensors, where the checkpoint is one. Tensors in blocks are listed as bytes.
    #[must_use]
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
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
        &self.files[entry.file].map.bytes()[within_file(entry, 0..usize::MAX)]
    }

    /// Gives the mapped pages that `range` touches (bytes of this tensor) back to the system; reading them again is
    /// allowed and costs a page fault.
    pub fn release(&self, entry: &TensorEntry, range: Range<usize>) {
        self.files[entry.file].map.release(within_file(entry, range));
    }

    /// Says that bytes of this tensor will be read soon: the disk can begin.
    pub fn announce(&self, entry: &TensorEntry, range: Range<usize>) {
        self.files[entry.file].map.announce(within_file(entry, range));
    }

    /// Says that bytes of this tensor are read now, all of them: their pages are mapped in one go.
    pub fn populate(&self, entry: &TensorEntry, range: Range<usize>) {
        self.files[entry.file].map.populate(within_file(entry, range));
    }
}

/// Lists the tensors of a GGUF file.
fn list_gguf(header: gguf::GgufHeader, file: usize, listed: &mut Vec<TensorEntry>) -> Gguf {
    let types = header.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.kind)).collect();
    listed.extend(header.tensors.into_iter().map(|tensor| {
        let (dtype, shape) = tensor.kind.as_stored(tensor.shape);
        TensorEntry { name: tensor.name, dtype, shape, file, offset: tensor.offset, bytes: tensor.bytes }
    }));
    Gguf { metadata: header.metadata, types }
}

/// A range of a tensor's bytes, cut to the tensor, as a range of its file.
fn within_file(entry: &TensorEntry, range: Range<usize>) -> Range<usize> {
    let start = usize::try_from(entry.offset).expect("validated against the map's length");
    let length = usize::try_from(entry.bytes).expect("validated against the map's length");
    start + range.start.min(length)..start + range.end.min(length)
}
