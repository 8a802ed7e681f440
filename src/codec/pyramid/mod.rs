//! Pyramid vector quantization: a matrix as points of pyramids, gains and column scales.
//!
//! Fischer, "A pyramid vector quantizer" (1986); for language models van der Ouderaa et al. (2410.16926). A vector is D
//! consecutive rows of one column. Its direction is that of a point y of the pyramid Σ |y| = K, stored as the point's
//! index; its length is a level of one codebook of the matrix times the column's scale:
//!
//! `w = ((column_scale · gain_codebook[gain]) / √(Σ y²)) · y`
//!
//! in F32, each operation rounded once in this order (Σ y² is an integer that F32 holds exactly). So the codebook of
//! directions is never stored, and any number of bits per weight can be had.
//!
//! This codec takes the matrix as a whole: columns share scales over all rows, which is why it is no [`super::Codec`].

pub mod lanes;
pub mod law;
pub mod search;

mod choice;
mod counts;
mod distortion;
mod index;
mod stored;
mod words;

pub use choice::choices;
pub use counts::Counts;
pub use distortion::{expected_distortion, measured_distortion};
pub use index::{Order, Word};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
pub use stored::Points;
pub(crate) use stored::ROOM;

use super::{CodecError, bits};

/// A number format of points of pyramids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pyramid {
    /// Rows of a vector, D.
    pub dimension: usize,
    /// The sum of a point's magnitudes, K.
    pub pulses: u32,
    /// Bits of a gain.
    pub gain_bits: u8,
}

/// The longest vectors.
pub const MAX_DIMENSION: usize = 128;
/// The most pulses: squares of points are integers that F32 holds exactly.
pub const MAX_PULSES: u32 = 4095;
/// The most bits of a gain.
pub const MAX_GAIN_BITS: u8 = 8;

/// Name, element type and shape of a stored tensor.
pub type StoredShape = (&'static str, Dtype, Vec<usize>);

/// Sizes of a coded matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Blocks of D rows; the last may be short.
    pub blocks: usize,
    /// Bytes of a block's indices.
    pub word_bytes: usize,
    /// Bytes of a block's gains.
    pub gain_bytes: usize,
}

impl Pyramid {
    /// Bits of an index; none for a pyramid of more than 2¹²⁸ points.
    #[must_use]
    pub fn index_bits(&self) -> Option<u32> {
        self.check().ok()?;
        Counts::new(self.dimension, self.pulses).bits(self.dimension, self.pulses)
    }

    fn check(&self) -> Result<(), CodecError> {
        let refuse = |problem| Err(CodecError::Pyramid { pyramid: *self, problem });
        if !(2..=MAX_DIMENSION).contains(&self.dimension) {
            return refuse("vectors have 2 to 128 rows");
        }
        if !(1..=MAX_PULSES).contains(&self.pulses) {
            return refuse("points have 1 to 4095 pulses");
        }
        if !(1..=MAX_GAIN_BITS).contains(&self.gain_bits) {
            return refuse("gains have 1 to 8 bits");
        }
        Ok(())
    }

    /// Refuses what cannot be stored.
    ///
    /// # Errors
    /// [`CodecError::Pyramid`] for settings out of range or indices beyond 128 bits; [`CodecError::TooLarge`].
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        self.check()?;
        self.sizes(rows, columns).map(|_| ())
    }

    pub(crate) fn sizes(&self, rows: usize, columns: usize) -> Result<Sizes, CodecError> {
        self.check()?;
        let Some(index_bits) = self.index_bits() else {
            return Err(CodecError::Pyramid { pyramid: *self, problem: "its points take more than 128 bits" });
        };
        let blocks = rows.div_ceil(self.dimension);
        let sizes = || {
            let word_bytes = words::stream_bytes(columns, index_bits)?;
            // Bits and slack are counted, too; and weights in F32.
            columns.checked_mul(index_bits as usize)?;
            blocks.checked_mul(word_bytes.checked_add(words::SLACK)?)?;
            blocks.checked_mul(self.dimension)?.checked_mul(columns)?.checked_mul(4)?;
            Some(Sizes { blocks, word_bytes, gain_bytes: bits::packed_bytes(columns, self.gain_bits) })
        };
        sizes().ok_or(CodecError::TooLarge { rows, columns })
    }

    /// The stored tensors: name, element type, shape.
    ///
    /// - `words`: of each block of rows a stream of indices in the order of columns, least significant bit first;
    /// - `gains`: likewise of gains;
    /// - `column_scales`: of each column;
    /// - `gain_codebook`: the gains' levels.
    ///
    /// # Errors
    /// As for [`Pyramid::validate`].
    pub fn tensors(&self, rows: usize, columns: usize) -> Result<Vec<StoredShape>, CodecError> {
        let sizes = self.sizes(rows, columns)?;
        Ok(vec![
            ("words", Dtype::U8, vec![sizes.blocks, sizes.word_bytes]),
            ("gains", Dtype::U8, vec![sizes.blocks, sizes.gain_bytes]),
            ("column_scales", Dtype::F16, vec![columns]),
            ("gain_codebook", Dtype::F32, vec![1 << self.gain_bits]),
        ])
    }

    /// Bytes of all stored tensors.
    ///
    /// # Errors
    /// As for [`Pyramid::validate`].
    pub fn stored_bytes(&self, rows: usize, columns: usize) -> Result<u64, CodecError> {
        let sizes = self.sizes(rows, columns)?;
        let blocks = sizes.blocks as u64 * (sizes.word_bytes as u64 + sizes.gain_bytes as u64);
        Ok(blocks + 2 * columns as u64 + (4 << self.gain_bits))
    }

    /// The short name, such as `pvq-d16-k58-b4`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("pvq-d{}-k{}-b{}", self.dimension, self.pulses, self.gain_bits)
    }

    /// Reads a short name back; none for what is not the name of a valid format.
    #[must_use]
    pub fn parse_name(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("pvq-d")?.split('-');
        let dimension = super::name::plain_number(parts.next()?)?;
        let pulses = super::name::plain_number(parts.next()?.strip_prefix('k')?)?.try_into().ok()?;
        let gain_bits = super::name::plain_number(parts.next()?.strip_prefix('b')?)?.try_into().ok()?;
        let pyramid = Self { dimension, pulses, gain_bits };
        (parts.next().is_none() && pyramid.validate(0, 0).is_ok()).then_some(pyramid)
    }

    /// The weight that coordinate 1 stands for. `square` is Σ y².
    #[inline(always)]
    #[must_use]
    pub fn step(column_scale: f32, level: f32, square: f32) -> f32 {
        (column_scale * level) / square.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for name in ["pvq-d16-k58-b4", "pvq-d8-k865-b2", "pvq-d32-k105-b5"] {
            assert_eq!(Pyramid::parse_name(name).map(|pyramid| pyramid.name()).as_deref(), Some(name));
        }
        for name in [
            "pvq",
            "pvq-d16-k58",
            "pvq-d16-k58-b4-",
            "pvq-d016-k58-b4",
            "pvq-d16-k58-b9",
            "pvq-d1-k58-b4",
            "pvq-d16-k0-b4",
            "pvq-d32-k107-b4",
            "pvq-d16-k4096-b4",
            "pvq-d129-k2-b4",
            "pvq-d16-k99999999999-b4",
            "int4-g128",
        ] {
            assert_eq!(Pyramid::parse_name(name), None, "{name}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_streams() {
        let pyramid = Pyramid { dimension: 16, pulses: 12, gain_bits: 3 };
        assert_eq!(pyramid.index_bits(), Some(32));
        let tensors = pyramid.tensors(70, 11).unwrap();
        let shapes: Vec<_> = tensors.iter().map(|(_, _, shape)| shape.clone()).collect();
        assert_eq!(shapes, [vec![5, 44], vec![5, 5], vec![11], vec![8]]);
        assert_eq!(pyramid.stored_bytes(70, 11).unwrap(), 5 * 44 + 5 * 5 + 22 + 32);
    }

    #[test]
    fn what_cannot_be_addressed_is_refused() {
        let pyramid = Pyramid { dimension: 16, pulses: 12, gain_bits: 3 };
        assert!(matches!(pyramid.validate(usize::MAX, usize::MAX), Err(CodecError::TooLarge { .. })));
        assert!(matches!(pyramid.validate(1 << 40, 1 << 40), Err(CodecError::TooLarge { .. })));
        assert!(matches!(pyramid.validate(16, usize::MAX / 4), Err(CodecError::TooLarge { .. })));
        let wide = Pyramid { dimension: 32, pulses: 107, gain_bits: 3 };
        assert!(matches!(wide.validate(16, 16), Err(CodecError::Pyramid { .. })));
    }
}
