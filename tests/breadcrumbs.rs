//! Masked changes of fine-tunes, through the binary: merged onto their base, and as a sparse delta of one.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use common::{Shape, assert_same, bantam, contents, expect_exit, json, weights, write_model};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Columns that are no multiple of 8: rows of a mask end within a byte.
const SHAPE: Shape = Shape { hidden: 68, intermediate: 200, blocks: 2, vocabulary: 96 };

const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a checkpoint, which are BF16.
fn read(folder: &Path) -> Tensors {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (String, TensorView<'_>)| {
        assert_eq!(view.dtype(), Dtype::BF16, "{name}");
        let values = view.data().chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        (name, (view.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(entry).collect()
}

fn write(folder: &Path, tensors: &Tensors) {
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    common::write_tensors(&folder.join("model.safetensors"), &data);
}

/// A base and three models made from it: every weight is moved, but for one matrix that the second one leaves alone.
struct Models {
    folder: tempfile::TempDir,
}

impl Models {
    fn new() -> Self {
        let models = Self { folder: tempfile::tempdir().unwrap() };
        write_model(&models.path("base"), SHAPE);
        let base = read(&models.path("base"));
        for name in ["one", "two", "three"] {
            write_model(&models.path(name), SHAPE);
            let mut tuned = base.clone();
            for (tensor, (shape, values)) in &mut tuned {
                if name == "two" && tensor == DOWN {
                    continue;
                }
                let noise = weights(&format!("{name} {tensor}"), shape.iter().product());
                for (value, noise) in values.iter_mut().zip(noise.chunks(2)) {
                    *value += 0.1 * half::bf16::from_le_bytes([noise[0], noise[1]]).to_f32();
                }
            }
            write(&models.path(name), &tuned);
        }
        models
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn recipe(&self, models: &str, settings: &str, layout: &str) -> PathBuf {
        let text = format!(
            "schema = 1\nmodel = {models}\nbase = \"base\"\n[[pass]]\nuse = \"breadcrumbs\"\n{settings}\n[artifact]\n\
             out = \"out\"\nlayout = \"{layout}\"\n"
        );
        let path = self.path("recipe.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, recipe: &Path, out: &str, threads: &str) -> PathBuf {
        let out = self.path(out);
        let mut command = bantam();
        command.args(["run", "--quiet", "--threads", threads]).arg(recipe).arg("--out").arg(&out);
        expect_exit(&mut command, 0);
        out
    }
}

const ALL: &str = "[\"one\", \"two\", \"three\"]";

/// What is kept of a change: sorted by magnitude, of equals the first one first; none of the `outliers` largest.
fn masked(change: &[f64], among: usize, density: f64, outliers: f64) -> Vec<f64> {
    let mut kept = vec![0.0; change.len()];
    for (group, values) in change.chunks(among).enumerate() {
        let mut order: Vec<usize> = (0..among).collect();
        order.sort_by(|a, b| values[*b].abs().partial_cmp(&values[*a].abs()).unwrap().then(a.cmp(b)));
        let first = (outliers * among as f64).round() as usize;
        let count = ((density * among as f64).round() as usize).max(1);
        for place in &order[first..first + count] {
            kept[group * among + place] = values[*place];
        }
    }
    kept
}

/// Differences of BF16 numbers as F32 has them: what is ranked.
fn change(tuned: &[f32], base: &[f32]) -> Vec<f64> {
    tuned.iter().zip(base).map(|(tuned, base)| f64::from(tuned - base)).collect()
}

#[test]
fn several_models_are_merged_as_the_definition_says() {
    let models = Models::new();
    let base = read(&models.path("base"));
    let tuned = ["one", "two", "three"].map(|name| read(&models.path(name)));
    for (settings, density, outliers, scale, by_row) in [
        ("density = 0.2\noutliers = 0.05\nscale = 0.3", 0.2, 0.05, 0.3_f32, true),
        ("ranking = \"tensor\"\nscale = 0.5", 0.15, 0.006, 0.5, false),
        // Less than one weight of a row.
        ("density = 0.001\noutliers = 0", 0.001, 0.0, 1.0, true),
    ] {
        let recipe = models.recipe(ALL, settings, "dense");
        let out = models.run(&recipe, &format!("merged-{density}-{by_row}"), "2");
        let merged = read(&out);
        assert_eq!(merged.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>());
        for (name, (shape, values)) in &merged {
            let before = &base[name].1;
            let columns = *shape.last().unwrap();
            let mut sum = vec![0.0; values.len()];
            for tuned in &tuned {
                let change = change(&tuned[name].1, before);
                // Norms are summed whole: of a small tensor a mask would leave next to nothing.
                let kept = match shape.len() {
                    1 => change,
                    _ => masked(&change, if by_row { columns } else { values.len() }, density, outliers),
                };
                sum.iter_mut().zip(kept).for_each(|(sum, kept)| *sum += kept);
            }
            let mut changed = 0;
            for ((value, before), sum) in values.iter().zip(before).zip(&sum) {
                let exact = f64::from(*before) + f64::from(scale) * sum;
                // BF16 has eight significant bits; F32 sums add next to nothing.
                let half = exact.abs() / 255.0 + 1e-7;
                assert!((f64::from(*value) - exact).abs() <= half, "{name}: {value} is not {exact}");
                if *sum == 0.0 {
                    assert_eq!(value, before, "{name}: what no mask keeps is the base's");
                }
                changed += usize::from(*sum != 0.0);
            }
            assert!(changed > 0, "{name} has lost every change");
        }
        // Loads like any checkpoint: the configuration is the first model's, the tokenizer too.
        assert_eq!(contents(&out)["config.json"], contents(&models.path("one"))["config.json"]);
        assert_eq!(contents(&out)["tokenizer.json"], contents(&models.path("one"))["tokenizer.json"]);
        expect_exit(bantam().arg("verify").arg(&out).arg("--source").arg(models.path("one")), 0);
    }
}

#[test]
fn a_merge_is_planned_exactly_and_names_what_went_in() {
    let models = Models::new();
    let recipe = models.recipe(ALL, "", "dense");
    let plan = json(&expect_exit(bantam().args(["plan", "--json"]).arg(&recipe), 0));
    let tensors = plan["tensors"].as_array().unwrap();
    assert!(tensors.iter().all(|tensor| tensor["action"] == "merge" && tensor["pass"] == "breadcrumbs"));
    let out = models.run(&recipe, "merged", "2");
    let written = contents(&out);
    assert_eq!(plan["artifact_bytes"], written["model.safetensors"].len() as u64);
    let manifest: serde_json::Value = serde_json::from_slice(&written["manifest.json"]).unwrap();
    assert_eq!(manifest["recipe"]["model"], serde_json::json!(["one", "two", "three"]));
    assert_eq!(manifest["merged"].as_array().unwrap().len(), 2);
    let three = std::fs::read(models.path("three").join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&three).unwrap();
    let hash = blake3::hash(file.tensor(DOWN).unwrap().data()).to_hex().to_string();
    let listed = manifest["merged"][1].as_array().unwrap().iter().find(|tensor| tensor["name"] == DOWN).unwrap();
    assert!(listed["hash"].as_str().unwrap().ends_with(&hash));
    assert_eq!(manifest["tensors"][0]["passes"], serde_json::json!(["breadcrumbs"]));
}

#[test]
fn the_bytes_do_not_depend_on_threads_and_a_run_continues() {
    let models = Models::new();
    for (models_text, settings, layout) in
        [(ALL, "ranking = \"tensor\"", "dense"), (ALL, "", "dense"), ("\"one\"", "", "delta")]
    {
        let recipe = models.recipe(models_text, settings, layout);
        let name = format!("{layout}-{}", settings.len());
        let one = models.run(&recipe, &format!("{name}-1"), "1");
        for threads in ["2", "7"] {
            assert_same(&one, &models.run(&recipe, &format!("{name}-{threads}"), threads));
        }
        // The same command again has nothing to do.
        models.run(&recipe, &format!("{name}-1"), "3");
    }
    // Another model beside the first makes it another merge.
    let recipe = models.recipe(ALL, "", "dense");
    let mut three = read(&models.path("three"));
    three.get_mut(DOWN).unwrap().1[7] += 1.0;
    write(&models.path("three"), &three);
    expect_exit(bantam().args(["run", "--quiet"]).arg(&recipe).arg("--out").arg(models.path("dense-0-1")), 4);
}

#[test]
fn a_sparse_delta_and_its_base_give_the_masked_model_back() {
    let models = Models::new();
    let (base, tuned) = (read(&models.path("base")), read(&models.path("one")));
    for (settings, density, outliers, scale, by_row, values_bits) in [
        ("density = 0.2\noutliers = 0.05\nscale = 0.5\nvalues = \"f32\"", 0.2, 0.05, 0.5_f32, true, 32),
        ("density = 0.03\noutliers = 0.0\nranking = \"tensor\"\nvalues = \"f32\"", 0.03, 0.0, 1.0, false, 32),
        ("", 0.15, 0.006, 1.0, true, 16),
    ] {
        let recipe = models.recipe("\"one\"", settings, "delta");
        let plan = json(&expect_exit(bantam().args(["plan", "--json"]).arg(&recipe), 0));
        let delta = models.run(&recipe, &format!("delta-{density}"), "2");
        assert_eq!(plan["artifact_bytes"], contents(&delta)["model.safetensors"].len() as u64);
        let planned = plan["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == DOWN).unwrap();
        let (rows, columns) = (SHAPE.hidden, SHAPE.intermediate);
        let among = if by_row { columns } else { rows * columns };
        let kept = ((density * among as f64).round() as usize).max(1) * (rows * columns / among);
        let mask_bytes = rows * columns.div_ceil(8);
        let index_bytes = kept * 2;
        assert_eq!(planned["bytes"], (kept * values_bits / 8 + mask_bytes.min(index_bytes)) as u64);
        let out = models.path(&format!("decoded-{density}"));
        let mut decode = bantam();
        decode.arg("decode").arg(&delta).arg("--base").arg(models.path("base")).arg("--out").arg(&out);
        expect_exit(&mut decode, 0);
        let decoded = read(&out);
        for (name, (shape, values)) in &decoded {
            let (before, after) = (&base[name].1, &tuned[name].1);
            if shape.len() == 1 {
                assert_eq!(values, after, "{name} is not lossy");
                continue;
            }
            let among = if by_row { shape[1] } else { values.len() };
            let kept = masked(&change(after, before), among, density, outliers);
            for ((value, before), kept) in values.iter().zip(before).zip(&kept) {
                // BF16 differences carry half a unit of their own.
                let own = if values_bits == 16 { kept.abs() / 255.0 } else { 0.0 };
                let exact = f64::from(*before) + f64::from(scale) * kept;
                assert!(
                    (f64::from(*value) - exact).abs() <= exact.abs() / 255.0 + own + 1e-7,
                    "{name}: {value} {exact}"
                );
            }
        }
        let mut verify = bantam();
        verify.arg("verify").arg(&delta).arg("--base").arg(models.path("base")).arg("--source").arg(models.path("one"));
        expect_exit(&mut verify, 0);
    }
}

#[test]
fn what_cannot_be_merged_is_named_and_kept() {
    let models = Models::new();
    let mut two = read(&models.path("two"));
    let head = two.get_mut(HEAD).unwrap();
    head.0[0] += 3;
    head.1.extend(vec![0.5; 3 * SHAPE.hidden]);
    two.remove(NORM);
    write(&models.path("two"), &two);
    let recipe = models.recipe(ALL, "", "dense");
    let out = models.run(&recipe, "merged", "2");
    let one = read(&models.path("one"));
    let merged = read(&out);
    assert_eq!((&merged[HEAD], &merged[NORM]), (&one[HEAD], &one[NORM]));
    assert_ne!(merged[EMBEDDING], one[EMBEDDING]);
    let manifest: serde_json::Value = serde_json::from_slice(&contents(&out)["manifest.json"]).unwrap();
    let fallbacks: Vec<_> = manifest["fallbacks"].as_array().unwrap().iter().map(|f| f["tensor"].clone()).collect();
    assert_eq!(fallbacks, [HEAD, NORM]);
    expect_exit(bantam().args(["run", "--deny", "fallback"]).arg(&recipe).arg("--out").arg(models.path("x")), 1);
    let mut three = read(&models.path("three"));
    three.get_mut(DOWN).unwrap().1[9] = f32::INFINITY;
    write(&models.path("three"), &three);
    let output = expect_exit(bantam().arg("run").arg(&recipe).arg("--out").arg(models.path("y")), 3);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains(DOWN) && message.contains("model 3"), "{message}");
}

#[test]
fn the_command_line_gives_another_base() {
    let models = Models::new();
    let recipe = models.recipe("\"one\"", "density = 1.0\noutliers = 0", "dense");
    // From itself nothing has changed, and with all changes kept the model comes back.
    for (base, expected) in [("one", "one"), ("base", "one"), ("two", "one")] {
        let out = models.path(&format!("from-{base}"));
        let mut run = bantam();
        run.args(["run", "--quiet"]).arg(&recipe).arg("--base").arg(models.path(base)).arg("--out").arg(&out);
        expect_exit(&mut run, 0);
        let manifest: serde_json::Value = serde_json::from_slice(&contents(&out)["manifest.json"]).unwrap();
        let bytes = std::fs::read(models.path(base).join("model.safetensors")).unwrap();
        let hash =
            blake3::hash(SafeTensors::deserialize(&bytes).unwrap().tensor(DOWN).unwrap().data()).to_hex().to_string();
        let listed = manifest["base"].as_array().unwrap().iter().find(|tensor| tensor["name"] == DOWN).unwrap();
        assert!(listed["hash"].as_str().unwrap().ends_with(&hash));
        for (name, (_, values)) in read(&out) {
            let expected = &read(&models.path(expected))[&name].1;
            let worst = values.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-6, "{name}: {worst}");
        }
    }
    // Without one in the recipe as well.
    let text = std::fs::read_to_string(&recipe).unwrap().replace("base = \"base\"\n", "");
    std::fs::write(&recipe, text).unwrap();
    expect_exit(bantam().arg("plan").arg(&recipe), 2);
    expect_exit(bantam().arg("plan").arg(&recipe).arg("--base").arg(models.path("base")), 0);
    std::fs::write(&recipe, "schema = 1\nmodel = \"one\"\n[[pass]]\nuse = \"int4\"\n[artifact]\nout = \"o\"\n")
        .unwrap();
    let output = expect_exit(bantam().arg("plan").arg(&recipe).arg("--base").arg(models.path("base")), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no pass stores differences"));
}

#[test]
fn recipes_name_what_does_not_go_together() {
    let models = Models::new();
    let refused = |recipe: &Path, expected: &str| {
        let output = expect_exit(bantam().arg("plan").arg(recipe), 2);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(expected), "{expected}: {message}");
    };
    refused(&models.recipe(ALL, "", "delta"), "what one model has changed");
    refused(&models.recipe("\"one\"", "", "bantam"), "needs the layout \"delta\" or \"dense\"");
    refused(&models.recipe("[]", "", "dense"), "expected folders of checkpoints");
    refused(&models.recipe(ALL, "density = 0.9\noutliers = 0.2", "dense"), "more than all");
    let path = models.path("wrong.toml");
    let out = "[artifact]\nout = \"o\"\n";
    std::fs::write(&path, format!("schema = 1\nmodel = {ALL}\n[[pass]]\nuse = \"int4\"\n{out}")).unwrap();
    refused(&path, "no pass merges several models");
}
