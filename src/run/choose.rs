//! `--device auto`: whether the device is faster, found out on some stripes of the plan itself.
//!
//! Only the time can differ: what may be chosen gives the processor's bytes. Nothing is opened for work that the processor
//! does in about the time that opening takes.

use std::time::Instant;

use rayon::prelude::*;

use super::device::{Job, RunDevice};
use crate::{
    codec::{MatrixParameters, RowSource},
    compute::{AdapterKind, ComputeError, Device, SharedDevice},
    layout::LogicalCheckpoint,
    passes::MatrixEncoder,
    plan::{Action, Plan, Unit},
};

/// Work of fewer seconds on the processor is not worth a device: opening one takes 0.1 to 0.6 seconds, its kernels some
/// tens of milliseconds each.
const WORTH_OPENING_SECONDS: f64 = 3.0;
/// Stripes of the probe, for each thread.
const STRIPES_PER_THREAD: usize = 4;
/// How many times as fast the device has to be: what is within this of the processor is noise.
const CLEARLY_FASTER: f64 = 1.2;

/// What `--device auto` came to.
#[derive(Debug)]
pub struct Chosen {
    /// The device, if it is the faster one.
    pub device: Option<Device>,
    /// Why, in one line.
    pub reason: String,
}

/// Chooses for the encodings of a plan that a device has kernels for; `open` opens the device. Takes a few stripes' time.
pub fn choose(plan: &Plan, source: &LogicalCheckpoint, open: impl FnOnce() -> Result<Device, ComputeError>) -> Chosen {
    let processor = |reason: String| Chosen { device: None, reason: format!("computing on the processor: {reason}") };
    if plan.solve.is_some() {
        return processor("what calibration finds must not depend on a device that was not asked for".to_owned());
    }
    let Some((probe, weights)) = Probe::new(plan, source) else {
        return processor("devices have no kernels for this".to_owned());
    };
    let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(plan.memory.threads).build() else {
        return processor("no threads to measure with".to_owned());
    };
    let seconds = |device: &RunDevice<'_>| {
        // The first time reads pages and makes pipelines.
        pool.install(|| probe.run(device))?;
        pool.install(|| probe.run(device))
    };
    let Some(on_processor) = seconds(&RunDevice::new(None, false)) else {
        return processor("its weights cannot be encoded".to_owned());
    };
    let shares = weights as f64 / probe.weights().max(1) as f64;
    if on_processor * shares < WORTH_OPENING_SECONDS {
        return processor(format!("{:.1} s of work are too little for a device", on_processor * shares));
    }
    let device = match open() {
        Ok(device) if device.adapter().kind == AdapterKind::Software => {
            return processor(format!("{} is no device of its own", device.adapter().name));
        }
        Ok(device) => device,
        Err(error) => return processor(error.to_string()),
    };
    let shared = SharedDevice::new(device.clone());
    let on_device = seconds(&RunDevice::new(Some(&shared), false)).filter(|_| shared.failure().is_none());
    let name = device.adapter().name.clone();
    match on_device {
        None => processor(format!("{name} failed at a probe")),
        Some(on_device) if on_device * CLEARLY_FASTER < on_processor => Chosen {
            reason: format!("computing on {name}: {:.1} times as fast as the processor", on_processor / on_device),
            device: Some(device),
        },
        Some(on_device) => processor(format!("{:.1} times as fast as {name}", on_device / on_processor)),
    }
}

/// Some stripes of a matrix.
struct Probe<'a> {
    encoder: Box<dyn MatrixEncoder>,
    rows: Box<dyn RowSource + 'a>,
    parameters: MatrixParameters,
    stripes: Vec<(usize, usize)>,
    columns: usize,
}

impl<'a> Probe<'a> {
    /// Stripes of the largest matrix that a device has kernels for, and the weights of all of those; `None` where there are
    /// none.
    fn new(plan: &Plan, source: &'a LogicalCheckpoint) -> Option<(Self, u64)> {
        let fitting = || plan.units.iter().filter_map(|unit| Some((unit, encoder(unit)?)));
        let weights = fitting().map(|(unit, _)| unit.weights).sum();
        let (unit, encoder) = fitting().max_by_key(|(unit, _)| unit.weights)?;
        let Action::Encode(encode) = &unit.action else { return None };
        let rows = source.rows(&unit.name, encode.matrix.transposed).ok()?;
        let parameters = encoder.prepare(rows.as_ref()).ok()?;
        let (step, end) = (unit.stripe_rows(), encode.matrix.rows);
        let stripes = (0..end).step_by(step).map(|first| (first, step.min(end - first)));
        let stripes = stripes.take(plan.memory.threads * STRIPES_PER_THREAD).collect();
        Some((Self { encoder, rows, parameters, stripes, columns: unit.columns() }, weights))
    }

    fn weights(&self) -> u64 {
        self.stripes.iter().map(|(_, rows)| (rows * self.columns) as u64).sum()
    }

    /// Seconds that the stripes take; `None` where one cannot be encoded.
    fn run(&self, device: &RunDevice<'_>) -> Option<f64> {
        let job = || Job { encoder: self.encoder.as_ref(), source: self.rows.as_ref(), parameters: &self.parameters };
        let start = Instant::now();
        let done = self.stripes.par_chunks(STRIPES_PER_THREAD).try_for_each(|stripes| {
            device.encode(job(), stripes.iter().copied(), |_, _, encoded| encoded.map(|encoded| drop(encoded.stripe)))
        });
        done.ok().map(|()| start.elapsed().as_secs_f64())
    }
}

/// The encoder of a unit that a device has kernels for.
fn encoder(unit: &Unit) -> Option<Box<dyn MatrixEncoder>> {
    let Action::Encode(encode) = &unit.action else { return None };
    if encode.matrix.is_whole() {
        return None;
    }
    let encoder = encode.settings.encoder(&encode.pass_matrix, &encode.choice);
    encoder.runs_on_devices().then_some(encoder)
}
