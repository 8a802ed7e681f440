//! Rules: the pass or preset, its settings, its overrides, and what they take.

use std::ops::Range;

use toml::de::DeTable;

use super::{
    super::{
        PassRule,
        document::{Located, Reader, entries},
        error::{Problem, did_you_mean, shown},
        presets::{PRESETS, preset},
        rule::{self, Choices, SettingOverride},
        selector::Selector,
        settings::Layer,
    },
    missing, quoted,
};
use crate::passes::{Kind, PassInfo, Settings};

pub(super) fn read_rule(
    reader: &mut Reader<'_>,
    located: &Located<&DeTable<'_>>,
    registry: &[PassInfo],
) -> Option<PassRule> {
    let table = located.value;
    if !table.contains_key("use") {
        let help = format!("write `use = \"…\"`: {}", names_of_uses(registry));
        missing(reader, Some(&located.span), "`use` is missing: the rule names no pass", &help);
        return None;
    }
    let name = reader.string(table, "use", "the name of a pass or preset")?;
    let preset = preset(&name.value);
    let pass = preset.map_or(name.value.as_str(), |preset| preset.pass);
    let Some(info) = registry.iter().find(|info| info.name == pass) else {
        let names: Vec<&str> =
            registry.iter().map(|info| info.name).chain(PRESETS.iter().map(|preset| preset.name)).collect();
        let problem = Problem::at(&name.span, format!("unknown pass or preset \"{}\"", shown(&name.value)))
            .note(format!("expected {}", names_of_uses(registry)))
            .help(did_you_mean(&name.value, names));
        reader.report(problem);
        return None;
    };
    let own = read_settings(reader, table, &["use", "select", "skip", "optional", "override"], info);
    let select = read_selectors(reader, table, "select");
    let skip = read_selectors(reader, table, "skip");
    let defaults = |words: &[&str]| {
        words
            .iter()
            .filter_map(|word| Selector::parse(word).ok())
            .map(|selector| Located { value: selector, span: name.span.clone() })
            .collect()
    };
    let skip_is_default = !table.contains_key("skip");
    let mut rule = PassRule {
        pass: info.name.to_owned(),
        line: reader.source.line(located.span.start),
        kind: info.kind,
        parse: info.parse,
        preset,
        use_span: name.span.clone(),
        choices: Choices {
            select: select.unwrap_or_else(|| defaults(info.default_select)),
            skip: skip.unwrap_or_else(|| defaults(info.default_skip)),
            optional: reader.boolean(table, "optional").unwrap_or(false),
            span: value_span(table, "select").unwrap_or_else(|| name.span.clone()),
        },
        skip_is_default,
        own,
        overrides: Vec::new(),
    };
    for part in reader.tables(table, "override", "pass.override") {
        let known = ["select", "skip", "optional"];
        let settings = read_settings(reader, part.value, &known, info);
        let choices = Choices {
            select: read_selectors(reader, part.value, "select").unwrap_or_default(),
            skip: read_selectors(reader, part.value, "skip").unwrap_or_default(),
            optional: reader.boolean(part.value, "optional").unwrap_or(false),
            span: value_span(part.value, "select").unwrap_or_else(|| part.span.clone()),
        };
        rule.overrides.push(SettingOverride { choices, settings, span: part.span });
    }
    check_settings(reader, &rule);
    Some(rule)
}

fn value_span(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    table.get(key).map(serde_spanned::Spanned::span)
}

fn names_of_uses(registry: &[PassInfo]) -> String {
    let passes = quoted(registry.iter().map(|info| info.name));
    let presets = quoted(
        PRESETS.iter().filter(|preset| registry.iter().any(|info| info.name == preset.pass)).map(|preset| preset.name),
    );
    if presets.is_empty() { format!("a pass ({passes})") } else { format!("a pass ({passes}) or a preset ({presets})") }
}

fn read_settings(reader: &mut Reader<'_>, table: &DeTable<'_>, reserved: &[&str], info: &PassInfo) -> Layer {
    let known: Vec<&str> = reserved.iter().chain(info.keys).copied().collect();
    let mut layer = Layer::default();
    for (key, span, value) in entries(table) {
        if reserved.contains(&key) {
            continue;
        }
        if !info.keys.contains(&key) {
            let place = if reserved.contains(&"use") {
                format!("a rule of pass `{}`", info.name)
            } else {
                format!("an override of pass `{}`", info.name)
            };
            reader.unknown_key(key, &span, &place, &known);
            continue;
        }
        if let Some(value) = reader.plain(key, value, &mut layer.places) {
            layer.table.insert(key.to_owned(), value);
        }
    }
    layer
}

fn read_selectors(reader: &mut Reader<'_>, table: &DeTable<'_>, key: &str) -> Option<Vec<Located<Selector>>> {
    let list = reader.strings(table, key, "a list of selectors, as in [\"linear\", \"*.q_proj.weight\"]")?;
    if list.value.is_empty() && key == "select" {
        let problem = Problem::at(&list.span, "`select`: expected at least one selector, got none");
        reader.report(problem.help("leave `select` out to take what the pass takes by itself".to_owned()));
    }
    let mut selectors = Vec::with_capacity(list.value.len());
    for Located { value, span } in list.value {
        match Selector::parse(&value) {
            Ok(value) => selectors.push(Located { value, span }),
            Err(error) => {
                reader.wrong(&span, error.to_string());
            }
        }
    }
    Some(selectors)
}

/// Types the settings of a rule alone and with each of its overrides, so that a mistake shows before any model is read.
fn check_settings(reader: &mut Reader<'_>, rule: &PassRule) {
    let base = (rule.parse)(&rule.merged(&[]));
    match &base {
        Err(error) => reader.report(rule::setting_problem(reader.source, rule, &[], error)),
        Ok(Settings::Custom(_)) if rule.kind == Kind::Transform => {
            let message =
                format!("`{}` is registered as a transform, and only encodings can come from outside", rule.pass);
            reader.report(Problem::at(&rule.use_span, message));
        }
        Ok(_) => {}
    }
    for index in 0..rule.overrides.len() {
        if let Err(error) = (rule.parse)(&rule.merged(&[index]))
            && base.as_ref().err() != Some(&error)
        {
            reader.report(rule::setting_problem(reader.source, rule, &[index], &error));
        }
    }
}
