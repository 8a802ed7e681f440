//! States on the device.

use crate::{
    compute::{ComputeError, Device, kernels::DeviceMatrix},
    forward::{Matrix, State},
};

/// A [`State`] in device memory.
#[derive(Debug)]
pub struct DeviceState {
    /// Tokens of each sequence.
    pub length: usize,
    /// The residual stream, `[tokens, hidden]`.
    pub hidden: DeviceMatrix,
    /// What the next stages need besides.
    pub carried: Vec<DeviceMatrix>,
}

/// A matrix of the processor's on the device.
///
/// # Errors
/// As for [`Device::upload`].
pub(super) fn up(device: &Device, label: &str, matrix: &Matrix) -> Result<DeviceMatrix, ComputeError> {
    let uploaded = DeviceMatrix::upload(device, label, matrix.columns, &matrix.values)?;
    Ok(DeviceMatrix { rows: matrix.rows, ..uploaded })
}

/// A matrix of the device's; waits.
///
/// # Errors
/// As for [`Device::read`].
pub(super) fn down(device: &Device, matrix: &DeviceMatrix) -> Result<Matrix, ComputeError> {
    Ok(Matrix { rows: matrix.rows, columns: matrix.columns, values: matrix.download(device)? })
}

impl DeviceState {
    /// Brings a state up.
    ///
    /// # Errors
    /// As for [`Device::upload`].
    pub fn upload(device: &Device, state: &State) -> Result<Self, ComputeError> {
        let carried = state.carried.iter().map(|matrix| up(device, "carried", matrix)).collect::<Result<_, _>>()?;
        Ok(Self { length: state.length, hidden: up(device, "hidden states", &state.hidden)?, carried })
    }

    /// Brings it down; waits for what is queued.
    ///
    /// # Errors
    /// As for [`Device::read`].
    pub fn download(&self, device: &Device) -> Result<State, ComputeError> {
        let carried = self.carried.iter().map(|matrix| down(device, matrix)).collect::<Result<_, _>>()?;
        Ok(State { length: self.length, hidden: down(device, &self.hidden)?, carried })
    }
}
