//! A model in an object store as a reader of checkpoints sees it: its small files in a private folder, beside them a
//! placeholder for each file of weights, whose bytes are fetched by range.
//!
//! So what is right and wrong of a folder (which files are the model, is a shard missing) is decided in one place,
//! wherever the model lies. A placeholder has its object's length and takes no space.

use std::{
    collections::BTreeMap,
    fmt,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;

use super::{
    BLOCK_BYTES, Location, Object, RemoteError,
    cache::{Cache, Objects, Source as _},
    store::Store,
};
use crate::checkpoint::{HEADER_CAP_BYTES, TensorBytes, is_weights};

/// Larger files beside the weights are not the model's.
const SMALL_FILE_BYTES: u64 = 256 << 20;
/// What is read of a file to find its header: enough for most headers.
const HEADER_BYTES: u64 = 128 << 10;

/// A model in a store, open.
pub(crate) struct Mounted {
    folder: TempDir,
    location: Location,
    /// The objects of weights by where their placeholders lie.
    places: BTreeMap<PathBuf, usize>,
    cache: Arc<Cache<Objects>>,
    /// Names, lengths, tags and versions of all objects.
    identity: String,
}

impl fmt::Debug for Mounted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Mounted").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Mounted {
    /// Lists what lies at `location` and fetches its small files; also gives the path to open: the private folder, or a
    /// placeholder where the location names one file.
    pub(crate) fn open(location: &Location) -> Result<(Self, PathBuf), RemoteError> {
        let single =
            location.parent().filter(|(_, name)| Path::new(name).extension().is_some_and(|it| it == "safetensors"));
        let (of, single) = match &single {
            Some((parent, name)) => (parent, Some(*name)),
            None => (location, None),
        };
        let store = Store::open(of)?;
        let listed = store.list()?;
        if single.map_or(listed.is_empty(), |name| !listed.iter().any(|object| object.name == name)) {
            return Err(RemoteError::Missing { url: location.to_string() });
        }
        let folder = tempfile::Builder::new().prefix("bantam-").tempdir();
        let folder = folder.map_err(RemoteError::disk("make a folder in", std::env::temp_dir()))?;
        let (mut identity, mut places, mut weights) = (String::new(), BTreeMap::new(), Vec::new());
        for object in listed {
            let path = folder.path().join(&object.name);
            let nested = object.name.contains('/');
            let is_weights = is_weights(&object.name);
            if object.name.ends_with('/') || (nested && !is_weights) {
                continue;
            }
            // Writing to a String cannot fail.
            let Object { name, bytes, e_tag, version } = &object;
            let _ = writeln!(identity, "{name:?} {bytes} {e_tag:?} {version:?}");
            if let Some(parent) = path.parent().filter(|_| nested) {
                fs::create_dir_all(parent).map_err(RemoteError::disk("make folder", parent))?;
            }
            let mut file = File::create(&path).map_err(RemoteError::disk("create", &path))?;
            if is_weights || object.bytes > SMALL_FILE_BYTES {
                file.set_len(object.bytes).map_err(RemoteError::disk("set the length of", &path))?;
                places.insert(path, weights.len());
                weights.push(object);
                continue;
            }
            for start in (0..object.bytes).step_by(BLOCK_BYTES as usize) {
                let bytes = store.read(&object, start..object.bytes.min(start + BLOCK_BYTES))?;
                file.write_all(&bytes).map_err(RemoteError::disk("write", &path))?;
            }
        }
        let path = single.map_or_else(|| folder.path().to_owned(), |name| folder.path().join(name));
        let cache = Cache::new(Objects { store, objects: weights });
        Ok((Self { folder, location: of.clone(), places, cache, identity }, path))
    }

    /// The number of the object whose placeholder lies at `path`, and its length in bytes.
    pub(crate) fn object(&self, path: &Path) -> Option<(usize, u64)> {
        let object = *self.places.get(path)?;
        Some((object, self.cache.source().bytes(object)))
    }

    /// The first bytes of an object: at least its header, where what says the header's length is right.
    pub(crate) fn header(&self, object: usize) -> Result<Vec<u8>, RemoteError> {
        let source = self.cache.source();
        let bytes = source.bytes(object);
        let mut start = source.read(object, 0..HEADER_BYTES.min(bytes))?;
        if let Some(length) = start.first_chunk::<8>() {
            let end = u64::from_le_bytes(*length).saturating_add(8);
            let had = start.len() as u64;
            if end > had && end <= bytes && end <= HEADER_CAP_BYTES + 8 {
                for from in (had..end).step_by(BLOCK_BYTES as usize) {
                    start.extend(source.read(object, from..end.min(from + BLOCK_BYTES))?);
                }
            }
        }
        Ok(start)
    }

    /// Bytes of an object: a part of one block where they lie in one.
    pub(crate) fn range(&self, object: usize, range: Range<u64>) -> Result<TensorBytes<'static>, RemoteError> {
        let length = (range.end - range.start) as usize;
        let mut blocks = self.cache.blocks(object, range)?;
        if blocks.len() == 1
            && let Some((block, part)) = blocks.pop()
        {
            return Ok(TensorBytes::Block(block, part));
        }
        let mut bytes = Vec::with_capacity(length);
        for (block, part) in blocks {
            bytes.extend_from_slice(&block[part]);
        }
        Ok(TensorBytes::Owned(bytes))
    }

    /// Has a range fetched before it is asked for.
    pub(crate) fn announce(&self, object: usize, range: Range<u64>) {
        self.cache.announce(object, range);
    }

    /// Lets go of what is kept of a range.
    pub(crate) fn release(&self, object: usize, range: Range<u64>) {
        self.cache.release(object, range);
    }

    /// Sets how many bytes are kept of what was fetched.
    pub(crate) fn keep(&self, bytes: u64) {
        self.cache.keep(bytes);
    }

    /// What changes whenever the model does.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// A message about the private folder as one about the location.
    pub(crate) fn told_of_location(&self, message: &str) -> String {
        let url = self.location.to_string();
        let folder = self.folder.path();
        let canonical = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        message.replace(&*canonical.to_string_lossy(), &url).replace(&*folder.to_string_lossy(), &url)
    }
}
