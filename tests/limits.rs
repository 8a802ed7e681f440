//! Bounded memory and a full disk, through the binary.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{Shape, assert_same, bantam, expect_exit, fixture, json, write_model};

/// 38 MB of weights.
const SMALLER: Shape = Shape { hidden: 768, intermediate: 2048, blocks: 3, vocabulary: 2048 };
/// Three times as many blocks.
const LARGER: Shape = Shape { blocks: 9, ..SMALLER };
/// Nine times as many blocks: 357 MB.
const LARGEST: Shape = Shape { blocks: 27, ..SMALLER };

fn run(recipe: &str, model: &Path, out: &Path) -> Command {
    let mut command = bantam();
    command.args(["run", "--quiet", "--threads", "2"]).arg(fixture("recipes").join(recipe));
    command.arg("--model").arg(model).arg("--out").arg(out);
    command
}

fn peak_and_plan(recipe: &str, model: &Path, out: &Path, budget: Option<u64>) -> (u64, u64, u64) {
    let mut plan = bantam();
    plan.args(["plan", "--json", "--threads", "2"]).arg(fixture("recipes").join(recipe));
    plan.arg("--model").arg(model).arg("--out").arg(out);
    let mut command = run(recipe, model, out);
    if let Some(budget) = budget {
        for command in [&mut plan, &mut command] {
            command.args(["--max-memory", &budget.to_string()]);
        }
    }
    let plan = json(&expect_exit(&mut plan, 0));
    expect_exit(&mut command, 0);
    let log: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    (number(&log["peak_rss_bytes"]), number(&plan["peak_memory_bytes"]), number(&plan["smallest_memory_bytes"]))
}

#[test]
#[cfg(target_os = "linux")]
fn memory_stays_under_the_plan_and_does_not_grow_with_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let (smaller, larger) = (folder.path().join("smaller"), folder.path().join("larger"));
    write_model(&smaller, SMALLER);
    write_model(&larger, LARGER);
    for recipe in ["int4.toml", "gptq-4bit-sym.toml", "nvfp4.toml", "bantam-outliers.toml", "bantam-3bit.toml"] {
        let out = folder.path().join(recipe);
        let (_, _, smallest) = peak_and_plan(recipe, &smaller, &out, None);
        std::fs::remove_dir_all(&out).unwrap();
        let (peak, planned, _) = peak_and_plan(recipe, &smaller, &out, Some(smallest));
        std::fs::remove_dir_all(&out).unwrap();
        assert!(planned <= smallest);
        assert!(peak <= planned, "{recipe}: peak {peak}, planned {planned}");
        let (peak_larger, planned_larger, _) = peak_and_plan(recipe, &larger, &out, Some(smallest + (1 << 20)));
        assert!(peak_larger <= planned_larger, "{recipe}: peak {peak_larger}, planned {planned_larger}");
        // Names, shapes and hashes of the additional tensors are allowed for; 50 MB more weights are not.
        let allowed = peak as f64 * 1.1 + f64::from(3 << 20);
        assert!(peak_larger as f64 <= allowed, "{recipe}: {peak} grew to {peak_larger} with the model");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_does_not_follow_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let peak = |shape| {
        write_model(&model, shape);
        // Written at once, so that it may be cached, and mapped, in pieces as large as they come.
        let file = model.join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, bytes).unwrap();
        let out = folder.path().join("out");
        let (_, _, smallest) = peak_and_plan("int4.toml", &model, &out, None);
        std::fs::remove_dir_all(&out).unwrap();
        let (peak, planned, _) = peak_and_plan("int4.toml", &model, &out, Some(smallest));
        std::fs::remove_dir_all(&out).unwrap();
        assert!(peak <= planned, "peak {peak}, planned {planned}");
        (peak, smallest)
    };
    let (smaller, budget) = peak(SMALLER);
    let (largest, budget_largest) = peak(LARGEST);
    // What the plan allows each further tensor (its name, shape, place and hash), and for both threads a piece of 2 MiB on
    // either side of what they read: the more matrices, the likelier that all of them are whole at once.
    let allowed = smaller as f64 * 1.1 + (budget_largest - budget) as f64 + f64::from(2 * 2 * (2 << 20));
    assert!(largest as f64 <= allowed, "{smaller} grew to {largest} with the model, allowed {allowed:.0}");
}

/// A few large matrices: three of 4096 × 1024 weights, or the other way round, and four smaller ones.
const WIDE: Shape = Shape { hidden: 1024, intermediate: 4096, blocks: 1, vocabulary: 512 };

#[test]
#[cfg(target_os = "linux")]
fn matrices_that_are_encoded_as_a_whole_stay_under_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, WIDE);
    for recipe in ["bantam-pvq.toml", "vptq.toml", "bantam-vptq.toml", "bantam-rotated.toml"] {
        let out = folder.path().join(recipe);
        let smallest = smallest_budget(recipe, &model, &out);
        let (peak, planned, _) = peak_and_plan(recipe, &model, &out, Some(smallest));
        assert!(planned <= smallest);
        assert!(peak <= planned, "{recipe}: peak {peak}, planned {planned}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}

/// A small file system of its own; none where mounting is not allowed.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        eprintln!("SKIPPED: a full disk was not tried, mounting a tmpfs is not allowed here");
        None
    }

    fn resize(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_before_and_in_the_middle_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, LARGER);
    let reference = folder.path().join("reference");
    expect_exit(&mut run("int4.toml", &model, &reference), 0);
    let size: u64 = common::contents(&reference).values().map(|bytes| bytes.len() as u64).sum();

    let Some(disk) = SmallDisk::new(size / 2) else { return };
    let out = disk.0.path().join("out");
    let output = expect_exit(&mut run("int4.toml", &model, &out), 4);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("free"), "{message}");
    assert!(!out.exists());
    assert_eq!(std::fs::read_dir(disk.0.path()).unwrap().count(), 0, "nothing half-written");

    // Room for the weights when the run begins, taken away by somebody else while it works.
    disk.resize(size * 3);
    let mut child = run("int4.toml", &model, &out)
        .args(["--max-memory", &smallest_budget("int4.toml", &model, &out).to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(60));
    child.kill().unwrap();
    child.wait().unwrap();
    let _ = std::fs::remove_dir_all(&out);
    fill(&disk.0.path().join("ballast"));
    let output = run("int4.toml", &model, &out).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!out.exists());
    std::fs::remove_file(disk.0.path().join("ballast")).unwrap();
    expect_exit(&mut run("int4.toml", &model, &out), 0);
    assert_same(&reference, &out);
}

/// The smallest budget that a run can be planned with.
fn smallest_budget(recipe: &str, model: &Path, out: &Path) -> u64 {
    let mut plan = bantam();
    plan.args(["plan", "--json", "--threads", "2"]).arg(fixture("recipes").join(recipe));
    json(&expect_exit(plan.arg("--model").arg(model).arg("--out").arg(out), 0))["smallest_memory_bytes"]
        .as_u64()
        .unwrap()
}

/// Writes until the file system is full.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    let block = vec![1; 4096];
    while file.write_all(&block).is_ok() {}
}

#[test]
fn an_unwritable_folder_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, Shape { hidden: 128, intermediate: 256, blocks: 1, vocabulary: 128 });
    // A file where a folder is needed: refused for every user, root included.
    std::fs::write(folder.path().join("file"), "").unwrap();
    let output = expect_exit(&mut run("int4.toml", &model, &folder.path().join("file/out")), 4);
    assert!(String::from_utf8_lossy(&output.stderr).contains("file"));
}
