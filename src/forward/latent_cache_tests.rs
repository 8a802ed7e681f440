//! Attention over latents against its definition, written index by index in F64.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::{
    forward::{Linear, State},
    layout::LayerRanks,
};

const HIDDEN: usize = 20;
const HEADS: usize = 4;
const SHARED: usize = 2;
const WIDTH: usize = 6;
const LENGTH: usize = 77;
const SEQUENCES: usize = 2;
const ROWS: usize = SHARED * WIDTH;

#[derive(Default)]
struct Memory(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Memory {
    fn add(&mut self, name: &str, shape: &[usize], offset: f32) {
        let mut state =
            name.bytes().fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
        let scale = if offset == 0.0 { (3.0 / shape[shape.len() - 1] as f32).sqrt() } else { 0.2 };
        let values = (0..shape.iter().product()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            offset + scale * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        });
        self.0.insert(name.to_owned(), (shape.to_vec(), values.collect()));
    }

    fn at(&self, name: &str, row: usize, column: usize) -> f64 {
        let (shape, values) = &self.0[name];
        f64::from(values[row * shape.last().unwrap() + column])
    }

    fn product(&self, name: &str, bias: Option<&str>, x: &[f64]) -> Vec<f64> {
        let rows = self.0[name].0[0];
        (0..rows)
            .map(|row| {
                let sum: f64 = x.iter().enumerate().map(|(column, x)| x * self.at(name, row, column)).sum();
                sum + bias.map_or(0.0, |bias| self.at(bias, 0, row))
            })
            .collect()
    }
}

impl WeightSource for Memory {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|(shape, _)| shape.clone())
    }

    fn read(&self, name: &str, _transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        let (shape, values) = &self.0[name];
        let first = if shape.len() == 1 { 0 } else { first_row * shape[1] };
        out.copy_from_slice(&values[first..first + out.len()]);
        Ok(())
    }
}

const A: &str = "model.layers.0.self_attn.";

fn memory(ranks: &LayerRanks) -> Memory {
    let mut memory = Memory::default();
    memory.add("model.embed_tokens.weight", &[7, HIDDEN], 0.0);
    for norm in ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"] {
        memory.add(&format!("{norm}.weight"), &[HIDDEN], 1.0);
    }
    for (name, rows, columns) in [("gate", 8, HIDDEN), ("up", 8, HIDDEN), ("down", HIDDEN, 8)] {
        memory.add(&format!("model.layers.0.mlp.{name}_proj.weight"), &[rows, columns], 0.0);
    }
    memory.add(&format!("{A}o_proj.weight"), &[HIDDEN, HEADS * WIDTH], 0.0);
    for (name, rows, ranks) in
        [("q", HEADS * WIDTH, &Vec::new()), ("k", ROWS, &ranks.key_ranks), ("v", ROWS, &ranks.value_ranks)]
    {
        memory.add(&format!("{A}{name}_proj.weight"), &[rows, HIDDEN], 0.0);
        memory.add(&format!("{A}{name}_proj.bias"), &[rows], 0.0);
        if !ranks.is_empty() {
            let latent = ranks.iter().sum();
            memory.add(&format!("{A}{name}_proj_a.weight"), &[latent, HIDDEN], 0.0);
            memory.add(&format!("{A}{name}_proj_b.weight"), &[rows / ranks.len(), latent], 0.0);
            memory.add(&format!("{A}{name}_proj_exact.weight"), &[rows, HIDDEN], 0.0);
        }
    }
    for norm in ["q_norm", "k_norm"] {
        memory.add(&format!("{A}{norm}.weight"), &[WIDTH], 1.0);
    }
    memory
}

/// Numbers that share a scale, as codes give them back.
fn coded(values: &[f64], bits: u8) -> Vec<f64> {
    let levels = f64::from((1_u32 << bits) - 1);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scale = f64::from(((most - least) / levels) as f32);
    values.iter().map(|value| ((value - least) / scale).round_ties_even().clamp(0.0, levels) * scale + least).collect()
}

fn normed(x: &[f64], epsilon: f64, weight: impl Fn(usize) -> f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().enumerate().map(|(i, x)| x / (mean + epsilon).sqrt() * weight(i)).collect()
}

fn turned(memory: &Memory, norm: &str, heads: &[f64], position: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for head in heads.chunks(WIDTH) {
        let head = normed(head, 1e-6, |i| memory.at(norm, 0, i));
        for i in 0..WIDTH {
            let angle = position as f64 * 10000_f64.powf(-((i % (WIDTH / 2)) as f64) * 2.0 / WIDTH as f64);
            let other = if i < WIDTH / 2 { -head[i + WIDTH / 2] } else { head[i - WIDTH / 2] };
            out.push(head[i] * angle.cos() + other * angle.sin());
        }
    }
    out
}

/// The mixed heads of one sequence of normed inputs.
fn naive(memory: &Memory, ranks: &LayerRanks, x: &[Vec<f64>], window: usize, bits: Option<u8>) -> Vec<Vec<f64>> {
    let name = |part: &str| format!("{A}{part}");
    let side = |letter: &str, of_groups: &[usize], j: usize, t: usize| -> Vec<f64> {
        let bias = name(&format!("{letter}_proj.bias"));
        if of_groups.is_empty() {
            return memory.product(&name(&format!("{letter}_proj.weight")), Some(&bias), &x[j]);
        }
        if j + window > t {
            return memory.product(&name(&format!("{letter}_proj_exact.weight")), Some(&bias), &x[j]);
        }
        let latents = |j: usize| memory.product(&name(&format!("{letter}_proj_a.weight")), None, &x[j]);
        let mut latent = latents(j);
        let block = j / 32;
        if let Some(bits) = bits.filter(|_| 32 * block + 31 + window <= t) {
            if letter == "k" {
                let all: Vec<Vec<f64>> = (32 * block..32 * block + 32).map(latents).collect();
                for (channel, value) in latent.iter_mut().enumerate() {
                    let column: Vec<f64> = all.iter().map(|token| token[channel]).collect();
                    *value = coded(&column, bits)[j % 32];
                }
            } else {
                let mut first = 0;
                for rank in of_groups {
                    let group = coded(&latent[first..first + rank], bits);
                    latent[first..first + rank].copy_from_slice(&group);
                    first += rank;
                }
            }
        }
        let (factor, rows) = (name(&format!("{letter}_proj_b.weight")), ROWS / of_groups.len());
        (0..ROWS)
            .map(|row| {
                let group = row / rows;
                let first: usize = of_groups[..group].iter().sum();
                let channels = first..first + of_groups[group];
                let sum: f64 = channels.map(|channel| memory.at(&factor, row % rows, channel) * latent[channel]).sum();
                sum + memory.at(&bias, 0, row)
            })
            .collect()
    };
    (0..x.len())
        .map(|t| {
            let (weight, bias) = (name("q_proj.weight"), name("q_proj.bias"));
            let query = turned(memory, &name("q_norm.weight"), &memory.product(&weight, Some(&bias), &x[t]), t);
            let keys: Vec<Vec<f64>> = (0..=t)
                .map(|j| turned(memory, &name("k_norm.weight"), &side("k", &ranks.key_ranks, j, t), j))
                .collect();
            let values: Vec<Vec<f64>> = (0..=t).map(|j| side("v", &ranks.value_ranks, j, t)).collect();
            let mut out = Vec::new();
            for head in 0..HEADS {
                let first = head / (HEADS / SHARED) * WIDTH;
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|key| {
                        let dot: f64 = (0..WIDTH).map(|i| query[head * WIDTH + i] * key[first + i]).sum();
                        (dot / (WIDTH as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                for i in 0..WIDTH {
                    out.push(scores.iter().zip(&values).map(|(score, value)| score / total * value[first + i]).sum());
                }
            }
            out
        })
        .collect()
}

#[test]
fn attention_agrees_with_its_definition() {
    let config = json!({
        "model_type": "qwen3", "num_hidden_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED, "head_dim": WIDTH, "intermediate_size": 8, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    });
    let both = LayerRanks { key_ranks: vec![5], value_ranks: vec![2, 4] };
    let values_only = LayerRanks { key_ranks: vec![], value_ranks: vec![3] };
    let cases = [
        (&both, 0, Some(4)),
        (&both, 1, None),
        (&both, 5, Some(4)),
        (&both, 32, Some(8)),
        (&both, 32, None),
        (&both, 200, Some(4)),
        (&values_only, 9, Some(4)),
    ];
    for (ranks, window, bits) in cases {
        let memory = memory(ranks);
        let layers = vec![ranks.clone()];
        let policy = CachePolicy { window: 3, cache_bits: bits, cache_group: 32, absorb_values: false, layers };
        let mut model = Model::new(Some(&config), &memory).unwrap();
        model.keep_latents(&policy, Some(window), &memory).unwrap();
        let spec = &model.blocks[0];
        assert_eq!(spec.stages[0].kind, Kind::LatentCache);
        let block = Block::read(spec, &memory, LENGTH).unwrap();
        let linears: Vec<Linear> = spec.stages[0].linears.iter().map(|linear| linear.read(&memory).unwrap()).collect();
        let mut inputs = Memory::default();
        inputs.add("x", &[SEQUENCES * LENGTH, HIDDEN], 0.0);
        let hidden = Matrix { rows: SEQUENCES * LENGTH, columns: HIDDEN, values: inputs.0["x"].1.clone() };
        let mut state = State { length: LENGTH, hidden, carried: Vec::new() };
        block.apply(0, &mut state, &linears).unwrap();
        for sequence in 0..SEQUENCES {
            let x: Vec<Vec<f64>> = (0..LENGTH)
                .map(|token| {
                    let row: Vec<f64> = (0..HIDDEN).map(|i| inputs.at("x", sequence * LENGTH + token, i)).collect();
                    normed(&row, 1e-6, |i| memory.at("model.layers.0.input_layernorm.weight", 0, i))
                })
                .collect();
            for (token, expected) in naive(&memory, ranks, &x, window, bits).iter().enumerate() {
                for (got, expected) in state.carried[0].row(sequence * LENGTH + token).iter().zip(expected) {
                    let error = (f64::from(*got) - expected).abs();
                    assert!(error < 2e-5, "window {window} bits {bits:?} token {token}: {got} {expected}");
                }
            }
        }
    }
}

#[test]
fn what_changes_nothing_leaves_the_model_and_what_is_missing_is_named() {
    let config = json!({
        "model_type": "llama", "num_hidden_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED, "head_dim": WIDTH, "intermediate_size": 8,
    });
    let ranks = LayerRanks { key_ranks: vec![5], value_ranks: vec![6] };
    let mut memory = memory(&ranks);
    let policy =
        CachePolicy { window: 32, cache_bits: None, cache_group: 32, absorb_values: true, layers: vec![ranks] };
    let model = Model::new(Some(&config), &memory).unwrap();
    let mut same = model.clone();
    same.keep_latents(&policy, Some(0), &memory).unwrap();
    assert_eq!(same, model);
    memory.0.remove(&format!("{A}v_proj_exact.weight"));
    let error = model.clone().keep_latents(&policy, None, &memory).unwrap_err().to_string();
    assert!(error.contains("v_proj_exact.weight"), "{error}");
    let mut wrong = policy.clone();
    wrong.layers[0].key_ranks = vec![3, 3];
    let error = model.clone().keep_latents(&wrong, None, &memory).unwrap_err().to_string();
    assert!(error.contains("k_proj_a.weight"), "{error}");
    wrong.layers[0].key_ranks = vec![1; 5];
    let error = model.clone().keep_latents(&wrong, None, &memory).unwrap_err().to_string();
    assert!(error.contains("do not divide"), "{error}");
}
