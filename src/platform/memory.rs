//! What the process uses.

/// The largest resident set so far, in bytes.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The resident set now, in bytes.
#[must_use]
pub fn current_rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// A line of Linux's own account of the process; `None` on other systems.
fn status_bytes(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes: u64 = text.lines().find(|line| line.starts_with(key))?.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}
