//! What a layout cannot read.

use crate::{ExitCode, checkpoint::Dtype};

/// What a layout cannot read or express; every message names the tensor.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The checkpoint is quantized by a method that bantam does not read.
    #[error("config.json: `quantization_config.quant_method` is `{method}`, which bantam does not read")]
    UnknownMethod {
        /// The method as written.
        method: String,
    },
    /// A key of `quantization_config` is missing or has a value that cannot be.
    #[error("config.json: `quantization_config.{key}` {message}")]
    Config {
        /// The key, dotted.
        key: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// A GGUF file is of a model that bantam does not read, or contradicts itself.
    #[error("the GGUF file cannot be read: {0}")]
    Gguf(String),
    /// A coded matrix lacks one of its tensors.
    #[error("`{matrix}` is stored in format `{format}`, but its tensor `{part}` is missing")]
    MissingPart {
        /// The logical tensor.
        matrix: String,
        /// The format it was recognised as.
        format: &'static str,
        /// The tensor that is not there.
        part: String,
    },
    /// A part of a coded matrix has the wrong element type.
    #[error("tensor `{tensor}` has type {got:?}; expected {expected}")]
    Type {
        /// The stored tensor.
        tensor: String,
        /// Its type.
        got: Dtype,
        /// What the format wants.
        expected: &'static str,
    },
    /// A part of a coded matrix has a shape that does not fit the others.
    #[error("tensor `{tensor}` has shape {got:?}; expected {expected}")]
    Shape {
        /// The stored tensor.
        tensor: String,
        /// Its shape.
        got: Vec<usize>,
        /// What the format and the other parts want.
        expected: String,
    },
    /// A value inside a tensor cannot be.
    #[error("tensor `{tensor}`: {message}")]
    Value {
        /// The stored tensor.
        tensor: String,
        /// What is wrong, where, and what was expected.
        message: String,
    },
    /// Two stored forms claim the same logical tensor.
    #[error("`{name}` is stored twice: as `{first}` and as `{second}`")]
    StoredTwice {
        /// The logical tensor.
        name: String,
        /// A stored tensor of the first form.
        first: String,
        /// A stored tensor of the second form.
        second: String,
    },
    /// There is no such logical tensor.
    #[error("there is no tensor `{name}`")]
    NoSuchTensor {
        /// The name asked for.
        name: String,
    },
    /// Weights were asked of a tensor that has none.
    #[error("tensor `{name}` has type {dtype:?}, which holds no weights")]
    NotFloat {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// A tensor is a difference and what it is a difference from is not there.
    #[error("`{name}` is stored as a difference from a base checkpoint, which is not given")]
    NeedsBase {
        /// The tensor.
        name: String,
    },
    /// The base is not the one that differences were taken from.
    #[error("another base than the differences are from: its tensor `{name}` is {got}")]
    OtherBase {
        /// The tensor.
        name: String,
        /// What the base has.
        got: String,
    },
    /// Codes were asked of a tensor that is not stored in a codec.
    #[error("tensor `{name}` is stored as `{format}`, which has no codes of its own")]
    NoCodes {
        /// The tensor.
        name: String,
        /// How it is stored.
        format: &'static str,
    },
    /// Rows beyond the matrix were asked for.
    #[error("tensor `{name}` has {rows} rows; rows {first}..{end} were asked for")]
    RowsOutside {
        /// The tensor.
        name: String,
        /// Its rows.
        rows: usize,
        /// First row asked for.
        first: usize,
        /// One past the last row asked for.
        end: usize,
    },
}

impl LayoutError {
    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Input
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownMethod { .. } => Some(
                "bantam reads compressed-tensors, gptq, awq, fp8 with weight_scale_inv, mxfp4 and its own layout; \
                 decode the model with the tool that wrote it, or start from the original weights"
                    .to_owned(),
            ),
            Self::NeedsBase { .. } => {
                Some("`bantam decode DELTA --base BASE --out DIR` gives the whole model".to_owned())
            }
            Self::MissingPart { .. } => Some("the download may be incomplete: compare with the index file".to_owned()),
            _ => None,
        }
    }
}
