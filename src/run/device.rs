//! Stripes on a graphics processor, and what becomes of them when it fails.

use crate::{
    codec::{CodecError, MatrixParameters, RowSource},
    compute::{DEVICE_FAILED, SharedDevice},
    passes::{EncodedStripe, MatrixEncoder},
};

/// The device of a run, if it has one.
pub(super) struct RunDevice<'a>(Option<&'a SharedDevice>);

impl<'a> RunDevice<'a> {
    pub(super) fn new(device: Option<&'a SharedDevice>) -> Self {
        Self(device)
    }

    /// What the manifest calls the device.
    pub(super) fn name(&self) -> Option<String> {
        self.0.map(SharedDevice::name)
    }

    /// Encodes a stripe where that can be done, and says whether the device did it. A stripe that the device failed at is
    /// encoded on the processor and counted.
    pub(super) fn encode(
        &self,
        encoder: &dyn MatrixEncoder,
        source: &dyn RowSource,
        parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<(EncodedStripe, bool), CodecError> {
        let on_processor = || encoder.encode(source, parameters, first_row, rows);
        let Some(device) = self.0 else { return Ok((on_processor()?, false)) };
        match device.attempt(|device| encoder.encode_on(device, source, parameters, first_row, rows)) {
            Ok(Some(stripe)) => Ok((stripe, true)),
            Ok(None) => Ok((on_processor()?, false)),
            Err(_) => {
                let mut stripe = on_processor()?;
                *stripe.deviations.entry(DEVICE_FAILED).or_default() += 1;
                Ok((stripe, false))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::Dtype,
        codec::DenseRows,
        compute::{ComputeError, Device, tests::fixtures},
    };

    /// Encodes by the processor's kernels, or on a device if that is not gone.
    struct Probe;

    impl MatrixEncoder for Probe {
        fn prepare(&self, _: &dyn RowSource) -> Result<MatrixParameters, CodecError> {
            Ok(MatrixParameters::default())
        }

        fn encode(
            &self,
            _: &dyn RowSource,
            _: &MatrixParameters,
            first_row: usize,
            rows: usize,
        ) -> Result<EncodedStripe, CodecError> {
            let rows = crate::codec::CodedRows { first_row, rows, ..Default::default() };
            Ok(EncodedStripe { rows, ..EncodedStripe::default() })
        }

        fn encode_on(
            &self,
            device: &Device,
            source: &dyn RowSource,
            parameters: &MatrixParameters,
            first_row: usize,
            rows: usize,
        ) -> Result<Option<EncodedStripe>, ComputeError> {
            device.upload("probe", &[0; 64])?;
            Ok(self.encode(source, parameters, first_row, rows).ok())
        }
    }

    #[test]
    fn a_device_lost_on_the_way_costs_no_stripe() {
        let Some(device) = fixtures::device(None) else { return };
        let source = DenseRows::new(Dtype::F32, &[0; 64], 4, 4).unwrap();
        let shared = SharedDevice::new(device.clone());
        let run = RunDevice::new(Some(&shared));
        let encode = |first| run.encode(&Probe, &source, &MatrixParameters::default(), first, 1).unwrap();
        let (stripe, on_device) = encode(0);
        assert!(on_device && stripe.deviations.is_empty() && shared.failure().is_none());
        device.destroy();
        for first in [1, 2] {
            let (stripe, on_device) = encode(first);
            assert_eq!(stripe.rows.first_row, first);
            assert_eq!((stripe.deviations.get(DEVICE_FAILED), on_device), (Some(&1), false));
        }
        assert!(matches!(shared.failure(), Some(ComputeError::Lost { .. })));
    }

    #[test]
    fn without_a_device_nothing_deviates() {
        let source = DenseRows::new(Dtype::F32, &[0; 64], 4, 4).unwrap();
        let run = RunDevice::new(None);
        let (stripe, on_device) = run.encode(&Probe, &source, &MatrixParameters::default(), 0, 4).unwrap();
        assert!(!on_device && stripe.deviations.is_empty() && run.name().is_none());
    }
}
