//! `inspect`, `decode`, `diff` and `verify` through the binary, on small models that the tests write themselves.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use assert_cmd::cargo::CommandCargoExt;
use bantam::checkpoint::{Dtype, write_file};
use half::bf16;
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

const HIDDEN: usize = 128;
const INTERMEDIATE: usize = 256;
const VOCABULARY: usize = 96;

/// Text as a model's authors might have left it: uneven, with a number that re-emitting would change.
const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 256,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "rms_norm_eps": 1.00e-05,
  "torch_dtype": "bfloat16",
  "vocab_size": 96
}
"#;

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn bf16_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect()
}

/// A small Llama with repeatable weights in BF16.
fn llama() -> Vec<Tensor> {
    let mut state = 12345_u64;
    let mut noise = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) as f32 / (1_u64 << 31) as f32 - 0.5) * 0.25
    };
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: Vec<usize>, values: &mut dyn FnMut() -> f32| {
        let bytes = bf16_bytes((0..shape.iter().product::<usize>()).map(|_| values()));
        tensors.push((name, Dtype::BF16, shape, bytes));
    };
    add("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN], &mut noise);
    add("lm_head.weight".into(), vec![VOCABULARY, HIDDEN], &mut noise);
    add("model.norm.weight".into(), vec![HIDDEN], &mut || 1.0);
    for block in 0..2 {
        let layer = |name: &str| format!("model.layers.{block}.{name}.weight");
        add(layer("input_layernorm"), vec![HIDDEN], &mut || 1.0);
        add(layer("post_attention_layernorm"), vec![HIDDEN], &mut || 1.0);
        add(layer("self_attn.q_proj"), vec![HIDDEN, HIDDEN], &mut noise);
        add(layer("self_attn.k_proj"), vec![HIDDEN / 2, HIDDEN], &mut noise);
        add(layer("self_attn.v_proj"), vec![HIDDEN / 2, HIDDEN], &mut noise);
        add(layer("self_attn.o_proj"), vec![HIDDEN, HIDDEN], &mut noise);
        add(layer("mlp.gate_proj"), vec![INTERMEDIATE, HIDDEN], &mut noise);
        add(layer("mlp.up_proj"), vec![INTERMEDIATE, HIDDEN], &mut noise);
        add(layer("mlp.down_proj"), vec![HIDDEN, INTERMEDIATE], &mut noise);
    }
    tensors
}

fn write_model(folder: &Path, tensors: &[Tensor]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    fs::write(folder.join("tokenizer.json"), "{\"tokens\": []}").unwrap();
    let listed: Vec<_> = tensors.iter().map(|(n, d, s, b)| (n.as_str(), *d, s.clone(), b.clone())).collect();
    write_file(&folder.join("model.safetensors"), &listed).unwrap();
}

/// A scratch folder with a model in `source` and, once made, its artifact in `artifact`.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { folder: TempDir::new().unwrap() };
        write_model(&scene.path("source"), &llama());
        scene
    }

    /// With an artifact: INT4, groups of 32.
    fn compressed() -> Self {
        let scene = Self::new();
        let recipe = "schema = 1\nmodel = \"source\"\n[[pass]]\nuse = \"rtn\"\nbits = 4\ngroup_size = 32\n\
                      [artifact]\nout = \"artifact\"\nlayout = \"compressed-tensors\"\n";
        fs::write(scene.path("recipe.toml"), recipe).unwrap();
        scene.bantam(&["run", "recipe.toml", "--quiet"]).expect(0);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bantam(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::cargo_bin("bantam").unwrap();
        let output = command.args(arguments).current_dir(self.folder.path()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn manifest(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("artifact/manifest.json")).unwrap()).unwrap()
    }

    /// Changes a small file of the artifact.
    fn edit(&self, name: &str, change: impl FnOnce(String) -> String) {
        let path = self.path("artifact").join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(text)).unwrap();
    }
}

#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}:\n{}", self.stdout))
    }

    /// The rules of `verify`'s findings.
    #[track_caller]
    fn rules(&self) -> Vec<String> {
        let json = self.json();
        assert_eq!(json["schema"], "bantam.check/1");
        let findings = json["findings"].as_array().unwrap();
        assert_eq!(json["passed"], findings.is_empty());
        findings.iter().map(|finding| finding["rule"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn fits_eighty_columns(self) -> Self {
        for line in self.stdout.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        self
    }
}

#[test]
fn inspect_reads_like_a_page_about_the_model() {
    let scene = Scene::new();
    let page = scene.bantam(&["inspect", "source"]).expect(0).fits_eighty_columns();
    for text in ["LlamaForCausalLM", "attention.query", "mlp.down", "embedding", "model.safetensors", "BF16"] {
        assert!(page.stdout.contains(text), "{text} is not in\n{}", page.stdout);
    }
    let json = scene.bantam(&["inspect", "source", "--json"]).expect(0).json();
    let parameters: usize = llama().iter().map(|(_, _, shape, _)| shape.iter().product::<usize>()).sum();
    assert_eq!(json["schema"], "bantam.inspect/1");
    assert_eq!(json["parameters"], parameters);
    assert_eq!(json["bytes"], 2 * parameters);
    assert_eq!(json["blocks"], 2);
    assert_eq!(json["tensors"].as_array().unwrap().len(), llama().len());
    let roles = json["roles"].as_array().unwrap();
    let down = roles.iter().find(|role| role["role"] == "mlp.down").unwrap();
    assert_eq!((&down["tensors"], &down["parameters"]), (&2.into(), &(2 * HIDDEN * INTERMEDIATE).into()));
    assert_eq!((&down["codec"], &down["bits_per_weight"]), (&"bf16".into(), &16.0.into()));
}

#[test]
fn inspect_shows_what_an_artifact_is_stored_as() {
    let scene = Scene::compressed();
    let json = scene.bantam(&["inspect", "artifact", "--json"]).expect(0).json();
    let manifest = scene.manifest();
    assert_eq!(json["quantization_method"], "compressed-tensors");
    assert_eq!(json["artifact"]["layout"], "compressed-tensors");
    assert_eq!(json["compressed"]["parameters"], manifest["totals"]["compressed_weights"]);
    assert_eq!(json["compressed"]["bits_per_weight"], manifest["totals"]["bits_per_weight"]);
    assert_eq!(json["bytes"], manifest["totals"]["artifact_bytes"]);
    let page = scene.bantam(&["inspect", "artifact"]).expect(0).fits_eighty_columns().stdout;
    assert!(page.contains("int4-g32") && page.contains("layout compressed-tensors"), "{page}");
}

#[test]
fn inspect_gives_the_statistics_of_chosen_tensors() {
    let scene = Scene::new();
    let name = "model.layers.1.mlp.down_proj.weight";
    let json = scene.bantam(&["inspect", "source", "--tensor", "*.1.mlp.down_proj", "--json"]).expect(0).json();
    let rows = json["statistics"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["name"]), (1, &name.into()));
    let (_, _, _, bytes) = llama().into_iter().find(|tensor| tensor.0 == name).unwrap();
    let values: Vec<f64> = bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
    let statistics = &rows[0]["statistics"];
    assert_eq!(statistics["min"], values.iter().copied().fold(f64::INFINITY, f64::min));
    assert_eq!(statistics["max"], values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    assert!((statistics["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert!((statistics["std"].as_f64().unwrap() / variance.sqrt() - 1.0).abs() < 1e-12);
    let counts: u64 =
        statistics["histogram"]["counts"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(counts, values.len() as u64);
    let text = scene.bantam(&["inspect", "source", "--tensor", "mlp.down"]).expect(0).fits_eighty_columns().stdout;
    assert!(
        text.contains("model.layers.0.mlp.down_proj.weight") && text.contains(name) && text.contains('█'),
        "{text}"
    );
}

#[test]
fn a_selector_that_matches_nothing_is_a_usage_error_with_the_nearest_name() {
    let scene = Scene::new();
    let outcome = scene.bantam(&["inspect", "source", "--tensor", "model.layers.1.mlp.dwn_proj.weight"]).expect(2);
    assert!(outcome.stderr.contains("matches no tensor"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("hint: the nearest name is `model.layers.1.mlp.down_proj.weight`"));
    assert!(outcome.stdout.is_empty());
}

#[test]
fn decode_gives_a_model_that_an_independent_reader_loads() {
    let scene = Scene::compressed();
    scene.bantam(&["decode", "artifact", "--out", "dense"]).expect(0);
    assert_eq!(fs::read_to_string(scene.path("dense/config.json")).unwrap(), CONFIG);
    let tokenizer = |folder: &str| fs::read(scene.path(folder).join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer("dense"), tokenizer("source"));
    for name in ["manifest.json", "run.json", "model.safetensors.index.json"] {
        assert!(!scene.path("dense").join(name).exists(), "{name}");
    }
    let file = fs::read(scene.path("dense/model.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let dense = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(dense.len(), llama().len());
    for (name, dtype, shape, bytes) in llama() {
        let tensor = dense.tensor(&name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape.as_slice()), "{name}");
        if !name.contains("proj") {
            assert_eq!(tensor.data(), bytes, "{name} was copied");
            continue;
        }
        // Half a step of 4 bits over a group's range of at most 0.25, and the rounding to BF16.
        let largest = bytes.chunks(2).zip(tensor.data().chunks(2)).map(|(a, b)| {
            (bf16::from_le_bytes([a[0], a[1]]).to_f32() - bf16::from_le_bytes([b[0], b[1]]).to_f32()).abs()
        });
        let largest = largest.fold(0.0, f32::max);
        assert!(largest > 0.0 && largest < 0.5 * 0.25 / 15.0 * 1.1, "{name}: {largest}");
    }
}

#[test]
fn decode_to_f32_loses_nothing() {
    let scene = Scene::compressed();
    let json = scene.bantam(&["decode", "artifact", "--out", "dense", "--dtype", "f32", "--json"]).expect(0).json();
    assert_eq!(json["schema"], "bantam.decode/1");
    assert_eq!((&json["tensors"], &json["decoded"]), (&llama().len().into(), &14.into()));
    let config = fs::read_to_string(scene.path("dense/config.json")).unwrap();
    assert_eq!(config, CONFIG.replace("bfloat16", "float32"));
    let diff = scene.bantam(&["diff", "artifact", "dense", "--json", "--min-snr", "500"]).expect(0).json();
    assert!(diff["tensors"].as_array().unwrap().iter().all(|tensor| tensor["relative"] == 0.0));
}

#[test]
fn decode_never_touches_what_is_there() {
    let scene = Scene::compressed();
    fs::create_dir(scene.path("dense")).unwrap();
    let outcome = scene.bantam(&["decode", "artifact", "--out", "dense"]).expect(4);
    assert!(outcome.stderr.contains("`dense` exists already"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("hint: "));
    assert_eq!(fs::read_dir(scene.path("dense")).unwrap().count(), 0);
}

#[test]
fn a_weight_too_large_for_the_type_is_refused_and_nothing_stays() {
    let scene = Scene::new();
    let mut tensors = llama();
    let (name, _, _, bytes) = &mut tensors[0];
    bytes[..4].copy_from_slice(&bf16_bytes([1e30, -1e10].into_iter()));
    let name = name.clone();
    write_model(&scene.path("huge"), &tensors);
    let before = fs::read_dir(scene.folder.path()).unwrap().count();
    let outcome = scene.bantam(&["decode", "huge", "--out", "dense", "--dtype", "f16"]).expect(3);
    assert!(
        outcome.stderr.contains(&format!("tensor `{name}`: 2 weights are too large for F16")),
        "{}",
        outcome.stderr
    );
    assert_eq!(fs::read_dir(scene.folder.path()).unwrap().count(), before);
}

#[test]
fn diff_shows_the_worst_tensor_first_and_obeys_the_threshold() {
    let scene = Scene::compressed();
    let outcome = scene.bantam(&["diff", "source", "artifact", "--json"]).expect(0);
    let json = outcome.json();
    assert_eq!(json["schema"], "bantam.diff/1");
    let tensors = json["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), llama().len());
    let snr: Vec<f64> = tensors.iter().map(|t| t["snr_db"].as_f64().unwrap_or(f64::INFINITY)).collect();
    assert!(snr.is_sorted() && snr[0] > 15.0 && snr[13].is_finite() && snr[14].is_infinite(), "{snr:?}");
    // The manifest's figures are those that `diff` finds.
    for tensor in scene.manifest()["tensors"].as_array().unwrap().iter().filter(|t| !t["error"].is_null()) {
        let found = tensors.iter().find(|found| found["name"] == tensor["name"]).unwrap();
        for figure in ["relative", "snr_db", "max_abs", "cosine"] {
            let (a, b) = (found[figure].as_f64().unwrap(), tensor["error"][figure].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-9 * b.abs(), "{figure} of {}: {a} and {b}", tensor["name"]);
        }
    }
    let worst = snr[0];
    scene.bantam(&["diff", "source", "artifact", "--min-snr", &format!("{:.3}", worst - 0.01)]).expect(0);
    let above = format!("{:.3}", worst + 0.01);
    let outcome = scene.bantam(&["diff", "source", "artifact", "--min-snr", &above]).expect(1).fits_eighty_columns();
    assert!(outcome.stdout.contains("1 below"), "{}", outcome.stdout);
}

#[test]
fn diff_of_a_model_with_itself_finds_nothing() {
    let scene = Scene::new();
    let outcome = scene.bantam(&["diff", "source", "source", "--min-snr", "1000"]).expect(0);
    assert!(outcome.stdout.contains("21 tensors compared, 21 of them equal"), "{}", outcome.stdout);
}

#[test]
fn diff_counts_missing_tensors_and_other_shapes_as_differences() {
    let scene = Scene::new();
    let mut tensors = llama();
    tensors.retain(|tensor| tensor.0 != "lm_head.weight");
    tensors[0].2 = vec![HIDDEN, VOCABULARY];
    tensors.push(("extra.weight".into(), Dtype::I64, vec![1], vec![0; 8]));
    write_model(&scene.path("other"), &tensors);
    let json = scene.bantam(&["diff", "source", "other", "--json"]).expect(1).json();
    assert_eq!(json["only_in_a"], serde_json::json!(["lm_head.weight"]));
    assert_eq!(json["only_in_b"], serde_json::json!(["extra.weight"]));
    let mismatched = json["mismatched"].as_array().unwrap();
    assert_eq!((mismatched.len(), &mismatched[0]["name"]), (1, &"model.embed_tokens.weight".into()));
    let text = scene.bantam(&["diff", "source", "other"]).expect(1).stdout;
    assert!(
        text.contains("only in A: lm_head.weight") && text.contains("shape [96, 128] in A, [128, 96] in B"),
        "{text}"
    );
}

#[test]
fn verify_passes_what_a_run_wrote_with_and_without_its_source() {
    let scene = Scene::compressed();
    let outcome = scene.bantam(&["verify", "artifact", "--json"]).expect(0);
    assert_eq!(outcome.rules(), [""; 0]);
    scene.bantam(&["verify", "artifact", "--source", "source", "--json"]).expect(0);
    let text = scene.bantam(&["verify", "artifact", "--source", "source"]).expect(0).stdout;
    assert!(text.starts_with("passed artifact"), "{text}");
}

/// The offset of a tensor's first byte in a file.
fn offset_of(path: &Path, tensor: &str) -> usize {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    8 + length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
}

#[test]
fn verify_finds_one_changed_bit() {
    let scene = Scene::compressed();
    let path = scene.path("artifact/model.safetensors");
    let name = "model.layers.1.mlp.up_proj.weight_packed";
    let mut bytes = fs::read(&path).unwrap();
    bytes[offset_of(&path, name) + 100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let outcome = scene.bantam(&["verify", "artifact", "--json"]).expect(1);
    assert_eq!(outcome.rules(), ["hash"]);
    let finding = &outcome.json()["findings"][0];
    assert_eq!(finding["tensor"], name);
    assert_ne!(finding["value"], finding["limit"]);
    let outcome = scene.bantam(&["verify", "artifact", "--source", "source", "--json"]).expect(1);
    assert_eq!(outcome.rules(), ["hash", "error"]);
}

#[test]
fn verify_finds_changed_missing_and_stray_files() {
    let scene = Scene::compressed();
    scene.edit("config.json", |text| text.replace("1.00e-05", "1e-05"));
    fs::remove_file(scene.path("artifact/tokenizer.json")).unwrap();
    fs::write(scene.path("artifact/model.safetensors.index.json"), "{\"weight_map\": {}}").unwrap();
    fs::write(scene.path("artifact/modeling.py"), "").unwrap();
    let rules = scene.bantam(&["verify", "artifact", "--json"]).expect(1).rules();
    for rule in ["file-hash", "file-missing", "stale-index", "file-unlisted"] {
        assert!(rules.iter().any(|found| found == rule), "{rule} is not in {rules:?}");
    }
}

#[test]
fn verify_finds_a_config_that_hides_the_codes() {
    let scene = Scene::compressed();
    fs::write(scene.path("artifact/config.json"), CONFIG).unwrap();
    let outcome = scene.bantam(&["verify", "artifact", "--json"]).expect(1);
    let rules = outcome.rules();
    assert!(rules.contains(&"config".to_owned()) && rules.contains(&"file-hash".to_owned()), "{rules:?}");
}

#[test]
fn verify_finds_a_truncated_weight_file() {
    let scene = Scene::compressed();
    let path = scene.path("artifact/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(scene.bantam(&["verify", "artifact", "--json"]).expect(1).rules(), ["structure"]);
}

#[test]
fn verify_finds_figures_that_were_made_up() {
    let scene = Scene::compressed();
    let mut manifest = scene.manifest();
    let tensors = manifest["tensors"].as_array_mut().unwrap();
    let tensor = tensors.iter_mut().find(|tensor| !tensor["error"].is_null()).unwrap();
    tensor["error"]["cosine"] = 0.999999.into();
    let name = tensor["name"].clone();
    scene.edit("manifest.json", |_| manifest.to_string());
    scene.bantam(&["verify", "artifact", "--json"]).expect(0);
    let outcome = scene.bantam(&["verify", "artifact", "--source", "source", "--json"]).expect(1);
    assert_eq!(outcome.rules(), ["error"]);
    assert_eq!(outcome.json()["findings"][0]["tensor"], name);

    manifest["totals"]["compressed_weights"] = 1.into();
    scene.edit("manifest.json", |_| manifest.to_string());
    let rules = scene.bantam(&["verify", "artifact", "--json"]).expect(1).rules();
    assert_eq!(rules, ["totals"]);
}

#[test]
fn verify_finds_another_source() {
    let scene = Scene::compressed();
    let mut tensors = llama();
    tensors[2].3[0] ^= 1;
    write_model(&scene.path("other"), &tensors);
    let outcome = scene.bantam(&["verify", "artifact", "--source", "other", "--json"]).expect(1);
    assert_eq!(outcome.rules(), ["input-hash"]);
    assert_eq!(outcome.json()["findings"][0]["tensor"], "model.norm.weight");
}

#[test]
fn what_is_no_artifact_is_invalid_input() {
    let scene = Scene::new();
    let outcome = scene.bantam(&["verify", "source"]).expect(3);
    assert!(outcome.stderr.contains("manifest.json"), "{}", outcome.stderr);
    for command in [["inspect", "nowhere"], ["verify", "nowhere"]] {
        let outcome = scene.bantam(&command).expect(3);
        assert!(outcome.stderr.starts_with("error: ") && outcome.stderr.contains("nowhere"), "{}", outcome.stderr);
    }
}

#[test]
fn a_manifest_with_an_unknown_key_is_invalid_input() {
    let scene = Scene::compressed();
    scene.edit("manifest.json", |text| text.replacen("\n  \"layout\"", "\n  \"layouts\"", 1));
    let outcome = scene.bantam(&["verify", "artifact"]).expect(3);
    assert!(outcome.stderr.contains("unknown field `layouts`"), "{}", outcome.stderr);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let scene = Scene::new();
    let mut command = Command::cargo_bin("bantam").unwrap();
    command.args(["inspect", "source", "--json"]).current_dir(scene.folder.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn help_tells_the_exit_codes_and_an_example_and_usage_errors_are_two() {
    let scene = Scene::new();
    assert!(scene.bantam(&["--help"]).expect(0).stdout.contains("75   stopped safely"));
    for command in ["run", "plan", "inspect", "decode", "diff", "verify"] {
        let help = scene.bantam(&[command, "--help"]).expect(0).stdout;
        assert!(help.contains("Example") && help.contains(&format!("bantam {command} ")), "{help}");
    }
    for arguments in
        [&["diff", "source"][..], &["guess"], &["inspect", "source", "--jsn"], &["diff", "a", "b", "--min-snr", "x"]]
    {
        scene.bantam(arguments).expect(2);
    }
}
