//! `model.safetensors.index.json`: which shard holds which tensor.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Component, Path, PathBuf},
};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::{
    CheckpointError, SourceFile, TensorEntry,
    json::{self, Twice, UniqueObject},
};

/// The name that every writer gives it.
pub(super) const INDEX_NAME: &str = "model.safetensors.index.json";
/// An index of millions of tensors stays below this many bytes.
const INDEX_CAP_BYTES: u64 = 256 << 20;

/// An index, checked: every file is a plain relative path of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Where it was read from.
    pub path: PathBuf,
    /// Tensor to file, relative to the index.
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        Self::parse(path, &json::read_text(path, INDEX_CAP_BYTES)?)
    }

    /// Reads the text of an index; `path` is for messages only.
    ///
    /// # Errors
    /// [`CheckpointError`] when it is not JSON, a key stands twice, it names no tensor, or it names a file that is not
    /// safetensors or not inside the folder.
    pub fn parse(path: &Path, text: &str) -> Result<Self, CheckpointError> {
        let twice = Twice::default();
        let weight_map = json::parse(path, text, &twice, IndexSeed(&twice))?;
        if weight_map.is_empty() {
            let message = "`weight_map` names no tensor".to_owned();
            return Err(CheckpointError::Json { file: path.to_owned(), message });
        }
        for (tensor, file) in &weight_map {
            let (index, file, tensor) = (path.to_owned(), file.clone(), tensor.clone());
            if !is_inside(Path::new(&file)) {
                return Err(CheckpointError::IndexedFileOutside { index, file, tensor });
            }
            if Path::new(&file).extension().is_none_or(|extension| extension != "safetensors") {
                return Err(CheckpointError::IndexedFileFormat { index, file, tensor });
            }
        }
        Ok(Self { path: path.to_owned(), weight_map })
    }

    /// Checks that the index and the files say the same of every tensor, both ways.
    pub(super) fn check(
        &self,
        root: &Path,
        tensors: &BTreeMap<String, TensorEntry>,
        files: &[SourceFile],
    ) -> Result<(), CheckpointError> {
        for (tensor, file) in &self.weight_map {
            if tensors.get(tensor).is_none_or(|entry| files[entry.file].path != root.join(file)) {
                let (index, file, tensor) = (self.path.clone(), file.clone(), tensor.clone());
                return Err(CheckpointError::IndexedTensorMissing { index, file, tensor });
            }
        }
        match tensors.values().find(|entry| !self.weight_map.contains_key(&entry.name)) {
            Some(entry) => {
                let (file, tensor) = (files[entry.file].path.clone(), entry.name.clone());
                Err(CheckpointError::NotIndexed { index: self.path.clone(), file, tensor })
            }
            None => Ok(()),
        }
    }
}

/// Whether a relative path stays below where it starts, by its text alone.
fn is_inside(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Reads an index and yields its `weight_map`.
struct IndexSeed<'a>(&'a Twice);

impl<'de> DeserializeSeed<'de> for IndexSeed<'_> {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IndexSeed<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut others = BTreeMap::new();
        let mut weight_map = None;
        while let Some(key) = map.next_key::<String>()? {
            let is_map = key == "weight_map";
            if others.contains_key(&key) || (is_map && weight_map.is_some()) {
                self.0.replace(Some(key));
                return Err(A::Error::custom("a key stands twice"));
            }
            if is_map {
                weight_map = Some(map.next_value_seed(UniqueObject::new(self.0))?);
            } else {
                others.insert(key, map.next_value::<IgnoredAny>()?);
            }
        }
        weight_map.ok_or_else(|| A::Error::missing_field("weight_map"))
    }
}
