//! Models in object stores: S3-compatible ones, Google Cloud Storage, Azure. Read by ranges, written whole.
//!
//! What talks to a store is `store`, behind the feature `object-store`; the runtime that its crate needs stays in
//! there. Credentials and endpoints come from the environment and are neither printed nor written anywhere.

mod cache;
mod error;
mod location;
mod mount;
mod publish;

#[cfg(feature = "object-store")]
mod store;
#[cfg(not(feature = "object-store"))]
#[path = "no_store.rs"]
mod store;

pub use error::RemoteError;
pub use location::{Location, is_remote};
pub(crate) use mount::Mounted;
pub use publish::{Standing, Target, Uploaded, staging_folder};

/// Bytes of one request: enough that its latency does not count.
pub(crate) const BLOCK_BYTES: u64 = 8 << 20;
/// Blocks that are fetched before they are asked for.
pub(crate) const READ_AHEAD_BLOCKS: usize = 4;
/// Blocks kept beside those of a wave's own source bytes, whose ends share blocks with their neighbours.
const SPARE_BLOCKS: u64 = 8;
/// The runtime, connections and TLS.
const CLIENT_BYTES: u64 = 16 << 20;
/// Blocks that are kept where no plan says otherwise.
const DEFAULT_KEPT_BYTES: u64 = 256 << 20;

/// What fetching takes beside the source bytes of a wave: spare blocks, a block on its way for each worker and each
/// block of read-ahead, a second copy of each as it is put together, and the client.
pub(crate) fn fetching_bytes(threads: usize) -> u64 {
    (SPARE_BLOCKS + 2 * (threads + READ_AHEAD_BLOCKS) as u64) * BLOCK_BYTES + CLIENT_BYTES
}

/// The blocks to keep for waves with at most so many source bytes.
pub(crate) fn kept_bytes(wave_source_bytes: u64) -> u64 {
    wave_source_bytes + SPARE_BLOCKS * BLOCK_BYTES
}

/// An object as a listing tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    /// Relative to the location that was listed, with `/`.
    pub name: String,
    pub bytes: u64,
    /// What a store changes whenever the content does.
    pub e_tag: Option<String>,
    pub version: Option<String>,
}
