//! Rotation: weights are stored as W' = `Q_out` W `Q_inᵀ`, where randomized Hadamard matrices Q spread what stands out over
//! all weights of a row or column; reading undoes it.
//!
//! Chee et al., "`QuIP`: 2-Bit Quantization of Large Language Models With Guarantees" (arXiv 2307.13304), §4, incoherence
//! processing; with Hadamard matrices as in `QuIP#` (arXiv 2402.04396), §3. Q is orthogonal, so errors keep their size:
//! ‖Ŵ' − W'‖ = ‖Ŵ − W‖, and `tr(ΔW' H' ΔW'ᵀ) = tr(ΔW H ΔWᵀ)` for H' = `Q_in` H `Q_inᵀ`.

use serde::Serialize;
use toml::{Table, Value};

use super::{Kind, PassInfo, SettingError, Settings as AnySettings};
use crate::codec::Rotations;

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "rotate",
    kind: Kind::Transform,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse: |table| Settings::parse(table).map(AnySettings::Rotate),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &["inputs", "outputs"];

/// Settings of `rotate`, every default filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Whether inputs (columns) are rotated.
    pub inputs: bool,
    /// Whether outputs (rows) are rotated.
    pub outputs: bool,
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        let mut settings = Self { inputs: true, outputs: false };
        for (key, value) in table {
            let on = match value {
                Value::Boolean(on) => *on,
                _ if KEYS.contains(&key.as_str()) => {
                    let message = format!("expected true or false, got {value}");
                    return Err(SettingError { key: key.clone(), message });
                }
                _ => false,
            };
            match key.as_str() {
                "inputs" => settings.inputs = on,
                "outputs" => settings.outputs = on,
                _ => {
                    let message = format!("`rotate` has no such setting; it has {}", KEYS.join(", "));
                    return Err(SettingError { key: key.clone(), message });
                }
            }
        }
        if !settings.inputs && !settings.outputs {
            let message = "rotates nothing: `inputs` and `outputs` are both false; leave the pass out".to_owned();
            return Err(SettingError { key: "inputs".to_owned(), message });
        }
        Ok(settings)
    }

    /// What is stored, with this seed.
    #[must_use]
    pub fn rotations(&self, seed: u64) -> Rotations {
        Rotations { seed, inputs: self.inputs, outputs: self.outputs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingError> {
        Settings::parse(&text.parse().unwrap())
    }

    #[test]
    fn settings_are_typed_and_complete() {
        assert_eq!(parse(""), Ok(Settings { inputs: true, outputs: false }));
        assert_eq!(parse("outputs = true"), Ok(Settings { inputs: true, outputs: true }));
        for (text, key) in [("inputs = 1", "inputs"), ("input = true", "input"), ("inputs = false", "inputs")] {
            assert_eq!(parse(text).unwrap_err().key, key, "{text}");
        }
    }
}
