//! Device memory as a budget: wgpu does not tell how much there is, so what may be used is said beforehand.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::ComputeError;

/// Counts the bytes of all buffers of a device.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: u64,
    used: AtomicU64,
}

/// Some bytes of a budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, used: AtomicU64::new(0) })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, or refuses.
    pub(super) fn lease(self: &Arc<Self>, label: &str, bytes: u64) -> Result<Lease, ComputeError> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.bytes);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Lease { budget: Arc::clone(self), bytes }),
            Err(used) => Err(ComputeError::Budget { label: label.to_owned(), bytes, used, budget: self.bytes }),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_refuses_what_does_not_fit_and_takes_bytes_back() {
        let budget = Budget::new(100);
        let first = budget.lease("first", 60).unwrap();
        let refused = budget.lease("second", 41).unwrap_err();
        assert_eq!(refused, ComputeError::Budget { label: "second".into(), bytes: 41, used: 60, budget: 100 });
        assert!(budget.lease("overflowing", u64::MAX).is_err());
        drop(first);
        assert_eq!(budget.used(), 0);
        budget.lease("all", 100).unwrap();
    }
}
