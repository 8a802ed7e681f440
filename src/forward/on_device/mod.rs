//! The forward pass on a graphics processor: the same stages as [`Block`](crate::forward::Block)'s, with the hidden states there from stage to
//! stage. What has no kernel (latent attention, routers, experts that see every token, rounded inputs) is computed here in
//! between, with the state brought down and up again; the products of its linears stay on the device.
//!
//! Sums are F32 in an order of the device's own, so results are near [`Block`](crate::forward::Block)'s, which are the canonical ones.

mod block;
mod linears;
mod stages;
mod state;
#[cfg(test)]
mod tests;

pub use block::{DeviceBlock, Input};
pub use linears::{DeviceLinears, product};
pub use stages::Stages;
pub use state::DeviceState;

use super::ForwardError;
use crate::compute::ComputeError;

/// Why a stage ends on a device.
#[derive(Debug)]
pub enum Trouble {
    /// The device failed: the processor can do the same.
    Device(ComputeError),
    /// The model is at fault, and would be on the processor.
    Model(ForwardError),
}

impl From<ComputeError> for Trouble {
    fn from(error: ComputeError) -> Self {
        Self::Device(error)
    }
}

impl From<ForwardError> for Trouble {
    fn from(error: ForwardError) -> Self {
        Self::Model(error)
    }
}

impl Trouble {
    /// The device's failures outside, the model's inside, as [`crate::compute::SharedDevice::attempt`] wants them.
    ///
    /// # Errors
    /// [`ComputeError`] for those of the device.
    pub fn apart<T>(result: Result<T, Self>) -> Result<Result<T, ForwardError>, ComputeError> {
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(Self::Model(error)) => Ok(Err(error)),
            Err(Self::Device(error)) => Err(error),
        }
    }
}
