//! Forms of differences that follow from the weights: planes within an error, low rank instead of signs; and what a folder
//! of differences saves. Through the binary.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use common::{Shape, assert_same, bantam, contents, expect_exit, json, weights, write_model};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

const SHAPE: Shape = Shape { hidden: 72, intermediate: 200, blocks: 2, vocabulary: 96 };

/// Names and values of F32 tensors.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(folder: &Path) -> Tensors {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (String, TensorView<'_>)| {
        let values = match view.dtype() {
            Dtype::BF16 => view.data().chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F32 => view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            other => panic!("{other:?}"),
        };
        (name, (view.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(entry).collect()
}

fn write(folder: &Path, tensors: &Tensors) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Without the few large ones: planes of signs are slow to reach those.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let number = |b: &[u8]| half::bf16::from_le_bytes([b[0], b[1]]).to_f32().clamp(-0.12, 0.12);
    weights(name, count).chunks(2).map(number).collect()
}

/// Whether a linear is adapted by a product of rank 2; the others get noise.
fn is_adapted(name: &str) -> bool {
    name.contains("q_proj") || name.contains("v_proj")
}

/// A base, and a fine-tune of it in F32, so that its differences are what they were made from: of queries and values a
/// product of rank 2, of other linears noise.
struct Pair {
    folder: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        let pair = Self { folder: tempfile::tempdir().unwrap() };
        write_model(&pair.path("base"), SHAPE);
        write_model(&pair.path("tuned"), SHAPE);
        let mut tuned = read(&pair.path("base"));
        for (name, (shape, values)) in &mut tuned {
            if !name.contains("_proj") {
                continue;
            }
            let (rows, columns) = (shape[0], shape[1]);
            let (left, right) = (numbers(&format!("{name} A"), rows * 2), numbers(&format!("{name} B"), 2 * columns));
            let noise = numbers(&format!("{name} noise"), rows * columns);
            for (at, value) in values.iter_mut().enumerate() {
                let (row, column) = (at / columns, at % columns);
                let product = left[2 * row] * right[column] + left[2 * row + 1] * right[columns + column];
                *value += if is_adapted(name) { 4.0 * product } else { 0.1 * noise[at] };
            }
        }
        write(&pair.path("tuned"), &tuned);
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn recipe(&self, settings: &str) -> PathBuf {
        let path = self.path("delta.toml");
        let head = "schema = 1\nmodel = \"tuned\"\nbase = \"base\"\n[[pass]]\nuse = \"bitdelta\"\n";
        std::fs::write(&path, format!("{head}{settings}\n[artifact]\nout = \"delta\"\nlayout = \"delta\"\n")).unwrap();
        path
    }

    fn run(&self, settings: &str, out: &str, threads: &str) -> PathBuf {
        let out = self.path(out);
        let mut command = bantam();
        command.args(["run", "--quiet", "--threads", threads]).arg(self.recipe(settings)).arg("--out").arg(&out);
        expect_exit(&mut command, 0);
        out
    }

    fn decode(&self, delta: &Path, out: &str) -> Tensors {
        let mut decode = bantam();
        decode.arg("decode").arg(delta).arg("--base").arg(self.path("base")).arg("--out").arg(self.path(out));
        expect_exit(&mut decode, 0);
        read(&self.path(out))
    }

    /// ‖D − D̂‖ / ‖D‖ of each linear.
    fn errors(&self, decoded: &Tensors) -> BTreeMap<String, f64> {
        let (base, tuned) = (read(&self.path("base")), read(&self.path("tuned")));
        let error = |name: &String| {
            let (mut missed, mut all) = (0.0, 0.0);
            for ((tuned, base), decoded) in tuned[name].1.iter().zip(&base[name].1).zip(&decoded[name].1) {
                missed += f64::from(tuned - decoded).powi(2);
                all += f64::from(tuned - base).powi(2);
            }
            (missed / all).sqrt()
        };
        tuned.keys().filter(|name| name.contains("_proj")).map(|name| (name.clone(), error(name))).collect()
    }
}

/// The codec of each linear in a plan or manifest.
fn codecs(value: &serde_json::Value) -> BTreeMap<String, String> {
    let tensors = value["tensors"].as_array().unwrap().iter();
    let codec = |tensor: &serde_json::Value| {
        (tensor["name"].as_str().unwrap().to_owned(), tensor["codec"].as_str().unwrap().to_owned())
    };
    tensors.map(codec).filter(|(name, _)| name.contains("_proj")).collect()
}

#[test]
fn a_low_rank_difference_is_stored_as_one_and_comes_back_within_rounding() {
    let pair = Pair::new();
    for settings in ["low_rank = true", "low_rank = true\nmax_relative_error = 0.3"] {
        let name = format!("delta-{}", settings.len());
        let delta = pair.run(settings, &name, "2");
        let written = contents(&delta);
        let manifest: serde_json::Value = serde_json::from_slice(&written["manifest.json"]).unwrap();
        let plan = json(&expect_exit(bantam().args(["plan", "--json"]).arg(pair.recipe(settings)), 0));
        assert_eq!(plan["artifact_bytes"], written["model.safetensors"].len() as u64);
        assert_eq!(codecs(&plan), codecs(&manifest));
        let errors = pair.errors(&pair.decode(&delta, &format!("decoded-{name}")));
        for (tensor, codec) in codecs(&manifest) {
            if is_adapted(&tensor) {
                // Two factors in F16, with 11 significant bits each.
                assert!(matches!(codec.as_str(), "low-rank-1" | "low-rank-2"), "{tensor}: {codec}");
                let most = if settings.contains("max") && codec == "low-rank-1" { 0.3 } else { 2e-3 };
                assert!(errors[&tensor] < most, "{tensor}: {}", errors[&tensor]);
            } else {
                assert!(codec.starts_with("delta-"), "{tensor}: {codec}");
            }
        }
        let mut verify = bantam();
        verify.arg("verify").arg(&delta).arg("--base").arg(pair.path("base")).arg("--source").arg(pair.path("tuned"));
        expect_exit(&mut verify, 0);
        for threads in ["1", "5"] {
            assert_same(&delta, &pair.run(settings, &format!("{name}-{threads}"), threads));
        }
    }
    // Not asked for: signs for all.
    let plan = json(&expect_exit(bantam().args(["plan", "--json"]).arg(pair.recipe("planes = 1")), 0));
    assert!(codecs(&plan).values().all(|codec| codec == "delta-1-row"));
}

#[test]
fn planes_are_chosen_so_that_the_error_holds() {
    let pair = Pair::new();
    let mut planes = Vec::new();
    for (most, share) in [(0.5, "row"), (0.25, "row"), (0.45, "matrix"), (0.12, "row")] {
        let settings = format!("max_relative_error = {most}\nscale = \"{share}\"");
        let name = format!("delta-{most}-{share}");
        let delta = pair.run(&settings, &name, "2");
        let manifest: serde_json::Value = serde_json::from_slice(&contents(&delta)["manifest.json"]).unwrap();
        let codecs = codecs(&manifest);
        let errors = pair.errors(&pair.decode(&delta, &format!("decoded-{name}")));
        for (tensor, error) in &errors {
            assert!(*error <= most * 1.001, "{tensor}: {error} with {}", codecs[tensor]);
            assert!(codecs[tensor].ends_with(share));
        }
        planes.push(codecs.values().map(|codec| codec.as_bytes()[6] - b'0').max().unwrap());
        assert_eq!(manifest["fallbacks"], serde_json::json!([]));
    }
    assert!(planes[0] < planes[1] && planes[1] < planes[3], "{planes:?}");
    // What eight planes do not reach is said, and refused where fallbacks are.
    let recipe = pair.recipe("max_relative_error = 0.00001");
    let plan = json(&expect_exit(bantam().args(["plan", "--json"]).arg(&recipe), 0));
    assert_eq!(plan["fallbacks"].as_array().unwrap().len(), 14);
    assert!(plan["fallbacks"].as_array().unwrap().iter().all(|fallback| fallback["kind"] == "error-missed"));
    let mut denied = bantam();
    denied.args(["run", "--deny", "fallback"]).arg(&recipe).arg("--out").arg(pair.path("denied"));
    expect_exit(&mut denied, 1);
    expect_exit(bantam().arg("plan").arg(pair.recipe("max_relative_error = 0.5\nplanes = 2")), 2);
}

#[test]
fn a_folder_of_differences_says_what_they_save() {
    let pair = Pair::new();
    let folder = pair.path("deltas");
    std::fs::create_dir(&folder).unwrap();
    let recipe = pair.recipe("planes = 1");
    for name in ["a", "b"] {
        expect_exit(bantam().args(["run", "--quiet"]).arg(&recipe).arg("--out").arg(folder.join(name)), 0);
    }
    let inspect = || expect_exit(bantam().arg("inspect").arg(&folder), 0);
    let text = String::from_utf8_lossy(&inspect().stdout).into_owned();
    assert!(text.contains("2 deltas over one base: saved"), "{text}");
    // One from another base, and folders that are no deltas.
    let other = pair.path("other");
    std::fs::create_dir(&other).unwrap();
    for (name, bytes) in contents(&pair.path("base")) {
        std::fs::write(other.join(name), bytes).unwrap();
    }
    let mut tensors = read(&other);
    tensors.get_mut("model.norm.weight").unwrap().1[3] += 1.0;
    write(&other, &tensors);
    let mut run = bantam();
    run.args(["run", "--quiet"]).arg(&recipe).arg("--base").arg(&other).arg("--out").arg(folder.join("c"));
    expect_exit(&mut run, 0);
    std::fs::create_dir(folder.join("empty")).unwrap();
    let inspected = json(&expect_exit(bantam().args(["inspect", "--json"]).arg(&folder), 0));
    assert_eq!((inspected["bases"].as_u64(), inspected["deltas"].as_array().unwrap().len()), (Some(2), 3));
    let bytes = |folder: &Path| -> i64 {
        let file = std::fs::read(folder.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap().tensors();
        tensors.iter().map(|(_, view)| view.data().len() as i64).sum()
    };
    let saved: i64 = ["a", "b", "c"].iter().map(|name| bytes(&pair.path("tuned")) - bytes(&folder.join(name))).sum();
    assert_eq!(inspected["saved_bytes"].as_i64(), Some(saved));
    let text = String::from_utf8_lossy(&inspect().stdout).into_owned();
    assert!(text.contains("3 deltas over 2 bases: saved"), "{text}");
}
