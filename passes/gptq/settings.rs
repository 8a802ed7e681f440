//! What a recipe may say about `gptq`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::Table;

use super::SolveOptions;
use crate::passes::{
    Kind, PassInfo, SettingError, Settings as AnySettings, rtn,
    setting::{Setting, known_keys},
};

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
    "zero",
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
        map.serialize_entry("order", self.solve.order.name())?;
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

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key, what was expected and what was there.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        known_keys(table, "gptq", KEYS)?;
        let mut number = table.clone();
        number.retain(|key, _| !OWN.contains(&key));
        let number = rtn::Settings::parse(&number)?;
        if let rtn::Number::KQuant { format } = number.number {
            let message =
                format!("`gptq` finds no codes of `{}`, whose scales are shared twice; use `rtn`", format.name());
            return Err(SettingError::new("format", message));
        }
        let mut solve = SolveOptions::default();
        if matches!(number.number, rtn::Number::Integer { bits: ..=3 }) {
            // The coarser the levels, the more there is left to gain.
            solve.refine_rounds += 1;
        }
        for (key, value) in table.iter().filter(|(key, _)| OWN.contains(&key.as_str())) {
            let setting = Setting { key, value };
            match setting.key {
                "asymmetric" => solve.drift_share = if setting.switch()? { solve.drift_share } else { 0.0 },
                "refine" => solve.refine = setting.switch()?,
                "block_size" => solve.block_size = setting.whole(1, 65536)?,
                "search_steps" => solve.search_steps = setting.whole(0, 1000)?,
                "refine_rounds" => solve.refine_rounds = setting.whole(1, 20)?,
                "sweeps" => solve.sweeps = setting.whole(1, 8)?,
                "damping" => solve.damping = setting.positive(10.0)?,
                _ => solve.order = setting.order()?,
            }
        }
        Ok(Self { number, solve })
    }
}
