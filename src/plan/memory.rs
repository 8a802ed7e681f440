//! The memory model and the schedule that keeps to it.
//!
//! Work is cut into *slabs*: some stripes of one unit. Slabs are gathered into *waves*; the workers share the stripes
//! of one wave, then its results are written and its mapped pages given back. So the resident set is one wave's source
//! pages and results, a stripe of scratch per worker, and what is kept once per unit. None of it grows with the model.
//! The cut never changes a byte of output: stripes are fixed by the matrix's shape, results are joined in order.

use std::ops::Range;

use super::{Action, Options, PlanError, Unit};
use crate::{
    checkpoint::bits_of,
    codec::{Coding, Whole, pyramid::lanes::LANES, taylor::TELLING_ROWS},
    compute::{AdapterKind, ring_bytes},
    layout::{Layout, STRIPE_ALIGNMENT},
    run::STRIPES_IN_FLIGHT,
};

/// Weights of one stripe, at least: enough work to be worth a task.
const STRIPE_WEIGHTS: usize = 256 * 1024;
/// Bytes of one chunk of a plain copy.
pub(crate) const COPY_CHUNK_BYTES: u64 = 4 << 20;
/// The process before any work: code, allocator, thread pool, tables. Measured 21 MB; rounded up.
const BASE_BYTES: u64 = 40 << 20;
/// Stack and allocator caches of one worker.
const WORKER_BYTES: u64 = 3 << 20;
/// Headers, plan and journal records of one stored tensor, beside its name. Measured 1.1 KB.
const TENSOR_BYTES: u64 = 2 << 10;
/// F32 copies of a matrix that is encoded as a whole: the source, the rotated, the decoded one, and one in work.
const WHOLE_BYTES_PER_WEIGHT: u64 = 16;
/// What merging takes: the base, the sum, one model's change, the places kept of it and the keys that rank it.
const MERGE_BYTES_PER_WEIGHT: u64 = 32;
/// What points of pyramids take beside that while they are found: the target, values and differences in F32, points in 16
/// bits, in chunks of vectors of which the last one is filled up.
const POINTS_BYTES_PER_WEIGHT: u64 = 14;
/// A device's driver with compiled kernels. Measured 70 MB with Mesa's software adapter; rounded up.
const DRIVER_BYTES: u64 = 128 << 20;
/// Default working set of one wave and worker.
const WAVE_BYTES_PER_THREAD: u64 = 48 << 20;

/// Consecutive stripes of one unit: the unit's part in one wave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slab {
    /// Index into [`super::Plan::units`].
    pub unit: usize,
    /// Rows of the matrix; bytes of the tensor for a copy.
    pub range: Range<u64>,
}

/// The schedule and what it needs.
#[derive(Debug)]
pub struct MemoryPlan {
    /// Worker threads.
    pub threads: usize,
    /// Upper bound of resident memory in bytes.
    pub peak_bytes: u64,
    /// The smallest budget that this plan could be made with, with these threads.
    pub smallest_bytes: u64,
    /// Disk space beside the artifact, in bytes.
    pub scratch_disk_bytes: u64,
    /// The waves, in order.
    pub waves: Vec<Vec<Slab>>,
}

/// Rows of one stripe of a matrix of so many columns.
pub(crate) fn stripe_rows(columns: usize) -> usize {
    let unit = STRIPE_ALIGNMENT * columns.max(1);
    STRIPE_ALIGNMENT * STRIPE_WEIGHTS.div_ceil(unit)
}

/// What a unit costs: once, and per row (or byte).
struct Cost {
    /// Kept from the unit's first slab to its last.
    fixed: u64,
    /// Resident per row of a slab.
    per_row: u64,
    /// Rows.
    rows: u64,
    /// Rows of a stripe.
    step: u64,
    /// Scratch of a worker on one stripe.
    scratch: u64,
}

fn cost(unit: &Unit, target: &dyn Layout) -> Cost {
    let rows = unit.extent();
    if matches!(unit.action, Action::Copy | Action::Same) {
        return Cost { fixed: 0, per_row: 1, rows, step: COPY_CHUNK_BYTES, scratch: 0 };
    }
    let columns = unit.columns();
    let step = unit.stripe_rows() as u64;
    let per_row_source = unit.source_bytes.div_ceil(rows.max(1));
    let per_row_output = unit.bytes().div_ceil(rows.max(1));
    // Decoded, and what decoding takes for a while.
    let (mut fixed, mut per_row) = (8 * unit.decoded_at_once, per_row_output);
    fixed += unit.base_bytes;
    if unit.rows_are_contiguous() {
        per_row += per_row_source;
    } else {
        fixed += unit.source_bytes;
    }
    if let Action::Encode(encode) = &unit.action {
        if encode.settings.needs_calibration() || encode.is_solved() {
            // The codes that calibration found, a byte each, and the file they come from.
            fixed += 2 * unit.weights + unit.bytes();
        }
        if target.interleaves(&encode.matrix) {
            fixed += unit.bytes();
        }
        if let Some(outliers) = encode.matrix.codec.scalar().and_then(|codec| codec.outliers) {
            fixed += outliers.count * 16 + rows * 8;
        }
    }
    // A stripe in codes: a byte per weight, scales and zeros as F32; the row in F32 (source, decoded, scratch).
    let mut scratch = step.min(rows) * (columns as u64 + per_row_output * 2) + columns as u64 * 16;
    if let Some(encode) = unit.whole_matrix() {
        // The matrix as it is, rotated, decoded, and what decoding keeps of a row of vectors.
        let rows = step.min(rows);
        scratch += rows * columns as u64 * WHOLE_BYTES_PER_WEIGHT;
        if let Coding::Whole(Whole::Pyramid(pyramid)) = &encode.matrix.codec {
            let padded = rows.next_multiple_of((pyramid.dimension * LANES) as u64);
            scratch += padded * columns as u64 * POINTS_BYTES_PER_WEIGHT;
        }
        if let Coding::Whole(Whole::LowRank(format)) = &encode.matrix.codec {
            scratch += decomposition_bytes(format.rank as u64, rows, columns as u64);
        }
        if let Coding::Whole(Whole::Factors(_)) = &encode.matrix.codec {
            // Weights, their products and factors in F64; products of outputs and their decomposition.
            scratch += rows * columns as u64 * FACTORS_BYTES_PER_WEIGHT + rows * rows * GRAM_BYTES_PER_PRODUCT;
        }
        if let Coding::Whole(Whole::Taylor(format)) = &encode.matrix.codec {
            // The terms as they are stored; a few of their rows in F32.
            let terms = (format.order as u64 + 1) * format.units as u64;
            scratch += terms * (rows * bits_of(format.terms) as u64 / 8 + 4 * TELLING_ROWS as u64);
            if format.hardened {
                // The merged terms, as numbers and as bytes; columns and rows of down and up, once more scaled.
                scratch += rows * rows * 8 + format.units as u64 * rows * 4 * 4;
            }
        }
        if unit.base_bytes > 0 {
            // The base in F32.
            scratch += rows * columns as u64 * 4;
        }
    }
    if matches!(unit.action, Action::Merge(_)) {
        scratch += step.min(rows) * columns as u64 * MERGE_BYTES_PER_WEIGHT;
    }
    Cost { fixed, per_row, rows, step, scratch }
}

/// F64 copies of a matrix that is factored: its weights, their products, and factors of full rank.
pub(crate) const FACTORS_BYTES_PER_WEIGHT: u64 = 32;
/// Products of outputs, their eigenvectors, and what the decomposition works in.
pub(crate) const GRAM_BYTES_PER_PRODUCT: u64 = 64;

/// What finding leading singular vectors takes in F64: the matrix and a few thin ones, or, where the rank is a good part of the
/// smaller side, the whole decomposition.
fn decomposition_bytes(rank: u64, rows: u64, columns: u64) -> u64 {
    let width = rank + 8;
    if 3 * width >= rows.min(columns) {
        rows * columns * 56
    } else {
        rows * columns * 8 + 32 * width * (rows + columns)
    }
}

/// Makes the schedule for a budget.
pub(super) fn schedule(
    units: &[Unit],
    target: &dyn Layout,
    stored: usize,
    options: &Options,
) -> Result<MemoryPlan, PlanError> {
    let costs: Vec<Cost> = units.iter().map(|unit| cost(unit, target)).collect();
    let names: u64 = units.iter().map(|unit| unit.name.len() as u64 * 8).sum();
    let threads = options.threads.max(1);
    let scratch = costs.iter().map(|cost| cost.scratch).max().unwrap_or(0);
    let base = BASE_BYTES + names + stored as u64 * TENSOR_BYTES + threads as u64 * (WORKER_BYTES + scratch);
    let weights = units.iter().filter_map(stripe_weights).max();
    let base = base + options.device.zip(weights).map_or(0, |(kind, weights)| device_bytes(kind, weights, threads));
    // The largest single stripe with its unit's fixed part: a wave can hold no less.
    let largest = costs.iter().map(|cost| cost.fixed + cost.per_row * cost.step.min(cost.rows)).max().unwrap_or(0);
    let smallest_bytes = base + largest;
    let wave_bytes = match options.max_memory_bytes {
        Some(budget) if budget < smallest_bytes => {
            return Err(PlanError::Memory { budget_bytes: budget, smallest_bytes, threads });
        }
        Some(budget) => (budget - base).min(WAVE_BYTES_PER_THREAD * threads as u64).max(largest),
        None => (WAVE_BYTES_PER_THREAD * threads as u64).max(largest),
    };
    let waves = cut(&costs, wave_bytes);
    let peak = waves.iter().map(|wave| wave_cost(wave, &costs)).max().unwrap_or(0);
    Ok(MemoryPlan { threads, peak_bytes: base + peak, smallest_bytes, scratch_disk_bytes: journal_bytes(units), waves })
}

/// Weights of the largest stripe of a unit that may be encoded on a device.
fn stripe_weights(unit: &Unit) -> Option<u64> {
    let Action::Encode(encode) = &unit.action else { return None };
    Some((stripe_rows(encode.matrix.columns).min(encode.matrix.rows) * encode.matrix.columns) as u64)
}

/// What a device needs of the processor's memory: its driver, the ring on the way up, and for each stripe on its way its
/// codes in a slot on the way down and as they are taken out of it, with as much for extremes and scales; the weights of
/// the stripe in hand in F32 where they are not stored so that they can be sent as they are. Where the device's memory is
/// the processor's, also what lies there: weights of up to four bytes, codes, and as much for extremes and scales.
fn device_bytes(kind: AdapterKind, weights: u64, threads: usize) -> u64 {
    let shared = matches!(kind, AdapterKind::Software | AdapterKind::Integrated | AdapterKind::Unknown);
    let of_stripe = weights.saturating_mul(if shared { 3 + 6 } else { 3 });
    let of_worker = of_stripe.saturating_mul(STRIPES_IN_FLIGHT).saturating_add(4 * weights);
    (DRIVER_BYTES + ring_bytes(threads)).saturating_add(of_worker.saturating_mul(threads as u64))
}

fn wave_cost(wave: &[Slab], costs: &[Cost]) -> u64 {
    wave.iter()
        .map(|slab| costs[slab.unit].fixed + costs[slab.unit].per_row * (slab.range.end - slab.range.start))
        .sum()
}

/// Cuts the units into waves of at most `wave_bytes` each, in order.
fn cut(costs: &[Cost], wave_bytes: u64) -> Vec<Vec<Slab>> {
    let mut waves = Vec::new();
    let mut wave: Vec<Slab> = Vec::new();
    let mut left = wave_bytes;
    for (unit, cost) in costs.iter().enumerate() {
        let mut at = 0;
        loop {
            let stripe = cost.step.min(cost.rows - at);
            let needed = cost.fixed + cost.per_row * stripe;
            if needed > left && !wave.is_empty() {
                waves.push(std::mem::take(&mut wave));
                left = wave_bytes;
            }
            // All that is left of the unit if it fits, else as many whole stripes as fit, at least one.
            let fitting = left.saturating_sub(cost.fixed).checked_div(cost.per_row).unwrap_or(u64::MAX);
            let rows = match cost.rows - at {
                remaining if remaining <= fitting => remaining,
                remaining => (fitting / cost.step).max(1).saturating_mul(cost.step).min(remaining),
            };
            wave.push(Slab { unit, range: at..at + rows });
            left = left.saturating_sub(cost.fixed + cost.per_row * rows);
            at += rows;
            if at >= cost.rows {
                break;
            }
        }
    }
    if !wave.is_empty() {
        waves.push(wave);
    }
    waves
}

/// The journal: a line per unit, with a hash per stored tensor.
fn journal_bytes(units: &[Unit]) -> u64 {
    units.iter().map(|unit| 512 + 80 * (unit.parts.len() + unit.outputs.len()) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::{AdapterKind, Cost, cut, device_bytes, stripe_rows, wave_cost};

    #[test]
    fn a_device_needs_memory_for_its_ring_and_for_each_stripe_on_its_way() {
        // A stripe of 64 Ki weights: 128 MiB of driver, 16 MiB of ring and 8 MiB more for each thread, and in units of
        // 64 KiB 5 · 3 + 4 for each.
        let discrete = |threads| device_bytes(AdapterKind::Discrete, 64 << 10, threads) >> 16;
        assert_eq!((discrete(1), discrete(4)), ((152 << 4) + 19, (176 << 4) + 4 * 19));
        assert_eq!(device_bytes(AdapterKind::Integrated, 64 << 10, 1) >> 16, (152 << 4) + 49);
        assert_eq!(device_bytes(AdapterKind::Software, u64::MAX / 8, 64), u64::MAX);
    }

    fn cost(fixed: u64, per_row: u64, rows: u64, step: u64) -> Cost {
        Cost { fixed, per_row, rows, step, scratch: 0 }
    }

    #[test]
    fn every_row_is_in_exactly_one_slab_and_no_wave_is_over_budget() {
        let costs =
            [cost(0, 1, 10, 4), cost(100, 3, 1000, 128), cost(0, 0, 0, 1), cost(5, 2, 64, 128), cost(0, 1, 5000, 400)];
        for budget in [500, 700, 1500, 100_000] {
            let waves = cut(&costs, budget);
            let mut next = vec![0; costs.len()];
            for wave in &waves {
                assert!(wave_cost(wave, &costs) <= budget, "{budget}: {wave:?}");
                for slab in wave {
                    assert_eq!(slab.range.start, next[slab.unit]);
                    assert!(slab.range.start % costs[slab.unit].step == 0);
                    next[slab.unit] = slab.range.end;
                }
                let mut units: Vec<usize> = wave.iter().map(|slab| slab.unit).collect();
                units.dedup();
                assert_eq!(units.len(), wave.len(), "a unit has one slab in a wave");
            }
            assert_eq!(next, costs.iter().map(|cost| cost.rows).collect::<Vec<_>>());
        }
    }

    #[test]
    fn stripes_are_aligned_and_large_enough() {
        for columns in [1, 7, 64, 2048, 28672, 1 << 22] {
            let rows = stripe_rows(columns);
            assert_eq!(rows % 128, 0);
            assert!(rows * columns >= 256 * 1024);
        }
    }
}
