//! Calibrated passes and evaluation through the binary: the same bytes whatever happens, losses that fall, smoothing
//! that changes nothing but numbers' places, and errors that say what to do.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "calibrated/coverage.rs"]
mod coverage;
#[path = "calibrated/static_inputs.rs"]
mod static_inputs;

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{assert_same, bantam, contents, expect_exit, fixture, json};
use serde_json::Value;

const LENGTH: usize = 64;
const GPTQ: &str = "[[pass]]\nuse = \"gptq\"\nbits = 4\ngroup_size = 128\nsymmetric = false\n";
const MASKED: &str = "[[pass]]\nuse = \"mask_2_4\"\ncriterion = \"search\"\n[[pass]]\nuse = \"gptq\"\nbits = 4\n";
const W8A8: &str = "bits = 8\ngranularity = \"channel\"\nactivations = \"dynamic\"\n";

const STATIC: &str = "bits = 8\ngranularity = \"channel\"\nactivations = \"static\"\n";

/// A folder with a recipe's text in it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(docs("recipe.md"), folder.path().join("text.txt")).unwrap();
        std::fs::copy(docs("models.md"), folder.path().join("evaluation.txt")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a recipe with so many sequences of calibration text.
    fn recipe(&self, name: &str, passes: &str, layout: &str, sequences: usize) -> PathBuf {
        let calibration =
            format!("[calibration]\ntext = [\"text.txt\"]\nsequences = {sequences}\nsequence_length = {LENGTH}\n");
        self.recipe_with(name, &calibration, passes, layout)
    }

    fn recipe_with(&self, name: &str, calibration: &str, passes: &str, layout: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        let text = format!("schema = 1\n{calibration}\n{passes}\n[artifact]\nlayout = \"{layout}\"\n");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, recipe: &Path, out: &str) -> Command {
        run(recipe, &model(), &self.path(out))
    }

    /// Runs a recipe to its end; gives the artifact.
    fn artifact(&self, name: &str, passes: &str, layout: &str) -> PathBuf {
        let recipe = self.recipe(name, passes, layout, 8);
        expect_exit(&mut self.run(&recipe, name), 0);
        self.path(name)
    }

    fn eval(&self, model: &Path) -> Command {
        let mut command = bantam();
        command.args(["eval", "--json", "--context", "128", "--text"]).arg(self.path("evaluation.txt")).arg(model);
        command
    }
}

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

fn model() -> PathBuf {
    fixture("tiny-llama")
}

fn on(command: &str, recipe: &Path, model: &Path, out: &Path) -> Command {
    let mut line = bantam();
    line.args([command, "--quiet"]).arg(recipe).arg("--model").arg(model).arg("--out").arg(out);
    line
}

fn run(recipe: &Path, model: &Path, out: &Path) -> Command {
    on("run", recipe, model, out)
}

fn plan(recipe: &Path, model: &Path, out: &Path) -> Command {
    let mut command = on("plan", recipe, model, out);
    command.arg("--json");
    command
}

fn manifest(artifact: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(artifact.join("manifest.json")).unwrap()).unwrap()
}

fn work(out: &Path) -> PathBuf {
    out.with_file_name(format!(".{}.bantam-work", out.file_name().unwrap().to_string_lossy()))
}

/// Complete lines of the solver's journal.
fn found(out: &Path) -> usize {
    let bytes = std::fs::read(work(out).join("solved/journal")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).matches('\n').count()
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts a run and waits until it has found so many things, or is at its end.
fn until(command: &mut Command, out: &Path, lines: usize) -> Child {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while found(out) < lines && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_mins(5), "{lines} lines never came");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let bench = Bench::new();
    let smoothed = format!("[[pass]]\nuse = \"smoothquant\"\nstrength = \"search\"\n[[pass]]\nuse = \"gptq\"\n{W8A8}");
    let awq = "[[pass]]\nuse = \"awq\"\n[[pass]]\nuse = \"int4-asym\"\n";
    let nearest = format!("[[pass]]\nuse = \"smoothquant\"\n[[pass]]\nuse = \"rtn\"\n{STATIC}");
    for (name, passes) in
        [("gptq", GPTQ), ("smoothed", &smoothed), ("awq", awq), ("static", &nearest), ("masked", MASKED)]
    {
        // More tokens than one batch has, and a tail.
        let recipe = bench.recipe(name, passes, "compressed-tensors", 37);
        let reference = bench.path(&format!("{name}-1"));
        expect_exit(run(&recipe, &model(), &reference).args(["--threads", "1"]), 0);
        for threads in ["2", "7"] {
            let out = bench.path(&format!("{name}-{threads}"));
            expect_exit(run(&recipe, &model(), &out).args(["--threads", threads]), 0);
            assert_same(&reference, &out);
        }
    }
}

/// The budget decides how many sequences are computed at a time.
#[test]
fn any_budget_gives_the_same_bytes_also_when_it_changes_on_the_way() {
    let bench = Bench::new();
    let awq = "[[pass]]\nuse = \"awq\"\n[[pass]]\nuse = \"int4-asym\"\n";
    let fixed = format!("[[pass]]\nuse = \"gptq\"\n{STATIC}");
    for (name, passes) in [("awq", awq), ("gptq", GPTQ), ("static", &fixed), ("masked", MASKED)] {
        let recipe = bench.recipe(name, passes, "compressed-tensors", 37);
        let (reference, tight) = (bench.path(&format!("{name}-reference")), bench.path(&format!("{name}-tight")));
        expect_exit(&mut run(&recipe, &model(), &reference), 0);
        let smallest = json(&expect_exit(&mut plan(&recipe, &model(), &tight), 0))["smallest_memory_bytes"].to_string();
        kill_at(&recipe, &tight, 4);
        expect_exit(run(&recipe, &model(), &tight).args(["--max-memory", &smallest]), 0);
        assert_same(&reference, &tight);
        std::fs::remove_dir_all(&tight).unwrap();
        expect_exit(run(&recipe, &model(), &tight).args(["--max-memory", &smallest]), 0);
        assert_same(&reference, &tight);
    }
}

#[test]
fn killed_again_and_again_and_continued_gives_the_same_bytes() {
    let bench = Bench::new();
    let smoothed = format!("[[pass]]\nuse = \"smoothquant\"\n[[pass]]\nuse = \"gptq\"\n{W8A8}");
    let fixed = format!("[[pass]]\nuse = \"smoothquant\"\n[[pass]]\nuse = \"gptq\"\n{STATIC}");
    // Journal lines: a head, and per block scales where there are any, seven matrices, the block itself.
    for (name, passes, points) in [
        ("gptq", GPTQ, &[1, 2, 5, 8, 9, 12, 16, 17, 22, 27, 33][..]),
        ("masked", MASKED, &[1, 3, 9, 10, 20]),
        ("smoothed", &smoothed, &[1, 2, 9, 10, 11, 15, 37]),
        // The same and the ranges of seven inputs.
        ("static", &fixed, &[1, 3, 4, 5, 9, 17, 18, 30, 65]),
    ] {
        let recipe = bench.recipe(name, passes, "compressed-tensors", 16);
        let (reference, out) = (bench.path(&format!("{name}-reference")), bench.path(name));
        expect_exit(&mut run(&recipe, &model(), &reference), 0);
        let mut hits = 0;
        for &point in points {
            let mut child = until(&mut run(&recipe, &model(), &out), &out, point);
            child.kill().unwrap();
            hits += usize::from(!child.wait().unwrap().success());
            if out.exists() {
                assert_same(&reference, &out);
                std::fs::remove_dir_all(&out).unwrap();
            }
        }
        assert!(hits + 2 >= points.len(), "{name}: only {hits} of {} kills hit a running process", points.len());
        expect_exit(&mut run(&recipe, &model(), &out), 0);
        assert_same(&reference, &out);
        assert!(!work(&out).exists(), "the work folder is gone");
    }
}

#[test]
fn an_interrupted_calibration_stops_cleanly_and_continues() {
    let bench = Bench::new();
    let recipe = bench.recipe("gptq", GPTQ, "compressed-tensors", 16);
    let (reference, out) = (bench.path("reference"), bench.path("out"));
    expect_exit(&mut run(&recipe, &model(), &reference), 0);
    let mut child = until(&mut run(&recipe, &model(), &out), &out, 4);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(!out.exists(), "nothing under the target's name");
    let before = found(&out);
    assert!((4..33).contains(&before), "{before} lines: the interrupt came in the middle");
    expect_exit(&mut run(&recipe, &model(), &out), 0);
    assert_same(&reference, &out);
    assert!(!work(&out).exists());
}

/// Runs until so many things are found and kills it there; tries again where it was over before.
fn kill_at(recipe: &Path, out: &Path, point: usize) {
    for _ in 0..5 {
        let mut child = until(&mut run(recipe, &model(), out), out, point);
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            return;
        }
        std::fs::remove_dir_all(out).unwrap();
    }
    panic!("five runs were over before they could be killed after {point} lines");
}

/// What is done to the folder of finds.
type Damage = fn(&Path);

/// A run that was killed and whose work folder was damaged afterwards, as a power cut can: found again, never trusted.
#[test]
fn damaged_finds_of_a_killed_run_are_found_again() {
    let bench = Bench::new();
    let mut problems = Vec::new();
    let smoothed = format!("[[pass]]\nuse = \"smoothquant\"\n[[pass]]\nuse = \"gptq\"\n{W8A8}");
    let fixed = format!("[[pass]]\nuse = \"gptq\"\n{STATIC}");
    for (name, passes, last) in [("gptq", GPTQ, 33), ("smoothed", &smoothed, 37), ("static", &fixed, 61)] {
        let recipe = bench.recipe(name, passes, "compressed-tensors", 8);
        let (reference, out) = (bench.path(&format!("{name}-reference")), bench.path(name));
        expect_exit(&mut run(&recipe, &model(), &reference), 0);
        let damages: [(&str, Damage); 3] = [
            ("a torn journal", |path| {
                let text = std::fs::read(path.join("journal")).unwrap();
                std::fs::write(path.join("journal"), &text[..text.len() - 20]).unwrap();
            }),
            ("hidden states", |path| flip(path, "")),
            ("matrices and scales", |path| flip(path, ".safetensors")),
        ];
        for (what, damage) in damages {
            // In the middle of a block, right behind one, and behind the last.
            for point in [13, 17, last] {
                kill_at(&recipe, &out, point);
                damage(&work(&out).join("solved"));
                expect_exit(&mut run(&recipe, &model(), &out), 0);
                if contents(&reference) != contents(&out) {
                    problems.push(format!("{name}: {what}, damaged after {point} lines"));
                }
                std::fs::remove_dir_all(&out).unwrap();
            }
        }
    }
    assert!(problems.is_empty(), "other bytes: {problems:#?}");
}

/// Changes a byte in every solved file that ends so; with no ending, in those that hold hidden states.
fn flip(folder: &Path, ending: &str) {
    let mut changed = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        let wanted = if ending.is_empty() { name.starts_with("states-") } else { name.ends_with(ending) };
        let mut bytes = std::fs::read(&entry).unwrap();
        if wanted && !bytes.is_empty() {
            let middle = bytes.len() * 3 / 4;
            bytes[middle] ^= 0x15;
            std::fs::write(&entry, bytes).unwrap();
            changed += 1;
        }
    }
    assert!(changed > 0, "nothing to damage");
}

#[test]
fn other_text_under_the_same_name_is_never_mixed_in() {
    let bench = Bench::new();
    let recipe = bench.recipe("gptq", GPTQ, "compressed-tensors", 16);
    let out = bench.path("out");
    kill_at(&recipe, &out, 12);
    std::fs::copy(docs("cli.md"), bench.path("text.txt")).unwrap();
    // Nothing is written yet, so what was found is dropped and found anew.
    expect_exit(&mut run(&recipe, &model(), &out), 0);
    let reference = bench.path("reference");
    expect_exit(&mut run(&recipe, &model(), &reference), 0);
    assert_same(&reference, &out);
    // The other way round: a finished artifact is not taken for one of the other text.
    std::fs::copy(docs("recipe.md"), bench.path("text.txt")).unwrap();
    let output = expect_exit(&mut run(&recipe, &model(), &out), 4);
    assert!(stderr(&output).contains("--fresh"), "{}", stderr(&output));
    assert_same(&reference, &out);
}

#[test]
fn losses_fall_from_rounding_over_the_sweep_to_the_refinement() {
    let bench = Bench::new();
    let number_formats = [
        ("int2", "bits = 2\ngroup_size = 64\nsymmetric = false\n"),
        ("int2-sym", "bits = 2\ngroup_size = 64\n"),
        ("int3", "bits = 3\ngroup_size = 128\nsymmetric = false\n"),
        ("int3-sym", "bits = 3\ngroup_size = 128\n"),
        ("int4", "bits = 4\ngroup_size = 128\nsymmetric = false\n"),
        ("int4-sym", "bits = 4\ngroup_size = 128\n"),
        ("int8", "bits = 8\ngranularity = \"channel\"\nsymmetric = false\n"),
        ("int8-sym", "bits = 8\ngranularity = \"channel\"\n"),
        ("fp8", "format = \"fp8\"\n"),
        ("mxfp4", "format = \"mxfp4\"\n"),
        ("nvfp4", "format = \"nvfp4\"\n"),
    ];
    for (name, settings) in number_formats {
        // With the correction for the lossy input the target is another one, and the plain loss may grow.
        let passes = format!("[[pass]]\nuse = \"gptq\"\nasymmetric = false\n{settings}");
        let artifact = bench.artifact(name, &passes, "bantam");
        let manifest = manifest(&artifact);
        let mut solved = 0;
        for tensor in manifest["tensors"].as_array().unwrap() {
            if tensor["codec"] == "dense" || tensor["error"].is_null() {
                assert!(tensor["calibration"].is_null(), "{tensor}");
                continue;
            }
            let of = |key: &str| tensor["calibration"][key].as_f64().unwrap();
            let label = format!("{name} {}: {}", tensor["name"], tensor["calibration"]);
            assert_eq!(tensor["calibration"]["tokens"], 8 * LENGTH, "{label}");
            assert!(of("loss") > 0.0 && of("loss_nearest").is_finite(), "{label}");
            assert!(of("loss") <= of("loss_sweep") * (1.0 + 1e-9), "{label}");
            assert!(of("loss") <= of("loss_nearest"), "{label}");
            assert!(of("damping") >= 0.0, "{label}");
            solved += 1;
        }
        assert_eq!(solved, 28, "{name}: every linear of four blocks");
        assert_eq!(manifest["fallbacks"], serde_json::json!([]), "{name}");
        expect_exit(bantam().args(["verify", "--quiet"]).arg(&artifact).arg("--source").arg(model()), 0);
    }
}

#[test]
fn smoothing_alone_moves_numbers_and_changes_nothing() {
    let bench = Bench::new();
    let wide = bench.path("wide");
    expect_exit(bantam().args(["decode", "--quiet", "--dtype", "f32"]).arg(model()).arg("--out").arg(&wide), 0);
    for (name, passes, moves) in [
        ("half", "[[pass]]\nuse = \"smoothquant\"\nstrength = 0.5\n", true),
        ("most", "[[pass]]\nuse = \"smoothquant\"\nstrength = 0.9\n", true),
        // Where nothing rounds, no scale is better than none, and nothing is to be clipped.
        ("search", "[[pass]]\nuse = \"smoothquant\"\nstrength = \"search\"\n", false),
        ("plus", "[[pass]]\nuse = \"smoothquant_plus\"\n", false),
        ("awq", "[[pass]]\nuse = \"awq\"\n", false),
    ] {
        let recipe = bench.recipe(name, passes, "dense", 8);
        let out = bench.path(name);
        expect_exit(&mut run(&recipe, &wide, &out), 0);
        let (before, after) = (contents(&wide), contents(&out));
        let names = |folder: &Path| {
            let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
            let mut names: Vec<String> = safetensors::SafeTensors::deserialize(&bytes)
                .unwrap()
                .names()
                .iter()
                .map(|n| (*n).to_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&wide), names(&out), "{name}: the same tensors");
        assert_eq!(before["model.safetensors"].len(), after["model.safetensors"].len(), "{name}");
        assert_eq!(before["model.safetensors"] != after["model.safetensors"], moves, "{name}: what moved");
        let report = json(&expect_exit(bench.eval(&out).arg("--reference").arg(&wide), 0));
        let error = report["hidden_relative_error"].as_f64().unwrap();
        assert!(error < 1e-6, "{name}: {report}");
        assert!(report["top1_agreement"].as_f64().unwrap() > 0.999, "{name}: {report}");
    }
}

#[test]
fn an_artifact_evaluates_as_its_decoded_form_does() {
    let bench = Bench::new();
    let asymmetric = GPTQ;
    let symmetric = "[[pass]]\nuse = \"gptq\"\nbits = 4\ngroup_size = 128\n";
    for (name, passes, layout) in [
        ("ct", asymmetric, "compressed-tensors"),
        ("gptq", asymmetric, "gptq"),
        ("gptq-sym", symmetric, "gptq"),
        ("own", "[[pass]]\nuse = \"gptq\"\nbits = 3\ngroup_size = 64\nsymmetric = false\n", "bantam"),
        ("nvfp4", "[[pass]]\nuse = \"gptq\"\nformat = \"nvfp4\"\n", "compressed-tensors"),
        ("awq", "[[pass]]\nuse = \"awq\"\n[[pass]]\nuse = \"int4-asym\"\n", "awq"),
    ] {
        let artifact = bench.artifact(name, passes, layout);
        let dense = bench.path(&format!("{name}-dense"));
        expect_exit(bantam().args(["decode", "--quiet", "--dtype", "f32"]).arg(&artifact).arg("--out").arg(&dense), 0);
        let perplexity = |model: &Path| json(&expect_exit(&mut bench.eval(model), 0))["perplexity"].as_f64().unwrap();
        let (coded, decoded) = (perplexity(&artifact), perplexity(&dense));
        assert!((coded / decoded - 1.0).abs() < 1e-6, "{name}: {coded} against {decoded}");
        // The comparison can see what compression does.
        assert!((coded / perplexity(&model()) - 1.0).abs() > 1e-5, "{name}: {coded} as before");
    }
}

#[test]
fn a_budget_that_cannot_work_is_refused_with_the_one_that_can_and_the_plan_bounds_memory() {
    let bench = Bench::new();
    let smoothed = format!("[[pass]]\nuse = \"smoothquant\"\n[[pass]]\nuse = \"gptq\"\n{W8A8}");
    let fixed = format!("[[pass]]\nuse = \"rtn\"\n{STATIC}");
    for (name, passes) in [("gptq", GPTQ), ("smoothed", &smoothed), ("static", &fixed)] {
        let recipe = bench.recipe(name, passes, "compressed-tensors", 64);
        let out = bench.path(name);
        let planned = json(&expect_exit(plan(&recipe, &model(), &out).args(["--threads", "2"]), 0));
        let smallest = planned["smallest_memory_bytes"].to_string();
        let with = |budget: &str, code: i32| {
            let output =
                expect_exit(run(&recipe, &model(), &out).args(["--threads", "2", "--max-memory", budget]), code);
            stderr(&output)
        };
        let too_small = (planned["smallest_memory_bytes"].as_u64().unwrap() - 1).to_string();
        for budget in ["1MiB", &too_small] {
            let message = with(budget, 4);
            assert!(message.contains(&smallest), "{name}, {budget}: {message}");
        }
        with(&smallest, 0);
        let tight = peak(&out);
        assert!(tight <= planned["smallest_memory_bytes"].as_u64().unwrap(), "{name}: peak {tight} of {smallest}");
        std::fs::remove_dir_all(&out).unwrap();
        expect_exit(run(&recipe, &model(), &out).args(["--threads", "2"]), 0);
        let whole = peak(&out);
        assert!(whole <= planned["peak_memory_bytes"].as_u64().unwrap(), "{name}: peak {whole}, {planned}");
    }
}

fn peak(artifact: &Path) -> u64 {
    let log: Value = serde_json::from_slice(&std::fs::read(artifact.join("run.json")).unwrap()).unwrap();
    log["peak_rss_bytes"].as_u64().unwrap()
}

#[test]
fn what_calibration_lacks_is_told_before_anything_is_written() {
    let bench = Bench::new();
    let text = |settings: &str| format!("[calibration]\ntext = [\"text.txt\"]\n{settings}\n");
    let out = bench.path("out");
    let check = |name: &str, recipe: &Path, model: &Path, code: i32, words: &[&str]| {
        for command in ["plan", "run"] {
            let message = stderr(&expect_exit(&mut on(command, recipe, model, &out), code));
            for word in words {
                assert!(message.contains(word), "{name}, {command}: no `{word}` in {message}");
            }
            assert!(!out.exists(), "{name}: nothing is written");
        }
    };

    for (pass, rule) in [
        ("gptq", GPTQ),
        ("smoothquant", "[[pass]]\nuse = \"smoothquant\"\n[[pass]]\nuse = \"w8a8\"\n"),
        ("awq", "[[pass]]\nuse = \"awq\"\n[[pass]]\nuse = \"int4-asym\"\n"),
    ] {
        let recipe = bench.recipe_with(pass, "", rule, "compressed-tensors");
        check("no calibration", &recipe, &model(), 2, &[pass, "[calibration]", "text = "]);
    }
    let recipe = bench.recipe_with("short", &text("sequences = 5000\nsequence_length = 64"), GPTQ, "gptq");
    check("too little text", &recipe, &model(), 2, &["5000", "sequences = "]);
    let recipe = bench.recipe_with("long", &text("sequences = 2\nsequence_length = 513"), GPTQ, "gptq");
    check("longer than the context", &recipe, &model(), 2, &["513", "512"]);
    let recipe = bench.recipe_with("missing", "[calibration]\ntext = [\"nowhere.txt\"]\n", GPTQ, "gptq");
    check("no such text", &recipe, &model(), 3, &["nowhere.txt"]);

    let good = bench.recipe("good", GPTQ, "gptq", 8);
    let bare = bench.path("bare");
    copy_model(&bare, |name| name != "tokenizer.json");
    check("no tokenizer", &good, &bare, 3, &["tokenizer.json", "token ids"]);
    let unknown = bench.path("unknown");
    copy_model(&unknown, |_| true);
    let config = std::fs::read_to_string(unknown.join("config.json")).unwrap();
    let config = config.replace("\"llama\"", "\"mamba\"").replace("LlamaForCausalLM", "MambaForCausalLM");
    std::fs::write(unknown.join("config.json"), config).unwrap();
    check("unknown architecture", &good, &unknown, 3, &["mamba", "llama", "qwen3", "gpt_oss"]);
    // Without a pass that computes, nobody minds.
    let rounded = bench.recipe_with("rounded", "", "[[pass]]\nuse = \"int4\"\n", "compressed-tensors");
    expect_exit(&mut run(&rounded, &unknown, &bench.path("rounded")), 0);
    // Evaluation has the same needs.
    let message = stderr(&expect_exit(&mut bench.eval(&unknown), 3));
    assert!(message.contains("mamba") && message.contains("qwen3"), "{message}");
    let message = stderr(&expect_exit(&mut bench.eval(&bare), 3));
    assert!(message.contains("tokenizer.json"), "{message}");
    let message = stderr(&expect_exit(bench.eval(&model()).args(["--context", "513"]), 2));
    assert!(message.contains("--context") || message.contains("512"), "{message}");
}

fn copy_model(to: &Path, keep: impl Fn(&str) -> bool) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(model()).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if keep(&name) {
            std::fs::copy(&entry, to.join(&name)).unwrap();
        }
    }
}

#[test]
fn every_calibrated_fixture_is_planned_exactly_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipes: Vec<PathBuf> =
        std::fs::read_dir(fixture("calibrated")).unwrap().map(|entry| entry.unwrap().path()).collect();
    recipes.sort();
    assert!(recipes.len() >= 10, "the recipes are there");
    let mut problems = Vec::new();
    for recipe in recipes {
        let out = folder.path().join(recipe.file_stem().unwrap());
        let planned = json(&expect_exit(&mut plan(&recipe, &model(), &out), 0));
        expect_exit(&mut run(&recipe, &model(), &out), 0);
        let mut files: Vec<(String, u64)> = planned["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| (file["name"].as_str().unwrap().to_owned(), file["bytes"].as_u64().unwrap()))
            .collect();
        files.sort();
        let written: Vec<(String, u64)> = contents(&out)
            .into_iter()
            .filter(|(name, _)| name != "manifest.json")
            .map(|(name, bytes)| (name, bytes.len() as u64))
            .collect();
        assert_eq!(files, written, "{}", recipe.display());
        let output = bantam().args(["verify", "--quiet"]).arg(&out).arg("--source").arg(model()).output().unwrap();
        if output.status.code() != Some(0) {
            let found = String::from_utf8_lossy(&output.stdout).into_owned();
            problems.push(format!("{}: {}", recipe.display(), found.lines().take(3).collect::<Vec<_>>().join(" ")));
        }
    }
    assert!(problems.is_empty(), "verify --source:\n{}", problems.join("\n"));
}

/// Fewer tokens than channels, and next to no damping: it is raised until the second moments can be factored.
#[test]
fn damping_that_is_raised_is_told_once_and_by_its_name() {
    let bench = Bench::new();
    let recipe = bench.recipe("damped", &format!("{GPTQ}damping = 1e-15\n"), "compressed-tensors", 1);
    let out = bench.path("out");
    expect_exit(&mut run(&recipe, &model(), &out), 0);
    let manifest = manifest(&out);
    let mut told: Vec<(&str, &str)> = manifest["fallbacks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fallback| (fallback["tensor"].as_str().unwrap(), fallback["kind"].as_str().unwrap()))
        .collect();
    let all = told.len();
    assert!(all > 0, "damping was raised");
    assert!(told.iter().all(|(_, kind)| *kind != "other"), "{told:?}");
    told.dedup_by_key(|(tensor, _)| *tensor);
    assert_eq!(told.len(), all, "one reason for each tensor: {}", manifest["fallbacks"]);
    let denied = bench.path("denied");
    let message = stderr(&expect_exit(run(&recipe, &model(), &denied).args(["--deny", "fallback"]), 1));
    assert!(message.contains("damping"), "{message}");
}

#[test]
fn a_matrix_whose_input_is_not_seen_is_rounded_and_that_can_be_denied() {
    let bench = Bench::new();
    let passes = format!("{GPTQ}select = [\"head\"]\n");
    let recipe = bench.recipe("head", &passes, "compressed-tensors", 8);
    let out = bench.path("out");
    let message = stderr(&expect_exit(run(&recipe, &model(), &out).args(["--deny", "fallback"]), 1));
    assert!(message.contains("lm_head.weight"), "{message}");
    assert!(!out.exists());
    let planned = json(&expect_exit(&mut plan(&recipe, &model(), &out), 0));
    assert_eq!(planned["fallbacks"][0]["kind"], "no-statistics", "the plan says so before");
    expect_exit(&mut run(&recipe, &model(), &out), 0);
    let manifest = manifest(&out);
    assert_eq!(manifest["fallbacks"][0]["kind"], "no-statistics");
    assert_eq!(manifest["fallbacks"][0]["tensor"], "lm_head.weight");
    assert_eq!(manifest["fallbacks"].as_array().unwrap().len(), 1);
    // To nearest: exactly what `rtn` makes of it.
    let nearest =
        bench.recipe("nearest", "[[pass]]\nuse = \"int4-asym\"\nselect = [\"head\"]\n", "compressed-tensors", 8);
    expect_exit(&mut run(&nearest, &model(), &bench.path("nearest")), 0);
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&bench.path("nearest")), "the head is rounded to nearest");
}

/// Experts that no token reaches, and experts that few reach.
#[test]
fn starved_experts_are_rounded_and_that_can_be_denied() {
    let bench = Bench::new();
    let moe = bench.path("moe");
    write_mixtral(&moe);
    let passes = "[[pass]]\nuse = \"gptq\"\nbits = 4\ngroup_size = 32\nselect = [\"expert\"]\n";
    for (name, sequences, expected) in
        [("many", 16, vec!["no-statistics"]), ("few", 1, vec!["no-statistics", "starved-expert"])]
    {
        let calibration =
            format!("[calibration]\ntext = [\"text.txt\"]\nsequences = {sequences}\nsequence_length = 16\n");
        let recipe = bench.recipe_with(name, &calibration, passes, "bantam");
        let out = bench.path(name);
        expect_exit(&mut run(&recipe, &moe, &out), 0);
        let manifest = manifest(&out);
        let fallbacks = manifest["fallbacks"].as_array().unwrap();
        let mut kinds: Vec<&str> = fallbacks.iter().map(|fallback| fallback["kind"].as_str().unwrap()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in &expected {
            assert!(kinds.contains(kind), "{name}: {kinds:?}");
        }
        let unseen = |expert: usize| {
            fallbacks.iter().any(|fallback| {
                fallback["kind"] == "no-statistics"
                    && fallback["tensor"].as_str().unwrap().contains(&format!("experts.{expert}."))
            })
        };
        assert!(unseen(6) && unseen(7), "{name}: {fallbacks:?}");
        let denied = bench.path(&format!("{name}-denied"));
        let message = stderr(&expect_exit(run(&recipe, &moe, &denied).args(["--deny", "fallback"]), 1));
        assert!(message.contains("experts."), "{message}");
        assert!(!denied.exists());
    }
}

#[test]
fn experts_are_clipped_where_they_are_seen() {
    let bench = Bench::new();
    let moe = bench.path("moe");
    write_mixtral(&moe);
    let calibration = "[calibration]\ntext = [\"text.txt\"]\nsequences = 16\nsequence_length = 16\n";
    let stored = |clip: bool| {
        let passes = format!(
            "[[pass]]\nuse = \"awq\"\nfolds = [\"value\"]\nclip = {clip}\nselect = [\"expert\"]\n\
             [[pass]]\nuse = \"rtn\"\nbits = 3\ngroup_size = 32\nselect = [\"expert\"]\n"
        );
        let name = format!("clip-{clip}");
        let recipe = bench.recipe_with(&name, calibration, &passes, "bantam");
        let out = bench.path(&name);
        expect_exit(&mut run(&recipe, &moe, &out), 0);
        manifest(&out)["tensors"].as_array().unwrap().clone()
    };
    let (plain, clipped) = (stored(false), stored(true));
    for expert in 0..8 {
        for part in ["w1", "w2", "w3"] {
            let module = format!("experts.{expert}.{part}.");
            let hash = |tensors: &[Value]| {
                let tensor = tensors.iter().find(|tensor| tensor["name"].as_str().unwrap().contains(&module));
                tensor.unwrap()["parts"][0]["hash"].clone()
            };
            // The router never chooses the last two, so nothing is known of their inputs.
            assert_eq!(hash(&plain) == hash(&clipped), expert >= 6, "{module}");
        }
    }
}

/// One block with eight experts, of which the router never chooses the last two: two others always score above zero.
fn write_mixtral(folder: &Path) {
    copy_model(folder, |name| name.starts_with("tokenizer"));
    let (hidden, intermediate, vocabulary) = (64, 96, 2048);
    let mut data = Vec::new();
    let mut add = |name: String, shape: Vec<usize>, bytes: Vec<u8>| data.push((name, shape, bytes));
    let mut random = |name: &str, shape: &[usize]| {
        let bytes = common::weights(name, shape.iter().product());
        add(name.to_owned(), shape.to_vec(), bytes);
    };
    random("model.embed_tokens.weight", &[vocabulary, hidden]);
    random("lm_head.weight", &[vocabulary, hidden]);
    let block = "model.layers.0";
    for (part, rows) in [("q_proj", hidden), ("k_proj", hidden / 2), ("v_proj", hidden / 2), ("o_proj", hidden)] {
        random(&format!("{block}.self_attn.{part}.weight"), &[rows, hidden]);
    }
    for expert in 0..8 {
        let expert = format!("{block}.block_sparse_moe.experts.{expert}");
        random(&format!("{expert}.w1.weight"), &[intermediate, hidden]);
        random(&format!("{expert}.w3.weight"), &[intermediate, hidden]);
        random(&format!("{expert}.w2.weight"), &[hidden, intermediate]);
    }
    let ones: Vec<u8> = (0..hidden).flat_map(|_| half::bf16::ONE.to_le_bytes()).collect();
    for norm in ["model.norm", &format!("{block}.input_layernorm"), &format!("{block}.post_attention_layernorm")] {
        add(format!("{norm}.weight"), vec![hidden], ones.clone());
    }
    let mut router = Vec::new();
    for pair in ["a", "b", "c"] {
        let row = common::weights(pair, hidden);
        let negated = row.iter().enumerate().map(|(at, byte)| if at % 2 == 1 { byte ^ 0x80 } else { *byte });
        let negated: Vec<u8> = negated.collect();
        router.extend([row, negated].concat());
    }
    router.resize(8 * hidden * 2, 0);
    add(format!("{block}.block_sparse_moe.gate.weight"), vec![8, hidden], router);
    common::write_tensors(&folder.join("model.safetensors"), &data);
    let config = serde_json::json!({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": vocabulary, "num_local_experts": 8, "num_experts_per_tok": 2,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "hidden_act": "silu",
    });
    std::fs::write(folder.join("config.json"), format!("{config:#}\n")).unwrap();
}
