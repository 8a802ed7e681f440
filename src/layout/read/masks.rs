//! Masks that are stored beside the weights that they keep.

use super::{LogicalCheckpoint, Stored, codes::Codes, whole::WholeCodes};
use crate::{
    checkpoint::TensorEntry,
    codec::{
        CodecError, Whole,
        sparse::{Mask, Pattern},
    },
};

impl LogicalCheckpoint {
    /// The pattern of a tensor whose mask is stored, in bits or as places; `None` where zeros are all that tells of one.
    #[must_use]
    pub fn stored_pattern(&self, name: &str) -> Option<Pattern> {
        match &self.stored[self.index(name)?] {
            Stored::Sparse(_) => Some(Pattern::TWO_OF_FOUR),
            Stored::Coded { matrix, .. } if matches!(matrix.codes, Codes::Sparse24 { .. }) => {
                Some(Pattern::TWO_OF_FOUR)
            }
            Stored::Whole { matrix, .. } => match &matrix.codes {
                WholeCodes::Whole { format: Whole::Sparse(sparse), .. } => Some(sparse.pattern()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The stored masks of a tensor, one for each matrix of a stack, in rows of output features; none where
    /// [`LogicalCheckpoint::stored_pattern`] knows of none.
    ///
    /// # Errors
    /// [`CodecError::Mask`] with the row of the stack and the first column of the first group that does not keep as many
    /// weights as it has to; [`CodecError`] for places that are none.
    pub fn stored_masks(&self, name: &str) -> Result<Vec<Mask>, CodecError> {
        let Some(stored) = self.index(name).map(|index| &self.stored[index]) else { return Ok(Vec::new()) };
        let two_of_four = |entry: &TensorEntry, rows, columns| {
            let bits = self.checkpoint.bytes(entry).to_vec();
            Mask::new(Pattern::TWO_OF_FOUR, rows, columns, bits).map(|mask| vec![mask])
        };
        match stored {
            Stored::Sparse(matrix) => two_of_four(&matrix.mask, matrix.rows, matrix.columns),
            Stored::Coded { matrix, .. } => match &matrix.codes {
                Codes::Sparse24 { mask, .. } => two_of_four(mask, matrix.rows, matrix.columns),
                _ => Ok(Vec::new()),
            },
            Stored::Whole { matrix, .. } => match &matrix.codes {
                WholeCodes::Whole { format: Whole::Sparse(sparse), entries } => {
                    // Values, then places.
                    let Some(indices) = entries.get(1).map(|entry| self.checkpoint.bytes(entry)) else {
                        return Err(CodecError::Length { what: "stored tensors", expected: 2, got: entries.len() });
                    };
                    let length = indices.len() / matrix.stack.max(1);
                    let of_expert = |expert: usize| {
                        let indices = &indices[expert * length..][..length];
                        sparse.mask(matrix.rows, matrix.columns, indices)
                    };
                    (0..matrix.stack).map(of_expert).collect()
                }
                _ => Ok(Vec::new()),
            },
            _ => Ok(Vec::new()),
        }
    }
}
