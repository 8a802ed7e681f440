//! Blocks of every architecture on the device against the same here.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Stages, Trouble};
use crate::{
    compute::{
        Choice, Device, SharedDevice,
        kernels::testing::{SMALL_BINDING, devices},
        tests::fixtures,
    },
    forward::{Block, ForwardError, InputFormat, Kind, Limits, Linear, Matrix, Model, State, WeightSource},
};

/// Largest difference of a hidden state behind a block, as a share of the largest one: two F32 sums in different orders, of
/// up to three hundred terms each, five products one behind the other. Mesa's software adapter: at most 7.3e-7.
const TOLERANCE: f64 = 3e-6;
/// The same where codes of rounded inputs may fall to either side of a middle: one step of 8 bits of one input.
const ROUNDED_TOLERANCE: f64 = 2e-2;

/// Random weights by name and shape, so that a model needs no more than a list of its tensors.
#[derive(Default)]
struct Memory {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    activations: InputFormat,
}

impl Memory {
    fn add(&mut self, name: &str, shape: &[usize], scale: f32, offset: f32) {
        let mut state = name.bytes().fold(17_u64, |state, byte| state.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            offset + scale * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        let values = (0..shape.iter().product()).map(|_| next()).collect();
        self.tensors.insert(name.to_owned(), (shape.to_vec(), values));
    }

    fn linear(&mut self, module: &str, shape: [usize; 2], bias: bool) {
        self.add(&format!("{module}.weight"), &shape, 0.3, 0.0);
        if bias {
            self.add(&format!("{module}.bias"), &[shape[0]], 0.5, 0.1);
        }
    }

    fn norm(&mut self, name: &str, width: usize, bias: bool) {
        self.add(&format!("{name}.weight"), &[width], 0.5, 0.8);
        if bias {
            self.add(&format!("{name}.bias"), &[width], 0.3, 0.0);
        }
    }
}

impl WeightSource for Memory {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|(shape, _)| shape.clone())
    }

    fn read(&self, name: &str, transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        let (shape, values) = &self.tensors[name];
        let columns = shape[shape.len() - 1];
        if !transposed {
            out.copy_from_slice(&values[first_row * columns..][..out.len()]);
            return Ok(());
        }
        // Of two dimensions, or of a stack read from the beginning of one of its matrices.
        let rows = shape[shape.len() - 2];
        for (index, out) in out.iter_mut().enumerate() {
            let index = first_row * rows + index;
            let (matrix, place) = (index / (rows * columns), index % (rows * columns));
            *out = values[matrix * rows * columns + place % rows * columns + place / rows];
        }
        Ok(())
    }

    fn activations(&self, _weight: &str) -> InputFormat {
        self.activations
    }
}

const HIDDEN: usize = 36;
const WIDTH: usize = 52;
const HEAD: usize = 12;

fn decoder(biases: bool, head_norms: bool) -> Memory {
    let mut memory = Memory::default();
    memory.add("model.embed_tokens.weight", &[7, HIDDEN], 1.0, 0.0);
    memory.norm("model.norm", HIDDEN, false);
    let layer = "model.layers.0";
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        memory.norm(&format!("{layer}.{norm}"), HIDDEN, false);
    }
    for (part, rows) in [("q_proj", 4 * HEAD), ("k_proj", 2 * HEAD), ("v_proj", 2 * HEAD)] {
        memory.linear(&format!("{layer}.self_attn.{part}"), [rows, HIDDEN], biases);
    }
    memory.linear(&format!("{layer}.self_attn.o_proj"), [HIDDEN, 4 * HEAD], biases);
    if head_norms {
        memory.norm(&format!("{layer}.self_attn.q_norm"), HEAD, false);
        memory.norm(&format!("{layer}.self_attn.k_norm"), HEAD, false);
    }
    memory
}

fn mlp(memory: &mut Memory, module: &str) {
    memory.linear(&format!("{module}.gate_proj"), [WIDTH, HIDDEN], false);
    memory.linear(&format!("{module}.up_proj"), [WIDTH, HIDDEN], false);
    memory.linear(&format!("{module}.down_proj"), [HIDDEN, WIDTH], false);
}

fn config(model_type: &str, more: &Value) -> Value {
    let mut config = json!({"model_type": model_type, "hidden_size": HIDDEN, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": HEAD, "num_hidden_layers": 1, "intermediate_size": WIDTH,
        "rms_norm_eps": 1e-6});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn dense(model_type: &str, biases: bool, head_norms: bool, more: &Value) -> (Value, Memory) {
    let mut memory = decoder(biases, head_norms);
    mlp(&mut memory, "model.layers.0.mlp");
    (config(model_type, more), memory)
}

fn sandwich(model_type: &str, more: &Value) -> (Value, Memory) {
    let (config, mut memory) = dense(model_type, false, model_type == "gemma3", more);
    for norm in ["pre_feedforward_layernorm", "post_feedforward_layernorm"] {
        memory.norm(&format!("model.layers.0.{norm}"), HIDDEN, false);
    }
    (config, memory)
}

fn phi3() -> (Value, Memory) {
    let mut memory = decoder(false, false);
    memory.linear("model.layers.0.self_attn.qkv_proj", [8 * HEAD, HIDDEN], false);
    memory.linear("model.layers.0.mlp.gate_up_proj", [2 * WIDTH, HIDDEN], false);
    memory.linear("model.layers.0.mlp.down_proj", [HIDDEN, WIDTH], false);
    (config("phi3", &json!({"sliding_window": 5})), memory)
}

fn opt(before: bool) -> (Value, Memory) {
    let mut memory = Memory::default();
    memory.add("model.decoder.embed_tokens.weight", &[7, HIDDEN], 1.0, 0.0);
    memory.norm("model.decoder.final_layer_norm", HIDDEN, true);
    let layer = "model.decoder.layers.0";
    for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        memory.linear(&format!("{layer}.self_attn.{part}"), [HIDDEN, HIDDEN], true);
    }
    memory.linear(&format!("{layer}.fc1"), [WIDTH, HIDDEN], true);
    memory.linear(&format!("{layer}.fc2"), [HIDDEN, WIDTH], true);
    for part in ["self_attn_layer_norm", "final_layer_norm"] {
        memory.norm(&format!("{layer}.{part}"), HIDDEN, true);
    }
    let more = json!({"ffn_dim": WIDTH, "activation_function": "relu", "do_layer_norm_before": before});
    (config("opt", &more), memory)
}

fn gpt2() -> (Value, Memory) {
    let mut memory = Memory::default();
    memory.add("wte.weight", &[7, HIDDEN], 1.0, 0.0);
    memory.norm("ln_f", HIDDEN, true);
    for (part, rows, columns) in [
        ("attn.c_attn", 3 * HIDDEN, HIDDEN),
        ("attn.c_proj", HIDDEN, HIDDEN),
        ("mlp.c_fc", 4 * HIDDEN, HIDDEN),
        ("mlp.c_proj", HIDDEN, 4 * HIDDEN),
    ] {
        memory.add(&format!("h.0.{part}.weight"), &[columns, rows], 0.3, 0.0);
        memory.add(&format!("h.0.{part}.bias"), &[rows], 0.5, 0.1);
    }
    memory.norm("h.0.ln_1", HIDDEN, true);
    memory.norm("h.0.ln_2", HIDDEN, true);
    (json!({"model_type": "gpt2", "n_embd": HIDDEN, "n_head": 4, "n_layer": 1}), memory)
}

fn bert() -> (Value, Memory) {
    let mut memory = Memory::default();
    memory.add("embeddings.word_embeddings.weight", &[7, HIDDEN], 1.0, 0.0);
    memory.norm("embeddings.LayerNorm", HIDDEN, true);
    let layer = "encoder.layer.0";
    for part in ["self.query", "self.key", "self.value", "output.dense"] {
        memory.linear(&format!("{layer}.attention.{part}"), [HIDDEN, HIDDEN], true);
    }
    memory.linear(&format!("{layer}.intermediate.dense"), [WIDTH, HIDDEN], true);
    memory.linear(&format!("{layer}.output.dense"), [HIDDEN, WIDTH], true);
    memory.norm(&format!("{layer}.attention.output.LayerNorm"), HIDDEN, true);
    memory.norm(&format!("{layer}.output.LayerNorm"), HIDDEN, true);
    (config("bert", &json!({"layer_norm_eps": 1e-6})), memory)
}

/// The stages before the routed experts run on the device, the shared expert's products too.
fn shared_expert() -> (Value, Memory) {
    let mut memory = decoder(true, false);
    let layer = "model.layers.0.mlp";
    memory.linear(&format!("{layer}.gate"), [4, HIDDEN], false);
    memory.linear(&format!("{layer}.shared_expert_gate"), [1, HIDDEN], false);
    mlp(&mut memory, &format!("{layer}.shared_expert"));
    for expert in 0..4 {
        mlp(&mut memory, &format!("{layer}.experts.{expert}"));
    }
    (config("qwen2_moe", &json!({"num_experts_per_tok": 2, "moe_intermediate_size": WIDTH})), memory)
}

fn sinks() -> (Value, Memory) {
    let mut memory = decoder(true, false);
    memory.linear("model.layers.0.mlp.router", [3, HIDDEN], true);
    memory.add("model.layers.0.self_attn.sinks", &[4], 1.0, 0.0);
    let base = "model.layers.0.mlp.experts";
    memory.add(&format!("{base}.gate_up_proj"), &[3, HIDDEN, 2 * WIDTH], 0.3, 0.0);
    memory.add(&format!("{base}.down_proj"), &[3, WIDTH, HIDDEN], 0.3, 0.0);
    (config("gpt_oss", &json!({"num_experts_per_tok": 2, "sliding_window": 6})), memory)
}

fn latent() -> (Value, Memory) {
    let mut memory = decoder(false, false);
    let module = "model.layers.0.self_attn";
    memory.linear(&format!("{module}.q_a_proj"), [20, HIDDEN], false);
    memory.norm(&format!("{module}.q_a_layernorm"), 20, false);
    memory.linear(&format!("{module}.q_b_proj"), [4 * 10, 20], false);
    memory.linear(&format!("{module}.kv_a_proj_with_mqa"), [16 + 4, HIDDEN], false);
    memory.norm(&format!("{module}.kv_a_layernorm"), 16, false);
    memory.linear(&format!("{module}.kv_b_proj"), [4 * (6 + 12), 16], false);
    mlp(&mut memory, "model.layers.0.mlp");
    let more = json!({"q_lora_rank": 20, "kv_lora_rank": 16, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
        "v_head_dim": 12});
    (config("deepseek_v3", &more), memory)
}

fn models() -> Vec<(Value, Memory)> {
    let none = json!({});
    let llama3 = json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16}});
    vec![
        dense("llama", false, false, &llama3),
        dense("mistral", false, false, &json!({"sliding_window": 4})),
        dense("qwen2", true, false, &none),
        dense("qwen3", false, true, &none),
        dense("gemma", false, false, &none),
        sandwich("gemma2", &json!({"sliding_window": 7, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 20})),
        sandwich("gemma3", &json!({"sliding_window": 7, "query_pre_attn_scalar": 20})),
        phi3(),
        opt(true),
        opt(false),
        gpt2(),
        bert(),
        shared_expert(),
        sinks(),
        latent(),
    ]
}

fn hidden(rows: usize) -> Matrix {
    let mut memory = Memory::default();
    memory.add("hidden", &[rows, HIDDEN], 2.0, 0.3);
    Matrix { rows, columns: HIDDEN, values: memory.tensors["hidden"].1.clone() }
}

fn linears(model: &Model, source: &Memory) -> Vec<Vec<Linear>> {
    let stages = model.blocks[0].stages.iter().take_while(|stage| stage.kind != Kind::Experts);
    stages.map(|stage| stage.linears.iter().map(|linear| linear.read(source).unwrap()).collect()).collect()
}

/// The states behind a block's stages here and on the device, and how often the device failed.
fn both(config: &Value, source: &Memory, shared: &SharedDevice) -> (State, State, u64) {
    let model = Model::new(Some(config), source).unwrap();
    let (sequences, length) = (3, 11);
    let block = Block::read(&model.blocks[0], source, length).unwrap();
    let linears = linears(&model, source);
    let start = State { length, hidden: hidden(sequences * length), carried: Vec::new() };
    let here = Stages::new(&block, &linears, None).apply(start.clone()).unwrap();
    let mut stages = Stages::new(&block, &linears, Some(shared));
    let there = stages.apply(start).unwrap();
    (here, there, stages.failures)
}

/// The largest difference of two states, as a share of the largest value of the same matrix.
fn distance(one: &State, other: &State) -> f64 {
    assert_eq!(one.carried.len(), other.carried.len());
    let pairs = one.matrices().zip(other.matrices()).map(|(one, other)| {
        assert_eq!((one.rows, one.columns), (other.rows, other.columns));
        let largest = one.values.iter().fold(1e-30_f32, |largest, value| largest.max(value.abs()));
        let differences = one.values.iter().zip(&other.values).map(|(a, b)| f64::from((a - b).abs()));
        // A comparison with NaN is false, so that it counts as the largest.
        let worst = differences.fold(0.0, |worst, one| if one <= worst { worst } else { one });
        worst / f64::from(largest)
    });
    pairs.fold(0.0, f64::max)
}

#[test]
fn blocks_of_every_architecture_agree_with_those_here() {
    for device in devices() {
        let shared = SharedDevice::new(device);
        for (config, source) in models() {
            let (here, there, failures) = both(&config, &source, &shared);
            assert_eq!(failures, 0, "{config}: {:?}", shared.failure());
            let error = distance(&here, &there);
            assert!(error > 0.0 && error <= TOLERANCE, "{}: {error:e}", config["model_type"]);
        }
    }
}

#[test]
fn inputs_are_rounded_as_here() {
    let Some(device) = fixtures::device(None) else { return };
    let shared = SharedDevice::new(device);
    let (config, mut source) = dense("llama", true, false, &json!({}));
    let exact = both(&config, &source, &shared).0;
    for format in [InputFormat::Int8PerToken, InputFormat::Fp8PerToken, InputFormat::Int8Static(0.05)] {
        source.activations = format;
        let (here, there, failures) = both(&config, &source, &shared);
        let error = distance(&here, &there);
        assert!(failures == 0 && error <= ROUNDED_TOLERANCE, "{format:?}: {error:e}");
        assert!(error < distance(&exact, &here), "{format:?} rounds nothing");
    }
}

/// In the second budget not all weights stay: others go up with every batch.
#[test]
fn weights_that_do_not_fit_are_streamed() {
    let (config, source) = dense("llama", true, false, &json!({}));
    let mut states = Vec::new();
    for memory_bytes in [1 << 20, 80 << 10] {
        let Some(device) = fixtures::device_with(&Choice { memory_bytes, ..fixtures::choice() }) else { return };
        let (here, there, failures) = both(&config, &source, &SharedDevice::new(device.clone()));
        assert_eq!((failures, device.memory_bytes().0), (0, 0));
        assert!(distance(&here, &there) <= TOLERANCE);
        states.push(there);
    }
    assert_eq!(states[0], states[1], "a piece of a weight gives the same products");
}

#[test]
fn a_whole_model_advances_on_the_device_and_goes_on_without_it() {
    let Some(device) = fixtures::device(None) else { return };
    let (config, source) = shared_expert();
    let model = Model::new(Some(&config), &source).unwrap();
    let sequences: Vec<Vec<u32>> = (0..5).map(|first| (0..9).map(|token| (first + token) % 7).collect()).collect();
    let limits = Limits { batch_tokens: 18, expert_bytes: 1 };
    let advanced = |device: Option<&SharedDevice>| {
        let store = model.embed_all(&source, &sequences, &limits, None).unwrap();
        let failures = model.advance_on(device, 0, &source, &store, &limits).unwrap();
        ((0..store.batches()).map(|batch| store.read(batch).unwrap()).collect::<Vec<_>>(), failures)
    };
    let (here, none) = advanced(None);
    let shared = SharedDevice::new(device.clone());
    let (there, failures) = advanced(Some(&shared));
    assert_eq!((none, failures), (0, 0));
    assert!(here.iter().zip(&there).all(|(here, there)| distance(here, there) <= TOLERANCE));
    device.destroy();
    let (after, failures) = advanced(Some(&shared));
    assert!(failures > 0 && after == here, "{failures} failures");
}

#[test]
fn what_is_not_finite_is_the_models_fault() {
    let Some(device) = fixtures::device(None) else { return };
    let (config, mut source) = dense("llama", false, false, &json!({}));
    source.tensors.get_mut("model.layers.0.mlp.down_proj.weight").unwrap().1.fill(1e38);
    let model = Model::new(Some(&config), &source).unwrap();
    let block = Block::read(&model.blocks[0], &source, 11).unwrap();
    let linears = linears(&model, &source);
    let shared = SharedDevice::new(device);
    let mut stages = Stages::new(&block, &linears, Some(&shared));
    let state = State { length: 11, hidden: hidden(11), carried: Vec::new() };
    let error = stages.apply(state).unwrap_err();
    assert!(matches!(error, ForwardError::Overflow { block: 0, what: "mlp" }), "{error}");
    assert_eq!(stages.failures, 0);
}

#[test]
fn failures_of_the_device_and_of_the_model_are_told_apart() {
    let model = ForwardError::Overflow { block: 3, what: "mlp" };
    assert!(matches!(Trouble::apart::<()>(Err(model.into())), Ok(Err(ForwardError::Overflow { block: 3, .. }))));
    let Some(device) = fixtures::device(Some(SMALL_BINDING)) else { return };
    let error = Device::allocate(&device, "huge", u64::MAX / 2).unwrap_err();
    assert!(Trouble::apart::<()>(Err(error.into())).is_err());
}
