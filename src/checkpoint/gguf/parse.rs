//! Reads a header, strictly: nothing of a file is used before it was checked.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use super::{
    super::{CheckpointError, error::shown},
    ALIGNMENT, ALIGNMENT_KEY, Array, GgmlType, MAGIC, Value,
    value::kind,
};

/// Versions whose layout is the one read here.
const VERSIONS: [u32; 2] = [2, 3];
/// The longest name of a tensor or a key.
const NAME_CAP_BYTES: usize = 65535;
/// ggml's own limit.
const MOST_DIMENSIONS: u32 = 4;
/// The shortest key-value: an empty key, a type, a byte.
const SMALLEST_ENTRY: u64 = 8 + 4 + 1;
/// The shortest tensor info: an empty name, no dimension, a type, an offset.
const SMALLEST_INFO: u64 = 8 + 4 + 4 + 8;
/// More than any writer aligns to.
const LARGEST_ALIGNMENT: u64 = 1 << 20;

/// What is wrong with a GGUF file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their messages say")]
pub enum GgufProblem {
    #[error("it does not begin with `GGUF`")]
    Magic,
    #[error("it is written for big-endian machines, which bantam does not read")]
    BigEndian,
    #[error("it is of GGUF version {version}; bantam reads versions 2 and 3")]
    Version { version: u32 },
    #[error("the header ends in the middle of {what} at byte {at}: the file is truncated or not GGUF")]
    Ends { what: &'static str, at: usize },
    #[error("it says that it has {count} {what}, more than fit into its {file_bytes} bytes")]
    Count { what: &'static str, count: u64, file_bytes: u64 },
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 { what: &'static str, at: usize },
    #[error("{what} at byte {at} has {bytes} bytes; the format allows 65535")]
    NameTooLong { what: &'static str, at: usize, bytes: u64 },
    #[error("key `{}` stands twice", shown(.key))]
    KeyTwice { key: String },
    #[error("key `{}` has a value of type {kind}, which is none", shown(.key))]
    ValueType { key: String, kind: u32 },
    #[error("key `{}` is a list of lists, which bantam does not read", shown(.key))]
    Nested { key: String },
    #[error("key `{}` is {}; expected {expected}", shown(.key), shown(.got))]
    Value { key: String, got: String, expected: &'static str },
    #[error("tensor `{}` stands twice", shown(.tensor))]
    TensorTwice { tensor: String },
    #[error("tensor `{}` has {rank} dimensions; the format allows 4", shown(.tensor))]
    Rank { tensor: String, rank: u32 },
    #[error("tensor `{}` has the type {kind}, which bantam does not read; it reads F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K and MXFP4", shown(.tensor))]
    Type { tensor: String, kind: String },
    #[error("tensor `{}` with the dimensions {shape:?} has no whole number of {kind} blocks, or more than can be", shown(.tensor))]
    Blocks { tensor: String, shape: Vec<usize>, kind: &'static str },
    #[error("tensor `{}` starts at byte {offset} of the data, which is no multiple of {alignment}", shown(.tensor))]
    Unaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("tensor `{}` starts at byte {begin} of the data, before the end of `{}` at {end}", shown(.tensor), shown(.other))]
    Overlap { tensor: String, begin: u64, other: String, end: u64 },
    #[error("the bytes {begin} to {end} of the data, before tensor `{}`, are no tensor's", shown(.tensor))]
    Hole { tensor: String, begin: u64, end: u64 },
    #[error("tensor `{}` ends at byte {expected}, but the file has only {got}: it is truncated", shown(.tensor))]
    Truncated { tensor: String, expected: u64, got: u64 },
    #[error("{trailing} bytes at the end are no tensor's")]
    Trailing { trailing: u64 },
}

/// A tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name, unique in the file.
    pub name: String,
    /// Type.
    pub kind: GgmlType,
    /// Shape in weights, outermost first.
    pub shape: Vec<usize>,
    /// Byte offset from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A header that was read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufHeader {
    /// The tensors, in the order of their data.
    pub tensors: Vec<GgufTensor>,
    /// Key-values; of lists no more than how long they are.
    pub metadata: BTreeMap<String, Value>,
}

/// Reads and checks the header of a GGUF file; `start` holds the file's first bytes, all of the header among them.
///
/// # Errors
/// [`CheckpointError::Gguf`], one [`GgufProblem`] per way in which it can be wrong.
pub fn parse_gguf(path: &Path, start: &[u8], file_bytes: u64) -> Result<GgufHeader, CheckpointError> {
    parse(start, file_bytes).map_err(|problem| CheckpointError::Gguf { file: path.to_owned(), problem })
}

fn parse(start: &[u8], file_bytes: u64) -> Result<GgufHeader, GgufProblem> {
    let mut reader = Reader { bytes: start, at: 0 };
    if reader.take::<4>("the magic").ok() != Some(*MAGIC) {
        return Err(GgufProblem::Magic);
    }
    let version = reader.u32("the version")?;
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err(GgufProblem::BigEndian);
    }
    if !VERSIONS.contains(&version) {
        return Err(GgufProblem::Version { version });
    }
    let tensor_count = reader.u64("the number of tensors")?;
    let entry_count = reader.u64("the number of keys")?;
    let counts = [("tensors", tensor_count, SMALLEST_INFO), ("keys", entry_count, SMALLEST_ENTRY)];
    if let Some((what, count, _)) = counts.into_iter().find(|(_, count, least)| *count > file_bytes / least) {
        return Err(GgufProblem::Count { what, count, file_bytes });
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..entry_count {
        let key = reader.name("a key")?;
        let value = reader.value(&key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(GgufProblem::KeyTwice { key });
        }
    }
    let alignment = alignment(&metadata)?;
    let mut infos = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..tensor_count {
        let info = reader.info(alignment)?;
        if !names.insert(info.name.clone()) {
            return Err(GgufProblem::TensorTwice { tensor: info.name });
        }
        infos.push(info);
    }
    let data = (reader.at as u64).next_multiple_of(alignment);
    infos.sort_by_key(|info| (info.offset, info.bytes));
    check_coverage(&infos, data, alignment, file_bytes)?;
    for info in &mut infos {
        info.offset += data;
    }
    Ok(GgufHeader { tensors: infos, metadata })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufProblem> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT) };
    let fits = |alignment: &u64| alignment.is_power_of_two() && (8..=LARGEST_ALIGNMENT).contains(alignment);
    value.as_unsigned().filter(fits).ok_or_else(|| GgufProblem::Value {
        key: ALIGNMENT_KEY.to_owned(),
        got: format!("{value:?}"),
        expected: "a power of two from 8 to 1048576",
    })
}

/// Tensors, in the order of their offsets, lie one after the other, with gaps no larger than alignment makes them.
fn check_coverage(infos: &[GgufTensor], data: u64, alignment: u64, file_bytes: u64) -> Result<(), GgufProblem> {
    let mut covered = 0_u64;
    let mut previous = "";
    for info in infos {
        let name = || info.name.clone();
        let end = info.offset.checked_add(info.bytes);
        let in_file = end.and_then(|end| end.checked_add(data)).filter(|&end| end <= file_bytes);
        let Some(end) = end.filter(|_| in_file.is_some()) else {
            let expected = data.saturating_add(info.offset).saturating_add(info.bytes);
            return Err(GgufProblem::Truncated { tensor: name(), expected, got: file_bytes });
        };
        if info.offset < covered {
            let other = previous.to_owned();
            return Err(GgufProblem::Overlap { tensor: name(), begin: info.offset, other, end: covered });
        }
        if info.offset - covered >= alignment {
            return Err(GgufProblem::Hole { tensor: name(), begin: covered, end: info.offset });
        }
        covered = end;
        previous = &info.name;
    }
    match file_bytes.saturating_sub(data.saturating_add(covered)) {
        trailing if trailing >= alignment => Err(GgufProblem::Trailing { trailing }),
        _ => Ok(()),
    }
}

/// Goes through the bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn slice(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], GgufProblem> {
        let end = self.at.checked_add(length);
        let found = end.and_then(|end| self.bytes.get(self.at..end));
        let slice = found.ok_or(GgufProblem::Ends { what, at: self.at })?;
        self.at += length;
        Ok(slice)
    }

    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufProblem> {
        let mut taken = [0; N];
        taken.copy_from_slice(self.slice(N, what)?);
        Ok(taken)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufProblem> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufProblem> {
        self.take(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str, GgufProblem> {
        let length = self.u64(what)?;
        let at = self.at;
        let length = usize::try_from(length).map_err(|_| GgufProblem::Ends { what, at })?;
        std::str::from_utf8(self.slice(length, what)?).map_err(|_| GgufProblem::NotUtf8 { what, at })
    }

    fn name(&mut self, what: &'static str) -> Result<String, GgufProblem> {
        let at = self.at;
        match self.text(what)? {
            long if long.len() > NAME_CAP_BYTES => {
                Err(GgufProblem::NameTooLong { what, at, bytes: long.len() as u64 })
            }
            name => Ok(name.to_owned()),
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufProblem> {
        let number = self.u32("a value's type")?;
        if number != kind::ARRAY {
            return self.scalar(key, number);
        }
        let element = self.u32("a list's type")?;
        let length = self.u64("a list's length")?;
        if element == kind::ARRAY {
            return Err(GgufProblem::Nested { key: key.to_owned() });
        }
        match width_of(element) {
            Some(width) => {
                let what = "a list";
                let bytes = usize::try_from(length).ok().and_then(|length| length.checked_mul(width));
                self.slice(bytes.ok_or(GgufProblem::Ends { what, at: self.at })?, what)?;
            }
            None if element == kind::TEXT => {
                for _ in 0..length {
                    self.text("a list of texts")?;
                }
            }
            None => return Err(GgufProblem::ValueType { key: key.to_owned(), kind: element }),
        }
        Ok(Value::Array(Array::Length(length)))
    }

    fn scalar(&mut self, key: &str, number: u32) -> Result<Value, GgufProblem> {
        const WHAT: &str = "a value";
        Ok(match number {
            kind::U8 => Value::Unsigned(u64::from(u8::from_le_bytes(self.take(WHAT)?))),
            kind::I8 => Value::Signed(i64::from(i8::from_le_bytes(self.take(WHAT)?))),
            kind::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(self.take(WHAT)?))),
            kind::I16 => Value::Signed(i64::from(i16::from_le_bytes(self.take(WHAT)?))),
            kind::U32 => Value::Unsigned(u64::from(self.u32(WHAT)?)),
            kind::I32 => Value::Signed(i64::from(i32::from_le_bytes(self.take(WHAT)?))),
            kind::F32 => Value::Float(f64::from(f32::from_le_bytes(self.take(WHAT)?))),
            kind::U64 => Value::Unsigned(self.u64(WHAT)?),
            kind::I64 => Value::Signed(i64::from_le_bytes(self.take(WHAT)?)),
            kind::F64 => Value::Float(f64::from_le_bytes(self.take(WHAT)?)),
            kind::TEXT => Value::Text(self.text(WHAT)?.to_owned()),
            kind::BOOL => match self.take::<1>(WHAT)? {
                [yes @ 0..=1] => Value::Bool(yes == 1),
                [byte] => {
                    let (key, got) = (key.to_owned(), format!("a truth value of {byte}"));
                    return Err(GgufProblem::Value { key, got, expected: "0 or 1" });
                }
            },
            kind => return Err(GgufProblem::ValueType { key: key.to_owned(), kind }),
        })
    }

    /// A tensor's info; its offset is from the start of the data.
    fn info(&mut self, alignment: u64) -> Result<GgufTensor, GgufProblem> {
        let name = self.name("a tensor's name")?;
        let rank = self.u32("a tensor's rank")?;
        if rank > MOST_DIMENSIONS {
            return Err(GgufProblem::Rank { tensor: name, rank });
        }
        let mut shape = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            let side = self.u64("a tensor's dimensions")?;
            // More than an address can tell is more than any file holds.
            shape.push(usize::try_from(side).unwrap_or(usize::MAX));
        }
        shape.reverse();
        let number = self.u32("a tensor's type")?;
        let kind =
            GgmlType::from_number(number).map_err(|kind| GgufProblem::Type { tensor: name.clone(), kind })?;
        let offset = self.u64("a tensor's offset")?;
        let Some(bytes) = kind.tensor_bytes(&shape) else {
            return Err(GgufProblem::Blocks { tensor: name, shape, kind: kind.name() });
        };
        if !offset.is_multiple_of(alignment) {
            return Err(GgufProblem::Unaligned { tensor: name, offset, alignment });
        }
        Ok(GgufTensor { name, kind, shape, offset, bytes })
    }
}

/// Bytes of a value of a type that has always as many.
fn width_of(number: u32) -> Option<usize> {
    match number {
        kind::U8 | kind::I8 | kind::BOOL => Some(1),
        kind::U16 | kind::I16 => Some(2),
        kind::U32 | kind::I32 | kind::F32 => Some(4),
        kind::U64 | kind::I64 | kind::F64 => Some(8),
        _ => None,
    }
}
