//! Small random models of every architecture that has a reverse pass.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::forward::{ForwardError, Model, WeightSource};

/// Uniform numbers from −1 to 1, seeded.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(name: &str) -> Self {
        Self(
            name.bytes()
                .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)),
        )
    }

    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 11;
        bits as f64 / (1_u64 << 52) as f64 - 1.0
    }

    /// A whole number below `count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.next().abs() * count as f64) as usize % count
    }

    pub(crate) fn values(&mut self, count: usize, scale: f64) -> Vec<f64> {
        (0..count).map(|_| self.next() * scale).collect()
    }
}

/// Weights in memory.
#[derive(Clone, Default)]
pub(crate) struct Memory(pub(crate) BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl WeightSource for Memory {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|(shape, _)| shape.clone())
    }

    fn read(&self, name: &str, transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        let Some((shape, values)) = self.0.get(name) else {
            return Err(ForwardError::Tensor { tensor: name.to_owned(), problem: "is missing".to_owned() });
        };
        let [rows, columns] = [if shape.len() == 1 { 1 } else { shape[0] }, shape[shape.len() - 1]];
        let width = if transposed { rows } else { columns };
        for (index, out) in out.iter_mut().enumerate() {
            let (row, column) = (first_row + index / width, index % width);
            *out = if transposed { values[column * columns + row] } else { values[row * columns + column] };
        }
        Ok(())
    }
}

impl Memory {
    /// A weight whose outputs are about as large as its inputs.
    fn linear(&mut self, module: &str, rows: usize, columns: usize, transposed: bool, bias: bool) {
        let scale = (3.0 / columns as f64).sqrt();
        let shape = if transposed { vec![columns, rows] } else { vec![rows, columns] };
        self.insert(&format!("{module}.weight"), shape, 0.0, scale);
        if bias {
            self.insert(&format!("{module}.bias"), vec![rows], 0.0, 0.3);
        }
    }

    fn norm(&mut self, module: &str, width: usize, centre: f64, bias: bool) {
        self.insert(&format!("{module}.weight"), vec![width], centre, 0.4);
        if bias {
            self.insert(&format!("{module}.bias"), vec![width], 0.0, 0.3);
        }
    }

    fn insert(&mut self, name: &str, shape: Vec<usize>, centre: f64, scale: f64) {
        let values = Noise::new(name).values(shape.iter().product(), scale);
        self.0.insert(name.to_owned(), (shape, values.iter().map(|value| (value + centre) as f32).collect()));
    }
}

pub(crate) const HIDDEN: usize = 16;
pub(crate) const VOCABULARY: usize = 40;
pub(crate) const BLOCKS: usize = 2;
const INNER: usize = 24;

/// Every architecture with a reverse pass, and variants that reach what no architecture of theirs has.
pub(super) const KINDS: [&str; 12] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "opt",
    "opt-post-norm",
    "gpt2",
    "sinks",
];

/// A model of `kind` and its weights.
pub(crate) fn model(kind: &str) -> (Model, Memory) {
    let (config, memory) = match kind {
        "opt" | "opt-post-norm" => opt(kind == "opt"),
        "gpt2" => gpt2(),
        _ => decoder(kind),
    };
    (Model::new(Some(&config), &memory).unwrap(), memory)
}

fn decoder(kind: &str) -> (Value, Memory) {
    let mut memory = Memory::default();
    let (heads, key_heads, width) = (4, 2, 6);
    let (gemma, sandwich) = (kind.starts_with("gemma"), matches!(kind, "gemma2" | "gemma3"));
    let centre = if gemma { 0.0 } else { 1.0 };
    let (query, key) = (heads * width, key_heads * width);
    for block in 0..BLOCKS {
        let name = format!("model.layers.{block}.");
        let attention = format!("{name}self_attn.");
        if kind == "phi3" {
            memory.linear(&format!("{attention}qkv_proj"), query + 2 * key, HIDDEN, false, false);
            memory.linear(&format!("{name}mlp.gate_up_proj"), 2 * INNER, HIDDEN, false, false);
        } else {
            for (part, rows) in [("q", query), ("k", key), ("v", key)] {
                memory.linear(&format!("{attention}{part}_proj"), rows, HIDDEN, false, kind == "qwen2");
            }
            memory.linear(&format!("{name}mlp.gate_proj"), INNER, HIDDEN, false, false);
            memory.linear(&format!("{name}mlp.up_proj"), INNER, HIDDEN, false, false);
        }
        memory.linear(&format!("{attention}o_proj"), HIDDEN, query, false, false);
        memory.linear(&format!("{name}mlp.down_proj"), HIDDEN, INNER, false, false);
        let norms: &[&str] = if sandwich {
            &["input", "post_attention", "pre_feedforward", "post_feedforward"]
        } else {
            &["input", "post_attention"]
        };
        for norm in norms {
            memory.norm(&format!("{name}{norm}_layernorm"), HIDDEN, centre, false);
        }
        if matches!(kind, "qwen3" | "gemma3") {
            memory.norm(&format!("{attention}q_norm"), width, centre, false);
            memory.norm(&format!("{attention}k_norm"), width, centre, false);
        }
        if kind == "sinks" {
            memory.insert(&format!("{attention}sinks"), vec![heads], 0.5, 1.0);
        }
    }
    memory.insert("model.embed_tokens.weight", vec![VOCABULARY, HIDDEN], 0.0, 1.0);
    memory.norm("model.norm", HIDDEN, centre, false);
    if !gemma {
        memory.insert("lm_head.weight", vec![VOCABULARY, HIDDEN], 0.0, 0.6);
    }
    let mut config = json!({
        "model_type": if kind == "sinks" { "llama" } else { kind },
        "num_hidden_layers": BLOCKS, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "head_dim": width, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "rope_theta": 100.0
    });
    let extra = match kind {
        "mistral" => json!({"sliding_window": 4}),
        "gemma2" => json!({"sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 5}),
        "gemma3" => json!({"sliding_window": 5, "sliding_window_pattern": 2, "rope_local_base_freq": 50.0,
            "query_pre_attn_scalar": 5}),
        "phi3" => json!({"partial_rotary_factor": 0.67}),
        _ => json!({}),
    };
    for (key, value) in extra.as_object().unwrap() {
        config[key] = value.clone();
    }
    (config, memory)
}

fn opt(norm_before: bool) -> (Value, Memory) {
    let mut memory = Memory::default();
    for block in 0..BLOCKS {
        let name = format!("model.decoder.layers.{block}.");
        for part in ["q", "k", "v", "out"] {
            memory.linear(&format!("{name}self_attn.{part}_proj"), HIDDEN, HIDDEN, false, true);
        }
        memory.linear(&format!("{name}fc1"), INNER, HIDDEN, false, true);
        memory.linear(&format!("{name}fc2"), HIDDEN, INNER, false, true);
        memory.norm(&format!("{name}self_attn_layer_norm"), HIDDEN, 1.0, true);
        memory.norm(&format!("{name}final_layer_norm"), HIDDEN, 1.0, true);
    }
    let narrow = HIDDEN / 2;
    memory.insert("model.decoder.embed_tokens.weight", vec![VOCABULARY, narrow], 0.0, 1.0);
    memory.insert("model.decoder.embed_positions.weight", vec![130, HIDDEN], 0.0, 0.5);
    memory.linear("model.decoder.project_in", HIDDEN, narrow, false, false);
    memory.linear("model.decoder.project_out", narrow, HIDDEN, false, false);
    memory.norm("model.decoder.final_layer_norm", HIDDEN, 1.0, true);
    let config = json!({
        "model_type": "opt", "num_hidden_layers": BLOCKS, "hidden_size": HIDDEN, "ffn_dim": INNER,
        "num_attention_heads": 2, "vocab_size": VOCABULARY, "do_layer_norm_before": norm_before,
        "word_embed_proj_dim": narrow, "max_position_embeddings": 128, "activation_function": "relu"
    });
    (config, memory)
}

fn gpt2() -> (Value, Memory) {
    let mut memory = Memory::default();
    for block in 0..BLOCKS {
        let name = format!("transformer.h.{block}.");
        memory.linear(&format!("{name}attn.c_attn"), 3 * HIDDEN, HIDDEN, true, true);
        memory.linear(&format!("{name}attn.c_proj"), HIDDEN, HIDDEN, true, true);
        memory.linear(&format!("{name}mlp.c_fc"), 4 * HIDDEN, HIDDEN, true, true);
        memory.linear(&format!("{name}mlp.c_proj"), HIDDEN, 4 * HIDDEN, true, true);
        memory.norm(&format!("{name}ln_1"), HIDDEN, 1.0, true);
        memory.norm(&format!("{name}ln_2"), HIDDEN, 1.0, true);
    }
    memory.insert("transformer.wte.weight", vec![VOCABULARY, HIDDEN], 0.0, 1.0);
    memory.insert("transformer.wpe.weight", vec![128, HIDDEN], 0.0, 0.5);
    memory.norm("transformer.ln_f", HIDDEN, 1.0, true);
    let config = json!({
        "model_type": "gpt2", "n_layer": BLOCKS, "n_embd": HIDDEN, "n_head": 4, "vocab_size": VOCABULARY,
        "n_positions": 128, "layer_norm_epsilon": 1e-5
    });
    (config, memory)
}
