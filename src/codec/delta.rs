//! The difference of two matrices as planes of signs and scales: `Σ_p α_p S_p`, S in {−1, +1}, one α for the whole matrix
//! or one for each row (`BitDelta`, arXiv 2402.10193, §3).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::CodecError;
use crate::checkpoint::Dtype;

/// Most planes of a difference.
pub const MAX_PLANES: usize = 8;

/// How many weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Share {
    /// All of a matrix.
    Matrix,
    /// Those of a row.
    Row,
}

/// Planes of signs with scales in F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Delta {
    /// Signs of each weight, from 1 to [`MAX_PLANES`].
    pub planes: usize,
    /// What a scale is of.
    pub share: Share,
}

impl Delta {
    /// Its short name: `delta-2-row`.
    #[must_use]
    pub fn name(&self) -> String {
        let share = match self.share {
            Share::Matrix => "matrix",
            Share::Row => "row",
        };
        format!("delta-{}-{share}", self.planes)
    }

    /// Reads a short name back.
    #[must_use]
    pub fn parse_name(name: &str) -> Option<Self> {
        (1..=MAX_PLANES)
            .flat_map(|planes| [Share::Matrix, Share::Row].map(|share| Self { planes, share }))
            .find(|delta| delta.name() == name)
    }

    /// Checks that a matrix of this shape can be coded so.
    ///
    /// # Errors
    /// [`CodecError`] for more planes than [`MAX_PLANES`], none, or a matrix that cannot be addressed.
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        if self.planes == 0 {
            return Err(CodecError::Zero { what: "number of planes" });
        }
        if self.planes > MAX_PLANES {
            return Err(CodecError::Length { what: "planes", expected: MAX_PLANES, got: self.planes });
        }
        match rows.checked_mul(columns).and_then(|weights| weights.checked_mul(4 * MAX_PLANES)) {
            Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
            _ => Err(CodecError::TooLarge { rows, columns }),
        }
    }

    /// The tensors of a valid matrix: `signs` U8 `[planes, rows, ⌈columns / 8⌉]`, bit b of byte k of a row is column 8 k + b
    /// and set where the sign is +1, padding bits are zero; `scales` F32 `[planes]` or `[planes, rows]`.
    #[must_use]
    pub fn tensors(&self, rows: usize, columns: usize) -> [(&'static str, Dtype, Vec<usize>); 2] {
        let scales = match self.share {
            Share::Matrix => vec![self.planes],
            Share::Row => vec![self.planes, rows],
        };
        [("signs", Dtype::U8, vec![self.planes, rows, columns.div_ceil(8)]), ("scales", Dtype::F32, scales)]
    }

    /// The difference `[rows, columns]`, planes added in their order in F32.
    ///
    /// # Errors
    /// [`CodecError`] for tensors of other lengths, set padding bits and scales that are not finite.
    pub fn decode(&self, rows: usize, columns: usize, stored: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        self.validate(rows, columns)?;
        let row_bytes = columns.div_ceil(8);
        let per_plane = if self.share == Share::Row { rows } else { 1 };
        let [signs, scales] = stored else {
            return Err(CodecError::Length { what: "tensors", expected: 2, got: stored.len() });
        };
        let length = |what, expected, got| {
            if got == expected { Ok(()) } else { Err(CodecError::Length { what, expected, got }) }
        };
        length("bytes of signs", self.planes * rows * row_bytes, signs.len())?;
        length("bytes of scales", self.planes * per_plane * 4, scales.len())?;
        let scales: Vec<f32> = scales.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if let Some(at) = scales.iter().position(|scale| !scale.is_finite()) {
            let problem = format!("number {at} is {}", scales[at]);
            return Err(CodecError::Stored { what: "scales", problem });
        }
        let padding = if columns.is_multiple_of(8) { 0 } else { u8::MAX << (columns % 8) };
        if row_bytes > 0
            && let Some(row) = signs.chunks_exact(row_bytes).position(|row| row[row_bytes - 1] & padding != 0)
        {
            return Err(CodecError::Stored {
                what: "signs",
                problem: format!("row {row} has bits beyond its columns"),
            });
        }
        let mut values = vec![0.0; rows * columns];
        values.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, values)| {
            for plane in 0..self.planes {
                let scale = scales[plane * per_plane + if per_plane == 1 { 0 } else { row }];
                let signs = &signs[(plane * rows + row) * row_bytes..][..row_bytes];
                for (part, byte) in values.chunks_mut(8).zip(signs) {
                    for (bit, value) in part.iter_mut().enumerate() {
                        *value += if byte >> bit & 1 == 1 { scale } else { -scale };
                    }
                }
            }
        });
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::{Delta, MAX_PLANES, Share};
    use crate::codec::CodecError;

    #[test]
    fn names_read_back() {
        for planes in 1..=MAX_PLANES {
            for share in [Share::Matrix, Share::Row] {
                let delta = Delta { planes, share };
                assert_eq!(Delta::parse_name(&delta.name()), Some(delta));
            }
        }
        assert_eq!(Delta { planes: 2, share: Share::Row }.name(), "delta-2-row");
        assert_eq!(Delta::parse_name("delta-0-row"), None);
        assert_eq!(Delta::parse_name("delta-9-row"), None);
    }

    #[test]
    fn planes_of_signs_add_up() {
        // Two rows of nine columns: the ninth sign stands in a byte of its own.
        let signs = [0b0000_0001, 1, 0b1111_1110, 0, /* second plane */ 0b0000_0011, 0, 0, 1];
        let scales: Vec<u8> = [1.0_f32, 2.0, 0.25, 0.5].iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let values = Delta { planes: 2, share: Share::Row }.decode(2, 9, &[&signs, &scales]).unwrap();
        assert_eq!(values[..9], [1.25, -0.75, -1.25, -1.25, -1.25, -1.25, -1.25, -1.25, 0.75]);
        assert_eq!(values[9..], [-2.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, -1.5]);
        let values = Delta { planes: 1, share: Share::Matrix }.decode(2, 9, &[&signs[..4], &scales[4..8]]).unwrap();
        assert_eq!(values[..2], [2.0, -2.0]);
    }

    #[test]
    fn malformed_bytes_are_named() {
        let delta = Delta { planes: 1, share: Share::Matrix };
        let one = 1.0_f32.to_le_bytes();
        assert!(matches!(delta.decode(1, 9, &[&[0, 2], &one]), Err(CodecError::Stored { what: "signs", .. })));
        let nan = f32::NAN.to_le_bytes();
        assert!(matches!(delta.decode(1, 9, &[&[0, 1], &nan]), Err(CodecError::Stored { what: "scales", .. })));
        assert!(matches!(delta.decode(1, 9, &[&[0], &one]), Err(CodecError::Length { .. })));
        assert!(matches!(delta.decode(1, 9, &[&[0, 1]]), Err(CodecError::Length { .. })));
        assert!(matches!(delta.validate(usize::MAX / 2, 3), Err(CodecError::TooLarge { .. })));
        assert!(matches!(Delta { planes: 9, ..delta }.validate(1, 1), Err(CodecError::Length { .. })));
    }
}
