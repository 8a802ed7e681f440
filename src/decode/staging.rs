//! The folder in which the dense model grows before it gets its name.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use super::DecodeError;

/// A work folder beside the target, locked for this process and removed with whatever is left in it.
#[derive(Debug)]
pub(crate) struct Staging {
    work: PathBuf,
    folder: PathBuf,
    // Held until dropped: the lock that keeps a second process out.
    _lock: File,
}

impl Staging {
    /// Makes the work folder, after making sure that the target is free.
    pub(crate) fn open(out: &Path) -> Result<Self, DecodeError> {
        let target_exists = || DecodeError::TargetExists { out: out.to_owned() };
        // The link itself counts, even one that leads nowhere.
        if fs::symlink_metadata(out).is_ok() {
            return Err(target_exists());
        }
        let name = out.file_name().ok_or_else(target_exists)?.to_string_lossy().into_owned();
        let work = out.with_file_name(format!(".{name}.bantam-decode"));
        fs::create_dir_all(&work).map_err(DecodeError::io("make folder", &work))?;
        let lock_path = work.join("lock");
        let lock = File::create(&lock_path).map_err(DecodeError::io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DecodeError::Locked { out: out.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(DecodeError::io("lock", &lock_path)(error)),
        }
        let folder = work.join("model");
        // What a killed process left is of no use: nothing says how much of it was written.
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(DecodeError::io("remove", &folder))?;
        }
        fs::create_dir(&folder).map_err(DecodeError::io("make folder", &folder))?;
        Ok(Self { work, folder, _lock: lock })
    }

    /// The folder that becomes the target.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a small file and syncs it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DecodeError> {
        let path = self.folder.join(name);
        fs::write(&path, bytes).map_err(DecodeError::io("write", &path))?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(DecodeError::io("sync", &path))
    }

    /// Copies a small file of the source.
    pub(crate) fn copy(&self, source: &Path) -> Result<(), DecodeError> {
        let bytes = fs::read(source).map_err(DecodeError::io("read", source))?;
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        self.write(&name, &bytes)
    }

    /// Gives the folder its name.
    pub(crate) fn publish(&self, out: &Path) -> Result<(), DecodeError> {
        let sync = |folder: &Path| {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(DecodeError::io("sync folder", folder))
        };
        sync(&self.folder)?;
        if fs::symlink_metadata(out).is_ok() {
            return Err(DecodeError::TargetExists { out: out.to_owned() });
        }
        fs::rename(&self.folder, out).map_err(DecodeError::io("rename the finished model to", out))?;
        match out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => sync(parent),
            None => sync(Path::new(".")),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing can be done about a folder that cannot be removed; the next decode clears it.
        let _ = fs::remove_dir_all(&self.work);
    }
}
