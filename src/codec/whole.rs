//! Codes of a whole matrix: stored as a fixed list of tensors whose sizes follow from the shape, decoded all at once.

use serde::{Deserialize, Serialize};

use super::{
    CodecError, Crumbs, Delta, Factors, KQuant, LowRank, Pyramid, ScaleFormat, Taylor, VectorFormat, sparse::Sparse,
};
use crate::checkpoint::Dtype;

/// A number format whose codes stand for several weights each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whole {
    /// Points of pyramids.
    Pyramid(Pyramid),
    /// Indices of centroids.
    Vector(VectorFormat),
    /// Some of each so many weights.
    Sparse(Sparse),
    /// Signs and scales of a difference; weights only together with the matrix that it is a difference from.
    Delta(Delta),
    /// Some values of a difference; likewise.
    Crumbs(Crumbs),
    /// A product of two thin matrices, a difference; likewise.
    LowRank(LowRank),
    /// A product of two thin matrices, by groups of rows.
    Factors(Factors),
    /// Terms of polynomials in place of some columns.
    Taylor(Taylor),
    /// GGUF's super-blocks.
    KQuant(KQuant),
}

/// One stored tensor of a coded matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// What follows the matrix's name.
    pub suffix: &'static str,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
}

impl StoredTensor {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.shape.iter().product::<usize>() * crate::checkpoint::bits_of(self.dtype)).div_ceil(8)
    }
}

/// A coded matrix: the bytes of each of [`Whole::tensors`].
pub type StoredMatrix = Vec<Vec<u8>>;

/// The name of a stored tensor of a matrix: a suffix that begins with `_` goes on with the module's name
/// (`k_proj.weight` and `_a.weight` make `k_proj_a.weight`), any other one stands behind the matrix's own.
#[must_use]
pub fn stored_name(matrix: &str, suffix: &str) -> String {
    if suffix.starts_with('_') {
        format!("{}{suffix}", matrix.strip_suffix(".weight").unwrap_or(matrix))
    } else {
        format!("{matrix}.{suffix}")
    }
}

impl Whole {
    /// Its short name.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Pyramid(pyramid) => pyramid.name(),
            Self::Vector(format) => format.name(),
            Self::Sparse(sparse) => sparse.name(),
            Self::Delta(delta) => delta.name(),
            Self::Crumbs(crumbs) => crumbs.name(),
            Self::LowRank(low_rank) => low_rank.name(),
            Self::Factors(factors) => factors.name(),
            Self::Taylor(taylor) => taylor.name(),
            Self::KQuant(format) => format.name().to_owned(),
        }
    }

    /// Reads a short name back; `storage` is the type of stored floats where the name implies none.
    #[must_use]
    pub fn parse_name(name: &str, storage: ScaleFormat) -> Option<Self> {
        let vector = || VectorFormat::parse_name(name, storage).map(Self::Vector);
        let sparse = || Sparse::parse_name(name, storage.into()).map(Self::Sparse);
        let delta = || Delta::parse_name(name).map(Self::Delta);
        let crumbs = || Crumbs::parse_name(name, storage.into()).map(Self::Crumbs);
        let low_rank = || LowRank::parse_name(name).map(Self::LowRank);
        let whole = Pyramid::parse_name(name).map(Self::Pyramid).or_else(vector).or_else(sparse);
        let factors = || Factors::parse_name(name, storage).map(Self::Factors);
        let taylor = || Taylor::parse_name(name, storage.into()).map(Self::Taylor);
        let k_quant = || KQuant::parse_name(name).map(Self::KQuant);
        whole.or_else(delta).or_else(crumbs).or_else(low_rank).or_else(factors).or_else(taylor).or_else(k_quant)
    }

    /// The type of stored floats.
    #[must_use]
    pub fn float_dtype(&self) -> Dtype {
        match self {
            Self::Pyramid(_) | Self::LowRank(_) | Self::KQuant(_) => Dtype::F16,
            Self::Vector(format) => format.storage.into(),
            Self::Sparse(sparse) => sparse.dtype,
            Self::Delta(_) => Dtype::F32,
            Self::Factors(factors) => factors.storage.into(),
            Self::Taylor(taylor) => taylor.plain,
            Self::Crumbs(crumbs) => crumbs.dtype,
        }
    }

    /// Whether it stands for a difference, and for weights only together with a base.
    #[must_use]
    pub fn is_difference(&self) -> bool {
        matches!(self, Self::Delta(_) | Self::Crumbs(_) | Self::LowRank(_))
    }

    /// Checks that a matrix of this shape can be coded so.
    ///
    /// # Errors
    /// [`CodecError`] that says what does not go together.
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        match self {
            Self::Pyramid(pyramid) => pyramid.validate(rows, columns),
            Self::Vector(format) => format.validate(rows, columns),
            Self::Sparse(sparse) => sparse.validate(rows, columns),
            Self::Delta(delta) => delta.validate(rows, columns),
            Self::Crumbs(crumbs) => crumbs.validate(rows, columns),
            Self::LowRank(low_rank) => low_rank.validate(rows, columns),
            Self::Factors(factors) => factors.validate(rows, columns),
            Self::Taylor(taylor) => taylor.validate(rows, columns),
            Self::KQuant(format) => format.validate(rows, columns),
        }
    }

    /// The tensors that a valid matrix becomes, in a fixed order; none where [`Whole::validate`] refuses.
    #[must_use]
    pub fn tensors(&self, rows: usize, columns: usize) -> Vec<StoredTensor> {
        let stored = |(suffix, dtype, shape)| StoredTensor { suffix, dtype, shape };
        match self {
            Self::Pyramid(pyramid) => {
                pyramid.tensors(rows, columns).unwrap_or_default().into_iter().map(stored).collect()
            }
            Self::Vector(format) if format.validate(rows, columns).is_ok() => {
                format.tensors(rows, columns).into_iter().map(stored).collect()
            }
            Self::Sparse(sparse) if sparse.validate(rows, columns).is_ok() => sparse.tensors(rows, columns),
            Self::Delta(delta) if delta.validate(rows, columns).is_ok() => {
                delta.tensors(rows, columns).into_iter().map(stored).collect()
            }
            Self::Crumbs(crumbs) if crumbs.validate(rows, columns).is_ok() => {
                crumbs.tensors(rows, columns).into_iter().map(stored).collect()
            }
            Self::LowRank(low_rank) if low_rank.validate(rows, columns).is_ok() => {
                low_rank.tensors(rows, columns).into_iter().map(stored).collect()
            }
            Self::Factors(factors) if factors.validate(rows, columns).is_ok() => factors.tensors(rows, columns),
            Self::Taylor(taylor) if taylor.validate(rows, columns).is_ok() => taylor.tensors(rows, columns),
            Self::KQuant(format) if format.validate(rows, columns).is_ok() => {
                format.tensors(rows, columns).into_iter().map(stored).collect()
            }
            Self::Vector(_)
            | Self::Sparse(_)
            | Self::Delta(_)
            | Self::Crumbs(_)
            | Self::LowRank(_)
            | Self::Factors(_)
            | Self::Taylor(_)
            | Self::KQuant(_) => Vec::new(),
        }
    }

    /// Whether a stored tensor is a codebook, which matrices may share.
    #[must_use]
    pub fn is_codebook(&self, suffix: &str) -> bool {
        matches!(self, Self::Vector(_)) && suffix.ends_with("centroids.weight")
    }

    /// Whether a stored tensor is the matrix itself, kept beside what it is coded as.
    #[must_use]
    pub fn is_exact_copy(&self, suffix: &str) -> bool {
        matches!(self, Self::Factors(_)) && suffix == super::factors::EXACT
    }

    /// Turns a coded matrix back into weights, `[rows, columns]` row-major. The bytes are hostile until checked.
    ///
    /// # Errors
    /// [`CodecError`] for bytes that are no codes of such a matrix.
    pub fn decode(&self, rows: usize, columns: usize, stored: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        match self {
            Self::Pyramid(pyramid) => pyramid.decode(rows, columns, stored),
            Self::Vector(format) => format.decode(rows, columns, stored, format.storage),
            Self::Sparse(sparse) => sparse.decode(rows, columns, stored),
            Self::Delta(delta) => delta.decode(rows, columns, stored),
            Self::Crumbs(crumbs) => crumbs.decode(rows, columns, stored),
            Self::LowRank(low_rank) => low_rank.decode(rows, columns, stored),
            Self::Factors(factors) => factors.decode(rows, columns, stored),
            Self::Taylor(taylor) => taylor.decode(rows, columns, stored),
            Self::KQuant(format) => format.decode(rows, columns, stored),
        }
    }
}
