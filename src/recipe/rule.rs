//! One `[[pass]]` with its overrides, and where its settings went wrong.

use std::ops::Range;

use super::{
    document::Located,
    error::{Problem, Source, clipped},
    selector::Selector,
    settings::{Layer, merge},
};
use crate::passes::{Kind, SettingError, Settings};

/// Longest message of a pass that is shown, in characters.
const MAX_MESSAGE: usize = 500;

/// One `[[pass]]` with its overrides.
#[derive(Debug, Clone)]
pub struct PassRule {
    /// Registered name of the pass (presets are resolved).
    pub pass: String,
    /// Line in the recipe, 1-based, for messages.
    pub line: usize,
    /// What kind of pass it is.
    pub kind: Kind,
    pub(super) parse: fn(&toml::Table) -> Result<Settings, SettingError>,
    pub(super) preset: Option<&'static str>,
    pub(super) use_span: Range<usize>,
    pub(super) choices: Choices,
    pub(super) skip_is_default: bool,
    /// The preset's settings, then the rule's own.
    pub(super) layers: Vec<Layer>,
    pub(super) overrides: Vec<SettingOverride>,
}

/// What a rule or an override is about.
#[derive(Debug, Clone)]
pub(super) struct Choices {
    /// Union of what is taken; empty in an override: all that the rule takes.
    pub(super) select: Vec<Located<Selector>>,
    /// What is taken away again.
    pub(super) skip: Vec<Located<Selector>>,
    /// Whether selecting nothing is fine.
    pub(super) optional: bool,
    /// Where the choice was made, for messages.
    pub(super) span: Range<usize>,
}

/// One `[[pass.override]]`.
#[derive(Debug, Clone)]
pub(super) struct SettingOverride {
    pub(super) choices: Choices,
    pub(super) settings: Layer,
    /// Its header.
    pub(super) span: Range<usize>,
}

impl PassRule {
    /// The settings under these overrides (indices, ascending), merged.
    pub(super) fn merged(&self, overrides: &[usize]) -> toml::Table {
        let parts = overrides.iter().map(|&index| &self.overrides[index].settings);
        merge(self.layers.iter().chain(parts))
    }
}

/// Shows a setting that the pass refused in the layer that set it last.
pub(super) fn setting_problem(source: &Source, rule: &PassRule, overrides: &[usize], error: &SettingError) -> Problem {
    let message = clipped(&format!("`{}`: {}", error.key, error.message), MAX_MESSAGE);
    let of_overrides = overrides.iter().rev().map(|&index| &rule.overrides[index].settings);
    let place = of_overrides.clone().find_map(|layer| layer.place(&error.key));
    if let Some(place) = place {
        return Problem::at(place, message);
    }
    let own = rule.layers.iter().rev().find_map(|layer| layer.place(&error.key));
    if let Some(&last) = overrides.last() {
        let problem = Problem::at(&rule.overrides[last].span, message);
        return match own {
            Some(own) => problem.note(format!("`{}` is set on line {}", error.key, source.line(own.start))),
            None => problem,
        };
    }
    match (own, rule.preset) {
        (Some(own), _) => Problem::at(own, message),
        (None, Some(preset)) if rule.layers[0].table.contains_key(&error.key) => {
            Problem::at(&rule.use_span, message).note(format!("preset {preset:?} sets it"))
        }
        (None, _) => Problem::at(&rule.use_span, message),
    }
}
