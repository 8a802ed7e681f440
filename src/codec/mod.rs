//! Number formats: how one matrix is stored in fewer bits, both ways, independent of any file layout.
//!
//! The canonical form is [`CodedRows`]: one byte per code, scales as the F32 values that the storage type holds
//! exactly. A pass fills it, a layout packs it into tensors, a layout unpacks it again, and
//! [`Codec::dequantize_rows`] turns it back into weights. So a pass knows no layout and a layout no algorithm.

pub mod bits;
pub mod crumbs;
pub mod delta;
pub mod factors;
pub mod float4;
pub mod float8;
pub mod integer;
pub mod k_quant;
pub mod low_rank;
pub mod mx;
pub mod pyramid;
pub mod range;
pub mod signs;
pub mod sparse;
pub mod taylor;
pub mod vector;

mod coded;
mod coding;
mod dequantize;
mod error;
mod format;
mod groups;
mod name;
mod rotations;
mod scale;
mod source;
mod whole;

pub use coded::{CodedRows, MatrixParameters, Outliers};
pub use coding::{CodedMatrix, Coding};
pub use crumbs::Crumbs;
pub use delta::{Delta, Share};
pub use error::CodecError;
pub use factors::Factors;
pub use format::{Codec, Element, Granularity, OutlierCount, ScaleFormat, ZeroPoint};
pub use k_quant::KQuant;
pub use low_rank::LowRank;
pub use pyramid::Pyramid;
pub use rotations::Rotations;
pub use scale::RoundedScale;
pub use source::{DenseRows, Release, RowSource};
pub use taylor::Taylor;
pub use vector::{OutlierColumns, VectorFormat, VectorParts};
pub use whole::{StoredMatrix, StoredTensor, Whole, stored_name};
