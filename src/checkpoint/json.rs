//! JSON files beside the weights: read up to a cap, every key once.

use std::{cell::RefCell, collections::BTreeMap, fmt, io::Read, marker::PhantomData, path::Path};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::CheckpointError;

/// Reads a regular file of UTF-8 text of at most `cap` bytes.
pub(super) fn read_text(path: &Path, cap: u64) -> Result<String, CheckpointError> {
    let io = |source| CheckpointError::Io { doing: "read", path: path.to_owned(), source };
    let facts = std::fs::metadata(path).map_err(io)?;
    if !facts.is_file() {
        return Err(CheckpointError::NotAFile { path: path.to_owned() });
    }
    if facts.len() > cap {
        return Err(CheckpointError::TooLarge { file: path.to_owned(), bytes: facts.len(), cap });
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(cap).read_to_end(&mut bytes).map_err(io)?;
    String::from_utf8(bytes).map_err(|error| {
        let message = format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to());
        CheckpointError::Json { file: path.to_owned(), message }
    })
}

/// Where keys that stand twice are put by the readers below: the JSON reader's own errors are only text.
pub(super) type Twice = RefCell<Option<String>>;

/// Reads all of `text` with `seed`, which reports keys that stand twice in `twice`.
pub(super) fn parse<'de, S: DeserializeSeed<'de>>(
    path: &Path,
    text: &'de str,
    twice: &Twice,
    seed: S,
) -> Result<S::Value, CheckpointError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let result = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    result.map_err(|error| match twice.take() {
        Some(key) => CheckpointError::JsonKeyTwice { file: path.to_owned(), key },
        None => CheckpointError::Json { file: path.to_owned(), message: format!("not as expected: {error}") },
    })
}

/// An object whose keys all differ, with values of one type.
pub(super) struct UniqueObject<'a, V> {
    twice: &'a Twice,
    value: PhantomData<V>,
}

impl<'a, V> UniqueObject<'a, V> {
    pub(super) fn new(twice: &'a Twice) -> Self {
        Self { twice, value: PhantomData }
    }
}

impl<'de, V: Deserialize<'de>> DeserializeSeed<'de> for UniqueObject<'_, V> {
    type Value = BTreeMap<String, V>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueObject<'_, V> {
    type Value = BTreeMap<String, V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if entries.contains_key(&key) {
                self.twice.replace(Some(key));
                return Err(A::Error::custom("a key stands twice"));
            }
            let value = map.next_value()?;
            entries.insert(key, value);
        }
        Ok(entries)
    }
}
