//! The few calls to the operating system that the standard library lacks. All `unsafe` outside the memory map is here.

mod bus;
mod disk;
mod memory;

pub use bus::{install_sigbus_handler, watch_map};
pub use disk::{allocated_bytes, free_disk_bytes, reserve, start_writeback};
pub use memory::{current_rss_bytes, peak_rss_bytes};
