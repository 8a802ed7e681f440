//! Reads what the map needs of `config.json`, and nothing else of it. Every value is checked; a wrong one becomes a
//! note and counts as absent.

use serde_json::{Map, Value};

/// Keys under which wrappers keep the language model's own config.
const TEXT_CONFIGS: &[&str] = &["text_config", "llm_config", "language_config"];

/// The config as the map reads it: the language model's own object first, then the whole model's.
#[derive(Debug, Default)]
pub(super) struct ConfigView<'a> {
    root: Option<&'a Map<String, Value>>,
    text: Option<&'a Map<String, Value>>,
    /// What was wrong with it.
    pub(super) notes: Vec<String>,
}

impl<'a> ConfigView<'a> {
    pub(super) fn new(config: Option<&'a Value>) -> Self {
        let root = config.and_then(Value::as_object);
        let text = root.and_then(|root| TEXT_CONFIGS.iter().find_map(|key| root.get(*key)?.as_object()));
        let mut notes = Vec::new();
        if config.is_some() && root.is_none() {
            notes.push("config.json is not an object: nothing of it was used".to_owned());
        }
        Self { root, text, notes }
    }

    /// Whether there is a config at all.
    pub(super) fn is_present(&self) -> bool {
        self.root.is_some()
    }

    /// `architectures[0]`, or `model_type`, or `unknown`.
    pub(super) fn architecture(&self) -> String {
        class(self.root).or_else(|| model_type(self.root)).unwrap_or("unknown").to_owned()
    }

    /// The words by which the language model's architecture can be recognised, the most telling first. A language
    /// model inside another that names its own type is recognised by that alone.
    pub(super) fn identities(&self) -> Vec<&'a str> {
        let own: Vec<_> = [model_type(self.text), class(self.text)].into_iter().flatten().collect();
        if own.is_empty() { [model_type(self.root), class(self.root)].into_iter().flatten().collect() } else { own }
    }

    /// A positive whole number under the first of these keys that is there.
    pub(super) fn count(&mut self, keys: &[&str]) -> Option<usize> {
        for key in keys {
            let Some(value) = self.value(key) else { continue };
            let count = value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
            if count.is_none() {
                self.note(format!(
                    "config.json: `{key}` is {}, expected a positive whole number; not used",
                    show(value)
                ));
            }
            return count;
        }
        None
    }

    /// True or false under this key.
    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.value(key)?;
        if value.as_bool().is_none() {
            self.note(format!("config.json: `{key}` is {}, expected true or false; not used", show(value)));
        }
        value.as_bool()
    }

    /// `tie_word_embeddings`: true when either the wrapper or the language model inside says so, as transformers reads
    /// it (older files keep it in the inner config and the outer default says false).
    pub(super) fn tied(&mut self) -> Option<bool> {
        let key = "tie_word_embeddings";
        let outer = self.root.and_then(|root| root.get(key)).and_then(Value::as_bool);
        if outer == Some(true) { outer } else { self.flag(key).or(outer) }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        let value = |object: Option<&'a Map<String, Value>>| object?.get(key).filter(|value| !value.is_null());
        value(self.text).or_else(|| value(self.root))
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

fn model_type(config: Option<&Map<String, Value>>) -> Option<&str> {
    config?.get("model_type")?.as_str().filter(|text| !text.is_empty())
}

fn class(config: Option<&Map<String, Value>>) -> Option<&str> {
    config?.get("architectures")?.as_array()?.first()?.as_str().filter(|text| !text.is_empty())
}

/// A value as a message shows it: short.
fn show(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        value => value.to_string().chars().take(40).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_values_are_noted_once_and_not_used() {
        for wrong in
            [json!(0), json!(-3), json!(1.5), json!("8"), json!([8]), json!({"a": 8}), json!(1e300), json!(true)]
        {
            let config = json!({"num_attention_heads": wrong});
            let mut view = ConfigView::new(Some(&config));
            assert_eq!(view.count(&["num_attention_heads"]), None, "{wrong}");
            assert_eq!(view.count(&["num_attention_heads"]), None, "{wrong}");
            assert_eq!(view.notes.len(), 1, "{wrong}: {:?}", view.notes);
            assert!(view.notes[0].contains("`num_attention_heads`"), "{:?}", view.notes);
        }
        let config = json!({"num_attention_heads": null});
        let mut view = ConfigView::new(Some(&config));
        assert_eq!(view.count(&["num_attention_heads"]), None);
        assert_eq!(view.notes, Vec::<String>::new(), "null is absent, not wrong");
    }

    #[test]
    fn the_inner_config_goes_first() {
        let config = json!({"model_type": "wrapper", "hidden_size": 1, "vocab_size": 7, "architectures": ["Outer"],
            "text_config": {"model_type": "llama", "hidden_size": 2}});
        let mut view = ConfigView::new(Some(&config));
        assert_eq!((view.count(&["hidden_size"]), view.count(&["vocab_size"])), (Some(2), Some(7)));
        assert_eq!(view.identities(), ["llama"]);
        assert_eq!(view.architecture(), "Outer");
    }

    #[test]
    fn either_config_can_tie_the_embeddings() {
        for (config, tied) in [
            (json!({}), None),
            (json!({"tie_word_embeddings": false}), Some(false)),
            (json!({"tie_word_embeddings": false, "text_config": {"tie_word_embeddings": true}}), Some(true)),
            (json!({"tie_word_embeddings": true, "text_config": {"tie_word_embeddings": false}}), Some(true)),
            (json!({"tie_word_embeddings": "yes"}), None),
        ] {
            assert_eq!(ConfigView::new(Some(&config)).tied(), tied, "{config}");
        }
    }

    #[test]
    fn a_config_that_is_no_object_is_noted() {
        for config in [json!(null), json!([1]), json!("x"), json!({"architectures": 3, "model_type": []})] {
            let view = ConfigView::new(Some(&config));
            assert_eq!(view.architecture(), "unknown");
            assert_eq!(view.notes.len(), usize::from(!config.is_object()));
        }
    }
}
