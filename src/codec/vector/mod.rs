//! Vector quantization in the stored form of VPTQ (Liu et al., "VPTQ: Extreme Low-bit Vector Post-Training Quantization for
//! Large Language Models", 2409.17066; public package `vptq`, `VQuantLinear`): `docs/formats/vptq.md` has it byte by byte.
//!
//! A vector is `vector_length` consecutive rows of one column. It is stored as the index of a centroid and, where there is
//! a residual codebook, of a second one that is added. Before that, columns may be normalized (scale and bias of each)
//! and permuted; the first ones may have a codebook of their own, the others fall into groups with one each.

mod decode;
mod name;
mod pack;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::{CodecError, ScaleFormat};
use crate::checkpoint::{Dtype, bits_of};

/// Widest index: the residual's and the main one share 32 bits, and each fits 16.
const LARGEST_CODEBOOK: usize = 1 << 16;
/// Longest vector; centroids of more have never been of use.
const LONGEST_VECTOR: usize = 64;
/// Columns whose permutation fits 16 bits.
const MOST_COLUMNS: usize = 1 << 16;

/// Columns that have a codebook of their own: the first ones after the permutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OutlierColumns {
    /// How many.
    pub columns: usize,
    /// Rows of one vector; at least 2, for 1 means to the package that there are none.
    pub vector_length: usize,
    /// Centroids of their codebook, not necessarily a power of two.
    pub centroids: usize,
}

/// The format of one matrix. All sizes follow from it and the shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VectorFormat {
    /// Consecutive rows of one vector.
    pub vector_length: usize,
    /// Centroids of the main codebook; a power of two.
    pub centroids: usize,
    /// Centroids of the residual codebook, a power of two, at most as many as the main one's; 0 for none.
    pub residual_centroids: usize,
    /// Groups of consecutive columns (after the permutation, without outliers) with codebooks of their own.
    pub groups: usize,
    /// Columns apart.
    pub outliers: Option<OutlierColumns>,
    /// Whether each column has a scale and a bias.
    pub norm: bool,
    /// Whether columns are permuted.
    pub permuted: bool,
    /// How centroids, scales and biases are stored: F32, F16 or BF16.
    pub storage: ScaleFormat,
}

/// A matrix in this format as numbers: what the tensors hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VectorParts {
    /// `[groups, centroids, vector length]`.
    pub centroids: Vec<f32>,
    /// `[groups, residual centroids, vector length]`.
    pub residual_centroids: Vec<f32>,
    /// `[outlier centroids, outlier vector length]`.
    pub outlier_centroids: Vec<f32>,
    /// `[groups, vectors of a column, columns of a group]`.
    pub indices: Vec<u16>,
    /// Shaped like `indices`; empty without a residual codebook.
    pub residual_indices: Vec<u16>,
    /// `[vectors of an outlier column, outlier columns]`.
    pub outlier_indices: Vec<u16>,
    /// The column of the matrix at each place, `[columns]`; empty where columns stand as they are.
    pub permutation: Vec<u16>,
    /// Scale of each column in the matrix's order; empty without norm.
    pub scales: Vec<f32>,
    /// Bias of each column, likewise.
    pub biases: Vec<f32>,
}

/// Suffix, type and shape of a stored tensor.
pub type StoredTensor = (&'static str, Dtype, Vec<usize>);

impl VectorFormat {
    /// One codebook, nothing else.
    #[must_use]
    pub fn plain(vector_length: usize, centroids: usize, residual_centroids: usize, storage: ScaleFormat) -> Self {
        Self {
            vector_length,
            centroids,
            residual_centroids,
            groups: 1,
            outliers: None,
            norm: false,
            permuted: false,
            storage,
        }
    }

    /// Bits of a main index.
    #[must_use]
    pub fn index_bits(&self) -> u8 {
        self.centroids.max(1).ilog2() as u8
    }

    /// Bits of a residual index; 0 for none.
    #[must_use]
    pub fn residual_bits(&self) -> u8 {
        self.residual_centroids.max(1).ilog2() as u8
    }

    /// Columns that have a codebook of their own.
    #[must_use]
    pub fn outlier_columns(&self) -> usize {
        self.outliers.map_or(0, |outliers| outliers.columns)
    }

    /// Columns of one group.
    #[must_use]
    pub fn group_columns(&self, columns: usize) -> usize {
        columns.saturating_sub(self.outlier_columns()) / self.groups.max(1)
    }

    /// Vectors of one column; the last may reach beyond the matrix.
    #[must_use]
    pub fn vectors(&self, rows: usize) -> usize {
        rows.div_ceil(self.vector_length.max(1))
    }

    /// Words of one row of indices.
    fn index_words(&self, columns: usize) -> usize {
        let bits = usize::from(self.index_bits() + self.residual_bits());
        (self.group_columns(columns) * bits).div_ceil(32)
    }

    /// Checks that this is a format, and one for a matrix of this shape.
    ///
    /// # Errors
    /// [`CodecError::Vector`] that says what does not go together; [`CodecError::TooLarge`].
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        let wrong = |problem: String| Err(CodecError::Vector { problem });
        if !matches!(self.storage, ScaleFormat::F32 | ScaleFormat::F16 | ScaleFormat::BF16) {
            return wrong(format!("centroids cannot be stored as {:?}", self.storage));
        }
        if !(1..=LONGEST_VECTOR).contains(&self.vector_length) {
            return wrong(format!("vectors of {} rows, expected 1 to {LONGEST_VECTOR}", self.vector_length));
        }
        let codebook = |count: usize| count.is_power_of_two() && (2..=LARGEST_CODEBOOK).contains(&count);
        if !codebook(self.centroids) {
            return wrong(format!("{} centroids, expected a power of two from 2 to 65536", self.centroids));
        }
        if self.residual_centroids != 0 && !(codebook(self.residual_centroids)) {
            return wrong(format!("{} residual centroids, expected 0 or a power of two", self.residual_centroids));
        }
        if self.residual_centroids > self.centroids {
            // The package masks the residual index with the main one's bits.
            return wrong(format!(
                "{} residual centroids are more than the {} main ones",
                self.residual_centroids, self.centroids
            ));
        }
        if let Some(outliers) = self.outliers {
            if !(2..=LONGEST_VECTOR).contains(&outliers.vector_length) {
                return wrong(format!("outlier vectors of {} rows, expected 2 to 64", outliers.vector_length));
            }
            if !(2..=LARGEST_CODEBOOK).contains(&outliers.centroids) || outliers.columns == 0 {
                return wrong(format!("{} outlier columns with {} centroids", outliers.columns, outliers.centroids));
            }
        }
        if self.groups == 0 {
            return wrong("no group of columns".to_owned());
        }
        let coded = columns.checked_sub(self.outlier_columns());
        let Some(coded) = coded.filter(|coded| coded.is_multiple_of(self.groups)) else {
            return wrong(format!(
                "{columns} columns, {} of them outliers, do not fall into {} equal groups",
                self.outlier_columns(),
                self.groups
            ));
        };
        if coded == 0 && columns > 0 {
            return wrong("all columns are outliers".to_owned());
        }
        if self.permuted && columns > MOST_COLUMNS {
            return wrong(format!("a permutation of {columns} columns does not fit 16 bits"));
        }
        // Everything is smaller than this product, or than a codebook.
        let large = || CodecError::TooLarge { rows, columns };
        let padded = rows.checked_add(LONGEST_VECTOR).and_then(|rows| rows.checked_mul(columns)).ok_or_else(large)?;
        padded.checked_mul(32).filter(|bytes| isize::try_from(*bytes).is_ok()).ok_or_else(large)?;
        let codebooks = self.groups.checked_mul(LARGEST_CODEBOOK * LONGEST_VECTOR * 8).ok_or_else(large)?;
        if codebooks > isize::MAX as usize { Err(large()) } else { Ok(()) }
    }

    /// The stored tensors in a fixed order, by the suffix after the module's name. Of a valid format.
    #[must_use]
    pub fn tensors(&self, rows: usize, columns: usize) -> Vec<StoredTensor> {
        let float = Dtype::from(self.storage);
        let mut tensors = vec![("centroids.weight", float, vec![self.groups, self.centroids * self.vector_length])];
        if self.residual_centroids > 0 {
            let shape = vec![self.groups, self.residual_centroids * self.vector_length];
            tensors.push(("res_centroids.weight", float, shape));
        }
        tensors.push(("indices", Dtype::I32, vec![self.groups, self.vectors(rows), self.index_words(columns)]));
        if let Some(outliers) = self.outliers {
            let vectors = rows.div_ceil(outliers.vector_length);
            tensors.push(("outlier_indices", Dtype::I16, vec![1, vectors, outliers.columns]));
            tensors.push(("outlier_centroids.weight", float, vec![1, outliers.centroids * outliers.vector_length]));
        }
        if self.permuted {
            tensors.push(("perm", Dtype::I16, vec![columns]));
        }
        if self.norm {
            tensors.push(("weight_scale", float, vec![columns]));
            tensors.push(("weight_bias", float, vec![columns]));
        }
        tensors
    }

    /// All stored bits, codebooks and padding counted.
    #[must_use]
    pub fn stored_bits(&self, rows: usize, columns: usize) -> u64 {
        let bits = |(_, dtype, shape): &StoredTensor| shape.iter().product::<usize>() as u64 * bits_of(*dtype) as u64;
        self.tensors(rows, columns).iter().map(bits).sum()
    }

    /// [`VectorFormat::stored_bits`] over the number of weights; infinite for a matrix without any.
    #[must_use]
    pub fn bits_per_weight(&self, rows: usize, columns: usize) -> f64 {
        self.stored_bits(rows, columns) as f64 / (rows as f64 * columns as f64)
    }
}
