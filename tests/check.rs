//! `bantam check`: what a policy asks for is found, named and written in every format.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Output,
};

use common::{bantam, expect_exit, json};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A folder with an artifact of the built-in example.
struct Example {
    folder: tempfile::TempDir,
}

impl Example {
    fn new(recipe: &str) -> Self {
        let example = Self { folder: tempfile::tempdir().unwrap() };
        example.run(recipe, "artifact");
        example
    }

    fn run(&self, recipe: &str, name: &str) {
        let mut command = bantam();
        command.args(["run", "--quiet"]).arg(fixtures().join("recipes").join(recipe));
        expect_exit(command.arg("--out").arg(self.path(name)), 0);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Checks the artifact against the text of a policy.
    fn check(&self, policy: &str, format: &str, code: i32) -> Output {
        let path = self.path("policy.toml");
        std::fs::write(&path, format!("schema = 1\n{policy}")).unwrap();
        let mut command = bantam();
        command.arg("check").arg(self.path("artifact")).arg("--policy").arg(path);
        expect_exit(command.args(["--format", format]), code)
    }

    fn findings(&self, policy: &str) -> Vec<Value> {
        let report = json(&self.check(policy, "json", 1));
        assert_eq!(report["schema"], "bantam.check/1");
        assert_eq!(report["passed"], false);
        report["findings"].as_array().unwrap().clone()
    }

    /// The one rule that findings of a policy name, and how many there are.
    fn rule(&self, policy: &str) -> (String, usize) {
        let findings = self.findings(policy);
        let rules: BTreeSet<&str> = findings.iter().map(|finding| finding["rule"].as_str().unwrap()).collect();
        assert_eq!(rules.len(), 1, "{policy}: {findings:#?}");
        (rules.first().unwrap().to_string(), findings.len())
    }
}

#[test]
fn the_policy_of_the_built_in_example_holds() {
    let example = Example::new("int4.toml");
    let policy = fixtures().join("ci/policy.toml");
    let mut command = bantam();
    command.arg("check").arg(example.path("artifact")).arg("--policy").arg(&policy);
    let output = expect_exit(&mut command, 0);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("passed"), "{output:?}");
    let report = json(&expect_exit(command.args(["--format", "json"]), 0));
    assert_eq!((&report["passed"], report["findings"].as_array().unwrap().len()), (&Value::Bool(true), 0));
}

/// The commands of the ready-made jobs do what they say, in a folder laid out as they expect.
#[test]
fn the_ready_made_jobs_run() {
    let bin = Path::new(env!("CARGO_BIN_EXE_bantam")).parent().unwrap().to_owned();
    let path = std::env::join_paths(
        std::iter::once(bin).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )
    .unwrap();
    for (job, report) in [("github.yml", "findings.sarif"), ("gitlab-ci.yml", "findings.xml")] {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tiny-llama", "recipes", "ci", "text"] {
            std::os::unix::fs::symlink(fixtures().join(name), folder.path().join(name)).unwrap();
        }
        let text = std::fs::read_to_string(fixtures().join("ci").join(job)).unwrap();
        let commands: Vec<&str> = text
            .lines()
            .filter_map(|line| Some(&line[line.find("bantam ")?..]))
            .filter(|line| !line.contains("--locked"))
            .collect();
        assert_eq!(commands.len(), 2, "{job}");
        for command in commands {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-ec", command]).env("PATH", &path).current_dir(folder.path());
            expect_exit(&mut shell, 0);
        }
        assert!(folder.path().join(report).metadata().unwrap().len() > 0, "{job}");
    }
}

#[test]
fn every_limit_has_a_finding_with_value_and_limit() {
    let example = Example::new("int4.toml");
    let expected = [
        ("[limits]\nbits_per_weight = 4.0", "bits-per-weight", 1),
        ("[limits]\nartifact_bytes = \"1MB\"", "artifact-bytes", 1),
        ("[limits]\nmin_mean_snr_db = 60", "mean-snr-db", 1),
        ("[limits]\nmax_mean_relative_error = 0.001", "mean-relative-error", 1),
        ("[[limit]]\nselect = [\"mlp.down\"]\nmin_snr_db = 60", "snr-db", 4),
        ("[[limit]]\nselect = [\"mlp\"]\nskip = [\"mlp.down\"]\nmax_relative_error = 0.001", "relative-error", 8),
        ("[[limit]]\nselect = [\"attention\"]\nbits_per_weight = 1.0", "bits-per-weight", 1),
        ("[[limit]]\nselect = [\"attention\"]\nbytes = 10", "bytes", 1),
        ("[[limit]]\nselect = [\"router\"]\nbytes = 10", "limit", 1),
    ];
    for (policy, rule, count) in expected {
        assert_eq!(example.rule(policy), (rule.to_owned(), count), "{policy}");
        let findings = example.findings(policy);
        let stated = findings.iter().all(|finding| finding["value"].is_number() && finding["limit"].is_number());
        assert!(stated || rule == "limit", "{findings:#?}");
    }
}

#[test]
fn predictions_are_measured_against_the_reference() {
    let example = Example::new("int4.toml");
    let reference = fixtures().join("tiny-llama");
    let text = fixtures().join("text/rtn.txt");
    let evaluation = format!("\n[evaluation]\ntext = [{text:?}]\ncontext = 128\nreference = {reference:?}\n");
    let limits = "[limits]\nmax_perplexity = 1.0\nmax_perplexity_increase = -100.0\nmax_mean_kl_divergence = 0.0\n\
                  max_p99_kl_divergence = 0.0\nmin_top1_agreement = 1.0\n";
    let findings = example.findings(&format!("{limits}{evaluation}"));
    let rules: Vec<&str> = findings.iter().map(|finding| finding["rule"].as_str().unwrap()).collect();
    let expected = ["perplexity", "perplexity-increase", "mean-kl-divergence", "p99-kl-divergence", "top1-agreement"];
    assert_eq!(rules, expected);
    // The same figures as `eval` tells.
    let mut command = bantam();
    command.args(["eval", "--json", "--context", "128", "--text"]).arg(&text).arg(example.path("artifact"));
    let evaluated = json(&expect_exit(command.arg("--reference").arg(&reference), 0));
    assert_eq!(findings[0]["value"], evaluated["perplexity"]);
    assert_eq!(findings[2]["value"], evaluated["mean_kl_divergence"]);
    assert_eq!(findings[4]["value"], evaluated["top1_agreement"]);
}

#[test]
fn formats_masks_fallbacks_and_runtimes_are_required_or_forbidden() {
    let example = Example::new("int4.toml");
    let expected = [
        ("[require]\ncodecs = { \"mlp\" = [\"int8*\", \"fp8*\"] }", "codec", 12),
        ("[require]\ncodecs = { \"router\" = \"int4*\" }", "codec", 1),
        ("[forbid]\ncodecs = { \"attention.key\" = \"int4*\" }", "forbidden-codec", 4),
        ("[require]\nsparsity = { \"mlp.down\" = \"2:4\" }", "sparsity", 4),
        ("[require]\nlayouts = [\"gptq\", \"awq\"]", "layout", 1),
    ];
    for (policy, rule, count) in expected {
        assert_eq!(example.rule(policy), (rule.to_owned(), count), "{policy}");
    }
    let own = Example::new("bantam-3bit.toml");
    assert_eq!(own.rule("[require]\nruntimes = [\"vllm\"]"), ("runtime".to_owned(), 1));
    let masked = Example::new("mask-dense.toml");
    masked.check("[require]\nsparsity = { \"mlp\" = \"2:4\" }", "json", 0);
}

/// Rules of vLLM's loader that a recipe breaks easily; transformers has none of them.
#[test]
fn conformance_rules_of_a_runtime_name_what_it_would_take() {
    let pass = |settings: &str| format!("[[pass]]\nuse = \"rtn\"\nbits = 4\n{settings}");
    let one_of_three = "[[pass.override]]\nselect = [\"attention.key\"]\nbits = 8\n";
    let dense_up = "group_size = 128\nskip = [\"head\", \"embedding\", \"mlp.up\"]\n";
    let cases = [
        ("compressed-tensors", pass("group_size = 16\n"), 28, "groups of 32, 64 or 128, or whole rows"),
        ("compressed-tensors", pass(one_of_three), 4, "int4-g128"),
        ("compressed-tensors", pass(dense_up), 4, "int4-g128"),
        ("gptq", pass("bits = 3\ngroup_size = 128\n").replacen("bits = 4\n", "", 1), 28, "float16"),
        ("gptq", pass("group_size = 128\nsymmetric = false\n"), 28, "float16"),
        ("gptq", pass("group_size = 128\n"), 0, ""),
        ("compressed-tensors", pass("group_size = 32\n"), 0, ""),
    ];
    for (layout, pass, count, limit) in cases {
        let folder = tempfile::tempdir().unwrap();
        let example = Example { folder };
        let recipe = example.path("recipe.toml");
        let model = fixtures().join("tiny-llama");
        let text =
            format!("schema = 1\nmodel = {model:?}\n{pass}\n[artifact]\nout = \"artifact\"\nlayout = \"{layout}\"\n");
        std::fs::write(&recipe, text).unwrap();
        expect_exit(bantam().args(["run", "--quiet"]).arg(&recipe), 0);
        example.check("[require]\nruntimes = [\"transformers\"]", "json", 0);
        if count == 0 {
            example.check("[require]\nruntimes = [\"vllm\"]", "json", 0);
            continue;
        }
        let findings = example.findings("[require]\nruntimes = [\"vllm\"]");
        let as_expected = findings.iter().filter(|finding| finding["rule"] == "runtime" && finding["limit"] == limit);
        assert_eq!((as_expected.count(), findings.len()), (count, count), "{pass}: {findings:#?}");
    }
    // A server needs the tokenizer.
    let bare = Example { folder: tempfile::tempdir().unwrap() };
    let model = bare.path("model");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixtures().join("tiny-llama").join(name), model.join(name)).unwrap();
    }
    let mut command = bantam();
    command.args(["run", "--quiet"]).arg(fixtures().join("recipes/int4.toml")).arg("--model").arg(&model);
    expect_exit(command.arg("--out").arg(bare.path("artifact")), 0);
    let findings = bare.findings("[require]\nruntimes = [\"vllm\"]");
    assert_eq!((findings.len(), &findings[0]["value"]), (1, &Value::from("no tokenizer")));
}

#[test]
fn an_artifact_comes_from_where_the_policy_says() {
    let example = Example::new("int4.toml");
    let zeros = format!("blake3:{}", "0".repeat(64));
    let model = fixtures().join("tiny-llama");
    let recipe = |name: &str| fixtures().join("recipes").join(name);
    let provenance = |text: String| format!("[provenance]\n{text}\n");
    assert_eq!(example.rule(&provenance("tool_version = \">=99\"".into())).0, "tool-version");
    assert_eq!(example.rule(&provenance(format!("inputs_hash = \"{zeros}\""))).0, "inputs-hash");
    let wanted = provenance(format!("recipe_hash = \"{zeros}\""));
    assert_eq!(example.rule(&wanted).0, "recipe-hash");
    // What a finding states can be put into the policy.
    let stated = example.findings(&wanted)[0]["value"].as_str().unwrap().to_owned();
    example.check(&provenance(format!("recipe_hash = \"{stated}\"")), "json", 0);
    let again = |name: &str, source: &Path| {
        provenance(format!("source = {source:?}\nrecipe = {:?}\n[require]\nreproduce = true", recipe(name)))
    };
    example.check(&again("int4.toml", &model), "json", 0);
    assert_eq!(example.rule(&again("w8a16.toml", &model)), ("reproduce".to_owned(), 1));
}

#[test]
fn bytes_that_do_not_come_out_again_are_found() {
    let example = Example::new("int4.toml");
    // Another model with the same recipe: verification sees other inputs, reproduction other bytes.
    let other = example.path("other");
    std::fs::create_dir(&other).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixtures().join("tiny-llama").join(file), other.join(file)).unwrap();
    }
    let mut bytes = std::fs::read(fixtures().join("tiny-llama/model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The sign of every 16th weight: every matrix has some.
    bytes[header..].iter_mut().skip(1).step_by(32).for_each(|byte| *byte ^= 0x80);
    std::fs::write(other.join("model.safetensors"), bytes).unwrap();
    let recipe = fixtures().join("recipes/int4.toml");
    let findings = example
        .findings(&format!("[provenance]\nsource = {other:?}\nrecipe = {recipe:?}\n[require]\nreproduce = true\n"));
    let again: Vec<_> = findings.iter().filter(|finding| finding["rule"] == "reproduce").collect();
    assert_eq!(again.len(), 8, "{findings:#?}");
}

#[test]
fn an_artifact_is_no_worse_than_its_baseline() {
    let example = Example::new("int4.toml");
    example.run("w8a16.toml", "better");
    let baseline = |settings: &str| format!("[baseline]\nartifact = \"{}\"\n{settings}", "better");
    let findings = example.findings(&baseline(""));
    assert!(findings.iter().all(|finding| finding["rule"] == "baseline-error"), "{findings:#?}");
    assert_eq!(findings.len(), 28);
    example.check(&baseline("max_error_increase = 1000"), "json", 0);
    let better = Example::new("w8a16.toml");
    better.run("int4.toml", "smaller");
    assert_eq!(better.rule("[baseline]\nartifact = \"smaller\""), ("baseline-size".to_owned(), 1));
    better.check("[baseline]\nartifact = \"smaller\"\nmax_size_increase = 1.0", "json", 0);
}

#[test]
fn findings_read_back_as_junit_and_sarif() {
    let example = Example::new("int4.toml");
    let policy = "[limits]\nbits_per_weight = 1.0\n[[limit]]\nselect = [\"mlp.down\"]\nmin_snr_db = 60";
    let xml = String::from_utf8(example.check(policy, "junit", 1).stdout).unwrap();
    let suites = junit_parser::from_reader(xml.as_bytes()).unwrap();
    assert_eq!((suites.tests, suites.failures), (5, 5));
    let case = &suites.suites[0].cases[1];
    assert!(case.status.is_failure() && case.name.contains("down_proj"), "{case:?}");
    let sarif = String::from_utf8(example.check(policy, "sarif", 1).stdout).unwrap();
    let sarif: serde_sarif::sarif::Sarif = serde_json::from_str(&sarif).unwrap();
    let run = &sarif.runs[0];
    let results = run.results.as_ref().unwrap();
    assert_eq!(results.len(), 5);
    let rules = run.tool.driver.rules.as_ref().unwrap();
    for result in results {
        let index = usize::try_from(result.rule_index.unwrap()).unwrap();
        assert_eq!(Some(&rules[index].id), result.rule_id.as_ref());
        let place = result.locations.as_ref().unwrap()[0].physical_location.as_ref().unwrap();
        let uri = place.artifact_location.as_ref().unwrap().uri.as_ref().unwrap();
        assert!(uri.ends_with("artifact/manifest.json"), "{uri}");
    }
    // Nothing found is a test that passed, and a run without results.
    let xml = String::from_utf8(example.check("", "junit", 0).stdout).unwrap();
    let suites = junit_parser::from_reader(xml.as_bytes()).unwrap();
    assert_eq!((suites.tests, suites.failures), (1, 0));
    let sarif = json(&example.check("", "sarif", 0));
    assert_eq!(sarif["runs"][0]["results"].as_array().unwrap().len(), 0);
}

#[test]
fn what_a_policy_does_not_know_is_an_error() {
    let example = Example::new("int4.toml");
    let wrong = [
        ("[limits]\nmin_snr = 3", "unknown field `min_snr`"),
        ("[requires]\n", "unknown field `requires`"),
        ("[limits]\nmax_perplexity = 3", "needs [evaluation]"),
        ("[limits]\nmax_mean_kl_divergence = 3\n[evaluation]\ntext = [\"a.txt\"]", "`reference = \"DIR\"`"),
        ("[require]\nreproduce = true", "needs `recipe = \"FILE\"`"),
        ("[require]\nfallbacks = \"some\"", "expected \"none\" or a list"),
        ("[require]\nsparsity = { \"mlp\" = \"4:2\" }", "expected a pattern such as \"2:4\""),
        ("[require]\nruntimes = [\"abacus\"]", "abacus"),
        ("[[limit]]\nselect = [\"mlp\"]", "limits nothing"),
        ("[[limit]]\nselect = [\"/(/\"]\nbytes = 3", "regular expression"),
        ("[limits]\nartifact_bytes = \"3 bananas\"", "expected a size"),
    ];
    for (policy, expected) in wrong {
        let output = example.check(policy, "text", 2);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(expected) && message.contains("policy.toml"), "{policy}: {message}");
    }
    let mut command = bantam();
    command.arg("check").arg(fixtures().join("tiny-llama")).arg("--policy").arg(fixtures().join("ci/policy.toml"));
    expect_exit(&mut command, 3);
}
