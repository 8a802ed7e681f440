//! Folds leave what a block computes unchanged, whatever the scales.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    fold::{Fold, FoldKind, Producer, folds},
    transforms::{Transformed, TransformedRows, Transforms},
};
use crate::{
    checkpoint::Dtype,
    codec::{CodecError, RowSource},
    forward::{Block, BlockSpec, Expert, ForwardError, Kind, Matrix, Model, State, WeightSource},
};

/// Tensors in memory.
#[derive(Default)]
struct Memory(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

/// Numbers from −1 to 1 that look random.
fn noise(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    ((*seed >> 40) as f32 / (1 << 23) as f32) - 1.0
}

impl Memory {
    fn add(&mut self, name: &str, shape: &[usize], value: impl Fn(f32) -> f32) {
        let mut seed = name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let count = shape.iter().product();
        let values = (0..count).map(|_| value(noise(&mut seed))).collect();
        self.0.insert(name.to_owned(), (shape.to_vec(), values));
    }

    fn linear(&mut self, module: &str, rows: usize, columns: usize, bias: bool) {
        self.add(&format!("{module}.weight"), &[rows, columns], |noise| noise * 0.5);
        if bias {
            self.add(&format!("{module}.bias"), &[rows], |noise| noise);
        }
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(&format!("{name}.weight"), &[width], |noise| bf16(0.2 + noise.abs() * 2.0));
    }
}

fn bf16(value: f32) -> f32 {
    half::bf16::from_f32(value).to_f32()
}

/// (expert, row, column) of the stored element that is element `index` of the logical matrix.
fn turned(shape: &[usize], index: usize) -> usize {
    let [stored_rows, stored_columns] = shape[shape.len() - 2..] else { return index };
    let (matrix, place) = (index / (stored_rows * stored_columns), index % (stored_rows * stored_columns));
    matrix * stored_rows * stored_columns + place % stored_rows * stored_columns + place / stored_rows
}

impl WeightSource for Memory {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|(shape, _)| shape.clone())
    }

    fn read(&self, name: &str, transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        let (shape, values) = &self.0[name];
        let width = if transposed { shape[shape.len() - 2] } else { shape[shape.len() - 1] };
        for (index, out) in out.iter_mut().enumerate() {
            let index = first_row * width + index;
            *out = values[if transposed { turned(shape, index) } else { index }];
        }
        Ok(())
    }
}

fn run(block: &BlockSpec, source: &dyn WeightSource, hidden: &Matrix) -> Matrix {
    let mut state = State { length: hidden.rows, hidden: hidden.clone(), carried: Vec::new() };
    let block = Block::read(block, source, hidden.rows).unwrap();
    for (index, stage) in block.spec.stages.iter().enumerate() {
        if stage.kind == Kind::Experts {
            for expert in 0..block.spec.experts.as_ref().unwrap().outputs.len() {
                Expert::read(block.spec, expert, source).unwrap().unwrap().add_to(&mut state, expert);
            }
        }
        let linears: Vec<_> = stage.linears.iter().map(|linear| linear.read(source).unwrap()).collect();
        block.apply(index, &mut state, &linears).unwrap();
    }
    let mut out = state.hidden;
    // Only what the block adds.
    out.values.iter_mut().zip(&hidden.values).for_each(|(out, hidden)| *out -= hidden);
    out
}

fn distance(a: &Matrix, b: &Matrix) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squares(&mut a.values.iter().zip(&b.values).map(|(a, b)| f64::from(a - b)));
    (difference / squares(&mut a.values.iter().map(|value| f64::from(*value)))).sqrt()
}

/// Scales from 1/30 to 30.
fn strong(count: usize, seed: &mut u64) -> Vec<f64> {
    (0..count).map(|_| f64::from(noise(seed) * 3.4).exp()).collect()
}

fn block_of(config: &Value, memory: &Memory) -> BlockSpec {
    Model::new(Some(config), memory).unwrap().blocks.remove(0)
}

/// Applies every fold with strong scales, twice, and checks that the block computes the same.
fn check(config: &Value, memory: &Memory, expected: &[(FoldKind, usize)]) -> (BlockSpec, Vec<Fold>, Transforms) {
    let block = block_of(config, memory);
    let found = folds(&block);
    let mut counts = BTreeMap::new();
    for fold in &found {
        *counts.entry(fold.kind).or_insert(0) += 1;
    }
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), expected);
    let mut seed = 5;
    let hidden = Matrix { rows: 12, columns: 16, values: (0..12 * 16).map(|_| noise(&mut seed) * 3.0).collect() };
    let before = run(&block, memory, &hidden);
    let mut transforms = Transforms::default();
    for round in 0..2 {
        for fold in &found {
            let scales = strong(fold.channels, &mut seed);
            let used = transforms.apply_fold(fold, &scales, memory, |_| Some(Dtype::BF16)).unwrap();
            assert!(used.iter().zip(&scales).all(|(used, scale)| (used / scale - 1.0).abs() < 0.005 || round > 0));
            let view = Transformed { inner: memory, transforms: &transforms, clipped: true };
            let error = distance(&before, &run(&block, &view, &hidden));
            assert!(error < 1e-6, "{} {:?}: {error:e}", fold.name, fold.kind);
        }
    }
    let restored = Transforms::from_tensors(transforms.to_tensors()).unwrap();
    assert_eq!(restored, transforms);
    (block, found, transforms)
}

fn decoder(memory: &mut Memory, hidden: usize) {
    memory.add("model.embed_tokens.weight", &[8, hidden], |noise| noise);
    memory.norm("model.norm", hidden);
    memory.norm("model.layers.0.input_layernorm", hidden);
    memory.norm("model.layers.0.post_attention_layernorm", hidden);
}

fn attention(memory: &mut Memory, query: usize, key: usize, bias: bool) {
    for (part, rows) in [("q_proj", query), ("k_proj", key), ("v_proj", key)] {
        memory.linear(&format!("model.layers.0.self_attn.{part}"), rows, 16, bias);
    }
    memory.linear("model.layers.0.self_attn.o_proj", 16, query, false);
}

fn mlp(memory: &mut Memory, module: &str, width: usize) {
    memory.linear(&format!("{module}.gate_proj"), width, 16, false);
    memory.linear(&format!("{module}.up_proj"), width, 16, false);
    memory.linear(&format!("{module}.down_proj"), 16, width, false);
}

const DENSE: [(FoldKind, usize); 4] =
    [(FoldKind::Attention, 1), (FoldKind::Value, 1), (FoldKind::Mlp, 1), (FoldKind::Up, 1)];

fn config(model_type: &str) -> Value {
    json!({"model_type": model_type, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 4, "num_hidden_layers": 1, "intermediate_size": 24, "rms_norm_eps": 1e-6})
}

#[test]
fn grouped_heads_with_biases() {
    let mut memory = Memory::default();
    decoder(&mut memory, 16);
    attention(&mut memory, 16, 8, true);
    mlp(&mut memory, "model.layers.0.mlp", 24);
    let (_, found, transforms) = check(&config("qwen2"), &memory, &DENSE);
    let value = &found[1];
    assert_eq!((value.channels, value.width, value.stage), (8, 16, 1));
    assert_eq!(value.channel_of.as_ref().unwrap()[..12], [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(transforms.touches("model.layers.0.self_attn.v_proj.bias"));
    assert!(!transforms.touches("model.layers.0.self_attn.q_proj.bias"));
    assert!(transforms.tensors().any(|name| name.ends_with("mlp.down_proj.weight")));
}

#[test]
fn norms_that_add_one_and_sandwiches() {
    let mut memory = Memory::default();
    decoder(&mut memory, 16);
    attention(&mut memory, 16, 8, false);
    mlp(&mut memory, "model.layers.0.mlp", 24);
    // Small scales leave room below one for what BF16 stores of 1 + γ.
    for part in ["pre_feedforward_layernorm", "post_feedforward_layernorm", "input_layernorm"] {
        memory.add(&format!("model.layers.0.{part}.weight"), &[16], |noise| bf16(noise * 0.5));
    }
    let block = block_of(&config("gemma2"), &memory);
    let found = folds(&block);
    let mut seed = 9;
    let hidden = Matrix { rows: 6, columns: 16, values: (0..96).map(|_| noise(&mut seed)).collect() };
    let before = run(&block, &memory, &hidden);
    let mut transforms = Transforms::default();
    for fold in &found {
        let mut scales = strong(fold.channels, &mut seed);
        scales[0] = 1e9;
        transforms.apply_fold(fold, &scales, &memory, |_| Some(Dtype::BF16)).unwrap();
        let view = Transformed { inner: &memory, transforms: &transforms, clipped: true };
        let error = distance(&before, &run(&block, &view, &hidden));
        assert!(error < 1e-6, "{} {error:e}", fold.name);
    }
    assert_eq!(found.len(), 4);
    assert!(
        matches!(&found[2].producer, Producer::Norm { name, offset_one: true } if name.ends_with("pre_feedforward_layernorm"))
    );
}

#[test]
fn fused_projections() {
    let mut memory = Memory::default();
    decoder(&mut memory, 16);
    memory.linear("model.layers.0.self_attn.qkv_proj", 32, 16, false);
    memory.linear("model.layers.0.self_attn.o_proj", 16, 16, false);
    memory.linear("model.layers.0.mlp.gate_up_proj", 48, 16, false);
    memory.linear("model.layers.0.mlp.down_proj", 16, 24, false);
    let (_, found, _) = check(&config("phi3"), &memory, &DENSE);
    assert!(matches!(&found[1].producer, Producer::Rows { rows, .. } if rows[..] == [24, 25, 26, 27, 28, 29, 30, 31]));
}

#[test]
fn experts_router_and_shared_expert() {
    let mut memory = Memory::default();
    decoder(&mut memory, 16);
    attention(&mut memory, 16, 8, false);
    memory.linear("model.layers.0.mlp.gate", 4, 16, false);
    memory.linear("model.layers.0.mlp.shared_expert_gate", 1, 16, false);
    mlp(&mut memory, "model.layers.0.mlp.shared_expert", 20);
    for expert in 0..4 {
        mlp(&mut memory, &format!("model.layers.0.mlp.experts.{expert}"), 12);
    }
    let mut config = config("qwen2_moe");
    config["num_experts_per_tok"] = json!(2);
    config["moe_intermediate_size"] = json!(12);
    let expected = [(FoldKind::Attention, 1), (FoldKind::Value, 1), (FoldKind::Mlp, 1), (FoldKind::Up, 5)];
    let (_, found, _) = check(&config, &memory, &expected);
    let norm = found.iter().find(|fold| fold.kind == FoldKind::Mlp).unwrap();
    assert_eq!((norm.others.len(), norm.consumers.len()), (2, 10));
    assert_eq!(found.last().unwrap().expert, Some(3));
}

#[test]
fn stacked_experts_stored_transposed_with_alternating_gates() {
    let mut memory = Memory::default();
    decoder(&mut memory, 16);
    attention(&mut memory, 16, 8, true);
    memory.linear("model.layers.0.mlp.router", 3, 16, true);
    memory.add("model.layers.0.self_attn.sinks", &[4], |noise| noise);
    let base = "model.layers.0.mlp.experts";
    memory.add(&format!("{base}.gate_up_proj"), &[3, 16, 20], |noise| noise);
    memory.add(&format!("{base}.gate_up_proj_bias"), &[3, 20], |noise| noise);
    memory.add(&format!("{base}.down_proj"), &[3, 10, 16], |noise| noise);
    memory.add(&format!("{base}.down_proj_bias"), &[3, 16], |noise| noise);
    let mut config = config("gpt_oss");
    config["num_experts_per_tok"] = json!(2);
    config["intermediate_size"] = json!(10);
    check(&config, &memory, &[(FoldKind::Attention, 1), (FoldKind::Value, 1), (FoldKind::Mlp, 1)]);
    // The same stacks where gate and up lie side by side.
    let mut block = block_of(&config, &memory);
    block.experts.as_mut().unwrap().alternating = None;
    let found = folds(&block);
    assert_eq!(found.iter().filter(|fold| fold.kind == FoldKind::Up).count(), 3);
    let (mut seed, mut transforms) = (3, Transforms::default());
    let hidden = Matrix { rows: 6, columns: 16, values: (0..96).map(|_| noise(&mut seed)).collect() };
    let before = run(&block, &memory, &hidden);
    for fold in &found {
        let scales = strong(fold.channels, &mut seed);
        transforms.apply_fold(fold, &scales, &memory, |_| Some(Dtype::F32)).unwrap();
    }
    let view = Transformed { inner: &memory, transforms: &transforms, clipped: true };
    assert!(distance(&before, &run(&block, &view, &hidden)) < 1e-6);
    assert!(view.read(&format!("{base}.down_proj"), false, 0, &mut [0.0; 16]).is_err());
    rows_are_those_of_the_view(&memory, &transforms, &format!("{base}.gate_up_proj"), true, 60, 16);
    rows_are_those_of_the_view(&memory, &transforms, &format!("{base}.gate_up_proj_bias"), false, 3, 20);
    rows_are_those_of_the_view(&memory, &transforms, "model.layers.0.input_layernorm.weight", false, 1, 16);
}

struct Rows<'a>(&'a Memory, &'a str, bool, usize, usize);

impl RowSource for Rows<'_> {
    fn rows(&self) -> usize {
        self.3
    }
    fn columns(&self) -> usize {
        self.4
    }
    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        self.0.read(self.1, self.2, first_row, out).unwrap();
        Ok(())
    }
}

fn rows_are_those_of_the_view(
    memory: &Memory,
    transforms: &Transforms,
    name: &str,
    turned: bool,
    rows: usize,
    columns: usize,
) {
    let view = Transformed { inner: memory, transforms, clipped: true };
    let source = TransformedRows::new(Box::new(Rows(memory, name, turned, rows, columns)), transforms, name, true);
    let mut expected = vec![0.0; rows * columns];
    view.read(name, turned, 0, &mut expected).unwrap();
    let mut row = vec![0.0; columns];
    for (index, expected) in expected.chunks_exact(columns).enumerate() {
        source.read_rows(index, &mut row).unwrap();
        assert_eq!(row, expected);
    }
}

#[test]
fn latent_attention() {
    let mut memory = Memory::default();
    decoder(&mut memory, 16);
    let module = "model.layers.0.self_attn";
    memory.linear(&format!("{module}.q_a_proj"), 6, 16, false);
    memory.norm(&format!("{module}.q_a_layernorm"), 6);
    memory.linear(&format!("{module}.q_b_proj"), 4 * 8, 6, false);
    memory.linear(&format!("{module}.kv_a_proj_with_mqa"), 5 + 4, 16, false);
    memory.norm(&format!("{module}.kv_a_layernorm"), 5);
    memory.linear(&format!("{module}.kv_b_proj"), 4 * (4 + 3), 5, false);
    memory.linear(&format!("{module}.o_proj"), 16, 12, false);
    mlp(&mut memory, "model.layers.0.mlp", 24);
    let mut config = config("deepseek_v3");
    for (key, value) in
        [("q_lora_rank", 6), ("kv_lora_rank", 5), ("qk_nope_head_dim", 4), ("qk_rope_head_dim", 4), ("v_head_dim", 3)]
    {
        config[key] = json!(value);
    }
    let mut expected = DENSE.to_vec();
    expected.push((FoldKind::Latent, 2));
    let (_, found, _) = check(&config, &memory, &expected);
    let value = found.iter().find(|fold| fold.kind == FoldKind::Value).unwrap();
    assert!(matches!(&value.producer, Producer::Rows { rows, .. } if rows[..7] == [4, 5, 6, 11, 12, 13, 18]));
}

fn opt(activation: &str, before: bool) -> (Value, Memory) {
    let mut memory = Memory::default();
    memory.add("model.decoder.embed_tokens.weight", &[8, 16], |noise| noise);
    memory.norm("model.decoder.final_layer_norm", 16);
    let module = "model.decoder.layers.0";
    for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        memory.linear(&format!("{module}.self_attn.{part}"), 16, 16, true);
    }
    memory.linear(&format!("{module}.fc1"), 24, 16, true);
    memory.linear(&format!("{module}.fc2"), 16, 24, true);
    for part in ["self_attn_layer_norm", "final_layer_norm"] {
        memory.norm(&format!("{module}.{part}"), 16);
    }
    let config = json!({"model_type": "opt", "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1,
        "ffn_dim": 24, "activation_function": activation, "do_layer_norm_before": before});
    (config, memory)
}

#[test]
fn layer_norms_and_relu() {
    let (config, mut memory) = opt("relu", true);
    check(&config, &memory, &DENSE);
    // A bias is divided too; in F32 that is as good as exact.
    for part in ["self_attn_layer_norm", "final_layer_norm"] {
        memory.add(&format!("model.decoder.layers.0.{part}.bias"), &[16], |noise| noise);
    }
    let block = block_of(&config, &memory);
    let (mut seed, mut transforms) = (4, Transforms::default());
    let hidden = Matrix { rows: 6, columns: 16, values: (0..96).map(|_| noise(&mut seed)).collect() };
    for fold in folds(&block) {
        let scales = strong(fold.channels, &mut seed);
        transforms.apply_fold(&fold, &scales, &memory, |_| Some(Dtype::F32)).unwrap();
    }
    let view = Transformed { inner: &memory, transforms: &transforms, clipped: true };
    assert!(distance(&run(&block, &memory, &hidden), &run(&block, &view, &hidden)) < 1e-6);
}

#[test]
fn what_is_not_exact_is_not_offered() {
    let kinds = |activation, before| {
        let (config, memory) = opt(activation, before);
        folds(&block_of(&config, &memory)).iter().map(|fold| fold.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds("gelu", true), [FoldKind::Attention, FoldKind::Value, FoldKind::Mlp]);
    assert_eq!(kinds("relu", false), [FoldKind::Value, FoldKind::Up]);
}

#[test]
fn norms_stay_exact_in_their_type() {
    let mut memory = Memory::default();
    decoder(&mut memory, 16);
    attention(&mut memory, 16, 8, false);
    mlp(&mut memory, "model.layers.0.mlp", 24);
    let name = "model.layers.0.input_layernorm.weight";
    memory.0.get_mut(name).unwrap().1[3] = 0.0;
    let fold = &folds(&block_of(&config("llama"), &memory))[0];
    let mut scales = strong(16, &mut 8);
    (scales[4], scales[5], scales[6]) = (1e39, f64::NAN, 1e-39);
    for (dtype, digits) in [(Dtype::BF16, 8), (Dtype::F16, 11)] {
        let mut transforms = Transforms::default();
        let used = transforms.apply_fold(fold, &scales, &memory, |_| Some(dtype)).unwrap();
        assert_eq!(used[3..7], [1.0; 4]);
        let mut new = vec![0.0; 16];
        Transformed { inner: &memory, transforms: &transforms, clipped: true }.read(name, false, 0, &mut new).unwrap();
        for ((new, old), used) in new.iter().zip(&memory.0[name].1).zip(&used) {
            let product = f64::from(*new) * used;
            assert!((product - f64::from(*old)).abs() <= f64::from(*old) * 1e-15);
            let stored = if dtype == Dtype::BF16 { bf16(*new) } else { half::f16::from_f32(*new).to_f32() };
            assert_eq!(stored, *new, "{digits} digits");
        }
    }
    assert!(Transforms::default().apply_fold(fold, &[1.0; 3], &memory, |_| None).is_err());
}

#[test]
fn limits_come_last_and_follow_divided_rows() {
    let mut memory = Memory::default();
    decoder(&mut memory, 16);
    attention(&mut memory, 16, 16, false);
    mlp(&mut memory, "model.layers.0.mlp", 24);
    let mut config = config("llama");
    config["num_key_value_heads"] = json!(4);
    let block = block_of(&config, &memory);
    let found = folds(&block);
    let value = &block.stages[0].linears[2];
    let mut transforms = Transforms::default();
    transforms.apply_fold(&found[0], &[2.0; 16], &memory, |_| None).unwrap();
    let mut limits = vec![f32::INFINITY; 16 * 2];
    limits[3] = 0.25;
    transforms.set_clip(value, 8, limits.clone()).unwrap();
    assert!(transforms.set_clip(value, 5, limits).is_err());
    transforms.apply_fold(&found[1], &[4.0; 16], &memory, |_| None).unwrap();
    let read = |clipped| {
        let view = Transformed { inner: &memory, transforms: &transforms, clipped };
        value.read_weight(&view).unwrap()
    };
    let (clipped, free, plain) = (read(true), read(false), value.read_weight(&memory).unwrap());
    for (index, (clipped, free)) in clipped.values.iter().zip(&free.values).enumerate() {
        assert_eq!(*free, plain.values[index] / 2.0);
        let limit = if (24..32).contains(&index) { 0.0625 } else { f32::INFINITY };
        assert_eq!(*clipped, free.clamp(-limit, limit));
    }
    assert_eq!(Transforms::from_tensors(transforms.to_tensors()).unwrap(), transforms);
    assert!(Transforms::from_tensors([("rows|2|x".to_owned(), super::transforms::Values::F64(vec![]))]).is_err());
}
