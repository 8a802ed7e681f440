//! Masks that were found elsewhere.

use std::sync::Arc;

use super::{Mask, Pattern};
use crate::{
    checkpoint::MappedFile,
    codec::{
        CodecError,
        sparse::{
            NpzError,
            maskllm::{MaskFile, MaskFileError},
        },
    },
    manifest::ContentHash,
};

/// A file of masks by name of the weight, as MaskLLM has them (`.npz`). One mask is in memory at a time.
#[derive(Debug)]
pub struct MaskBook {
    file: MappedFile,
    hash: ContentHash,
}

impl MaskBook {
    /// Checks the directory of a mapped file.
    ///
    /// # Errors
    /// [`NpzError`] when it is no such file.
    pub(crate) fn new(file: MappedFile) -> Result<Self, NpzError> {
        MaskFile::open(file.bytes())?;
        let hash = ContentHash::of_in_parallel(file.bytes());
        Ok(Self { file, hash })
    }

    /// Hash of the file.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// Whether a weight has a mask.
    ///
    /// # Errors
    /// [`NpzError`] when the file has changed.
    pub fn has(&self, parameter: &str) -> Result<bool, NpzError> {
        Ok(MaskFile::open(self.file.bytes())?.has(parameter))
    }

    /// The mask of a `[rows, columns]` weight.
    ///
    /// # Errors
    /// As [`MaskFile::mask`].
    pub fn mask(&self, parameter: &str, rows: usize, columns: usize, pattern: Pattern) -> Result<Mask, MaskFileError> {
        MaskFile::open(self.file.bytes())?.mask(parameter, rows, columns, pattern)
    }
}

/// The mask of one weight in a file.
#[derive(Debug, Clone)]
pub struct Given {
    /// The file.
    pub book: Arc<MaskBook>,
    /// The weight's name.
    pub parameter: String,
}

impl PartialEq for Given {
    fn eq(&self, other: &Self) -> bool {
        self.book.hash == other.book.hash && self.parameter == other.parameter
    }
}

impl Given {
    /// The mask, of a `[rows, columns]` weight.
    ///
    /// # Errors
    /// [`CodecError::Stored`] with what is wrong with it.
    pub fn mask(&self, rows: usize, columns: usize, pattern: Pattern) -> Result<Mask, CodecError> {
        let failed = |error: MaskFileError| match error {
            MaskFileError::Mask { error, .. } => CodecError::Stored { what: "mask", problem: error.to_string() },
            MaskFileError::File(error) => CodecError::Stored { what: "mask", problem: error.to_string() },
        };
        self.book.mask(&self.parameter, rows, columns, pattern).map_err(failed)
    }
}
