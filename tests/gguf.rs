//! Layout `gguf` through the binary: what lies in the file, read by a decoder of its own that is written from ggml's
//! definitions; exact plans; the same bytes after any interruption and for any number of threads; what is refused.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use common::{SMALL, assert_same, bantam, expect_exit, fixture, json, write_model};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// A tensor of a file: type, dimensions with the fastest first, bytes.
struct Stored {
    kind: u32,
    dimensions: Vec<usize>,
    bytes: Vec<u8>,
}

/// A GGUF file, read without bantam: scalars and texts of the metadata as text, and the tensors.
struct File {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Stored>,
}

struct Cursor<'a>(&'a [u8], usize);

impl Cursor<'_> {
    fn take(&mut self, length: usize) -> Vec<u8> {
        self.1 += length;
        self.0[self.1 - length..self.1].to_vec()
    }

    fn number(&mut self, width: usize) -> u64 {
        self.take(width).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn text(&mut self) -> String {
        let length = self.number(8) as usize;
        String::from_utf8(self.take(length)).unwrap()
    }

    fn value(&mut self, kind: u64) -> String {
        match kind {
            4 | 5 => self.number(4).to_string(),
            6 => f32::from_bits(self.number(4) as u32).to_string(),
            7 => (self.number(1) == 1).to_string(),
            8 => self.text(),
            9 => {
                let (kind, length) = (self.number(4), self.number(8));
                let values: Vec<String> = (0..length).map(|_| self.value(kind)).collect();
                values.join("\u{1f}")
            }
            other => panic!("value of type {other}"),
        }
    }
}

/// (weights, bytes) of the blocks of a type.
fn block(kind: u32) -> (usize, usize) {
    match kind {
        0 => (1, 4),
        1 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        8 => (32, 34),
        12 => (256, 144),
        14 => (256, 210),
        39 => (32, 17),
        other => panic!("type {other}"),
    }
}

fn read(folder: &Path) -> File {
    let bytes = std::fs::read(folder.join("model.gguf")).unwrap();
    let mut cursor = Cursor(&bytes, 0);
    assert_eq!((cursor.take(4), cursor.number(4)), (b"GGUF".to_vec(), 3));
    let (tensors, entries) = (cursor.number(8), cursor.number(8));
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let (key, kind) = (cursor.text(), cursor.number(4));
        let value = cursor.value(kind);
        assert!(metadata.insert(key, value).is_none());
    }
    let infos: Vec<(String, Vec<usize>, u32, usize)> = (0..tensors)
        .map(|_| {
            let (name, rank) = (cursor.text(), cursor.number(4));
            let dimensions = (0..rank).map(|_| cursor.number(8) as usize).collect();
            (name, dimensions, cursor.number(4) as u32, cursor.number(8) as usize)
        })
        .collect();
    let data = cursor.1.next_multiple_of(32);
    let mut expected = 0;
    let mut tensors = BTreeMap::new();
    for (name, dimensions, kind, offset) in infos {
        // llama.cpp refuses a file whose tensors do not lie in their order, each padded.
        assert_eq!(offset, expected, "{name}");
        let (weights, width) = block(kind);
        let length = dimensions.iter().product::<usize>() / weights * width;
        let stored = Stored { kind, dimensions, bytes: bytes[data + offset..][..length].to_vec() };
        tensors.insert(name, stored);
        expected = (offset + length).next_multiple_of(32);
    }
    assert_eq!(bytes.len(), data + expected);
    File { metadata, tensors }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Weights of a block by ggml's definitions.
fn decode_block(kind: u32, block: &[u8]) -> Vec<f32> {
    let nibbles = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4)).collect()
    };
    match kind {
        0 => vec![f32::from_le_bytes([block[0], block[1], block[2], block[3]])],
        1 => vec![half(block)],
        30 => vec![bf16::from_le_bytes([block[0], block[1]]).to_f32()],
        2 => nibbles(&block[2..]).iter().map(|&code| half(block) * (f32::from(code) - 8.0)).collect(),
        3 => nibbles(&block[4..]).iter().map(|&code| half(block) * f32::from(code) + half(&block[2..])).collect(),
        8 => block[2..].iter().map(|byte| half(block) * f32::from(byte.cast_signed())).collect(),
        39 => {
            let values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
            let scale = 2f32.powi(i32::from(block[0]) - 127);
            nibbles(&block[1..]).iter().map(|&code| scale * values[code as usize]).collect()
        }
        12 => {
            let (d, low) = (half(block), half(&block[2..]));
            let packed = &block[4..16];
            let scale_and_minimum = |group: usize| match group {
                0..4 => (packed[group] & 63, packed[group + 4] & 63),
                _ => (
                    packed[group + 4] & 15 | (packed[group - 4] >> 6) << 4,
                    packed[group + 4] >> 4 | (packed[group] >> 6) << 4,
                ),
            };
            let mut weights = Vec::new();
            for group in 0..8 {
                let (scale, minimum) = scale_and_minimum(group);
                let (scale, minimum) = (d * f32::from(scale), low * f32::from(minimum));
                for byte in &block[16 + group / 2 * 32..][..32] {
                    weights.push(scale * f32::from(byte >> (group % 2 * 4) & 15) - minimum);
                }
            }
            weights
        }
        14 => {
            let d = half(&block[208..]);
            (0..256)
                .map(|index| {
                    let (part, within) = (index / 128, index % 128);
                    let low = block[part * 64 + within % 64] >> (within / 64 * 4) & 15;
                    let high = block[128 + part * 32 + within % 32] >> (within / 32 * 2) & 3;
                    let scale = f32::from(block[192 + index / 16].cast_signed());
                    d * scale * (f32::from(low | high << 4) - 32.0)
                })
                .collect()
        }
        other => panic!("type {other}"),
    }
}

/// The file's tensors under the model's names, rows in the model's order.
fn weights(file: &File, heads: usize, kv_heads: usize) -> BTreeMap<String, Vec<f32>> {
    let named = |name: &str| {
        let within = [
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ];
        let parts: Vec<&str> = name.split('.').collect();
        match parts[..] {
            ["token_embd", "weight"] => "model.embed_tokens.weight".to_owned(),
            ["output_norm", "weight"] => "model.norm.weight".to_owned(),
            ["output", "weight"] => "lm_head.weight".to_owned(),
            ["blk", number, module, "weight"] => {
                let module = within.iter().find(|(short, _)| *short == module).unwrap().1;
                format!("model.layers.{number}.{module}.weight")
            }
            _ => panic!("{name}"),
        }
    };
    let decoded = |(name, stored): (&String, &Stored)| {
        let (_, width) = block(stored.kind);
        let flat: Vec<f32> = stored.bytes.chunks(width).flat_map(|block| decode_block(stored.kind, block)).collect();
        let heads = match name {
            name if name.contains("attn_q.") => heads,
            name if name.contains("attn_k.") => kv_heads,
            _ => return (named(name), flat),
        };
        // reshape(heads, d / 2, 2, columns).swapaxes(1, 2)
        let (columns, rows) = (stored.dimensions[0], stored.dimensions[1]);
        let half = rows / heads / 2;
        let mut turned = Vec::new();
        for head in 0..heads {
            for side in 0..2 {
                for pair in 0..half {
                    let row = (head * half + pair) * 2 + side;
                    turned.extend_from_slice(&flat[row * columns..][..columns]);
                }
            }
        }
        (named(name), turned)
    };
    file.tensors.iter().map(decoded).collect()
}

fn dense(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let wide = |dtype: Dtype, data: &[u8]| -> Vec<f32> {
        match dtype {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => panic!("{other:?}"),
        }
    };
    file.iter().map(|(name, view)| (name.to_owned(), wide(view.dtype(), view.data()))).collect()
}

fn run(recipe: &Path, out: &Path) -> std::process::Command {
    let mut command = bantam();
    command.args(["run", "--quiet"]).arg(recipe).arg("--model").arg(fixture("tiny-llama")).arg("--out").arg(out);
    command
}

fn recipe(folder: &Path, passes: &str) -> PathBuf {
    let path = folder.join("recipe.toml");
    std::fs::write(&path, format!("schema = 1\n{passes}\n[artifact]\nlayout = \"gguf\"\n")).unwrap();
    path
}

/// Runs, verifies with the source, decodes, and compares with the decoder of this test, bit for bit; gives both.
fn check(folder: &Path, recipe: &Path) -> (File, BTreeMap<String, Vec<f32>>) {
    let name = recipe.file_stem().unwrap().to_string_lossy().into_owned();
    let (out, decoded) = (folder.join(&name), folder.join(format!("{name}-dense")));
    let mut plan = bantam();
    plan.args(["plan", "--json"]).arg(recipe).arg("--model").arg(fixture("tiny-llama")).arg("--out").arg(&out);
    let plan = json(&expect_exit(&mut plan, 0));
    expect_exit(&mut run(recipe, &out), 0);
    let length = std::fs::metadata(out.join("model.gguf")).unwrap().len();
    assert_eq!(plan["artifact_bytes"], length, "{name}: the plan is exact");
    expect_exit(bantam().args(["verify", "--quiet"]).arg(&out).arg("--source").arg(fixture("tiny-llama")), 0);
    expect_exit(bantam().args(["decode", "--quiet", "--dtype", "f32"]).arg(&out).arg("--out").arg(&decoded), 0);
    let file = read(&out);
    let (ours, theirs) = (dense(&decoded), weights(&file, 8, 4));
    assert!(ours.keys().eq(theirs.keys()));
    for (name, weights) in &theirs {
        let same = weights.iter().zip(&ours[name]).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && weights.len() == ours[name].len(), "{name} differs");
    }
    (file, ours)
}

#[test]
fn every_type_decodes_as_ggml_defines_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = dense(&fixture("tiny-llama"));
    for (recipe, kind, other) in
        [("q8_0", 8, 8), ("q4_0", 2, 2), ("q4_1", 3, 3), ("mxfp4", 39, 39), ("k-quants", 12, 14)]
    {
        let (file, decoded) = check(folder.path(), &fixture(&format!("recipes/gguf-{recipe}.toml")));
        for (name, stored) in &file.tensors {
            let expected = match name.split('.').rev().nth(1).unwrap() {
                "ffn_down" | "attn_v" => other,
                "attn_norm" | "ffn_norm" | "output_norm" => 0,
                "token_embd" | "output" => 30,
                _ => kind,
            };
            assert_eq!(stored.kind, expected, "{recipe}: {name}");
        }
        for (name, weights) in &decoded {
            let (mut error, mut energy) = (0.0, 0.0);
            for (a, b) in weights.iter().zip(&source[name]) {
                (error, energy) = (error + f64::from(a - b).powi(2), energy + f64::from(*b).powi(2));
            }
            assert!(error < 0.03 * energy, "{recipe}: {name} is {error} of {energy} off");
            assert_eq!(error == 0.0, !name.ends_with("_proj.weight"), "{recipe}: {name}");
        }
    }
}

#[test]
fn plain_tensors_embeddings_and_heads_are_carried_too() {
    let folder = tempfile::tempdir().unwrap();
    let source = dense(&fixture("tiny-llama"));
    let (file, plain) = check(folder.path(), &recipe(folder.path(), ""));
    assert!(plain == source, "nothing is coded, and rows come back in their order");
    assert_eq!(file.metadata["general.file_type"], "32");
    let embeddings = "[[pass]]\nuse = \"rtn\"\nbits = 8\ngroup_size = 32\nsymmetric = true\n\
                      select = [\"embedding\", \"head\"]\n";
    let path = recipe(folder.path(), embeddings);
    let path = {
        let renamed = folder.path().join("embeddings.toml");
        std::fs::rename(path, &renamed).unwrap();
        renamed
    };
    let (file, _) = check(folder.path(), &path);
    assert_eq!((file.tensors["token_embd.weight"].kind, file.tensors["output.weight"].kind), (8, 8));
    assert_eq!(file.tensors["blk.0.attn_q.weight"].kind, 30);
}

#[test]
fn metadata_are_the_models_and_the_tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = check(folder.path(), &fixture("recipes/gguf-q4_0.toml"));
    for (key, value) in [
        ("general.architecture", "llama"),
        ("general.name", "LlamaForCausalLM"),
        ("general.file_type", "2"),
        ("general.quantization_version", "2"),
        ("llama.block_count", "4"),
        ("llama.context_length", "512"),
        ("llama.embedding_length", "256"),
        ("llama.feed_forward_length", "768"),
        ("llama.attention.head_count", "8"),
        ("llama.attention.head_count_kv", "4"),
        ("llama.attention.layer_norm_rms_epsilon", "0.00001"),
        ("llama.rope.freq_base", "10000"),
        ("llama.rope.dimension_count", "32"),
        ("llama.vocab_size", "2048"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "gpt-2"),
        ("tokenizer.ggml.bos_token_id", "0"),
        ("tokenizer.ggml.eos_token_id", "0"),
        ("tokenizer.ggml.add_bos_token", "false"),
    ] {
        assert_eq!(file.metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
    let text = std::fs::read_to_string(fixture("tiny-llama/tokenizer.json")).unwrap();
    let tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tokens: Vec<&str> = file.metadata["tokenizer.ggml.tokens"].split('\u{1f}').collect();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    assert_eq!(tokens.len(), vocabulary.len());
    assert!(vocabulary.iter().all(|(token, id)| tokens[id.as_u64().unwrap() as usize] == token));
    assert_eq!(file.metadata["tokenizer.ggml.merges"].split('\u{1f}').count(), 1791);
    let kinds: Vec<&str> = file.metadata["tokenizer.ggml.token_type"].split('\u{1f}').collect();
    assert_eq!((kinds[0], kinds[1], kinds.len()), ("3", "1", 2048));
}

#[test]
fn interrupted_runs_and_any_threads_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = fixture("recipes/gguf-k-quants.toml");
    let reference = folder.path().join("reference");
    expect_exit(run(&recipe, &reference).args(["--threads", "1"]), 0);
    let mut interrupted = 0;
    for (threads, milliseconds) in [("1", 60), ("2", 150), ("3", 300), ("5", 600)] {
        let out = folder.path().join(format!("out-{threads}"));
        let mut child = run(&recipe, &out)
            .args(["--threads", threads])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        interrupted += usize::from(!child.wait().unwrap().success());
        expect_exit(run(&recipe, &out).args(["--threads", threads]), 0);
        assert_same(&reference, &out);
    }
    assert!(interrupted > 0, "no run was interrupted");
}

#[test]
fn a_gguf_file_is_a_source_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    expect_exit(&mut run(&fixture("recipes/gguf-q8_0.toml"), &first), 0);
    let plain = recipe(folder.path(), "");
    let mut command = bantam();
    command.args(["run", "--quiet"]).arg(&plain).arg("--model").arg(&first).arg("--out").arg(&second);
    expect_exit(&mut command, 0);
    expect_exit(bantam().args(["verify", "--quiet"]).arg(&second).arg("--source").arg(&first), 0);
    // No rule encodes it, so codes are carried: the data are the same, byte for byte.
    let (one, other) = (read(&first), read(&second));
    for (name, stored) in &one.tensors {
        let carried = &other.tensors[name];
        assert!(carried.kind == stored.kind && carried.bytes == stored.bytes, "{name}");
    }
    let decoded = folder.path().join("decoded");
    expect_exit(bantam().args(["decode", "--quiet"]).arg(&first).arg("--out").arg(&decoded), 0);
    assert_eq!(dense(&decoded).len(), one.tensors.len());
    let inspected = json(&expect_exit(bantam().args(["inspect", "--json"]).arg(&first), 0)).to_string();
    assert!(inspected.contains("model.layers.3.self_attn.q_proj.weight"), "{inspected}");
    let diff = expect_exit(bantam().args(["diff", "--json"]).arg(&first).arg(fixture("tiny-llama")), 0);
    assert!(json(&diff).to_string().contains("q_proj"));
    // The file alone, without what lies beside it.
    let alone = folder.path().join("alone.gguf");
    std::fs::copy(first.join("model.gguf"), &alone).unwrap();
    let inspected = json(&expect_exit(bantam().args(["inspect", "--json"]).arg(&alone), 0)).to_string();
    assert!(inspected.contains("model.layers.0.mlp.down_proj.weight"));
}

#[test]
fn damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    expect_exit(&mut run(&fixture("recipes/gguf-q4_0.toml"), &out), 0);
    let path = out.join("model.gguf");
    let good = std::fs::read(&path).unwrap();
    let verify = || expect_exit(bantam().arg("verify").arg(&out), 1);
    let mut changed = good.clone();
    let last = changed.len() - 40;
    changed[last] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    assert!(String::from_utf8_lossy(&verify().stdout).contains("are not those that were written"));
    std::fs::write(&path, &good[..good.len() - 64]).unwrap();
    assert!(String::from_utf8_lossy(&verify().stdout).contains("truncated"));
    let place = good.windows(19).position(|window| window == b"blk.0.attn_q.weight").unwrap();
    let mut other = good.clone();
    other[place + 19 + 4 + 16] = 13;
    std::fs::write(&path, &other).unwrap();
    let inspect = expect_exit(bantam().arg("inspect").arg(&out), 3);
    let message = String::from_utf8_lossy(&inspect.stderr).into_owned();
    assert!(message.contains("`blk.0.attn_q.weight` has the type Q5_K, which bantam does not read"), "{message}");
}

#[test]
fn what_a_file_cannot_hold_is_refused_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    let plan = |passes: &str, code: i32| {
        let mut command = bantam();
        command.arg("plan").arg(recipe(folder.path(), passes)).arg("--model").arg(&model);
        let output = expect_exit(command.arg("--out").arg(folder.path().join("out")), code);
        let texts = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&texts).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let rtn = |bits: usize, group: usize| {
        format!("[[pass]]\nuse = \"rtn\"\nbits = {bits}\ngroup_size = {group}\nsymmetric = true\n")
    };
    assert!(plan(&rtn(3, 32), 2).contains("has no blocks for"));
    assert!(plan(&rtn(4, 128), 2).contains("groups of 32"));
    let text = plan(&rtn(4, 32), 0);
    assert!(text.contains("the file holds no tokenizer"), "{text}");
    let mut denied = bantam();
    denied.args(["run", "--deny", "fallback"]).arg(recipe(folder.path(), &rtn(4, 32))).arg("--model").arg(&model);
    let denied = expect_exit(denied.arg("--out").arg(folder.path().join("out")), 1);
    assert!(String::from_utf8_lossy(&denied.stderr).contains("holds no tokenizer"));
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(model.join("config.json"), config.replace("\"llama\"", "\"gemma2\"")).unwrap();
    assert!(plan(&rtn(4, 32), 2).contains("config.json says `gemma2`"));
    std::fs::remove_file(model.join("config.json")).unwrap();
    assert!(plan(&rtn(4, 32), 2).contains("needs the model's config.json"));
}

/// The same recipe in layout `gptq`, whose scales are F16 too: the same codes, so the same weights to the last bit.
#[test]
fn codes_that_gptq_finds_are_carried_losslessly() {
    let folder = tempfile::tempdir().unwrap();
    let text = fixture("text/recipe.txt");
    let solved = |layout: &str, symmetric: bool| {
        let path = folder.path().join(format!("{layout}-{symmetric}.toml"));
        let calibration = format!("[calibration]\ntext = [{text:?}]\nsequences = 4\nsequence_length = 64\n");
        let pass = format!(
            "[[pass]]\nuse = \"gptq\"\nselect = [\"block.0.attention.query\", \"block.0.mlp.gate\"]\nbits = 4\ngroup_size = 32\nsymmetric = {symmetric}\n"
        );
        std::fs::write(&path, format!("schema = 1\n{calibration}{pass}[artifact]\nlayout = \"{layout}\"\n")).unwrap();
        let (out, decoded) = (path.with_extension("out"), path.with_extension("dense"));
        expect_exit(&mut run(&path, &out), 0);
        expect_exit(bantam().args(["verify", "--quiet"]).arg(&out).arg("--source").arg(fixture("tiny-llama")), 0);
        expect_exit(bantam().args(["decode", "--quiet", "--dtype", "f32"]).arg(&out).arg("--out").arg(&decoded), 0);
        (out, dense(&decoded))
    };
    let ((out, ours), (_, theirs)) = (solved("gguf", true), solved("gptq", true));
    assert!(ours == theirs, "other weights");
    assert_eq!(read(&out).tensors["blk.0.attn_q.weight"].kind, 2);
    assert!(weights(&read(&out), 8, 4) == ours);
    // Asymmetric ones have minima that no other layout stores in F16. That errors come out again, which the pass's own codes
    // were measured with, shows that they are those codes.
    let (out, ours) = solved("gguf", false);
    assert_eq!(read(&out).tensors["blk.0.attn_q.weight"].kind, 3);
    assert!(weights(&read(&out), 8, 4) == ours);
}

/// A GPTQ checkpoint in groups of 32: its codes and scales are what `Q4_0` holds. Zero points that differ are not.
#[test]
fn codes_of_a_gptq_checkpoint_are_carried_losslessly() {
    let folder = tempfile::tempdir().unwrap();
    for (symmetric, kind) in [(true, 2), (false, 30)] {
        let path = folder.path().join("gptq.toml");
        let pass = format!("[[pass]]\nuse = \"rtn\"\nbits = 4\ngroup_size = 32\nsymmetric = {symmetric}\n");
        std::fs::write(&path, format!("schema = 1\n{pass}[artifact]\nlayout = \"gptq\"\n")).unwrap();
        let (source, out) = (folder.path().join(format!("{kind}-source")), folder.path().join(format!("{kind}-out")));
        expect_exit(&mut run(&path, &source), 0);
        let mut command = bantam();
        command.args(["run", "--quiet"]).arg(recipe(folder.path(), "")).arg("--model").arg(&source);
        expect_exit(command.arg("--out").arg(&out), 0);
        expect_exit(bantam().args(["verify", "--quiet"]).arg(&out).arg("--source").arg(&source), 0);
        let (file, decoded) = (read(&out), folder.path().join(format!("{kind}-dense")));
        assert_eq!(file.tensors["blk.1.attn_k.weight"].kind, kind);
        if symmetric {
            expect_exit(
                bantam().args(["decode", "--quiet", "--dtype", "f32"]).arg(&source).arg("--out").arg(&decoded),
                0,
            );
            assert!(weights(&file, 8, 4) == dense(&decoded));
        }
    }
}
