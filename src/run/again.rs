//! Makes some units once more, to see whether the same bytes come out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::AtomicBool,
    time::Instant,
};

use super::{
    Options, Silent, calibrate,
    device::RunDevice,
    journal::{Head, Journal},
    source_identity,
    staging::{Staging, remove_work_folder},
    work, workers,
};
use crate::{Result, layout::LogicalCheckpoint, manifest::ContentHash, plan::Plan};

/// Does some units of a plan and gives the hashes of the tensors that each becomes, on the processor. Works in the work folder
/// beside the plan's target, which takes no more of the disk than those units, and leaves nothing behind. What calibration
/// finds is found for the whole model.
///
/// # Errors
/// As for [`super::run`].
pub fn again(
    mut plan: Plan,
    source: &LogicalCheckpoint,
    units: &BTreeSet<usize>,
) -> Result<BTreeMap<usize, Vec<ContentHash>>> {
    for wave in &mut plan.memory.waves {
        wave.retain(|slab| units.contains(&slab.unit));
    }
    let made = workers(&plan)?.install(|| make(&plan, source));
    remove_work_folder(&plan.out)?;
    made
}

fn make(plan: &Plan, source: &LogicalCheckpoint) -> Result<BTreeMap<usize, Vec<ContentHash>>> {
    let options = Options {
        fresh: false,
        deny_fallbacks: false,
        device: None,
        record_device: false,
        stop: &AtomicBool::new(false),
        progress: &Silent,
    };
    let identity = source_identity(source);
    let mut staging = Staging::open(&plan.out)?;
    staging.prepare(plan, false)?;
    let mut journal = Journal::start(&staging.journal(), &Head::new(&plan.digest, &identity), &[])?;
    let found = calibrate(plan, source, &options, &staging, &identity, None)?;
    let mut records = BTreeMap::new();
    let device = RunDevice::new(None, false);
    let start = Instant::now();
    work(plan, source, &options, &staging, found.as_ref(), &device, &mut journal, &mut records, start)?;
    Ok(records.into_iter().map(|(unit, record)| (unit, record.outputs)).collect())
}
