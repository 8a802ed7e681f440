//! Passes over all states of a block on a graphics processor, and solving there; with how far the device came, so that the
//! processor can go on from there.

use super::{
    Moments, Note, Part, SolveFailure,
    driver::Worker,
    moments::on_device::{DeviceMoments, Seen},
    record::Step,
    streams::{Both, Pending, Stream, divided},
};
use crate::{
    Result,
    compute::{ComputeError, DEVICE_FAILED, Device, SharedDevice},
    forward::{
        Block, ForwardError, Linear, LinearSpec, Matrix, Store,
        on_device::{DeviceBlock, DeviceLinears, DeviceState, Trouble},
    },
    passes::gptq,
};

/// How far a device came.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// Batches whose states are done.
    pub(super) states: usize,
    /// Batches that are in the moments.
    pub(super) moments: usize,
    /// Whether nothing is left to do.
    pub(super) complete: bool,
    /// Who did it, and whether it failed.
    pub(super) note: Note,
}

impl Progress {
    /// What came out, with who did it; what is no device's fault goes on.
    fn end(mut self, shared: &SharedDevice, outcome: std::result::Result<Result<()>, ComputeError>) -> Result<Self> {
        match outcome {
            Ok(result) => {
                result?;
                self.complete = true;
            }
            Err(_) => self.note.failures = 1,
        }
        if self.states > 0 {
            self.note.device = Some(shared.name());
        }
        Ok(self)
    }
}

/// Why a device stops.
enum Stop {
    Device(ComputeError),
    Other(crate::Error),
}

/// The device's faults apart from all others.
fn ended(outcome: std::result::Result<(), Stop>) -> std::result::Result<Result<()>, ComputeError> {
    match outcome {
        Ok(()) => Ok(Ok(())),
        Err(Stop::Other(error)) => Ok(Err(error)),
        Err(Stop::Device(error)) => Err(error),
    }
}

impl From<ComputeError> for Stop {
    fn from(error: ComputeError) -> Self {
        Self::Device(error)
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Device(error) => Self::Device(error),
            Trouble::Model(error) => Self::Other(error.into()),
        }
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Other(ForwardError::from(error).into())
    }
}

/// One stream during a pass.
struct There<'a> {
    block: DeviceBlock<'a>,
    pending: Option<(usize, DeviceLinears<'a>)>,
}

impl<'a> There<'a> {
    fn new(
        device: &Device,
        block: &'a Block<'a>,
        pending: Option<(usize, &'a [Linear])>,
    ) -> std::result::Result<Self, ComputeError> {
        let pending = match pending {
            Some((stage, linears)) => Some((stage, DeviceLinears::place(device, linears)?)),
            None => None,
        };
        Ok(Self { block: DeviceBlock::new(device, block)?, pending })
    }

    /// Takes one batch through the stage that is pending: the state there and, where it has changed, here. Nothing is
    /// brought up unless it is needed.
    fn step(
        &mut self,
        device: &Device,
        from: &Store,
        batch: usize,
        needed: bool,
    ) -> std::result::Result<(Option<DeviceState>, Option<crate::forward::State>), Stop> {
        if self.pending.is_none() && !needed {
            return Ok((None, None));
        }
        let mut there = DeviceState::upload(device, &from.read(batch)?)?;
        let Some((stage, linears)) = &self.pending else { return Ok((Some(there), None)) };
        self.block.apply(device, *stage, &mut there, linears)?;
        let here = self.block.download(device, *stage, &there)?;
        Ok((Some(there), Some(here)))
    }
}

/// A stream, the block as it has it, and the stage that is still to be applied with its linears.
type Side<'a> = (&'a Stream, &'a Block<'a>, Option<(usize, &'a [Linear])>);

/// What a pass does with each of the streams.
pub(super) struct Streams<'a> {
    pub(super) main: Side<'a>,
    pub(super) dense: Option<Side<'a>>,
    /// What folds divide the original model's input by.
    pub(super) scales: Option<&'a [f64]>,
}

/// Sums that are gathered there, or here where they do not fit there.
enum Sums {
    There(Box<DeviceMoments>),
    Here,
    Nowhere,
}

/// One pass over all states as far as the device goes.
///
/// # Errors
/// Whatever is not the device's fault.
pub(super) fn pass(
    shared: &SharedDevice,
    clock: &super::Clock,
    streams: &Streams<'_>,
    stage: usize,
    batches: usize,
    mut moments: Option<&mut Moments>,
) -> Result<Progress> {
    let mut progress = Progress::default();
    let outcome = shared.attempt(|device| {
        let mut work = || -> std::result::Result<(), Stop> {
            let place = |(_, block, pending): (&Stream, _, _)| There::new(device, block, pending);
            let mut main = place(streams.main)?;
            let mut dense = streams.dense.map(place).transpose()?;
            let mut sums = match moments.as_deref_mut() {
                None => Sums::Nowhere,
                Some(moments) => DeviceMoments::new(device, moments, streams.scales)?
                    .map_or(Sums::Here, |sums| Sums::There(Box::new(sums))),
            };
            for batch in 0..batches {
                let needed = !matches!(sums, Sums::Nowhere);
                let states = clock.time(Part::Forward, || -> std::result::Result<_, Stop> {
                    let one = main.step(device, from(streams.main.0, stage), batch, needed)?;
                    let other = match (&mut dense, streams.dense) {
                        (Some(dense), Some((stream, ..))) => {
                            Some(dense.step(device, from(stream, stage), batch, needed)?)
                        }
                        _ => None,
                    };
                    // Nothing is written before both are there: a batch is done once.
                    keep(streams.main.0, stage, batch, one.1)?;
                    let other = match (other, streams.dense) {
                        (Some((there, here)), Some((stream, ..))) => {
                            keep(stream, stage, batch, here)?;
                            there
                        }
                        _ => None,
                    };
                    Ok((one.0, other))
                })?;
                progress.states = batch + 1;
                let (Some(one), other) = states else { continue };
                clock.time(Part::Moments, || -> std::result::Result<(), Stop> {
                    let x = main.block.input(device, stage, &one)?;
                    let original = match (&dense, &other) {
                        (Some(dense), Some(other)) => Some(dense.block.input(device, stage, other)?),
                        _ => None,
                    };
                    let hidden = other.as_ref().map(|other| (&one.hidden, &other.hidden));
                    match (&mut sums, moments.as_deref_mut()) {
                        (Sums::There(sums), _) => {
                            sums.add(device, Seen { x: &x, dense: original.as_deref(), hidden })?;
                        }
                        (Sums::Here, Some(moments)) => {
                            let down = |matrix: &crate::compute::kernels::DeviceMatrix| {
                                let values = matrix.download(device)?;
                                Ok::<_, ComputeError>(Matrix { rows: matrix.rows, columns: matrix.columns, values })
                            };
                            let x = down(&x)?;
                            let original = original.map(|original| down(&original)).transpose()?;
                            let hidden = match hidden.filter(|_| !moments.residual.is_empty()) {
                                Some((main, dense)) => Some((down(main)?, down(dense)?)),
                                None => None,
                            };
                            moments.add(&x, original.map(|original| divided(original, streams.scales)).as_ref());
                            if let Some((main, dense)) = &hidden {
                                moments.add_residual(&x, dense, main);
                            }
                            progress.moments = batch + 1;
                        }
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            if let (Sums::There(sums), Some(moments)) = (sums, moments.as_deref_mut()) {
                clock.time(Part::Moments, || sums.finish(device, moments))?;
                progress.moments = batches;
            }
            Ok(())
        };
        ended(work())
    });
    progress.end(shared, outcome)
}

/// The states that a pass starts from.
fn from(stream: &Stream, stage: usize) -> &Store {
    if stage == 0 { &stream.current } else { &stream.working }
}

/// Puts a state aside that has changed, or that the next pass expects in the working store.
fn keep(
    stream: &Stream,
    stage: usize,
    batch: usize,
    changed: Option<crate::forward::State>,
) -> std::result::Result<(), Stop> {
    match changed {
        Some(state) => stream.working.write(batch, &state)?,
        None if stage == 0 => stream.working.write(batch, &stream.current.read(batch)?)?,
        None => {}
    }
    Ok(())
}

/// Takes all states through the last stage of a block into `next`; gives the batches done, and what the device did.
///
/// # Errors
/// Whatever is not the device's fault.
pub(super) fn advance(
    shared: &SharedDevice,
    from: &Store,
    next: &Store,
    block: &Block<'_>,
    pending: (usize, &[Linear]),
) -> Result<Progress> {
    let mut progress = Progress::default();
    let outcome = shared.attempt(|device| {
        let mut work = || -> std::result::Result<(), Stop> {
            let mut there = There::new(device, block, Some(pending))?;
            for batch in 0..from.batches() {
                if let (_, Some(here)) = there.step(device, from, batch, true)? {
                    next.write(batch, &here)?;
                }
                progress.states = batch + 1;
            }
            Ok(())
        };
        ended(work())
    });
    progress.end(shared, outcome)
}

/// Solves a layer, on the device as far as it goes.
///
/// # Errors
/// As [`gptq::solve_towards`].
pub(super) fn solve(
    shared: Option<&SharedDevice>,
    factor: &gptq::Factor,
    moments: &gptq::Moments<'_>,
    linear: &gptq::Linear<'_>,
    residual: Option<&[f32]>,
    options: &gptq::SolveOptions,
) -> std::result::Result<(gptq::Solution, Note), gptq::SolveError> {
    let mut note = Note::default();
    if let Some(shared) = shared {
        match shared.attempt(|device| gptq::solve_on(device, factor, moments, linear, residual, options)) {
            Ok(Some(solution)) => {
                note.device = Some(shared.name());
                return Ok((solution?, note));
            }
            Ok(None) => {}
            Err(_) => note.failures = 1,
        }
    }
    Ok((gptq::solve_towards(factor, moments, linear, residual, options)?, note))
}

impl Worker<'_> {
    /// What devices did for the statistics of a stage of the block in hand.
    pub(super) fn noted(&self, stage: usize) -> Note {
        let saved = self.saved.is_some().then(|| self.job.device.map(SharedDevice::name)).flatten();
        self.notes.get(&stage).cloned().unwrap_or(Note { device: saved, failures: 0 })
    }

    /// Remembers what a device did for the inputs of linears that something has to be known of; refuses where it failed and
    /// that is denied.
    pub(super) fn note_inputs(&mut self, linears: &[LinearSpec], note: &Note) -> Result<()> {
        if !self.needs_input(linears) || self.is_known(linears) {
            return Ok(());
        }
        for linear in linears.iter().filter(|linear| self.encodes.contains_key(linear.weight.as_str())) {
            self.solutions.note(&linear.weight, Step::Moments, note)?;
        }
        Ok(())
    }

    /// Refuses what a device failed at, if that is denied.
    pub(super) fn deny(&self, linears: &[LinearSpec], note: &Note) -> Result<()> {
        if !self.job.deny_fallbacks || note.failures == 0 {
            return Ok(());
        }
        let tensor = linears.first().map(|linear| linear.weight.clone()).unwrap_or_default();
        Err(SolveFailure::Denied { tensor, kind: DEVICE_FAILED.to_owned(), count: note.failures }.into())
    }

    /// One pass on the device, if there is one.
    pub(super) fn pass_on_device(
        &self,
        block: &Both<'_>,
        stage: usize,
        pending: Option<&Pending>,
        moments: Option<&mut Moments>,
    ) -> Result<Progress> {
        let Some(shared) = self.job.device else { return Ok(Progress::default()) };
        let linears = &block.main.spec.stages[stage].linears;
        let pending_dense = pending.map(|pending| (pending.stage, &pending.dense[..]));
        let pending_main = if self.job.solve.compressed {
            pending.map(|pending| (pending.stage, &pending.compressed[..]))
        } else {
            pending_dense
        };
        let streams = Streams {
            main: (&self.main, block.main, pending_main),
            dense: self.dense.as_ref().map(|dense| (dense, block.dense, pending_dense)),
            scales: linears.first().and_then(|linear| self.transforms.columns(linear)),
        };
        let progress = pass(shared, &self.solutions.clock, &streams, stage, self.main.working.batches(), moments)?;
        self.deny(linears, &progress.note)?;
        Ok(progress)
    }
}
