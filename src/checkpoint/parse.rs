//! The safetensors header, read strictly: files are hostile until checked.
//!
//! Format: eight bytes of length N (little-endian), N bytes of JSON, then the data. The JSON may list tensors in any
//! order; by offset they must cover the data without hole or overlap. Stricter than the reference reader, on purpose:
//! a name, a field or a metadata key that stands twice, fields that the format does not have, tensors written as arrays
//! or types as objects, `"__metadata__": null`, and more than [`MAXIMUM_RANK`] dimensions are refused too.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    fmt,
    path::Path,
};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor},
};

use super::{CheckpointError, Dtype, bits_of, header::LENGTH_BYTES};

/// The longest header that readers of the format accept, in bytes.
pub const HEADER_CAP_BYTES: u64 = 100_000_000;
/// More dimensions than any array library has; a longer list only costs memory.
pub const MAXIMUM_RANK: usize = 64;

const METADATA: &str = "__metadata__";

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

/// Reads and checks the header of a file of `file_bytes` bytes, of which `start` holds at least the header.
///
/// # Errors
/// A [`CheckpointError`] per way in which a header can be wrong, naming `path`, the tensor and the numbers.
pub fn parse_header(path: &Path, start: &[u8], file_bytes: u64) -> Result<Header, CheckpointError> {
    let file = || path.to_owned();
    let Some((length, rest)) = start.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(CheckpointError::TooShort { file: file(), bytes: file_bytes });
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_CAP_BYTES {
        return Err(CheckpointError::HeaderTooLong { file: file(), length, cap: HEADER_CAP_BYTES });
    }
    let Some(json) = rest.get(..length as usize) else {
        return Err(CheckpointError::HeaderBeyondFile { file: file(), length, file_bytes });
    };
    if json.first() != Some(&b'{') {
        let first = json.first().map_or("nothing".to_owned(), |&byte| format!("byte 0x{byte:02x}"));
        return Err(CheckpointError::HeaderStart { file: file(), first });
    }
    let json = std::str::from_utf8(json)
        .map_err(|error| CheckpointError::HeaderNotUtf8 { file: file(), offset: error.valid_up_to() })?;
    let Reader { mut tensors, metadata, .. } = Reader::read(path, json)?;
    check_names(path, &tensors)?;
    for tensor in &tensors {
        check_size(path, tensor)?;
    }
    tensors.sort_by_key(|tensor| tensor.offsets);
    let data_start = LENGTH_BYTES as u64 + length;
    check_coverage(path, &tensors, data_start, file_bytes - data_start)?;
    let tensors = tensors.into_iter().map(|tensor| tensor.placed(data_start)).collect();
    Ok(Header { tensors, metadata: metadata.unwrap_or_default() })
}

/// A tensor as listed: `offsets` from the start of the data.
struct Listed {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    offsets: (u64, u64),
}

impl Listed {
    fn placed(self, data_start: u64) -> HeaderTensor {
        let Self { name, dtype, shape, offsets: (begin, end) } = self;
        HeaderTensor { name, dtype, shape, offset: data_start + begin, bytes: end - begin }
    }
}

fn check_names(path: &Path, tensors: &[Listed]) -> Result<(), CheckpointError> {
    let mut names = HashSet::with_capacity(tensors.len());
    match tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        Some(twice) => Err(CheckpointError::DuplicateTensor { file: path.to_owned(), tensor: twice.name.clone() }),
        None => Ok(()),
    }
}

/// The element type and the shape must account for exactly the bytes between the offsets.
fn check_size(path: &Path, listed: &Listed) -> Result<(), CheckpointError> {
    let dtype = listed.dtype;
    let (begin, end) = listed.offsets;
    // Nothing is copied unless there is something to say: there may be hundreds of thousands of tensors.
    let named = || (path.to_owned(), listed.name.clone(), listed.shape.clone());
    if begin > end {
        let (file, tensor, _) = named();
        return Err(CheckpointError::OffsetsOutOfOrder { file, tensor, begin, end });
    }
    let elements = listed.shape.iter().try_fold(1_u64, |product, &side| product.checked_mul(side as u64));
    let Some(bits) = elements.and_then(|elements| elements.checked_mul(bits_of(dtype) as u64)) else {
        let (file, tensor, shape) = named();
        return Err(CheckpointError::ShapeOverflow { file, tensor, dtype, shape });
    };
    if bits % 8 != 0 {
        let (file, tensor, shape) = named();
        return Err(CheckpointError::PartialByte { file, tensor, dtype, shape, bits });
    }
    if bits / 8 != end - begin {
        let (file, tensor, shape) = named();
        return Err(CheckpointError::WrongBytes { file, tensor, dtype, shape, expected: bits / 8, got: end - begin });
    }
    Ok(())
}

/// The tensors, sorted by offset, must lie one after the other from the first to the last byte of the data.
fn check_coverage(path: &Path, tensors: &[Listed], data_start: u64, data_bytes: u64) -> Result<(), CheckpointError> {
    let mut covered = 0;
    let mut previous = "";
    for tensor in tensors {
        let (begin, end) = tensor.offsets;
        if begin != covered {
            let (file, tensor) = (path.to_owned(), tensor.name.clone());
            return Err(if end > data_bytes {
                CheckpointError::OffsetsOutOfRange { file, tensor, begin, end, data_bytes }
            } else if begin < covered {
                CheckpointError::Overlap { file, tensor, begin, other: previous.to_owned(), end: covered }
            } else {
                CheckpointError::Hole { file, tensor, begin: covered, end: begin }
            });
        }
        covered = end;
        previous = &tensor.name;
    }
    if let Some(cut) = tensors.iter().find(|tensor| tensor.offsets.1 > data_bytes) {
        return Err(CheckpointError::Truncated {
            file: path.to_owned(),
            tensor: cut.name.clone(),
            expected: data_start.saturating_add(covered),
            got: data_start + data_bytes,
        });
    }
    if covered < data_bytes {
        let (file, trailing) = (path.to_owned(), data_bytes - covered);
        return Err(CheckpointError::TrailingBytes { file, covered, data_bytes, trailing });
    }
    Ok(())
}

/// What is gathered while the JSON is read. A defect of the format goes to `defect` with all that is known of it, since
/// the JSON reader's own errors are only text.
struct Reader<'a> {
    path: &'a Path,
    tensors: Vec<Listed>,
    metadata: Option<BTreeMap<String, String>>,
    entry: Option<String>,
    defect: RefCell<Option<CheckpointError>>,
}

impl<'a> Reader<'a> {
    fn read(path: &'a Path, json: &str) -> Result<Self, CheckpointError> {
        let defect = RefCell::new(None);
        let mut reader = Self { path, tensors: Vec::new(), metadata: None, entry: None, defect };
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let result = deserializer.deserialize_map(&mut reader).and_then(|()| deserializer.end());
        let Err(error) = result else { return Ok(reader) };
        if let Some(defect) = reader.defect.take() {
            return Err(defect);
        }
        let (file, message) = (path.to_owned(), error.to_string());
        Err(match reader.entry {
            Some(tensor) if error.is_data() => CheckpointError::WrongEntry { file, tensor, message },
            _ => CheckpointError::HeaderNotJson { file, message },
        })
    }

    fn stopped_at<E>(&mut self, entry: String, error: E) -> E {
        self.entry = Some(entry);
        error
    }

    fn refuse<E: Error>(&self, defect: CheckpointError) -> E {
        self.defect.replace(Some(defect));
        E::custom("refused")
    }
}

impl<'de> Visitor<'de> for &mut Reader<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if self.metadata.is_some() {
                    let (file, key) = (self.path.to_owned(), METADATA.to_owned());
                    return Err(self.refuse(CheckpointError::DuplicateKey { file, key }));
                }
                match map.next_value_seed(MetadataSeed(self)) {
                    Ok(metadata) => self.metadata = Some(metadata),
                    Err(error) => return Err(self.stopped_at(name, error)),
                }
            } else {
                match map.next_value_seed(TensorSeed { reader: self, name: &name }) {
                    Ok((dtype, shape, offsets)) => self.tensors.push(Listed { name, dtype, shape, offsets }),
                    Err(error) => return Err(self.stopped_at(name, error)),
                }
            }
        }
        Ok(())
    }
}

struct MetadataSeed<'a>(&'a Reader<'a>);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if entries.contains_key(&key) {
                let file = self.0.path.to_owned();
                return Err(self.0.refuse(CheckpointError::DuplicateKey { file, key }));
            }
            let value = map.next_value::<String>().inspect_err(|error| {
                if self.0.defect.borrow().is_none() {
                    let (file, key, message) = (self.0.path.to_owned(), key.clone(), error.to_string());
                    self.0.defect.replace(Some(CheckpointError::MetadataNotText { file, key, message }));
                }
            })?;
            entries.insert(key, value);
        }
        Ok(entries)
    }
}

/// Reads one tensor's entry.
struct TensorSeed<'a> {
    reader: &'a Reader<'a>,
    name: &'a str,
}

impl TensorSeed<'_> {
    fn field_twice<E: Error>(&self, field: &'static str) -> E {
        let (file, tensor) = (self.reader.path.to_owned(), self.name.to_owned());
        self.reader.refuse(CheckpointError::DuplicateField { file, tensor, field })
    }

    fn field<E: Error, T>(&self, value: Option<T>, field: &'static str) -> Result<T, E> {
        let (file, tensor) = (self.reader.path, self.name);
        value.ok_or_else(|| {
            let (file, tensor) = (file.to_owned(), tensor.to_owned());
            self.reader.refuse(CheckpointError::MissingField { file, tensor, field })
        })
    }
}

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = (Dtype, Vec<usize>, (u64, u64));

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = (Dtype, Vec<usize>, (u64, u64));

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Dtype if dtype.is_some() => return Err(self.field_twice("dtype")),
                Field::Shape if shape.is_some() => return Err(self.field_twice("shape")),
                Field::Offsets if offsets.is_some() => return Err(self.field_twice("data_offsets")),
                Field::Dtype => {
                    let DtypeText(found) = map.next_value()?;
                    dtype = Some(found.map_err(|dtype| {
                        let (file, tensor) = (self.reader.path.to_owned(), self.name.to_owned());
                        self.reader.refuse(CheckpointError::UnknownDtype { file, tensor, dtype })
                    })?);
                }
                Field::Shape => shape = Some(map.next_value_seed(Numbers::<usize>::new(MAXIMUM_RANK, "a shape"))?),
                Field::Offsets => {
                    let found = map.next_value_seed(Numbers::<u64>::new(2, "two offsets"))?;
                    let [begin, end] = found[..] else {
                        return Err(A::Error::invalid_length(found.len(), &"two offsets"));
                    };
                    offsets = Some((begin, end));
                }
                Field::Unknown(field) => {
                    let (file, tensor) = (self.reader.path.to_owned(), self.name.to_owned());
                    return Err(self.reader.refuse(CheckpointError::UnknownField { file, tensor, field }));
                }
            }
        }
        Ok((self.field(dtype, "dtype")?, self.field(shape, "shape")?, self.field(offsets, "data_offsets")?))
    }
}

enum Field {
    Dtype,
    Shape,
    Offsets,
    Unknown(String),
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Field;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a field name")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Field, E> {
                Ok(match text {
                    "dtype" => Field::Dtype,
                    "shape" => Field::Shape,
                    "data_offsets" => Field::Offsets,
                    unknown => Field::Unknown(unknown.to_owned()),
                })
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A type's name, or the text that is none.
struct DtypeText(Result<Dtype, String>);

impl<'de> Deserialize<'de> for DtypeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = DtypeText;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the name of an element type")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<DtypeText, E> {
                let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
                Ok(DtypeText(Dtype::deserialize(name).map_err(|_| text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A list of at most `most` whole numbers: a longer one is refused before it costs memory.
struct Numbers<T> {
    most: usize,
    what: &'static str,
    element: std::marker::PhantomData<T>,
}

impl<T> Numbers<T> {
    fn new(most: usize, what: &'static str) -> Self {
        Self { most, what, element: std::marker::PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Numbers<T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Numbers<T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of at most {} whole numbers", self.what, self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = sequence.next_element()? {
            if numbers.len() == self.most {
                return Err(A::Error::invalid_length(self.most + 1, &self));
            }
            numbers.push(number);
        }
        Ok(numbers)
    }
}
