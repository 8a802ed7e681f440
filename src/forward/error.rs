//! Why a model cannot be run.

use crate::{ExitCode, codec::CodecError, layout::LayoutError};

/// Architectures that have a forward pass, as errors list them.
pub const ARCHITECTURES: &str = "llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3, phi3, mixtral, qwen2_moe, \
     qwen3_moe, deepseek_v2, deepseek_v3, gpt_oss, opt, gpt2, bert";

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is no `config.json`.
    #[error("the model has no config.json, which says how it computes")]
    NoConfig,
    /// No forward pass for this architecture.
    #[error("no forward pass for `{architecture}`; there is one for {ARCHITECTURES}")]
    Architecture {
        /// What the config calls itself.
        architecture: String,
    },
    /// A config key is missing or has a value that the forward pass does not know.
    #[error("config.json: `{key}` {problem}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor that the architecture needs is not there, or has another shape.
    #[error("tensor `{tensor}` {problem}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A stored tensor cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Stored codes are malformed.
    #[error("`{tensor}`: {source}")]
    Codec {
        /// Its name.
        tensor: String,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// The file of hidden states fails.
    #[error("the file of hidden states: {0}")]
    Store(#[from] std::io::Error),
    /// Activations became infinite or not-a-number.
    #[error(
        "the activations of block {block} are not finite ({what}); the weights before it, or the model itself, overflow"
    )]
    Overflow {
        /// The block.
        block: usize,
        /// Which activation.
        what: &'static str,
    },
}

impl ForwardError {
    /// The exit code of this failure.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Store(_) => ExitCode::Environment,
            _ => ExitCode::Input,
        }
    }

    pub(super) fn config(key: &str, problem: impl Into<String>) -> Self {
        Self::Config { key: key.to_owned(), problem: problem.into() }
    }
}
