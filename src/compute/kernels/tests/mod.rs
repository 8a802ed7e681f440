//! Every kernel against the processor's version, on shapes that go wrong easily.

mod centroids;
mod codes;
mod errors;
mod extents;
mod pyramid;
mod select;
mod signs;
mod terms;

use half::{bf16, f16};

use super::{Source, SourceFormat};
use crate::compute::{Buffer, Device, tests::fixtures};

/// Rows, columns and group width: single elements, single rows and columns, primes, groups that do not divide, more than
/// the lowered binding holds.
pub(super) const SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (1, 7, 128),
    (7, 1, 1),
    (1, 4099, 128),
    (331, 1, 64),
    (13, 97, 32),
    (31, 257, 16),
    (3, 1031, 1031),
    (64, 128, 128),
    (257, 130, 37),
    (700, 96, 96),
];
/// Lowers the largest binding, in bytes, so that the larger shapes need several windows.
pub(super) const BINDING_BYTES: u64 = 128 << 10;

pub(super) const FORMATS: [SourceFormat; 3] = [SourceFormat::F32, SourceFormat::Bf16, SourceFormat::F16];

/// A device whose bindings are small, or `None` after a loud line.
pub(super) fn device() -> Option<Device> {
    fixtures::device(Some(BINDING_BYTES))
}

/// The next of a fixed sequence of numbers that look random.
pub(super) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Weights as a format stores them, and as F32: mostly of ordinary size, with ties, zeros of both signs, subnormals and
/// values near the ends of the format among them.
pub(super) fn weights(format: SourceFormat, count: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let mut state = seed;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let random = next(&mut state);
        let small = (random % 2001) as f32 / 1000.0 - 1.0;
        values.push(match random >> 20 & 63 {
            0 => 0.0,
            1 => -0.0,
            2 => small * 1e-41,
            3 => f32::from_bits((random as u32 & 0x7f7f_ffff) % 0x7f00_0000),
            4..=20 => ((random % 65) as f32 - 32.0) * 0.125,
            _ => small,
        });
    }
    let mut bytes = Vec::new();
    for value in &mut values {
        match format {
            SourceFormat::F32 => bytes.extend(value.to_le_bytes()),
            SourceFormat::Bf16 => {
                let stored = bf16::from_f32(*value);
                bytes.extend(stored.to_le_bytes());
                *value = stored.to_f32();
            }
            SourceFormat::F16 => {
                let stored = f16::from_f32(value.clamp(-65504.0, 65504.0));
                bytes.extend(stored.to_le_bytes());
                *value = stored.to_f32();
            }
        }
    }
    (bytes, values)
}

pub(super) fn source(buffer: &Buffer, format: SourceFormat, rows: usize, columns: usize) -> Source<'_> {
    Source { buffer, format, rows: rows as u64, columns: columns as u64 }
}

pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
