//! The safetensors header, read strictly: files are hostile until checked.
//!
//! Format: eight bytes of length N (little-endian), N bytes of JSON, then the data. Tensors must cover the data without
//! hole or overlap; every number is checked before a byte is used.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::Path,
};

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, MapAccess, Visitor},
};

use super::{CheckpointError, Dtype, bits_of};

/// The longest header that readers of the format accept, in bytes.
pub const HEADER_CAP_BYTES: u64 = 100_000_000;

/// A tensor as the header tells it; offsets from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Byte offset from the file's start.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A header, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The tensors, by offset.
    pub tensors: Vec<HeaderTensor>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Entries in the order of the text, duplicates kept so that they can be named.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: Vec<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

const METADATA: &str = "__metadata__";

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    let named = |error: A::Error| A::Error::custom(format!("entry `{name}`: {error}"));
                    if name == METADATA {
                        header.metadata.push(map.next_value().map_err(named)?);
                    } else {
                        let tensor = map.next_value().map_err(named)?;
                        header.tensors.push((name, tensor));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads and checks the header of a file of `file_bytes` bytes, of which `start` holds at least the header.
///
/// # Errors
/// A [`CheckpointError`] per way in which a header can be wrong, naming `path`, the tensor and the numbers.
pub fn parse_header(path: &Path, start: &[u8], file_bytes: u64) -> Result<Header, CheckpointError> {
    let file = || path.to_owned();
    let Some((length, rest)) = start.split_first_chunk::<8>() else {
        return Err(CheckpointError::TooShort { file: file(), bytes: file_bytes });
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_CAP_BYTES {
        return Err(CheckpointError::HeaderTooLong { file: file(), length, cap: HEADER_CAP_BYTES });
    }
    if length > file_bytes - 8 || length > rest.len() as u64 {
        return Err(CheckpointError::HeaderBeyondFile { file: file(), length, file_bytes });
    }
    let json = &rest[..length as usize];
    if json.first() != Some(&b'{') {
        let first = json.first().copied();
        return Err(CheckpointError::HeaderStart { file: file(), first });
    }
    let raw: RawHeader = serde_json::from_slice(json)
        .map_err(|source| CheckpointError::HeaderNotJson { file: file(), message: source.to_string() })?;
    let data = Data { path, start: 8 + length, bytes: file_bytes - 8 - length };
    let mut header = Header::default();
    let mut names = HashSet::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        if !names.insert(name.clone()) {
            return Err(CheckpointError::DuplicateName { file: file(), tensor: name });
        }
        header.tensors.push(data.tensor(name, tensor)?);
    }
    if raw.metadata.len() > 1 {
        return Err(CheckpointError::DuplicateName { file: file(), tensor: METADATA.to_owned() });
    }
    header.metadata = raw.metadata.into_iter().next().unwrap_or_default();
    header.tensors.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    data.check_coverage(&header.tensors)?;
    Ok(header)
}

/// The data section that tensors must cover.
struct Data<'a> {
    path: &'a Path,
    start: u64,
    bytes: u64,
}

impl Data<'_> {
    fn tensor(&self, name: String, raw: RawTensor) -> Result<HeaderTensor, CheckpointError> {
        let file = self.path.to_owned();
        let Ok(dtype) = serde_json::from_value::<Dtype>(raw.dtype.clone().into()) else {
            return Err(CheckpointError::UnknownDtype { file, tensor: name, dtype: raw.dtype });
        };
        let (begin, end) = raw.data_offsets;
        if begin > end {
            return Err(CheckpointError::OffsetsBackwards { file, tensor: name, begin, end });
        }
        if end > self.bytes {
            return Err(CheckpointError::OffsetsBeyondData { file, tensor: name, begin, end, data_bytes: self.bytes });
        }
        let bits = raw
            .shape
            .iter()
            .try_fold(1_u64, |product, &length| product.checked_mul(length))
            .and_then(|elements| elements.checked_mul(bits_of(dtype) as u64));
        let Some(bits) = bits else {
            return Err(CheckpointError::ShapeOverflow { file, tensor: name, shape: raw.shape });
        };
        if bits % 8 != 0 {
            return Err(CheckpointError::PartialByte { file, tensor: name, bits });
        }
        if bits / 8 != end - begin {
            let (expected, got) = (bits / 8, end - begin);
            let dtype = raw.dtype;
            return Err(CheckpointError::WrongBytes { file, tensor: name, dtype, shape: raw.shape, expected, got });
        }
        // Zero-length dimensions let the others be anything: each must still be a length.
        let shape = raw.shape.iter().map(|&length| usize::try_from(length)).collect::<Result<Vec<_>, _>>();
        let Ok(shape) = shape else {
            return Err(CheckpointError::ShapeOverflow { file, tensor: name, shape: raw.shape });
        };
        Ok(HeaderTensor { name, dtype, shape, offset: self.start + begin, bytes: end - begin })
    }

    fn check_coverage(&self, tensors: &[HeaderTensor]) -> Result<(), CheckpointError> {
        let mut at = self.start;
        let mut previous: Option<&HeaderTensor> = None;
        for tensor in tensors {
            let (file, name) = (self.path.to_owned(), tensor.name.clone());
            if tensor.offset < at {
                let other = previous.map_or_else(String::new, |previous| previous.name.clone());
                let (begin, end) = (tensor.offset - self.start, at - self.start);
                return Err(CheckpointError::Overlap { file, tensor: name, other, begin, end });
            }
            if tensor.offset > at {
                let (begin, end) = (at - self.start, tensor.offset - self.start);
                return Err(CheckpointError::Hole { file, tensor: name, begin, end });
            }
            at = tensor.offset + tensor.bytes;
            previous = Some(tensor);
        }
        let covered = at - self.start;
        if covered != self.bytes {
            return Err(CheckpointError::Trailing { file: self.path.to_owned(), covered, data_bytes: self.bytes });
        }
        Ok(())
    }
}
