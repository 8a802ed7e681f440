//! Writes the dense tensors at their places, from many threads.

use std::{
    fs::{File, OpenOptions},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rayon::prelude::*;

use super::{
    DecodeError,
    places::{From, Place, Places},
};
use crate::{
    checkpoint::{Checkpoint, Dtype, TensorEntry, bits_of, decode_to_f32, encode_from_f32},
    evaluate::map_stripes,
    layout::LogicalCheckpoint,
    platform,
};

/// Elements that are converted or copied at once.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// A tensor's bytes and where they lie.
type Stored<'a> = (&'a Checkpoint, &'a TensorEntry);

struct Target {
    path: PathBuf,
    file: File,
}

struct Writer<'a> {
    source: &'a LogicalCheckpoint,
    targets: Vec<Target>,
    written: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Writes all weight files into `folder` and syncs them.
pub(super) fn weights(
    source: &LogicalCheckpoint,
    places: &Places,
    folder: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(), DecodeError> {
    let mut targets = Vec::new();
    for planned in &places.files {
        let path = folder.join(&planned.name);
        let file = OpenOptions::new().create_new(true).write(true).open(&path);
        let file = file.map_err(DecodeError::io("create", &path))?;
        // A full disk shows here, before the work.
        platform::reserve(&file, planned.bytes).map_err(DecodeError::io("reserve space for", &path))?;
        file.set_len(planned.bytes).map_err(DecodeError::io("set the length of", &path))?;
        file.write_all_at(&planned.header, 0).map_err(DecodeError::io("write", &path))?;
        targets.push(Target { path, file });
    }
    let total = places.tensors.iter().map(|tensor| tensor.bytes).sum();
    let writer = Writer { source, targets, written: AtomicU64::new(0), total, progress };
    // The first error in the order of tensors, whichever thread met one first.
    let results: Vec<_> = places.tensors.par_iter().map(|place| writer.tensor(place)).collect();
    results.into_iter().collect::<Result<(), _>>()?;
    writer.targets.iter().try_for_each(|target| target.file.sync_all().map_err(DecodeError::io("sync", &target.path)))
}

impl Writer<'_> {
    fn tensor(&self, place: &Place) -> Result<(), DecodeError> {
        let overflowed = match (place.from, self.source.stored_bytes_of(&place.name)) {
            (From::Copy, Some(stored)) => self.copy(place, stored)?,
            (From::Floats, Some(stored)) => self.convert(place, stored)?,
            _ => self.decode(place)?,
        };
        if overflowed > 0 {
            let (tensor, dtype) = (place.name.clone(), place.dtype);
            return Err(DecodeError::Overflow { tensor, dtype, count: overflowed });
        }
        Ok(())
    }

    fn copy(&self, place: &Place, (checkpoint, entry): Stored<'_>) -> Result<u64, DecodeError> {
        for (start, chunk) in checkpoint.pieces(entry, 0..entry.bytes as usize) {
            self.write(place, start as u64, &chunk)?;
            checkpoint.release(entry, start..start + chunk.len());
        }
        Ok(0)
    }

    fn convert(&self, place: &Place, (checkpoint, entry): Stored<'_>) -> Result<u64, DecodeError> {
        let bytes = entry.bytes as usize;
        let element_bytes = bits_of(entry.dtype) / 8;
        let chunk_bytes = CHUNK_ELEMENTS * element_bytes;
        let counts = map_ranges(bytes.div_ceil(chunk_bytes), |index| {
            let range = index * chunk_bytes..bytes.min((index + 1) * chunk_bytes);
            let mut values = vec![0.0; range.len() / element_bytes];
            decode_to_f32(entry.dtype, &checkpoint.range(entry, range.clone()), &mut values);
            checkpoint.release(entry, range);
            self.encode(place, (index * CHUNK_ELEMENTS) as u64, &values)
        })?;
        Ok(counts.into_iter().sum())
    }

    fn decode(&self, place: &Place) -> Result<u64, DecodeError> {
        let rows = self.source.rows(&place.name, false);
        let rows = rows.map_err(|source| DecodeError::Layout { tensor: place.name.clone(), source })?;
        let columns = rows.columns();
        let counts = map_stripes(rows.rows(), columns, |range: Range<usize>| {
            let mut values = vec![0.0; range.len() * columns];
            let read = rows.read_rows(range.start, &mut values);
            read.map_err(|source| DecodeError::Codec { tensor: place.name.clone(), source })?;
            rows.release_rows(range.clone());
            self.encode(place, range.start as u64 * columns as u64, &values)
        })?;
        Ok(counts.into_iter().sum())
    }

    /// Writes values from element `first` on; counts what became infinite.
    fn encode(&self, place: &Place, first: u64, values: &[f32]) -> Result<u64, DecodeError> {
        let mut bytes = Vec::new();
        let overflowed = encode_from_f32(place.dtype, values, &mut bytes);
        self.write(place, first * element_bytes(place.dtype), &bytes)?;
        Ok(overflowed)
    }

    fn write(&self, place: &Place, start: u64, bytes: &[u8]) -> Result<(), DecodeError> {
        let target = &self.targets[place.file];
        target.file.write_all_at(bytes, place.offset + start).map_err(DecodeError::io("write", &target.path))?;
        let written = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        (self.progress)(written, self.total);
        Ok(())
    }
}

fn element_bytes(dtype: Dtype) -> u64 {
    bits_of(dtype) as u64 / 8
}

fn map_ranges<T: Send, E: Send>(count: usize, work: impl Fn(usize) -> Result<T, E> + Sync + Send) -> Result<Vec<T>, E> {
    let results: Vec<_> = (0..count).into_par_iter().map(work).collect();
    results.into_iter().collect()
}
