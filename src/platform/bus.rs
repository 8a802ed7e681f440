//! A mapped file that shrinks raises SIGBUS on the next read: this turns that into a message and an exit code.

use std::{
    path::Path,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

/// Maps that can be named in the message; further ones end with a message without a name.
const SLOTS: usize = 4096;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    name: AtomicPtr<u8>,
    name_bytes: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        name: AtomicPtr::new(std::ptr::null_mut()),
        name_bytes: AtomicUsize::new(0),
    }
}; SLOTS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Remembers where a file is mapped, for the message. The name is never freed: a signal handler may read it at any time.
pub fn watch_map(path: &Path, map: &[u8]) {
    let slot = NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS;
    let name = Box::leak(path.display().to_string().into_bytes().into_boxed_slice());
    let (start, slot) = (map.as_ptr() as usize, &TABLE[slot]);
    slot.end.store(0, Ordering::Release);
    slot.name.store(name.as_mut_ptr(), Ordering::Release);
    slot.name_bytes.store(name.len(), Ordering::Release);
    slot.start.store(start, Ordering::Release);
    slot.end.store(start + map.len(), Ordering::Release);
}

/// Makes SIGBUS on a mapped file end the process with a message and the exit code for invalid input.
#[cfg(unix)]
#[expect(unsafe_code, reason = "std has no call for it")]
pub fn install_sigbus_handler() {
    // SAFETY: the structure is plain data, valid when zeroed; the handler only calls functions that POSIX allows in one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// Does nothing where there is no such signal.
#[cfg(not(unix))]
pub fn install_sigbus_handler() {}

#[cfg(unix)]
#[expect(unsafe_code, reason = "a signal handler")]
extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: `info` is the kernel's, valid during the handler; names are leaked and so never freed; `write` and `_exit`
    // are async-signal-safe.
    unsafe {
        let address = (*info).si_addr() as usize;
        let put = |text: &[u8]| {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        };
        put(b"error: ");
        let slot = TABLE
            .iter()
            .find(|slot| (slot.start.load(Ordering::Acquire)..slot.end.load(Ordering::Acquire)).contains(&address));
        match slot {
            Some(slot) => {
                put(b"`");
                let name = slot.name.load(Ordering::Acquire);
                put(std::slice::from_raw_parts(name, slot.name_bytes.load(Ordering::Acquire)));
                put(b"`");
            }
            None => put(b"a mapped file"),
        }
        put(b" cannot be read any more: it became shorter while in use, or its disk failed\n");
        put(b"hint: restore the file, then run the same command again: it continues where it stopped\n");
        libc::_exit(crate::ExitCode::Input as libc::c_int);
    }
}
