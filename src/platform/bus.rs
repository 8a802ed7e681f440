//! A mapped file that shrinks raises SIGBUS on the next read: this turns that into a message and an exit code.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
};

/// Maps that are watched at the same time; a read in any further one ends the process without a message.
const SLOTS: usize = 4096;

/// One watched range. Lock-free and of fixed size, since a signal handler reads it.
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    name: AtomicPtr<u8>,
    name_bytes: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        name: AtomicPtr::new(std::ptr::null_mut()),
        name_bytes: AtomicUsize::new(0),
    }
}; SLOTS];

/// Remembers a mapped range as long as it lives; must be dropped before the range is unmapped.
#[derive(Debug)]
pub struct MapWatch {
    slot: usize,
}

/// Remembers where a file is mapped, for the message. `None` when too many are.
#[must_use]
pub fn watch_map(path: &Path, map: &[u8]) -> Option<MapWatch> {
    let is_free = |slot: &Slot| slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let index = TABLE.iter().position(is_free)?;
    let slot = &TABLE[index];
    let name: &mut [u8] = Box::leak(path.as_os_str().as_encoded_bytes().into());
    slot.name_bytes.store(name.len(), Ordering::Release);
    slot.name.store(name.as_mut_ptr(), Ordering::Release);
    let start = map.as_ptr() as usize;
    slot.start.store(start, Ordering::Release);
    slot.end.store(start + map.len(), Ordering::Release);
    Some(MapWatch { slot: index })
}

impl Drop for MapWatch {
    #[expect(unsafe_code, reason = "takes back what `watch_map` leaked")]
    fn drop(&mut self) {
        let slot = &TABLE[self.slot];
        slot.end.store(0, Ordering::Release);
        let name = slot.name.swap(std::ptr::null_mut(), Ordering::AcqRel);
        let bytes = slot.name_bytes.load(Ordering::Acquire);
        // SAFETY: pointer and length are of the box that `watch_map` leaked into this slot, which is this watch's alone
        // until `taken` is cleared. The handler reads a name only for a fault inside its range, and whoever reads the
        // range borrows the map, which outlives the watch.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(name, bytes)) });
        slot.taken.store(false, Ordering::Release);
    }
}

/// Makes SIGBUS in a watched map end the process with a message and the exit code for invalid input. Any other SIGBUS
/// does what it does without a handler.
#[cfg(unix)]
#[expect(unsafe_code, reason = "std has no call for it")]
pub fn install_sigbus_handler() {
    // SAFETY: the structure is plain data, valid when zeroed; the handler only calls functions that POSIX allows in one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// Does nothing where there is no such signal.
#[cfg(not(unix))]
pub fn install_sigbus_handler() {}

#[cfg(unix)]
#[expect(unsafe_code, reason = "a signal handler")]
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: `info` is the kernel's, valid during the handler; the name of a slot is valid while its range is read, as
    // it is now; `write`, `signal`, `raise` and `_exit` are async-signal-safe.
    unsafe {
        let address = (*info).si_addr() as usize;
        let slot = TABLE.iter().find(|slot| {
            // The end first: it is 0 in a slot whose start is not yet or no longer meant.
            let end = slot.end.load(Ordering::Acquire);
            (slot.start.load(Ordering::Acquire)..end).contains(&address)
        });
        // A positive code is a fault; a signal that a process sent has no address.
        let Some(slot) = slot.filter(|_| (*info).si_code > 0) else {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            return;
        };
        let put = |text: &[u8]| {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        };
        put(b"error: `");
        let name = slot.name.load(Ordering::Acquire);
        put(std::slice::from_raw_parts(name, slot.name_bytes.load(Ordering::Acquire)));
        put(b"` cannot be read any more: it became shorter while in use, or its disk failed\n");
        put(b"hint: restore the file, then run the same command again\n");
        libc::_exit(crate::ExitCode::Input as libc::c_int);
    }
}
