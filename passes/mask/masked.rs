//! Encoding what a mask keeps, row by row.

use std::{ops::Range, sync::OnceLock};

use super::{Given, Pattern};
use crate::{
    codec::{
        CodecError, MatrixParameters, RowSource,
        sparse::{Mask, apply_row, select::select_row},
    },
    passes::{EncodedStripe, MatrixEncoder},
};

/// What decides which weights are kept where nothing is known of their input.
pub enum Selection {
    /// The largest magnitudes.
    Largest(Pattern),
    /// A mask from elsewhere, read when the first row is.
    Given {
        /// Where it is.
        given: Given,
        /// What it has to keep to.
        pattern: Pattern,
        /// The mask.
        mask: OnceLock<Result<Mask, CodecError>>,
    },
}

/// An encoder of the weights that a mask keeps; all others are +0, of which every number format with whole zero points has
/// the code.
pub struct MaskedEncoder {
    encoder: Box<dyn MatrixEncoder>,
    selection: Selection,
}

impl MaskedEncoder {
    /// What `encoder` makes of masked rows.
    #[must_use]
    pub fn new(encoder: Box<dyn MatrixEncoder>, selection: Selection) -> Self {
        Self { encoder, selection }
    }
}

impl MatrixEncoder for MaskedEncoder {
    fn prepare(&self, source: &dyn RowSource) -> Result<MatrixParameters, CodecError> {
        self.encoder.prepare(&MaskedRows { source, selection: &self.selection })
    }

    fn encode(
        &self,
        source: &dyn RowSource,
        parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<EncodedStripe, CodecError> {
        self.encoder.encode(&MaskedRows { source, selection: &self.selection }, parameters, first_row, rows)
    }
}

/// Rows with what is not kept made +0.
struct MaskedRows<'a> {
    source: &'a dyn RowSource,
    selection: &'a Selection,
}

impl RowSource for MaskedRows<'_> {
    fn rows(&self) -> usize {
        self.source.rows()
    }

    fn columns(&self) -> usize {
        self.source.columns()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        self.source.read_rows(first_row, out)?;
        let columns = self.columns().max(1);
        let pattern = match self.selection {
            Selection::Largest(pattern) => *pattern,
            Selection::Given { given, pattern, mask } => {
                let read = || given.mask(self.rows(), self.columns(), *pattern);
                let mask = mask.get_or_init(read).as_ref().map_err(CodecError::clone)?;
                for (row, weights) in out.chunks_exact_mut(columns).enumerate() {
                    // A weight that is no number stays, for the encoder to name it.
                    if weights.iter().all(|weight| weight.is_finite()) {
                        apply_row(mask.row(first_row + row), weights);
                    }
                }
                return Ok(());
            }
        };
        let (mut scores, mut bits) = (vec![0.0; columns], vec![0; Mask::row_bytes(columns)]);
        for row in out.chunks_exact_mut(columns) {
            // A weight that is no number stays, for the encoder to name it.
            if row.iter().all(|weight| weight.is_finite()) {
                scores.iter_mut().zip(&*row).for_each(|(score, weight)| *score = weight.abs());
                select_row(&scores, pattern, &mut bits);
                apply_row(&bits, row);
            }
        }
        Ok(())
    }

    fn release_rows(&self, rows: Range<usize>) {
        self.source.release_rows(rows);
    }

    fn rows_at_once(&self) -> usize {
        self.source.rows_at_once()
    }
}
