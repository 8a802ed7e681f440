//! The canonical form: kept values in one tensor, their places in another.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::{Mask, Pattern, mask::field};
use crate::{
    checkpoint::{Dtype, bits_of, decode_to_f32, encode_from_f32, is_float},
    codec::{CodecError, StoredTensor, bits},
};

/// n of each m weights, as values and indices.
///
/// `values`, `[rows, kept]`: a row's kept weights in the order of their columns, with the columns at its end that are no
/// whole group; kept = ⌊columns / m⌋ · n + columns mod m. `indices`, U8 `[rows, bytes]`: the place in its group of each
/// value but those at the end, ⌈log₂ m⌉ bits each, least significant bit first; a row's last byte is padded with zero bits.
/// For 2:4 of 16-bit weights that is 9 bits a weight. A kept weight may be zero: the indices say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparse {
    /// Weights kept of each group.
    pub keep: usize,
    /// Weights of a group.
    pub of: usize,
    /// Type of the values.
    pub dtype: Dtype,
}

impl Hash for Sparse {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Element types have no hash; equal ones have as many bits.
        (self.keep, self.of, bits_of(self.dtype)).hash(state);
    }
}

impl Sparse {
    /// The pattern.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        Pattern { keep: self.keep, of: self.of }
    }

    /// The short name, as `mask-2of4`. The type of the values is not part of it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("mask-{}of{}", self.keep, self.of)
    }

    /// Reads a short name back; `None` for what is no name of a valid pattern.
    #[must_use]
    pub fn parse_name(name: &str, dtype: Dtype) -> Option<Self> {
        let (keep, of) = name.strip_prefix("mask-")?.split_once("of")?;
        let number = |text: &str| match text.as_bytes() {
            [digit @ b'1'..=b'9'] => Some(usize::from(digit - b'0')),
            _ => None,
        };
        let sparse = Self { keep: number(keep)?, of: number(of)?, dtype };
        sparse.validate(0, 0).is_ok().then_some(sparse)
    }

    /// Checks pattern, type and shape.
    ///
    /// # Errors
    /// [`CodecError::Pattern`]; [`CodecError::Stored`] for a type that is not a float; [`CodecError::TooLarge`].
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        self.pattern().validate()?;
        if !is_float(self.dtype) {
            let problem = format!("{:?} is not a float type", self.dtype);
            return Err(CodecError::Stored { what: "values", problem });
        }
        let bits = rows.checked_mul(columns).and_then(|count| count.checked_mul(64));
        bits.map(|_| ()).ok_or(CodecError::TooLarge { rows, columns })
    }

    /// The stored tensors of a matrix that [`Sparse::validate`] takes, in the order of [`Sparse::encode`].
    #[must_use]
    pub fn tensors(&self, rows: usize, columns: usize) -> Vec<StoredTensor> {
        let values = vec![rows, self.pattern().kept_per_row(columns)];
        vec![
            StoredTensor { suffix: "values", dtype: self.dtype, shape: values },
            StoredTensor { suffix: "indices", dtype: Dtype::U8, shape: vec![rows, self.index_bytes(columns)] },
        ]
    }

    /// Bytes of a row's indices.
    fn index_bytes(&self, columns: usize) -> usize {
        bits::packed_bytes(columns / self.of * self.keep, self.pattern().index_bits())
    }

    /// The bytes of the stored tensors: values (rounded to their type) and indices. `weights` is `[rows, columns]`
    /// row-major, of the mask's shape; what the mask does not keep is lost.
    ///
    /// # Errors
    /// As for [`Sparse::validate`]; [`CodecError::Pattern`] for a mask of another pattern; [`CodecError::Length`].
    pub fn encode(&self, weights: &[f32], mask: &Mask) -> Result<[Vec<u8>; 2], CodecError> {
        let (rows, columns) = (mask.rows(), mask.columns());
        self.validate(rows, columns)?;
        if mask.pattern() != self.pattern() {
            let Pattern { keep, of } = mask.pattern();
            return Err(CodecError::Pattern { keep, of });
        }
        let expected = rows * columns;
        if weights.len() != expected {
            return Err(CodecError::Length { what: "weights", expected, got: weights.len() });
        }
        let index_bytes = self.index_bytes(columns);
        let (mut values, mut indices) = (Vec::new(), vec![0; rows * index_bytes]);
        let whole = self.pattern().whole_columns(columns);
        let (mut kept, mut places) = (Vec::new(), Vec::new());
        for (row, weights) in weights.chunks_exact(columns.max(1)).enumerate() {
            let bits = mask.row(row);
            kept.clear();
            places.clear();
            for first in (0..whole).step_by(self.of) {
                let group = field(bits, first, self.of);
                for place in (0..self.of).filter(|place| group >> place & 1 == 1) {
                    places.push(place as u8);
                    kept.push(weights[first + place]);
                }
            }
            kept.extend_from_slice(&weights[whole..]);
            encode_from_f32(self.dtype, &kept, &mut values);
            bits::pack(&places, self.pattern().index_bits(), &mut indices[row * index_bytes..][..index_bytes]);
        }
        Ok([values, indices])
    }

    /// The matrix, `[rows, columns]` row-major, from the bytes of its stored tensors in the order of
    /// [`Sparse::tensors`]; what is not kept is +0.
    ///
    /// # Errors
    /// As for [`Sparse::validate`]; [`CodecError::Length`] for bytes that are no such matrix's; [`CodecError::Stored`]
    /// where indices do not ascend within a group, lie outside of it, or padding is not zero.
    pub fn decode(&self, rows: usize, columns: usize, stored: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        let &[values, indices] = stored else {
            return Err(CodecError::Length { what: "stored tensors", expected: 2, got: stored.len() });
        };
        self.validate(rows, columns)?;
        let kept = self.pattern().kept_per_row(columns);
        let expected = rows * kept * bits_of(self.dtype) / 8;
        if values.len() != expected {
            return Err(CodecError::Length { what: "bytes of values", expected, got: values.len() });
        }
        let whole = self.pattern().whole_columns(columns);
        let mut decoded = vec![0.0; kept];
        let mut weights = vec![0.0; rows * columns];
        let out: Vec<&mut [f32]> = weights.chunks_exact_mut(columns.max(1)).collect();
        let mut out = out.into_iter();
        let row_bytes = kept * bits_of(self.dtype) / 8;
        self.rows_of_places(rows, columns, indices, |row, places| {
            decode_to_f32(self.dtype, &values[row * row_bytes..][..row_bytes], &mut decoded);
            let Some(out) = out.next() else { return };
            let (of_groups, tail) = decoded.split_at(places.len());
            for (index, (place, value)) in places.iter().zip(of_groups).enumerate() {
                out[index / self.keep * self.of + usize::from(*place)] = *value;
            }
            out[whole..].copy_from_slice(tail);
        })?;
        Ok(weights)
    }

    /// The mask that stored indices tell.
    ///
    /// # Errors
    /// As for [`Sparse::decode`].
    pub fn mask(&self, rows: usize, columns: usize, indices: &[u8]) -> Result<Mask, CodecError> {
        self.validate(rows, columns)?;
        let row_bytes = Mask::row_bytes(columns);
        let whole = self.pattern().whole_columns(columns);
        let mut kept = vec![0; rows * row_bytes];
        self.rows_of_places(rows, columns, indices, |row, places| {
            let kept = &mut kept[row * row_bytes..][..row_bytes];
            let of_groups = places.iter().enumerate();
            let of_groups = of_groups.map(|(index, place)| index / self.keep * self.of + usize::from(*place));
            of_groups.chain(whole..columns).for_each(|column| kept[column / 8] |= 1 << (column % 8));
        })?;
        Mask::new(self.pattern(), rows, columns, kept)
    }

    /// Hands over the checked places of each row.
    fn rows_of_places(
        &self,
        rows: usize,
        columns: usize,
        indices: &[u8],
        mut each: impl FnMut(usize, &[u8]),
    ) -> Result<(), CodecError> {
        let (index_bytes, width) = (self.index_bytes(columns), self.pattern().index_bits());
        let expected = rows * index_bytes;
        if indices.len() != expected {
            return Err(CodecError::Length { what: "bytes of indices", expected, got: indices.len() });
        }
        let mut places = vec![0; columns / self.of * self.keep];
        let mut again = vec![0; index_bytes];
        // Without columns there may be any number of rows.
        let checked = if columns == 0 { 0 } else { rows };
        for row in 0..checked {
            let stored = &indices[row * index_bytes..][..index_bytes];
            bits::unpack(stored, width, &mut places);
            let malformed = |problem| CodecError::Stored { what: "indices", problem };
            let good = |group: &[u8]| group.is_sorted_by(|a, b| a < b) && usize::from(group[self.keep - 1]) < self.of;
            if let Some(group) = places.chunks_exact(self.keep).position(|group| !good(group)) {
                let group = &places[group * self.keep..][..self.keep];
                let problem = format!("row {row} has places {group:?}, expected them ascending and below {}", self.of);
                return Err(malformed(problem));
            }
            bits::pack(&places, width, &mut again);
            if again != stored {
                return Err(malformed(format!("row {row} ends with bits that are not zero")));
            }
            each(row, &places);
        }
        Ok(())
    }
}
