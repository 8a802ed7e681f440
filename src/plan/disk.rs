//! Whether the target's disk has room.

use std::path::{Path, PathBuf};

use super::{Plan, PlanError};
use crate::platform;

impl Plan {
    /// The folder in which the artifact grows: the target, or what is uploaded to it.
    #[must_use]
    pub fn staged_out(&self) -> PathBuf {
        crate::remote::staging_folder(&self.out).unwrap_or_else(|| self.out.clone())
    }

    /// Refuses a target whose file system has less room than the run still needs; `staged_bytes` are there already from
    /// an earlier run.
    ///
    /// # Errors
    /// [`PlanError::Disk`].
    pub fn check_disk(&self, staged_bytes: u64) -> Result<(), PlanError> {
        let out = self.staged_out();
        let folder = existing_parent(&out);
        // A file system that does not tell is passed over: reserving the files' space will.
        let Ok(free_bytes) = platform::free_disk_bytes(folder) else { return Ok(()) };
        let needed_bytes = (self.all_bytes() + self.memory.scratch_disk_bytes).saturating_sub(staged_bytes);
        if needed_bytes > free_bytes {
            return Err(PlanError::Disk { folder: folder.to_owned(), needed_bytes, free_bytes });
        }
        Ok(())
    }
}

/// The nearest folder above `path` that exists: where its bytes will lie.
pub(crate) fn existing_parent(path: &Path) -> &Path {
    path.ancestors()
        .skip(1)
        .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("."))
}
