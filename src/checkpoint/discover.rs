//! Finds the weight files of a checkpoint.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{
    CheckpointError,
    confine::{Confinement, exists},
    index::{INDEX_NAME, Index},
    small_files::file_names,
};

const WHOLE_NAME: &str = "model.safetensors";

/// The weight files of a checkpoint.
pub(super) struct Found {
    /// The folder, and what may be read of it.
    pub(super) confinement: Confinement,
    /// Paths, sorted by name.
    pub(super) files: Vec<PathBuf>,
    /// The index, where the files were found through one.
    pub(super) index: Option<Index>,
    /// Whether the path names a file, not the folder.
    pub(super) single: bool,
}

/// Finds the files of `path`. A path that the user names may be or pass through any link; only what is found from there
/// on is confined to the folder.
pub(super) fn discover(path: &Path) -> Result<Found, CheckpointError> {
    let facts = std::fs::metadata(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => CheckpointError::Missing { path: path.to_owned() },
        _ => CheckpointError::Io { doing: "read", path: path.to_owned(), source },
    })?;
    if facts.is_dir() {
        return in_folder(path);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if is_pickle(&name) {
        return Err(CheckpointError::Pickle { file: path.to_owned() });
    }
    if !is_safetensors(&name) && !is_gguf(&name) {
        return Err(CheckpointError::NotSafetensors { path: path.to_owned() });
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Found { confinement: Confinement::new(folder)?, files: vec![path.to_owned()], index: None, single: true })
}

/// One `model.safetensors` goes before an index, as in transformers; without either, every safetensors file is a shard.
fn in_folder(folder: &Path) -> Result<Found, CheckpointError> {
    let confinement = Confinement::new(folder)?;
    let (whole, index_path) = (folder.join(WHOLE_NAME), folder.join(INDEX_NAME));
    let index = if exists(&index_path) {
        confinement.check(&index_path)?;
        Some(Index::read(&index_path)?)
    } else {
        None
    };
    let (files, index) = match (exists(&whole), index) {
        (true, Some(index)) if index.weight_map.values().any(|file| file != WHOLE_NAME) => {
            // An index left over from before the shards were merged is harmless; shards that are still there are not.
            if let Some(file) = index.weight_map.values().find(|file| *file != WHOLE_NAME && exists(&folder.join(file)))
            {
                return Err(CheckpointError::Ambiguous { folder: folder.to_owned(), file: file.clone() });
            }
            (vec![whole], None)
        }
        (true, index) => (vec![whole], index),
        (false, Some(index)) => (indexed_files(folder, &index)?, Some(index)),
        (false, None) => (unindexed_files(folder)?, None),
    };
    for file in &files {
        confinement.check(file)?;
    }
    Ok(Found { confinement, files, index, single: false })
}

fn indexed_files(folder: &Path, index: &Index) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut files = BTreeSet::new();
    for (tensor, file) in &index.weight_map {
        let path = folder.join(file);
        if files.contains(&path) {
            continue;
        }
        if !exists(&path) {
            let (index, file, tensor) = (index.path.clone(), file.clone(), tensor.clone());
            return Err(CheckpointError::IndexedFileMissing { index, file, tensor });
        }
        files.insert(path);
    }
    Ok(files.into_iter().collect())
}

fn unindexed_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let names = file_names(folder)?;
    let shards: Vec<&String> = names.iter().filter(|name| is_safetensors(name)).collect();
    if shards.is_empty() {
        let mut gguf = names.iter().filter(|name| is_gguf(name));
        match (gguf.next(), gguf.next()) {
            (Some(one), None) => return Ok(vec![folder.join(one)]),
            (Some(first), Some(second)) => {
                let (folder, first, second) = (folder.to_owned(), first.clone(), second.clone());
                return Err(CheckpointError::SeveralGguf { folder, first, second });
            }
            _ => {}
        }
        return Err(match names.iter().find(|name| is_pickle(name) || name.ends_with(".bin.index.json")) {
            Some(name) => CheckpointError::Pickle { file: folder.join(name) },
            None => CheckpointError::NoWeights { folder: folder.to_owned() },
        });
    }
    check_complete(folder, &shards)?;
    Ok(shards.into_iter().map(|name| folder.join(name)).collect())
}

/// Without an index only the names `…-00001-of-00003.safetensors` tell that a shard is missing.
fn check_complete(folder: &Path, shards: &[&String]) -> Result<(), CheckpointError> {
    for shard in shards {
        let Some((stem, digits, expected)) = shard_number(shard) else { continue };
        let name = |number: usize| format!("{stem}-{number:0digits$}-of-{expected:0digits$}.safetensors");
        let is_there = |number: &usize| shards.binary_search(&&name(*number)).is_ok();
        // A hostile count must not cost time: more shards than files are missing one among the first of them.
        if let Some(missing) = (1..=expected).take(shards.len() + 1).find(|number| !is_there(number)) {
            let found = shards.iter().filter(|other| shard_number(other) == Some((stem, digits, expected))).count();
            let (folder, file, missing) = (folder.to_owned(), (*shard).clone(), name(missing));
            return Err(CheckpointError::ShardMissing { folder, file, missing, found, expected });
        }
    }
    Ok(())
}

/// Stem, digits and total of `STEM-00001-of-00003.safetensors`.
fn shard_number(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(number) || !all_digits(total) || number.len() != total.len() {
        return None;
    }
    number.parse::<usize>().ok()?;
    Some((stem, total.len(), total.parse().ok()?))
}

fn is_safetensors(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "safetensors")
}

pub(super) fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "gguf")
}

fn is_pickle(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    matches!(extension, "bin" | "pt" | "pth" | "ckpt")
}
