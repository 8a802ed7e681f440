//! From indices and codebooks to weights, with the roundings of the public package.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{VectorFormat, VectorParts};
use crate::codec::{CodecError, ScaleFormat};

/// Rounds the result of one operation to the type that the package computes in.
#[inline]
fn round(arithmetic: ScaleFormat, value: f32) -> f32 {
    match arithmetic {
        ScaleFormat::F16 => f16::from_f32(value).to_f32(),
        ScaleFormat::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

impl VectorFormat {
    /// The weights `[rows, columns]` that stored tensors, in the order of [`VectorFormat::tensors`], stand for.
    ///
    /// `arithmetic` is the type that the public package computes in, that is the one its module was made with: each of
    /// centroid + residual, · scale and + bias is rounded to it (`VQuantLinear.dequant`).
    ///
    /// # Errors
    /// As for [`VectorFormat::unpack`].
    pub fn decode(
        &self,
        rows: usize,
        columns: usize,
        tensors: &[&[u8]],
        arithmetic: ScaleFormat,
    ) -> Result<Vec<f32>, CodecError> {
        let parts = self.unpack(rows, columns, tensors)?;
        self.reconstruct(rows, columns, &parts, arithmetic)
    }

    /// The weights that the parts of a matrix stand for; see [`VectorFormat::decode`].
    ///
    /// # Errors
    /// As for [`VectorFormat::validate`]; [`CodecError::Length`] and [`CodecError::Stored`] for parts that do not fit.
    pub fn reconstruct(
        &self,
        rows: usize,
        columns: usize,
        parts: &VectorParts,
        arithmetic: ScaleFormat,
    ) -> Result<Vec<f32>, CodecError> {
        self.validate(rows, columns)?;
        self.check_lengths(rows, columns, parts)?;
        let mut weights = vec![0.0; rows * columns];
        if weights.is_empty() {
            return Ok(weights);
        }
        let (length, width) = (self.vector_length, self.group_columns(columns));
        let (vectors, apart) = (self.vectors(rows), self.outlier_columns());
        let column_at = |place: usize| parts.permutation.get(place).map_or(place, |column| usize::from(*column));
        weights.par_chunks_mut(columns).enumerate().for_each(|(row, out)| {
            if let Some(outliers) = self.outliers {
                let (vector, lane) = (row / outliers.vector_length, row % outliers.vector_length);
                for (place, index) in parts.outlier_indices[vector * apart..][..apart].iter().enumerate() {
                    let centroid = usize::from(*index) * outliers.vector_length;
                    out[column_at(place)] = parts.outlier_centroids[centroid + lane];
                }
            }
            let (vector, lane) = (row / length, row % length);
            for group in 0..self.groups {
                let centroids = &parts.centroids[group * self.centroids * length..];
                let first = (group * vectors + vector) * width;
                let residuals = parts.residual_centroids.get(group * self.residual_centroids * length..);
                for (place, index) in parts.indices[first..][..width].iter().enumerate() {
                    let mut value = centroids[usize::from(*index) * length + lane];
                    if let (Some(index), Some(residuals)) = (parts.residual_indices.get(first + place), residuals) {
                        value = round(arithmetic, value + residuals[usize::from(*index) * length + lane]);
                    }
                    out[column_at(apart + group * width + place)] = value;
                }
            }
            if self.norm {
                for ((value, scale), bias) in out.iter_mut().zip(&parts.scales).zip(&parts.biases) {
                    *value = round(arithmetic, round(arithmetic, *value * scale) + bias);
                }
            }
        });
        Ok(weights)
    }
}
