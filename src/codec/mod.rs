//! Number formats: how one matrix is stored in fewer bits, both ways, independent of any file layout.
//!
//! The canonical form is [`CodedRows`]: one byte per code, scales as the F32 values that the storage type holds
//! exactly. A pass fills it, a layout packs it into tensors, a layout unpacks it again, and
//! [`Codec::dequantize_rows`] turns it back into weights. So a pass knows no layout and a layout no algorithm.

use serde::{Deserialize, Serialize};

use crate::checkpoint::Dtype;

/// What one code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Element {
    /// An unsigned code 0..2^bits. Symmetric matrices have the implied zero point 2^(bits−1). Bits 2 to 8.
    Integer {
        /// Width in bits.
        bits: u8,
    },
    /// FP8 E4M3FN: the code is the byte itself; largest value 448.
    Fp8E4M3,
    /// FP4 E2M1: the code is the nibble, sign in bit 3; values 0, .5, 1, 1.5, 2, 3, 4, 6.
    Fp4E2M1,
}

/// Which weights share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// The whole matrix.
    Tensor,
    /// One row (output channel).
    Channel,
    /// This many consecutive columns of one row; the last group of a row may be short.
    Group(usize),
    /// A block of rows × columns; blocks at the edges may be smaller.
    Block {
        /// Rows of a block.
        rows: usize,
        /// Columns of a block.
        columns: usize,
    },
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleFormat {
    /// A float type.
    F32,
    /// A float type.
    F16,
    /// A float type.
    BF16,
    /// An exponent byte: 2^(e−127) (MX formats).
    E8M0,
    /// E4M3 group scales, divided by one F32 scale of the whole matrix (NVFP4).
    E4M3OverGlobal,
}

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroPoint {
    /// None: symmetric.
    None,
    /// An unsigned integer 0..2^bits of the code's width.
    Integer,
    /// A float in the scale's type (HQQ): weight = (code − zero) · scale.
    Float,
}

/// How many weights of a matrix are kept exact beside the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OutlierCount {
    /// Exact number, fixed by the plan.
    pub count: u64,
}

/// A complete number format of one matrix. All sizes follow from it and the shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Codec {
    /// What a code means.
    pub element: Element,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// How scales are stored.
    pub scale: ScaleFormat,
    /// How zero points are stored.
    pub zero: ZeroPoint,
    /// Weights kept exact, none for most.
    pub outliers: Option<OutlierCount>,
}

/// Some consecutive rows of a matrix in codes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CodedRows {
    /// Index of the first row in the matrix.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Columns (input features).
    pub columns: usize,
    /// One code per weight, row-major `[rows, columns]`.
    pub codes: Vec<u8>,
    /// Scales as values, `[scale rows, groups]` of these rows; empty for [`Granularity::Tensor`]. For NVFP4 the E4M3
    /// value before the division by the global scale.
    pub scales: Vec<f32>,
    /// Zero points as values, shaped like `scales`; empty for [`ZeroPoint::None`].
    pub zeros: Vec<f32>,
}

/// What is known once per matrix and needed to read any of its rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MatrixParameters {
    /// The scale of the whole matrix: [`Granularity::Tensor`]'s scale, NVFP4's global scale.
    pub tensor_scale: Option<f32>,
    /// The weights kept exact.
    pub outliers: Option<Outliers>,
}

/// Weights kept exact, by row (compressed sparse rows).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outliers {
    /// `row_starts[r]..row_starts[r + 1]` are the entries of row r; length rows + 1.
    pub row_starts: Vec<u32>,
    /// Column of each entry, ascending in a row.
    pub columns: Vec<u32>,
    /// Value of each entry, stored as F16 or BF16 (whichever the scale is) or F32.
    pub values: Vec<f32>,
}

/// A matrix whose rows can be read as F32, in any order, from many threads.
pub trait RowSource: Send + Sync {
    /// Rows (output features).
    fn rows(&self) -> usize;
    /// Columns (input features).
    fn columns(&self) -> usize;
    /// Reads rows `first_row..first_row + out.len() / columns` into `out`, row-major.
    ///
    /// # Errors
    /// [`CodecError`] when stored codes are malformed.
    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError>;
    /// Says that these rows are not needed any more, so that mapped pages can go.
    fn release_rows(&self, _rows: std::ops::Range<usize>) {}
}

/// What a codec cannot do.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A weight is infinite or not a number.
    #[error("the weight at row {row}, column {column} is {value}; only finite weights can be encoded")]
    NonFinite {
        /// Row of the first one found.
        row: usize,
        /// Its column.
        column: usize,
        /// The weight.
        value: f32,
    },
}

/// A dense float type as a scale format.
impl From<ScaleFormat> for Dtype {
    fn from(format: ScaleFormat) -> Self {
        match format {
            ScaleFormat::F32 => Self::F32,
            ScaleFormat::F16 => Self::F16,
            ScaleFormat::BF16 => Self::BF16,
            ScaleFormat::E8M0 => Self::U8,
            ScaleFormat::E4M3OverGlobal => Self::F8_E4M3,
        }
    }
}
