//! Stored planes as something to train, and back.

use super::{Share, Signs};
use crate::{
    codec::{Delta, StoredMatrix},
    reverse::{InUnits, Parametrization, PerMatrixScale, PerRowScale},
};

/// Bytes of the signs of a trained matrix.
#[must_use]
pub fn signs_bytes(delta: &Delta, rows: usize, columns: usize) -> u64 {
    (delta.planes * rows * columns.div_ceil(32) * 4) as u64
}

/// The scales of tensors of [`Delta::tensors`].
fn scales(stored: &StoredMatrix) -> Vec<f32> {
    let bytes = stored.get(1).map_or(&[][..], Vec::as_slice);
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The mean magnitude of the scales, which training counts in.
fn unit(scales: &[f32]) -> f32 {
    let sum: f64 = scales.iter().map(|scale| f64::from(scale.abs())).sum();
    (sum / scales.len().max(1) as f64) as f32
}

/// Scales as parameters, in units of their mean magnitude, and what they are now. None for tensors that are not those of
/// [`Delta::tensors`].
#[must_use]
pub fn parametrization(
    delta: &Delta,
    rows: usize,
    columns: usize,
    stored: &StoredMatrix,
) -> Option<(Box<dyn Parametrization<f32>>, Vec<f32>)> {
    let row_bytes = columns.div_ceil(8);
    let signs = stored.first().filter(|signs| signs.len() == delta.planes * rows * row_bytes)?;
    let plane = |bytes: &[u8]| {
        let words = bytes.chunks_exact(row_bytes).flat_map(|row| {
            row.chunks(4).map(|part| part.iter().rev().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)))
        });
        Signs::from_words(rows, columns, words.collect())
    };
    let planes = signs.chunks_exact((rows * row_bytes).max(1)).map(plane).collect::<Option<Vec<_>>>()?;
    let scales = scales(stored);
    let unit = unit(&scales);
    let start = scales.iter().map(|scale| if unit == 0.0 { 0.0 } else { scale / unit }).collect();
    let parametrization: Box<dyn Parametrization<f32>> = match delta.share {
        Share::Matrix => Box::new(InUnits { inner: PerMatrixScale { planes }, unit }),
        Share::Row => Box::new(InUnits { inner: PerRowScale { planes }, unit }),
    };
    Some((parametrization, start))
}

/// The same signs with the scales that parameters of [`parametrization`] mean.
#[must_use]
pub fn store(stored: &StoredMatrix, parameters: &[f32]) -> StoredMatrix {
    let unit = unit(&scales(stored));
    let scales = parameters.iter().flat_map(|parameter| (parameter * unit).to_le_bytes()).collect();
    stored.iter().take(1).cloned().chain([scales]).collect()
}
