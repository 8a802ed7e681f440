//! Coverage of experts, before anything is gathered.

use std::path::Path;

use super::*;

const EXPERTS: &str = "[[pass]]\nuse = \"gptq\"\nbits = 4\ngroup_size = 32\nselect = [\"expert\"]\n";

fn coverage(recipe: &Path, model: &Path, temporary: &Path) -> Command {
    let mut command = bantam();
    command.args(["calibrate", "--quiet", "--coverage"]).arg(recipe).arg("--model").arg(model);
    command.env("TMPDIR", temporary);
    command
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn coverage_tells_beforehand_what_a_run_finds_and_leaves_nothing() {
    let bench = Bench::new();
    let (moe, temporary) = (bench.path("moe"), bench.path("temporary"));
    write_mixtral(&moe);
    std::fs::create_dir(&temporary).unwrap();
    let calibration = "[calibration]\ntext = [\"text.txt\"]\nsequences = 5\nsequence_length = 16\npredecessor = \
                       \"original\"\n";
    let recipe = bench.recipe_with("coverage", calibration, EXPERTS, "bantam");
    let before = entries(bench.0.path());
    let report = json(&expect_exit(coverage(&recipe, &moe, &temporary).arg("--json"), 0));
    let text = String::from_utf8(expect_exit(&mut coverage(&recipe, &moe, &temporary), 0).stdout).unwrap();
    assert_eq!(entries(bench.0.path()), before, "nothing is written");
    assert_eq!(entries(&temporary), Vec::<PathBuf>::new(), "temporary states are gone");

    assert_eq!((&report["schema"], &report["tokens"]), (&"bantam.calibrate/1".into(), &80.into()), "{report}");
    assert!(report.get("file").is_none(), "{report}");
    let block = &report["experts"][0];
    let tokens: Vec<u64> = block["tokens"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect();
    assert_eq!(tokens.len(), 8);
    assert_eq!(tokens.iter().sum::<u64>(), 2 * 80, "each token has two experts");
    assert_eq!((tokens[6], tokens[7]), (0, 0), "the router never chooses these");
    let starved = tokens.iter().filter(|count| **count < 16).count();
    assert_eq!((&block["needed"], &block["unseen"]), (&16.into(), &2.into()), "{block}");
    assert_eq!(block["starved"], starved, "{block}");
    let mut sorted = tokens.clone();
    sorted.sort_unstable();
    let told = format!("least 0, median {}, most {}\n  {starved} have fewer than the 16", sorted[4], sorted[7]);
    assert!(text.contains(&told) && text.contains("starved-expert"), "{told}: {text}");

    // What the run then finds, expert by expert.
    let out = bench.path("out");
    expect_exit(&mut run(&recipe, &moe, &out), 0);
    let manifest = manifest(&out);
    for (expert, count) in tokens.iter().enumerate() {
        let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.w1.weight");
        let tensors = manifest["tensors"].as_array().unwrap();
        let tensor = tensors.iter().find(|tensor| tensor["name"] == name.as_str()).unwrap();
        assert_eq!(tensor["calibration"]["tokens"], *count, "{name}");
    }
    // And what the statistics say.
    let mut gather = bantam();
    gather.args(["calibrate", "--quiet", "--json"]).arg(&recipe).arg("--model").arg(&moe);
    let saved = json(&expect_exit(gather.arg("--out").arg(bench.path("saved.safetensors")), 0));
    assert_eq!(saved["experts"], report["experts"]);
    // With a budget that keeps one expert at a time.
    let tight = json(&expect_exit(coverage(&recipe, &moe, &temporary).args(["--json", "--max-memory", "16KiB"]), 0));
    assert_eq!(tight, report);
}

#[test]
fn plans_and_runs_of_experts_mention_coverage_and_dense_models_have_none() {
    let bench = Bench::new();
    let moe = bench.path("moe");
    write_mixtral(&moe);
    let calibration = "[calibration]\ntext = [\"text.txt\"]\nsequences = 2\nsequence_length = 16\n";
    let recipe = bench.recipe_with("mention", calibration, EXPERTS, "bantam");
    let notes = |model: &Path, passes: &Path| {
        json(&expect_exit(&mut plan(passes, model, &bench.path("p")), 0))["notes"].to_string()
    };
    assert!(notes(&moe, &recipe).contains("--coverage"));
    let mut loud = bantam();
    loud.args(["run", "--no-progress"]).arg(&recipe).arg("--model").arg(&moe).arg("--out").arg(bench.path("loud"));
    assert!(stderr(&expect_exit(&mut loud, 0)).contains("--coverage"));

    let dense = bench.recipe("dense", GPTQ, "compressed-tensors", 2);
    assert!(!notes(&model(), &dense).contains("--coverage"));
    let text = expect_exit(&mut coverage(&dense, &model(), bench.0.path()), 0).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("no block has experts") && text.contains("128 tokens"), "{text}");

    let both = stderr(&expect_exit(coverage(&dense, &model(), bench.0.path()).args(["--out", "file"]), 2));
    assert!(both.contains("--coverage") && both.contains("--out"), "{both}");
    let neither = stderr(&expect_exit(bantam().args(["calibrate"]).arg(&dense), 2));
    assert!(neither.contains("--out"), "{neither}");
}
