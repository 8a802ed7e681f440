//! How figures are written on a page.

use crate::cli::ByteSize;

/// What stands where there is no figure.
pub(super) const NONE: &str = "–";

/// Three significant digits without zeros at the end, as marks of axes have them.
pub(super) fn figure(value: f64) -> String {
    let text = three_digits(value);
    let plain = text.contains('.') && !text.contains('e');
    if plain { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Three significant digits.
pub(super) fn three_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return if value.is_nan() { NONE.to_owned() } else { "∞".to_owned() };
    }
    let magnitude = value.abs();
    if !(1e-4..1e6).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let decimals = (2 - magnitude.log10().floor() as i32).max(0) as usize;
    format!("{value:.decimals$}")
}

/// A share as percent: `11.0 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", three_digits(100.0 * share))
}

/// Relative errors below this are written as they are, not as percent.
pub(super) const TINY: f64 = 1e-5;

/// A relative error: as percent, `exact`, or with an exponent where it is tiny.
pub(super) fn relative(error: f64) -> String {
    match error {
        0.0 => "exact".to_owned(),
        tiny if tiny < TINY => format!("{tiny:.2e}"),
        error => percent(error),
    }
}

/// A signal-to-noise ratio: `18.92 dB`, `exact`, `−∞ dB`.
pub(super) fn decibels(relative: f64, snr_db: Option<f64>) -> String {
    let text = crate::cli::table::decibels(relative, snr_db);
    if relative == 0.0 { text } else { format!("{text} dB") }
}

/// A number of bytes: `3.73 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Bits per weight: `4.126`.
pub(super) fn bits(bits: f64) -> String {
    format!("{bits:.3}")
}

/// A figure with its standard error, in so many decimals; a dash where there is none.
pub(super) fn with_error(value: Option<f64>, error: Option<f64>, decimals: usize) -> String {
    match (value, error) {
        (None, _) => NONE.to_owned(),
        (Some(value), None) => format!("{value:.decimals$}"),
        (Some(value), Some(error)) => format!("{value:.decimals$} ± {error:.decimals$}"),
    }
}

/// A recipe as TOML; as JSON where TOML cannot hold it.
pub(super) fn recipe(recipe: &serde_json::Value) -> String {
    let json = || serde_json::to_string_pretty(recipe).unwrap_or_default();
    toml::Table::try_from(without_nulls(recipe))
        .ok()
        .and_then(|table| toml::to_string(&table).ok())
        .unwrap_or_else(json)
}

/// TOML has no null: what is null is left out.
fn without_nulls(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => items.iter().filter(|item| !item.is_null()).map(without_nulls).collect(),
        value => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{decibels, figure, percent, recipe, relative, with_error};

    #[test]
    fn figures_have_three_digits() {
        let cases = [
            (0.113_46, "0.113"),
            (11.0, "11"),
            (123_456.0, "123456"),
            (0.99996, "1"),
            (-0.05, "-0.05"),
            (0.0, "0"),
            (1.5e-7, "1.50e-7"),
            (f64::INFINITY, "∞"),
        ];
        for (value, text) in cases {
            assert_eq!(figure(value), text);
        }
        assert_eq!((percent(0.1104).as_str(), relative(0.0).as_str()), ("11.0 %", "exact"));
        assert_eq!((relative(6.59e-9).as_str(), relative(f64::INFINITY).as_str()), ("6.59e-9", "∞ %"));
        assert_eq!(decibels(0.1, Some(20.0)), "20.00 dB");
        assert_eq!(with_error(Some(8.9), Some(0.6), 2), "8.90 ± 0.60");
    }

    #[test]
    fn a_recipe_comes_back_as_it_was_but_for_nulls() {
        let value = json!({"schema": 1, "input": {"x": null, "y": "a\"b"}, "pass": [{"use": "rtn", "bits": 4}]});
        let read: toml::Table = recipe(&value).parse().unwrap();
        let expected = json!({"schema": 1, "input": {"y": "a\"b"}, "pass": [{"use": "rtn", "bits": 4}]});
        assert_eq!(serde_json::to_value(read).unwrap(), expected);
    }
}
