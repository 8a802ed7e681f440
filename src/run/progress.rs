//! How far a run is. The command line draws it; the run only tells.

use std::time::{Duration, Instant};

use crate::plan::{Plan, Slab};

/// Is told after every wave.
pub trait Progress: Sync {
    /// The state of the run.
    fn update(&self, status: &Status);

    /// Calibration works on this block (from 0), of so many.
    fn calibrating(&self, _block: usize, _blocks: usize, _what: &str) {}

    /// So many steps of a training are done, of so many; the loss is that before the last of them.
    fn training(&self, _step: u64, _steps: u64, _loss: f64) {}
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _status: &Status) {}
}

/// The state of a run between two waves.
#[derive(Debug, Clone)]
pub struct Status {
    /// Units done, those of earlier runs included.
    pub units_done: usize,
    /// Units in all.
    pub units: usize,
    /// Source bytes worked on in this run.
    pub bytes_done: u64,
    /// Source bytes that this run has to work on.
    pub bytes: u64,
    /// The unit worked on last.
    pub current: String,
    /// Since the run began.
    pub elapsed: Duration,
    start: Instant,
    writing: Instant,
}

impl Status {
    pub(super) fn new(plan: &Plan, done: impl Iterator<Item = usize>, start: Instant) -> Self {
        let mut bytes: u64 = plan.units.iter().map(|unit| unit.source_bytes).sum();
        let mut units_done = 0;
        for unit in done {
            bytes -= plan.units[unit].source_bytes;
            units_done += 1;
        }
        let units = plan.units.len();
        let (elapsed, writing) = (start.elapsed(), Instant::now());
        Self { units_done, units, bytes_done: 0, bytes, current: String::new(), elapsed, start, writing }
    }

    pub(super) fn advance(&mut self, plan: &Plan, wave: &[Slab], done: impl Iterator<Item = usize>) {
        for slab in wave {
            let unit = &plan.units[slab.unit];
            let share = u128::from(slab.range.end - slab.range.start) * u128::from(unit.source_bytes);
            self.bytes_done += u64::try_from(share / u128::from(unit.extent().max(1))).unwrap_or(u64::MAX);
            self.current.clone_from(&unit.name);
        }
        self.units_done += done.count();
        self.elapsed = self.start.elapsed();
    }

    /// Source bytes per second since calibration was done; none while nothing is.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        (self.bytes_done > 0).then(|| self.bytes_done as f64 / self.writing.elapsed().as_secs_f64().max(1e-9))
    }

    /// The time left at this rate.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let rate = self.bytes_per_second()?.max(1.0);
        Some(Duration::from_secs_f64((self.bytes.saturating_sub(self.bytes_done)) as f64 / rate))
    }
}
