//! A coded matrix of a checkpoint: where its parts lie and how they become canonical codes.

use super::{
    super::{LayoutError, streams::decode_scales},
    codes::Codes,
    parts::elements,
    scales::{Scales, Zeros},
};
use crate::{
    checkpoint::{Checkpoint, Dtype, TensorEntry},
    codec::{Codec, CodecError, CodedRows, MatrixParameters, Outliers},
};

/// A coded matrix.
#[derive(Debug, Clone)]
pub(super) struct CodedMatrix {
    pub rows: usize,
    pub columns: usize,
    /// The number format; with `group_of_column`, all of it but which columns form a group.
    pub codec: Codec,
    /// The group of each column, where groups are not consecutive columns (GPTQ's act-order).
    pub group_of_column: Option<Vec<u32>>,
    pub codes: Codes,
    pub scales: Scales,
    pub zeros: Zeros,
    pub tensor_scale: Option<TensorEntry>,
    pub tensor_zero: Option<TensorEntry>,
    pub outliers: Option<OutlierEntries>,
}

/// The tensors of the weights kept exact.
#[derive(Debug, Clone)]
pub(super) struct OutlierEntries {
    pub row_starts: TensorEntry,
    pub columns: TensorEntry,
    pub values: TensorEntry,
}

impl CodedMatrix {
    /// Canonical codes of some rows within the matrix.
    pub(super) fn coded_rows(&self, checkpoint: &Checkpoint, first_row: usize, rows: usize) -> CodedRows {
        let groups = self.codec.groups_per_row(self.columns);
        let scale_rows = self.codec.scale_row_range(first_row, rows);
        CodedRows {
            first_row,
            rows,
            columns: self.columns,
            codes: self.codes.read(checkpoint, self.columns, first_row, rows),
            scales: self.scales.read(checkpoint, groups, scale_rows.clone()),
            zeros: self.zeros.read(checkpoint, groups, scale_rows),
        }
    }

    /// What is known once per matrix; outliers are checked.
    pub(super) fn parameters(&self, checkpoint: &Checkpoint) -> Result<MatrixParameters, LayoutError> {
        let number = |entry: &TensorEntry| match entry.dtype {
            // Only int8 zero points are stored as integers: −128 stands for 0.
            Dtype::I8 => checkpoint.bytes(entry).first().map(|&zero| f32::from(zero ^ 0x80)),
            dtype => decode_scales(dtype, &checkpoint.bytes(entry)).first().copied(),
        };
        Ok(MatrixParameters {
            tensor_scale: self.tensor_scale.as_ref().and_then(number),
            tensor_zero: self.tensor_zero.as_ref().and_then(number),
            outliers: self.outliers.as_ref().map(|entries| self.read_outliers(checkpoint, entries)).transpose()?,
        })
    }

    fn read_outliers(&self, checkpoint: &Checkpoint, entries: &OutlierEntries) -> Result<Outliers, LayoutError> {
        let words = |entry: &TensorEntry| {
            let bytes = checkpoint.bytes(entry);
            bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect::<Vec<_>>()
        };
        let columns = match entries.columns.dtype {
            Dtype::I16 => {
                let bytes = checkpoint.bytes(&entries.columns);
                bytes.as_chunks::<2>().0.iter().map(|&half| u32::from(u16::from_le_bytes(half))).collect()
            }
            _ => words(&entries.columns),
        };
        let values = decode_scales(entries.values.dtype, &checkpoint.bytes(&entries.values));
        let outliers = Outliers { row_starts: words(&entries.row_starts), columns, values };
        let malformed = |message: String| LayoutError::Value { tensor: entries.row_starts.name.clone(), message };
        let count = elements(&entries.columns);
        let (first, last) = (outliers.row_starts.first(), outliers.row_starts.last());
        if first != Some(&0) || last.is_none_or(|&last| last as usize != count) {
            return Err(malformed(format!("row starts run from {first:?} to {last:?}; expected 0 to {count}")));
        }
        for row in 0..self.rows {
            outliers.row(row, self.columns).map_err(|error| malformed(error.to_string()))?;
        }
        Ok(outliers)
    }

    /// Weights of some rows within the matrix.
    pub(super) fn dequantize(
        &self,
        checkpoint: &Checkpoint,
        parameters: &MatrixParameters,
        first_row: usize,
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        let coded = self.coded_rows(checkpoint, first_row, out.len() / self.columns);
        let Some(group_of_column) = &self.group_of_column else {
            return self.codec.dequantize_rows(&coded, parameters, out);
        };
        // Only integers with scales per group come in this form.
        let groups = self.codec.groups_per_row(self.columns);
        let implied = vec![self.codec.implied_zero(); groups];
        for (row, (codes, out)) in
            coded.codes.chunks_exact(self.columns).zip(out.chunks_exact_mut(self.columns)).enumerate()
        {
            let scales = &coded.scales[row * groups..][..groups];
            let zeros = if coded.zeros.is_empty() { &implied[..] } else { &coded.zeros[row * groups..][..groups] };
            for ((&code, out), &group) in codes.iter().zip(out).zip(group_of_column) {
                *out = (f32::from(code) - zeros[group as usize]) * scales[group as usize];
            }
        }
        Ok(())
    }
}
