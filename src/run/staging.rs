//! The work folder beside the target: staged files, journal, lock. The target's name appears only at the very end.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, sync_channel},
    thread::JoinHandle,
};

use super::RunError;
use crate::{manifest::ContentHash, plan::Plan, platform};

/// An open work folder, locked for this process.
#[derive(Debug)]
pub(super) struct Staging {
    work: PathBuf,
    files: Vec<File>,
    // Held until dropped: the lock that keeps a second run out.
    _lock: File,
}

/// The work folder of a target: `.NAME.bantam-work` beside it.
pub(super) fn work_folder(out: &Path) -> PathBuf {
    let name = out.file_name().map_or_else(|| "artifact".into(), |name| name.to_string_lossy().into_owned());
    out.with_file_name(format!(".{name}.bantam-work"))
}

impl Staging {
    /// Makes the work folder (and the target's parents) and takes its lock.
    pub(super) fn open(out: &Path) -> Result<Self, RunError> {
        let work = work_folder(out);
        let staged = work.join("artifact");
        std::fs::create_dir_all(&staged).map_err(RunError::io("make folder", &staged))?;
        let lock_path = work.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(RunError::io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { work, files: Vec::new(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(RunError::Locked { out: out.to_owned(), lock: lock_path }),
            Err(TryLockError::Error(error)) => Err(RunError::io("lock", &lock_path)(error)),
        }
    }

    /// The folder in which the artifact grows.
    pub(super) fn artifact(&self) -> PathBuf {
        self.work.join("artifact")
    }

    /// The journal's path.
    pub(super) fn journal(&self) -> PathBuf {
        self.work.join("journal")
    }

    /// The folder of what calibration finds.
    pub(super) fn solved(&self) -> PathBuf {
        self.work.join("solved")
    }

    /// Removes all staged files, for a start from nothing.
    pub(super) fn clear(&self) -> Result<(), RunError> {
        match std::fs::remove_dir_all(self.solved()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(RunError::io("remove", self.solved())(error));
            }
            _ => {}
        }
        let staged = self.artifact();
        std::fs::remove_dir_all(&staged).map_err(RunError::io("remove", &staged))?;
        std::fs::create_dir_all(&staged).map_err(RunError::io("make folder", &staged))?;
        match std::fs::remove_file(self.journal()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RunError::io("remove", self.journal())(error))
            }
            _ => Ok(()),
        }
    }

    /// Opens the weight files at their final length, headers written; removes whatever else is staged. `reserve` takes the
    /// space of all of it on the disk; without it only what is written takes some.
    pub(super) fn prepare(&mut self, plan: &Plan, reserve: bool) -> Result<(), RunError> {
        let staged = self.artifact();
        let entries = std::fs::read_dir(&staged).map_err(RunError::io("read folder", &staged))?;
        for entry in entries {
            let path = entry.map_err(RunError::io("read folder", &staged))?.path();
            if !plan.files.iter().any(|file| path == staged.join(&file.name)) {
                std::fs::remove_file(&path).map_err(RunError::io("remove", &path))?;
            }
        }
        for planned in &plan.files {
            let path = staged.join(&planned.name);
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .map_err(RunError::io("open", &path))?;
            if reserve {
                // A full disk shows here, before the work, and not in the middle of it.
                platform::reserve(&file, planned.bytes).map_err(RunError::io("reserve space for", &path))?;
            }
            file.set_len(planned.bytes).map_err(RunError::io("set the length of", &path))?;
            file.write_all_at(&planned.header, 0).map_err(RunError::io("write", &path))?;
            self.files.push(file);
        }
        Ok(())
    }

    /// Writes bytes at a position of a weight file.
    pub(super) fn write(&self, plan: &Plan, file: usize, offset: u64, bytes: &[u8]) -> Result<(), RunError> {
        self.files[file]
            .write_all_at(bytes, offset)
            .map_err(RunError::io("write", self.artifact().join(&plan.files[file].name)))
    }

    /// BLAKE3 of a range of a weight file, as it reads back.
    pub(super) fn hash(&self, plan: &Plan, file: usize, offset: u64, bytes: u64) -> Result<ContentHash, RunError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; usize::try_from(bytes.min(1 << 20)).unwrap_or(1 << 20)];
        let mut at = 0;
        while at < bytes {
            let length = (bytes - at).min(buffer.len() as u64) as usize;
            self.files[file]
                .read_exact_at(&mut buffer[..length], offset + at)
                .map_err(RunError::io("read back", self.artifact().join(&plan.files[file].name)))?;
            hasher.update(&buffer[..length]);
            at += length as u64;
        }
        Ok(hasher.finalize().into())
    }

    /// A thread that has the system write dirty pages out while the workers compute, so that the sync at the end is
    /// short. A thread of its own, since the call waits when the disk's queue is full.
    pub(super) fn writeback(&self) -> Writeback {
        let files: Vec<File> = self.files.iter().filter_map(|file| file.try_clone().ok()).collect();
        let (sender, receiver) = sync_channel::<()>(1);
        let thread = std::thread::spawn(move || {
            while receiver.recv().is_ok() {
                files.iter().for_each(platform::start_writeback);
            }
        });
        Writeback { sender: Some(sender), thread: Some(thread) }
    }

    /// Waits until all weight files are on the disk.
    pub(super) fn sync(&self, plan: &Plan) -> Result<(), RunError> {
        for (file, planned) in self.files.iter().zip(&plan.files) {
            file.sync_all().map_err(RunError::io("sync", self.artifact().join(&planned.name)))?;
        }
        Ok(())
    }

    /// Puts the finished artifact under its name. With `replace`, an artifact that stands there makes way.
    pub(super) fn publish(self, out: &Path, replace: bool) -> Result<(), RunError> {
        let staged = self.artifact();
        sync_folder(&staged)?;
        let aside = self.work.join("replaced");
        if replace && out.exists() {
            std::fs::rename(out, &aside).map_err(RunError::io("move aside", out))?;
        }
        std::fs::rename(&staged, out).map_err(RunError::io("rename the staged artifact to", out))?;
        if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent)?;
        }
        std::fs::remove_dir_all(&self.work).map_err(RunError::io("remove", &self.work))
    }
}

/// See [`Staging::writeback`]; ends when dropped.
pub(super) struct Writeback {
    sender: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Writeback {
    /// Something was written.
    pub(super) fn nudge(&self) {
        if let Some(sender) = &self.sender {
            // Full means that a round is due anyway; closed, that the thread is gone: only a hint is lost.
            let _ = sender.try_send(());
        }
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // The thread does nothing that could fail.
            let _ = thread.join();
        }
    }
}

/// Removes the work folder of a target that is complete.
pub(super) fn remove_work_folder(out: &Path) -> Result<(), RunError> {
    let work = work_folder(out);
    match std::fs::remove_dir_all(&work) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RunError::io("remove", work)(error)),
        _ => Ok(()),
    }
}

/// Writes a small file and syncs it.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    std::fs::write(path, bytes).map_err(RunError::io("write", path))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(RunError::io("sync", path))
}

fn sync_folder(path: &Path) -> Result<(), RunError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(RunError::io("sync folder", path))
}
