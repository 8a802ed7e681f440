//! Reading a manifest back, strictly: a key too many, a wrong type or a sum that cannot be is an error.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{FILE_NAME, Manifest, SCHEMA};
use crate::checkpoint::bits_of;

/// Every way in which a manifest can be wrong.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The artifact that it is of cannot be opened.
    #[error(transparent)]
    Artifact(crate::checkpoint::CheckpointError),
    /// It cannot be read from disk.
    #[error("cannot read the manifest {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not JSON, or a key is missing, unknown or of the wrong type.
    #[error("{}:{line}:{column}: {message}{}", path.display(), shown(text))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, 1-based.
        line: usize,
        /// Column, 1-based.
        column: usize,
        /// What was expected and found.
        message: String,
        /// The line's text, which names the key.
        text: String,
    },
    /// It is of a kind or version that this program does not read.
    #[error("{}: key `schema` is `{found}`, this version reads `{SCHEMA}`", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// What stands there.
        found: String,
    },
    /// A value contradicts another.
    #[error("{}: key `{key}`: {message}", path.display())]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: String,
        /// What contradicts what.
        message: String,
    },
    /// The base is not the one that the differences are from.
    #[error("{} is not the base of {}: {message}", base.display(), artifact.display())]
    OtherBase {
        /// The artifact.
        artifact: PathBuf,
        /// What was given as its base.
        base: PathBuf,
        /// Which tensor differs how.
        message: String,
    },
    /// A value cannot be written as JSON.
    #[error("cannot write the manifest, key `{key}`: {message}")]
    Unwritable {
        /// The key, dotted.
        key: String,
        /// Why.
        message: String,
    },
}

/// Longest piece of a line that is shown in an error, in characters.
const SHOWN_CHARACTERS: usize = 100;

fn shown(text: &str) -> String {
    let line: String = text.trim().chars().take(SHOWN_CHARACTERS).collect();
    if line.is_empty() { String::new() } else { format!(" in `{line}`") }
}

impl Manifest {
    /// Reads `manifest.json` of the artifact in `folder`.
    ///
    /// # Errors
    /// [`ManifestError`], naming the file and the key.
    pub fn read(folder: &Path) -> Result<Self, ManifestError> {
        let path = folder.join(FILE_NAME);
        let text =
            fs::read_to_string(&path).map_err(|source| ManifestError::Unreadable { path: path.clone(), source })?;
        Self::parse(&text, &path)
    }

    /// Reads a manifest's text; `path` is for messages.
    ///
    /// # Errors
    /// [`ManifestError`], naming the file and the key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ManifestError> {
        let malformed = |error: &serde_json::Error| {
            let message = error.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what).to_owned();
            let (line, column) = (error.line(), error.column());
            let text = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().to_owned();
            ManifestError::Malformed { path: path.to_owned(), line, column, message, text }
        };
        // The schema comes first: of another version, no other key can be judged.
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        if let Some(found) = value.get("schema").filter(|schema| schema.as_str() != Some(SCHEMA)) {
            let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
            return Err(ManifestError::Schema { path: path.to_owned(), found });
        }
        let manifest: Self = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        manifest.check().map_err(|(key, message)| ManifestError::Inconsistent {
            path: path.to_owned(),
            key,
            message,
        })?;
        Ok(manifest)
    }

    /// Finds the first key that contradicts another one.
    fn check(&self) -> Result<(), (String, String)> {
        let sized = |key: String, dtype, shape: &[usize], bytes: u64| {
            let elements = shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n as u64));
            let expected = elements.and_then(|n| n.checked_mul(bits_of(dtype) as u64)).map(|bits| bits.div_ceil(8));
            if expected == Some(bytes) {
                return Ok(());
            }
            let expected = expected.map_or_else(|| "more than can be".to_owned(), |n| n.to_string());
            Err((key, format!("{dtype:?} of shape {shape:?} is {expected} bytes, not {bytes}")))
        };
        let merged = self.merged.iter().map(|model| ("merged", model));
        for (list, inputs) in [("base", &self.base), ("inputs", &self.inputs)].into_iter().chain(merged) {
            let mut names = BTreeSet::new();
            for input in inputs {
                let key = format!("{list}.{}", input.name);
                if !names.insert(&input.name) {
                    return Err((key, "stands there twice".into()));
                }
                sized(key, input.dtype, &input.shape, input.bytes)?;
            }
        }
        let mut names = BTreeSet::new();
        let mut parts = BTreeSet::new();
        for tensor in &self.tensors {
            let key = format!("tensors.{}", tensor.name);
            if !names.insert(&tensor.name) {
                return Err((key, "stands there twice".into()));
            }
            for part in &tensor.parts {
                let key = format!("{key}.parts.{}", part.name);
                if !parts.insert(&part.name) {
                    return Err((key, "stands there twice".into()));
                }
                sized(key, part.dtype, &part.shape, part.bytes)?;
            }
        }
        let mut names = BTreeSet::new();
        for file in &self.files {
            let key = format!("files.{}", file.name);
            if !names.insert(&file.name) {
                return Err((key, "stands there twice".into()));
            }
            if Path::new(&file.name).components().count() != 1 || file.name == ".." || file.name == "." {
                return Err((key, "is not a plain file name".into()));
            }
        }
        Ok(())
    }
}
