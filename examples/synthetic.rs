//! Writes a synthetic BF16 Llama checkpoint of any depth, for measurements of speed and memory.
//!
//! `cargo run --release --example synthetic -- FOLDER [--blocks 22] [--shards 1]`
//!
//! The shapes are TinyLlama-1.1B's (hidden 2048, intermediate 5632, 32 heads, 4 key/value heads, vocabulary 32000) unless
//! others are given; with `--experts N` they are DeepSeek-V3's, with so many experts a block (128 heads in the original). With `--empty` files have
//! their full length and no content: enough for `bantam plan`. The
//! weights are sums of uniform numbers from a counter-based generator, bell-shaped with deviation 0.02.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use clap::Parser;
use half::bf16;

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
    /// Width of the residual stream.
    #[arg(long, default_value_t = 2048)]
    hidden: usize,
    /// Width of the MLP.
    #[arg(long, default_value_t = 5632)]
    intermediate: usize,
    /// Rows of key and value projections.
    #[arg(long, default_value_t = 256)]
    key_value: usize,
    /// Attention heads.
    #[arg(long, default_value_t = 32)]
    heads: usize,
    /// Rows of the embedding.
    #[arg(long, default_value_t = 32000)]
    vocabulary: usize,
    /// Experts of each block, of DeepSeek-V3's shapes.
    #[arg(long)]
    experts: Option<usize>,
    /// Write a fine-tune of what is written without this: projections differ by a tenth of their deviation.
    #[arg(long)]
    fine_tuned: bool,
    /// Write no weights.
    #[arg(long)]
    empty: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.folder)?;
    let tensors = tensors(&arguments);
    let per_shard = tensors.len().div_ceil(arguments.shards.max(1));
    let count = tensors.len().div_ceil(per_shard);
    let mut weight_map = serde_json::Map::new();
    for (index, shard) in tensors.chunks(per_shard).enumerate() {
        let name = if count == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{count:05}.safetensors", index + 1)
        };
        write_shard(&arguments.folder.join(&name), shard, &arguments)?;
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), name.clone().into())));
    }
    if count > 1 {
        let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
        std::fs::write(arguments.folder.join("model.safetensors.index.json"), format!("{index:#}\n"))?;
    }
    std::fs::write(arguments.folder.join("config.json"), format!("{:#}\n", config(&arguments)))?;
    Ok(())
}

fn config(arguments: &Arguments) -> serde_json::Value {
    let mut config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": arguments.hidden, "intermediate_size": arguments.intermediate,
        "num_hidden_layers": arguments.blocks, "num_attention_heads": arguments.heads,
        "num_key_value_heads": arguments.key_value * arguments.heads / arguments.hidden,
        "vocab_size": arguments.vocabulary, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    if let Some(experts) = arguments.experts {
        let more = serde_json::json!({
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168,
            "num_attention_heads": arguments.heads, "num_key_value_heads": arguments.heads, "q_lora_rank": 1536, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_intermediate_size": 2048,
            "intermediate_size": 18432, "n_routed_experts": experts, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "n_group": 8, "topk_group": 4, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 0,
        });
        if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
            config.extend(more.clone());
        }
    }
    config
}

fn tensors(arguments: &Arguments) -> Vec<(String, Vec<usize>)> {
    let hidden = if arguments.experts.is_some() { 7168 } else { arguments.hidden };
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![arguments.vocabulary, hidden])];
    for block in 0..arguments.blocks {
        let mut add =
            |name: String, shape: Vec<usize>| tensors.push((format!("model.layers.{block}.{name}.weight"), shape));
        add("input_layernorm".into(), vec![hidden]);
        add("post_attention_layernorm".into(), vec![hidden]);
        let Some(experts) = arguments.experts else {
            for (name, rows, columns) in [
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", arguments.key_value, hidden),
                ("self_attn.v_proj", arguments.key_value, hidden),
                ("self_attn.o_proj", hidden, hidden),
                ("mlp.gate_proj", arguments.intermediate, hidden),
                ("mlp.up_proj", arguments.intermediate, hidden),
                ("mlp.down_proj", hidden, arguments.intermediate),
            ] {
                add(name.into(), vec![rows, columns]);
            }
            continue;
        };
        add("self_attn.q_a_proj".into(), vec![1536, hidden]);
        add("self_attn.q_a_layernorm".into(), vec![1536]);
        add("self_attn.q_b_proj".into(), vec![arguments.heads * 192, 1536]);
        add("self_attn.kv_a_proj_with_mqa".into(), vec![576, hidden]);
        add("self_attn.kv_a_layernorm".into(), vec![512]);
        add("self_attn.kv_b_proj".into(), vec![arguments.heads * 256, 512]);
        add("self_attn.o_proj".into(), vec![hidden, arguments.heads * 128]);
        add("mlp.gate".into(), vec![experts, hidden]);
        for expert in (0..experts).map(|expert| format!("experts.{expert}")).chain(["shared_experts".to_owned()]) {
            add(format!("mlp.{expert}.gate_proj"), vec![2048, hidden]);
            add(format!("mlp.{expert}.up_proj"), vec![2048, hidden]);
            add(format!("mlp.{expert}.down_proj"), vec![hidden, 2048]);
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    tensors.push(("lm_head.weight".to_owned(), vec![arguments.vocabulary, hidden]));
    tensors
}

fn write_shard(path: &std::path::Path, tensors: &[(String, Vec<usize>)], arguments: &Arguments) -> anyhow::Result<()> {
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
    if arguments.empty {
        file.flush()?;
        file.get_ref().set_len(8 + (text.len() + offset) as u64)?;
        return Ok(());
    }
    let mut buffer = Vec::new();
    for (index, (name, shape)) in tensors.iter().enumerate() {
        let count: usize = shape.iter().product();
        let norm = name.contains("norm");
        let changed = arguments.fine_tuned && name.contains("_proj");
        let seed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for start in (0..count).step_by(1 << 18) {
            buffer.clear();
            for position in start..count.min(start + (1 << 18)) {
                let mut value = if norm { 1.0 } else { bell(seed ^ position as u64) * 0.02 };
                if changed {
                    value += bell(!seed ^ position as u64) * 0.002;
                }
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
