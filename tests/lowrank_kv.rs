//! `lowrank_kv` through the binary: errors against sums of eigenvalues that are computed here, the same bytes whatever
//! happens, every layout read back, ranks for a budget, and settings that cannot work.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{assert_same, bantam, expect_exit, fixture, json, write_tensors};
use safetensors::SafeTensors;
use serde_json::Value;

const HIDDEN: usize = 256;
const ROWS: usize = 128;
const LAYERS: usize = 4;

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in [("recipe.txt", "text.txt"), ("models.txt", "evaluation.txt")] {
            std::fs::copy(fixture("text").join(from), folder.path().join(to)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn recipe(&self, name: &str, calibration: &str, settings: &str, layout: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        let text = format!(
            "schema = 1\n[calibration]\ntext = [\"text.txt\"]\nsequences = 16\nsequence_length = 64\n{calibration}\n\
             [[pass]]\nuse = \"lowrank_kv\"\n{settings}\n[artifact]\nlayout = \"{layout}\"\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn artifact(&self, name: &str, settings: &str, layout: &str) -> PathBuf {
        let recipe = self.recipe(name, "", settings, layout);
        expect_exit(&mut run(&recipe, &model(), &self.path(name)), 0);
        self.path(name)
    }

    fn perplexity(&self, model: &Path) -> f64 {
        let mut command = bantam();
        command.args(["eval", "--json", "--context", "128", "--text"]).arg(self.path("evaluation.txt")).arg(model);
        json(&expect_exit(&mut command, 0))["perplexity"].as_f64().unwrap()
    }
}

fn model() -> PathBuf {
    fixture("tiny-llama")
}

fn on(command: &str, recipe: &Path, model: &Path, out: &Path) -> Command {
    let mut line = bantam();
    line.args([command, "--quiet"]).arg(recipe).arg("--model").arg(model).arg("--out").arg(out);
    line
}

fn run(recipe: &Path, model: &Path, out: &Path) -> Command {
    on("run", recipe, model, out)
}

fn plan(recipe: &Path) -> Command {
    let mut command = on("plan", recipe, &model(), Path::new("unused"));
    command.arg("--json");
    command
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The values of an F32 or F64 tensor.
fn floats(file: &[u8], name: &str) -> Vec<f64> {
    let file = SafeTensors::deserialize(file).unwrap();
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    match tensor.dtype() {
        safetensors::Dtype::F64 => {
            tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
        }
        safetensors::Dtype::F32 => {
            tensor.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        other => panic!("{name} is {other:?}"),
    }
}

fn weights(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

/// `W H Wᵀ` by its definition.
fn products(weights: &[f64], moments: &[f64]) -> Vec<f64> {
    let rows = weights.len() / HIDDEN;
    let mut turned = vec![0.0; weights.len()];
    for (out, row) in turned.chunks_exact_mut(HIDDEN).zip(weights.chunks_exact(HIDDEN)) {
        for (value, moments) in row.iter().zip(moments.chunks_exact(HIDDEN)) {
            out.iter_mut().zip(moments).for_each(|(out, moment)| *out += value * moment);
        }
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    (0..rows * rows)
        .map(|at| dot(&turned[at / rows * HIDDEN..][..HIDDEN], &weights[at % rows * HIDDEN..][..HIDDEN]))
        .collect()
}

/// Eigenvalues of a symmetric matrix, descending, by Jacobi's rotations.
fn eigenvalues(mut matrix: Vec<f64>, n: usize) -> Vec<f64> {
    for _ in 0..30 {
        let off: f64 = (0..n * n).filter(|at| at / n != at % n).map(|at| matrix[at] * matrix[at]).sum();
        let all: f64 = matrix.iter().map(|value| value * value).sum();
        if off < 1e-26 * all {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let apq = matrix[p * n + q];
                if apq == 0.0 {
                    continue;
                }
                let theta = (matrix[q * n + q] - matrix[p * n + p]) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (a, b) = (matrix[k * n + p], matrix[k * n + q]);
                    (matrix[k * n + p], matrix[k * n + q]) = (c * a - s * b, s * a + c * b);
                }
                for k in 0..n {
                    let (a, b) = (matrix[p * n + k], matrix[q * n + k]);
                    (matrix[p * n + k], matrix[q * n + k]) = (c * a - s * b, s * a + c * b);
                }
            }
        }
    }
    let mut values: Vec<f64> = (0..n).map(|at| matrix[at * n + at]).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

fn trace(matrix: &[f64], n: usize) -> f64 {
    (0..n).map(|at| matrix[at * n + at]).sum()
}

/// The statistics of the original model, saved by the binary.
fn calibrated(bench: &Bench, model: &Path, settings: &str) -> PathBuf {
    let (recipe, file) = (bench.recipe("statistics", "", settings, "bantam"), bench.path("statistics.safetensors"));
    let mut command = bantam();
    command.args(["calibrate", "--quiet"]).arg(&recipe).arg("--model").arg(model).arg("--out").arg(&file);
    expect_exit(&mut command, 0);
    file
}

#[test]
fn the_optimum_loses_the_eigenvalues_it_drops_and_less_than_others_on_every_layer() {
    let bench = Bench::new();
    // Factors of F32 weights are F32, so that rounding does not hide the sums.
    let source = bench.path("source");
    let mut decode = bantam();
    decode.args(["decode", "--quiet", "--dtype", "f32"]).arg(model()).arg("--out").arg(&source);
    expect_exit(&mut decode, 0);
    for entry in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(model().join(entry), source.join(entry)).unwrap();
    }
    let original = weights(&source);
    let statistics = std::fs::read(calibrated(&bench, &source, "")).unwrap();
    for (settings, groups, rank) in [
        ("key_density = 0.25\nvalue_density = 0.25", 1, 32),
        ("key_density = 0.5\nvalue_density = 0.5\ngroup_heads = 2", 2, 32),
    ] {
        let mut losses = Vec::new();
        for method in ["optimal", "asvd", "svd"] {
            let name = format!("{method}-{groups}");
            let recipe = bench.recipe(
                &name,
                "predecessor = \"original\"",
                &format!("method = \"{method}\"\n{settings}"),
                "remote-code",
            );
            expect_exit(&mut run(&recipe, &source, &bench.path(&name)), 0);
            let decoded = bench.path(&format!("{name}-decoded"));
            let mut decode = bantam();
            decode.args(["decode", "--quiet", "--dtype", "f32"]).arg(bench.path(&name)).arg("--out").arg(&decoded);
            expect_exit(&mut decode, 0);
            losses.push((read(&bench.path(&name).join("manifest.json")), weights(&decoded)));
        }
        for layer in 0..LAYERS {
            let triangle = floats(&statistics, &format!("{layer}.0.hessian"));
            let mut moments = vec![0.0; HIDDEN * HIDDEN];
            let mut at = 0;
            for row in 0..HIDDEN {
                for column in 0..=row {
                    moments[row * HIDDEN + column] = triangle[at];
                    moments[column * HIDDEN + row] = triangle[at];
                    at += 1;
                }
            }
            for part in ["k_proj", "v_proj"] {
                let name = format!("model.layers.{layer}.self_attn.{part}.weight");
                let exact = floats(&original, &name);
                let dropped: f64 = exact
                    .chunks_exact(ROWS / groups * HIDDEN)
                    .map(|group| eigenvalues(products(group, &moments), ROWS / groups)[rank..].iter().sum::<f64>())
                    .sum();
                let found: Vec<f64> = losses
                    .iter()
                    .map(|(manifest, decoded)| {
                        let decoded = floats(decoded, &name);
                        let difference: Vec<f64> = exact.iter().zip(&decoded).map(|(a, b)| a - b).collect();
                        let loss = trace(&products(&difference, &moments), ROWS);
                        let tensor =
                            manifest["tensors"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap();
                        if let Some(reported) = tensor["calibration"]["loss"].as_f64() {
                            let tokens = tensor["calibration"]["tokens"].as_f64().unwrap();
                            assert!((reported * tokens / loss - 1.0).abs() < 1e-3, "{name}: {reported} {loss}");
                        }
                        loss
                    })
                    .collect();
                assert!((found[0] / dropped - 1.0).abs() < 1e-3, "{name}: loses {} of {dropped}", found[0]);
                assert!(found[0] <= found[1] && found[0] <= found[2], "{name}: {found:?}");
            }
        }
    }
}

const EVERYTHING: &str =
    "key_density = 0.5\nvalue_density = 0.5\ngroup_heads = 2\nwindow = 32\ncache_bits = 4\nabsorb_values = true\n";

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let bench = Bench::new();
    for (name, settings) in [("optimal", EVERYTHING), ("svd", "method = \"svd\"\ncache_ratio = 0.3\nrotate = true")] {
        let recipe = bench.recipe(name, "", settings, "remote-code");
        let reference = bench.path(&format!("{name}-1"));
        expect_exit(run(&recipe, &model(), &reference).args(["--threads", "1"]), 0);
        for threads in ["2", "3"] {
            let out = bench.path(&format!("{name}-{threads}"));
            expect_exit(run(&recipe, &model(), &out).args(["--threads", threads]), 0);
            assert_same(&reference, &out);
        }
    }
}

#[test]
fn killed_and_continued_gives_the_same_bytes() {
    let bench = Bench::new();
    let recipe = bench.recipe("killed", "", EVERYTHING, "remote-code");
    let (reference, out) = (bench.path("reference"), bench.path("killed"));
    expect_exit(&mut run(&recipe, &model(), &reference), 0);
    let journal = bench.path(".killed.bantam-work/solved/journal");
    let lines = || String::from_utf8_lossy(&std::fs::read(&journal).unwrap_or_default()).matches('\n').count();
    let mut hits = 0;
    // A head, and per block two matrices and the block itself.
    for point in [1, 2, 3, 6, 8, 12] {
        let mut child = run(&recipe, &model(), &out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while lines() < point && child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_mins(5), "{point} lines never came");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        hits += usize::from(!child.wait().unwrap().success());
        if out.exists() {
            assert_same(&reference, &out);
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
    assert!(hits >= 4, "only {hits} kills hit a running process");
    expect_exit(&mut run(&recipe, &model(), &out), 0);
    assert_same(&reference, &out);
}

#[test]
fn every_layout_holds_the_same_matrices_and_verifies() {
    let bench = Bench::new();
    let mut decoded = Vec::new();
    for layout in ["remote-code", "bantam", "dense"] {
        let artifact = bench.artifact(layout, EVERYTHING, layout);
        let mut verify = bantam();
        verify.args(["verify", "--quiet"]).arg(&artifact).arg("--source").arg(model());
        expect_exit(&mut verify, 0);
        let out = bench.path(&format!("{layout}-decoded"));
        let mut decode = bantam();
        decode.args(["decode", "--quiet"]).arg(&artifact).arg("--out").arg(&out);
        expect_exit(&mut decode, 0);
        decoded.push(out);
    }
    assert!(weights(&decoded[0]) == weights(&decoded[2]) && weights(&decoded[1]) == weights(&decoded[2]));
    // What is decoded is the model's own architecture again.
    let (config, source) = (read(&decoded[0].join("config.json")), read(&model().join("config.json")));
    assert_eq!(config, source);
    assert!(!decoded[0].join("modeling_bantam_lowrank_kv.py").exists());

    let artifact = bench.path("remote-code");
    let config = read(&artifact.join("config.json"));
    assert_eq!(config["architectures"], serde_json::json!(["BantamLlamaForCausalLM"]));
    let class = &config["auto_map"]["AutoModelForCausalLM"];
    assert_eq!(*class, "modeling_bantam_lowrank_kv.BantamLlamaForCausalLM");
    let text = std::fs::read_to_string(artifact.join("modeling_bantam_lowrank_kv.py")).unwrap();
    assert!(text.contains("class BantamLlamaForCausalLM"), "the modelling file has the class that the config names");
    let policy = &config["bantam"]["lowrank_kv"];
    assert_eq!((&policy["window"], &policy["cache_bits"]), (&32.into(), &4.into()));
    assert_eq!(policy["layers"].as_array().unwrap().len(), LAYERS);
    assert_eq!(policy["layers"][3], serde_json::json!({"key_ranks": [32, 32], "value_ranks": [32, 32]}));
    assert_eq!(*policy, read(&bench.path("bantam").join("config.json"))["quantization_config"]["lowrank_kv"]);
    assert!(config.get("quantization_config").is_none());

    let (file, source) = (weights(&artifact), weights(&model()));
    let (file, source) = (SafeTensors::deserialize(&file).unwrap(), SafeTensors::deserialize(&source).unwrap());
    for (name, shape) in [("k_proj_a", [64, HIDDEN]), ("k_proj_b", [64, 64]), ("v_proj_a", [64, HIDDEN])] {
        let name = format!("model.layers.1.self_attn.{name}.weight");
        assert_eq!(file.tensor(&name).unwrap().shape(), shape, "{name}");
    }
    let exact = file.tensor("model.layers.1.self_attn.k_proj_exact.weight").unwrap();
    assert_eq!(exact.data(), source.tensor("model.layers.1.self_attn.k_proj.weight").unwrap().data());

    // A policy that somebody has changed is found.
    let path = artifact.join("config.json");
    let changed = std::fs::read_to_string(&path).unwrap().replace("\"window\": 32", "\"window\": 31");
    std::fs::write(&path, changed).unwrap();
    let mut verify = bantam();
    verify.args(["verify", "--quiet"]).arg(&artifact);
    expect_exit(&mut verify, 1);
}

#[test]
fn a_ratio_is_kept_exactly_and_needs_statistics_or_none() {
    let bench = Bench::new();
    let ranks = |planned: &Value| -> usize {
        let tensors = planned["tensors"].as_array().unwrap();
        let stored = tensors.iter().flat_map(|tensor| tensor["stored"].as_array().unwrap());
        let factors = stored.filter(|stored| stored["name"].as_str().unwrap().ends_with("_proj_a.weight"));
        factors.map(|stored| stored["shape"][0].as_u64().unwrap() as usize).sum()
    };
    let channels = (2 * LAYERS * ROWS) as f64;
    for ratio in [0.5, 0.2, 0.137] {
        let settings = format!("method = \"svd\"\ncache_ratio = {ratio}\ngroup_heads = 1");
        let planned = json(&expect_exit(&mut plan(&bench.recipe("svd", "", &settings, "bantam")), 0));
        assert_eq!(ranks(&planned), (ratio * channels) as usize);
        let (before, after) = (&planned["cache"]["kv_bytes_per_token_before"], &planned["cache"]["kv_bytes_per_token"]);
        assert_eq!(before.as_f64(), Some(2.0 * channels));
        assert_eq!(after.as_f64(), Some(2.0 * ranks(&planned) as f64));
    }
    let settings = "cache_ratio = 0.2";
    let recipe = bench.recipe("optimal", "", settings, "remote-code");
    let output = expect_exit(&mut plan(&recipe), 2);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("bantam calibrate") && message.contains("statistics"), "{message}");
    calibrated(&bench, &model(), settings);
    let recipe = bench.recipe("optimal", "statistics = \"statistics.safetensors\"", settings, "remote-code");
    let planned = json(&expect_exit(&mut plan(&recipe), 0));
    assert_eq!(ranks(&planned), (0.2 * channels) as usize);
    let out = bench.path("optimal");
    expect_exit(&mut run(&recipe, &model(), &out), 0);
    let mut inspect = bantam();
    inspect.args(["inspect", "--json"]).arg(&out);
    assert_eq!(json(&expect_exit(&mut inspect, 0))["cache"], planned["cache"]);
}

#[test]
fn quantized_latents_and_the_window_are_counted() {
    let bench = Bench::new();
    let planned = json(&expect_exit(&mut plan(&bench.recipe("all", "", EVERYTHING, "remote-code")), 0));
    let latent = (LAYERS * 64) as f64;
    // Keys: half a byte, and of each 32 tokens two BF16 numbers a channel. Values: two numbers a token and group of heads.
    let keys = latent * (0.5 + 4.0 / 32.0);
    let values = latent * 0.5 + (LAYERS * 2 * 4) as f64;
    assert_eq!(planned["cache"]["kv_bytes_per_token"].as_f64(), Some(keys + values));
    assert_eq!(planned["cache"]["kv_window_bytes"].as_u64(), Some((2 * 2 * LAYERS * ROWS * 32) as u64));
    assert_eq!(planned["cache"]["kv_pending_bytes"].as_f64(), Some(2.0 * 2.0 * latent * 63.0));
}

#[test]
fn settings_and_models_that_cannot_work_are_refused_by_name() {
    let bench = Bench::new();
    for (settings, layout, word) in [
        ("group_heads = 3", "bantam", "group_heads"),
        ("method = \"svd\"\ncache_ratio = 0.001\ngroup_heads = 1", "bantam", "0.0312"),
        ("cache_bits = 3", "bantam", "cache_bits"),
        ("key_density = 0", "bantam", "key_density"),
        ("select = [\"attention.query\"]", "bantam", "attention.query"),
        ("select = [\"attention.key\"]", "remote-code", "either keys or values"),
        ("", "compressed-tensors", "compressed-tensors"),
        ("window = 8\n[[pass.override]]\nselect = [\"attention.key\"]\nwindow = 9", "remote-code", "window"),
    ] {
        let output = expect_exit(&mut plan(&bench.recipe("wrong", "", settings, layout)), 2);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(word), "{settings}: {message}");
    }
    let fused = bench.path("fused");
    std::fs::create_dir_all(&fused).unwrap();
    let shape = vec![3 * 32, 32];
    let data = vec![0; 2 * 3 * 32 * 32];
    write_tensors(
        &fused.join("model.safetensors"),
        &[("model.layers.0.self_attn.qkv_proj.weight".to_owned(), shape, data)],
    );
    let config = serde_json::json!({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 32,
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 1});
    std::fs::write(fused.join("config.json"), config.to_string()).unwrap();
    let recipe = bench.recipe("fused", "", "method = \"svd\"", "bantam");
    let output = expect_exit(&mut on("plan", &recipe, &fused, Path::new("unused")), 2);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("qkv_proj") && message.contains("one matrix"), "{message}");
}

/// Text that no factor was found with; ranks are given out over layers under what each method knows.
#[test]
fn perplexity_falls_from_the_plain_decomposition_to_the_optimum() {
    let bench = Bench::new();
    let source = bench.perplexity(&model());
    println!("perplexity {source:.4} of the source");
    let statistics = "statistics = \"statistics.safetensors\"";
    calibrated(&bench, &model(), "");
    for kept in [0.5, 0.2] {
        let mut found = Vec::new();
        for method in ["svd", "asvd", "optimal"] {
            let name = format!("{method}-{kept}");
            let settings = format!("method = \"{method}\"\ncache_ratio = {kept}");
            let recipe = bench.recipe(&name, statistics, &settings, "bantam");
            expect_exit(&mut run(&recipe, &model(), &bench.path(&name)), 0);
            found.push(bench.perplexity(&bench.path(&name)));
        }
        println!("kept {kept}: svd {:.4}, asvd {:.4}, optimal {:.4}", found[0], found[1], found[2]);
        assert!(found[2] < found[0] && found[2] < found[1], "kept {kept}: {found:?}");
        assert!(found[2] > 0.9 * source, "kept {kept}: {found:?} of {source}");
    }
}
