//! Maps files and gives their pages back.

use std::{fs::File, ops::Range, path::Path};

use memmap2::Mmap;

use super::CheckpointError;

/// Maps a whole file for reading.
#[expect(unsafe_code, reason = "mapping a file is how checkpoints are read")]
pub(super) fn map(path: &Path) -> Result<Mmap, CheckpointError> {
    let io = |doing| move |source| CheckpointError::Io { doing, path: path.to_owned(), source };
    let file = File::open(path).map_err(io("open"))?;
    let bytes = file.metadata().map_err(io("read"))?.len();
    if bytes == 0 {
        return Err(CheckpointError::TooShort { file: path.to_owned(), bytes });
    }
    // SAFETY: the map is only read. A file that another process changes meanwhile gives other bytes, all of which are
    // valid values of `u8`; one that it shortens raises SIGBUS, which `platform` turns into a message.
    let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
    crate::platform::watch_map(path, &map);
    Ok(map)
}

/// Gives the pages that a range touches back to the system. Pages at its ends may hold a neighbour's bytes too: reading
/// those again costs a page fault, keeping them would let memory grow with the number of tensors.
#[cfg(unix)]
#[expect(unsafe_code, reason = "memmap2 marks this advice unsafe")]
pub(super) fn release(map: &Mmap, range: Range<usize>) {
    const PAGE: usize = 4096;
    let start = range.start / PAGE * PAGE;
    let end = range.end.next_multiple_of(PAGE).min(map.len());
    if start < end {
        // SAFETY: for a shared, read-only file map this drops clean pages; the next read brings the same bytes back.
        // It is advice: a failure changes nothing.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    }
}

/// Does nothing where the system has no such advice.
#[cfg(not(unix))]
pub(super) fn release(_map: &Mmap, _range: Range<usize>) {}

/// Tells the system that a range will be read soon, so that it can be fetched meanwhile. Only ever a hint.
#[cfg(unix)]
pub(super) fn announce(map: &Mmap, range: Range<usize>) {
    let end = range.end.min(map.len());
    if range.start < end {
        let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, end - range.start);
    }
}

/// Does nothing where the system has no such advice.
#[cfg(not(unix))]
pub(super) fn announce(_map: &Mmap, _range: Range<usize>) {}

/// Maps the pages of a range in one go, cheaper than a fault for every few of them. Only ever a hint.
#[cfg(target_os = "linux")]
pub(super) fn populate(map: &Mmap, range: Range<usize>) {
    let end = range.end.min(map.len());
    if range.start < end {
        let _ = map.advise_range(memmap2::Advice::PopulateRead, range.start, end - range.start);
    }
}

/// Does nothing where the system has no such advice.
#[cfg(not(target_os = "linux"))]
pub(super) fn populate(_map: &Mmap, _range: Range<usize>) {}
