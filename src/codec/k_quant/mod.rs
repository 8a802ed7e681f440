//! GGUF's k-quants: rows in super-blocks of 256 weights, whose parts have small whole scales over a common one.
//!
//! What is stored are ggml's own blocks, row by row and without gaps, so that a GGUF file holds the same bytes. The formats
//! are those of ggml (`block_q4_K` and `block_q6_K` of `ggml-common.h`); how scales and codes are found is ours
//! (`search`).

mod lines;
mod q4_k;
mod q6_k;
mod search;
#[cfg(test)]
mod tests;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{CodecError, StoredMatrix};
use crate::checkpoint::Dtype;

/// Weights of a super-block.
pub const BLOCK: usize = 256;

/// What follows the matrix's name in the name of its blocks.
pub const BLOCKS: &str = "blocks";

/// A format of super-blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KQuant {
    /// 4 bits and, for each 32 weights, a 6-bit scale and a 6-bit minimum: weight = d·scale·code − dmin·minimum.
    #[serde(rename = "q4_k")]
    Q4K,
    /// 6 bits and, for each 16 weights, an 8-bit scale: weight = d·scale·(code − 32).
    #[serde(rename = "q6_k")]
    Q6K,
}

impl KQuant {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Q4K, Self::Q6K];

    /// Its short name: `q4_k`, `q6_k`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Reads a short name back.
    #[must_use]
    pub fn parse_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Bytes of a super-block: 144 (4.5 bits per weight) or 210 (6.5625).
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4K => q4_k::BYTES,
            Self::Q6K => q6_k::BYTES,
        }
    }

    /// Weights that share a whole scale.
    #[must_use]
    pub fn part(self) -> usize {
        match self {
            Self::Q4K => lines::Q4_K.width,
            Self::Q6K => lines::Q6_K.width,
        }
    }

    /// Bytes of a row of so many columns, a multiple of [`BLOCK`].
    #[must_use]
    pub fn row_bytes(self, columns: usize) -> usize {
        columns / BLOCK * self.block_bytes()
    }

    /// Checks that a matrix of this shape can be stored so.
    ///
    /// # Errors
    /// [`CodecError`] for rows that are no whole super-blocks, and a matrix that cannot be addressed.
    pub fn validate(self, rows: usize, columns: usize) -> Result<(), CodecError> {
        match rows.checked_mul(columns) {
            Some(weights) if weights < usize::MAX / 64 => {}
            _ => return Err(CodecError::TooLarge { rows, columns }),
        }
        if columns.is_multiple_of(BLOCK) {
            return Ok(());
        }
        Err(CodecError::Blocks { format: self.name(), block: BLOCK, columns })
    }

    /// The one tensor of a valid matrix: U8, `[rows, bytes of a row]`.
    #[must_use]
    pub fn tensors(self, rows: usize, columns: usize) -> [(&'static str, Dtype, Vec<usize>); 1] {
        [(BLOCKS, Dtype::U8, vec![rows, self.row_bytes(columns)])]
    }

    /// Encodes a matrix `[rows, columns]`; also says how many super-blocks want a scale that F16 does not hold. Same
    /// weights, same bytes, whatever the number of threads.
    ///
    /// # Errors
    /// [`CodecError`] for another shape than the weights have, and for the first weight that is not finite.
    pub fn encode(self, rows: usize, columns: usize, weights: &[f32]) -> Result<(StoredMatrix, u64), CodecError> {
        self.validate(rows, columns)?;
        if weights.len() != rows * columns {
            return Err(CodecError::Length { what: "weights", expected: rows * columns, got: weights.len() });
        }
        if let Some(at) = weights.iter().position(|weight| !weight.is_finite()) {
            return Err(CodecError::NonFinite { row: at / columns, column: at % columns, value: weights[at] });
        }
        let mut bytes = vec![0; rows * self.row_bytes(columns)];
        if bytes.is_empty() {
            return Ok((vec![bytes], 0));
        }
        let rows = weights.par_chunks_exact(columns).zip(bytes.par_chunks_exact_mut(self.row_bytes(columns)));
        let clamped = rows.map(|(weights, bytes)| self.encode_row(weights, bytes)).sum();
        Ok((vec![bytes], clamped))
    }

    fn encode_row(self, weights: &[f32], bytes: &mut [u8]) -> u64 {
        let (weights, _) = weights.as_chunks::<BLOCK>();
        let block = |(weights, bytes): (&[f32; BLOCK], &mut [u8])| match self {
            Self::Q4K => q4_k::encode(weights, bytes),
            Self::Q6K => q6_k::encode(weights, bytes),
        };
        weights.iter().zip(bytes.chunks_exact_mut(self.block_bytes())).map(block).map(u64::from).sum()
    }

    /// The matrix `[rows, columns]` in F32, in ggml's order of operations: the product of both scales, times the code, less
    /// the product of minimum and its scale, each rounded. The bytes are hostile until checked.
    ///
    /// # Errors
    /// [`CodecError`] for tensors of other lengths and scales that are not finite.
    pub fn decode(self, rows: usize, columns: usize, stored: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        self.validate(rows, columns)?;
        let [bytes] = stored else {
            return Err(CodecError::Length { what: "tensors", expected: 1, got: stored.len() });
        };
        let (row_bytes, blocks) = (self.row_bytes(columns), columns / BLOCK);
        if bytes.len() != rows * row_bytes {
            return Err(CodecError::Length { what: "bytes of blocks", expected: rows * row_bytes, got: bytes.len() });
        }
        let finite = |bytes: &[u8]| match self {
            Self::Q4K => q4_k::is_finite(bytes),
            Self::Q6K => q6_k::is_finite(bytes),
        };
        if let Some(at) = bytes.chunks_exact(self.block_bytes()).position(|block| !finite(block)) {
            let problem = format!("a scale of row {}, block {} is not finite", at / blocks, at % blocks);
            return Err(CodecError::Stored { what: "blocks", problem });
        }
        let mut values = vec![0.0; rows * columns];
        if !values.is_empty() {
            let rows = values.par_chunks_exact_mut(columns).zip(bytes.par_chunks_exact(row_bytes));
            rows.for_each(|(values, bytes)| self.decode_row(bytes, values));
        }
        Ok(values)
    }

    fn decode_row(self, bytes: &[u8], values: &mut [f32]) {
        let (values, _) = values.as_chunks_mut::<BLOCK>();
        for (values, block) in values.iter_mut().zip(bytes.chunks_exact(self.block_bytes())) {
            match self {
                Self::Q4K => q4_k::decode(block, values),
                Self::Q6K => q6_k::decode(block, values),
            }
        }
    }
}

/// The F16 at this place of a block, as F32.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
