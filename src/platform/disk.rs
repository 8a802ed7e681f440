//! Disk space.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

/// Reserves disk space for the first `bytes` bytes of a file, so that a full disk shows now and not in the middle of
/// the work. A file system that cannot reserve is passed over: writing will tell.
///
/// # Errors
/// The system's, `StorageFull` among them.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std has no call for it")]
pub fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let Ok(length) = libc::off_t::try_from(bytes) else {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "file longer than the system's offsets"));
    };
    if length == 0 {
        return Ok(());
    }
    // SAFETY: the descriptor is open for as long as `file` lives; no memory is passed.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}

/// Reserves nothing where the system has no such call.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn reserve(_file: &File, _bytes: u64) -> io::Result<()> {
    Ok(())
}

/// Asks the system to begin writing a file's dirty pages, without waiting. Only ever a hint.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std has no call for it")]
pub fn start_writeback(file: &File) {
    // SAFETY: the descriptor is open for as long as `file` lives; no memory is passed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Does nothing where the system has no such call.
#[cfg(not(target_os = "linux"))]
pub fn start_writeback(_file: &File) {}

/// Bytes that a file occupies on its disk; 0 when there is no such file.
#[must_use]
pub fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // The unit of `blocks` is 512 bytes on every system.
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

/// Bytes that this user may still write to the file system of `path`.
///
/// # Errors
/// The system's.
#[expect(unsafe_code, reason = "std has no call for it")]
pub fn free_disk_bytes(path: &Path) -> io::Result<u64> {
    use std::{ffi::CString, mem::MaybeUninit, os::unix::ffi::OsStrExt};
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut facts = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a C string that lives through the call, and the call fills `facts` when it returns 0.
    let facts = unsafe {
        if libc::statvfs(path.as_ptr(), facts.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        facts.assume_init()
    };
    Ok((facts.f_bavail as u64).saturating_mul(facts.f_frsize as u64))
}
