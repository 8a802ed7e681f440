//! Calibration, solving and evaluation with `--device gpu`, end to end on the built-in model: artifacts as good as the
//! processor's, the same bytes every time, and runs that go on when the device fails. On Mesa's software adapter where the
//! machine has no other.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use common::{assert_same, bantam, contents, expect_exit, fixture, json};
use serde_json::Value;

/// How much the divergence from the dense model may differ from that of the processor's artifact, as a share.
const DIVERGENCE_TOLERANCE: f64 = 0.02;
/// How much an evaluation on the device may differ from one without, as a share.
const EVALUATION_TOLERANCE: f64 = 1e-4;
const LINEARS: usize = 28;

const GPTQ: &str = "[[pass]]\nuse = \"gptq\"\nbits = 4\ngroup_size = 128\nsymmetric = false\n";
const INT4: &str = "[[pass]]\nuse = \"int4-asym\"\n";
const W8A8: &str = "bits = 8\ngranularity = \"channel\"\nactivations = \"dynamic\"\n";

/// What makes `--device gpu` use this machine's adapter, software included; `None`, loudly, where there is none.
fn adapter() -> Option<Vec<(&'static str, &'static str)>> {
    let report = json(&expect_exit(bantam().args(["devices", "--json"]), 0));
    if report["no_device"].is_null() {
        return Some(vec![]);
    }
    if report["devices"].as_array().unwrap().is_empty() {
        let reason = &report["no_device"];
        let _ = writeln!(std::io::stderr(), "SKIPPED, no graphics adapter on this machine: {reason}");
        return None;
    }
    Some(vec![("BANTAM_ADAPTER", "software")])
}

struct Bench {
    folder: tempfile::TempDir,
    environment: Vec<(&'static str, &'static str)>,
}

fn text(name: &str) -> PathBuf {
    fixture("text").join(format!("{name}.txt"))
}

impl Bench {
    fn new() -> Option<Self> {
        let environment = adapter()?;
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(text("recipe"), folder.path().join("text.txt")).unwrap();
        // As much text as keeps the figures apart from chance, which moves them by a share or two anyway.
        let pages = ["checkpoints", "calibration", "forward", "performance"];
        let evaluation: String = pages.iter().map(|page| std::fs::read_to_string(text(page)).unwrap()).collect();
        std::fs::write(folder.path().join("evaluation.txt"), evaluation).unwrap();
        Some(Self { folder, environment })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn recipe(&self, name: &str, passes: &str, more: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        let calibration = format!("[calibration]\ntext = [\"text.txt\"]\nsequences = 24\nsequence_length = 64\n{more}");
        let own = ["rotate", "pvq", "vptq"].iter().any(|pass| passes.contains(&format!("\"{pass}\"")));
        let layout = if own { "bantam" } else { "compressed-tensors" };
        let text = format!("schema = 1\n{calibration}\n{passes}\n[artifact]\nlayout = \"{layout}\"\n");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, command: &str, device: &str) -> Command {
        let mut line = bantam();
        line.args([command, "--quiet", "--device", device]).envs(self.environment.iter().copied());
        line
    }

    fn run(&self, recipe: &Path, device: &str, out: &str) -> Command {
        let mut line = self.command("run", device);
        line.arg(recipe).arg("--model").arg(fixture("tiny-llama")).arg("--out").arg(self.path(out));
        line
    }

    fn evaluate(&self, device: &str, artifact: &Path) -> Value {
        let mut line = self.command("eval", device);
        line.args(["--json", "--context", "128", "--reference"]).arg(fixture("tiny-llama")).arg("--text");
        json(&expect_exit(line.arg(self.path("evaluation.txt")).arg(artifact), 0))
    }

    fn divergence(&self, out: &str) -> f64 {
        self.evaluate("cpu", &self.path(out))["mean_kl_divergence"].as_f64().unwrap()
    }

    fn manifest(&self, out: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(out).join("manifest.json")).unwrap()).unwrap()
    }

    /// How many tensors the manifest names a device for.
    fn named(&self, out: &str) -> usize {
        let manifest = self.manifest(out);
        let tensors = manifest["tensors"].as_array().unwrap();
        tensors.iter().filter(|tensor| tensor["device"].as_str().is_some_and(|name| !name.is_empty())).count()
    }

    /// A pass on the processor and twice on the device: as good, the same every time, and the device is named.
    fn check(&self, name: &str, passes: &str, least_named: usize) {
        self.check_with(name, "", passes, least_named);
    }

    fn check_with(&self, name: &str, calibration: &str, passes: &str, least_named: usize) {
        let recipe = self.recipe(name, passes, calibration);
        let outs = ["cpu", "gpu", "again"].map(|which| format!("{name}-{which}"));
        for (out, device) in outs.iter().zip(["cpu", "gpu", "gpu"]) {
            expect_exit(&mut self.run(&recipe, device, out), 0);
        }
        assert_same(&self.path(&outs[1]), &self.path(&outs[2]));
        let [cpu, gpu] = [&outs[0], &outs[1]].map(|out| self.divergence(out));
        let _ = writeln!(std::io::stdout(), "{name}: divergence {cpu:.6} on the processor, {gpu:.6} with the device");
        assert!((gpu / cpu - 1.0).abs() <= DIVERGENCE_TOLERANCE, "{name}: {cpu} and {gpu}");
        assert_eq!((self.named(&outs[0]), self.manifest(&outs[1])["fallbacks"].as_array().unwrap().len()), (0, 0));
        let named = self.named(&outs[1]);
        assert!(named >= least_named, "{name}: {named} tensors name the device");
    }
}

#[test]
fn gptq_is_as_good_and_the_same_every_time() {
    let Some(bench) = Bench::new() else { return };
    bench.check("gptq", GPTQ, LINEARS);
}

#[test]
fn gptq_of_the_original_model_is_as_good_and_the_same_every_time() {
    let Some(bench) = Bench::new() else { return };
    let passes = GPTQ.replace("group_size = 128", "granularity = \"channel\"");
    bench.check_with("original", "predecessor = \"original\"\n", &passes, LINEARS);
}

#[test]
fn awq_is_as_good_and_the_same_every_time() {
    let Some(bench) = Bench::new() else { return };
    bench.check("awq", &format!("[[pass]]\nuse = \"awq\"\n{INT4}"), LINEARS);
}

#[test]
fn smoothquant_is_as_good_and_the_same_every_time() {
    let Some(bench) = Bench::new() else { return };
    bench.check("smoothquant", &format!("[[pass]]\nuse = \"smoothquant\"\n[[pass]]\nuse = \"rtn\"\n{W8A8}"), LINEARS);
    let searched = format!("[[pass]]\nuse = \"smoothquant\"\nstrength = \"search\"\n[[pass]]\nuse = \"gptq\"\n{W8A8}");
    bench.check("smoothquant-gptq", &searched, LINEARS);
}

#[test]
fn rotated_matrices_and_pyramids_are_as_good_and_the_same_every_time() {
    let Some(bench) = Bench::new() else { return };
    bench.check("rotated", &format!("[[pass]]\nuse = \"rotate\"\n{GPTQ}"), LINEARS);
    bench.check("pvq", "[[pass]]\nuse = \"pvq\"\nbits = 3.25\n", LINEARS);
}

#[test]
fn smoothquant_plus_is_as_good_and_the_same_every_time() {
    let Some(bench) = Bench::new() else { return };
    bench.check("smoothquant-plus", &format!("[[pass]]\nuse = \"smoothquant_plus\"\nstep = 0.25\n{INT4}"), LINEARS);
}

#[test]
fn rounding_to_nearest_gives_the_processors_bytes() {
    let Some(bench) = Bench::new() else { return };
    let recipe = bench.recipe("rtn", INT4, "");
    for device in ["cpu", "gpu"] {
        expect_exit(&mut bench.run(&recipe, device, device), 0);
    }
    let [mut cpu, mut gpu] = ["cpu", "gpu"].map(|out| contents(&bench.path(out)));
    cpu.remove("manifest.json");
    gpu.remove("manifest.json");
    assert!(cpu == gpu && bench.named("gpu") == LINEARS);
}

#[test]
fn an_evaluation_on_the_device_gives_the_processors_figures() {
    let Some(bench) = Bench::new() else { return };
    let recipe = bench.recipe("eval", INT4, "");
    expect_exit(&mut bench.run(&recipe, "cpu", "artifact"), 0);
    let [cpu, gpu] = ["cpu", "gpu"].map(|device| bench.evaluate(device, &bench.path("artifact")));
    for figure in ["perplexity", "mean_kl_divergence", "p99_kl_divergence", "hidden_relative_error"] {
        let [cpu, gpu] = [&cpu, &gpu].map(|report| report[figure].as_f64().unwrap());
        assert!((gpu / cpu - 1.0).abs() <= EVALUATION_TOLERANCE, "{figure}: {cpu} and {gpu}");
    }
    assert!(cpu["device"].is_null() && gpu["device"].is_string() && gpu["device_failures"].is_null(), "{gpu}");
}

/// Too little device memory for anything: all of it is done on the processor, which gives the processor's bytes.
#[test]
fn what_the_device_fails_at_is_done_on_the_processor_and_counted() {
    let Some(mut bench) = Bench::new() else { return };
    let recipe = bench.recipe("failing", GPTQ, "");
    expect_exit(&mut bench.run(&recipe, "cpu", "cpu"), 0);
    bench.environment.push(("BANTAM_GPU_MEMORY", "1KiB"));
    let mut run = bench.run(&recipe, "gpu", "gpu");
    let warning = String::from_utf8_lossy(&expect_exit(&mut run, 0).stderr).into_owned();
    assert!(warning.contains("BANTAM_GPU_MEMORY") && warning.contains("on the processor"), "{warning}");
    let weights = |out: &str| std::fs::read(bench.path(out).join("model.safetensors")).unwrap();
    assert!(weights("gpu") == weights("cpu"));
    let manifest = bench.manifest("gpu");
    let fallbacks = manifest["fallbacks"].as_array().unwrap();
    assert_eq!(fallbacks.len(), LINEARS, "one for every linear: {fallbacks:?}");
    assert!(fallbacks.iter().all(|fallback| fallback["kind"] == "device-failed"), "{fallbacks:?}");
    assert_eq!(bench.named("gpu"), 0);
    expect_exit(bench.run(&recipe, "gpu", "denied").args(["--deny", "fallback"]), 1);
    let report = bench.evaluate("gpu", &bench.path("gpu"));
    assert!(report["device_failures"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn saved_statistics_are_those_of_one_device() {
    let Some(bench) = Bench::new() else { return };
    let passes = format!("[[pass]]\nuse = \"awq\"\n{INT4}");
    let gathering = bench.recipe("gathering", &passes, "");
    let mut calibrate = bench.command("calibrate", "gpu");
    calibrate
        .arg(&gathering)
        .arg("--model")
        .arg(fixture("tiny-llama"))
        .arg("--out")
        .arg(bench.path("statistics.safetensors"));
    expect_exit(&mut calibrate, 0);
    let taking = bench.recipe("taking", &passes, "statistics = \"statistics.safetensors\"\n");
    let refused = expect_exit(&mut bench.run(&taking, "cpu", "refused"), 2);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("another device") && message.contains("the processor"), "{message}");
    expect_exit(&mut bench.run(&taking, "gpu", "taken"), 0);
    expect_exit(&mut bench.run(&gathering, "gpu", "gathered"), 0);
    let weights = |out: &str| std::fs::read(bench.path(out).join("model.safetensors")).unwrap();
    assert!(weights("taken") == weights("gathered"));
    assert_eq!(bench.named("taken"), bench.named("gathered"));
}
