//! Encoding what a mask of the largest magnitudes keeps, row by row.

use std::ops::Range;

use super::Pattern;
use crate::{
    codec::{
        CodecError, MatrixParameters, RowSource,
        sparse::{Mask, apply_row, select::select_row},
    },
    passes::{EncodedStripe, MatrixEncoder},
};

/// An encoder of the weights that [`super::magnitude`] keeps; all others are +0, of which every number format with whole
/// zero points has the code.
pub struct MaskedEncoder {
    encoder: Box<dyn MatrixEncoder>,
    pattern: Pattern,
}

impl MaskedEncoder {
    /// What `encoder` makes of masked rows.
    #[must_use]
    pub fn new(encoder: Box<dyn MatrixEncoder>, pattern: Pattern) -> Self {
        Self { encoder, pattern }
    }
}

impl MatrixEncoder for MaskedEncoder {
    fn prepare(&self, source: &dyn RowSource) -> Result<MatrixParameters, CodecError> {
        self.encoder.prepare(&MaskedRows { source, pattern: self.pattern })
    }

    fn encode(
        &self,
        source: &dyn RowSource,
        parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<EncodedStripe, CodecError> {
        self.encoder.encode(&MaskedRows { source, pattern: self.pattern }, parameters, first_row, rows)
    }
}

/// Rows with the smallest magnitudes of each group made +0.
struct MaskedRows<'a> {
    source: &'a dyn RowSource,
    pattern: Pattern,
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
        let (mut scores, mut bits) = (vec![0.0; columns], vec![0; Mask::row_bytes(columns)]);
        for row in out.chunks_exact_mut(columns) {
            // A weight that is no number stays, for the encoder to name it.
            if row.iter().all(|weight| weight.is_finite()) {
                scores.iter_mut().zip(&*row).for_each(|(score, weight)| *score = weight.abs());
                select_row(&scores, self.pattern, &mut bits);
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
