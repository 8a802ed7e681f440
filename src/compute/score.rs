//! How fast a device is, in about two seconds and never much more than ten: enough to compare adapters by.

use std::time::{Duration, Instant};

use super::{
    AdapterKind, ComputeError, Device, Kernel,
    kernels::{self, DeviceMatrix, Product},
};

/// Bytes of each of the two buffers that are copied.
const COPY_BYTES: u64 = 64 << 20;
/// Threads of the multiply-add loop: several for every lane of the largest devices.
const THREADS: u64 = 1 << 17;
/// Floating-point operations of one round of one thread: a product and a sum of 16 floats.
const OPERATIONS: u64 = 32;
/// A measurement is repeated with twice the work until it takes at least this long.
const LONG_ENOUGH: Duration = Duration::from_millis(80);
const MOST_WORK: u64 = 1 << 14;
/// A measurement that would end later than this after the first one began is not repeated.
const DEADLINE: Duration = Duration::from_secs(10);
/// Left of the budget for the uniform blocks of a measurement's kernels.
const UNIFORM_BYTES: u64 = MOST_WORK * 32;
/// Rows, columns and depth of the product, on software adapters and on others.
const SOFTWARE_EDGE: usize = 512;
const EDGE: usize = 2048;

/// Rates measured on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Bytes read and written per second by a kernel that copies.
    pub copy_bytes_per_second: f64,
    /// F32 operations per second of a loop of multiply-adds.
    pub multiply_add_per_second: f64,
    /// F32 operations per second of a product of square matrices.
    pub product_per_second: f64,
    /// Bytes per second from the processor's memory to the device.
    pub upload_bytes_per_second: f64,
    /// Bytes per second from the device back.
    pub read_back_bytes_per_second: f64,
}

/// Measures a device; takes 128 MiB of its budget, less where the budget or a binding is smaller.
///
/// # Errors
/// [`ComputeError`] when the device fails.
pub fn score(device: &Device) -> Result<Score, ComputeError> {
    let (used, budget) = device.memory_bytes();
    let half = budget.saturating_sub(used + UNIFORM_BYTES) / 2;
    let deadline = Instant::now() + DEADLINE;
    let bytes = (COPY_BYTES.min(device.limits().binding_bytes).min(half) / 16 * 16).max(16);
    let host = vec![0x3f; bytes as usize];
    let values = device.allocate("score: values", bytes)?;
    let out = device.allocate("score: out", bytes)?;
    let buffers = [(&values).into(), (&out).into()];
    let run = |entry: &'static str, count: u64, rounds: u64, times: u64| {
        let kernel = Kernel::new("score", kernels::SCORE, entry);
        let groups = kernels::linear_groups(&device.limits(), count);
        let mut batch = device.batch();
        for _ in 0..times {
            batch.add(&kernel, &buffers, &kernels::words(&[count, rounds]), groups)?;
        }
        batch.submit()?;
        device.finish()
    };
    // The first use of everything costs more: pipelines, pages, clocks.
    device.write(&values, 0, &host)?;
    run("copy", bytes / 16, 0, 1)?;
    let threads = THREADS.min(bytes / 16);
    run("multiply_add", threads, 1, 1)?;
    device.read(&out)?;
    let upload = rate(deadline, |work| {
        (0..work).try_for_each(|_| device.write(&values, 0, &host))?;
        device.finish()
    })?;
    let copy = rate(deadline, |work| run("copy", bytes / 16, 0, work))?;
    let multiply_add = rate(deadline, |work| run("multiply_add", threads, 16 * work, 1))?;
    let read_back = rate(deadline, |work| (0..work).try_for_each(|_| device.read(&out).map(drop)))?;
    drop((values, out));
    let product_per_second = products(device, deadline)?;
    Ok(Score {
        product_per_second,
        copy_bytes_per_second: copy * 2.0 * bytes as f64,
        multiply_add_per_second: multiply_add * (16 * OPERATIONS * threads) as f64,
        upload_bytes_per_second: upload * bytes as f64,
        read_back_bytes_per_second: read_back * bytes as f64,
    })
}

/// Operations per second of a product of square matrices, as large as the budget lets them be.
fn products(device: &Device, deadline: Instant) -> Result<f64, ComputeError> {
    let (used, budget) = device.memory_bytes();
    let room = budget.saturating_sub(used + UNIFORM_BYTES);
    let mut edge = if device.adapter().kind == AdapterKind::Software { SOFTWARE_EDGE } else { EDGE };
    while edge > 1 && 12 * (edge * edge) as u64 > room {
        edge /= 2;
    }
    let [left, right, out] =
        ["left", "right", "out"].map(|_| DeviceMatrix::zeros(device, "score: product", edge, edge));
    let (left, right, out) = (left?, right?, out?);
    let run = |times: u64| {
        for _ in 0..times {
            let mut batch = device.batch();
            Product::TRANSPOSED.add(device, &mut batch, &left.view(), &right.view(), &out.view())?;
            batch.submit()?;
        }
        device.finish()
    };
    run(1)?;
    Ok(rate(deadline, run)? * 2.0 * (edge as f64).powi(3))
}

/// Pieces of work per second.
fn rate(deadline: Instant, mut run: impl FnMut(u64) -> Result<(), ComputeError>) -> Result<f64, ComputeError> {
    let mut work = 1;
    loop {
        let start = Instant::now();
        run(work)?;
        let elapsed = start.elapsed();
        if elapsed >= LONG_ENOUGH || work >= MOST_WORK || Instant::now() + 2 * elapsed > deadline {
            return Ok(work as f64 / elapsed.as_secs_f64().max(1e-9));
        }
        work *= 2;
    }
}
