//! Memory that both sides see, used again and again: a ring of slots on the way up, a stock of slots on the way down.
//!
//! The ring bounds what is copied ahead of the device: when all its slots are on their way, writing waits for the oldest
//! one. So upload and computation overlap, and the processor's memory stays bounded.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{ComputeError, device::Inner};

/// Bytes of a slot of the ring.
const SLOT_BYTES: u64 = 8 << 20;
/// Slots of the ring: one being filled, one on its way, one that the device reads.
const SLOTS: usize = 3;
/// Time after which it is asked again whether a slot is free, and after which that is given up.
const PATIENCE: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Below this a slot costs more than wgpu's own way.
const SMALL_BYTES: usize = 64 << 10;
/// Slots kept for read-back; more than blocks are in flight at once helps nobody.
const DOWN_SLOTS: usize = 8;

/// Bytes of the processor's memory that the ring takes where so many threads send at once: each may have a slot in hand
/// while the ring is full but for one.
pub(crate) fn ring_bytes(threads: usize) -> u64 {
    (SLOTS - 1 + threads.max(1)) as u64 * SLOT_BYTES
}

/// The slots of a device.
#[derive(Debug, Default)]
pub(super) struct Staging {
    up: Mutex<Vec<UpSlot>>,
    down: Mutex<Vec<DownSlot>>,
}

#[derive(Debug)]
struct UpSlot {
    raw: wgpu::Buffer,
    /// Set by the device when it has read the slot and the processor may write again.
    mapped: Arc<AtomicBool>,
    submission: Option<wgpu::SubmissionIndex>,
}

/// A slot that the processor reads from.
#[derive(Debug)]
pub(super) struct DownSlot {
    pub(super) raw: wgpu::Buffer,
    bytes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Staging {
    pub(super) fn give_back(&self, slot: DownSlot) {
        let mut down = lock(&self.down);
        if down.len() < DOWN_SLOTS {
            down.push(slot);
        }
    }

    /// The smallest slot that is large enough, but not one much too large.
    fn take_down(&self, bytes: u64) -> Option<DownSlot> {
        let mut down = lock(&self.down);
        let fitting = down.iter().enumerate().filter(|(_, slot)| slot.bytes >= bytes && slot.bytes / 4 <= bytes);
        let index = fitting.min_by_key(|(_, slot)| slot.bytes)?.0;
        Some(down.swap_remove(index))
    }
}

impl Inner {
    /// A slot of at least so many bytes to read back from.
    pub(super) fn down_slot(&self, operation: &str, bytes: u64) -> Result<DownSlot, ComputeError> {
        if let Some(slot) = self.staging.take_down(bytes) {
            return Ok(slot);
        }
        let descriptor = wgpu::BufferDescriptor {
            label: Some("read-back"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let raw = self.guarded(operation, || self.device.create_buffer(&descriptor))?;
        Ok(DownSlot { raw, bytes })
    }

    /// Sends bytes into a buffer of the device, slot by slot.
    pub(super) fn send(&self, to: &wgpu::Buffer, label: &str, offset: u64, bytes: &[u8]) -> Result<(), ComputeError> {
        let operation = format!("uploading `{label}`");
        if bytes.len() <= SMALL_BYTES {
            let padded = bytes.len().next_multiple_of(4);
            return self.guarded(&operation, || {
                if padded == bytes.len() {
                    self.queue.write_buffer(to, offset, bytes);
                } else {
                    let mut whole = bytes.to_vec();
                    whole.resize(padded, 0);
                    self.queue.write_buffer(to, offset, &whole);
                }
            });
        }
        for (index, chunk) in bytes.chunks(SLOT_BYTES as usize).enumerate() {
            let mut slot = self.up_slot(&operation)?;
            self.fill_and_submit(&mut slot, to, &operation, offset + index as u64 * SLOT_BYTES, chunk)?;
            lock(&self.staging.up).push(slot);
        }
        Ok(())
    }

    /// A slot that may be written: a free one, a new one while the ring grows, or the oldest one once it is free.
    fn up_slot(&self, operation: &str) -> Result<UpSlot, ComputeError> {
        let mut up = lock(&self.staging.up);
        if let Some(index) = up.iter().position(|slot| slot.mapped.load(Ordering::Acquire)) {
            return Ok(up.remove(index));
        }
        if up.len() >= SLOTS {
            let oldest = up.remove(0);
            drop(up);
            self.wait(operation, oldest.submission.clone())?;
            // Another thread that waited at the same time may be the one that is about to be told.
            let start = Instant::now();
            while start.elapsed() < LONGEST_WAIT {
                if oldest.mapped.load(Ordering::Acquire) {
                    return Ok(oldest);
                }
                thread::sleep(PATIENCE);
                self.wait(operation, None)?;
            }
            let message = "a staging slot was not given back".to_owned();
            return Err(ComputeError::Refused { operation: operation.to_owned(), message });
        }
        drop(up);
        let descriptor = wgpu::BufferDescriptor {
            label: Some("upload"),
            size: SLOT_BYTES,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        };
        let raw = self.guarded(operation, || self.device.create_buffer(&descriptor))?;
        Ok(UpSlot { raw, mapped: Arc::new(AtomicBool::new(true)), submission: None })
    }

    fn fill_and_submit(
        &self,
        slot: &mut UpSlot,
        to: &wgpu::Buffer,
        operation: &str,
        offset: u64,
        chunk: &[u8],
    ) -> Result<(), ComputeError> {
        let size = chunk.len().next_multiple_of(4) as u64;
        let filled = self.guarded(operation, || {
            let mut view = slot.raw.get_mapped_range_mut(..size).map_err(|error| error.to_string())?;
            view.slice(..chunk.len()).copy_from_slice(chunk);
            for place in chunk.len()..size as usize {
                view.slice(place..=place).copy_from_slice(&[0]);
            }
            drop(view);
            slot.raw.unmap();
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&slot.raw, 0, to, offset, size);
            let index = self.queue.submit([encoder.finish()]);
            slot.mapped.store(false, Ordering::Release);
            let mapped = Arc::clone(&slot.mapped);
            slot.raw.slice(..).map_async(wgpu::MapMode::Write, move |result| {
                mapped.store(result.is_ok(), Ordering::Release);
            });
            Ok(index)
        })?;
        let refused = |message| ComputeError::Refused { operation: operation.to_owned(), message };
        slot.submission = Some(filled.map_err(refused)?);
        Ok(())
    }
}
