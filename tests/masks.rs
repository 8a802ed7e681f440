//! Masks through the binary: what is kept, exact zeros behind every layout, and what masks do not go with.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{assert_same, bantam, expect_exit, fixture, json};
use safetensors::SafeTensors;

const MAGNITUDE: &str = "[[pass]]\nuse = \"mask_2_4\"\ncriterion = \"magnitude\"\n";
const INT4: &str = "[[pass]]\nuse = \"rtn\"\nbits = 4\ngroup_size = 64\nsymmetric = false\n";

/// All tensors of a folder as F32, by name.
fn tensors(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let wide = |data: &[u8]| match data.len() {
        0 => Vec::new(),
        _ => data.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).collect(),
    };
    file.iter().map(|(name, view)| (name.to_owned(), wide(view.data()))).collect()
}

fn recipe(folder: &Path, passes: &str, layout: &str) -> std::path::PathBuf {
    let path = folder.join(format!("{layout}.toml"));
    std::fs::write(&path, format!("schema = 1\n{passes}[artifact]\nlayout = \"{layout}\"\n")).unwrap();
    path
}

/// Runs a recipe on the example; gives its tensors, decoded.
fn dense(folder: &Path, passes: &str, layout: &str) -> BTreeMap<String, Vec<f32>> {
    let (out, decoded) = (folder.join(layout), folder.join(format!("{layout}-dense")));
    let recipe = recipe(folder, passes, layout);
    let model = fixture("tiny-llama");
    expect_exit(bantam().args(["run", "--quiet"]).arg(recipe).arg("--model").arg(&model).arg("--out").arg(&out), 0);
    expect_exit(bantam().args(["verify", "--quiet"]).arg(&out).arg("--source").arg(&model), 0);
    expect_exit(bantam().args(["decode", "--quiet"]).arg(&out).arg("--out").arg(&decoded), 0);
    tensors(&decoded)
}

/// The two largest of each quad, of equal ones the last: sorted, as nothing in the program does it.
fn pruned(weights: &[f32]) -> Vec<f32> {
    let mut pruned = weights.to_vec();
    for quad in pruned.chunks_exact_mut(4) {
        let mut order = [0, 1, 2, 3];
        order.sort_by(|a, b| quad[*a].abs().total_cmp(&quad[*b].abs()));
        order[..2].iter().for_each(|place| quad[*place] = 0.0);
    }
    pruned
}

#[test]
fn the_largest_magnitudes_are_kept_and_all_else_is_zero_in_every_layout() {
    let folder = tempfile::tempdir().unwrap();
    let source = tensors(&fixture("tiny-llama"));
    let plain = dense(folder.path(), MAGNITUDE, "dense");
    let own = dense(folder.path(), MAGNITUDE, "bantam");
    assert!(plain == own, "both layouts hold the same weights");
    let bitmask = dense(folder.path(), MAGNITUDE, "sparse-24-bitmask");
    assert!(plain == bitmask, "so does the one with a bit for each weight");
    let coded = dense(folder.path(), &format!("{MAGNITUDE}{INT4}"), "compressed-tensors");
    let mut masked = 0;
    for (name, weights) in &source {
        if !name.ends_with("_proj.weight") {
            assert!(plain[name] == *weights && coded[name] == *weights, "{name}");
            continue;
        }
        masked += 1;
        let expected = pruned(weights);
        let same = plain[name].iter().zip(&expected).all(|(got, expected)| got.to_bits() == expected.to_bits());
        assert!(same, "{name}");
        let zeros = expected.iter().zip(&coded[name]).all(|(kept, coded)| *kept != 0.0 || coded.to_bits() == 0);
        assert!(zeros, "{name}: codes leave a weight that the mask does not keep");
        let kept = coded[name].iter().filter(|weight| **weight != 0.0).count();
        assert!(kept * 4 > weights.len(), "{name}: codes keep {kept} of {} weights", weights.len());
    }
    assert_eq!(masked, 28);
}

#[test]
fn what_masks_do_not_go_with_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let rotate = "[[pass]]\nuse = \"rotate\"\n";
    let floats = format!("{INT4}range = \"hqq\"\n");
    for (passes, layout, expected) in [
        (format!("{MAGNITUDE}{rotate}{INT4}"), "bantam", "mixes its columns"),
        (format!("{rotate}{MAGNITUDE}{INT4}"), "bantam", "mixes its columns"),
        (format!("{MAGNITUDE}{MAGNITUDE}"), "bantam", "masks it already"),
        (format!("{MAGNITUDE}{floats}"), "bantam", "zero points that are not whole"),
        (format!("{MAGNITUDE}{INT4}outliers = 0.01\n"), "bantam", "weights kept exact"),
        (format!("{MAGNITUDE}[[pass]]\nuse = \"pvq\"\ncalibrated = false\n"), "bantam", "do not keep weights at zero"),
        (MAGNITUDE.to_owned(), "gptq", "no masked weights without codes"),
        (format!("{MAGNITUDE}{INT4}"), "sparse-24-bitmask", "and no codes"),
        (format!("{MAGNITUDE}keep = 4\nof = 8\n"), "sparse-24-bitmask", "not 4 of 8"),
        ("[[pass]]\nuse = \"mask_2_4\"\n".to_owned(), "bantam", "needs to see data"),
    ] {
        let recipe = recipe(folder.path(), &passes, layout);
        let out = folder.path().join("out");
        let mut plan = bantam();
        plan.arg("plan").arg(recipe).arg("--model").arg(fixture("tiny-llama")).arg("--out").arg(&out);
        let output = expect_exit(&mut plan, 2);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains(expected), "{passes}: {message}");
    }
}

/// Changes bytes of a stored tensor in place.
fn corrupt(folder: &Path, tensor: &str, change: impl FnOnce(&mut [u8])) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (length, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let (first, end) = header.info(tensor).unwrap().data_offsets;
    let data = 8 + length;
    change(&mut bytes[data + first..data + end]);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn verify_names_tensor_row_and_group_of_a_weight_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let finding = |layout: &str, tensor: &str, change: &dyn Fn(&mut [u8])| {
        let passes = if layout == "compressed-tensors" { format!("{MAGNITUDE}{INT4}") } else { MAGNITUDE.to_owned() };
        let (recipe, out) =
            (recipe(folder.path(), &passes, layout), folder.path().join(format!("{layout}-{}", tensor.len())));
        let model = fixture("tiny-llama");
        expect_exit(bantam().args(["run", "--quiet"]).arg(recipe).arg("--model").arg(&model).arg("--out").arg(&out), 0);
        corrupt(&out, tensor, change);
        let report = json(&expect_exit(bantam().args(["verify", "--json"]).arg(&out), 1));
        let findings = report["findings"].as_array().unwrap().clone();
        findings
            .into_iter()
            .find(|finding| finding["rule"] == "sparsity")
            .unwrap_or_else(|| panic!("{layout}: {report}"))
    };
    let weight = "model.layers.1.mlp.up_proj.weight";
    // A row of 16-bit weights and the fourth group of its second row: all four of it made 1.
    let dense = finding("dense", weight, &|bytes| {
        let row = bytes.len() / rows(weight);
        bytes[row + 24..row + 32].copy_from_slice(&[0x80, 0x3f, 0x80, 0x3f, 0x80, 0x3f, 0x80, 0x3f]);
    });
    assert_eq!(dense["tensor"], weight);
    let message = dense["message"].as_str().unwrap();
    assert!(message.contains("row 1, group of columns 12 to 15: 4 weights"), "{message}");
    // One bit too many in a quad and one too few in the next, so that each row keeps as many as before.
    let bits = finding("sparse-24-bitmask", "model.layers.1.mlp.up_proj.bitmask", &|bytes| {
        let row = bytes.len() / rows(weight);
        bytes[2 * row + 1] = 0b0001_0111;
    });
    assert_eq!(bits["tensor"], weight);
    let message = bits["message"].as_str().unwrap();
    assert!(message.contains("row 2, group of columns 8 to 11: the mask keeps 3 weights, not 2"), "{message}");
    // Codes that are all the largest.
    let coded = finding("compressed-tensors", "model.layers.1.mlp.up_proj.weight_packed", &|bytes| {
        bytes[..2].copy_from_slice(&[0xff, 0xff]);
    });
    assert!(coded["message"].as_str().unwrap().contains("row 0, group of columns 0 to 3: "), "{coded}");
}

/// Rows of a matrix of the example.
fn rows(tensor: &str) -> usize {
    let bytes = std::fs::read(fixture("tiny-llama").join("model.safetensors")).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().shape()[0]
}

#[test]
fn inspect_names_the_pattern_and_the_share_of_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("tiny-llama");
    let inspect = |path: &Path| json(&expect_exit(bantam().args(["inspect", "--json"]).arg(path), 0));
    assert!(inspect(&model)["sparse"].is_null());
    for layout in ["dense", "sparse-24-bitmask", "bantam"] {
        let (recipe, out) = (recipe(folder.path(), MAGNITUDE, layout), folder.path().join(format!("{layout}-out")));
        expect_exit(bantam().args(["run", "--quiet"]).arg(recipe).arg("--model").arg(&model).arg("--out").arg(&out), 0);
        let report = inspect(&out);
        let row = &report["sparse"][0];
        assert_eq!(
            (&row["keep"], &row["of"], &row["tensors"], &row["zeros"]),
            (&2.into(), &4.into(), &28.into(), &0.5.into())
        );
        assert_eq!(report["sparse"].as_array().unwrap().len(), 1, "{layout}");
        let page = expect_exit(bantam().arg("inspect").arg(&out), 0).stdout;
        assert!(String::from_utf8_lossy(&page).contains("2:4 in 28 tensors"), "{layout}");
        let one = expect_exit(bantam().args(["inspect", "--tensor", "*.1.mlp.up_proj"]).arg(&out), 0).stdout;
        assert!(String::from_utf8_lossy(&one).contains("2:4 sparse, 50.00 %"), "{layout}");
    }
}

/// Sets the text that calibration and training see.
fn learning(folder: &Path, settings: &str, layout: &str) -> PathBuf {
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/models.md"), folder.join("text.txt")).unwrap();
    let calibration = "[calibration]\ntext = [\"text.txt\"]\nsequences = 6\nsequence_length = 64\n";
    recipe(folder, &format!("{calibration}[[pass]]\nuse = \"mask_2_4\"\ncriterion = \"learned\"\n{settings}"), layout)
}

fn run(recipe: &Path, out: &Path, threads: &str) -> Command {
    let mut command = bantam();
    command.args(["run", "--quiet", "--threads", threads]).arg(recipe);
    command.arg("--model").arg(fixture("tiny-llama")).arg("--out").arg(out);
    command
}

#[test]
fn learned_masks_lower_the_loss_and_come_out_the_same_however_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    // Every step sees the whole text, so that losses can be compared.
    let recipe = learning(folder.path(), "steps = 12\nbatch = 6\nprior = \"sparsegpt\"\n", "bantam");
    let out = folder.path().join("whole");
    expect_exit(&mut run(&recipe, &out, "2"), 0);
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let loss = |name: &str| manifest["training"][name].as_f64().unwrap();
    assert_eq!(manifest["training"]["steps"], 12);
    assert!(loss("last_loss") < 0.9 * loss("first_loss"), "{}", manifest["training"]);
    expect_exit(bantam().args(["verify", "--quiet"]).arg(&out).arg("--source").arg(fixture("tiny-llama")), 0);

    // Killed in the middle of the training, and taken up with another number of threads.
    let again = folder.path().join("again");
    let state = folder.path().join(".again.bantam-work/solved/training/training");
    let mut child = run(&recipe, &again, "2").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !state.exists() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_mins(10), "no step was ever saved");
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    assert!(!again.exists(), "the run was over before it was killed");
    expect_exit(&mut run(&recipe, &again, "1"), 0);
    assert_same(&out, &again);

    let decoded = folder.path().join("decoded");
    expect_exit(bantam().args(["decode", "--quiet"]).arg(&out).arg("--out").arg(&decoded), 0);
    let source = tensors(&fixture("tiny-llama"));
    for (name, weights) in tensors(&decoded) {
        if !name.ends_with("_proj.weight") {
            assert!(weights == source[&name], "{name}");
            continue;
        }
        assert!(weights.chunks(4).all(|quad| quad.iter().filter(|weight| **weight == 0.0).count() == 2), "{name}");
        assert!(weights.iter().all(|weight| *weight != 0.0 || weight.is_sign_positive()), "{name}");
    }
}

#[test]
fn saved_masks_are_the_masks_that_a_recipe_takes() {
    let folder = tempfile::tempdir().unwrap();
    // Masks of a criterion that keeps others than the largest weights, and leaves those as they are.
    let text = fixture("text/recipe.txt");
    let wanda = format!(
        "[calibration]\ntext = [{text:?}]\nsequences = 8\nsequence_length = 64\n[[pass]]\nuse = \"mask_2_4\"\ncriterion = \"wanda\"\n"
    );
    let plain = dense(folder.path(), &wanda, "bantam");
    assert!(plain != dense(folder.path(), MAGNITUDE, "dense"), "masks follow the inputs");
    let file = folder.path().join("masks.npz");
    for model in ["bantam", "bantam-dense"] {
        let mut save = bantam();
        save.arg("masks").arg(folder.path().join(model)).arg("--json").arg("--out").arg(&file);
        assert_eq!(json(&expect_exit(&mut save, 0))["masks"], 28, "{model}");
        let taken = tempfile::tempdir_in(folder.path()).unwrap();
        std::fs::copy(&file, taken.path().join("masks.npz")).unwrap();
        let given = "[[pass]]\nuse = \"mask_2_4\"\nmasks = \"masks.npz\"\n";
        assert!(dense(taken.path(), given, "dense") == plain, "{model}");
        let coded = dense(taken.path(), &format!("{given}{INT4}"), "compressed-tensors");
        for (name, weights) in plain.iter().filter(|(name, _)| name.ends_with("_proj.weight")) {
            assert!(weights.iter().zip(&coded[name]).all(|(kept, coded)| *kept != 0.0 || *coded == 0.0), "{name}");
        }
    }
    let mut dense_model = bantam();
    dense_model.arg("masks").arg(fixture("tiny-llama")).arg("--out").arg(folder.path().join("none.npz"));
    expect_exit(&mut dense_model, 2);
    assert!(!folder.path().join("none.npz").exists());
}

#[test]
fn malformed_files_of_masks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    dense(folder.path(), MAGNITUDE, "bantam");
    let file = folder.path().join("masks.npz");
    expect_exit(bantam().arg("masks").arg(folder.path().join("bantam")).arg("--out").arg(&file), 0);
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[200] ^= 0xFF;
    let given = "[[pass]]\nuse = \"mask_2_4\"\nmasks = \"masks.npz\"\n";
    let recipe = recipe(folder.path(), given, "dense");
    for (bytes, expected) in [
        (&good[..good.len() / 2], "not a readable zip archive"),
        (&b"PK and no more"[..], "not a readable zip archive"),
        (&flipped[..], "malformed"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let output = expect_exit(&mut run(&recipe, &folder.path().join("out"), "2"), 3);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    std::fs::remove_file(&file).unwrap();
    let output = expect_exit(&mut run(&recipe, &folder.path().join("out"), "2"), 3);
    assert!(String::from_utf8_lossy(&output.stderr).contains("masks.npz"));
    let learned = "[[pass]]\nuse = \"mask_2_4\"\ncriterion = \"learned\"\n[[pass]]\nuse = \"gptq\"\nbits = 4\n";
    let recipe = self::recipe(folder.path(), learned, "bantam");
    let output = expect_exit(&mut run(&recipe, &folder.path().join("out"), "2"), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("learned masks stand alone"));
}

/// A short training on the model and by the protocol of `docs/quality.md`, where both are at hand; all of it takes minutes.
#[test]
fn a_short_training_beats_the_search() {
    const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/models");
    let (model, text) = (Path::new(SHARED).join("tiny-llama"), Path::new(SHARED).join("text"));
    if !model.exists() {
        eprintln!("SKIPPED: {} is not there, so nothing was measured", model.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let calibration =
        format!("[calibration]\ntext = [{:?}]\nsequences = 128\nsequence_length = 256\n", text.join("calibration.txt"));
    let passes = "[[pass]]\nuse = \"mask_2_4\"\ncriterion = \"learned\"\nsteps = 12\nbatch = 8\n";
    let recipe = recipe(folder.path(), &format!("{calibration}{passes}"), "dense");
    let out = folder.path().join("learned");
    let mut command = bantam();
    command.args(["run", "--quiet"]).arg(recipe).arg("--model").arg(&model).arg("--out").arg(&out);
    expect_exit(&mut command, 0);
    let mut eval = bantam();
    eval.args(["eval", "--json", "--context", "256", "--text"]).arg(text.join("evaluation.txt")).arg("--reference");
    let figures = json(&expect_exit(eval.arg(&model).arg(&out), 0));
    let divergence = figures["mean_kl_divergence"].as_f64().unwrap();
    // That of `criterion = "search"`.
    assert!(divergence < 0.0402, "{divergence}");
}
