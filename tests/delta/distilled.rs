//! Scales that are trained, and signs and scales found under second moments, through the binary.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Pair, SHAPE, assert_same, bantam, expect_exit, json};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;

const SEQUENCES: usize = 24;
const LENGTH: usize = 16;
const STEPS: u64 = 60;

/// A pair with calibration tokens beside it, and a recipe with these settings.
fn recipe(pair: &Pair, settings: &str) -> PathBuf {
    let tokens = pair.folder.path().join("tokens.safetensors");
    let id = |index: usize| ((index * index * 7 + index / 3) % SHAPE.vocabulary) as i32;
    let ids: Vec<u8> = (0..SEQUENCES * LENGTH).flat_map(|index| id(index).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I32, vec![SEQUENCES, LENGTH], &ids).unwrap();
    std::fs::write(&tokens, safetensors::serialize([("tokens", view)], None).unwrap()).unwrap();
    let calibration = format!(
        "[calibration]\ntext = [\"tokens.safetensors\"]\nsequences = {SEQUENCES}\nsequence_length = {LENGTH}\n"
    );
    pair.recipe(&format!("{settings}\n{calibration}"))
}

fn settings(more: &str) -> String {
    format!("calibrated = true\nbatch = 5\n{more}")
}

fn run(recipe: &Path, out: &Path, threads: &str) -> Command {
    let mut command = bantam();
    command.args(["run", "--quiet", "--threads", threads]).arg(recipe).arg("--out").arg(out);
    command
}

fn manifest(artifact: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(artifact.join("manifest.json")).unwrap()).unwrap()
}

fn work(out: &Path) -> PathBuf {
    out.with_file_name(format!(".{}.bantam-work", out.file_name().unwrap().to_string_lossy()))
}

/// Steps of the training that are saved.
fn saved(out: &Path) -> usize {
    let bytes = std::fs::read(work(out).join("solved/training/training")).unwrap_or_default();
    let head = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice::<Value>(head).ok().and_then(|head| Some(head["losses"].as_array()?.len())).unwrap_or(0)
}

/// Starts a run and waits until so many steps are saved, or it is at its end.
fn until(command: &mut Command, out: &Path, steps: usize) -> Child {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while saved(out) < steps && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_mins(5), "{steps} steps were never saved");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn the_loss_falls_and_the_manifest_says_so() {
    let pair = Pair::new();
    // Of the few scales of whole matrices, less can be asked.
    for (name, more, least) in [
        ("divergence", "calibrated = true\nasymmetric = false\nplanes = 2", 0.95),
        ("squares", "calibrated = true\nasymmetric = false\nloss = \"squared-error\"\nscale = \"matrix\"", 0.99),
        ("alone", "", 0.95),
    ] {
        let settings = format!("distill_steps = {STEPS}\nbatch = 5\nlearning_rate = 0.05\n{more}");
        let (recipe, out) = (recipe(&pair, &settings), pair.folder.path().join(name));
        expect_exit(&mut run(&recipe, &out, "2"), 0);
        let manifest = manifest(&out);
        let training = &manifest["training"];
        assert_eq!(training["steps"], STEPS);
        let [first, last] = ["first_loss", "last_loss"].map(|key| training[key].as_f64().unwrap());
        assert!(last > 0.0 && last < least * first, "{name}: {training}");
        let calibrated = manifest["tensors"].as_array().unwrap().iter().filter(|tensor| {
            let calibration = &tensor["calibration"];
            calibration["loss"].as_f64().is_some_and(|loss| loss < calibration["loss_nearest"].as_f64().unwrap())
        });
        // All linears but the one that is the same and the one that the base lacks.
        assert_eq!(calibrated.count(), if name == "alone" { 0 } else { 7 * SHAPE.blocks - 2 }, "{name}");
        let mut verify = bantam();
        verify.arg("verify").arg(&out).arg("--base").arg(pair.base()).arg("--source").arg(pair.tuned());
        expect_exit(&mut verify, 0);
    }
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    let pair = Pair::new();
    let recipe = recipe(&pair, &settings("planes = 2\ndistill_steps = 12"));
    let path = |name: &str| pair.folder.path().join(name);
    expect_exit(&mut run(&recipe, &path("one"), "1"), 0);
    expect_exit(&mut run(&recipe, &path("three"), "3"), 0);
    assert_same(&path("one"), &path("three"));
    let planned = json(&expect_exit(bantam().args(["plan", "--json", "--threads", "2"]).arg(&recipe), 0));
    let smallest = planned["smallest_memory_bytes"].as_u64().unwrap();
    expect_exit(run(&recipe, &path("tight"), "2").args(["--max-memory", &(smallest - 1).to_string()]), 4);
    expect_exit(run(&recipe, &path("tight"), "2").args(["--max-memory", &smallest.to_string()]), 0);
    assert_same(&path("one"), &path("tight"));
    let log: Value = serde_json::from_slice(&std::fs::read(path("tight").join("run.json")).unwrap()).unwrap();
    assert!(log["peak_rss_bytes"].as_u64().unwrap() <= smallest, "{log}");
}

#[test]
fn a_training_that_is_killed_or_stopped_goes_on_to_the_same_bytes() {
    let pair = Pair::new();
    // Long enough to be hit in the middle.
    let steps = 300;
    let recipe = recipe(&pair, &settings(&format!("distill_steps = {steps}")));
    let (reference, out) = (pair.folder.path().join("reference"), pair.folder.path().join("out"));
    expect_exit(&mut run(&recipe, &reference, "2"), 0);
    let mut before = 0;
    for point in [1, 9, 25] {
        let mut child = until(&mut run(&recipe, &out, "2"), &out, point);
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "the run was over before step {point}");
        // What was saved was taken up.
        assert!(saved(&out) >= before.max(point), "{} steps, {before} before", saved(&out));
        before = saved(&out);
    }
    let mut child = until(&mut run(&recipe, &out, "2"), &out, before + 2);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(!out.exists(), "nothing under the target's name");
    assert!(saved(&out) > before && saved(&out) < steps, "{} steps", saved(&out));
    // A damaged state is not trusted.
    let path = work(&out).join("solved/training/training");
    let mut bytes = std::fs::read(&path).unwrap();
    let near_the_end = bytes.len() - 100;
    bytes[near_the_end] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut child = until(&mut run(&recipe, &out, "2"), &out, steps);
    child.kill().unwrap();
    drop(child.wait());
    expect_exit(&mut run(&recipe, &out, "2"), 0);
    assert_same(&reference, &out);
    assert!(!work(&out).exists(), "the work folder is gone");
}

#[test]
fn what_a_training_needs_is_told_before_anything_is_written() {
    let pair = Pair::new();
    let refused = |settings: &str, code: i32, words: &[&str]| {
        let output = expect_exit(bantam().arg("plan").arg(pair.recipe(settings)), code);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
    };
    for settings in ["calibrated = true", "distill_steps = 3"] {
        refused(settings, 2, &["bitdelta", "[calibration]", "text = "]);
    }
    let path = recipe(&pair, "distill_steps = 3\n[[pass.override]]\nselect = \"mlp\"\nbatch = 2\n");
    let output = expect_exit(bantam().arg("plan").arg(path), 2);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("trained together"), "{message}");
}

/// The pair that the figures of `docs/passes/bitdelta.md` are of.
struct Shakespeare {
    shared: PathBuf,
    folder: tempfile::TempDir,
}

impl Shakespeare {
    fn open() -> Option<Self> {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models");
        if !shared.exists() {
            eprintln!("SKIPPED: {} is not here, nothing was measured", shared.display());
            return None;
        }
        Some(Self { shared, folder: tempfile::tempdir().unwrap() })
    }

    fn perplexity(&self, model: &Path, is_delta: bool) -> f64 {
        let mut command = bantam();
        command.args(["eval", "--json", "--context", "256", "--text"]);
        command.arg(self.shared.join("text/shakespeare-evaluation.txt")).arg(model);
        if is_delta {
            command.arg("--base").arg(self.shared.join("tiny-llama"));
        }
        json(&expect_exit(&mut command, 0))["perplexity"].as_f64().unwrap()
    }

    /// The delta of a recipe with these settings.
    fn delta(&self, name: &str, settings: &str) -> PathBuf {
        let (recipe, out) = (self.folder.path().join(format!("{name}.toml")), self.folder.path().join(name));
        let path = |name: &str| self.shared.join(name).display().to_string();
        let text = format!(
            "schema = 1\nmodel = {:?}\nbase = {:?}\n[calibration]\ntext = [{:?}]\nsequences = 256\n\
             sequence_length = 128\n[[pass]]\nuse = \"bitdelta\"\ncalibrated = true\n{settings}\n\
             [artifact]\nout = \"o\"\nlayout = \"delta\"\n",
            path("tiny-llama-shakespeare"),
            path("tiny-llama"),
            path("text/shakespeare-calibration.txt")
        );
        std::fs::write(&recipe, text).unwrap();
        expect_exit(&mut run(&recipe, &out, "2"), 0);
        out
    }
}

#[test]
fn the_gap_between_base_and_fine_tune_is_recovered() {
    let Some(bench) = Shakespeare::open() else { return };
    let base = bench.perplexity(&bench.shared.join("tiny-llama"), false);
    let tuned = bench.perplexity(&bench.shared.join("tiny-llama-shakespeare"), false);
    let mut found = Vec::new();
    for (name, settings, least) in
        [("closed", "", 0.88), ("distilled", "distill_steps = 40", 0.93), ("two", "planes = 2", 0.97)]
    {
        let delta = bench.delta(name, settings);
        let perplexity = bench.perplexity(&delta, true);
        let recovered = (base - perplexity) / (base - tuned);
        eprintln!("{name}: perplexity {perplexity:.3} of {base:.3} and {tuned:.3}, {:.1} %", 100.0 * recovered);
        assert!(recovered >= least, "{name}: {recovered}");
        found.push(recovered);
        let tensors = manifest(&delta)["tensors"].as_array().unwrap().clone();
        let encoded = tensors.iter().filter(|tensor| tensor["matrix"].is_object());
        let (stored, weights) = encoded.fold((0, 0), |(stored, weights), tensor| {
            let parts = tensor["parts"].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap());
            let shape = tensor["shape"].as_array().unwrap().iter().map(|length| length.as_u64().unwrap());
            (stored + parts.sum::<u64>(), weights + shape.product::<u64>())
        });
        let planes = if name == "two" { 2 } else { 1 };
        assert!(9 * stored <= planes * 2 * weights, "{name}: {stored} bytes for {weights} weights");
    }
    assert!(found[1] > found[0], "training takes more of the gap: {found:?}");
}
