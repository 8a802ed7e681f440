//! Static scales of inputs: what they follow from, where they stand, who uses them, and who refuses them.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use super::*;

const FP8: &str = "format = \"fp8\"\nactivations = \"static\"\n";

fn pass(name: &str, settings: &str) -> String {
    format!("[[pass]]\nuse = \"{name}\"\n{settings}")
}

/// `input` of every tensor that has one.
fn ranges(manifest: &Value) -> BTreeMap<String, Value> {
    let tensors = manifest["tensors"].as_array().unwrap().iter();
    let with = tensors.filter(|tensor| !tensor["input"].is_null());
    with.map(|tensor| (tensor["name"].as_str().unwrap().to_owned(), tensor["input"].clone())).collect()
}

/// A one-element tensor of an artifact.
fn stored(artifact: &Path, name: &str) -> f64 {
    let bytes = std::fs::read(artifact.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::BF16, &[1][..]), "{name}");
    half::bf16::from_le_bytes(tensor.data().try_into().unwrap()).to_f64()
}

/// The largest magnitudes of every input of a model, from `bantam calibrate`: by block and stage.
fn largest_inputs(bench: &Bench, name: &str, model: &Path) -> BTreeMap<String, f32> {
    let out = bench.path(&format!("{name}.safetensors"));
    let recipe = bench.recipe(name, GPTQ, "compressed-tensors", 8);
    let mut command = bantam();
    command.args(["calibrate", "--quiet"]).arg(&recipe).arg("--model").arg(model).arg("--out").arg(&out);
    expect_exit(&mut command, 0);
    let bytes = std::fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let absmax = file.iter().filter_map(|(name, tensor)| Some((name.strip_suffix(".absmax")?.to_owned(), tensor)));
    absmax
        .map(|(key, tensor)| {
            let values = tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            (key, values.fold(0.0, f32::max))
        })
        .collect()
}

/// Block and stage of a linear of a Llama, as statistics name them.
fn stage(tensor: &str) -> String {
    let block = tensor.split('.').nth(2).unwrap();
    let stage = ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"]
        .iter()
        .position(|names| names.split(' ').any(|name| tensor.contains(name)));
    format!("{block}.{}", stage.unwrap())
}

#[test]
fn scales_follow_from_the_largest_input_that_the_runtime_will_see() {
    let bench = Bench::new();
    let original = largest_inputs(&bench, "original", &model());
    for (name, passes, steps) in [
        ("nearest", pass("rtn", STATIC), 127.0),
        ("solved", pass("gptq", STATIC), 127.0),
        ("float", pass("rtn", FP8), 448.0),
    ] {
        for predecessor in ["original", "compressed"] {
            let calibration = format!(
                "[calibration]\ntext = [\"text.txt\"]\nsequences = 8\nsequence_length = {LENGTH}\npredecessor = \
                 \"{predecessor}\"\n"
            );
            let label = format!("{name}-{predecessor}");
            let recipe = bench.recipe_with(&label, &calibration, &passes, "compressed-tensors");
            let out = bench.path(&label);
            expect_exit(&mut run(&recipe, &model(), &out), 0);
            // The artifact's own forward pass, which rounds inputs, is what the later layers must have been shown.
            let expected = match predecessor {
                "original" => original.clone(),
                _ => largest_inputs(&bench, &format!("{label}-again"), &out),
            };
            let manifest = manifest(&out);
            let ranges = ranges(&manifest);
            assert_eq!(ranges.len(), 28, "{label}: every linear of four blocks");
            assert_eq!(manifest["fallbacks"], json!([]), "{label}");
            for (tensor, range) in &ranges {
                let (largest, scale) = (range["largest"].as_f64().unwrap(), range["scale"].as_f64().unwrap());
                assert_eq!(largest as f32, expected[&stage(tensor)], "{label} {tensor}");
                assert!((scale * steps / largest - 1.0).abs() <= 2_f64.powi(-8), "{label} {tensor}: {range}");
                assert_eq!((&range["tokens"], &range["borrowed"]), (&json!(8 * LENGTH), &json!(false)), "{label}");
                let module = tensor.strip_suffix(".weight").unwrap();
                // The manifest has as many digits as F32 needs.
                assert_eq!(stored(&out, &format!("{module}.input_scale")) as f32, scale as f32, "{label} {tensor}");
            }
        }
        let by_predecessor =
            ["original", "compressed"].map(|word| ranges(&manifest(&bench.path(&format!("{name}-{word}")))));
        assert_ne!(by_predecessor[0], by_predecessor[1], "{name}: the streams differ");
    }
}

#[test]
fn scales_are_found_behind_the_folds() {
    let bench = Bench::new();
    let smooth = "[[pass]]\nuse = \"smoothquant\"\nstrength = 0.8\n";
    for (name, encoding) in [("nearest", pass("rtn", STATIC)), ("solved", pass("gptq", STATIC))] {
        let out = bench.artifact(name, &format!("{smooth}{encoding}"), "compressed-tensors");
        let expected = largest_inputs(&bench, &format!("{name}-again"), &out);
        for (tensor, range) in ranges(&manifest(&out)) {
            // Scaled norms are stored in 16 bits.
            let ratio = range["largest"].as_f64().unwrap() / f64::from(expected[&stage(&tensor)]);
            assert!((ratio - 1.0).abs() < 0.02, "{name} {tensor}: {ratio}");
        }
    }
}

#[test]
fn the_configuration_says_what_runtimes_take() {
    let bench = Bench::new();
    for (name, settings, format, kind) in
        [("int8", STATIC, "int-quantized", "int"), ("fp8", FP8, "float-quantized", "float")]
    {
        let out = bench.artifact(name, &pass("rtn", settings), "compressed-tensors");
        let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
        let config = &config["quantization_config"];
        assert_eq!(config["format"], format);
        let inputs = &config["config_groups"]["group_0"]["input_activations"];
        let told = ["num_bits", "type", "strategy", "symmetric", "dynamic"].map(|key| &inputs[key]);
        assert_eq!(told, [&json!(8), &json!(kind), &json!("tensor"), &json!(true), &json!(false)]);
    }
}

/// `eval` takes the stored scale and no other: one that is far too small clips the input.
#[test]
fn evaluation_rounds_and_clips_with_the_stored_scale() {
    let bench = Bench::new();
    let of = |artifact: &Path| {
        json(&expect_exit(bench.eval(artifact).arg("--reference").arg(model()), 0))["mean_kl_divergence"]
            .as_f64()
            .unwrap()
    };
    for (name, settings) in [("int8", STATIC), ("fp8", FP8)] {
        let out = bench.artifact(name, &pass("rtn", settings), "compressed-tensors");
        let weights_only = settings.replace("static", "none");
        let exact = bench.artifact(&format!("{name}-exact"), &pass("rtn", &weights_only), "compressed-tensors");
        let (rounded, exact) = (of(&out), of(&exact));
        assert!(rounded > exact * 1.05, "{name}: {rounded} with rounded inputs, {exact} without");
        let path = out.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let scale = half::bf16::from_f64(stored(&out, "model.layers.1.mlp.down_proj.input_scale"));
        let at = place(&bytes, "model.layers.1.mlp.down_proj.input_scale");
        assert_eq!(bytes[at..at + 2], scale.to_le_bytes());
        bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(scale.to_f32() / 64.0).to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let clipped = of(&out);
        assert!(clipped > rounded * 1.5, "{name}: {clipped} with a scale that clips, {rounded} before");
    }
}

/// Byte offset of a tensor's data in a safetensors file.
fn place(bytes: &[u8], name: &str) -> usize {
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let parsed: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    8 + header + parsed[name]["data_offsets"][0].as_u64().unwrap() as usize
}

#[test]
fn what_cannot_have_a_static_scale_is_refused_before_anything_is_read() {
    let bench = Bench::new();
    let int8 = pass("rtn", STATIC);
    let refused = |recipe: &Path, words: &[&str]| {
        let message = stderr(&expect_exit(&mut plan(recipe, &model(), &bench.path("out")), 2));
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    };
    refused(
        &bench.recipe_with("bare", "", &int8, "compressed-tensors"),
        &["activations = \"static\"", "[calibration]", "model.layers.0"],
    );
    for layout in ["bantam", "gptq", "gptq-v2", "awq"] {
        refused(&bench.recipe(layout, &int8, layout, 8), &[layout, "activations", "compressed-tensors"]);
    }
    for (name, settings) in [
        ("int4", "bits = 4\nactivations = \"static\"\n"),
        ("groups", "bits = 8\ngroup_size = 128\nactivations = \"static\"\n"),
        ("zeros", "bits = 8\ngranularity = \"channel\"\nsymmetric = false\nactivations = \"static\"\n"),
        ("blocks", "format = \"fp8\"\ngranularity = \"block\"\nactivations = \"static\"\n"),
        ("mxfp8", "format = \"mxfp8\"\nactivations = \"static\"\n"),
        ("mxfp4", "format = \"mxfp4\"\nactivations = \"static\"\n"),
        ("nvfp4", "format = \"nvfp4\"\nactivations = \"static\"\n"),
    ] {
        refused(&bench.recipe(name, &pass("rtn", settings), "compressed-tensors", 8), &["activations", "layers.0"]);
    }
    let head = bench.recipe("head", &format!("{int8}select = [\"head\"]\n"), "compressed-tensors", 8);
    refused(&head, &["lm_head.weight", "outside", "skip"]);
}

/// Experts that no token chose take the largest scale of the others, and that is told.
#[test]
fn unseen_experts_borrow_the_scale_of_the_others() {
    let bench = Bench::new();
    let moe = bench.path("moe");
    write_mixtral(&moe);
    let encoding = format!("{STATIC}select = [\"expert\"]\n");
    for (name, pass_name, predecessor) in
        [("nearest", "rtn", "compressed"), ("solved", "gptq", "compressed"), ("original", "rtn", "original")]
    {
        let calibration = format!(
            "[calibration]\ntext = [\"text.txt\"]\nsequences = 16\nsequence_length = 16\npredecessor = \
             \"{predecessor}\"\n"
        );
        let recipe = bench.recipe_with(name, &calibration, &pass(pass_name, &encoding), "compressed-tensors");
        let out = bench.path(name);
        expect_exit(&mut run(&recipe, &moe, &out), 0);
        let manifest = manifest(&out);
        let ranges = ranges(&manifest);
        assert_eq!(ranges.len(), 24, "{name}: three linears of eight experts");
        for linear in ["w1", "w2", "w3"] {
            let of =
                |expert: usize| &ranges[&format!("model.layers.0.block_sparse_moe.experts.{expert}.{linear}.weight")];
            let seen: Vec<f64> = (0..6).map(|expert| of(expert)["largest"].as_f64().unwrap()).collect();
            assert!((0..6).all(|expert| of(expert)["borrowed"] == false && of(expert)["tokens"] != 0), "{ranges:?}");
            let largest = seen.iter().copied().fold(0.0, f64::max);
            assert!(seen.iter().any(|own| *own < largest), "{name}: each has its own");
            for expert in [6, 7] {
                let range = of(expert);
                let told = (&range["borrowed"], &range["tokens"], range["largest"].as_f64().unwrap());
                assert_eq!(told, (&json!(true), &json!(0), largest), "{name} {linear}");
            }
        }
        let borrowed = manifest["fallbacks"].as_array().unwrap().iter();
        let borrowed: Vec<&Value> = borrowed.filter(|fallback| fallback["kind"] == "borrowed-input-scale").collect();
        assert_eq!(borrowed.len(), 6, "{name}: {borrowed:?}");
        assert!(borrowed.iter().all(|fallback| fallback["count"] == 1), "{name}: {borrowed:?}");
        let denied = bench.path(&format!("{name}-denied"));
        let message = stderr(&expect_exit(run(&recipe, &moe, &denied).args(["--deny", "fallback"]), 1));
        assert!(message.contains("experts."), "{message}");
        // The artifact is whole: it evaluates, and its hashes hold.
        expect_exit(bantam().args(["verify", "--quiet"]).arg(&out).arg("--source").arg(&moe), 0);
        expect_exit(&mut bench.eval(&out), 0);
    }
}
