//! What the process uses of the memory, and what there is.

use std::path::Path;

/// The largest resident set so far, in bytes.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    field_bytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The resident set now, in bytes.
#[must_use]
pub fn current_rss_bytes() -> Option<u64> {
    field_bytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The memory that this process could ever have: the machine's, or its control group's limit where that is lower.
#[must_use]
pub fn total_memory_bytes() -> Option<u64> {
    let machine = field_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    Some(group_limits().map(|group| group.limit).fold(machine, u64::min))
}

/// The memory that this process can have now without pushing others out: free and reclaimable, within the limits of its
/// control groups.
#[must_use]
pub fn available_memory_bytes() -> Option<u64> {
    let machine = field_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(group_limits().map(|group| group.limit.saturating_sub(group.used)).fold(machine, u64::min))
}

/// Size of a page of memory, in bytes.
#[cfg(unix)]
#[must_use]
#[expect(unsafe_code, reason = "std has no call for it")]
pub fn page_bytes() -> usize {
    // SAFETY: no memory is passed.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// A line of Linux's accounts, `KEY   123 kB`, in bytes.
fn field_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The memory limit of one control group.
struct GroupLimit {
    limit: u64,
    /// Without the page cache, which is given back under pressure.
    used: u64,
}

/// The limits of this process's control group (version 2) and of all groups around it.
fn group_limits() -> impl Iterator<Item = GroupLimit> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own =
        groups.lines().find_map(|line| line.strip_prefix("0::/")).map(|path| Path::new("/sys/fs/cgroup").join(path));
    let around: Vec<_> = own
        .iter()
        .flat_map(|own| own.ancestors().take_while(|path| path.starts_with("/sys/fs/cgroup")))
        .map(Path::to_owned)
        .collect();
    around.into_iter().filter_map(|folder| {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        // `max` where there is no limit.
        let limit = read("memory.max")?.trim().parse().ok()?;
        let current: u64 = read("memory.current")?.trim().parse().ok()?;
        Some(GroupLimit { limit, used: current.saturating_sub(cache_bytes(&read("memory.stat")?)) })
    })
}

/// The page cache in the text of `memory.stat`.
fn cache_bytes(text: &str) -> u64 {
    let value = |line: &str| line.split_once(' ').and_then(|(_, bytes)| bytes.parse::<u64>().ok());
    text.lines()
        .filter(|line| line.starts_with("inactive_file ") || line.starts_with("active_file "))
        .filter_map(value)
        .sum()
}

/// Gives free heap memory back to the system: what an allocator keeps for later would add up over a long run.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "std has no call for it")]
pub fn trim_heap() {
    // SAFETY: no memory is passed; the call only returns free pages of the allocator's own arenas.
    unsafe { libc::malloc_trim(0) };
}

/// Does nothing where the allocator has no such call.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn trim_heap() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_in_bytes() {
        let text = "MemTotal:       24588472 kB\nMemAvailable:   1 kB\nVmHWMs:\n";
        assert_eq!(field_bytes(text, "MemTotal:"), Some(24_588_472 * 1024));
        assert_eq!(field_bytes(text, "MemAvailable:"), Some(1024));
        assert_eq!(field_bytes(text, "VmHWM:"), None);
        assert_eq!(cache_bytes("anon 5\ninactive_file 7\nactive_file 11\nfile 100\n"), 18);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_resident_set_follows_what_is_touched() {
        const BYTES: usize = 64 << 20;
        let before = current_rss_bytes().unwrap();
        let block = std::hint::black_box(vec![1_u8; BYTES]);
        let during = current_rss_bytes().unwrap();
        assert!(during >= before + BYTES as u64 / 2, "{before} then {during}");
        assert!(peak_rss_bytes().unwrap() >= during);
        drop(block);
        let (available, total) = (available_memory_bytes().unwrap(), total_memory_bytes().unwrap());
        assert!(available > 0 && available <= total, "{available} of {total}");
        assert!(page_bytes().is_power_of_two());
    }
}
