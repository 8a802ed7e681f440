//! The recipe as resolved: one canonical value for manifests and for recognising a run.

use serde_json::{Value, json};

use super::{Recipe, document::Located, rule::PassRule, selector::Selector};
use crate::passes::Settings;

impl Recipe {
    /// The recipe as resolved, canonical: presets expanded, defaults filled, keys sorted. Written to the manifest and
    /// hashed for resume. Paths stay as the recipe has them, and places given on the command line stay out of it, so
    /// that the same recipe gives the same manifest anywhere.
    #[must_use]
    pub fn resolved(&self) -> Value {
        let mut resolved = json!({
            "schema": 1,
            "seed": self.seed,
            "input": { "non_finite": self.non_finite },
            "pass": self.passes.iter().map(PassRule::resolved).collect::<Vec<_>>(),
            "artifact": { "layout": self.artifact.layout, "shard_size": self.artifact.shard_size },
        });
        if let Some(model) = &self.written.model {
            resolved["model"] = json!(model);
        }
        if let (Some(model), false) = (&self.written.model, self.written.merged.is_empty()) {
            resolved["model"] = std::iter::once(model).chain(&self.written.merged).map(String::as_str).collect();
        }
        if let Some(base) = &self.written.base {
            resolved["base"] = json!(base);
        }
        if let Some(out) = &self.written.out {
            resolved["artifact"]["out"] = json!(out);
        }
        if let Some(calibration) = &self.calibration {
            resolved["calibration"] = json!({
                "text": calibration.written,
                "sequences": calibration.sequences,
                "sequence_length": calibration.sequence_length,
                "predecessor": calibration.predecessor,
            });
            if let Some(statistics) = &calibration.written_statistics {
                resolved["calibration"]["statistics"] = json!(statistics);
            }
        }
        resolved
    }
}

impl PassRule {
    fn resolved(&self) -> Value {
        let overrides: Vec<Value> = self
            .overrides
            .iter()
            .map(|part| {
                let mut value = plain(&part.settings.table);
                value["select"] = texts(&part.choices.select);
                value["skip"] = texts(&part.choices.skip);
                value["optional"] = json!(part.choices.optional);
                value
            })
            .collect();
        let table = self.merged(&[]);
        let mut value = (self.parse)(&table).map_or_else(|_| plain(&table), |settings| complete(&settings));
        value["use"] = json!(self.pass);
        value["select"] = texts(&self.choices.select);
        value["skip"] = texts(&self.choices.skip);
        value["optional"] = json!(self.choices.optional);
        if !overrides.is_empty() {
            value["override"] = Value::Array(overrides);
        }
        value
    }
}

fn texts(selectors: &[Located<Selector>]) -> Value {
    selectors.iter().map(|selector| selector.value.as_str()).collect()
}

/// All settings, defaults filled in.
pub(super) fn complete(settings: &Settings) -> Value {
    let value = match settings {
        Settings::Rtn(settings) => serde_json::to_value(settings),
        Settings::Gptq(settings) => serde_json::to_value(settings),
        Settings::SmoothQuant(settings) => serde_json::to_value(settings),
        Settings::SmoothQuantPlus(settings) => serde_json::to_value(settings),
        Settings::Awq(settings) => serde_json::to_value(settings),
        Settings::Mask(settings) => serde_json::to_value(settings),
        Settings::Pvq(settings) => serde_json::to_value(settings),
        Settings::Vptq(settings) => serde_json::to_value(settings),
        Settings::Rotate(settings) => serde_json::to_value(settings),
        Settings::BitDelta(settings) => serde_json::to_value(settings),
        Settings::Breadcrumbs(settings) => serde_json::to_value(settings),
        Settings::LowrankKv(settings) => serde_json::to_value(settings),
        Settings::TaylorMlp(settings) => serde_json::to_value(settings),
        Settings::Custom(settings) => Ok(settings.values().into()),
    };
    value.ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

/// Settings as written. Numbers are finite: reading checked them.
fn plain(table: &toml::Table) -> Value {
    serde_json::to_value(table).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}
