//! The description of a number format: element, granularity, scales, zero points, and the sizes that follow.

use serde::{Deserialize, Serialize};

use super::CodecError;
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
    /// The weight of code 0 in the scale's type (GGUF's Q4_1): weight = code · scale + minimum.
    Minimum,
}

impl ZeroPoint {
    /// Whether code and scale may have no weight that is exactly zero.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float | Self::Minimum)
    }
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

impl Element {
    /// Bits of one code.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::Integer { bits } => bits,
            Self::Fp8E4M3 => 8,
            Self::Fp4E2M1 => 4,
        }
    }
}

impl Codec {
    /// Bits of one code.
    #[must_use]
    pub fn codec_bits(&self) -> u8 {
        self.element.bits()
    }

    /// Columns that share a scale: the whole row where a scale spans at least one. At least 1.
    #[must_use]
    pub fn group_columns(&self, columns: usize) -> usize {
        match self.granularity {
            Granularity::Tensor | Granularity::Channel => columns.max(1),
            Granularity::Group(size) | Granularity::Block { columns: size, .. } => size.max(1),
        }
    }

    /// Groups that one row falls into, the last of which may be short; 0 for a row without columns.
    #[must_use]
    pub fn groups_per_row(&self, columns: usize) -> usize {
        columns.div_ceil(self.group_columns(columns))
    }

    /// Rows of scales of a matrix (or of a stripe that starts at a block) of this many rows; 0 for one scale per tensor,
    /// which is a parameter of the matrix.
    #[must_use]
    pub fn scale_rows(&self, rows: usize) -> usize {
        match self.granularity {
            Granularity::Tensor => 0,
            Granularity::Channel | Granularity::Group(_) => rows,
            Granularity::Block { rows: block, .. } => rows.div_ceil(block.max(1)),
        }
    }

    /// Number of scales (and of zero points, where there are any) of a matrix; 0 for one scale per tensor.
    #[must_use]
    pub fn scale_count(&self, rows: usize, columns: usize) -> usize {
        self.scale_rows(rows) * self.groups_per_row(columns)
    }

    /// The scale rows that cover the matrix's rows `first_row..first_row + rows`.
    #[must_use]
    pub fn scale_row_range(&self, first_row: usize, rows: usize) -> std::ops::Range<usize> {
        match self.granularity {
            Granularity::Tensor => 0..0,
            Granularity::Channel | Granularity::Group(_) => first_row..first_row + rows,
            Granularity::Block { .. } if rows == 0 => 0..0,
            Granularity::Block { rows: block, .. } => {
                let block = block.max(1);
                first_row / block..(first_row + rows - 1) / block + 1
            }
        }
    }

    /// The zero point that symmetric codes have: 2^(bits−1) for integers, 0 for floats.
    #[must_use]
    pub fn implied_zero(&self) -> f32 {
        match self.element {
            Element::Integer { bits } => f32::from(1u16 << (bits.clamp(1, 8) - 1)),
            Element::Fp8E4M3 | Element::Fp4E2M1 => 0.0,
        }
    }

    /// Checks that this is a codec, and one for a matrix of this shape.
    ///
    /// # Errors
    /// [`CodecError`] that says what does not go together.
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        let scale_error = |of| CodecError::Scale { element: self.element, scale: self.scale, of };
        match self.element {
            Element::Integer { bits } if !(2..=8).contains(&bits) => return Err(CodecError::Bits { bits }),
            Element::Integer { .. } if matches!(self.scale, ScaleFormat::E8M0 | ScaleFormat::E4M3OverGlobal) => {
                return Err(scale_error("(those of floats only)"));
            }
            Element::Fp8E4M3 | Element::Fp4E2M1 if self.zero != ZeroPoint::None => {
                return Err(CodecError::ZeroPointOfFloat { element: self.element });
            }
            _ => {}
        }
        match self.granularity {
            Granularity::Group(0) => return Err(CodecError::Zero { what: "group size" }),
            Granularity::Block { rows: 0, .. } | Granularity::Block { columns: 0, .. } => {
                return Err(CodecError::Zero { what: "block size" });
            }
            Granularity::Tensor if self.scale == ScaleFormat::E4M3OverGlobal => {
                return Err(scale_error("of the whole tensor"));
            }
            _ => {}
        }
        let weights = rows.checked_mul(columns).ok_or(CodecError::TooLarge { rows, columns })?;
        match self.outliers {
            Some(OutlierCount { count }) if count > weights as u64 || count > u64::from(u32::MAX) => {
                Err(CodecError::TooManyOutliers { count, rows, columns })
            }
            _ => Ok(()),
        }
    }
}

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
