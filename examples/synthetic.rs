//! Writes a synthetic BF16 Llama checkpoint of any depth, for measurements of speed and memory.
//!
//! `cargo run --release --example synthetic -- FOLDER [--blocks 22] [--shards 1]`
//!
//! The shapes are TinyLlama-1.1B's (hidden 2048, intermediate 5632, 32 heads, 4 key/value heads, vocabulary 32000); the
//! weights are sums of uniform numbers from a counter-based generator, bell-shaped with deviation 0.02.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use clap::Parser;
use half::bf16;

const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 5632;
const KEY_VALUE: usize = 256;
const VOCABULARY: usize = 32000;

#[derive(Parser)]
struct Arguments {
    /// Folder to write.
    folder: PathBuf,
    /// Decoder blocks.
    #[arg(long, default_value_t = 22)]
    blocks: usize,
    /// Safetensors files.
    #[arg(long, default_value_t = 1)]
    shards: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.folder)?;
    let tensors = tensors(arguments.blocks);
    let per_shard = tensors.len().div_ceil(arguments.shards.max(1));
    let count = tensors.len().div_ceil(per_shard);
    let mut weight_map = serde_json::Map::new();
    for (index, shard) in tensors.chunks(per_shard).enumerate() {
        let name = if count == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{count:05}.safetensors", index + 1)
        };
        write_shard(&arguments.folder.join(&name), shard)?;
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), name.clone().into())));
    }
    if count > 1 {
        let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
        std::fs::write(arguments.folder.join("model.safetensors.index.json"), format!("{index:#}\n"))?;
    }
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": arguments.blocks, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    std::fs::write(arguments.folder.join("config.json"), format!("{config:#}\n"))?;
    Ok(())
}

fn tensors(blocks: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for block in 0..blocks {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KEY_VALUE, HIDDEN]),
            ("self_attn.v_proj", vec![KEY_VALUE, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            tensors.push((format!("model.layers.{block}.{name}.weight"), shape));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors.push(("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]));
    tensors
}

fn write_shard(path: &std::path::Path, tensors: &[(String, Vec<usize>)]) -> anyhow::Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut offset = 0;
    for (name, shape) in tensors {
        let bytes = shape.iter().product::<usize>() * 2;
        let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + bytes]});
        header.insert(name.clone(), entry);
        offset += bytes;
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(&text)?;
    let mut buffer = Vec::new();
    for (index, (name, shape)) in tensors.iter().enumerate() {
        let count: usize = shape.iter().product();
        let norm = name.contains("norm");
        let seed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for start in (0..count).step_by(1 << 18) {
            buffer.clear();
            for position in start..count.min(start + (1 << 18)) {
                let value = if norm { 1.0 } else { bell(seed ^ position as u64) * 0.02 };
                buffer.extend_from_slice(&bf16::from_f32(value).to_le_bytes());
            }
            file.write_all(&buffer)?;
        }
    }
    file.flush()?;
    Ok(())
}

/// Four uniform 16-bit numbers from one mixed word, summed: mean 0, variance 1.
fn bell(counter: u64) -> f32 {
    let mut word = counter.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^= word >> 31;
    let sum: f32 = (0..4).map(|part| ((word >> (16 * part)) & 0xffff) as f32 / 65536.0 - 0.5).sum();
    sum * 3.0_f32.sqrt()
}
