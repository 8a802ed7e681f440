//! Recipes: what the user wrote, typed, with places kept for error messages; presets and selectors.
//!
//! Reading checks all that a recipe alone can tell (keys, types, values, passes, settings); [`Recipe::assign`] checks
//! the rest against a model. `docs/recipe.md` is the reference for users.

mod assign;
mod document;
mod error;
mod presets;
mod read;
mod resolved;
mod rule;
mod schema;
mod selector;
mod settings;
mod size;

pub use error::{Diagnostic, Place, RecipeError};
pub use presets::{PRESETS, Preset, preset};
pub use rule::PassRule;
pub use schema::schema;
pub use selector::{Selector, SelectorError};
pub use size::parse_bytes;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::{
    layout::LayoutName,
    passes::{PassInfo, REGISTRY, Settings},
};

/// A recipe as resolved: every default filled in, paths made relative to the working folder.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Where it was read from, for messages.
    pub path: PathBuf,
    /// The checkpoint.
    pub model: PathBuf,
    /// Further checkpoints, whose changes are merged with the first one's.
    pub merged: Vec<PathBuf>,
    /// The checkpoint that the model was made from, where differences from it are stored or merged.
    pub base: Option<PathBuf>,
    /// Seed of every random choice.
    pub seed: u64,
    /// What to do with non-finite weights.
    pub non_finite: NonFinite,
    /// Text for passes that need data.
    pub calibration: Option<Calibration>,
    /// The passes in order.
    pub passes: Vec<PassRule>,
    /// Where and how to write.
    pub artifact: Artifact,
    written: Written,
    source: error::Source,
}

impl Recipe {
    /// A path as the recipe has it, relative to the working folder.
    #[must_use]
    pub fn beside(&self, written: &str) -> PathBuf {
        read::tidy(&self.path.parent().unwrap_or(Path::new("")).join(written))
    }
}

/// Paths as the recipe has them, for [`Recipe::resolved`].
#[derive(Debug, Clone)]
struct Written {
    model: Option<String>,
    merged: Vec<String>,
    base: Option<String>,
    out: Option<String>,
}

/// What the command line says instead of the recipe. Its paths are relative to the working folder.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--model`: wins over the recipe's `model`.
    pub model: Option<PathBuf>,
    /// `--base`: wins over the recipe's `base`.
    pub base: Option<PathBuf>,
    /// `--out`: wins over the recipe's `out`.
    pub out: Option<PathBuf>,
    /// Taken where neither names a folder to write, for commands that write none; without it that is an error.
    pub default_out: Option<PathBuf>,
}

/// `[input] non_finite`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NonFinite {
    /// Stop with the tensor, the first index and the count.
    #[default]
    Refuse,
    /// Keep that tensor as it is (a named fallback).
    Keep,
}

/// `[calibration]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    /// The files to read, in this order: `.txt`, `.jsonl` or `.safetensors` (token ids). Never empty in a recipe.
    pub text: Vec<PathBuf>,
    /// How many sequences to draw from them.
    pub sequences: u64,
    /// Tokens of a sequence.
    pub sequence_length: u64,
    /// What inputs encodings see.
    pub predecessor: Predecessor,
    /// Statistics that `bantam calibrate` saved.
    pub statistics: Option<PathBuf>,
    written: Vec<String>,
    written_statistics: Option<String>,
}

/// Whose activations an encoding is calibrated with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Predecessor {
    /// Those of the compressed model so far: of all blocks before, and of all linears before in the same block.
    #[default]
    Compressed,
    /// Those of the original model.
    Original,
}

impl Calibration {
    /// Calibration without a recipe.
    #[must_use]
    pub fn new(text: Vec<PathBuf>, sequences: u64, sequence_length: u64) -> Self {
        let written = text.iter().map(|file| file.to_string_lossy().into_owned()).collect();
        let (predecessor, statistics) = (Predecessor::default(), None);
        Self { text, sequences, sequence_length, predecessor, statistics, written, written_statistics: None }
    }
}

/// `[artifact]`.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The folder to write.
    pub out: PathBuf,
    /// How.
    pub layout: LayoutName,
    /// Largest file in bytes; a single tensor may be larger.
    pub shard_size: u64,
}

/// What one pass rule does to one tensor.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Index of the rule in [`Recipe::passes`].
    pub rule: usize,
    /// Logical tensor name.
    pub tensor: String,
    /// Settings for this tensor, overrides applied leaf by leaf.
    pub settings: Settings,
}

impl Recipe {
    /// Reads a recipe file; checks keys, types, values, pass names and settings.
    ///
    /// # Errors
    /// [`RecipeError`] with file, line, column, a caret, and the nearest valid key where one is unknown.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        Self::read_with(path, &Overrides::default())
    }

    /// Reads a recipe file under what the command line says.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn read_with(path: &Path, overrides: &Overrides) -> Result<Self, RecipeError> {
        Self::read_with_passes(path, overrides, &[])
    }

    /// Reads a recipe file whose rules may also use passes of the caller's own; where bantam has a pass of the same name,
    /// that is meant.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn read_with_passes(path: &Path, overrides: &Overrides, own: &[PassInfo]) -> Result<Self, RecipeError> {
        let unreadable = |source| RecipeError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        // One byte more than allowed, so that a device or a growing file cannot fill the memory.
        file.take(read::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > read::MAX_BYTES {
            let bytes = path.metadata().map_or(bytes.len() as u64, |metadata| metadata.len());
            return Err(RecipeError::TooLarge { path: path.to_owned(), bytes, limit: read::MAX_BYTES });
        }
        let text = String::from_utf8(bytes).map_err(|error| RecipeError::NotText {
            path: path.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        read::parse(&text, path, overrides, &[REGISTRY, own].concat())
    }

    /// Reads the text of a recipe as if it stood in the file `path`.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, RecipeError> {
        Self::parse_with(text, path, &Overrides::default())
    }

    /// Reads the text of a recipe as if it stood in the file `path`, under what the command line says.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse_with(text: &str, path: &Path, overrides: &Overrides) -> Result<Self, RecipeError> {
        read::parse(text, path, overrides, REGISTRY)
    }
}

#[cfg(test)]
mod tests;
