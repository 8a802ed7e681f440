//! Every way in which token sequences cannot be had, each with its own message.

use std::{io, path::PathBuf};

use crate::{ExitCode, checkpoint::CheckpointError};

/// Why there are no tokens. Messages name the file, the line and the numbers.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what their messages say")]
pub enum TokenError {
    /// The name of a file says nothing about how to read it.
    #[error("`{file}` is not of a kind that is read: expected .txt, .jsonl or .safetensors (token ids)")]
    UnknownExtension { file: PathBuf },
    /// A file cannot be read.
    #[error("cannot read `{file}`: {source}")]
    Io { file: PathBuf, source: io::Error },
    /// A text is not text.
    #[error("`{file}` is not UTF-8 at its byte {offset} (line {line})")]
    NotUtf8 { file: PathBuf, line: usize, offset: u64 },

    /// Text is given, and nothing says what its tokens are.
    #[error("`{folder}` has no tokenizer.json, which is needed to read the text `{file}`")]
    NoTokenizer { folder: PathBuf, file: PathBuf },
    /// The tokenizer cannot be read.
    #[error("`{file}` is not a tokenizer that can be read: {message}")]
    BadTokenizer { file: PathBuf, message: String },
    /// The tokenizer refuses a text.
    #[error("`{file}`{}: the tokenizer cannot read the text: {message}", in_line(*.line))]
    Tokenize { file: PathBuf, line: Option<usize>, message: String },

    /// A line of a JSON lines file has the wrong form.
    #[error("`{file}`, line {line}: {message}")]
    JsonLine { file: PathBuf, line: usize, message: String },
    /// Messages are given, and nothing says how the model reads them.
    #[error("`{file}`, line {line} holds messages, and `{folder}` has no chat template to write them out with")]
    NoTemplate { folder: PathBuf, file: PathBuf, line: usize },
    /// Several templates, and none of them is the default.
    #[error("`{file}` has the chat templates {names}, none of them called \"default\"")]
    NoDefaultTemplate { file: PathBuf, names: String },
    /// The tokenizer's configuration is wrong.
    #[error("`{file}`: {message}")]
    BadConfig { file: PathBuf, message: String },
    /// The chat template cannot be parsed.
    #[error("the chat template of `{template}` is wrong: {message}")]
    BadTemplate { template: PathBuf, message: String },
    /// The chat template refuses a conversation.
    #[error("`{file}`, line {line}: the chat template of `{template}` fails on these messages: {message}")]
    Template { file: PathBuf, line: usize, template: PathBuf, message: String },

    /// The file of token ids is not safetensors, or a damaged one.
    #[error(transparent)]
    Ids(#[from] CheckpointError),
    /// The file of token ids holds something else.
    #[error("`{file}`: expected one tensor of token ids, I64 or I32 [sequences, length]; found {found}")]
    NotIds { file: PathBuf, found: String },
    /// A token id below zero.
    #[error("`{file}`: sequence {row} has the negative token id {id} at its position {column}")]
    NegativeId { file: PathBuf, row: usize, column: usize, id: i64 },
    /// Sequences of token ids are shorter than asked for.
    #[error("`{file}` holds sequences of {found} tokens, {asked} are asked for")]
    ShortIds { file: PathBuf, found: usize, asked: usize },

    /// A token has no row in the model's embedding.
    #[error("{place} has the token id {id}{token}, but the model's vocabulary has {vocabulary} rows")]
    Vocabulary { place: String, id: i64, token: String, vocabulary: usize },

    /// Sequences without tokens, or none of them.
    #[error("sequences and their length must be at least 1")]
    Nothing,
    /// Longer than the model can take.
    #[error("sequences of {asked} tokens are asked for, but the model takes at most {limit} (max_position_embeddings)")]
    TooLong { asked: usize, limit: usize },
    /// Less text than sequences.
    #[error(
        "the calibration data gives {found} sequences of {length} tokens ({tokens} tokens in all), {asked} are asked for"
    )]
    TooFew { found: usize, length: usize, tokens: usize, asked: u64 },
    /// Less text than one window.
    #[error("`{file}` has {tokens} tokens, fewer than one window of {context}")]
    NoWindow { file: PathBuf, tokens: usize, context: usize },
}

impl TokenError {
    /// The exit code of this failure: the data is wrong, or what is asked of it is.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::UnknownExtension { .. }
            | Self::ShortIds { .. }
            | Self::Nothing
            | Self::TooLong { .. }
            | Self::TooFew { .. }
            | Self::NoWindow { .. } => ExitCode::Usage,
            _ => ExitCode::Input,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoTokenizer { .. } => "put the model's tokenizer.json there, or give token ids instead of text: \
                a .safetensors file with one I64 tensor [sequences, length]"
                .into(),
            Self::NoTemplate { .. } => "put the model's chat_template.jinja there, or its tokenizer_config.json with \
                `chat_template`, or give {\"text\": …} instead of {\"messages\": […]}"
                .into(),
            Self::NoDefaultTemplate { .. } => "call one of them \"default\"".into(),
            Self::NotUtf8 { .. } => "convert it, for example with `iconv -t UTF-8`".into(),
            Self::Vocabulary { .. } => "the tokenizer (or the token ids) must be this model's own".into(),
            Self::TooLong { limit, .. } => format!("ask for {limit} tokens or fewer"),
            Self::ShortIds { found, .. } => format!("ask for {found} tokens or fewer, or give longer sequences"),
            Self::TooFew { found: 0, .. } => "name more text, or set a smaller `sequence_length`".into(),
            Self::TooFew { found, .. } => {
                format!("name more text, or set `sequences = {found}` or a smaller `sequence_length`")
            }
            Self::NoWindow { .. } => "give more text, or a smaller context".into(),
            Self::Ids(error) => return error.hint(),
            _ => return None,
        })
    }
}

fn in_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}
