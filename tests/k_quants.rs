//! GGUF's k-quants in the layout `bantam`, through the binary: sizes, weights as a decoder written from ggml's header gives
//! them, the same bytes for any number of threads and after kills, and what other layouts and wrong settings are told.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use common::{SMALL, Shape, assert_same, bantam, expect_exit, fixture, json, write_model};
use half::{bf16, f16};
use safetensors::SafeTensors;

const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

fn on(command: &str, recipe: &Path, model: &Path, out: &Path) -> Command {
    let mut line = bantam();
    line.args([command, "--quiet"]).arg(recipe).arg("--model").arg(model).arg("--out").arg(out);
    line
}

fn recipe() -> PathBuf {
    fixture("recipes/bantam-k-quants.toml")
}

/// A recipe with this rule, beside a small model.
fn written(folder: &Path, rule: &str, layout: &str) -> PathBuf {
    let path = folder.join("recipe.toml");
    std::fs::write(&path, format!("schema = 1\n[[pass]]\n{rule}\n[artifact]\nlayout = \"{layout}\"\n")).unwrap();
    path
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `block_q4_K`: d, dmin, scales[12], qs[128]; the scales as `get_scale_min_k4` reads them.
fn q4_k(block: &[u8]) -> Vec<f32> {
    let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    let mut values = Vec::new();
    for part in 0..8 {
        let (scale, minimum) = if part < 4 {
            (packed[part] & 63, packed[part + 4] & 63)
        } else {
            let low = packed[part + 4];
            (low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4)
        };
        for column in 0..32 {
            let pair = block[16 + 32 * (part / 2) + column];
            let code = if part % 2 == 1 { pair >> 4 } else { pair & 15 };
            values.push(d * f32::from(scale) * f32::from(code) - dmin * f32::from(minimum));
        }
    }
    values
}

/// `block_q6_K`: ql[128], qh[64], scales[16], d; as `dequantize_row_q6_K` walks through it.
fn q6_k(block: &[u8]) -> Vec<f32> {
    let d = half(block, 208);
    let mut values = vec![0.0; 256];
    for half in 0..2 {
        let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
        let scales = &block[192 + 8 * half..][..8];
        for l in 0..32 {
            let codes = [
                low[l] & 15 | (high[l] & 3) << 4,
                low[l + 32] & 15 | (high[l] >> 2 & 3) << 4,
                low[l] >> 4 | (high[l] >> 4 & 3) << 4,
                low[l + 32] >> 4 | (high[l] >> 6 & 3) << 4,
            ];
            for (run, code) in codes.into_iter().enumerate() {
                let scale = scales[l / 16 + 2 * run].cast_signed();
                values[128 * half + 32 * run + l] = d * f32::from(scale) * f32::from(i16::from(code) - 32);
            }
        }
    }
    values
}

#[test]
fn sizes_and_weights_are_those_of_the_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out, dense) = (folder.path().join("model"), folder.path().join("out"), folder.path().join("dense"));
    write_model(&model, SMALL);
    let plan = json(&expect_exit(on("plan", &recipe(), &model, &out).arg("--json"), 0));
    expect_exit(&mut on("run", &recipe(), &model, &out), 0);
    let file = std::fs::read(out.join("model.safetensors")).unwrap();
    assert_eq!(plan["artifact_bytes"], file.len() as u64);
    expect_exit(bantam().args(["verify", "--quiet"]).arg(&out), 0);
    expect_exit(bantam().args(["decode", "--quiet"]).arg(&out).arg("--out").arg(&dense), 0);
    let decoded = std::fs::read(dense.join("model.safetensors")).unwrap();
    let source = std::fs::read(model.join("model.safetensors")).unwrap();
    let [file, decoded, source] = [&file, &decoded, &source].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    for (name, rows, columns, codec, bits) in
        [(DOWN, SMALL.hidden, SMALL.intermediate, "q6_k", 6.5625), (UP, SMALL.intermediate, SMALL.hidden, "q4_k", 4.5)]
    {
        let told = plan["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == name).unwrap();
        assert_eq!((told["codec"].as_str(), told["bits_per_weight"].as_f64()), (Some(codec), Some(bits)), "{name}");
        let blocks = file.tensor(&format!("{name}.blocks")).unwrap();
        let block_bytes = if codec == "q4_k" { 144 } else { 210 };
        assert_eq!(blocks.shape(), [rows, columns / 256 * block_bytes], "{name}");
        let values = blocks.data().chunks_exact(block_bytes).flat_map(if codec == "q4_k" { q4_k } else { q6_k });
        let rounded: Vec<u8> = values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
        let found = decoded.tensor(name).unwrap();
        assert_eq!(found.shape(), [rows, columns]);
        assert!(found.data() == rounded, "{name} is decoded as ggml does");
        let floats = |bytes: &[u8]| -> Vec<f64> {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
        };
        let (exact, stored) = (floats(source.tensor(name).unwrap().data()), floats(&rounded));
        let lost: f64 = exact.iter().zip(&stored).map(|(a, b)| (a - b).powi(2)).sum();
        let energy: f64 = exact.iter().map(|weight| weight * weight).sum();
        let relative = (lost / energy).sqrt();
        assert!(relative < if codec == "q4_k" { 0.1 } else { 0.025 }, "{name}: {relative}");
    }
    let inspected = expect_exit(bantam().args(["inspect", "--json"]).arg(&out), 0);
    let inspected = String::from_utf8(inspected.stdout).unwrap();
    assert!(inspected.contains("q4_k") && inspected.contains("q6_k"), "{inspected}");
    expect_exit(bantam().args(["diff", "--quiet"]).arg(&model).arg(&out), 0);
}

#[test]
fn artifacts_are_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("tiny-llama"), folder.path().join("out"));
    let recipe = written(
        folder.path(),
        "use = \"rtn\"\nformat = \"q4_k\"\nselect = [\"attention.key\", \"attention.value\"]",
        "bantam",
    );
    expect_exit(&mut on("run", &recipe, &model, &out), 0);
    let text = folder.path().join("text.txt");
    let page = std::fs::read_to_string(fixture("text/recipe.txt")).unwrap();
    std::fs::write(&text, page.chars().take(1500).collect::<String>()).unwrap();
    let perplexity = |model: &Path| {
        let mut command = bantam();
        command.args(["eval", "--json", "--context", "128", "--text"]).arg(&text).arg(model);
        json(&expect_exit(&mut command, 0))["perplexity"].as_f64().unwrap()
    };
    let (before, after) = (perplexity(&model), perplexity(&out));
    assert!(before != after && (after / before - 1.0).abs() < 0.05, "{before}, then {after}");
}

#[test]
fn threads_and_kills_leave_the_bytes_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let [model, reference, other, out] = ["model", "reference", "other", "out"].map(|name| folder.path().join(name));
    write_model(&model, Shape { blocks: 3, ..SMALL });
    let start = Instant::now();
    expect_exit(on("run", &recipe(), &model, &reference).args(["--threads", "1"]), 0);
    let whole = start.elapsed();
    expect_exit(on("run", &recipe(), &model, &other).args(["--threads", "3"]), 0);
    assert_same(&reference, &other);
    let mut killed = 0;
    for share in [0.3, 0.5, 0.7, 0.4] {
        let mut command = on("run", &recipe(), &model, &out);
        let mut child = command.args(["--threads", "1"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(share));
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        if out.exists() {
            break;
        }
    }
    assert!(killed > 0, "no kill hit a running process");
    if !out.exists() {
        expect_exit(on("run", &recipe(), &model, &out).args(["--threads", "2"]), 0);
    }
    assert_same(&reference, &out);
}

#[test]
fn rotated_matrices_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    write_model(&model, SMALL);
    let recipe = written(
        folder.path(),
        "use = \"rotate\"\n[[pass]]\nuse = \"rtn\"\nformat = \"q6_k\"\nselect = [\"mlp.up\"]",
        "bantam",
    );
    let text = std::fs::read_to_string(&recipe).unwrap();
    std::fs::write(&recipe, text.replace("\"rotate\"", "\"rotate\"\nselect = [\"mlp.up\"]")).unwrap();
    expect_exit(&mut on("run", &recipe, &model, &out), 0);
    expect_exit(bantam().args(["verify", "--quiet"]).arg(&out), 0);
}

/// Q4_1's form: F16 is the type of scales beside F16 weights, here BF16 beside BF16.
#[test]
fn minima_of_solved_codes_are_read_back_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out, dense) = (fixture("tiny-llama"), folder.path().join("out"), folder.path().join("dense"));
    std::fs::copy(fixture("text/recipe.txt"), folder.path().join("text.txt")).unwrap();
    let rule = "use = \"gptq\"\ngroup_size = 32\nsymmetric = false\nzero = \"minimum\"\nselect = [\"attention.value\"]";
    let recipe = written(folder.path(), rule, "bantam");
    let text = std::fs::read_to_string(&recipe).unwrap();
    let calibration = "schema = 1\n[calibration]\ntext = [\"text.txt\"]\nsequences = 4\nsequence_length = 32\n";
    std::fs::write(&recipe, text.replace("schema = 1\n", calibration)).unwrap();
    expect_exit(&mut on("run", &recipe, &model, &out), 0);
    expect_exit(bantam().args(["verify", "--quiet"]).arg(&out), 0);
    expect_exit(bantam().args(["decode", "--quiet"]).arg(&out).arg("--out").arg(&dense), 0);
    let file = std::fs::read(out.join("model.safetensors")).unwrap();
    let decoded = std::fs::read(dense.join("model.safetensors")).unwrap();
    let [file, decoded] = [&file, &decoded].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let name = "model.layers.2.self_attn.v_proj.weight";
    let floats = |suffix: &str| -> Vec<f32> {
        let tensor = file.tensor(&format!("{name}.{suffix}")).unwrap();
        tensor.data().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    };
    let (scales, minima) = (floats("scales"), floats("zeros"));
    let codes = file.tensor(&format!("{name}.codes")).unwrap();
    let expected: Vec<u8> = codes
        .data()
        .iter()
        .flat_map(|pair| [pair & 15, pair >> 4])
        .enumerate()
        .flat_map(|(at, code)| bf16::from_f32(f32::from(code) * scales[at / 32] + minima[at / 32]).to_le_bytes())
        .collect();
    assert!(decoded.tensor(name).unwrap().data() == expected, "decoded as code · scale + minimum");
    assert!(minima.iter().all(|minimum| *minimum < 0.0));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let [model, narrow, out] = ["model", "narrow", "out"].map(|name| folder.path().join(name));
    write_model(&model, SMALL);
    write_model(&narrow, Shape { intermediate: 320, ..SMALL });
    let refused = |rule: &str, layout: &str, model: &Path| {
        let recipe = written(folder.path(), rule, layout);
        let output = on("plan", &recipe, model, &out).output().unwrap();
        assert!(!output.status.success(), "{rule} in {layout}");
        String::from_utf8(output.stderr).unwrap()
    };
    let q4 = "use = \"rtn\"\nformat = \"q4_k\"";
    for layout in
        ["compressed-tensors", "gptq", "gptq-v2", "awq", "vptq", "delta", "remote-code", "sparse-24-bitmask", "dense"]
    {
        let message = refused(q4, layout, &model);
        assert!(message.contains(&format!("layout `{layout}`")) && message.contains("model.layers.0."), "{message}");
    }
    let message = refused(q4, "bantam", &narrow);
    assert!(message.contains("320 columns are not whole `q4_k` blocks of 256 weights"), "{message}");
    let masked = "use = \"mask_2_4\"\ncriterion = \"magnitude\"\n[[pass]]\nuse = \"rtn\"\nformat = \"q4_k\"";
    let message = refused(masked, "bantam", &model);
    assert!(message.contains("super-blocks do not keep weights at zero"), "{message}");
    let message = refused("use = \"gptq\"\nformat = \"q6_k\"", "bantam", &model);
    assert!(message.contains("`gptq` finds no codes of `q6_k`"), "{message}");
    for (setting, what) in [
        ("bits = 4", "`bits` and `format` exclude each other"),
        ("group_size = 128", "fixes 32"),
        ("granularity = \"channel\"", "fixes \"group\""),
        ("symmetric = true", "fixes false"),
        ("range = \"minmax\"", "fixes \"mse\""),
        ("activations = \"dynamic\"", "fixes \"none\""),
        ("outliers = 0.01", "no such setting"),
        ("target_bits = 4.5", "no such setting"),
        ("block = [128, 128]", "no such setting"),
        ("zero = \"integer\"", "no such setting"),
    ] {
        let message = refused(&format!("{q4}\n{setting}"), "bantam", &model);
        assert!(message.contains(what), "{setting}: {message}");
    }
}
