//! A device that several parts of a command share, with the one memory of what has failed on it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::{ComputeError, Device};

/// Name of the fallback that counts what a device failed at and the processor did instead.
pub const DEVICE_FAILED: &str = "device-failed";

/// A device and what has gone wrong on it.
#[derive(Debug)]
pub struct SharedDevice {
    device: Device,
    /// Set when the device cannot be used any more.
    gone: AtomicBool,
    first_failure: Mutex<Option<ComputeError>>,
}

impl SharedDevice {
    /// Shares a device on which nothing has failed yet.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device, gone: AtomicBool::new(false), first_failure: Mutex::new(None) }
    }

    /// The device itself, whatever has failed on it.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What manifests and saved statistics call it: the adapter and the interface it is driven through.
    #[must_use]
    pub fn name(&self) -> String {
        let adapter = self.device.adapter();
        format!("{} ({})", adapter.name, adapter.backend)
    }

    /// What went wrong first.
    pub fn failure(&self) -> Option<ComputeError> {
        self.first_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tries something on the device, unless that is gone: then the error that ended it comes back at once.
    ///
    /// # Errors
    /// Whatever `work` fails with; the caller does the same on the processor.
    pub fn attempt<'a, T>(
        &'a self,
        work: impl FnOnce(&'a Device) -> Result<T, ComputeError>,
    ) -> Result<T, ComputeError> {
        let attempt = match self.failure() {
            Some(error) if self.gone.load(Ordering::Relaxed) => Err(error),
            _ => work(&self.device),
        };
        attempt.inspect_err(|error| {
            self.first_failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
            // Only now: who sees the device gone must find the reason.
            self.gone.fetch_or(error.is_final(), Ordering::Relaxed);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::tests::fixtures;

    #[test]
    fn a_lost_device_is_not_tried_again_and_its_first_failure_is_kept() {
        let Some(device) = fixtures::device(None) else { return };
        let shared = SharedDevice::new(device.clone());
        let huge = device.limits().buffer_bytes + 16;
        assert!(shared.attempt(|device| device.allocate("huge", huge).map(|_| ())).is_err());
        // That was no end of the device.
        assert_eq!(shared.attempt(|device| device.upload("small", &[0; 64]).map(|_| 7)), Ok(7));
        device.destroy();
        assert!(shared.attempt(|device| device.upload("small", &[0; 64]).map(|_| ())).is_err());
        let mut tried = false;
        let error = shared.attempt(|_| {
            tried = true;
            Ok(())
        });
        assert!(error.is_err() && !tried);
        assert!(matches!(shared.failure(), Some(ComputeError::TooLarge { .. })), "{:?}", shared.failure());
    }
}
