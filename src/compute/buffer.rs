//! Device memory, and the ways into it and out of it.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use super::{ComputeError, Device, device::Inner, memory::Lease, staging::DownSlot};

/// Buffers are whole multiples of this, so that kernels may read vectors of four words at their end.
const UNIT_BYTES: u64 = 16;
/// Time after which the device is asked again whether what was waited for is mapped, and after which that is given up.
const PATIENCE: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Some bytes of device memory; given back when dropped.
#[derive(Debug)]
pub struct Buffer {
    pub(super) raw: wgpu::Buffer,
    label: String,
    bytes: u64,
    _lease: Lease,
}

impl Buffer {
    /// Its length in bytes, as asked for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it is for.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    fn check_range(&self, start: u64, bytes: u64) -> Result<(), ComputeError> {
        let end = start.saturating_add(bytes);
        if end <= self.bytes {
            return Ok(());
        }
        Err(ComputeError::Range { label: self.label.clone(), bytes: self.bytes, start, end })
    }
}

/// Bytes on their way back; dropping it gives them up.
pub struct Pending {
    device: Arc<Inner>,
    what: String,
    bytes: usize,
    /// Bytes of the slot before those asked for.
    skipped: usize,
    slot: Option<DownSlot>,
    submission: Option<wgpu::SubmissionIndex>,
    mapped: Option<mpsc::Receiver<bool>>,
}

impl Device {
    /// Device memory of so many bytes, all zero.
    ///
    /// # Errors
    /// [`ComputeError::Budget`] beyond the budget, [`ComputeError::TooLarge`] beyond the adapter's largest buffer,
    /// [`ComputeError::OutOfMemory`] when the device has no more.
    pub fn allocate(&self, label: &str, bytes: u64) -> Result<Buffer, ComputeError> {
        let inner = &self.inner;
        let limit = inner.limits.buffer_bytes / UNIT_BYTES * UNIT_BYTES;
        if bytes > limit {
            return Err(ComputeError::TooLarge { label: label.to_owned(), what: "in one buffer", bytes, limit });
        }
        let size = bytes.next_multiple_of(UNIT_BYTES).max(UNIT_BYTES);
        let lease = inner.budget.lease(label, size)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let raw = inner
            .guarded(&format!("allocating {bytes} bytes for `{label}`"), || inner.device.create_buffer(&descriptor))?;
        Ok(Buffer { raw, label: label.to_owned(), bytes, _lease: lease })
    }

    /// Device memory with these bytes in it.
    ///
    /// # Errors
    /// As for [`Device::allocate`], and [`ComputeError::Lost`].
    pub fn upload(&self, label: &str, bytes: &[u8]) -> Result<Buffer, ComputeError> {
        let buffer = self.allocate(label, bytes.len() as u64)?;
        self.write(&buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Writes bytes into a buffer from `offset` bytes on, a multiple of 4; queued behind everything before. Returns when
    /// the bytes have been taken, not when they have arrived. Where they end within a word, the rest of the word
    /// becomes zero.
    ///
    /// # Errors
    /// [`ComputeError::Range`] beyond the end, [`ComputeError::Refused`] for an odd offset, [`ComputeError::Lost`].
    pub fn write(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<(), ComputeError> {
        buffer.check_range(offset, bytes.len() as u64)?;
        self.inner.send(&buffer.raw, &buffer.label, offset, bytes)
    }

    /// Reads a whole buffer back; waits for everything queued before.
    ///
    /// # Errors
    /// [`ComputeError::Lost`], or what went wrong before.
    pub fn read(&self, buffer: &Buffer) -> Result<Vec<u8>, ComputeError> {
        self.read_later(buffer, 0, buffer.bytes)?.wait()
    }

    /// Begins to read `bytes` bytes back from `offset` on, behind everything queued so far, without waiting.
    ///
    /// # Errors
    /// [`ComputeError::Range`] beyond the end, [`ComputeError::OutOfMemory`], [`ComputeError::Lost`].
    pub fn read_later(&self, buffer: &Buffer, offset: u64, bytes: u64) -> Result<Pending, ComputeError> {
        buffer.check_range(offset, bytes)?;
        let what = format!("reading `{}`", buffer.label);
        let start = offset / 4 * 4;
        let mut pending = Pending {
            device: Arc::clone(&self.inner),
            what,
            bytes: bytes as usize,
            skipped: (offset - start) as usize,
            slot: None,
            submission: None,
            mapped: None,
        };
        if bytes > 0 {
            let size = (offset + bytes).next_multiple_of(4) - start;
            let slot = self.inner.down_slot(&pending.what, size)?;
            let (sender, receiver) = mpsc::channel();
            let inner = &self.inner;
            let index = inner.guarded(&pending.what, || {
                let mut encoder = inner.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                encoder.copy_buffer_to_buffer(&buffer.raw, start, &slot.raw, 0, size);
                let index = inner.queue.submit([encoder.finish()]);
                slot.raw.slice(..size).map_async(wgpu::MapMode::Read, move |result| {
                    // The receiver is gone when nobody waits any more.
                    let _ = sender.send(result.is_ok());
                });
                index
            })?;
            (pending.slot, pending.submission, pending.mapped) = (Some(slot), Some(index), Some(receiver));
        }
        Ok(pending)
    }
}

impl Pending {
    /// Waits for the bytes.
    ///
    /// # Errors
    /// [`ComputeError::Lost`], or what went wrong in what was queued before.
    pub fn wait(mut self) -> Result<Vec<u8>, ComputeError> {
        let mut out = vec![0; self.bytes];
        self.receive(&mut out)?;
        Ok(out)
    }

    /// Waits for the bytes and writes them to `out`, which is as long as what was asked for.
    ///
    /// # Errors
    /// As for [`Pending::wait`]; [`ComputeError::Range`] when `out` has another length.
    pub fn wait_into(mut self, out: &mut [u8]) -> Result<(), ComputeError> {
        self.receive(out)
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<(), ComputeError> {
        if out.len() != self.bytes {
            let (label, end) = (self.what.clone(), out.len() as u64);
            return Err(ComputeError::Range { label, bytes: self.bytes as u64, start: 0, end });
        }
        let (Some(slot), Some(mapped)) = (self.slot.take(), self.mapped.take()) else { return Ok(()) };
        self.device.wait(&self.what, self.submission.take())?;
        let refused = |message: &str| ComputeError::Refused { operation: self.what.clone(), message: message.into() };
        // Another thread that waited at the same time may be the one that is about to tell.
        let start = Instant::now();
        let is_mapped = loop {
            match mapped.recv_timeout(PATIENCE) {
                Ok(is_mapped) => break is_mapped,
                Err(RecvTimeoutError::Timeout) if start.elapsed() < LONGEST_WAIT => {
                    self.device.wait(&self.what, None)?;
                }
                Err(_) => return Err(refused("the device did not say whether the memory is mapped")),
            }
        };
        if !is_mapped {
            return Err(refused("the memory could not be mapped"));
        }
        let whole = ..(self.skipped + self.bytes).next_multiple_of(4) as u64;
        self.device
            .guarded(&self.what, || {
                let view = slot.raw.get_mapped_range(whole);
                if let Ok(view) = &view {
                    out.copy_from_slice(&view[self.skipped..self.skipped + out.len()]);
                }
                let outcome = view.as_ref().map(|_| ()).map_err(ToString::to_string);
                drop(view);
                slot.raw.unmap();
                outcome
            })?
            .map_err(|message| refused(&message))?;
        self.device.staging.give_back(slot);
        Ok(())
    }
}
