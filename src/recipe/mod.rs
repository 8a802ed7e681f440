//! Recipes: what the user wrote, typed, with places kept for error messages; presets and selectors.

use std::path::{Path, PathBuf};

use crate::{layout::LayoutName, model::ModelMap, passes::Settings};

/// A recipe as resolved: every default filled in, paths made relative to the working folder.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Where it was read from, for messages.
    pub path: PathBuf,
    /// The checkpoint.
    pub model: PathBuf,
    /// Seed of every random choice.
    pub seed: u64,
    /// What to do with non-finite weights.
    pub non_finite: NonFinite,
    /// The passes in order.
    pub passes: Vec<PassRule>,
    /// Where and how to write.
    pub artifact: Artifact,
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

/// One `[[pass]]` with its overrides.
#[derive(Debug, Clone)]
pub struct PassRule {
    /// Registered name of the pass (presets are resolved).
    pub pass: String,
    /// Line in the recipe, 1-based, for messages.
    pub line: usize,
    // selectors, base settings with places, overrides: recipe's own
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
    pub fn read(_path: &Path) -> Result<Self, RecipeError> {
        todo!()
    }

    /// Which rule applies to which tensor with which settings, by rule and then in map order.
    ///
    /// # Errors
    /// [`RecipeError`] for a selector that matches nothing (unless the rule says `optional = true`).
    pub fn assign(&self, _model: &ModelMap) -> Result<Vec<Assignment>, RecipeError> {
        todo!()
    }

    /// The recipe as resolved, canonical: presets expanded, defaults filled, keys sorted. Written to the manifest and
    /// hashed for resume. Paths stay as written, so that the same recipe gives the same manifest anywhere.
    #[must_use]
    pub fn resolved(&self) -> serde_json::Value {
        todo!()
    }
}

/// Every way in which a recipe can be wrong. Displays like a compiler: message, `--> file:line:column`, the line, a caret.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {}
