//! What a forward pass needs of `config.json`.

use serde_json::Value;

use super::ForwardError;

/// The language model's part of a config: the inner section of a multimodal model first, then the whole.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    root: &'a Value,
    text: &'a Value,
}

impl<'a> Config<'a> {
    /// The view of a parsed `config.json`.
    #[must_use]
    pub fn new(root: &'a Value) -> Self {
        let text =
            ["text_config", "llm_config", "language_config"].iter().map(|key| &root[*key]).find(|v| v.is_object());
        Self { root, text: text.unwrap_or(root) }
    }

    /// `model_type` of the language model.
    #[must_use]
    pub fn model_type(&self) -> &'a str {
        self.text["model_type"].as_str().or_else(|| self.root["model_type"].as_str()).unwrap_or("unknown")
    }

    /// The value under a key, absent where null.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        [self.text, self.root].into_iter().map(|section| &section[key]).find(|value| !value.is_null())
    }

    /// A whole number.
    pub fn count(&self, key: &str) -> Result<Option<usize>, ForwardError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
                Some(count) => Ok(Some(count)),
                None => Err(ForwardError::config(key, format!("is {value}, expected a whole number"))),
            },
        }
    }

    /// A positive whole number that must be there.
    pub fn needed(&self, key: &str) -> Result<usize, ForwardError> {
        match self.count(key)? {
            Some(count) if count > 0 => Ok(count),
            Some(_) => Err(ForwardError::config(key, "is 0, expected a positive whole number")),
            None => Err(ForwardError::config(key, "is missing, expected a positive whole number")),
        }
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, ForwardError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(ForwardError::config(key, format!("is {value}, expected a number"))),
            },
        }
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ForwardError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_bool() {
                Some(flag) => Ok(Some(flag)),
                None => Err(ForwardError::config(key, format!("is {value}, expected true or false"))),
            },
        }
    }

    /// A word.
    #[must_use]
    pub fn word(&self, key: &str) -> Option<&'a str> {
        self.value(key).and_then(Value::as_str)
    }
}
