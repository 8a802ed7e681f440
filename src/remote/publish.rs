//! An artifact goes to an object store: file by file, the manifest last, continued where an earlier upload broke off.
//!
//! The artifact grows in a folder of this machine as any other does. Beside that lies a journal of what was begun and
//! what is there, so that a second run uploads only the rest and tells its own objects from foreign ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{BLOCK_BYTES, Location, Object, RemoteError, store::Store};
use crate::manifest::{FILE_NAME, RUN_LOG_NAME};

/// Written last, in this order: who finds the manifest finds all of the artifact.
const LAST: [&str; 3] = ["config.json", RUN_LOG_NAME, FILE_NAME];

/// A target in an object store.
#[derive(Debug)]
pub struct Target {
    location: Location,
    store: Arc<Store>,
    local: PathBuf,
}

/// What stands at a target.
#[derive(Debug)]
pub enum Standing {
    /// Nothing, or what an unfinished upload of this target left.
    Free,
    /// An artifact; its manifest and run log lie in this folder.
    Artifact(TempDir),
}

/// What an upload did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// Objects written now.
    pub written: usize,
    /// Objects that an earlier upload had written.
    pub kept: usize,
    /// Bytes written now.
    pub bytes: u64,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// The artifact that the lines below are of: the hash of its manifest.
    Artifact(String),
    /// The object is about to be written, or is of an artifact that is about to be replaced.
    Begun(String),
    /// The object is there.
    Done { name: String, bytes: u64, hash: String, e_tag: Option<String> },
}

/// Where an artifact for `out` grows on this machine; none where `out` is no location in a store, or the environment
/// names no folder.
#[must_use]
pub fn staging_folder(out: &Path) -> Option<PathBuf> {
    let location = Location::of(out).ok().flatten()?;
    let below = |name: &str, path: &str| {
        env::var_os(name).filter(|value| !value.is_empty()).map(|it| Path::new(&it).join(path))
    };
    let base = below("BANTAM_STAGING", "")
        .or_else(|| below("XDG_CACHE_HOME", "bantam/staging"))
        .or_else(|| below("HOME", ".cache/bantam/staging"))?;
    let hash = blake3::hash(location.to_string().as_bytes()).to_hex();
    Some(base.join(format!("{}-{}", &hash[..16], location.name())))
}

impl Target {
    /// The target that `out` names; none where it is a folder.
    ///
    /// # Errors
    /// [`RemoteError`] for a malformed location, or an environment that does not say how to reach it.
    pub fn open(out: &Path) -> Result<Option<Self>, RemoteError> {
        let Some(location) = Location::of(out)? else { return Ok(None) };
        let local = staging_folder(out).ok_or(RemoteError::NoStaging)?;
        Ok(Some(Self { store: Store::open(&location)?, location, local }))
    }

    /// Where the artifact grows on this machine.
    #[must_use]
    pub fn local(&self) -> &Path {
        &self.local
    }

    /// What stands there.
    ///
    /// # Errors
    /// [`RemoteError::Foreign`] for objects that are neither an artifact nor left by an upload of this machine.
    pub fn standing(&self) -> Result<Standing, RemoteError> {
        let objects = self.store.list()?;
        if objects.iter().any(|object| object.name == FILE_NAME) {
            let folder = tempfile::tempdir().map_err(RemoteError::disk("make a folder in", env::temp_dir()))?;
            for object in objects.iter().filter(|object| [FILE_NAME, RUN_LOG_NAME].contains(&&*object.name)) {
                let path = folder.path().join(&object.name);
                let mut file = File::create(&path).map_err(RemoteError::disk("create", &path))?;
                for start in (0..object.bytes).step_by(BLOCK_BYTES as usize) {
                    let bytes = self.store.read(object, start..object.bytes.min(start + BLOCK_BYTES))?;
                    file.write_all(&bytes).map_err(RemoteError::disk("write", &path))?;
                }
            }
            return Ok(Standing::Artifact(folder));
        }
        let begun: BTreeSet<String> = self.journal().into_iter().filter_map(Line::begun).collect();
        match objects.into_iter().find(|object| !begun.contains(&object.name)) {
            Some(Object { name, .. }) => Err(RemoteError::Foreign { url: self.location.to_string(), name }),
            None => Ok(Standing::Free),
        }
    }

    /// Uploads the finished artifact and removes it from this machine. `replace` removes an artifact that stands there:
    /// its manifest first, what is not overwritten last. `progress` is told the bytes done and in all.
    ///
    /// # Errors
    /// [`RemoteError`]; the same call continues.
    pub fn upload(&self, replace: bool, progress: &dyn Fn(u64, u64)) -> Result<Uploaded, RemoteError> {
        let files = self.files()?;
        let there: BTreeMap<String, Object> =
            self.store.list()?.into_iter().map(|object| (object.name.clone(), object)).collect();
        let artifact = hash(&self.local.join(FILE_NAME))?;
        let known = self.journal();
        let same = known.contains(&Line::Artifact(artifact.clone()));
        let mut journal = self.open_journal()?;
        if !same {
            write_line(&mut journal, &self.journal_path(), &Line::Artifact(artifact))?;
        }
        if replace && there.contains_key(FILE_NAME) {
            for name in there.keys() {
                write_line(&mut journal, &self.journal_path(), &Line::Begun(name.clone()))?;
            }
            self.store.delete(FILE_NAME)?;
        }
        let total = files.iter().map(|(_, bytes)| bytes).sum();
        let (mut done, mut uploaded) = (0, Uploaded::default());
        for (name, bytes) in &files {
            progress(done, total);
            done += bytes;
            let path = self.local.join(name);
            let hash = hash(&path)?;
            let line = |e_tag| Line::Done { name: name.clone(), bytes: *bytes, hash: hash.clone(), e_tag };
            let stands = there.get(name).filter(|object| object.bytes == *bytes);
            if stands.is_some_and(|object| known.contains(&line(object.e_tag.clone()))) && name != FILE_NAME {
                uploaded.kept += 1;
                continue;
            }
            write_line(&mut journal, &self.journal_path(), &Line::Begun(name.clone()))?;
            let e_tag = self.store.write_file(name, &path)?;
            write_line(&mut journal, &self.journal_path(), &line(e_tag))?;
            uploaded.written += 1;
            uploaded.bytes += bytes;
        }
        progress(total, total);
        let stale = there.keys().filter(|name| !files.iter().any(|(file, _)| file == *name));
        stale.into_iter().try_for_each(|name| self.store.delete(name))?;
        fs::remove_dir_all(&self.local).map_err(RemoteError::disk("remove", &self.local))?;
        fs::remove_file(self.journal_path()).map_err(RemoteError::disk("remove", self.journal_path()))?;
        Ok(uploaded)
    }

    /// The artifact's files and their lengths, weights first, the manifest last.
    fn files(&self) -> Result<Vec<(String, u64)>, RemoteError> {
        let disk = || RemoteError::disk("read folder", &self.local);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.local).map_err(disk())? {
            let entry = entry.map_err(disk())?;
            let bytes = entry.metadata().map_err(disk())?.len();
            files.push((entry.file_name().to_string_lossy().into_owned(), bytes));
        }
        let rank = |name: &str| {
            let last = LAST.iter().position(|last| *last == name);
            (last.map_or(0, |place| place + 1), !name.ends_with(".safetensors"))
        };
        files.sort_by(|(a, _), (b, _)| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));
        Ok(files)
    }

    fn journal_path(&self) -> PathBuf {
        self.local.with_extension("uploaded")
    }

    /// What is recorded; a last line that is half written is nothing.
    fn journal(&self) -> Vec<Line> {
        let text = fs::read_to_string(self.journal_path()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn open_journal(&self) -> Result<File, RemoteError> {
        let path = self.journal_path();
        OpenOptions::new().create(true).append(true).open(&path).map_err(RemoteError::disk("open", path))
    }
}

impl Line {
    fn begun(self) -> Option<String> {
        match self {
            Self::Begun(name) | Self::Done { name, .. } => Some(name),
            Self::Artifact(_) => None,
        }
    }
}

/// Behind a line break, which ends a line that an earlier run left half written.
fn write_line(journal: &mut File, path: &Path, line: &Line) -> Result<(), RemoteError> {
    let text = serde_json::to_string(line).unwrap_or_default();
    let written = journal.write_all(format!("\n{text}").as_bytes()).and_then(|()| journal.sync_data());
    written.map_err(RemoteError::disk("write", path))
}

fn hash(path: &Path) -> Result<String, RemoteError> {
    let mut hasher = blake3::Hasher::new();
    let read = File::open(path).and_then(|file| hasher.update_reader(file).map(|hasher| hasher.finalize()));
    read.map(|hash| hash.to_hex().to_string()).map_err(RemoteError::disk("read", path))
}
