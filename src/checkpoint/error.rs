//! Every way in which a checkpoint can be wrong, each with its own message.

use std::{io, path::PathBuf};

use super::Dtype;

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
    #[error(
        "`{folder}` holds no weights: expected model.safetensors, model.safetensors.index.json with its shards, any *.safetensors, or a *.gguf"
    )]
    NoWeights { folder: PathBuf },
    /// The weights hold no tensor.
    #[error("`{path}` holds no tensor")]
    NoTensors { path: PathBuf },
    /// The weights can only be read by executing a pickle.
    #[error("`{file}` is a pickle, and there is no safetensors beside it; bantam never executes a pickle")]
    Pickle { file: PathBuf },
    /// The file is not of the format.
    #[error("`{path}` is not a safetensors or GGUF file: expected a name that ends in .safetensors or .gguf")]
    NotSafetensors { path: PathBuf },
    /// A folder, pipe, socket or device where a file should be.
    #[error("`{path}` is not a regular file")]
    NotAFile { path: PathBuf },
    /// `model.safetensors` and an index of other files, both there.
    #[error(
        "`{folder}` holds both model.safetensors and `{file}`, which model.safetensors.index.json names: which is the model?"
    )]
    Ambiguous { folder: PathBuf, file: String },
    /// Several GGUF files, each of which could be the model.
    #[error("`{folder}` holds several GGUF files (`{first}`, `{second}`): which is the model?")]
    SeveralGguf { folder: PathBuf, first: String, second: String },
    /// A GGUF file is wrong.
    #[error("`{file}`: {problem}")]
    Gguf { file: PathBuf, problem: super::gguf::GgufProblem },
    /// A shard's name says that there are more of them.
    #[error("`{folder}` holds {found} of the {expected} shards that `{file}` is one of; `{missing}` is missing")]
    ShardMissing { folder: PathBuf, file: String, missing: String, found: usize, expected: usize },

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
    #[error("`{file}`: the header must start with `{{`, found {first}")]
    HeaderStart { file: PathBuf, first: String },
    /// The header is not text.
    #[error("`{file}`: the header is not UTF-8 at its byte {offset}")]
    HeaderNotUtf8 { file: PathBuf, offset: usize },
    /// The header is not JSON.
    #[error("`{file}`: the header is not valid JSON: {}", shown(.message))]
    HeaderNotJson { file: PathBuf, message: String },
    /// An entry of the header has the wrong form.
    #[error("`{file}`: the header's entry `{}` is wrong: {}", shown(.tensor), shown(.message))]
    WrongEntry { file: PathBuf, tensor: String, message: String },
    /// A key of the header or its metadata stands twice.
    #[error("`{file}`: the key `{}` stands twice in the header", shown(.key))]
    DuplicateKey { file: PathBuf, key: String },
    /// A metadata value is not a string.
    #[error("`{file}`: the metadata `{}` is not a string: {}", shown(.key), shown(.message))]
    MetadataNotText { file: PathBuf, key: String, message: String },
    /// Two tensors of one name in one file.
    #[error("`{file}`: tensor `{}` stands twice in the header", shown(.tensor))]
    DuplicateTensor { file: PathBuf, tensor: String },
    /// A field of a tensor stands twice.
    #[error("`{file}`: tensor `{}` has `{field}` twice", shown(.tensor))]
    DuplicateField { file: PathBuf, tensor: String, field: &'static str },
    /// A field of a tensor is absent.
    #[error("`{file}`: tensor `{}` has no `{field}`", shown(.tensor))]
    MissingField { file: PathBuf, tensor: String, field: &'static str },
    /// A field that the format does not have.
    #[error("`{file}`: tensor `{}` has the unknown field `{}`; the format has dtype, shape and data_offsets", shown(.tensor), shown(.field))]
    UnknownField { file: PathBuf, tensor: String, field: String },
    /// An element type that the format does not have.
    #[error("`{file}`: tensor `{}` has the unknown dtype `{}`", shown(.tensor), shown(.dtype))]
    UnknownDtype { file: PathBuf, tensor: String, dtype: String },
    /// Begin behind end.
    #[error("`{file}`: tensor `{}` begins at {begin} and ends before that, at {end}", shown(.tensor))]
    OffsetsOutOfOrder { file: PathBuf, tensor: String, begin: u64, end: u64 },
    /// Outside the data.
    #[error("`{file}`: tensor `{}` lies at {begin}..{end}, outside the data's {data_bytes} bytes", shown(.tensor))]
    OffsetsOutOfRange { file: PathBuf, tensor: String, begin: u64, end: u64, data_bytes: u64 },
    /// The shape's product does not fit 64 bits.
    #[error("`{file}`: the size of tensor `{}`, {dtype} {shape:?}, does not fit 64 bits", shown(.tensor))]
    ShapeOverflow { file: PathBuf, tensor: String, dtype: Dtype, shape: Vec<usize> },
    /// Sub-byte elements that do not fill the last byte.
    #[error("`{file}`: tensor `{}`, {dtype} {shape:?}, has {bits} bits, which is not a whole number of bytes", shown(.tensor))]
    PartialByte { file: PathBuf, tensor: String, dtype: Dtype, shape: Vec<usize>, bits: u64 },
    /// dtype × shape ≠ bytes.
    #[error("`{file}`: tensor `{}`, {dtype} {shape:?}, needs {expected} bytes, its offsets hold {got}", shown(.tensor))]
    WrongBytes { file: PathBuf, tensor: String, dtype: Dtype, shape: Vec<usize>, expected: u64, got: u64 },
    /// Two tensors share bytes.
    #[error("`{file}`: tensor `{}` begins at {begin}, inside tensor `{}`, which ends at {end}", shown(.tensor), shown(.other))]
    Overlap { file: PathBuf, tensor: String, begin: u64, other: String, end: u64 },
    /// Bytes before a tensor belong to none.
    #[error("`{file}`: the bytes {begin}..{end} before tensor `{}` belong to no tensor", shown(.tensor))]
    Hole { file: PathBuf, tensor: String, begin: u64, end: u64 },
    /// The file ends before its tensors do.
    #[error("`{file}` is truncated: its header describes {expected} bytes, the file has {got} and ends before tensor `{}` does", shown(.tensor))]
    Truncated { file: PathBuf, tensor: String, expected: u64, got: u64 },
    /// Bytes behind the last tensor.
    #[error(
        "`{file}`: the tensors cover {covered} of {data_bytes} bytes of data; the last {trailing} belong to no tensor"
    )]
    TrailingBytes { file: PathBuf, covered: u64, data_bytes: u64, trailing: u64 },

    /// Two tensors of one name in two files.
    #[error("tensor `{}` is in `{first}` and in `{second}`", shown(.tensor))]
    DuplicateAcrossFiles { tensor: String, first: PathBuf, second: PathBuf },
    /// A JSON file beside the weights is wrong.
    #[error("`{file}`: {}", shown(.message))]
    Json { file: PathBuf, message: String },
    /// A key of a JSON file beside the weights stands twice.
    #[error("`{file}`: the key `{}` stands twice", shown(.key))]
    JsonKeyTwice { file: PathBuf, key: String },
    /// A small file is not small.
    #[error("`{file}` has {bytes} bytes; at most {cap} are read")]
    TooLarge { file: PathBuf, bytes: u64, cap: u64 },
    /// The index names a path that is absolute or climbs out of the folder.
    #[error("`{index}` names `{}` for tensor `{}`: not a path inside the checkpoint's folder", shown(.file), shown(.tensor))]
    IndexedFileOutside { index: PathBuf, file: String, tensor: String },
    /// A link out of the folder.
    #[error("`{link}` is a link to `{target}`, outside the checkpoint's folder")]
    LinkOutside { link: PathBuf, target: PathBuf },
    /// A link to nothing.
    #[error("`{link}` is a link to `{target}`, where there is nothing")]
    LinkBroken { link: PathBuf, target: PathBuf },
    /// The index names a file that is not there.
    #[error("`{index}` names `{}` for tensor `{}`, and there is no such file", shown(.file), shown(.tensor))]
    IndexedFileMissing { index: PathBuf, file: String, tensor: String },
    /// The index names files of another format.
    #[error("`{index}` names `{}` for tensor `{}`: not a safetensors file", shown(.file), shown(.tensor))]
    IndexedFileFormat { index: PathBuf, file: String, tensor: String },
    /// The index names the wrong file.
    #[error("`{index}` says that tensor `{}` is in `{}`, which does not hold it", shown(.tensor), shown(.file))]
    IndexedTensorMissing { index: PathBuf, file: String, tensor: String },
    /// A shard holds what the index does not name.
    #[error("`{file}` holds tensor `{}`, which `{index}` does not name", shown(.tensor))]
    NotIndexed { index: PathBuf, file: PathBuf, tensor: String },
}

impl CheckpointError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Pickle { .. } | Self::IndexedFileFormat { .. } => "convert it once with transformers: \
                `AutoModelForCausalLM.from_pretrained(DIR, dtype=\"auto\").save_pretrained(NEW)` writes safetensors; \
                do so only for a model that you trust, since reading a pickle executes it"
                .into(),
            Self::HeaderBeyondFile { .. }
            | Self::TooShort { .. }
            | Self::Truncated { .. }
            | Self::LinkBroken { .. }
            | Self::ShardMissing { .. }
            | Self::IndexedFileMissing { .. } => "the download may be incomplete: fetch the file again".into(),
            Self::LinkOutside { .. } | Self::IndexedFileOutside { .. } => {
                "only files of the folder itself are read, or a hub cache's own blobs; copy the file there".into()
            }
            Self::NotIndexed { .. } => "if the index is stale, delete it: every *.safetensors is read then".into(),
            Self::SeveralGguf { .. } => {
                "name the file itself; of a model split into several files, join them first (`gguf-split --merge`)".into()
            }
            Self::Ambiguous { .. } => "move one of the two away, or name the file itself".into(),
            Self::Missing { .. } | Self::NoWeights { .. } => "name the folder that holds config.json".into(),
            _ => return None,
        })
    }
}

/// A name from a file as a message shows it: cut when very long, control characters escaped, so that a hostile name
/// neither floods nor steers a terminal.
pub(super) fn shown(text: &str) -> String {
    const MOST_CHARACTERS: usize = 200;
    let mut shown = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == MOST_CHARACTERS {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_debug());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_shown_harmless_and_short() {
        assert_eq!(shown("model.näme \"x\""), "model.näme \"x\"");
        assert_eq!(shown("\u{1b}[2J\n"), "\\u{1b}[2J\\n");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), 201);
    }
}
