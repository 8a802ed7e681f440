//! MaskLLM's mask files (2409.17481; NVlabs/MaskLLM `tool_compress_mask.py`, `eval_llama_ppl.py`).
//!
//! `mask_compressed.npz`: for each parameter one entry `<parameter>.mask`, bytes of `numpy.packbits` over the flattened
//! row-major mask: most significant bit first, rows not padded, 1 for kept. The shape is not stored.

use std::io::Write;

use super::{
    Mask, Pattern,
    npz::{Archive, NpzError, Writer},
};
use crate::codec::CodecError;

const SUFFIX: &str = ".mask.npy";

/// A file of masks in memory (or mapped).
#[derive(Debug)]
pub struct MaskFile<'a> {
    archive: Archive<'a>,
}

/// Why a mask cannot be had from a file.
#[derive(Debug, thiserror::Error)]
pub enum MaskFileError {
    /// The file is at fault.
    #[error(transparent)]
    File(#[from] NpzError),
    /// A mask does not keep to its pattern.
    #[error("mask of `{parameter}`: {error}")]
    Mask {
        /// The parameter's name.
        parameter: String,
        /// What is wrong.
        #[source]
        error: CodecError,
    },
}

impl<'a> MaskFile<'a> {
    /// Reads the directory of a file.
    ///
    /// # Errors
    /// [`NpzError`] when it is no archive.
    pub fn open(bytes: &'a [u8]) -> Result<Self, NpzError> {
        Archive::open(bytes).map(|archive| Self { archive })
    }

    /// Names of the parameters that have masks, sorted.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.archive.names().filter_map(|name| name.strip_suffix(SUFFIX))
    }

    /// Whether a parameter has a mask.
    #[must_use]
    pub fn has(&self, parameter: &str) -> bool {
        self.archive.has(&format!("{parameter}{SUFFIX}"))
    }

    /// The mask of a parameter of this shape.
    ///
    /// # Errors
    /// [`MaskFileError`]: no such parameter, an array of another size, a damaged entry, a mask of another pattern.
    pub fn mask(&self, parameter: &str, rows: usize, columns: usize, pattern: Pattern) -> Result<Mask, MaskFileError> {
        let of_mask = |error| MaskFileError::Mask { parameter: parameter.to_owned(), error };
        let count = rows.checked_mul(columns).ok_or_else(|| of_mask(CodecError::TooLarge { rows, columns }))?;
        let packed = self.archive.bytes_of(&format!("{parameter}{SUFFIX}"), count.div_ceil(8))?;
        unpack(&packed, rows, columns, pattern).map_err(of_mask)
    }
}

/// Writes masks one after the other.
pub struct MaskWriter<W: Write>(Writer<W>);

impl<W: Write> MaskWriter<W> {
    /// A file without masks.
    pub fn new(out: W) -> Self {
        Self(Writer::new(out))
    }

    /// Adds the mask of a parameter.
    ///
    /// # Errors
    /// [`NpzError::Write`]; [`NpzError::Entry`] for too large a mask or too long a name.
    pub fn add(&mut self, parameter: &str, mask: &Mask) -> Result<(), NpzError> {
        self.0.add(&format!("{parameter}{SUFFIX}"), &pack(mask))
    }

    /// Ends the file; returns what was written to.
    ///
    /// # Errors
    /// [`NpzError::Write`].
    pub fn finish(self) -> Result<W, NpzError> {
        self.0.finish()
    }
}

/// Writes masks by their parameters' names; returns what was written to.
///
/// # Errors
/// As [`MaskWriter::add`].
pub fn write<'m, W: Write>(out: W, masks: impl IntoIterator<Item = (&'m str, &'m Mask)>) -> Result<W, NpzError> {
    let mut writer = MaskWriter::new(out);
    for (parameter, mask) in masks {
        writer.add(parameter, mask)?;
    }
    writer.finish()
}

fn pack(mask: &Mask) -> Vec<u8> {
    let (rows, columns) = (mask.rows(), mask.columns());
    if columns.is_multiple_of(8) {
        return mask.bits().iter().map(|byte| byte.reverse_bits()).collect();
    }
    let mut packed = vec![0; (rows * columns).div_ceil(8)];
    for row in 0..rows {
        for column in (0..columns).filter(|column| mask.keeps(row, *column)) {
            let index = row * columns + column;
            packed[index / 8] |= 0x80 >> (index % 8);
        }
    }
    packed
}

fn unpack(packed: &[u8], rows: usize, columns: usize, pattern: Pattern) -> Result<Mask, CodecError> {
    let count = rows * columns;
    if packed.last().is_some_and(|last| !count.is_multiple_of(8) && last << (count % 8) != 0) {
        let problem = "bits are set after the last weight".to_owned();
        return Err(CodecError::Stored { what: "mask bits", problem });
    }
    if columns.is_multiple_of(8) {
        return Mask::new(pattern, rows, columns, packed.iter().map(|byte| byte.reverse_bits()).collect());
    }
    let row_bytes = Mask::row_bytes(columns);
    let mut bits = vec![0; rows * row_bytes];
    for index in (0..count).filter(|index| packed[index / 8] << (index % 8) & 0x80 != 0) {
        let (row, column) = (index / columns, index % columns);
        bits[row * row_bytes + column / 8] |= 1 << (column % 8);
    }
    Mask::new(pattern, rows, columns, bits)
}
