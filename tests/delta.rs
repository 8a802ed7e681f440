//! Differences from a base, through the binary: what is written, what comes back, what is refused.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "delta/distilled.rs"]
mod distilled;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use common::{Shape, assert_same, bantam, contents, expect_exit, json, weights, write_model};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Columns that are no multiple of 32: rows of signs end within a word.
const SHAPE: Shape = Shape { hidden: 72, intermediate: 200, blocks: 2, vocabulary: 96 };

/// Type, shape and bytes of each tensor.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(folder: &Path) -> Tensors {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    file.tensors().into_iter().map(entry).collect()
}

fn write(folder: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn floats(tensor: &(Dtype, Vec<usize>, Vec<u8>)) -> Vec<f32> {
    let two = |bytes: &[u8]| [bytes[0], bytes[1]];
    match tensor.0 {
        Dtype::BF16 => tensor.2.chunks(2).map(|b| half::bf16::from_le_bytes(two(b)).to_f32()).collect(),
        Dtype::F16 => tensor.2.chunks(2).map(|b| half::f16::from_le_bytes(two(b)).to_f32()).collect(),
        Dtype::F32 => tensor.2.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        other => panic!("{other:?}"),
    }
}

fn bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
}

const KEY: &str = "model.layers.1.self_attn.k_proj.weight";
const VALUE: &str = "model.layers.0.self_attn.v_proj.weight";
const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const NORM: &str = "model.norm.weight";
const OLD: &str = "model.layers.1.mlp.down_proj.weight";

/// A base, and a model made from it: noise on the linears of the blocks, one of them left alone, one in another type,
/// one that the base lacks; three tokens more in embedding and head, and other values in one old token.
struct Pair {
    folder: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pair = Self { folder };
        write_model(&pair.base(), SHAPE);
        write_model(&pair.tuned(), Shape { vocabulary: SHAPE.vocabulary + 3, ..SHAPE });
        let mut base = read(&pair.base());
        let mut tuned = base.clone();
        for (name, tensor) in &mut tuned {
            if !name.contains("_proj") || name == VALUE {
                continue;
            }
            let noise = weights(&format!("{name} noise"), tensor.1.iter().product());
            let noise = floats(&(Dtype::BF16, Vec::new(), noise));
            let values: Vec<f32> =
                floats(tensor).iter().zip(noise).map(|(weight, noise)| weight + 0.1 * noise).collect();
            tensor.2 = bf16(&values);
            if name == QUERY {
                let half = values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes());
                (tensor.0, tensor.2) = (Dtype::F16, half.collect());
            }
        }
        for name in [EMBEDDING, HEAD] {
            let tensor = tuned.get_mut(name).unwrap();
            tensor.1[0] += 3;
            tensor.2.extend(weights("new tokens", 3 * SHAPE.hidden));
        }
        tuned.get_mut(EMBEDDING).unwrap().2[5 * 2 * SHAPE.hidden..][..4].copy_from_slice(&[0, 0x3f, 0, 0x3f]);
        tuned.get_mut(NORM).unwrap().2[..2].copy_from_slice(&[0x80, 0x3f]);
        base.remove(KEY);
        write(&pair.base(), &base);
        write(&pair.tuned(), &tuned);
        pair
    }

    fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    fn tuned(&self) -> PathBuf {
        self.folder.path().join("tuned")
    }

    fn recipe(&self, settings: &str) -> PathBuf {
        let path = self.folder.path().join("delta.toml");
        let head = "schema = 1\nmodel = \"tuned\"\nbase = \"base\"\n[[pass]]\nuse = \"bitdelta\"\n";
        std::fs::write(&path, format!("{head}{settings}\n[artifact]\nout = \"delta\"\nlayout = \"delta\"\n")).unwrap();
        path
    }

    /// Runs a recipe with these settings.
    fn delta(&self, settings: &str, name: &str, threads: &str) -> PathBuf {
        let out = self.folder.path().join(name);
        let recipe = self.recipe(settings);
        let mut command = bantam();
        command.args(["run", "--quiet", "--threads", threads]).arg(recipe).arg("--out").arg(&out);
        expect_exit(&mut command, 0);
        out
    }

    fn decode(&self, delta: &Path, base: &Path, out: &str, code: i32) -> (PathBuf, String) {
        let out = self.folder.path().join(out);
        let mut command = bantam();
        command.arg("decode").arg(delta).arg("--base").arg(base).arg("--out").arg(&out);
        let output = expect_exit(&mut command, code);
        (out, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The planes of a difference by the definition, in f64 but for what is stored: base + Σ α S, rounded to BF16 or F16.
fn expected(base: &[f32], tuned: &[f32], columns: usize, planes: usize, by_row: bool, dtype: Dtype) -> Vec<f32> {
    let mut rest: Vec<f32> = tuned.iter().zip(base).map(|(tuned, base)| tuned - base).collect();
    let mut sum = vec![0.0_f32; rest.len()];
    for _ in 0..planes {
        let per_scale = if by_row { columns } else { rest.len() };
        let scales: Vec<f32> = rest
            .chunks(per_scale)
            .map(|part| (part.iter().map(|value| f64::from(value.abs())).sum::<f64>() / part.len() as f64) as f32)
            .collect();
        for (index, (rest, sum)) in rest.iter_mut().zip(&mut sum).enumerate() {
            let scale = scales[index / per_scale];
            let term = if *rest >= 0.0 { scale } else { -scale };
            *rest -= term;
            *sum += term;
        }
    }
    let round = |value: f32| match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        _ => half::bf16::from_f32(value).to_f32(),
    };
    base.iter().zip(&sum).map(|(base, sum)| round(base + sum)).collect()
}

#[test]
fn a_delta_and_its_base_give_the_model_back() {
    let pair = Pair::new();
    let (base, tuned) = (read(&pair.base()), read(&pair.tuned()));
    for (settings, planes, by_row) in
        [("scale = \"matrix\"", 1, false), ("planes = 2", 2, true), ("planes = 1", 1, true)]
    {
        let delta = pair.delta(settings, &format!("delta-{planes}-{by_row}"), "2");
        let (decoded, _) = pair.decode(&delta, &pair.base(), &format!("decoded-{planes}-{by_row}"), 0);
        let decoded = read(&decoded);
        assert_eq!(decoded.keys().collect::<Vec<_>>(), tuned.keys().collect::<Vec<_>>());
        for (name, tensor) in &tuned {
            let found = &decoded[name];
            assert_eq!((found.0, &found.1), (tensor.0, &tensor.1), "{name}");
            if name.contains("_proj") && name != VALUE && name != KEY {
                let columns = tensor.1[1];
                let wanted = expected(&floats(&base[name]), &floats(tensor), columns, planes, by_row, tensor.0);
                let got = floats(found);
                // A mean may round to the next F32, and that to the next BF16, in some places.
                let close = got.iter().zip(&wanted).filter(|(a, b)| a == b).count();
                assert!(close * 1000 >= got.len() * 999, "{name}: {close} of {}", got.len());
                let worst = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3, "{name}: {worst}");
            } else {
                assert_eq!(found.2, tensor.2, "{name} is not lossy");
            }
        }
    }
}

#[test]
fn every_tensor_is_stored_in_the_fewest_bytes() {
    let pair = Pair::new();
    let recipe = pair.recipe("planes = 1");
    let plan = json(&expect_exit(bantam().args(["plan", "--json"]).arg(&recipe), 0));
    let tensor =
        |name: &str| plan["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == name).unwrap().clone();
    let row = 2 * SHAPE.hidden as u64;
    for (name, action, bytes) in [
        (VALUE, "same", 0),
        // Three new tokens, in the embedding one old one too; each with the number of its row.
        (HEAD, "rows", 3 * (row + 8)),
        (EMBEDDING, "rows", 4 * (row + 8)),
        (NORM, "copy", row),
        ("model.layers.0.input_layernorm.weight", "same", 0),
        (KEY, "copy", row * SHAPE.hidden as u64 / 2),
        (OLD, "encode", SHAPE.hidden as u64 * (SHAPE.intermediate as u64 / 8 + 4)),
    ] {
        assert_eq!(
            (tensor(name)["action"].as_str().unwrap(), tensor(name)["bytes"].as_u64().unwrap()),
            (action, bytes),
            "{name}"
        );
    }
    assert_eq!(plan["fallbacks"].as_array().unwrap().len(), 1);
    assert_eq!(plan["fallbacks"][0]["tensor"], KEY);
    let delta = pair.delta("planes = 1", "delta", "2");
    let written = contents(&delta);
    assert_eq!(plan["artifact_bytes"], written["model.safetensors"].len() as u64);
    let manifest: serde_json::Value = serde_json::from_slice(&written["manifest.json"]).unwrap();
    let hash = blake3::hash(&read(&pair.base())[OLD].2).to_hex().to_string();
    let listed = manifest["base"].as_array().unwrap().iter().find(|tensor| tensor["name"] == OLD).unwrap();
    assert!(listed["hash"].as_str().unwrap().ends_with(&hash), "{listed}");
    expect_exit(bantam().arg("verify").arg(&delta), 0);
    let mut verify = bantam();
    verify.arg("verify").arg(&delta).arg("--base").arg(pair.base()).arg("--source").arg(pair.tuned());
    expect_exit(&mut verify, 0);
    let inspected = json(&expect_exit(bantam().args(["inspect", "--json"]).arg(&delta), 0));
    let saved = inspected["delta"]["saved_bytes"].as_u64().unwrap();
    let tuned: u64 = read(&pair.tuned()).values().map(|tensor| tensor.2.len() as u64).sum();
    let stored: u64 = read(&delta).values().map(|tensor| tensor.2.len() as u64).sum();
    assert_eq!(saved, tuned - stored);
    // A folder of deltas: the sum.
    let folder = pair.folder.path().join("deltas");
    std::fs::create_dir(&folder).unwrap();
    for name in ["a", "b"] {
        let out = folder.join(name);
        expect_exit(bantam().args(["run", "--quiet"]).arg(&recipe).arg("--out").arg(&out), 0);
    }
    let inspected = json(&expect_exit(bantam().args(["inspect", "--json"]).arg(&folder), 0));
    assert_eq!(
        (inspected["deltas"].as_array().unwrap().len(), inspected["saved_bytes"].as_u64()),
        (2, Some(2 * saved))
    );
}

#[test]
fn another_base_is_refused() {
    let pair = Pair::new();
    let delta = pair.delta("planes = 1", "delta", "2");
    let other = pair.folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for (name, bytes) in contents(&pair.base()) {
        std::fs::write(other.join(name), bytes).unwrap();
    }
    let mut tensors = read(&other);
    tensors.get_mut(OLD).unwrap().2[7] ^= 1;
    write(&other, &tensors);
    let (out, message) = pair.decode(&delta, &other, "decoded", 3);
    assert!(message.contains(OLD) && message.contains("is not the base of"), "{message}");
    assert!(!out.exists());
    tensors.remove(OLD);
    write(&other, &tensors);
    let (_, message) = pair.decode(&delta, &other, "decoded", 3);
    assert!(message.contains(OLD), "{message}");
    let out = pair.folder.path().join("decoded");
    let output = expect_exit(bantam().arg("decode").arg(&delta).arg("--out").arg(&out), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--base"));
    let mut whole = bantam();
    whole.arg("decode").arg(pair.tuned()).arg("--base").arg(pair.base()).arg("--out").arg(&out);
    expect_exit(&mut whole, 2);
}

#[test]
fn the_bytes_do_not_depend_on_threads_and_a_run_continues() {
    let pair = Pair::new();
    let plane = pair.delta("planes = 1", "plane", "1");
    assert_same(&plane, &pair.delta("planes = 1", "plane-threads", "3"));
    let one = pair.delta("planes = 3", "one", "1");
    for threads in ["2", "7"] {
        assert_same(&one, &pair.delta("planes = 3", &format!("threads-{threads}"), threads));
    }
    // Again into the same folder: nothing to do, and after the base has changed, something else than what stands there.
    pair.delta("planes = 3", "one", "2");
    let mut base = read(&pair.base());
    base.get_mut(OLD).unwrap().2[7] ^= 1;
    write(&pair.base(), &base);
    let mut command = bantam();
    command.args(["run", "--quiet"]).arg(pair.recipe("planes = 3")).arg("--out").arg(&one);
    expect_exit(&mut command, 4);
}

#[test]
fn a_model_that_equals_its_base_is_refused_before_anything_is_written() {
    let pair = Pair::new();
    let recipe = pair.recipe("");
    let out = pair.folder.path().join("nothing");
    for command in ["plan", "run"] {
        let mut refused = bantam();
        refused.arg(command).arg(&recipe).arg("--model").arg(pair.base());
        let output = expect_exit(if command == "run" { refused.arg("--out").arg(&out) } else { &mut refused }, 3);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains("no difference to store"), "{message}");
    }
    let left: Vec<_> = std::fs::read_dir(pair.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("nothing")), "{left:?}");
}

#[test]
fn recipes_name_what_is_missing() {
    let pair = Pair::new();
    let refused = |text: &str, expected: &str| {
        let path = pair.folder.path().join("wrong.toml");
        std::fs::write(&path, text).unwrap();
        let output = expect_exit(bantam().arg("plan").arg(&path), 2);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(expected), "{expected}: {message}");
    };
    let head = "schema = 1\nmodel = \"tuned\"\n";
    let delta = "[artifact]\nout = \"o\"\nlayout = \"delta\"\n";
    refused(&format!("{head}[[pass]]\nuse = \"bitdelta\"\n{delta}"), "`base`, which is missing");
    refused(&format!("{head}base = \"base\"\n[[pass]]\nuse = \"int4\"\n"), "no pass stores differences");
    refused(
        &format!("{head}base = \"base\"\n[[pass]]\nuse = \"bitdelta\"\n[artifact]\nout = \"o\"\n"),
        "needs the layout",
    );
    refused(&format!("{head}[[pass]]\nuse = \"int4\"\n{delta}"), "no pass of the recipe makes them");
    let both = format!("{head}base = \"base\"\n[[pass]]\nuse = \"bitdelta\"\n[[pass]]\nuse = \"rotate\"\n{delta}");
    refused(&both, "cannot stand beside");
}
