//! Which weights are kept: one bit each.

use serde::{Deserialize, Serialize};

use crate::codec::CodecError;

/// Columns of the largest group.
const LARGEST: usize = 8;

/// How many of each so many neighbouring columns are kept, counted from a row's first column. What is left over at the
/// end of a row, fewer columns than a group, is kept whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pattern {
    /// Weights kept of each group.
    pub keep: usize,
    /// Weights of a group.
    pub of: usize,
}

impl Pattern {
    /// What the sparse units of graphics processors multiply.
    pub const TWO_OF_FOUR: Self = Self { keep: 2, of: 4 };

    /// Checks that it keeps something and leaves out something, of at most 8 weights.
    ///
    /// # Errors
    /// [`CodecError::Pattern`].
    pub fn validate(self) -> Result<(), CodecError> {
        let Self { keep, of } = self;
        if keep >= 1 && keep < of && of <= LARGEST { Ok(()) } else { Err(CodecError::Pattern { keep, of }) }
    }

    /// Columns of a row that belong to whole groups; those after them are all kept.
    #[must_use]
    pub fn whole_columns(self, columns: usize) -> usize {
        columns - columns % self.of.max(1)
    }

    /// Weights kept of a row.
    #[must_use]
    pub fn kept_per_row(self, columns: usize) -> usize {
        columns / self.of.max(1) * self.keep + columns % self.of.max(1)
    }

    /// Bits of a place within a group: ⌈log₂ m⌉.
    #[must_use]
    pub fn index_bits(self) -> u8 {
        self.of.next_power_of_two().trailing_zeros() as u8
    }

    /// The sets of places that may be left out of a group, each ascending, in ascending order: for 2:4 (0, 1), (0, 2),
    /// (0, 3), (1, 2), (1, 3), (2, 3). Where two are as good, the first one is taken, so that of equal weights the lowest
    /// columns go.
    #[must_use]
    pub fn left_out(self) -> Vec<Vec<usize>> {
        let mut sets: Vec<Vec<usize>> = (0_u32..1 << self.of.min(LARGEST))
            .filter(|set| set.count_ones() as usize == self.of - self.keep)
            .map(|set| (0..self.of).filter(|place| set >> place & 1 == 1).collect())
            .collect();
        sets.sort();
        sets
    }
}

/// Which weights of a matrix are kept. Exactly as many of each group as the pattern says: a kept weight may be zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    pattern: Pattern,
    rows: usize,
    columns: usize,
    /// Rows of ⌈columns / 8⌉ bytes, column j in bit j mod 8 of byte j div 8; bits after the last column are 0.
    bits: Vec<u8>,
}

impl Mask {
    /// Bytes of a row's bits.
    #[must_use]
    pub fn row_bytes(columns: usize) -> usize {
        columns.div_ceil(8)
    }

    /// A mask from its bits, as [`Mask::bits`] gives them.
    ///
    /// # Errors
    /// [`CodecError::Pattern`]; [`CodecError::TooLarge`] and [`CodecError::Length`] for bits of another shape;
    /// [`CodecError::Mask`] where a group does not keep as many as it has to, or a bit is set after the last column.
    pub fn new(pattern: Pattern, rows: usize, columns: usize, bits: Vec<u8>) -> Result<Self, CodecError> {
        pattern.validate()?;
        let row_bytes = Self::row_bytes(columns);
        let too_large = CodecError::TooLarge { rows, columns };
        rows.checked_mul(columns).and_then(|count| count.checked_mul(8)).ok_or(too_large)?;
        let expected = rows * row_bytes;
        if bits.len() != expected {
            return Err(CodecError::Length { what: "bytes of a mask", expected, got: bits.len() });
        }
        let mask = Self { pattern, rows, columns, bits };
        // Without columns there may be any number of rows.
        let checked = if columns == 0 { 0 } else { rows };
        (0..checked).try_for_each(|row| mask.check_row(row))?;
        Ok(mask)
    }

    fn check_row(&self, row: usize) -> Result<(), CodecError> {
        let (bits, Pattern { keep, of }) = (self.row(row), self.pattern);
        let whole = self.pattern.whole_columns(self.columns);
        let wrong = |column, kept: u32, expected| {
            let kept = kept as usize;
            if kept == expected { Ok(()) } else { Err(CodecError::Mask { row, column, kept, expected }) }
        };
        if of == 4 {
            // The usual case, two groups a byte.
            let both =
                |byte: &u8| (byte & 15).count_ones() as usize == keep && (byte >> 4).count_ones() as usize == keep;
            if !bits[..whole / 8].iter().all(both) || !whole.is_multiple_of(8) {
                (0..whole).step_by(4).try_for_each(|first| wrong(first, field(bits, first, 4).count_ones(), keep))?;
            }
        } else {
            (0..whole).step_by(of).try_for_each(|first| wrong(first, field(bits, first, of).count_ones(), keep))?;
        }
        let left = self.columns - whole;
        wrong(whole, field(bits, whole, left).count_ones(), left)?;
        let padding = (bits.len() * 8 - self.columns) as u32;
        wrong(self.columns, bits.last().map_or(0, |last| (u16::from(*last) << padding >> 8).count_ones()), 0)
    }

    /// The pattern that it keeps to.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows of ⌈columns / 8⌉ bytes, column j in bit j mod 8 of byte j div 8; bits after the last column are 0.
    #[must_use]
    pub fn bits(&self) -> &[u8] {
        &self.bits
    }

    /// The bytes of [`Mask::bits`].
    #[must_use]
    pub fn into_bits(self) -> Vec<u8> {
        self.bits
    }

    /// The bits of one row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = Self::row_bytes(self.columns);
        &self.bits[row * bytes..][..bytes]
    }

    /// Whether a weight is kept.
    #[must_use]
    pub fn keeps(&self, row: usize, column: usize) -> bool {
        self.row(row)[column / 8] >> (column % 8) & 1 == 1
    }

    /// Columns at the end of every row that are kept because they are no whole group.
    #[must_use]
    pub fn dense_columns(&self) -> usize {
        self.columns - self.pattern.whole_columns(self.columns)
    }

    /// Makes what is not kept of a matrix of this shape, row-major, +0.
    ///
    /// # Errors
    /// [`CodecError::Length`].
    pub fn apply(&self, weights: &mut [f32]) -> Result<(), CodecError> {
        let expected = self.rows * self.columns;
        if weights.len() != expected {
            return Err(CodecError::Length { what: "weights", expected, got: weights.len() });
        }
        for (row, weights) in weights.chunks_exact_mut(self.columns.max(1)).enumerate() {
            apply_row(self.row(row), weights);
        }
        Ok(())
    }
}

/// Makes what a row of bits does not keep +0.
pub fn apply_row(bits: &[u8], weights: &mut [f32]) {
    for (byte, weights) in bits.iter().zip(weights.chunks_mut(8)) {
        for (bit, weight) in weights.iter_mut().enumerate() {
            *weight = if byte >> bit & 1 == 1 { *weight } else { 0.0 };
        }
    }
}

/// Up to 8 bits from `first` on.
pub(super) fn field(bits: &[u8], first: usize, count: usize) -> u8 {
    let byte = |index: usize| u16::from(bits.get(index).copied().unwrap_or(0));
    let window = (byte(first / 8) | byte(first / 8 + 1) << 8) >> (first % 8);
    (window & ((1 << count) - 1)) as u8
}
