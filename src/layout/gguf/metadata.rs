//! What the file says about the model, from `config.json`.

use serde_json::Value as Json;

use super::{names, rope::Rope, rows::HeadOrder};
use crate::checkpoint::gguf::Value;

/// Model types with their architecture in llama.cpp, and whether rows of queries and keys move.
const ARCHITECTURES: [(&str, &str, bool); 4] = [
    ("llama", "llama", true),
    ("mistral", "llama", true),
    ("qwen2", "qwen2", false),
    ("qwen3", "qwen3", false),
];

/// Architectures that files are read of, and whether their rows of queries and keys move.
pub(in crate::layout) fn moves_rows(architecture: &str) -> Option<bool> {
    ARCHITECTURES.iter().find(|(_, known, _)| *known == architecture).map(|&(.., moves)| moves)
}

/// A model that the layout can hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Model {
    architecture: &'static str,
    moves_rows: bool,
    name: String,
    blocks: u64,
    context: u64,
    hidden: u64,
    feed_forward: u64,
    heads: u64,
    kv_heads: u64,
    epsilon: f64,
    biases: bool,
    window: Option<u64>,
    pub head_dim: usize,
    pub vocabulary: usize,
    pub rope: Rope,
}

impl Model {
    /// Reads the configuration; the message says what is missing or cannot be written.
    pub(super) fn of(config: &Json) -> Result<Self, String> {
        let kind = config["model_type"].as_str().unwrap_or_default();
        let Some(&(_, architecture, moves_rows)) = ARCHITECTURES.iter().find(|(known, ..)| *known == kind) else {
            let known = ARCHITECTURES.map(|(known, ..)| known).join(", ");
            return Err(format!("layout `gguf` writes models of the types {known}; config.json says `{kind}`"));
        };
        let count = |key: &str| {
            let number = config[key].as_u64().filter(|number| (1..=u64::from(u32::MAX)).contains(number));
            number.ok_or_else(|| format!("layout `gguf` needs `{key}` of config.json, a number above 0"))
        };
        let optional = |key: &str| if config[key].is_null() { Ok(None) } else { count(key).map(Some) };
        let activation = config["hidden_act"].as_str().unwrap_or("silu");
        if activation != "silu" {
            return Err(format!("layout `gguf` cannot say that `hidden_act` is `{activation}`; runtimes take `silu`"));
        }
        let (hidden, heads) = (count("hidden_size")?, count("num_attention_heads")?);
        let head_dim = optional("head_dim")?.unwrap_or(hidden / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!("heads of {head_dim} outputs have no pairs to turn"));
        }
        let yes = |key: &str| config[key].as_bool().unwrap_or(false);
        let windowed = kind == "mistral" || yes("use_sliding_window");
        let architecture_name = config["architectures"][0].as_str().unwrap_or(kind);
        Ok(Self {
            architecture,
            moves_rows,
            name: architecture_name.to_owned(),
            blocks: count("num_hidden_layers")?,
            context: count("max_position_embeddings")?,
            hidden,
            feed_forward: count("intermediate_size")?,
            heads,
            kv_heads: optional("num_key_value_heads")?.unwrap_or(heads),
            epsilon: config["rms_norm_eps"].as_f64().unwrap_or(1e-6),
            biases: yes("attention_bias") || yes("mlp_bias"),
            window: optional("sliding_window")?.filter(|_| windowed),
            head_dim: head_dim as usize,
            vocabulary: count("vocab_size")? as usize,
            rope: Rope::of(config)?,
        })
    }

    /// The order of the rows of a tensor, where it is not the source's.
    pub(super) fn order(&self, name: &str) -> Option<HeadOrder> {
        (self.moves_rows && names::is_query_or_key(name)).then(|| HeadOrder::new(self.head_dim)).flatten()
    }

    /// What the file cannot say, or the readers known to us do not take from it.
    pub(super) fn lost(&self) -> Vec<String> {
        let mut lost = Vec::new();
        if let Some(window) = self.window.filter(|&window| window < self.context) {
            lost.push(format!(
                "a GGUF file cannot say that models of type `{}` attend to the last {window} tokens alone: runtimes \
                 attend to all",
                self.architecture
            ));
        }
        if self.biases {
            lost.push(format!(
                "readers may ignore the biases: nothing in a GGUF file says that a model of type `{}` has any",
                self.architecture
            ));
        }
        lost
    }

    /// The key-values.
    pub(super) fn entries(&self) -> Vec<(String, Value)> {
        let text = |text: &str| Value::Text(text.to_owned());
        let number = Value::Unsigned;
        let mut entries = vec![
            ("general.architecture".to_owned(), text(self.architecture)),
            ("general.name".to_owned(), text(&self.name)),
            ("general.quantization_version".to_owned(), number(2)),
        ];
        let mut own = vec![
            ("block_count", number(self.blocks)),
            ("context_length", number(self.context)),
            ("embedding_length", number(self.hidden)),
            ("feed_forward_length", number(self.feed_forward)),
            ("attention.head_count", number(self.heads)),
            ("attention.head_count_kv", number(self.kv_heads)),
            ("attention.key_length", number(self.head_dim as u64)),
            ("attention.value_length", number(self.head_dim as u64)),
            ("attention.layer_norm_rms_epsilon", Value::Float(self.epsilon)),
            ("vocab_size", number(self.vocabulary as u64)),
            ("rope.dimension_count", number(self.head_dim as u64)),
        ];
        own.extend(self.rope.entries());
        entries.extend(own.into_iter().map(|(key, value)| (format!("{}.{key}", self.architecture), value)));
        entries
    }
}
