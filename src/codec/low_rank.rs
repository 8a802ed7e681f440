//! A difference as a product of two thin matrices in F16: what a low-rank adaptation (`LoRA`) leaves behind.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::CodecError;
use crate::checkpoint::{Dtype, decode_to_f32};

/// The product of a matrix `[rows, rank]` and one `[rank, columns]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRank {
    /// The rank, from 1 to the smaller side.
    pub rank: usize,
}

impl LowRank {
    /// Its short name: `low-rank-8`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("low-rank-{}", self.rank)
    }

    /// Reads a short name back.
    #[must_use]
    pub fn parse_name(name: &str) -> Option<Self> {
        let format = Self { rank: name.strip_prefix("low-rank-")?.parse().ok()? };
        (format.rank > 0 && format.name() == name).then_some(format)
    }

    /// Checks that a matrix of this shape can be coded so.
    ///
    /// # Errors
    /// [`CodecError`] for rank 0 or above the smaller side, and a matrix that cannot be addressed.
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        if self.rank == 0 {
            return Err(CodecError::Zero { what: "rank" });
        }
        if self.rank > rows.min(columns) {
            return Err(CodecError::Length { what: "rank", expected: rows.min(columns), got: self.rank });
        }
        match rows.checked_mul(columns) {
            Some(weights) if weights < usize::MAX / 64 => Ok(()),
            _ => Err(CodecError::TooLarge { rows, columns }),
        }
    }

    /// The tensors of a valid matrix: `left` F16 `[rows, rank]` and `right` F16 `[rank, columns]`.
    #[must_use]
    pub fn tensors(&self, rows: usize, columns: usize) -> [(&'static str, Dtype, Vec<usize>); 2] {
        [("left", Dtype::F16, vec![rows, self.rank]), ("right", Dtype::F16, vec![self.rank, columns])]
    }

    /// Bytes of these.
    #[must_use]
    pub fn bytes(&self, rows: usize, columns: usize) -> u64 {
        2 * self.rank as u64 * (rows as u64 + columns as u64)
    }

    /// The difference `[rows, columns]`: in F32, products added in the order of the rank.
    ///
    /// # Errors
    /// [`CodecError`] for tensors of other lengths and factors that are not finite.
    pub fn decode(&self, rows: usize, columns: usize, stored: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        self.validate(rows, columns)?;
        let [left, right] = stored else {
            return Err(CodecError::Length { what: "tensors", expected: 2, got: stored.len() });
        };
        let factor = |what, bytes: &[u8], count: usize| {
            if bytes.len() != 2 * count {
                return Err(CodecError::Length { what, expected: 2 * count, got: bytes.len() });
            }
            let mut values = vec![0.0; count];
            decode_to_f32(Dtype::F16, bytes, &mut values);
            match values.iter().position(|value: &f32| !value.is_finite()) {
                Some(at) => Err(CodecError::Stored { what, problem: format!("number {at} is {}", values[at]) }),
                None => Ok(values),
            }
        };
        let left = factor("left factor", left, rows * self.rank)?;
        let right = factor("right factor", right, self.rank * columns)?;
        let mut values = vec![0.0; rows * columns];
        values.par_chunks_mut(columns.max(1)).zip(left.par_chunks(self.rank)).for_each(|(out, left)| {
            for (left, right) in left.iter().zip(right.chunks_exact(columns.max(1))) {
                out.iter_mut().zip(right).for_each(|(out, right)| *out += left * right);
            }
        });
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::LowRank;
    use crate::codec::CodecError;

    fn half(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
    }

    #[test]
    fn names_read_back() {
        assert_eq!(LowRank::parse_name("low-rank-12"), Some(LowRank { rank: 12 }));
        for name in ["low-rank-0", "low-rank-", "low-rank-012", "low-rank-+1", "low-rank--1"] {
            assert_eq!(LowRank::parse_name(name), None, "{name}");
        }
    }

    #[test]
    fn factors_multiply() {
        let format = LowRank { rank: 2 };
        let (left, right) = (half(&[1.0, 2.0, -1.0, 0.5]), half(&[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]));
        assert_eq!(format.decode(2, 3, &[&left, &right]).unwrap(), [21.0, 42.0, 63.0, 4.0, 8.0, 12.0]);
        assert_eq!(format.bytes(2, 3), (left.len() + right.len()) as u64);
    }

    #[test]
    fn malformed_bytes_are_named() {
        let format = LowRank { rank: 1 };
        let one = half(&[1.0]);
        assert!(matches!(format.decode(1, 2, &[&one, &one]), Err(CodecError::Length { what: "right factor", .. })));
        let infinite = half(&[f32::INFINITY]);
        let wrong = format.decode(1, 1, &[&infinite, &one]);
        assert!(matches!(wrong, Err(CodecError::Stored { what: "left factor", .. })));
        assert!(matches!(format.decode(1, 1, &[&one]), Err(CodecError::Length { .. })));
        assert!(matches!(LowRank { rank: 3 }.validate(2, 9), Err(CodecError::Length { .. })));
        assert!(matches!(LowRank { rank: 0 }.validate(2, 9), Err(CodecError::Zero { .. })));
        assert!(matches!(format.validate(usize::MAX / 2, 3), Err(CodecError::TooLarge { .. })));
    }
}
