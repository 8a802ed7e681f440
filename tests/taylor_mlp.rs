//! Pass `taylor_mlp` through the binary: what is computed with terms against the original, sizes that the plan has, the same
//! bytes whatever happens, weights that come back, and errors that say what to do.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use bantam::{
    checkpoint::Checkpoint,
    forward::{AsStored, Block, Kind, Matrix, Model, State, WeightSource, apply_together},
    layout::LogicalCheckpoint,
};
use common::{assert_same, bantam, contents, expect_exit, fixture, json};
use serde_json::Value;

/// A folder with calibration text and text to evaluate on.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("text/recipe.txt"), folder.path().join("text.txt")).unwrap();
        std::fs::copy(fixture("text/forward.txt"), folder.path().join("held-out.txt")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn recipe(&self, name: &str, settings: &str, layout: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        let text = format!(
            "schema = 1\n[calibration]\ntext = [\"text.txt\"]\nsequences = 16\nsequence_length = 64\n[[pass]]\n\
             use = \"taylor_mlp\"\n{settings}\n[artifact]\nlayout = \"{layout}\"\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn on(&self, command: &str, recipe: &Path, model: &Path, out: &str) -> Command {
        let mut line = bantam();
        line.args([command, "--quiet"]).arg(recipe).arg("--model").arg(model).arg("--out").arg(self.path(out));
        line
    }

    fn artifact(&self, name: &str, settings: &str, layout: &str) -> PathBuf {
        let recipe = self.recipe(name, settings, layout);
        expect_exit(&mut self.on("run", &recipe, &model(), name), 0);
        self.path(name)
    }

    /// Mean KL divergence from the original on held-out text.
    fn divergence(&self, artifact: &Path) -> f64 {
        let mut command = bantam();
        command.args(["eval", "--json", "--context", "64", "--text"]).arg(self.path("held-out.txt"));
        let report = json(&expect_exit(command.arg("--reference").arg(model()).arg(artifact), 0));
        report["mean_kl_divergence"].as_f64().unwrap()
    }
}

fn model() -> PathBuf {
    fixture("tiny-llama")
}

fn manifest(artifact: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(artifact.join("manifest.json")).unwrap()).unwrap()
}

fn open(folder: &Path) -> LogicalCheckpoint {
    LogicalCheckpoint::open(Checkpoint::open(folder).unwrap()).unwrap()
}

/// The MLP's outputs of the first block, of these residual streams.
fn outputs(model: &Model, source: &dyn WeightSource, hidden: &Matrix) -> (Matrix, Matrix) {
    let mut inner = Matrix::default();
    let spec = &model.blocks[0];
    let block = Block::read(spec, source, hidden.rows).unwrap();
    let mut state = State { length: hidden.rows, hidden: hidden.clone(), carried: Vec::new() };
    for (stage, description) in spec.stages.iter().enumerate() {
        if !matches!(description.kind, Kind::Mlp | Kind::MlpOutput) {
            continue;
        }
        let linears: Vec<_> = description.linears.iter().map(|linear| linear.read(source).unwrap()).collect();
        let y = apply_together(&linears, &block.input(stage, &state));
        if description.kind == Kind::Mlp {
            inner = y.clone();
        }
        block.finish(stage, &mut state, y).unwrap();
    }
    let values = state.hidden.values.iter().zip(&hidden.values).map(|(after, before)| after - before).collect();
    (Matrix { values, ..state.hidden }, inner)
}

#[test]
fn outputs_stay_within_the_stated_bound_and_more_terms_are_nearer() {
    let bench = Bench::new();
    let original = open(&model());
    let spec = Model::new(original.checkpoint().config().map(|config| &config.value), &original).unwrap();
    // Embeddings of tokens are as good as any input.
    let shape = WeightSource::shape(&original, "model.embed_tokens.weight").unwrap();
    let mut hidden = Matrix::zeros(512, shape[1]);
    original.read("model.embed_tokens.weight", false, 300, &mut hidden.values).unwrap();
    let (expected, up) = outputs(&spec, &original, &hidden);
    let largest = expected.values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let mut divergences = Vec::new();
    for order in [4, 8, 16] {
        let name = format!("order-{order}");
        let settings = format!("order = {order}\nunits = 0.3\nmargin = 0.5\nbasis = \"chebyshev\"");
        let artifact = bench.artifact(&name, &settings, "bantam");
        let stored = open(&artifact);
        let (got, gates) = outputs(&spec, &AsStored(&stored), &hidden);
        let manifest = manifest(&artifact);
        let tensors = manifest["tensors"].as_array().unwrap();
        let down = tensors.iter().find(|tensor| tensor["name"] == "model.layers.0.mlp.down_proj.weight").unwrap();
        // With the up-projection's own outputs, which these inputs may have larger than the calibration text has.
        let of_unit = down["expansion"]["largest_error"].as_f64().unwrap();
        let of_all = down["expansion"]["unit_errors"].as_array().unwrap();
        let worst = of_all.iter().filter_map(Value::as_f64).fold(0.0, f64::max);
        assert_eq!(of_all.len() as u64, down["expansion"]["units"].as_u64().unwrap());
        assert!(worst >= of_unit && worst <= 1.01 * of_unit, "{worst:e} {of_unit:e}");
        let expansion = stored.expansion("model.layers.0.mlp.down_proj.weight").unwrap().unwrap();
        let (weights, units) = (expansion.dense(), &expansion.units);
        let columns = up.columns / 2;
        // Tokens that stay within the ranges: others are clamped.
        let points = &expansion.points;
        let inside = |token: usize| {
            let z = gates.row(token);
            units.iter().enumerate().all(|(at, unit)| points.lo[at] <= z[*unit] && z[*unit] <= points.hi[at])
        };
        let inside: Vec<usize> = (0..up.rows).filter(|token| inside(*token)).collect();
        assert!(inside.len() > 100, "{} tokens within the ranges", inside.len());
        let off = |token: usize| got.row(token).iter().zip(expected.row(token)).map(|(a, b)| f64::from((a - b).abs()));
        let error = inside.iter().flat_map(|token| off(*token)).fold(0.0, f64::max);
        let reach = |token: usize, row: usize| -> f64 {
            units
                .iter()
                .map(|unit| f64::from((weights[row * columns + unit] * up.row(token)[columns + unit]).abs()))
                .sum()
        };
        let tokens = inside.iter().flat_map(|token| (0..expansion.rows).map(move |row| (*token, row)));
        let bound = of_unit * tokens.map(|(token, row)| reach(token, row)).fold(0.0, f64::max);
        assert!(bound > 0.0, "{down}");
        assert!(error <= bound + 1e-5 * f64::from(largest), "order {order}: {error:e}, bound {bound:e}");
        divergences.push(bench.divergence(&artifact));
    }
    assert!(divergences[0] > divergences[1] && divergences[1] >= divergences[2], "{divergences:?}");
    assert!(divergences[2] < 1e-3, "{divergences:?}");
}

#[test]
fn sizes_are_the_plans_and_weights_come_back() {
    let bench = Bench::new();
    for (layout, settings) in [("bantam", "deviations = 2.0"), ("remote-code", "basis = \"chebyshev\"\nunits = 1.0")] {
        let recipe = bench.recipe(layout, settings, layout);
        let plan = json(&expect_exit(bench.on("plan", &recipe, &model(), layout).arg("--json"), 0));
        let artifact = bench.artifact(layout, settings, layout);
        let bytes: u64 = contents(&artifact)
            .into_iter()
            .filter(|(name, _)| Path::new(name).extension().is_some_and(|extension| extension == "safetensors"))
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        assert_eq!(plan["artifact_bytes"].as_u64(), Some(bytes), "{layout}");
        let notes = plan["notes"].to_string();
        assert!(notes.contains("does not protect") && notes.contains("Multiply-adds"), "{notes}");
        expect_exit(bantam().args(["verify", "--quiet"]).arg(&artifact), 0);
        let decoded = bench.path(&format!("{layout}-decoded"));
        expect_exit(bantam().args(["decode", "--quiet"]).arg(&artifact).arg("--out").arg(&decoded), 0);
        let (original, decoded) = (open(&model()), open(&decoded));
        for tensor in original.tensors() {
            let entry = |of: &LogicalCheckpoint| {
                let entry = of.checkpoint().tensor(&tensor.name).unwrap();
                of.checkpoint().bytes(entry).to_vec()
            };
            assert!(entry(&original) == entry(&decoded), "{layout}: `{}` differs", tensor.name);
        }
        let perturbed = open(&artifact);
        let gate = "model.layers.1.mlp.gate_proj.weight";
        let stored = |of: &LogicalCheckpoint| of.checkpoint().bytes(of.checkpoint().tensor(gate).unwrap()).to_vec();
        assert!(stored(&original) != stored(&perturbed), "{layout}: no gate is negated");
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let bench = Bench::new();
    let recipe = bench.recipe("threads", "deviations = 2.0", "remote-code");
    let run = |out: &str, threads: &str| {
        expect_exit(bench.on("run", &recipe, &model(), out).args(["--threads", threads]), 0);
        bench.path(out)
    };
    let one = run("one", "1");
    for threads in ["2", "3"] {
        assert_same(&one, &run(&format!("threads-{threads}"), threads));
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let bench = Bench::new();
    let refused = |settings: &str, layout: &str, code: i32, expected: &[&str]| {
        let recipe = bench.recipe("refused", settings, layout);
        let output = expect_exit(&mut bench.on("run", &recipe, &model(), "refused"), code);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(expected.iter().all(|part| text.contains(part)), "{settings}: {text}");
        assert!(!bench.path("refused").exists());
    };
    refused("units = 1.0\nmargin = 10.0", "bantam", 2, &["hidden units stay within 0.7", "deviations", "chebyshev"]);
    refused("", "dense", 2, &["layout `dense`"]);
    refused("select = [\"attention.value\"]", "bantam", 2, &["no down-projection of a dense MLP"]);
    let gate = "[[pass]]\nuse = \"rtn\"\nbits = 4\ngroup_size = 64\nselect = [\"mlp.gate\"]";
    refused(gate, "bantam", 2, &["perturb", "gate_proj"]);
}

/// Hardened, the same function comes out of other numbers; decoded, it is the original's but for the scale of units.
#[test]
fn the_hardened_form_computes_the_same() {
    let bench = Bench::new();
    let settings = "basis = \"chebyshev\"\nunits = 0.3\nmargin = 0.3";
    let plain = bench.artifact("plain", settings, "bantam");
    let hardened = bench.artifact("hardened", &format!("{settings}\nhardened = true"), "remote-code");
    let (of_plain, of_hardened) = (bench.divergence(&plain), bench.divergence(&hardened));
    assert!((of_plain - of_hardened).abs() < 1e-3 * of_plain + 1e-8, "{of_plain:e} {of_hardened:e}");
    expect_exit(bantam().arg("verify").arg(&hardened), 0);
    expect_exit(bantam().arg("verify").arg(&hardened).arg("--source").arg(model()), 0);
    let config: Value = serde_json::from_slice(&std::fs::read(hardened.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["bantam"]["taylor_mlp"]["hardened"], true);
    let (stored, source) = (open(&hardened), open(&model()));
    let values = |model: &LogicalCheckpoint, name: &str| {
        let rows = model.rows(name, false).unwrap();
        let mut values = vec![0.0; rows.rows() * rows.columns()];
        rows.read_rows(0, &mut values).unwrap();
        values
    };
    // Gates come back to the bit, ups are times powers of two, and columns are over these.
    let name = |what: &str| format!("model.layers.1.mlp.{what}_proj.weight");
    assert_eq!(values(&stored, &name("gate")), values(&source, &name("gate")));
    let (up, original_up) = (values(&stored, &name("up")), values(&source, &name("up")));
    let (down, original_down) = (values(&stored, &name("down")), values(&source, &name("down")));
    let units = 768;
    let mut scaled = 0;
    for unit in 0..units {
        let factor = up[unit * 256] / original_up[unit * 256];
        assert_eq!(factor.abs().log2().fract(), 0.0, "unit {unit}");
        scaled += usize::from(factor != 1.0);
        for row in 0..256 {
            let (got, expected) = (down[row * units + unit] * factor, original_down[row * units + unit]);
            assert!((got - expected).abs() <= 1e-5 * expected.abs(), "unit {unit}: {got}, not {expected}");
        }
    }
    assert!(scaled > units / 5, "{scaled} units are scaled");
    // Decoded it is a model of the same predictions.
    let dense = bench.path("dense");
    expect_exit(bantam().args(["decode", "--dtype", "f32"]).arg(&hardened).arg("--out").arg(&dense), 0);
    assert!(bench.divergence(&dense) < 1e-8);
    // The audit reads all of it.
    let audit = json(&expect_exit(bantam().args(["audit", "--json"]).arg(&hardened).arg("--source").arg(model()), 0));
    assert_eq!(audit["recovered_share"], 1.0, "{audit}");
}
