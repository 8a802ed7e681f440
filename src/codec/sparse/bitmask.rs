//! compressed-tensors' `sparse-24-bitmask`: the kept weights, a bit for each weight, the shape.
//!
//! As compressed-tensors 0.14.0.1 writes it (`sparse_compressors/sparse_24_bitmask.py`), the last version that does.
//! Newer ones and the runtimes refuse it, so it is written only when asked for.

use super::{Mask, Pattern, StoredTensor, mask::field};
use crate::{
    checkpoint::{Dtype, bits_of},
    codec::CodecError,
};

/// The bytes of the stored tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmask {
    /// `compressed`: the two kept weights of each quad in the order of their columns, `[rows, columns / 2]`.
    pub compressed: Vec<u8>,
    /// `bitmask`: U8 `[rows, ⌈columns / 8⌉]`, least significant bit first.
    pub bitmask: Vec<u8>,
    /// `shape`: I64 `[2, 1]`, rows and columns.
    pub shape: Vec<u8>,
}

/// The stored tensors of a matrix, in the order of [`Bitmask`]'s fields.
#[must_use]
pub fn tensors(rows: usize, columns: usize, dtype: Dtype) -> [StoredTensor; 3] {
    [
        StoredTensor { suffix: "compressed", dtype, shape: vec![rows, columns / 2] },
        StoredTensor { suffix: "bitmask", dtype: Dtype::U8, shape: vec![rows, Mask::row_bytes(columns)] },
        StoredTensor { suffix: "shape", dtype: Dtype::I64, shape: vec![2, 1] },
    ]
}

/// Stores a matrix given as its elements' bytes, `[rows, columns]` row-major little-endian of `dtype`, whatever the type
/// (weights, or 8-bit codes). What the mask does not keep is lost.
///
/// # Errors
/// [`CodecError::Pattern`] for another pattern than 2:4; [`CodecError::Stored`] where columns are no whole quads, which
/// the format cannot hold, or the type has no whole bytes; [`CodecError::Length`].
pub fn encode(dtype: Dtype, elements: &[u8], mask: &Mask) -> Result<Bitmask, CodecError> {
    let (rows, columns) = (mask.rows(), mask.columns());
    if mask.pattern() != Pattern::TWO_OF_FOUR {
        let Pattern { keep, of } = mask.pattern();
        return Err(CodecError::Pattern { keep, of });
    }
    let refused = |problem| CodecError::Stored { what: "`sparse-24-bitmask`", problem };
    if !columns.is_multiple_of(4) {
        return Err(refused(format!("{columns} columns are no whole groups of four")));
    }
    let bytes = bits_of(dtype) / 8;
    if bytes * 8 != bits_of(dtype) || bytes == 0 {
        return Err(refused(format!("{dtype:?} has no whole bytes")));
    }
    let expected = (rows * columns).checked_mul(bytes).ok_or(CodecError::TooLarge { rows, columns })?;
    if elements.len() != expected {
        return Err(CodecError::Length { what: "bytes of weights", expected, got: elements.len() });
    }
    let mut compressed = Vec::with_capacity(expected / 2);
    for (row, elements) in elements.chunks_exact((columns * bytes).max(1)).enumerate() {
        for (index, quad) in elements.chunks_exact(4 * bytes).enumerate() {
            let kept = field(mask.row(row), 4 * index, 4);
            for place in (0..4).filter(|place| kept >> place & 1 == 1) {
                compressed.extend_from_slice(&quad[place * bytes..][..bytes]);
            }
        }
    }
    Ok(Bitmask { compressed, bitmask: mask.bits().to_vec(), shape: shape(rows, columns) })
}

/// The bytes of `shape`.
#[must_use]
pub fn shape(rows: usize, columns: usize) -> Vec<u8> {
    [rows, columns].iter().flat_map(|length| (*length as i64).to_le_bytes()).collect()
}
