//! The numbers of a matrix as bytes, and back. Bytes are hostile: indices and permutations are checked.

use super::{VectorFormat, VectorParts};
use crate::{
    checkpoint::{Dtype, bits_of, decode_to_f32, encode_from_f32},
    codec::CodecError,
};

impl VectorFormat {
    /// The bytes of the tensors, in the order of [`VectorFormat::tensors`]. Floats are stored as they are rounded already.
    ///
    /// # Errors
    /// As for [`VectorFormat::validate`]; [`CodecError::Length`] when a list does not fit the shape.
    pub fn pack(&self, rows: usize, columns: usize, parts: &VectorParts) -> Result<Vec<Vec<u8>>, CodecError> {
        self.validate(rows, columns)?;
        self.check_lengths(rows, columns, parts)?;
        let float = |values: &[f32]| {
            let mut bytes = Vec::new();
            encode_from_f32(Dtype::from(self.storage), values, &mut bytes);
            bytes
        };
        let short = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let tensors = self.tensors(rows, columns).into_iter().map(|(suffix, ..)| match suffix {
            "centroids.weight" => float(&parts.centroids),
            "res_centroids.weight" => float(&parts.residual_centroids),
            "outlier_centroids.weight" => float(&parts.outlier_centroids),
            "weight_scale" => float(&parts.scales),
            "weight_bias" => float(&parts.biases),
            "outlier_indices" => short(&parts.outlier_indices),
            "perm" => short(&parts.permutation),
            _ => self.pack_indices(columns, parts),
        });
        Ok(tensors.collect())
    }

    /// Reads the tensors' bytes, in the order of [`VectorFormat::tensors`].
    ///
    /// # Errors
    /// As for [`VectorFormat::validate`]; [`CodecError::Length`] for tensors of the wrong number or length;
    /// [`CodecError::Stored`] for an index beyond its codebook, and for a permutation that is none.
    pub fn unpack(&self, rows: usize, columns: usize, tensors: &[&[u8]]) -> Result<VectorParts, CodecError> {
        self.validate(rows, columns)?;
        let specs = self.tensors(rows, columns);
        check("tensors", specs.len(), tensors.len())?;
        let mut parts = VectorParts::default();
        for ((suffix, dtype, shape), bytes) in specs.into_iter().zip(tensors) {
            let count: usize = shape.iter().product();
            check(suffix, count * bits_of(dtype) / 8, bytes.len())?;
            let float = || {
                let mut values = vec![0.0; count];
                decode_to_f32(dtype, bytes, &mut values);
                values
            };
            let short = || bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect::<Vec<u16>>();
            match suffix {
                "centroids.weight" => parts.centroids = float(),
                "res_centroids.weight" => parts.residual_centroids = float(),
                "outlier_centroids.weight" => parts.outlier_centroids = float(),
                "weight_scale" => parts.scales = float(),
                "weight_bias" => parts.biases = float(),
                "outlier_indices" => parts.outlier_indices = short(),
                "perm" => parts.permutation = short(),
                _ => self.unpack_indices(rows, columns, bytes, &mut parts),
            }
        }
        self.check_indices(&parts)?;
        Ok(parts)
    }

    /// One row after the other, each a stream of `main | residual << main's bits`, least significant bit first, filled up
    /// to whole words.
    fn pack_indices(&self, columns: usize, parts: &VectorParts) -> Vec<u8> {
        let (width, row_bytes) = (self.group_columns(columns).max(1), self.index_words(columns) * 4);
        let (main, bits) = (self.index_bits(), self.index_bits() + self.residual_bits());
        let mut bytes = Vec::with_capacity(parts.indices.len() / width * row_bytes);
        for (row, indices) in parts.indices.chunks_exact(width).enumerate() {
            let end = bytes.len() + row_bytes;
            let (mut waiting, mut count) = (0_u64, 0);
            for (place, index) in indices.iter().enumerate() {
                let residual = parts.residual_indices.get(row * width + place).copied().unwrap_or(0);
                waiting |= (u64::from(*index) | u64::from(residual) << main) << count;
                count += bits;
                while count >= 8 {
                    bytes.push(waiting as u8);
                    waiting >>= 8;
                    count -= 8;
                }
            }
            if count > 0 {
                bytes.push(waiting as u8);
            }
            bytes.resize(end, 0);
        }
        bytes
    }

    fn unpack_indices(&self, rows: usize, columns: usize, bytes: &[u8], parts: &mut VectorParts) {
        let (width, row_bytes) = (self.group_columns(columns), self.index_words(columns) * 4);
        let (main, residual) = (self.index_bits(), self.residual_bits());
        let count = self.groups * self.vectors(rows) * width;
        parts.indices.reserve(count);
        parts.residual_indices.reserve(if residual > 0 { count } else { 0 });
        for row in bytes.chunks_exact(row_bytes.max(1)) {
            let mut row = row.iter();
            let (mut waiting, mut held) = (0_u64, 0);
            for _ in 0..width {
                while held < main + residual {
                    waiting |= u64::from(row.next().copied().unwrap_or(0)) << held;
                    held += 8;
                }
                parts.indices.push((waiting & ((1 << main) - 1)) as u16);
                if residual > 0 {
                    parts.residual_indices.push((waiting >> main & ((1 << residual) - 1)) as u16);
                }
                waiting >>= main + residual;
                held -= main + residual;
            }
        }
    }

    pub(super) fn check_lengths(&self, rows: usize, columns: usize, parts: &VectorParts) -> Result<(), CodecError> {
        let indices = self.groups * self.vectors(rows) * self.group_columns(columns);
        let outliers = self.outliers.unwrap_or(super::OutlierColumns { columns: 0, vector_length: 2, centroids: 0 });
        let given = |present: bool, length: usize| if present { length } else { 0 };
        let expected = [
            ("centroids", self.groups * self.centroids * self.vector_length, parts.centroids.len()),
            (
                "residual centroids",
                self.groups * self.residual_centroids * self.vector_length,
                parts.residual_centroids.len(),
            ),
            ("outlier centroids", outliers.centroids * outliers.vector_length, parts.outlier_centroids.len()),
            ("indices", indices, parts.indices.len()),
            ("residual indices", given(self.residual_centroids > 0, indices), parts.residual_indices.len()),
            ("outlier indices", rows.div_ceil(outliers.vector_length) * outliers.columns, parts.outlier_indices.len()),
            ("places of columns", given(self.permuted, columns), parts.permutation.len()),
            ("scales", given(self.norm, columns), parts.scales.len()),
            ("biases", given(self.norm, columns), parts.biases.len()),
        ];
        expected.into_iter().try_for_each(|(what, expected, got)| check(what, expected, got))?;
        self.check_indices(parts)
    }

    fn check_indices(&self, parts: &VectorParts) -> Result<(), CodecError> {
        let lists: [(&'static str, &[u16], usize); 3] = [
            ("indices", &parts.indices, self.centroids),
            ("residual indices", &parts.residual_indices, self.residual_centroids),
            ("outlier indices", &parts.outlier_indices, self.outliers.map_or(0, |outliers| outliers.centroids)),
        ];
        for (what, list, centroids) in lists {
            if let Some(index) = list.iter().find(|index| usize::from(**index) >= centroids) {
                let problem = format!("index {index} of {centroids} centroids");
                return Err(CodecError::Stored { what, problem });
            }
        }
        let mut seen = vec![false; parts.permutation.len()];
        for column in &parts.permutation {
            match seen.get_mut(usize::from(*column)) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => {
                    let problem = format!("column {column} stands at two places");
                    return Err(CodecError::Stored { what: "permutation", problem });
                }
                None => {
                    let problem = format!("column {column} of {}", parts.permutation.len());
                    return Err(CodecError::Stored { what: "permutation", problem });
                }
            }
        }
        Ok(())
    }
}

fn check(what: &'static str, expected: usize, got: usize) -> Result<(), CodecError> {
    if expected == got { Ok(()) } else { Err(CodecError::Length { what, expected, got }) }
}
