//! What a recipe may say about `gptq`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::{Table, Value};

use super::{Order, SolveOptions};
use crate::passes::{Kind, PassInfo, SettingError, Settings as AnySettings, rtn};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "gptq",
    kind: Kind::Encoding,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse,
};

/// All keys, sorted: the solver's own, and those of `rtn` that fix the number format.
pub const KEYS: &[&str] = &[
    "activations",
    "asymmetric",
    "bits",
    "block",
    "block_columns",
    "block_rows",
    "block_size",
    "damping",
    "format",
    "granularity",
    "group_size",
    "order",
    "refine",
    "refine_rounds",
    "search_steps",
    "sweeps",
    "symmetric",
];

/// Keys that the solver reads; all others are `rtn`'s.
const OWN: &[&str] =
    &["asymmetric", "block_size", "damping", "order", "refine", "refine_rounds", "search_steps", "sweeps"];

/// Settings of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The number format, as `rtn` has it.
    pub number: rtn::Settings,
    /// How codes are found.
    pub solve: SolveOptions,
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = serde_json::to_value(&self.number).map_err(serde::ser::Error::custom)?;
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in number.as_object().into_iter().flatten().filter(|(key, _)| KEYS.contains(&key.as_str())) {
            map.serialize_entry(key, value)?;
        }
        map.serialize_entry("asymmetric", &(self.solve.drift_share > 0.0))?;
        map.serialize_entry("block_size", &self.solve.block_size)?;
        map.serialize_entry("damping", &self.solve.damping)?;
        let order = match self.solve.order {
            Order::None => "none",
            Order::Activation => "activation",
            Order::Conditional => "conditional",
        };
        map.serialize_entry("order", order)?;
        map.serialize_entry("refine", &self.solve.refine)?;
        map.serialize_entry("refine_rounds", &self.solve.refine_rounds)?;
        map.serialize_entry("search_steps", &self.solve.search_steps)?;
        map.serialize_entry("sweeps", &self.solve.sweeps)?;
        map.end()
    }
}

fn parse(table: &Table) -> Result<AnySettings, SettingError> {
    Settings::parse(table).map(AnySettings::Gptq)
}

fn wrong(key: &str, expected: &str, got: &Value) -> SettingError {
    SettingError { key: key.to_owned(), message: format!("expected {expected}, got {got}") }
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key, what was expected and what was there.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let message = format!("`gptq` has no such setting; it has {}", KEYS.join(", "));
            return Err(SettingError { key: key.clone(), message });
        }
        let mut number = table.clone();
        number.retain(|key, _| !OWN.contains(&key));
        let number = rtn::Settings::parse(&number)?;
        let mut solve = SolveOptions::default();
        if matches!(number.number, rtn::Number::Integer { bits: ..=3 }) {
            // The coarser the levels, the more there is left to gain.
            solve.refine_rounds += 1;
        }
        for (key, value) in table.iter().filter(|(key, _)| OWN.contains(&key.as_str())) {
            match (key.as_str(), value) {
                ("asymmetric", Value::Boolean(on)) => solve.drift_share = if *on { solve.drift_share } else { 0.0 },
                ("refine", Value::Boolean(on)) => solve.refine = *on,
                ("block_size", Value::Integer(size)) if (1..=65536).contains(size) => solve.block_size = *size as usize,
                ("search_steps", Value::Integer(steps)) if (0..=1000).contains(steps) => {
                    solve.search_steps = *steps as usize;
                }
                ("refine_rounds", Value::Integer(rounds)) if (1..=20).contains(rounds) => {
                    solve.refine_rounds = *rounds as usize;
                }
                ("sweeps", Value::Integer(sweeps)) if (1..=8).contains(sweeps) => solve.sweeps = *sweeps as usize,
                ("damping", Value::Float(share)) if *share > 0.0 && *share <= 10.0 => solve.damping = *share,
                ("damping", Value::Integer(share)) if (1..=10).contains(share) => solve.damping = *share as f64,
                ("order", Value::String(word)) if word == "conditional" => solve.order = Order::Conditional,
                ("order", Value::String(word)) if word == "activation" => solve.order = Order::Activation,
                ("order", Value::String(word)) if word == "none" => solve.order = Order::None,
                ("asymmetric" | "refine", _) => return Err(wrong(key, "true or false", value)),
                ("block_size", _) => return Err(wrong(key, "a whole number from 1 to 65536", value)),
                ("search_steps", _) => return Err(wrong(key, "a whole number from 0 to 1000", value)),
                ("refine_rounds", _) => return Err(wrong(key, "a whole number from 1 to 20", value)),
                ("sweeps", _) => return Err(wrong(key, "a whole number from 1 to 8", value)),
                ("damping", _) => return Err(wrong(key, "a number above 0.0, at most 10.0", value)),
                _ => return Err(wrong(key, "\"conditional\", \"activation\" or \"none\"", value)),
            }
        }
        Ok(Self { number, solve })
    }
}
