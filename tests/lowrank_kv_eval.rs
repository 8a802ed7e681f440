//! Evaluation of artifacts of `lowrank_kv` through the binary: windows, quantized latents, and retrieval.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::{Path, PathBuf};

use common::{bantam, expect_exit, fixture, json};
use serde_json::Value;

const CONTEXT: usize = 128;

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in [("recipe.txt", "text.txt"), ("models.txt", "evaluation.txt")] {
            std::fs::copy(fixture("text").join(from), folder.path().join(to)).unwrap();
        }
        Self(folder)
    }

    /// An artifact that keeps so much of the cache.
    fn artifact(&self, name: &str, density: f64, more: &str) -> PathBuf {
        let (recipe, out) = (self.0.path().join(format!("{name}.toml")), self.0.path().join(name));
        let text = format!(
            "schema = 1\n[calibration]\ntext = [\"text.txt\"]\nsequences = 16\nsequence_length = 64\n[[pass]]\n\
             use = \"lowrank_kv\"\nkey_density = {density}\nvalue_density = {density}\n{more}\n[artifact]\nlayout = \"bantam\"\n"
        );
        std::fs::write(&recipe, text).unwrap();
        let mut command = bantam();
        command.args(["run", "--quiet"]).arg(&recipe).arg("--model").arg(model()).arg("--out").arg(&out);
        expect_exit(&mut command, 0);
        out
    }

    fn eval(&self, path: &Path, more: &[&str]) -> Value {
        let mut command = bantam();
        command.args(["eval", "--json", "--retrieval", "--context"]).arg(CONTEXT.to_string()).args(more);
        command.arg("--reference").arg(model()).arg("--text").arg(self.0.path().join("evaluation.txt")).arg(path);
        json(&expect_exit(&mut command, 0))
    }
}

fn model() -> PathBuf {
    fixture("tiny-llama")
}

fn divergence(report: &Value) -> f64 {
    report["mean_kl_divergence"].as_f64().unwrap()
}

#[test]
fn a_window_brings_the_model_back() {
    let bench = Bench::new();
    let artifact = bench.artifact("fifth", 0.2, "window = 32");
    let original = bench.eval(&model(), &[]);
    let [none, some, all] = ["0", "32", "128"].map(|window| bench.eval(&artifact, &["--window", window]));
    // Tokens 32 and more back still come from latents.
    assert!(divergence(&some) < divergence(&none), "{some} {none}");
    assert!(divergence(&some) > 0.0);
    // A window over the whole context leaves nothing to latents.
    assert!(divergence(&all) < 1e-6, "{all}");
    let perplexity = |report: &Value| report["perplexity"].as_f64().unwrap();
    assert!((perplexity(&all) / perplexity(&original) - 1.0).abs() < 1e-5);
    // What the artifact records is what is evaluated.
    assert_eq!(bench.eval(&artifact, &[])["perplexity"], some["perplexity"]);
    // 0.149, 0.148 and 0.071 nats when this was written.
    for method in ["svd", "asvd"] {
        let other = bench.artifact(method, 0.2, &format!("method = \"{method}\"\nwindow = 0"));
        assert!(divergence(&none) < 0.8 * divergence(&bench.eval(&other, &[])), "{method}");
    }
    // More latent channels are nearer.
    let half = bench.artifact("half", 0.5, "window = 0");
    assert!(divergence(&bench.eval(&half, &[])) < divergence(&none));
    for report in [&original, &none, &some, &all] {
        let retrieval = &report["retrieval"];
        let windows = report["windows"].as_u64().unwrap();
        let tokens = retrieval["tokens"].as_u64().unwrap();
        // Passages of half a context fill as many windows twice over, or one more.
        assert!([2 * windows, 2 * windows + 1].contains(&(tokens / (CONTEXT as u64 / 2))), "{report}");
        assert!((0.0..=1.0).contains(&retrieval["accuracy"].as_f64().unwrap()));
        assert!(retrieval["mean_nll"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn fewer_bits_of_latents_are_farther() {
    let bench = Bench::new();
    let artifacts = [("floats", ""), ("eight", "cache_bits = 8"), ("four", "cache_bits = 4")];
    let [floats, eight, four] =
        artifacts.map(|(name, bits)| divergence(&bench.eval(&bench.artifact(name, 1.0, bits), &[])));
    assert!(floats < eight && eight < four, "{floats} {eight} {four}");
}

#[test]
fn windows_without_exact_projections_are_refused() {
    let bench = Bench::new();
    let artifact = bench.artifact("none", 0.5, "window = 0");
    for (path, message) in [(artifact, "k_proj_exact.weight"), (model(), "keeps no latents")] {
        let mut command = bantam();
        command.args(["eval", "--window", "8", "--text"]).arg(bench.0.path().join("evaluation.txt")).arg(&path);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(message), "{error}");
    }
}
