//! Consecutive stages of a block for one batch after the other, on the device while that works.

use super::{DeviceBlock, DeviceLinears, DeviceState, Trouble};
use crate::{
    compute::SharedDevice,
    forward::{Block, ForwardError, Linear, State},
};

/// The first stages of a block with their linears.
pub struct Stages<'a> {
    block: &'a Block<'a>,
    linears: &'a [Vec<Linear>],
    device: Option<(&'a SharedDevice, DeviceBlock<'a>, Vec<DeviceLinears<'a>>)>,
    /// Batches that the device failed at.
    pub failures: u64,
}

impl<'a> Stages<'a> {
    /// Puts the weights on the device, if there is one and it takes them. `linears` are those of each stage from the first
    /// one on.
    #[must_use]
    pub fn new(block: &'a Block<'a>, linears: &'a [Vec<Linear>], device: Option<&'a SharedDevice>) -> Self {
        let mut stages = Self { block, linears, device: None, failures: 0 };
        // Polynomials have no kernels here.
        if let Some(shared) = device.filter(|_| block.expanded.is_none()) {
            let placed = shared.attempt(|device| {
                let placed = linears.iter().map(|linears| DeviceLinears::place(device, linears));
                Ok((DeviceBlock::new(device, block)?, placed.collect::<Result<Vec<_>, _>>()?))
            });
            match placed {
                Ok((block, linears)) => stages.device = Some((shared, block, linears)),
                Err(_) => stages.failures += 1,
            }
        }
        stages
    }

    /// Takes a batch through all of them.
    ///
    /// # Errors
    /// As [`Block::finish`].
    pub fn apply(&mut self, mut state: State) -> Result<State, ForwardError> {
        if let Some((shared, block, linears)) = &mut self.device {
            let attempt = shared.attempt(|device| {
                Trouble::apart((|| {
                    let mut there = DeviceState::upload(device, &state)?;
                    for (stage, linears) in linears.iter().enumerate() {
                        block.apply(device, stage, &mut there, linears)?;
                    }
                    match linears.len() {
                        0 => Ok(state.clone()),
                        count => block.download(device, count - 1, &there),
                    }
                })())
            });
            match attempt {
                Ok(result) => return result,
                Err(_) => self.failures += 1,
            }
        }
        for (stage, linears) in self.linears.iter().enumerate() {
            self.block.apply(stage, &mut state, linears)?;
        }
        Ok(state)
    }
}
