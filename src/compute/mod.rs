//! The runtime for graphics processors: adapters, memory, kernels in WGSL, and the way of the data there and back.
//!
//! [`Device::open`] gives a device or says why there is none; nothing here panics, and nothing is slower for a machine
//! without an adapter, because nothing is opened unless it is asked for. Data goes to a [`Buffer`] by
//! [`Device::upload`], a [`Kernel`] (one WGSL file of `shaders/`) works on buffers by [`Device::dispatch`], and comes
//! back by [`Device::read`]. All of it is queued: only reading waits. [`in_flight`] keeps several blocks of rows on
//! their way at once, so that upload, computation and read-back overlap.
//!
//! Every operation that fails is a [`ComputeError`], after which the caller does the same work on the processor.

pub mod kernels;

mod adapter;
mod buffer;
mod device;
mod dispatch;
mod error;
mod kernel;
mod memory;
mod overlap;
mod score;
mod shared;
mod staging;
mod windows;

pub use adapter::{AdapterKind, AdapterReport, Choice, Wanted, adapters, chosen};
pub use buffer::{Buffer, Pending};
pub use device::{Device, Feature, Limits};
pub use dispatch::{Batch, Binding};
pub use error::ComputeError;
pub use kernel::Kernel;
pub use overlap::{in_flight, in_flight_twice};
pub use score::{Score, score};
pub use shared::{DEVICE_FAILED, SharedDevice};
pub(crate) use staging::ring_bytes;
pub use windows::{Launch, RowBinding, Window};

#[cfg(test)]
pub(crate) mod tests;
