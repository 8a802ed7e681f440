//! Keys that these passes' settings share.

use toml::{Table, Value};

use super::FoldKind;
use crate::passes::SettingError;

fn wrong(key: &str, expected: &str, got: &Value) -> SettingError {
    let got = match got {
        Value::Table(_) => "a table".to_owned(),
        other => other.to_string(),
    };
    SettingError { key: key.to_owned(), message: format!("expected {expected}, got {got}") }
}

/// Refuses keys that the pass does not have.
pub fn known_keys(table: &Table, pass: &str, keys: &[&str]) -> Result<(), SettingError> {
    match table.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(SettingError {
            key: key.clone(),
            message: format!("`{pass}` has no such setting; it has {}", keys.join(", ")),
        }),
        None => Ok(()),
    }
}

/// A number that `good` accepts.
pub fn within(table: &Table, key: &str, what: &str, good: impl Fn(f64) -> bool) -> Result<Option<f64>, SettingError> {
    let Some(value) = table.get(key) else { return Ok(None) };
    let number = match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    };
    match number.filter(|number| number.is_finite() && good(*number)) {
        Some(number) => Ok(Some(number)),
        None => Err(wrong(key, what, value)),
    }
}

/// True or false.
pub fn switch(table: &Table, key: &str, default: bool) -> Result<bool, SettingError> {
    match table.get(key) {
        None => Ok(default),
        Some(Value::Boolean(value)) => Ok(*value),
        Some(value) => Err(wrong(key, "true or false", value)),
    }
}

/// The list of folds, in canonical order, each once; all where the key is missing.
pub fn fold_kinds(table: &Table) -> Result<Vec<FoldKind>, SettingError> {
    let Some(value) = table.get("folds") else { return Ok(FoldKind::ALL.to_vec()) };
    let names: Vec<String> = FoldKind::ALL.iter().map(|kind| format!("{:?}", kind.name())).collect();
    let refuse = || wrong("folds", &format!("a list of some of {}", names.join(", ")), value);
    let mut kinds = Vec::new();
    for item in value.as_array().filter(|items| !items.is_empty()).ok_or_else(refuse)? {
        let kind = FoldKind::ALL.into_iter().find(|kind| item.as_str() == Some(kind.name())).ok_or_else(refuse)?;
        kinds.push(kind);
    }
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds)
}
