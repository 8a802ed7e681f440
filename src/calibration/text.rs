//! From files of text to one stream of token ids.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use minijinja::{Value, value::ValueKind};
use tokenizers::Tokenizer;

use super::{TokenError, chat::Chat};

/// Reads text with the tokenizer of a model's folder, which is opened when the first text asks for it.
pub(super) struct TextReader<'a> {
    folder: &'a Path,
    tokenizer: Option<Tokenizer>,
    chat: Option<Chat>,
}

/// One line of a JSON lines file; other members are ignored.
#[derive(serde::Deserialize)]
struct Document {
    text: Option<String>,
    messages: Option<Value>,
    tools: Option<Value>,
}

impl<'a> TextReader<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self { folder, tokenizer: None, chat: None }
    }

    /// Appends the tokens of a plain text, tokenised whole, to the stream.
    pub(super) fn plain(&mut self, file: &Path, stream: &mut Vec<u32>) -> Result<(), TokenError> {
        let bytes = std::fs::read(file).map_err(|source| TokenError::Io { file: file.to_owned(), source })?;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let offset = error.utf8_error().valid_up_to();
                let line = error.as_bytes()[..offset].split(|byte| *byte == b'\n').count();
                return Err(TokenError::NotUtf8 { file: file.to_owned(), line, offset: offset as u64 });
            }
        };
        self.append(&text, file, None, stream)
    }

    /// Appends the tokens of the documents of a JSON lines file until the stream has `enough`; gives the number of
    /// documents read.
    pub(super) fn json_lines(
        &mut self,
        file: &Path,
        enough: usize,
        stream: &mut Vec<u32>,
    ) -> Result<usize, TokenError> {
        let io = |source| TokenError::Io { file: file.to_owned(), source };
        let mut reader = BufReader::new(File::open(file).map_err(io)?);
        let mut bytes = Vec::new();
        let (mut line, mut offset, mut documents) = (0, 0, 0);
        while stream.len() < enough {
            bytes.clear();
            let length = reader.read_until(b'\n', &mut bytes).map_err(io)?;
            if length == 0 {
                break;
            }
            line += 1;
            let text = std::str::from_utf8(&bytes).map_err(|error| TokenError::NotUtf8 {
                file: file.to_owned(),
                line,
                offset: offset + error.valid_up_to() as u64,
            })?;
            offset += length as u64;
            if text.trim().is_empty() {
                continue;
            }
            let text = self.document(text, file, line)?;
            self.append(&text, file, Some(line), stream)?;
            documents += 1;
        }
        Ok(documents)
    }

    /// The text of one line.
    fn document(&mut self, text: &str, file: &Path, line: usize) -> Result<String, TokenError> {
        let wrong = |message: String| TokenError::JsonLine { file: file.to_owned(), line, message };
        let document: Document = serde_json::from_str(text).map_err(|error| wrong(json_message(&error)))?;
        match (document.text, document.messages) {
            (Some(text), None) => Ok(text),
            (None, Some(messages)) if messages.kind() == ValueKind::Seq => {
                self.chat(file, line)?.render(&messages, document.tools.as_ref(), file, line)
            }
            (None, Some(_)) => Err(wrong("`messages`: expected a list of {role, content}".into())),
            (Some(_), Some(_)) => Err(wrong("expected either `text` or `messages`, found both".into())),
            (None, None) => Err(wrong("expected an object with `text` or `messages`".into())),
        }
    }

    fn append(
        &mut self,
        text: &str,
        file: &Path,
        line: Option<usize>,
        stream: &mut Vec<u32>,
    ) -> Result<(), TokenError> {
        let encoding = self.tokenizer(file)?.encode_fast(text, false).map_err(|error| TokenError::Tokenize {
            file: file.to_owned(),
            line,
            message: error.to_string(),
        })?;
        stream.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// How the tokenizer writes a token, where one was opened.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.as_ref()?.id_to_token(id)
    }

    fn tokenizer(&mut self, file: &Path) -> Result<&Tokenizer, TokenError> {
        let opened = match self.tokenizer.take() {
            Some(tokenizer) => tokenizer,
            None => open_tokenizer(self.folder, file)?,
        };
        Ok(self.tokenizer.insert(opened))
    }

    fn chat(&mut self, file: &Path, line: usize) -> Result<&Chat, TokenError> {
        let missing = || TokenError::NoTemplate { folder: self.folder.to_owned(), file: file.to_owned(), line };
        let opened = match self.chat.take() {
            Some(chat) => chat,
            None => Chat::of(self.folder)?.ok_or_else(missing)?,
        };
        Ok(self.chat.insert(opened))
    }
}

/// Opens `tokenizer.json`; truncation and padding that it may ask for are for other uses and would change the text.
fn open_tokenizer(folder: &Path, needed_for: &Path) -> Result<Tokenizer, TokenError> {
    let path: PathBuf = folder.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            TokenError::NoTokenizer { folder: folder.to_owned(), file: needed_for.to_owned() }
        }
        _ => TokenError::Io { file: path.clone(), source },
    })?;
    let bad = |error: tokenizers::Error| TokenError::BadTokenizer { file: path.clone(), message: error.to_string() };
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(bad)?;
    tokenizer.with_truncation(None).map_err(bad)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// The message of an error in one line of JSON: its line is always 1, and the file's line is told elsewhere.
fn json_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match message.strip_suffix(&place) {
        Some(bare) => format!("not as expected: {bare} (column {})", error.column()),
        None => format!("not as expected: {message}"),
    }
}
