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
mod hub;
mod index;
mod json;
mod lost;
mod mapped;
mod parse;
mod ranged;
mod small_files;

pub use dtype::{Dtype, bits_of, decode_to_f32, encode_from_f32, is_float};
pub use error::CheckpointError;
pub use finite::{NonFiniteReport, scan_non_finite, scan_tensor};
pub use gguf::{GgmlType, Gguf};
pub use header::{METADATA, canonical_order, data_bytes, header_bytes, write_file};
pub use hub::{HubError, is_hub_id, resolve_hub_id};
pub use index::Index;
pub use lost::until_lost;
pub(crate) use mapped::MappedFile;
pub use parse::{HEADER_CAP_BYTES, Header, HeaderTensor, MAXIMUM_RANK, parse_header};
pub use ranged::{PIECE_BYTES, Ranged, TensorBytes};

pub(crate) use small_files::is_weights;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use crate::remote::{Location, Mounted};

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

/// One safetensors file, mapped or in an object store.
#[derive(Debug)]
pub struct SourceFile {
    /// Path as found (before links are followed).
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
    /// The header's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    data: Data,
}

/// Where a file's bytes come from.
#[derive(Debug)]
enum Data {
    Mapped(MappedFile),
    /// The number of an object of the store.
    Object(usize),
}

/// A checkpoint: a folder of safetensors, or one file, or one GGUF file, on disk and mapped or in an object store, validated.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    files: Vec<SourceFile>,
    tensors: BTreeMap<String, TensorEntry>,
    gguf: Option<Gguf>,
    config: Option<Config>,
    companions: Vec<PathBuf>,
    /// The store that it lies in, if it does.
    mounted: Option<Mounted>,
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
    /// `.safetensors` file, or a hub-cache snapshot (links into its own blobs), also by its id (`hub:ORG/NAME`); or a GGUF
    /// file, or a folder with one; or the URL of safetensors in an object store (`s3://BUCKET/PREFIX`). Every header is
    /// validated; no weight is read.
    ///
    /// # Errors
    /// [`CheckpointError`], one variant per way in which the input can be wrong.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let Some(location) = Location::of(path)? else { return Self::open_files(&resolve_hub_id(path)?, None) };
        let (mounted, place) = Mounted::open(&location)?;
        Self::open_files(&place, Some(mounted))
    }

    fn open_files(path: &Path, mounted: Option<Mounted>) -> Result<Self, CheckpointError> {
        match mounted {
            None => Self::open_found(path, None),
            Some(mounted) => {
                let mut opened = Self::open_found(path, Some(&mounted)).map_err(|error| match error {
                    CheckpointError::Remote(error) => CheckpointError::Remote(error),
                    error => CheckpointError::InStore {
                        message: mounted.told_of_location(&error.to_string()),
                        hint: error.hint(),
                    },
                })?;
                opened.mounted = Some(mounted);
                Ok(opened)
            }
        }
    }

    fn open_found(path: &Path, mounted: Option<&Mounted>) -> Result<Self, CheckpointError> {
        let found = discover::discover(path)?;
        let root = found.confinement.folder().to_owned();
        let mut files: Vec<SourceFile> = Vec::with_capacity(found.files.len());
        let mut listed: Vec<TensorEntry> = Vec::new();
        let mut gguf = None;
        for (file, path) in found.files.into_iter().enumerate() {
            let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
            let object = mounted.and_then(|mounted| Some((mounted, mounted.object(&path)?)));
            let (data, header, bytes) = if let Some((mounted, (object, bytes))) = object {
                if is_gguf {
                    return Err(CheckpointError::NotMapped { path });
                }
                let header = parse_header(&path, &mounted.header(object)?, bytes)?;
                (Data::Object(object), header, bytes)
            } else {
                let map = MappedFile::open(&path)?;
                let bytes = map.bytes().len() as u64;
                if is_gguf {
                    let header = gguf::parse_gguf(&path, map.bytes(), bytes)?;
                    gguf = Some(list_gguf(header, file, &mut listed));
                    files.push(SourceFile { path, bytes, metadata: BTreeMap::new(), data: Data::Mapped(map) });
                    continue;
                }
                let header = parse_header(&path, map.bytes(), bytes)?;
                (Data::Mapped(map), header, bytes)
            };
            listed.extend(header.tensors.into_iter().map(|HeaderTensor { name, dtype, shape, offset, bytes }| {
                TensorEntry { name, dtype, shape, file, offset, bytes }
            }));
            files.push(SourceFile { path, bytes, metadata: header.metadata, data });
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
        Ok(Self { root, files, tensors, gguf, config, companions, mounted: None })
    }

    /// Whether it lies in an object store.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.mounted.is_some()
    }

    /// Sets how many bytes are kept of what is fetched from an object store.
    pub fn keep_fetched(&self, bytes: u64) {
        if let Some(mounted) = &self.mounted {
            mounted.keep(bytes);
        }
    }

    /// Names, lengths and modification times of all files, in an object store their tags and versions: when one
    /// changes, this does.
    #[must_use]
    pub fn identity(&self) -> String {
        if let Some(mounted) = &self.mounted {
            return mounted.identity().to_owned();
        }
        let mut identity = String::new();
        for path in self.files.iter().map(|file| &file.path).chain(&self.companions) {
            let metadata = std::fs::metadata(path);
            let length = metadata.as_ref().map_or(0, std::fs::Metadata::len);
            let modified = metadata.and_then(|metadata| metadata.modified()).ok();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            // Writing to a String cannot fail.
            let _ = writeln!(identity, "{name:?} {length} {modified:?}");
        }
        identity
    }

    /// The folder the checkpoint lies in; of one in an object store a private folder with its small files, as long as
    /// this lives.
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
