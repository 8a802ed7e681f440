//! What the end-to-end tests share: a small checkpoint, the binary, folders compared byte for byte.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use safetensors::{Dtype, tensor::TensorView};

/// Sizes of a Llama-shaped checkpoint.
#[derive(Clone, Copy)]
pub struct Shape {
    pub hidden: usize,
    pub intermediate: usize,
    pub blocks: usize,
    pub vocabulary: usize,
}

pub const SMALL: Shape = Shape { hidden: 256, intermediate: 512, blocks: 2, vocabulary: 384 };

/// The binary under test.
pub fn bantam() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bantam"));
    command.env("NO_COLOR", "1");
    command
}

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// Runs and expects an exit code; the output for more checks.
pub fn expect_exit(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{command:?}\nstdout: {}\nstderr: {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

pub fn json(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(&text)
        .or_else(|_| serde_json::from_str(last))
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Names and shapes of the checkpoint's tensors.
pub fn tensors(shape: Shape) -> Vec<(String, Vec<usize>)> {
    let Shape { hidden, intermediate, blocks, vocabulary } = shape;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![vocabulary, hidden]),
    ];
    for block in 0..blocks {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{block}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[hidden / 2, hidden]);
        add("self_attn.v_proj", &[hidden / 2, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
    }
    tensors
}

/// Deterministic BF16 weights, roughly bell-shaped, a few of them large.
pub fn weights(name: &str, count: usize) -> Vec<u8> {
    let mut state = name
        .bytes()
        .fold(0x9e37_79b9_7f4a_7c15_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
    };
    (0..count)
        .flat_map(|index| {
            let scale = if index % 997 == 5 { 0.6 } else { 0.08 };
            half::bf16::from_f32((next() + next() + next()) * scale).to_le_bytes()
        })
        .collect()
}

/// Writes a Llama-shaped BF16 checkpoint.
pub fn write_model(folder: &Path, shape: Shape) {
    std::fs::create_dir_all(folder).unwrap();
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors(shape)
        .into_iter()
        .map(|(name, shape)| {
            let bytes = weights(&name, shape.iter().product());
            (name, shape, bytes)
        })
        .collect();
    write_tensors(&folder.join("model.safetensors"), &data);
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": shape.blocks, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": shape.hidden / 4, "vocab_size": shape.vocabulary,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "hidden_act": "silu",
    });
    std::fs::write(folder.join("config.json"), format!("{config:#}\n")).unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{\"version\": \"1.0\"}\n").unwrap();
}

/// What is written at once may be cached as one piece, and a page fault maps whole pieces: small ones let a test see what
/// memory the program takes, not how its input came to be written.
fn write_in_pieces(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::create(path).unwrap();
    for piece in bytes.chunks(64 << 10) {
        file.write_all(piece).unwrap();
    }
}

pub fn write_tensors(path: &Path, data: &[(String, Vec<usize>, Vec<u8>)]) {
    let views: Vec<(&str, TensorView<'_>)> = data
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()))
        .collect();
    write_in_pieces(path, &safetensors::serialize(views, None).unwrap());
}

/// All files of a folder but the run log, which may differ between runs.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "run.json")
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect()
}

/// Fails with the names of the files that differ (their bytes would fill the screen).
pub fn assert_same(a: &Path, b: &Path) {
    let (left, right) = (contents(a), contents(b));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right));
    let different: Vec<&String> =
        left.iter().filter(|(name, bytes)| right[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(different.is_empty(), "{} and {} differ in {different:?}", a.display(), b.display());
}

/// Every recipe of the fixtures that writes safetensors; `tests/gguf.rs` has the others.
pub fn recipes() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(fixture("recipes"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter(|path| !path.file_stem().is_some_and(|stem| stem.to_string_lossy().starts_with("gguf-")))
        .collect();
    paths.sort();
    assert!(paths.len() >= 15, "the fixture recipes are there");
    paths
}
