//! Maps files and gives their pages back.

use std::{fs::File, ops::Range, path::Path};

use memmap2::Mmap;

use super::CheckpointError;
use crate::platform::{MapWatch, watch_map};

/// What Linux maps around a page that is touched (`fault_around_bytes`, 64 KiB unless changed), on either side of it.
const FAULT_AROUND_BYTES: usize = 64 << 10;

/// The largest piece of a file that Linux caches, and so maps, as one (a folio of the size of a huge page, at a multiple
/// of its size): a fault anywhere in it can map it whole.
const LARGEST_FOLIO_BYTES: usize = 2 << 20;

/// A mapped file.
#[derive(Debug)]
pub(crate) struct MappedFile {
    // Dropped before the map, so that the watch never names memory that is something else by then.
    _watch: Option<MapWatch>,
    map: Mmap,
}

impl MappedFile {
    /// Maps a whole regular file for reading.
    #[expect(unsafe_code, reason = "mapping a file is how checkpoints are read")]
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |doing| move |source| CheckpointError::Io { doing, path: path.to_owned(), source };
        // Before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io("read"))?.is_file() {
            return Err(CheckpointError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(io("open"))?;
        let bytes = file.metadata().map_err(io("read"))?.len();
        if bytes == 0 {
            return Err(CheckpointError::TooShort { file: path.to_owned(), bytes });
        }
        // SAFETY: the map is only read. A file that another process changes meanwhile gives other bytes, all of which
        // are valid values of `u8`; one that it shortens raises SIGBUS, which `platform` turns into a message.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
        Ok(Self { _watch: watch_map(path, &map), map })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives the pages that a range touches back to the system, and those that came along with them: a fault maps the
    /// pages around it too, and the folio that holds it. Pages at the ends may hold a neighbour's bytes: reading those
    /// again costs a page fault, keeping them would let memory grow with the number of tensors.
    #[cfg(unix)]
    #[expect(unsafe_code, reason = "memmap2 marks this advice unsafe")]
    pub(super) fn release(&self, range: Range<usize>) {
        let multiple = LARGEST_FOLIO_BYTES.max(crate::platform::page_bytes());
        let start = range.start.saturating_sub(FAULT_AROUND_BYTES) / multiple * multiple;
        let end = range.end.saturating_add(FAULT_AROUND_BYTES).min(self.map.len());
        let end = end.checked_next_multiple_of(multiple).map_or(self.map.len(), |end| end.min(self.map.len()));
        if range.is_empty() || start >= end {
            return;
        }
        // SAFETY: for a read-only file map this drops clean pages; the next read brings the same bytes back, in this
        // thread or another. It is advice: a failure changes nothing.
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    }

    /// Does nothing where the system has no such advice.
    #[cfg(not(unix))]
    pub(super) fn release(&self, _range: Range<usize>) {}

    /// Tells the system that a range will be read soon, so that it can be fetched meanwhile. Only ever a hint.
    #[cfg(unix)]
    pub(super) fn announce(&self, range: Range<usize>) {
        self.advise(memmap2::Advice::WillNeed, range);
    }

    /// Does nothing where the system has no such advice.
    #[cfg(not(unix))]
    pub(super) fn announce(&self, _range: Range<usize>) {}

    /// Maps the pages of a range in one go, cheaper than a fault for every few of them. Only ever a hint.
    #[cfg(target_os = "linux")]
    pub(super) fn populate(&self, range: Range<usize>) {
        self.advise(memmap2::Advice::PopulateRead, range);
    }

    /// Does nothing where the system has no such advice.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn populate(&self, _range: Range<usize>) {}

    #[cfg(unix)]
    fn advise(&self, advice: memmap2::Advice, range: Range<usize>) {
        let end = range.end.min(self.map.len());
        if range.start < end {
            // Advice: a failure changes nothing.
            let _ = self.map.advise_range(advice, range.start, end - range.start);
        }
    }
}
