//! Where the time of calibration goes, for the run log.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Reading and decoding weights.
    Weights,
    /// Hashing hidden states at the end of a block.
    States,
    /// The forward pass, with reading and writing hidden states.
    Forward,
    /// Second moments and channel figures.
    Moments,
    /// Factorisation of second moments.
    Factor,
    /// Sweep and refinement.
    Solve,
}

const NAMES: [&str; 6] = ["weights", "states", "forward", "moments", "factor", "solve"];

/// Seconds of each part.
#[derive(Debug, Default)]
pub struct Clock([AtomicU64; 6]);

impl Clock {
    /// Does something and counts the time it takes.
    pub fn time<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.0[part as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    /// Seconds by name.
    #[must_use]
    pub fn seconds(&self) -> std::collections::BTreeMap<String, f64> {
        let seconds = |nanoseconds: &AtomicU64| nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        NAMES.iter().zip(&self.0).map(|(name, part)| ((*name).to_owned(), seconds(part))).collect()
    }
}
