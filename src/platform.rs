//! The few calls to the operating system that the standard library lacks. All `unsafe` outside the memory map is here.

#[cfg(feature = "blas")]
mod blas;
mod bus;
mod disk;
mod graphics;
mod memory;

#[cfg(feature = "blas")]
pub use blas::use_one_blas_thread;
pub use bus::{MapWatch, install_sigbus_handler, watch_map};
pub use disk::{allocated_bytes, free_disk_bytes, reserve, start_writeback};
pub use graphics::quiet_graphics_drivers;
pub use memory::{
    available_memory_bytes, current_rss_bytes, page_bytes, peak_rss_bytes, total_memory_bytes, trim_heap,
};
