//! The main job through the binary: the plan is exact, the bytes are always the same, nothing is ever lost.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{SMALL, Shape, assert_same, bantam, contents, expect_exit, fixture, json, recipes, write_model};

/// Large enough to be killed in the middle.
const MEDIUM: Shape = Shape { hidden: 1024, intermediate: 2816, blocks: 6, vocabulary: 2048 };

fn run(recipe: &Path, model: &Path, out: &Path) -> Command {
    let mut command = bantam();
    command.args(["run", "--quiet"]).arg(recipe).arg("--model").arg(model).arg("--out").arg(out);
    command
}

#[test]
fn the_plan_is_what_the_run_writes_for_every_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    for recipe in recipes() {
        let out = folder.path().join(recipe.file_stem().unwrap());
        let output = expect_exit(
            bantam().args(["plan", "--json"]).arg(&recipe).arg("--model").arg(&model).arg("--out").arg(&out),
            0,
        );
        let plan = json(&output);
        assert!(!out.exists(), "a plan writes nothing");
        expect_exit(&mut run(&recipe, &model, &out), 0);
        let written = contents(&out);
        let weights: u64 = written
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors"))
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        assert_eq!(plan["artifact_bytes"], weights, "{}", recipe.display());
        let mut planned: Vec<(String, u64)> = plan["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| (file["name"].as_str().unwrap().to_owned(), file["bytes"].as_u64().unwrap()))
            .collect();
        planned.sort();
        let got: Vec<(String, u64)> = written
            .iter()
            .filter(|(name, _)| *name != "manifest.json")
            .map(|(name, bytes)| (name.clone(), bytes.len() as u64))
            .collect();
        assert_eq!(planned, got, "{}", recipe.display());
        check_places(&plan, &out);
        check_manifest(&plan, &out);
    }
}

/// Every planned tensor stands where the plan says, as an independent reader sees it.
fn check_places(plan: &serde_json::Value, out: &Path) {
    let mut stored = 0;
    for tensor in plan["tensors"].as_array().unwrap() {
        for part in tensor["stored"].as_array().unwrap() {
            let bytes = std::fs::read(out.join(part["file"].as_str().unwrap())).unwrap();
            let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            let info = metadata.info(part["name"].as_str().unwrap()).expect("a planned tensor is in its file");
            let start = 8 + header as u64 + info.data_offsets.0 as u64;
            assert_eq!(part["offset"], start);
            assert_eq!(part["bytes"], (info.data_offsets.1 - info.data_offsets.0) as u64);
            assert_eq!(part["dtype"], format!("{:?}", info.dtype));
            assert_eq!(part["shape"], serde_json::json!(info.shape));
            stored += 1;
        }
    }
    let in_files: usize = plan["files"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|file| file["name"].as_str().filter(|name| name.ends_with(".safetensors")))
        .map(|name| safetensors::SafeTensors::deserialize(&std::fs::read(out.join(name)).unwrap()).unwrap().len())
        .sum();
    assert_eq!(stored, in_files);
}

/// The manifest's numbers are the plan's, and its bits per weight follow from the files.
fn check_manifest(plan: &serde_json::Value, out: &Path) {
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["schema"], "bantam.manifest/1");
    let planned = plan["tensors"].as_array().unwrap();
    let told = manifest["tensors"].as_array().unwrap();
    assert_eq!(planned.len(), told.len());
    let (mut bits, mut weights) = (0_u64, 0_u64);
    for plan in planned {
        let told = told.iter().find(|told| told["name"] == plan["name"]).expect("every planned tensor is told");
        for key in ["name", "codec", "shape", "bits_per_weight"] {
            assert_eq!(plan[key], told[key]);
        }
        if plan["action"] == "encode" {
            let error = &told["error"];
            assert!(error["relative"].as_f64().unwrap() > 0.0 && error["relative"].as_f64().unwrap() < 0.8, "{told}");
            assert!(error["cosine"].as_f64().unwrap() > 0.6, "{told}");
            bits += plan["bytes"].as_u64().unwrap() * 8;
            weights += plan["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>();
        } else {
            assert!(told["error"].is_null());
        }
    }
    let expected = bits as f64 / weights as f64;
    assert!((manifest["totals"]["bits_per_weight"].as_f64().unwrap() - expected).abs() < 1e-12);
    assert!((plan["bits_per_weight"].as_f64().unwrap() - expected).abs() < 1e-12);
}

#[test]
fn any_number_of_threads_and_any_budget_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    for recipe in recipes() {
        let stem = recipe.file_stem().unwrap().to_string_lossy().into_owned();
        let reference = folder.path().join(format!("{stem}-1"));
        expect_exit(run(&recipe, &model, &reference).args(["--threads", "1"]), 0);
        for (threads, memory) in [("2", None), ("7", None), ("3", Some("tight"))] {
            let out = folder.path().join(format!("{stem}-{threads}"));
            let mut command = run(&recipe, &model, &out);
            command.args(["--threads", threads]);
            if memory.is_some() {
                command.args(["--max-memory", &smallest_budget(&recipe, &model, &out, threads).to_string()]);
            }
            expect_exit(&mut command, 0);
            assert_same(&reference, &out);
        }
    }
}

fn smallest_budget(recipe: &Path, model: &Path, out: &Path, threads: &str) -> u64 {
    let output = expect_exit(
        bantam()
            .args(["plan", "--json", "--threads", threads])
            .arg(recipe)
            .arg("--model")
            .arg(model)
            .arg("--out")
            .arg(out),
        0,
    );
    json(&output)["smallest_memory_bytes"].as_u64().unwrap()
}

#[test]
fn a_source_in_shards_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (one, many) = (folder.path().join("one"), folder.path().join("many"));
    write_model(&one, SMALL);
    shard(&one, &many, 5);
    for recipe in ["int4.toml", "gptq-4bit-asym.toml"] {
        let (a, b) = (folder.path().join(format!("a-{recipe}")), folder.path().join(format!("b-{recipe}")));
        expect_exit(&mut run(&fixture("recipes").join(recipe), &one, &a), 0);
        expect_exit(&mut run(&fixture("recipes").join(recipe), &many, &b), 0);
        assert_same(&a, &b);
    }
}

/// Writes the checkpoint `from` as `count` shards with an index.
fn shard(from: &Path, to: &Path, count: usize) {
    std::fs::create_dir_all(to).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let source = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut shards = vec![Vec::new(); count];
    let mut map = serde_json::Map::new();
    for (index, (name, view)) in source.tensors().into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", index % count + 1);
        map.insert(name.clone(), file.into());
        shards[index % count].push((name, view.shape().to_vec(), view.data().to_vec()));
    }
    for (index, data) in shards.iter().enumerate() {
        common::write_tensors(&to.join(format!("model-{:05}-of-{count:05}.safetensors", index + 1)), data);
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    std::fs::write(to.join("model.safetensors.index.json"), index.to_string()).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[test]
fn shards_are_cut_where_the_recipe_says_and_the_index_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    let recipe = folder.path().join("sharded.toml");
    std::fs::write(
        &recipe,
        "schema = 1\n[[pass]]\nuse = \"int4\"\n[artifact]\nlayout = \"compressed-tensors\"\nshard_size = \"200KB\"\n",
    )
    .unwrap();
    let out = folder.path().join("out");
    expect_exit(&mut run(&recipe, &model, &out), 0);
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    let mut total = 0;
    for (name, file) in index["weight_map"].as_object().unwrap() {
        let bytes = std::fs::read(out.join(file.as_str().unwrap())).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        total += tensors.tensor(name).unwrap().data().len();
        assert!(tensors.len() == 1 || bytes.len() < 220_000);
    }
    assert_eq!(index["metadata"]["total_size"], total);
}

#[test]
fn killed_at_twenty_points_and_run_again_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let models = [("medium", MEDIUM), ("small", SMALL)].map(|(name, shape)| {
        let model = folder.path().join(name);
        write_model(&model, shape);
        model
    });
    // Those that search for the codes of a matrix as a whole take long enough for a small model.
    let recipes = [("int4.toml", 0), ("gptq-4bit-sym.toml", 0), ("bantam-pvq.toml", 1), ("vptq.toml", 1)];
    for (recipe, model) in recipes {
        let (recipe, model) = (fixture("recipes").join(recipe), models[model].clone());
        let reference = folder.path().join("reference");
        let budget = smallest_budget(&recipe, &model, &reference, "2").to_string();
        let command = |out: &Path| {
            let mut command = run(&recipe, &model, out);
            command.args(["--threads", "2", "--max-memory", &budget]).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let start = Instant::now();
        assert!(command(&reference).status().unwrap().success());
        let whole = start.elapsed();
        let out = folder.path().join("out");
        let mut killed_in_the_middle = 0;
        for point in 0..20_u32 {
            let mut child = command(&out).spawn().unwrap();
            // Spread unevenly over the whole run, the beginning and the last rename included.
            std::thread::sleep(whole.mul_f64(f64::from((point * 7) % 20) / 19.0));
            child.kill().unwrap();
            if !child.wait().unwrap().success() {
                killed_in_the_middle += 1;
            }
            if out.exists() {
                assert_same(&reference, &out);
                std::fs::remove_dir_all(&out).unwrap();
            }
        }
        assert!(killed_in_the_middle >= 5, "only {killed_in_the_middle} of 20 kills hit a running process");
        assert!(command(&out).status().unwrap().success());
        assert_same(&reference, &out);
        assert_eq!(hidden_leftovers(folder.path()), Vec::<PathBuf>::new());
        std::fs::remove_dir_all(&out).unwrap();
        std::fs::remove_dir_all(&reference).unwrap();
    }
}

fn hidden_leftovers(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')))
        .collect()
}

#[test]
fn an_interrupt_stops_cleanly_and_the_run_continues() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, MEDIUM);
    let recipe = fixture("recipes/int4.toml");
    let (reference, out) = (folder.path().join("reference"), folder.path().join("out"));
    let budget = smallest_budget(&recipe, &model, &reference, "1").to_string();
    let tight = ["--threads", "1", "--max-memory", &budget];
    let start = Instant::now();
    expect_exit(run(&recipe, &model, &reference).args(tight), 0);
    let whole = start.elapsed();
    // The right moment depends on the machine: try several, one must hit the middle.
    for share in [0.3, 0.5, 0.2, 0.6, 0.4, 0.1, 0.7] {
        let mut child = run(&recipe, &model, &out).args(tight).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(share).max(Duration::from_millis(20)));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let status = child.wait().unwrap();
        if status.code() == Some(75) {
            assert!(!out.exists(), "nothing under the target's name");
            expect_exit(run(&recipe, &model, &out).args(tight), 0);
            assert_same(&reference, &out);
            return;
        }
        assert!(status.success() || status.code().is_none(), "{status}");
        let _ = std::fs::remove_dir_all(&out);
    }
    panic!("no interrupt hit the middle of a run");
}

#[test]
fn running_again_does_nothing_and_other_targets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    let (recipe, out) = (fixture("recipes/int4.toml"), folder.path().join("out"));
    expect_exit(&mut run(&recipe, &model, &out), 0);
    let first = std::fs::metadata(out.join("model.safetensors")).unwrap().modified().unwrap();
    expect_exit(&mut run(&recipe, &model, &out), 0);
    assert_eq!(std::fs::metadata(out.join("model.safetensors")).unwrap().modified().unwrap(), first);

    let other = fixture("recipes/w4a16-asym.toml");
    let output = expect_exit(&mut run(&other, &model, &out), 4);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--fresh"));
    expect_exit(run(&other, &model, &out).arg("--fresh"), 0);

    let foreign = folder.path().join("foreign");
    std::fs::create_dir_all(&foreign).unwrap();
    std::fs::write(foreign.join("precious.txt"), "mine").unwrap();
    expect_exit(&mut run(&recipe, &model, &foreign), 4);
    expect_exit(run(&recipe, &model, &foreign).arg("--fresh"), 4);
    assert_eq!(std::fs::read_to_string(foreign.join("precious.txt")).unwrap(), "mine");
}

#[test]
fn an_unfinished_run_of_another_recipe_is_not_mixed_in() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    let out = folder.path().join("out");
    let work = folder.path().join(".out.bantam-work");
    std::fs::create_dir_all(work.join("artifact")).unwrap();
    let head = "{\"schema\":\"bantam.journal/1\",\"plan\":\"x\",\"source\":\"y\"}";
    let record = "{\"unit\":0,\"inputs\":[],\"outputs\":[],\"error\":null,\"deviations\":{}}";
    std::fs::write(work.join("journal"), format!("{head}\n{record}\n")).unwrap();
    let output = expect_exit(&mut run(&fixture("recipes/int4.toml"), &model, &out), 4);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--fresh"));
    expect_exit(run(&fixture("recipes/int4.toml"), &model, &out).arg("--fresh"), 0);
}

#[test]
fn a_damaged_staged_file_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    let recipe = fixture("recipes/int4.toml");
    let (reference, out) = (folder.path().join("reference"), folder.path().join("out"));
    expect_exit(&mut run(&recipe, &model, &reference), 0);
    // Stop at the last step: the target's parent takes no new names.
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("in-the-way"), "").unwrap();
    expect_exit(&mut run(&recipe, &model, &out), 4);
    std::fs::remove_dir_all(&out).unwrap();
    expect_exit(&mut run(&recipe, &model, &out), 0);
    assert_same(&reference, &out);
}

#[test]
fn non_finite_weights_are_refused_or_kept() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    for name in ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"] {
        let path = model.join("model.safetensors");
        let clean = std::fs::read(&path).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&clean).unwrap();
        let start = 8 + header + metadata.info(name).unwrap().data_offsets.0;
        let mut damaged = clean.clone();
        for index in [77, 200] {
            damaged[start + 2 * index..start + 2 * index + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
        }
        std::fs::write(&path, &damaged).unwrap();
        let out = folder.path().join("out");
        let output = expect_exit(&mut run(&fixture("recipes/int4.toml"), &model, &out), 3);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(name) && message.contains("77") && message.contains("2 non-finite"), "{message}");
        assert!(!out.exists());

        let recipe = folder.path().join("keep.toml");
        std::fs::write(
            &recipe,
            "schema = 1\n[input]\nnon_finite = \"keep\"\n[[pass]]\nuse = \"int4\"\n[artifact]\nlayout = \"compressed-tensors\"\n",
        )
        .unwrap();
        expect_exit(run(&recipe, &model, &out).args(["--deny", "fallback"]), 1);
        expect_exit(&mut run(&recipe, &model, &out), 0);
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["fallbacks"][0]["kind"], "non-finite-kept");
        assert_eq!(manifest["fallbacks"][0]["tensor"], name);
        let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
        let kept = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(kept.tensor(name).unwrap().data(), &damaged[start..start + kept.tensor(name).unwrap().data().len()]);
        std::fs::remove_dir_all(&out).unwrap();
        std::fs::write(&path, &clean).unwrap();
    }
}

#[test]
fn a_budget_that_cannot_work_is_refused_with_the_one_that_can() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, SMALL);
    let (recipe, out) = (fixture("recipes/int4.toml"), folder.path().join("out"));
    let output = expect_exit(run(&recipe, &model, &out).args(["--max-memory", "1MiB", "--threads", "2"]), 4);
    let smallest = smallest_budget(&recipe, &model, &out, "2").to_string();
    assert!(String::from_utf8_lossy(&output.stderr).contains(&smallest));
    expect_exit(run(&recipe, &model, &out).args(["--max-memory", &smallest, "--threads", "2"]), 0);
}
