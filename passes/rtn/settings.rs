//! What a recipe may say about `rtn`, typed, complete and free of contradictions.

use serde::Serialize;

use super::parse::wrong;
use crate::{
    codec::{Codec, Coding, Element, Granularity, KQuant, OutlierCount, ScaleFormat, Whole, ZeroPoint},
    layout::{Activations, Minima},
    passes::{Choice, Matrix, SettingError},
};

/// What a weight becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Number {
    /// An integer code.
    Integer {
        /// Its width.
        bits: u8,
    },
    /// A small float.
    Float {
        /// Which.
        format: FloatFormat,
    },
    /// A code in a super-block of GGUF's.
    KQuant {
        /// Which.
        format: KQuant,
    },
}

/// The small floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatFormat {
    /// FP8 E4M3 with float scales.
    Fp8,
    /// FP4 E2M1, groups of 32 with a power of two each.
    Mxfp4,
    /// FP8 E4M3, groups of 32 with a power of two each.
    Mxfp8,
    /// FP4 E2M1, groups of 16 with an E4M3 scale each, one F32 scale over all.
    Nvfp4,
}

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "granularity", rename_all = "lowercase")]
pub enum Sharing {
    /// The whole matrix.
    Tensor,
    /// One row.
    Channel,
    /// Consecutive columns of one row.
    Group {
        /// How many.
        group_size: usize,
    },
    /// A rectangle.
    Block {
        /// Its rows; divides the stripe alignment.
        block_rows: usize,
        /// Its columns.
        block_columns: usize,
    },
    /// Per matrix whatever fits the bits-per-weight target best.
    Chosen,
}

/// How scales are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Range {
    /// From the extremes.
    Minmax,
    /// By search for the least squared error.
    Mse,
    /// Half-quadratic: scale and zero point for the least Σ|error|^0.7.
    Hqq,
}

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ZeroKind {
    /// As the layout asks for; those of `range = "hqq"` as float where it stores that; as integer elsewhere.
    Auto,
    /// As integer.
    Integer,
    /// As float; an error where the layout cannot.
    Float,
    /// As the weight of code 0, which is the smallest; an error where the layout cannot.
    Minimum,
}

/// Which weights are kept exact.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum OutlierRule {
    /// This share, those farthest from the mean.
    #[serde(rename = "outliers")]
    Share(f64),
    /// Those at least this many standard deviations from the mean.
    #[serde(rename = "outlier_sigma")]
    Sigma(f64),
    /// As many as the bits-per-weight target leaves room for; written `outliers = "auto"`.
    #[serde(rename = "outliers", serialize_with = "auto")]
    Auto,
}

fn auto<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("auto")
}

/// Settings of `rtn`, every default filled in. Serializes to keys that a recipe may hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What a weight becomes.
    pub number: Number,
    /// Which weights share a scale.
    pub sharing: Sharing,
    /// No zero points.
    pub symmetric: bool,
    /// How scales are found.
    pub range: Range,
    /// How zero points are stored.
    pub zero: ZeroKind,
    /// Which weights are kept exact.
    pub outliers: Option<OutlierRule>,
    /// Average bits per weight over the matrices of the rule, all overhead counted, not to be exceeded.
    pub target_bits: Option<f64>,
    /// Run-time treatment of activations.
    pub activations: Activations,
}

impl Serialize for Settings {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        match self.number {
            Number::Integer { bits } => map.serialize_entry("bits", &bits)?,
            Number::Float { format } => map.serialize_entry("format", &format)?,
            Number::KQuant { format } => map.serialize_entry("format", &format)?,
        }
        match self.sharing {
            Sharing::Tensor => map.serialize_entry("granularity", "tensor")?,
            Sharing::Channel => map.serialize_entry("granularity", "channel")?,
            Sharing::Group { group_size } => {
                map.serialize_entry("granularity", "group")?;
                map.serialize_entry("group_size", &group_size)?;
            }
            Sharing::Block { block_rows, block_columns } => {
                map.serialize_entry("granularity", "block")?;
                map.serialize_entry("block_rows", &block_rows)?;
                map.serialize_entry("block_columns", &block_columns)?;
            }
            Sharing::Chosen => {}
        }
        map.serialize_entry("symmetric", &self.symmetric)?;
        map.serialize_entry("range", &self.range)?;
        if self.range == Range::Hqq || self.zero != ZeroKind::Auto {
            map.serialize_entry("zero", &self.zero)?;
        }
        match self.outliers {
            None => {}
            Some(OutlierRule::Share(share)) => map.serialize_entry("outliers", &share)?,
            Some(OutlierRule::Sigma(sigma)) => map.serialize_entry("outlier_sigma", &sigma)?,
            Some(OutlierRule::Auto) => map.serialize_entry("outliers", "auto")?,
        }
        if let Some(target) = self.target_bits {
            map.serialize_entry("target_bits", &target)?;
        }
        map.serialize_entry("activations", &self.activations)?;
        map.end()
    }
}

impl Settings {
    /// Whether the codec depends on more than this one matrix's shape: a target over several matrices, or outliers by
    /// σ. Then [`crate::passes::choose`] finds it.
    #[must_use]
    pub fn needs_weights(&self) -> bool {
        self.target_bits.is_some() || matches!(self.outliers, Some(OutlierRule::Sigma(_)))
    }

    /// The codec of one matrix from its shape.
    ///
    /// # Errors
    /// [`SettingError`] when the settings contradict the matrix or the layout's types.
    pub fn codec(&self, matrix: &Matrix) -> Result<Choice, SettingError> {
        let Some(granularity) = self.granularity() else {
            return Err(wrong("target_bits", "the granularity follows from the weights, not from the shape alone"));
        };
        let outliers = match self.outliers {
            None => 0,
            Some(OutlierRule::Share(share)) => Self::shared_outliers(share, matrix),
            Some(OutlierRule::Sigma(_)) => {
                return Err(wrong(
                    "outlier_sigma",
                    "the number of outliers follows from the weights, not from the shape",
                ));
            }
            Some(OutlierRule::Auto) => {
                return Err(wrong("outliers", "\"auto\" follows from the bits-per-weight target, not from the shape"));
            }
        };
        self.codec_with(matrix, granularity, outliers)
    }

    /// The granularity, unless it is chosen from the weights.
    pub(super) fn granularity(&self) -> Option<Granularity> {
        match self.sharing {
            Sharing::Tensor => Some(Granularity::Tensor),
            Sharing::Channel => Some(Granularity::Channel),
            Sharing::Group { group_size } => Some(Granularity::Group(group_size)),
            Sharing::Block { block_rows, block_columns } => {
                Some(Granularity::Block { rows: block_rows, columns: block_columns })
            }
            Sharing::Chosen => None,
        }
    }

    /// The exact number of outliers for a share of them.
    pub(super) fn shared_outliers(share: f64, matrix: &Matrix) -> u64 {
        (share * (matrix.rows as f64 * matrix.columns as f64)).round_ties_even() as u64
    }

    /// The codec of one matrix with granularity and number of outliers given.
    pub(super) fn codec_with(
        &self,
        matrix: &Matrix,
        granularity: Granularity,
        outliers: u64,
    ) -> Result<Choice, SettingError> {
        if u32::try_from(outliers).is_err() {
            return Err(wrong(
                "outliers",
                format!("{outliers} outliers in `{}`; at most {} can be indexed", matrix.name, u32::MAX),
            ));
        }
        let zero = if self.symmetric {
            ZeroPoint::None
        } else if self.range == Range::Hqq {
            match self.zero {
                ZeroKind::Float if !matrix.float_zero_allowed => {
                    return Err(wrong("zero", "the layout stores whole zero points only; use \"integer\" or \"auto\""));
                }
                ZeroKind::Integer | ZeroKind::Minimum => ZeroPoint::Integer,
                ZeroKind::Auto if !matrix.float_zero_allowed => ZeroPoint::Integer,
                ZeroKind::Auto | ZeroKind::Float => ZeroPoint::Float,
            }
        } else {
            match (self.zero, matrix.minima) {
                (ZeroKind::Minimum, Minima::Never) => {
                    return Err(wrong(
                        "zero",
                        "the layout stores zero points and no minima; use \"integer\" or \"auto\"",
                    ));
                }
                (ZeroKind::Integer, Minima::Always) => {
                    return Err(wrong(
                        "zero",
                        "the layout stores minima and no zero points; use \"minimum\" or \"auto\"",
                    ));
                }
                (ZeroKind::Minimum, _) | (_, Minima::Always) => ZeroPoint::Minimum,
                _ => ZeroPoint::Integer,
            }
        };
        let (element, scale) = match self.number {
            Number::KQuant { format } => return Ok(self.choice(Whole::KQuant(format))),
            Number::Integer { bits } => (Element::Integer { bits }, matrix.scale),
            Number::Float { format: FloatFormat::Fp8 } => (Element::Fp8E4M3, matrix.scale),
            Number::Float { format: FloatFormat::Mxfp8 } => (Element::Fp8E4M3, ScaleFormat::E8M0),
            Number::Float { format: FloatFormat::Mxfp4 } => (Element::Fp4E2M1, ScaleFormat::E8M0),
            Number::Float { format: FloatFormat::Nvfp4 } => (Element::Fp4E2M1, ScaleFormat::E4M3OverGlobal),
        };
        let outliers = (outliers > 0).then_some(OutlierCount { count: outliers });
        Ok(self.choice(Codec { element, granularity, scale, zero, outliers }))
    }

    fn choice(&self, codec: impl Into<Coding>) -> Choice {
        Choice { codec: codec.into(), rotations: None, codebook_of: None, mask: None, activations: self.activations }
    }
}
