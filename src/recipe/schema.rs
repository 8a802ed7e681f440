//! The JSON schema of recipes, from the registry of passes: editors complete and check TOML files with it.

use serde_json::{Map, Value, json};

use super::{PRESETS, preset, resolved::complete};
use crate::{
    layout::LayoutName,
    passes::{PassInfo, REGISTRY, rtn},
};

/// The schema, draft 2020-12. Keys are complete; of a setting it knows the type where the setting has a default to take it
/// from, so a recipe that it accepts may still be refused by [`super::Recipe::read`].
#[must_use]
pub fn schema() -> Value {
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    let text_or_texts = json!({ "anyOf": [{ "type": "string" }, texts] });
    let size = json!({ "anyOf": [{ "type": "string" }, { "type": "integer", "minimum": 1 }] });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bantam recipe",
        "type": "object",
        "required": ["schema", "pass"],
        "additionalProperties": false,
        "properties": {
            "schema": { "const": 1 },
            "model": text_or_texts,
            "base": { "type": "string" },
            "seed": { "type": "integer", "minimum": 0 },
            "input": {
                "type": "object",
                "additionalProperties": false,
                "properties": { "non_finite": { "enum": ["refuse", "keep"] } },
            },
            "calibration": {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "text": text_or_texts,
                    "sequences": { "type": "integer", "minimum": 1 },
                    "sequence_length": { "type": "integer", "minimum": 1 },
                    "predecessor": { "enum": ["compressed", "original"] },
                    "statistics": { "type": "string" },
                },
            },
            "pass": { "type": "array", "minItems": 1, "items": rule(&texts) },
            "artifact": {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "out": { "type": "string" },
                    "layout": schemars::schema_for!(LayoutName),
                    "shard_size": size,
                },
            },
        },
    })
}

/// A `[[pass]]`: what it knows depends on what it uses.
fn rule(texts: &Value) -> Value {
    let names = REGISTRY.iter().map(|info| (info.name, info, info.name.to_owned()));
    let presets = PRESETS.iter().filter_map(|preset| {
        let info = REGISTRY.iter().find(|info| info.name == preset.pass)?;
        Some((preset.name, info, preset.summary.to_owned()))
    });
    let cases: Vec<Value> = names
        .chain(presets)
        .map(|(name, info, summary)| {
            let settings = settings(info, name);
            let mut properties = settings.clone();
            properties.insert("use".into(), json!({ "const": name, "description": summary }));
            for key in ["select", "skip"] {
                properties.insert(key.into(), texts.clone());
            }
            properties.insert("optional".into(), json!({ "type": "boolean" }));
            let mut of_override = properties.clone();
            of_override.remove("use");
            let of_override = json!({ "type": "object", "additionalProperties": false, "properties": of_override });
            properties.insert("override".into(), json!({ "type": "array", "items": of_override }));
            json!({
                "type": "object",
                "required": ["use"],
                "additionalProperties": false,
                "properties": properties,
            })
        })
        .collect();
    json!({ "oneOf": cases })
}

/// The settings of a pass under one of its names, with types and defaults where there are any.
fn settings(info: &PassInfo, name: &str) -> Map<String, Value> {
    let written = preset(name).and_then(|preset| preset.settings.parse::<toml::Table>().ok()).unwrap_or_default();
    let defaults = (info.parse)(&written).map_or(Value::Null, |settings| complete(&settings));
    let mut settings = Map::new();
    for key in info.keys {
        let default = defaults.get(*key).cloned().unwrap_or(Value::Null);
        let kind = match &default {
            Value::Bool(_) => Some("boolean"),
            Value::Number(number) if number.is_u64() || number.is_i64() => Some("number"),
            Value::Number(_) => Some("number"),
            _ => None,
        };
        let mut setting = json!({});
        // A text may stand where a number does (`strength = "search"`), so types are hints in the description of texts only.
        if let Some(kind) = kind {
            setting["type"] = json!([kind, "string"]);
        }
        if !default.is_null() && !default.is_object() {
            setting["default"] = default;
        }
        if *key == "format" {
            setting["enum"] = json!(rtn::FORMATS);
        }
        settings.insert((*key).to_owned(), setting);
    }
    settings
}
