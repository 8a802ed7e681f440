//! Every way in which a checkpoint can be wrong, each with its own message.

use std::{io, path::PathBuf};

/// What is wrong with a checkpoint. Messages name the file, the tensor and the numbers.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what their messages say")]
pub enum CheckpointError {
    /// A file or folder cannot be read.
    #[error("cannot {doing} `{path}`: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// There is nothing at the path.
    #[error("there is no checkpoint at `{path}`: no such file or folder")]
    Missing { path: PathBuf },
    /// The folder holds no weights.
    #[error("`{folder}` holds no weights: expected model.safetensors, or model.safetensors.index.json with its shards")]
    NoWeights { folder: PathBuf },
    /// The folder holds weights that only executing a pickle would read.
    #[error("`{folder}` holds `{file}`, a pickle, and no safetensors; bantam never executes a pickle")]
    Pickle { folder: PathBuf, file: String },
    /// The file is not of the format.
    #[error("`{path}` is not a safetensors file: expected a name that ends in .safetensors")]
    NotSafetensors { path: PathBuf },
    /// Shorter than the length of a header.
    #[error(
        "`{file}` has {bytes} bytes, fewer than the 8 that hold the header's length: it is truncated or not safetensors"
    )]
    TooShort { file: PathBuf, bytes: u64 },
    /// The header's length is over the format's cap.
    #[error("`{file}` says its header has {length} bytes; the format allows {cap}")]
    HeaderTooLong { file: PathBuf, length: u64, cap: u64 },
    /// The header's length points beyond the file.
    #[error("`{file}` says its header has {length} bytes, but the file has only {file_bytes}: it is truncated")]
    HeaderBeyondFile { file: PathBuf, length: u64, file_bytes: u64 },
    /// The header does not start like one.
    #[error("`{file}`: the header must start with `{{`, but its first byte is {first:?}")]
    HeaderStart { file: PathBuf, first: Option<u8> },
    /// The header is not JSON.
    #[error("`{file}`: the header is not valid: {message}")]
    HeaderNotJson { file: PathBuf, message: String },
    /// Two tensors of one name in one file.
    #[error("`{file}`: the name `{tensor}` stands twice in the header")]
    DuplicateName { file: PathBuf, tensor: String },
    /// Two tensors of one name in two files.
    #[error("tensor `{tensor}` is in `{first}` and in `{second}`")]
    DuplicateAcrossFiles { tensor: String, first: PathBuf, second: PathBuf },
    /// An element type that the format does not have.
    #[error("`{file}`: tensor `{tensor}` has the unknown dtype `{dtype}`")]
    UnknownDtype { file: PathBuf, tensor: String, dtype: String },
    /// Begin behind end.
    #[error("`{file}`: tensor `{tensor}` begins at {begin} and ends before that, at {end}")]
    OffsetsBackwards { file: PathBuf, tensor: String, begin: u64, end: u64 },
    /// Outside the data.
    #[error(
        "`{file}`: tensor `{tensor}` lies at {begin}..{end}, but the data has only {data_bytes} bytes: the file is truncated or the header is wrong"
    )]
    OffsetsBeyondData { file: PathBuf, tensor: String, begin: u64, end: u64, data_bytes: u64 },
    /// The shape's product does not fit 64 bits.
    #[error("`{file}`: the shape {shape:?} of tensor `{tensor}` has more elements than can be counted")]
    ShapeOverflow { file: PathBuf, tensor: String, shape: Vec<u64> },
    /// Sub-byte elements that do not fill the last byte.
    #[error("`{file}`: tensor `{tensor}` has {bits} bits, which is not a whole number of bytes")]
    PartialByte { file: PathBuf, tensor: String, bits: u64 },
    /// dtype × shape ≠ bytes.
    #[error("`{file}`: tensor `{tensor}` of {dtype} {shape:?} needs {expected} bytes, its offsets hold {got}")]
    WrongBytes { file: PathBuf, tensor: String, dtype: String, shape: Vec<u64>, expected: u64, got: u64 },
    /// Two tensors share bytes.
    #[error("`{file}`: tensor `{tensor}` begins at {begin}, inside tensor `{other}`, which ends at {end}")]
    Overlap { file: PathBuf, tensor: String, other: String, begin: u64, end: u64 },
    /// Bytes before a tensor belong to none.
    #[error("`{file}`: the bytes {begin}..{end} before tensor `{tensor}` belong to no tensor")]
    Hole { file: PathBuf, tensor: String, begin: u64, end: u64 },
    /// Bytes behind the last tensor.
    #[error("`{file}`: the tensors cover {covered} bytes of data, the file has {data_bytes}")]
    Trailing { file: PathBuf, covered: u64, data_bytes: u64 },
    /// A JSON file beside the weights is wrong.
    #[error("`{file}`: {message}")]
    Json { file: PathBuf, message: String },
    /// A small file is not small.
    #[error("`{file}` has {bytes} bytes; at most {cap} are read")]
    TooLarge { file: PathBuf, bytes: u64, cap: u64 },
    /// A file of the checkpoint leaves its folder.
    #[error("`{from}` names `{name}`, which lies outside the checkpoint's folder")]
    Outside { from: PathBuf, name: String },
    /// The index names a file that is not there.
    #[error("`{index}` names `{file}` for tensor `{tensor}`, and there is no such file")]
    IndexedFileMissing { index: PathBuf, file: String, tensor: String },
    /// The index names the wrong file.
    #[error("`{index}` says that tensor `{tensor}` is in `{file}`, but it is not")]
    IndexedTensorMissing { index: PathBuf, file: String, tensor: String },
    /// A shard holds what the index does not name.
    #[error("`{file}` holds tensor `{tensor}`, which `{index}` does not name for it")]
    NotIndexed { index: PathBuf, file: PathBuf, tensor: String },
}

impl CheckpointError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Pickle { .. } => "convert it once with the model's own library: \
                `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)` writes safetensors"
                .into(),
            Self::HeaderBeyondFile { .. }
            | Self::TooShort { .. }
            | Self::OffsetsBeyondData { .. }
            | Self::Trailing { .. }
            | Self::IndexedFileMissing { .. } => "the download may be incomplete: fetch the file again".into(),
            Self::Outside { .. } => {
                "only files of the folder itself are read, or a hub cache's own blobs; copy the file there".into()
            }
            Self::Missing { .. } | Self::NoWeights { .. } => "name the folder that holds config.json".into(),
            _ => return None,
        })
    }
}
