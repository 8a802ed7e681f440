//! Keeps a checkpoint's files inside its folder: links may lead out of it only into a hub cache's own blobs.

use std::path::{Path, PathBuf};

use super::CheckpointError;

/// Where the files of one checkpoint may lie.
pub(super) struct Confinement {
    folder: PathBuf,
    /// The folder with links followed.
    root: PathBuf,
    /// `CACHE/blobs` where the folder is `CACHE/snapshots/REVISION`, and only if it is a real folder itself: a link
    /// there could lead anywhere.
    blobs: Option<PathBuf>,
}

impl Confinement {
    pub(super) fn new(folder: &Path) -> Result<Self, CheckpointError> {
        let root = folder.canonicalize().map_err(|source| CheckpointError::Io {
            doing: "resolve",
            path: folder.to_owned(),
            source,
        })?;
        let blobs = root
            .parent()
            .filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))
            .and_then(Path::parent)
            .map(|cache| cache.join("blobs"))
            .filter(|blobs| blobs.canonicalize().is_ok_and(|canonical| canonical == *blobs));
        Ok(Self { folder: folder.to_owned(), root, blobs })
    }

    /// The folder as named by the user.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Checks that an existing path of the folder does not lead out of it.
    pub(super) fn check(&self, path: &Path) -> Result<(), CheckpointError> {
        let target = path.canonicalize().map_err(|source| {
            let link = path.to_owned();
            match (source.kind(), std::fs::read_link(path)) {
                (std::io::ErrorKind::NotFound, Ok(target)) => CheckpointError::LinkBroken { link, target },
                _ => CheckpointError::Io { doing: "resolve", path: link, source },
            }
        })?;
        let inside =
            target.starts_with(&self.root) || self.blobs.as_ref().is_some_and(|blobs| target.starts_with(blobs));
        if inside { Ok(()) } else { Err(CheckpointError::LinkOutside { link: path.to_owned(), target }) }
    }
}

/// Whether there is a directory entry, be it a link to nothing.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
