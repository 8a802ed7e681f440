//! Finds the files of a checkpoint and refuses paths that leave it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Read,
    path::{Component, Path, PathBuf},
};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::{CheckpointError, Config};

/// Small files are read whole only up to this many bytes.
const SMALL_FILE_CAP_BYTES: u64 = 64 << 20;
/// An index of millions of tensors stays below this many bytes.
const INDEX_CAP_BYTES: u64 = 256 << 20;
const INDEX_NAME: &str = "model.safetensors.index.json";

/// The weight files of a checkpoint.
pub(super) struct Found {
    /// The folder.
    pub(super) root: PathBuf,
    /// Paths, sorted by name.
    pub(super) files: Vec<PathBuf>,
    /// The index: its path, and tensor to file name.
    pub(super) index: Option<(PathBuf, BTreeMap<String, String>)>,
}

pub(super) fn discover(path: &Path) -> Result<Found, CheckpointError> {
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => CheckpointError::Missing { path: path.to_owned() },
        _ => CheckpointError::Io { doing: "read", path: path.to_owned(), source },
    })?;
    if metadata.is_dir() {
        return in_folder(path);
    }
    if path.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(CheckpointError::NotSafetensors { path: path.to_owned() });
    }
    let root = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Found { root: root.to_owned(), files: vec![path.to_owned()], index: None })
}

fn in_folder(folder: &Path) -> Result<Found, CheckpointError> {
    let root = folder.to_owned();
    let whole = folder.join("model.safetensors");
    if whole.exists() {
        require_inside(folder, &whole, folder, "model.safetensors")?;
        return Ok(Found { root, files: vec![whole], index: None });
    }
    let index_path = folder.join(INDEX_NAME);
    if index_path.exists() {
        require_inside(folder, &index_path, folder, INDEX_NAME)?;
        let map = read_index(&index_path)?;
        let mut files = BTreeSet::new();
        for (tensor, name) in &map {
            if !files.contains(&folder.join(name)) {
                files.insert(indexed_file(folder, &index_path, tensor, name)?);
            }
        }
        return Ok(Found { root, files: files.into_iter().collect(), index: Some((index_path, map)) });
    }
    let names = file_names(folder)?;
    let files: Vec<PathBuf> =
        names.iter().filter(|name| name.ends_with(".safetensors")).map(|name| folder.join(name)).collect();
    for (path, name) in files.iter().zip(names.iter().filter(|name| name.ends_with(".safetensors"))) {
        require_inside(folder, path, folder, name)?;
    }
    if !files.is_empty() {
        return Ok(Found { root, files, index: None });
    }
    let pickle = names.iter().find(|name| {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("bin" | "pt" | "pth" | "ckpt"))
    });
    Err(match pickle {
        Some(file) => CheckpointError::Pickle { folder: root, file: file.clone() },
        None => CheckpointError::NoWeights { folder: root },
    })
}

fn indexed_file(folder: &Path, index: &Path, tensor: &str, name: &str) -> Result<PathBuf, CheckpointError> {
    let relative = Path::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_))) && !name.is_empty();
    if !plain || relative.is_absolute() {
        return Err(CheckpointError::Outside { from: index.to_owned(), name: name.to_owned() });
    }
    let path = folder.join(relative);
    if !path.is_file() {
        let (index, file, tensor) = (index.to_owned(), name.to_owned(), tensor.to_owned());
        return Err(CheckpointError::IndexedFileMissing { index, file, tensor });
    }
    require_inside(folder, &path, index, name)?;
    Ok(path)
}

/// A file may be a link only to inside its folder, or, in a hub cache (`…/snapshots/REVISION/`), to the cache's blobs.
fn require_inside(folder: &Path, path: &Path, from: &Path, name: &str) -> Result<(), CheckpointError> {
    let canonical = |path: &Path| {
        path.canonicalize().map_err(|source| CheckpointError::Io { doing: "resolve", path: path.to_owned(), source })
    };
    let (root, target) = (canonical(folder)?, canonical(path)?);
    let blobs = root
        .parent()
        .filter(|parent| parent.ends_with("snapshots"))
        .and_then(Path::parent)
        .map(|cache| cache.join("blobs"));
    if target.starts_with(&root) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(());
    }
    Err(CheckpointError::Outside { from: from.to_owned(), name: name.to_owned() })
}

/// Names of the regular files (links followed) of a folder, sorted.
pub(super) fn file_names(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let io = |source| CheckpointError::Io { doing: "read folder", path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if let (true, Ok(name)) = (entry.path().is_file(), entry.file_name().into_string()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The small files to carry along: everything in the folder itself that is neither weights, nor made anew, nor left over
/// from another quantization. Sub-folders and hidden files stay behind.
pub(super) fn companions(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    const MADE_ANEW: [&str; 7] = [
        "config.json",
        "manifest.json",
        "run.json",
        "quantize_config.json",
        "quant_config.json",
        "hf_quant_config.json",
        "recipe.yaml",
    ];
    const WEIGHTS: [&str; 11] =
        ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "onnx_data", "npz"];
    let mut companions = Vec::new();
    for name in file_names(folder)? {
        let path = folder.join(&name);
        let weights = path.extension().and_then(|e| e.to_str()).is_some_and(|extension| WEIGHTS.contains(&extension));
        if weights || name.starts_with('.') || name.ends_with(".index.json") || MADE_ANEW.contains(&name.as_str()) {
            continue;
        }
        require_inside(folder, &path, folder, &name)?;
        companions.push(path);
    }
    Ok(companions)
}

/// `config.json` of the folder, where there is one.
pub(super) fn config(folder: &Path) -> Result<Option<Config>, CheckpointError> {
    let path = folder.join("config.json");
    if !path.exists() {
        return Ok(None);
    }
    require_inside(folder, &path, folder, "config.json")?;
    let text = read_text(&path, SMALL_FILE_CAP_BYTES)?;
    let wrong = |message: String| CheckpointError::Json { file: path.clone(), message };
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| wrong(format!("not valid JSON: {error}")))?;
    if !value.is_object() {
        return Err(wrong("expected a JSON object".into()));
    }
    serde_json::from_str::<UniqueKeys>(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(Config { text, value }))
}

fn read_text(path: &Path, cap: u64) -> Result<String, CheckpointError> {
    let io = |source| CheckpointError::Io { doing: "read", path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    if bytes > cap {
        return Err(CheckpointError::TooLarge { file: path.to_owned(), bytes, cap });
    }
    let mut text = String::new();
    file.take(cap).read_to_string(&mut text).map_err(io)?;
    Ok(text)
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Entries,
    }
    let text = read_text(path, INDEX_CAP_BYTES)?;
    let wrong = |message: String| CheckpointError::Json { file: path.to_owned(), message };
    let index: Index = serde_json::from_str(&text).map_err(|error| wrong(format!("not a weight index: {error}")))?;
    if index.weight_map.0.is_empty() {
        return Err(wrong("`weight_map` names no tensor".into()));
    }
    Ok(index.weight_map.0)
}

/// A map of strings whose keys are all different.
struct Entries(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        unique_map(deserializer).map(Entries)
    }
}

/// An object whose keys are all different, whatever its values.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        unique_map::<D, serde::de::IgnoredAny>(deserializer).map(|_| Self)
    }
}

fn unique_map<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, V>, D::Error> {
    struct Unique<V>(std::marker::PhantomData<V>);
    impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, V>()? {
                if let Some((key, _)) = entries.get_key_value(&key) {
                    return Err(serde::de::Error::custom(format!("the key `{key}` stands twice")));
                }
                entries.insert(key, value);
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_map(Unique(std::marker::PhantomData))
}
