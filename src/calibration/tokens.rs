//! The choice of sequences: always the first ones, so that the same files give the same tokens.

use std::path::Path;

use super::{TokenError, text::TextReader};
use crate::{
    checkpoint::{Checkpoint, Dtype},
    manifest::ContentHash,
    recipe::Calibration,
};

/// Token ids of all sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// `[sequences][length]`.
    pub sequences: Vec<Vec<u32>>,
    /// BLAKE3 over the number of sequences (8 bytes) and, for each, its length (8 bytes) and its ids (4 bytes each),
    /// all little-endian.
    pub hash: ContentHash,
    /// Where they come from, for people: a line for each file that was read, by its name.
    pub description: Vec<String>,
}

/// What a file holds, as the end of its name says.
#[derive(Clone, Copy)]
enum Kind {
    Text(TextKind),
    Ids,
}

#[derive(Clone, Copy)]
enum TextKind {
    Plain,
    JsonLines,
}

/// Reads the calibration data of a recipe for the model in `model_folder`, whose embedding has `vocabulary` rows and
/// which takes `max_positions` tokens at most (`None`: any number, as with rotary embeddings that adapt to the length).
///
/// The choice is deterministic and needs no seed. Texts (`.txt`: tokenised whole; `.jsonl`: its documents one after the
/// other) are joined in order into one stream of tokens, without special tokens, and cut into windows of
/// `sequence_length` that do not overlap; the first `sequences` of them are taken. A file of token ids
/// (`.safetensors`) gives the first `sequence_length` tokens of each of its rows; a window never reaches across it.
/// Files behind the last window that is needed are not read. A text is tokenised whole, since tokens at the edge of a
/// piece could differ: its memory is that of the text and some hundred bytes for each of its tokens while it is read.
///
/// # Errors
/// [`TokenError`], one variant per way in which the data or the request can be wrong.
pub fn read(
    model_folder: &Path,
    vocabulary: usize,
    max_positions: Option<usize>,
    calibration: &Calibration,
) -> Result<Tokens, TokenError> {
    let length = usize::try_from(calibration.sequence_length).unwrap_or(usize::MAX);
    let wanted = usize::try_from(calibration.sequences).unwrap_or(usize::MAX);
    check_length(length, max_positions)?;
    if wanted == 0 {
        return Err(TokenError::Nothing);
    }
    let mut reader = TextReader::new(model_folder);
    let mut chosen = Chosen { sequences: Vec::new(), stream: Vec::new(), length, tokens: 0 };
    let mut description = Vec::new();
    for file in &calibration.text {
        let missing = wanted - chosen.sequences.len();
        if missing == 0 {
            break;
        }
        match kind_of(file)? {
            Kind::Ids => {
                chosen.stream.clear();
                let rows = read_ids(file, vocabulary, missing)?;
                description.push(format!("{}: {} rows of token ids", name_of(file), rows.len()));
                for mut row in rows {
                    if row.len() < length {
                        return Err(TokenError::ShortIds { file: file.clone(), found: row.len(), asked: length });
                    }
                    chosen.tokens += row.len();
                    row.truncate(length);
                    chosen.sequences.push(row);
                }
            }
            Kind::Text(kind) => {
                let before = chosen.stream.len();
                let enough = missing.saturating_mul(length);
                let documents = read_text(&mut reader, kind, file, enough, &mut chosen.stream)?;
                let tokens = chosen.stream.len() - before;
                description.push(format!("{}: {documents}{tokens} tokens", name_of(file)));
                chosen.tokens += tokens;
                chosen.cut(missing);
            }
        }
    }
    let Chosen { sequences, tokens, .. } = chosen;
    if sequences.len() < wanted {
        let asked = calibration.sequences;
        return Err(TokenError::TooFew { found: sequences.len(), length, tokens, asked });
    }
    finish(sequences, description, vocabulary, &reader)
}

/// Reads files for evaluation: each tokenised whole without special tokens, cut into windows of `context` tokens that
/// do not overlap, its short tail dropped. Rows of token ids are each cut in the same way. The other arguments are those of
/// [`read`].
///
/// # Errors
/// [`TokenError`], one variant per way in which the data or the request can be wrong.
pub fn windows(
    model_folder: &Path,
    vocabulary: usize,
    max_positions: Option<usize>,
    files: &[impl AsRef<Path>],
    context: usize,
) -> Result<Tokens, TokenError> {
    check_length(context, max_positions)?;
    let mut reader = TextReader::new(model_folder);
    let (mut sequences, mut description) = (Vec::new(), Vec::new());
    for file in files.iter().map(AsRef::as_ref) {
        let (streams, documents) = match kind_of(file)? {
            Kind::Ids => {
                let rows = read_ids(file, vocabulary, usize::MAX)?;
                let count = format!("{} rows, ", rows.len());
                (rows, count)
            }
            Kind::Text(kind) => {
                let mut stream = Vec::new();
                let documents = read_text(&mut reader, kind, file, usize::MAX, &mut stream)?;
                (vec![stream], documents)
            }
        };
        let tokens: usize = streams.iter().map(Vec::len).sum();
        let before = sequences.len();
        sequences.extend(streams.iter().flat_map(|stream| stream.chunks_exact(context)).map(<[u32]>::to_vec));
        if sequences.len() == before {
            return Err(TokenError::NoWindow { file: file.to_owned(), tokens, context });
        }
        description.push(format!("{}: {documents}{tokens} tokens", name_of(file)));
    }
    finish(sequences, description, vocabulary, &reader)
}

/// What [`read`] has so far.
struct Chosen {
    sequences: Vec<Vec<u32>>,
    /// Tokens of text that no window has yet.
    stream: Vec<u32>,
    length: usize,
    /// All tokens read, for messages.
    tokens: usize,
}

impl Chosen {
    /// Cuts up to `missing` windows from the stream and keeps the rest for the next text.
    fn cut(&mut self, missing: usize) {
        let windows = (self.stream.len() / self.length).min(missing);
        let taken = self.stream.drain(..windows * self.length).collect::<Vec<u32>>();
        self.sequences.extend(taken.chunks_exact(self.length).map(<[u32]>::to_vec));
    }
}

fn check_length(length: usize, max_positions: Option<usize>) -> Result<(), TokenError> {
    match max_positions {
        _ if length == 0 => Err(TokenError::Nothing),
        Some(limit) if length > limit => Err(TokenError::TooLong { asked: length, limit }),
        _ => Ok(()),
    }
}

fn kind_of(file: &Path) -> Result<Kind, TokenError> {
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "txt" => Ok(Kind::Text(TextKind::Plain)),
        "jsonl" => Ok(Kind::Text(TextKind::JsonLines)),
        "safetensors" => Ok(Kind::Ids),
        _ => Err(TokenError::UnknownExtension { file: file.to_owned() }),
    }
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}

/// Appends a text's tokens to the stream; says how many documents it has, where it has documents.
fn read_text(
    reader: &mut TextReader<'_>,
    kind: TextKind,
    file: &Path,
    enough: usize,
    stream: &mut Vec<u32>,
) -> Result<String, TokenError> {
    match kind {
        TextKind::JsonLines => {
            reader.json_lines(file, enough, stream).map(|documents| format!("{documents} documents, "))
        }
        TextKind::Plain => reader.plain(file, stream).map(|()| String::new()),
    }
}

/// The first `most` rows of a file of token ids, checked against the vocabulary.
fn read_ids(file: &Path, vocabulary: usize, most: usize) -> Result<Vec<Vec<u32>>, TokenError> {
    let checkpoint = Checkpoint::open(file)?;
    let not_ids = |found| TokenError::NotIds { file: file.to_owned(), found };
    let mut entries = checkpoint.tensors();
    let entry = match (entries.next(), entries.len()) {
        (Some(entry), 0) => entry,
        (_, others) => return Err(not_ids(format!("{} tensors", others + 1))),
    };
    let (rows, columns) = match entry.shape[..] {
        [rows, columns] if matches!(entry.dtype, Dtype::I32 | Dtype::I64) => (rows, columns),
        _ => return Err(not_ids(format!("`{}`, {:?} {:?}", entry.name, entry.dtype, entry.shape))),
    };
    let bytes = checkpoint.bytes(entry);
    let id_at = |index: usize| match entry.dtype {
        Dtype::I32 => number::<4>(bytes, index).map(i32::from_le_bytes).map(i64::from),
        _ => number::<8>(bytes, index).map(i64::from_le_bytes),
    };
    let mut sequences = Vec::new();
    for row in 0..rows.min(most) {
        let mut sequence = Vec::with_capacity(columns);
        for column in 0..columns {
            let id = id_at(row * columns + column).expect("the header was validated against the file's length");
            if id < 0 {
                return Err(TokenError::NegativeId { file: file.to_owned(), row, column, id });
            }
            let known = u32::try_from(id).ok().filter(|id| (*id as usize) < vocabulary);
            sequence.push(known.ok_or_else(|| TokenError::Vocabulary {
                place: format!("`{}`: sequence {row}, position {column}", file.display()),
                id,
                token: String::new(),
                vocabulary,
            })?);
        }
        sequences.push(sequence);
    }
    Ok(sequences)
}

fn number<const BYTES: usize>(bytes: &[u8], index: usize) -> Option<[u8; BYTES]> {
    bytes.get(index * BYTES..(index + 1) * BYTES)?.try_into().ok()
}

/// Checks the ids of text against the vocabulary and hashes everything.
fn finish(
    sequences: Vec<Vec<u32>>,
    description: Vec<String>,
    vocabulary: usize,
    reader: &TextReader<'_>,
) -> Result<Tokens, TokenError> {
    let mut hashed = (sequences.len() as u64).to_le_bytes().to_vec();
    for (row, sequence) in sequences.iter().enumerate() {
        if let Some(column) = sequence.iter().position(|id| *id as usize >= vocabulary) {
            let id = sequence[column];
            return Err(TokenError::Vocabulary {
                place: format!("sequence {row}, position {column}"),
                id: i64::from(id),
                token: reader.token(id).map_or_else(String::new, |token| format!(" (`{}`)", token.escape_debug())),
                vocabulary,
            });
        }
        hashed.extend((sequence.len() as u64).to_le_bytes());
        hashed.extend(sequence.iter().flat_map(|id| id.to_le_bytes()));
    }
    Ok(Tokens { sequences, hash: ContentHash::of(&hashed), description })
}
