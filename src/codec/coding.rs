//! The two kinds of codes: one per weight, which a stripe of rows can be encoded and read in, and those of a whole matrix.

use serde::{Deserialize, Serialize};

use super::{Codec, CodecError, CodedRows, MatrixParameters, ScaleFormat, StoredMatrix, Whole};

/// How a matrix is coded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Coding {
    /// A code for each weight.
    Scalar(Codec),
    /// Codes of the whole matrix.
    Whole(Whole),
}

impl Coding {
    /// Its short name, as in manifests and plans.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Scalar(codec) => codec.name(),
            Self::Whole(whole) => whole.name(),
        }
    }

    /// Reads a short name back; `float_scale` is the scale format where the name implies none.
    #[must_use]
    pub fn parse_name(name: &str, float_scale: ScaleFormat) -> Option<Self> {
        let whole = || Whole::parse_name(name, float_scale).map(Self::Whole);
        Codec::parse_name(name, float_scale).map(Self::Scalar).or_else(whole)
    }

    /// The format of codes that each stand for one weight, if it is such.
    #[must_use]
    pub fn scalar(&self) -> Option<&Codec> {
        match self {
            Self::Scalar(codec) => Some(codec),
            Self::Whole(_) => None,
        }
    }

    /// The format of the codes of a whole matrix, if it is such.
    #[must_use]
    pub fn whole(&self) -> Option<&Whole> {
        match self {
            Self::Scalar(_) => None,
            Self::Whole(whole) => Some(whole),
        }
    }

    /// Checks that a matrix of this shape can be coded so.
    ///
    /// # Errors
    /// [`CodecError`] that says what does not go together.
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        match self {
            Self::Scalar(codec) => codec.validate(rows, columns),
            Self::Whole(whole) => whole.validate(rows, columns),
        }
    }
}

impl From<Whole> for Coding {
    fn from(whole: Whole) -> Self {
        Self::Whole(whole)
    }
}

impl From<Codec> for Coding {
    fn from(codec: Codec) -> Self {
        Self::Scalar(codec)
    }
}

/// One matrix in codes, as a pass made it.
#[derive(Debug, Clone, PartialEq)]
pub enum CodedMatrix {
    /// A code for each weight.
    Scalar {
        /// All rows.
        rows: CodedRows,
        /// What is known once.
        parameters: MatrixParameters,
    },
    /// The stored tensors of a format of whole matrices.
    Whole(StoredMatrix),
}

impl CodedMatrix {
    /// The weights that it stands for, `[rows, columns]`, still rotated where the matrix is stored rotated.
    ///
    /// # Errors
    /// [`CodecError`] when codes and format do not go together.
    pub fn decode(&self, coding: &Coding, rows: usize, columns: usize) -> Result<Vec<f32>, CodecError> {
        match (self, coding) {
            (Self::Scalar { rows: coded, parameters }, Coding::Scalar(codec)) => {
                let mut values = vec![0.0; rows * columns];
                codec.dequantize_rows(coded, parameters, &mut values)?;
                Ok(values)
            }
            (Self::Whole(stored), Coding::Whole(whole)) => {
                let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
                whole.decode(rows, columns, &stored)
            }
            _ => Err(CodecError::Missing { what: "kind of codes that the format asks for" }),
        }
    }
}
