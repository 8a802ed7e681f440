//! Stripes on a graphics processor, and what becomes of them when it fails.

use crate::{
    codec::{CodecError, MatrixParameters, RowSource},
    compute::{DEVICE_FAILED, Device, SharedDevice, in_flight_twice},
    passes::{EncodedStripe, MatrixEncoder, StripeOnDevice},
};

/// Device memory of a stripe of usual size: weights of four bytes, extremes, scales and a byte of code each.
const STRIPE_DEVICE_BYTES: u64 = 6 * 256 * 1024;
/// Stripes that a worker has in each half of the way at most: as many as keep the bus busy while it waits.
const DEPTH: usize = 2;
/// Stripes that a worker may have on their way: both halves, and the one in hand.
pub(crate) const STRIPES_IN_FLIGHT: u64 = 2 * DEPTH as u64 + 1;

/// The device of a run, if it has one.
pub(super) struct RunDevice<'a> {
    device: Option<&'a SharedDevice>,
    /// Whether the manifest tells what the device did and failed at.
    recorded: bool,
}

/// What encodes a matrix, and from what.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) encoder: &'a dyn MatrixEncoder,
    pub(super) source: &'a dyn RowSource,
    pub(super) parameters: &'a MatrixParameters,
}

/// A stripe that became codes, where it did.
pub(super) struct Encoded {
    pub(super) stripe: EncodedStripe,
    pub(super) on_device: bool,
}

/// Where a stripe is.
enum Flight<'a> {
    OnDevice(Box<dyn StripeOnDevice + 'a>),
    /// For the processor.
    Landed,
    /// For the processor, because the device failed at it.
    Failed,
}

impl<'a> RunDevice<'a> {
    pub(super) fn new(device: Option<&'a SharedDevice>, recorded: bool) -> Self {
        Self { device, recorded }
    }

    /// What the manifest calls the device, if it names it.
    pub(super) fn name(&self) -> Option<String> {
        self.device.filter(|_| self.recorded).map(SharedDevice::name)
    }

    /// Whether there is a device that encodes for this job.
    pub(super) fn takes(&self, encoder: &dyn MatrixEncoder) -> bool {
        self.device.is_some() && encoder.runs_on_devices()
    }

    /// Encodes stripes (first row and number of rows each), and hands them to `finish` in their order. On a device several
    /// are on their way at once, so that upload, kernels, read-back and `finish` overlap. A stripe that the device failed
    /// at is encoded on the processor and counted.
    ///
    /// # Errors
    /// The first error of an encoder, or of `finish`.
    pub(super) fn encode<E>(
        &self,
        job: Job<'_>,
        stripes: impl IntoIterator<Item = (usize, usize)>,
        mut finish: impl FnMut(usize, usize, Result<Encoded, CodecError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let on_processor = |first_row, rows| job.encoder.encode(job.source, job.parameters, first_row, rows);
        let Some(device) = self.device else {
            for (first_row, rows) in stripes {
                let encoded = on_processor(first_row, rows).map(|stripe| Encoded { stripe, on_device: false });
                finish(first_row, rows, encoded)?;
            }
            return Ok(());
        };
        in_flight_twice(
            stripes,
            depth(device.device()),
            |(first_row, rows)| {
                let started =
                    device.attempt(|device| job.encoder.start_on(device, job.source, job.parameters, first_row, rows));
                let flight = match started {
                    Ok(Some(stripe)) => Flight::OnDevice(stripe),
                    Ok(None) => Flight::Landed,
                    Err(_) => Flight::Failed,
                };
                Ok((flight, first_row, rows))
            },
            |(flight, _, _)| {
                if let Flight::OnDevice(stripe) = flight
                    && device.attempt(|_| stripe.go_on()).is_err()
                {
                    *flight = Flight::Failed;
                }
                Ok(())
            },
            |(flight, first_row, rows)| {
                let flight = match flight {
                    Flight::OnDevice(stripe) => match device.attempt(|_| stripe.finish()) {
                        Ok(Some(stripe)) => return finish(first_row, rows, Ok(Encoded { stripe, on_device: true })),
                        Ok(None) => Flight::Landed,
                        Err(_) => Flight::Failed,
                    },
                    other => other,
                };
                let counted = self.recorded && matches!(flight, Flight::Failed);
                let encoded = on_processor(first_row, rows).map(|mut stripe| {
                    if counted {
                        *stripe.deviations.entry(DEVICE_FAILED).or_default() += 1;
                    }
                    Encoded { stripe, on_device: false }
                });
                finish(first_row, rows, encoded)
            },
        )
    }
}

/// How many stripes of each half fit the device's memory beside those of the other workers.
fn depth(device: &Device) -> usize {
    let (_, budget) = device.memory_bytes();
    let stripes = budget / (STRIPE_DEVICE_BYTES * rayon::current_num_threads().max(1) as u64);
    if stripes >= STRIPES_IN_FLIGHT { DEPTH } else { usize::from(stripes >= 3) }
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

    struct ProbeStripe<'a>(&'a Device, EncodedStripe);

    impl StripeOnDevice for ProbeStripe<'_> {
        fn go_on(&mut self) -> Result<(), ComputeError> {
            self.0.upload("probe", &[0; 64]).map(drop)
        }

        fn finish(self: Box<Self>) -> Result<Option<EncodedStripe>, ComputeError> {
            Ok(Some(self.1))
        }
    }

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

        fn runs_on_devices(&self) -> bool {
            true
        }

        fn start_on<'a>(
            &'a self,
            device: &'a Device,
            source: &'a dyn RowSource,
            parameters: &'a MatrixParameters,
            first_row: usize,
            rows: usize,
        ) -> Result<Option<Box<dyn StripeOnDevice + 'a>>, ComputeError> {
            let stripe = self.encode(source, parameters, first_row, rows).unwrap();
            Ok(Some(Box::new(ProbeStripe(device, stripe))))
        }
    }

    /// First row, whether on the device, and how many failures were counted, of each stripe in order.
    fn encode(run: &RunDevice<'_>, lose_at: Option<(usize, &Device)>) -> Vec<(usize, bool, u64)> {
        let source = DenseRows::new(Dtype::F32, &[0; 256], 16, 4).unwrap();
        let parameters = MatrixParameters::default();
        let job = Job { encoder: &Probe, source: &source, parameters: &parameters };
        let mut found = Vec::new();
        let stripes = (0..8).map(|index| (2 * index, 2));
        run.encode(job, stripes, |first, rows, encoded| {
            let Encoded { stripe, on_device } = encoded.unwrap();
            assert_eq!((stripe.rows.first_row, stripe.rows.rows), (first, rows));
            found.push((first, on_device, stripe.deviations.get(DEVICE_FAILED).copied().unwrap_or(0)));
            if let Some((_, device)) = lose_at.filter(|(row, _)| *row == first) {
                device.destroy();
            }
            Ok::<_, ()>(())
        })
        .unwrap();
        found
    }

    #[test]
    fn a_device_lost_on_the_way_costs_no_stripe() {
        let Some(device) = fixtures::device(None) else { return };
        let shared = SharedDevice::new(device.clone());
        let run = RunDevice::new(Some(&shared), true);
        let found = encode(&run, Some((4, &device)));
        let rows: Vec<usize> = found.iter().map(|(first, ..)| *first).collect();
        assert_eq!(rows, [0, 2, 4, 6, 8, 10, 12, 14]);
        assert!(found[..3].iter().all(|(_, on_device, failed)| *on_device && *failed == 0), "{found:?}");
        assert_eq!(found[7], (14, false, 1));
        assert!(matches!(shared.failure(), Some(ComputeError::Lost { .. })));
        assert!(encode(&run, None).iter().all(|(_, on_device, failed)| !on_device && *failed == 1));
        // Where the manifest does not name the device, neither does it name its failures.
        let quiet = RunDevice::new(Some(&shared), false);
        assert!(encode(&quiet, None).iter().all(|(_, on_device, failed)| !on_device && *failed == 0));
        assert!(quiet.name().is_none());
    }

    #[test]
    fn without_a_device_nothing_deviates() {
        let run = RunDevice::new(None, true);
        assert!(encode(&run, None).iter().all(|(_, on_device, failed)| !on_device && *failed == 0));
        assert!(run.name().is_none() && !run.takes(&Probe));
    }
}
