//! How the weights of one module are quantized, from the config group whose targets it matches.

use serde_json::Value;

use super::super::{super::LayoutError, config::QuantizationConfig};

/// The `weights` of a config group.
pub(super) struct Weights {
    /// Width of a code.
    pub bits: u8,
    /// FP codes rather than integers.
    pub float: bool,
    /// `tensor`, `channel`, `group`, `tensor_group`, `block`.
    pub strategy: String,
    /// Columns of a group, above 0.
    pub group_size: Option<usize>,
    /// Rows and columns of a block, above 0.
    pub block: Option<[usize; 2]>,
    /// Whether there are no zero points.
    pub symmetric: bool,
    /// Dotted path in the config, for messages.
    path: String,
}

impl Weights {
    /// Those of a module; an error where the config has none for it.
    pub(super) fn of(config: &QuantizationConfig, module: &str, tensor: &str) -> Result<Self, LayoutError> {
        Self::optional(config, module, tensor)?
            .ok_or_else(|| config.needed("config_groups", tensor, "a group whose targets match its module"))
    }

    /// Those of a module; `None` where the config has no groups at all.
    pub(super) fn optional(
        config: &QuantizationConfig,
        module: &str,
        tensor: &str,
    ) -> Result<Option<Self>, LayoutError> {
        let Some(groups) = config.value["config_groups"].as_object() else { return Ok(None) };
        let quantizing: Vec<_> = groups.iter().filter(|(_, group)| group["weights"].is_object()).collect();
        let targets = |group: &Value, matches: &dyn Fn(&str) -> bool| {
            group["targets"].as_array().is_some_and(|list| list.iter().filter_map(Value::as_str).any(matches))
        };
        // A name or pattern is closer than a class of modules, and one group needs no match.
        let by_name = quantizing.iter().find(|(_, group)| targets(group, &|target| names(target, module)));
        let by_class = quantizing.iter().find(|(_, group)| targets(group, &is_class));
        let only = if quantizing.len() == 1 { quantizing.first() } else { None };
        match by_name.or(by_class).or(only) {
            Some((name, group)) => Self::parse(name, &group["weights"]).map(Some),
            None => Err(config.needed("config_groups", tensor, "a group whose targets match its module")),
        }
    }

    fn parse(group: &str, value: &Value) -> Result<Self, LayoutError> {
        let path = format!("config_groups.{group}.weights");
        let positive = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        let group_size = positive(&value["group_size"]);
        let block = match &value["block_structure"] {
            Value::Array(sizes) if sizes.len() == 2 => positive(&sizes[0]).zip(positive(&sizes[1])),
            // As files of old versions have it: "128x128".
            Value::String(text) => text.split_once('x').and_then(|(rows, columns)| {
                let parse = |text: &str| text.parse().ok().filter(|&size: &usize| size > 0);
                parse(rows).zip(parse(columns))
            }),
            _ => None,
        };
        // Left out, the strategy follows from the group size.
        let default = if group_size.is_some() { "group" } else { "tensor" };
        let bits = value["num_bits"].as_u64().unwrap_or(8);
        Ok(Self {
            bits: u8::try_from(bits).map_err(|_| LayoutError::Config {
                key: format!("{path}.num_bits"),
                message: format!("is {bits}; expected 2 to 8"),
            })?,
            float: value["type"].as_str() == Some("float"),
            strategy: value["strategy"].as_str().unwrap_or(default).to_owned(),
            group_size,
            block: block.map(|(rows, columns)| [rows, columns]),
            symmetric: value["symmetric"].as_bool().unwrap_or(true),
            path,
        })
    }

    /// The error for a key that is absent or has a value that this format cannot have.
    pub(super) fn missing(&self, key: &str) -> LayoutError {
        let got = match key {
            "num_bits" => format!("is {} ({})", self.bits, if self.float { "float" } else { "int" }),
            "strategy" => format!("is `{}`", self.strategy),
            _ => "is missing".to_owned(),
        };
        let expected = match key {
            "num_bits" => "integers of 2 to 8 bits for words of packed codes",
            "strategy" => "tensor, channel, group, tensor_group or block",
            "block_structure" => "two numbers above 0 for strategy block",
            _ => "a number above 0 for strategy group",
        };
        LayoutError::Config { key: format!("{}.{key}", self.path), message: format!("{got}; expected {expected}") }
    }
}

/// Whether a target is this module's name or a pattern that matches from its start.
fn names(target: &str, module: &str) -> bool {
    match target.strip_prefix("re:") {
        // A pattern in a dialect that cannot be compiled here matches nothing; a class or a lone group may still serve.
        Some(pattern) => regex::Regex::new(&format!("^(?:{pattern})")).is_ok_and(|pattern| pattern.is_match(module)),
        None => target == module,
    }
}

/// Whether a target is the name of a class of modules: a bare word in capitals, as in `Linear`.
fn is_class(target: &str) -> bool {
    target.starts_with(|first: char| first.is_ascii_uppercase()) && !target.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_match_as_names_patterns_and_classes() {
        assert!(names("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"));
        assert!(!names("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj2"));
        assert!(names("re:.*up_proj$", "model.layers.0.mlp.up_proj"));
        assert!(!names("re:layers", "model.layers.0"), "patterns match from the start");
        assert!(!names("re:(?!x", "x"));
        assert!(is_class("Linear") && !is_class("lm_head") && !is_class("model.Linear"));
    }
}
