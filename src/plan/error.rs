//! Why a plan cannot be made.

use std::path::PathBuf;

use crate::{ExitCode, passes::SettingError};

/// Every way in which planning fails.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A rule selected something that its pass cannot take.
    #[error(
        "rule {rule} (`{pass}`, recipe line {line}) selects `{tensor}`, which is not a matrix of floats: it is {what}"
    )]
    NotAMatrix {
        /// Number of the rule, from 1.
        rule: usize,
        /// Its pass.
        pass: String,
        /// Its line.
        line: usize,
        /// The tensor.
        tensor: String,
        /// What it is instead.
        what: String,
    },
    /// A setting does not fit a matrix.
    #[error("rule `{pass}` (recipe line {line}), setting `{key}`, tensor `{tensor}`: {message}")]
    Setting {
        /// The pass.
        pass: String,
        /// Its line.
        line: usize,
        /// The key.
        key: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// The layout cannot express what the recipe asks.
    #[error("layout `{layout}` cannot hold `{tensor}` as `{codec}` (recipe line {line}): {message}")]
    LayoutCannot {
        /// The layout.
        layout: String,
        /// The tensor.
        tensor: String,
        /// The codec asked for.
        codec: String,
        /// The rule's line.
        line: usize,
        /// Why.
        message: String,
    },
    /// A static scale is asked for an input that calibration does not see.
    #[error(
        "`activations = \"static\"` (pass `{pass}`) needs to see the input of `{tensor}`, which lies outside of the blocks \
         that are calibrated"
    )]
    UnseenInput {
        /// The pass.
        pass: String,
        /// The tensor.
        tensor: String,
    },
    /// A matrix is rotated that stays dense.
    #[error("`{tensor}` is rotated by pass `rotate`, but no rule encodes it")]
    RotatedDense {
        /// The tensor.
        tensor: String,
    },
    /// A matrix is scaled after it was rotated.
    #[error("rule `{pass}` (recipe line {line}) scales `{tensor}` after pass `rotate` has mixed its channels")]
    ScaledAfterRotation {
        /// The pass that scales.
        pass: String,
        /// Its line.
        line: usize,
        /// The tensor.
        tensor: String,
    },
    /// A masked matrix is asked for something that masks do not go with.
    #[error("rule `{pass}` (recipe line {line}) cannot take `{tensor}`, which `mask_2_4` masks: {problem}")]
    Masked {
        /// The pass.
        pass: String,
        /// Its line.
        line: usize,
        /// The tensor.
        tensor: String,
        /// What does not go together.
        problem: &'static str,
    },
    /// A file of masks cannot be read.
    #[error("masks of `{path}`: {message}")]
    MaskFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file of masks lacks one.
    #[error("`{path}` has no mask of `{tensor}`")]
    NoMask {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Two output tensors would have one name.
    #[error("two tensors of the artifact would be named `{name}` (from `{first}` and `{second}`)")]
    NameTwice {
        /// The name.
        name: String,
        /// One source.
        first: String,
        /// The other.
        second: String,
    },
    /// The layout needs a config and the source has none.
    #[error("layout `{layout}` writes its settings into config.json, and `{model}` has none")]
    NoConfig {
        /// The layout.
        layout: String,
        /// The source.
        model: PathBuf,
    },
    /// There is no difference to store.
    #[error("`{model}` has the bytes of its base `{base}` in every tensor: there is no difference to store")]
    NothingDiffers {
        /// The model.
        model: PathBuf,
        /// The base.
        base: PathBuf,
    },
    /// The budget is too small.
    #[error(
        "--max-memory {budget_bytes} bytes is too small: the smallest budget that works is {smallest_bytes} bytes ({threads} threads)"
    )]
    Memory {
        /// What was given.
        budget_bytes: u64,
        /// What works.
        smallest_bytes: u64,
        /// With so many threads.
        threads: usize,
    },
    /// Not enough room.
    #[error("{needed_bytes} bytes are needed in `{folder}` and {free_bytes} are free")]
    Disk {
        /// Where.
        folder: PathBuf,
        /// What the run still has to write.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// A fallback was needed and is denied.
    #[error("{count} fallbacks are needed and `--deny fallback` forbids them; the first: {first}")]
    FallbackDenied {
        /// How many.
        count: usize,
        /// The first one.
        first: String,
    },
    /// A companion file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Companion {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something that has no keys or values of its own is to become factors.
    #[error("rule `{pass}` (recipe line {line}) cannot take `{tensor}`: {problem}")]
    LowRank {
        /// The pass.
        pass: String,
        /// Its line.
        line: usize,
        /// The tensor.
        tensor: String,
        /// Why not.
        problem: String,
    },
    /// Ranks are to be given out by statistics that nobody has saved.
    #[error(
        "rule `{pass}` (recipe line {line}): `cache_ratio` with `method = \"{method}\"` gives ranks out by statistics, \
         and the recipe names none"
    )]
    NoStatistics {
        /// The pass.
        pass: String,
        /// Its line.
        line: usize,
        /// The method.
        method: &'static str,
    },
    /// The layout has no place for the model.
    #[error("layout `{layout}` cannot hold the model: {message}")]
    Model {
        /// The layout.
        layout: String,
        /// Why.
        message: String,
    },
    /// The encodings do not fit into one artifact of this layout.
    #[error("layout `{layout}` cannot hold these encodings together: {message}")]
    Together {
        /// The layout.
        layout: String,
        /// Why.
        message: String,
    },
    /// The settings whose sizes follow from the weights cannot be met.
    #[error("rule `{pass}` (recipe line {line}): {source}")]
    Choice {
        /// The pass.
        pass: String,
        /// Its line.
        line: usize,
        /// What is wrong.
        source: Box<crate::passes::ChooseError>,
    },
}

impl PlanError {
    pub(super) fn setting(pass: &str, line: usize, tensor: &str, error: SettingError) -> Self {
        Self::Setting { pass: pass.to_owned(), line, key: error.key, tensor: tensor.to_owned(), message: error.message }
    }

    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Memory { .. } | Self::Disk { .. } => ExitCode::Environment,
            Self::FallbackDenied { .. } => ExitCode::Difference,
            Self::Companion { .. }
            | Self::NoConfig { .. }
            | Self::NothingDiffers { .. }
            | Self::NameTwice { .. }
            | Self::MaskFile { .. }
            | Self::NoMask { .. } => ExitCode::Input,
            Self::NotAMatrix { .. }
            | Self::Setting { .. }
            | Self::LayoutCannot { .. }
            | Self::UnseenInput { .. }
            | Self::RotatedDense { .. }
            | Self::ScaledAfterRotation { .. }
            | Self::Masked { .. }
            | Self::LowRank { .. }
            | Self::NoStatistics { .. }
            | Self::Together { .. }
            | Self::Model { .. }
            | Self::Choice { .. } => ExitCode::Usage,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotAMatrix { .. } => "narrow the rule's `select`, or name the tensor in its `skip`".into(),
            Self::LayoutCannot { .. } | Self::Together { .. } => {
                "choose another layout (`bantam` holds every codec), or leave the tensor out with `skip`".into()
            }
            Self::UnseenInput { .. } => {
                "name it in the rule's `skip`, or give it `activations = \"dynamic\"` in an override".into()
            }
            Self::RotatedDense { .. } => {
                "add a rule that encodes it (rotation is undone where codes are read), or name it in the rule's `skip`"
                    .into()
            }
            Self::ScaledAfterRotation { .. } => "put the `rotate` rule after it".into(),
            Self::LowRank { .. } => "leave it out with `skip`, or write `select = [\"attention.key\", \"attention.value\"]`".into(),
            Self::NoStatistics { .. } => "save them with `bantam calibrate RECIPE --out FILE`, and write `statistics = \"FILE\"` under [calibration]".into(),
            Self::NoMask { .. } => "`skip` the tensor, or give the masks of this model".into(),
            Self::Masked { .. } => "name the tensor in the `skip` of one of the two rules".into(),
            Self::NoConfig { .. } => "use layout `dense` or `bantam`, or add the model's config.json".into(),
            Self::NothingDiffers { .. } => {
                "`model` is to be the fine-tuned model, and `base` the one that it was made from".into()
            }
            Self::Memory { smallest_bytes, threads, .. } if *threads > 1 => {
                format!("give --max-memory {smallest_bytes} or more, or fewer --threads")
            }
            Self::Memory { smallest_bytes, .. } => format!("give --max-memory {smallest_bytes} or more"),
            Self::Disk { .. } => "free some space or choose another --out; nothing was written".into(),
            Self::FallbackDenied { .. } => {
                "`bantam plan` lists them; `skip` those tensors or change the setting".into()
            }
            _ => return None,
        })
    }
}
