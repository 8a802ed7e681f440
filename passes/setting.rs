//! One key of a rule and what it says, typed.

use toml::{Table, Value};

use super::{SettingError, gptq::Order};

impl SettingError {
    /// An error about a key.
    #[must_use]
    pub fn new(key: &str, message: impl Into<String>) -> Self {
        Self { key: key.to_owned(), message: message.into() }
    }

    /// A key that the pass does not have.
    #[must_use]
    pub fn unknown(key: &str, pass: &str, keys: &[&str]) -> Self {
        Self::new(key, format!("`{pass}` has no such setting; it has {}", keys.join(", ")))
    }
}

/// Refuses keys that the pass does not have.
///
/// # Errors
/// [`SettingError`] naming the first of them.
pub fn known_keys(table: &Table, pass: &str, keys: &[&str]) -> Result<(), SettingError> {
    match table.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(SettingError::unknown(key, pass, keys)),
        None => Ok(()),
    }
}

/// A key and its value. What it is read as but is not, is a [`SettingError`] that says what was expected and what was
/// there.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The key.
    pub key: &'a str,
    /// Its value.
    pub value: &'a Value,
}

impl Setting<'_> {
    /// The error of a value that is something else.
    #[must_use]
    pub fn wrong(&self, expected: &str) -> SettingError {
        let got = match self.value {
            Value::Table(_) => "a table".to_owned(),
            other => other.to_string(),
        };
        SettingError::new(self.key, format!("expected {expected}, got {got}"))
    }

    /// True or false.
    pub fn switch(&self) -> Result<bool, SettingError> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    /// A whole number from `low` to `high`.
    pub fn whole(&self, low: u32, high: u32) -> Result<usize, SettingError> {
        let number = self.value.as_integer().filter(|number| (i64::from(low)..=i64::from(high)).contains(number));
        let number = number.and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| self.wrong(&format!("a whole number from {low} to {high}")))
    }

    /// A finite number that `good` accepts, whole or not.
    pub fn number(&self, expected: &str, good: impl Fn(f64) -> bool) -> Result<f64, SettingError> {
        let number = self.value.as_float().or_else(|| self.value.as_integer().map(|number| number as f64));
        number.filter(|number| number.is_finite() && good(*number)).ok_or_else(|| self.wrong(expected))
    }

    /// A number above zero, at most `most`.
    pub fn positive(&self, most: f64) -> Result<f64, SettingError> {
        self.number(&format!("a number above 0.0, at most {most:.1}"), |number| number > 0.0 && number <= most)
    }

    /// Bits per weight.
    pub fn bits(&self) -> Result<f64, SettingError> {
        self.number("bits per weight from 0.1 to 16.0", |bits| (0.1..=16.0).contains(&bits))
    }

    /// An order of columns.
    pub fn order(&self) -> Result<Order, SettingError> {
        let order = Order::ALL.into_iter().find(|order| self.value.as_str() == Some(order.name()));
        order.ok_or_else(|| self.wrong("\"conditional\", \"activation\" or \"none\""))
    }
}
