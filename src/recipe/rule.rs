//! One `[[pass]]` with its overrides, and where its settings went wrong.

use std::ops::Range;

use super::{
    document::Located,
    error::{Problem, Source, clipped, shown},
    presets::Preset,
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
    pub(super) preset: Option<&'static Preset>,
    pub(super) use_span: Range<usize>,
    pub(super) choices: Choices,
    pub(super) skip_is_default: bool,
    /// The settings written in the rule itself.
    pub(super) own: Layer,
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
    /// Its settings without overrides.
    ///
    /// # Errors
    /// [`SettingError`], which reading the recipe has reported.
    pub fn settings(&self) -> Result<Settings, SettingError> {
        (self.parse)(&self.merged(&[]))
    }

    /// The settings under these overrides (indices, ascending), merged: preset, rule, overrides.
    pub(super) fn merged(&self, overrides: &[usize]) -> toml::Table {
        let parts = overrides.iter().map(|&index| &self.overrides[index].settings);
        let written = merge(std::iter::once(&self.own).chain(parts));
        let Some(preset) = self.preset else { return written };
        let preset = Layer::without_places(preset.table_beside(&written));
        merge([&preset, &Layer::without_places(written)])
    }
}

/// Shows a setting that the pass refused in the layer that set it last.
pub(super) fn setting_problem(source: &Source, rule: &PassRule, overrides: &[usize], error: &SettingError) -> Problem {
    let message = clipped(&format!("`{}`: {}", error.key, error.message), MAX_MESSAGE);
    let setter = overrides.iter().rev().map(|&index| &rule.overrides[index].settings);
    let place = setter.clone().find_map(|layer| layer.place(&error.key));
    let own = rule.own.place(&error.key);
    let problem = match (place, overrides.last(), own) {
        (Some(place), ..) | (None, None, Some(place)) => Problem::at(place, message),
        (None, Some(&last), Some(own)) => Problem::at(&rule.overrides[last].span, message).note(format!(
            "`{}` is set on line {}",
            shown(&error.key),
            source.line(own.start)
        )),
        (None, Some(&last), None) => Problem::at(&rule.overrides[last].span, message),
        (None, None, None) => Problem::at(&rule.use_span, message),
    };
    // The preset's part matters where the user wrote nothing of the kind, or where the message is about both.
    let concerned = |preset: &Preset| {
        let others = preset.table().keys().any(|key| *key != error.key && error.message.contains(&format!("`{key}`")));
        others || (place.is_none() && own.is_none())
    };
    match rule.preset.filter(|preset| concerned(preset)) {
        Some(preset) => {
            problem.note(format!("preset \"{}\" sets {}", preset.name, preset.settings.replace('\n', ", ")))
        }
        None => problem,
    }
}
