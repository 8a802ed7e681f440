//! Keys that these passes' settings share.

use toml::Table;

use super::FoldKind;
use crate::passes::{SettingError, setting::Setting};

/// A number that `good` accepts.
pub fn within(table: &Table, key: &str, what: &str, good: impl Fn(f64) -> bool) -> Result<Option<f64>, SettingError> {
    table.get(key).map(|value| Setting { key, value }.number(what, good)).transpose()
}

/// True or false.
pub fn switch(table: &Table, key: &str, default: bool) -> Result<bool, SettingError> {
    table.get(key).map_or(Ok(default), |value| Setting { key, value }.switch())
}

/// The list of folds, in canonical order, each once; all where the key is missing.
pub fn fold_kinds(table: &Table) -> Result<Vec<FoldKind>, SettingError> {
    let Some(value) = table.get("folds") else { return Ok(FoldKind::ALL.to_vec()) };
    let names: Vec<String> = FoldKind::ALL.iter().map(|kind| format!("{:?}", kind.name())).collect();
    let refuse = || Setting { key: "folds", value }.wrong(&format!("a list of some of {}", names.join(", ")));
    let mut kinds = Vec::new();
    for item in value.as_array().filter(|items| !items.is_empty()).ok_or_else(refuse)? {
        let kind = FoldKind::ALL.into_iter().find(|kind| item.as_str() == Some(kind.name())).ok_or_else(refuse)?;
        kinds.push(kind);
    }
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds)
}
