//! Models by their id in a hub cache, made here as the hub's own tools lay it out.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use common::{SMALL, assert_same, bantam, expect_exit, fixture, json, write_model};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "0123ffff89abcdef0123456789abcdef01234567";

/// A cache with `org/tiny`: `main` is a whole model, its files links into `blobs`; another commit holds only an index.
struct Cache {
    folder: tempfile::TempDir,
}

impl Cache {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = Self { folder };
        let model = cache.model();
        for name in ["refs", "blobs", "snapshots"] {
            std::fs::create_dir_all(model.join(name)).unwrap();
        }
        std::fs::write(model.join("refs/main"), COMMIT).unwrap();
        let plain = cache.folder.path().join("plain");
        write_model(&plain, SMALL);
        let snapshot = cache.snapshot(COMMIT);
        std::fs::create_dir(&snapshot).unwrap();
        for (index, entry) in std::fs::read_dir(&plain).unwrap().enumerate() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), model.join(format!("blobs/{index}"))).unwrap();
            symlink(format!("../../blobs/{index}"), snapshot.join(entry.file_name())).unwrap();
        }
        let partial = cache.snapshot(OTHER);
        std::fs::create_dir(&partial).unwrap();
        let index = serde_json::json!({ "weight_map": { "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors" } });
        std::fs::write(partial.join("model.safetensors.index.json"), index.to_string()).unwrap();
        cache
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    fn model(&self) -> PathBuf {
        self.root().join("models--org--tiny")
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.model().join("snapshots").join(commit)
    }

    /// The binary with this cache and no other.
    fn bantam(&self) -> Command {
        let mut command = bantam();
        command.env("HF_HUB_CACHE", self.root()).env_remove("HF_HOME");
        command
    }

    /// What `inspect` of an id fails with.
    fn refusal(&self, id: &str) -> String {
        let output = expect_exit(self.bantam().args(["inspect", id]), 3);
        String::from_utf8(output.stderr).unwrap()
    }
}

fn names(output: &std::process::Output) -> Vec<String> {
    let report = json(output);
    report["tensors"].as_array().unwrap().iter().map(|tensor| tensor["name"].to_string()).collect()
}

#[test]
fn an_id_a_branch_and_a_commit_name_the_same_files() {
    let cache = Cache::new();
    let plain = cache.folder.path().join("plain");
    let expected = names(&expect_exit(bantam().args(["inspect", "--json"]).arg(&plain), 0));
    for id in ["hub:org/tiny", "hub:org/tiny@main", &format!("hub:org/tiny@{COMMIT}"), "hub:org/tiny@01234"] {
        assert_eq!(names(&expect_exit(cache.bantam().args(["inspect", "--json", id]), 0)), expected, "{id}");
    }
}

#[test]
fn other_variables_name_the_cache_too() {
    let cache = Cache::new();
    let home = cache.folder.path();
    let found = |variable: &str, value: &Path| {
        let mut command = bantam();
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"] {
            command.env_remove(name);
        }
        expect_exit(command.env(variable, value).args(["inspect", "hub:org/tiny"]), 0);
    };
    found("HF_HOME", home);
    let below = home.join(".cache/huggingface");
    std::fs::create_dir_all(&below).unwrap();
    symlink(cache.root(), below.join("hub")).unwrap();
    found("XDG_CACHE_HOME", &home.join(".cache"));
    found("HOME", home);
}

#[test]
fn a_run_from_an_id_writes_what_a_run_from_the_folder_writes() {
    let cache = Cache::new();
    let work = cache.folder.path();
    let text = std::fs::read_to_string(fixture("recipes/int4.toml")).unwrap();
    let model = text.lines().find(|line| line.starts_with("model")).unwrap();
    let recipe = work.join("recipe.toml");
    std::fs::write(&recipe, text.replace(model, "model = \"hub:org/tiny\"")).unwrap();
    let outs = [work.join("by-recipe"), work.join("by-argument"), work.join("by-folder")];
    expect_exit(cache.bantam().args(["run", "--quiet"]).arg(&recipe).arg("--out").arg(&outs[0]), 0);
    let named = |model: &Path, out: &Path| {
        let mut command = cache.bantam();
        expect_exit(command.args(["run", "--quiet"]).arg(&recipe).arg("--model").arg(model).arg("--out").arg(out), 0);
    };
    named(Path::new("hub:org/tiny"), &outs[1]);
    named(&work.join("plain"), &outs[2]);
    assert_same(&outs[0], &outs[1]);
    assert_same(&outs[0], &outs[2]);
    expect_exit(cache.bantam().arg("verify").arg(&outs[0]).args(["--source", "hub:org/tiny"]), 0);
    expect_exit(cache.bantam().args(["diff", "hub:org/tiny"]).arg(&outs[0]), 0);
}

#[test]
fn init_keeps_the_id() {
    let cache = Cache::new();
    let recipe = cache.folder.path().join("new.toml");
    expect_exit(cache.bantam().args(["init", "hub:org/tiny", "--out"]).arg(&recipe), 0);
    assert!(std::fs::read_to_string(&recipe).unwrap().contains("model = \"hub:org/tiny\""));
    expect_exit(cache.bantam().arg("plan").arg(&recipe), 0);
}

#[test]
fn what_is_absent_is_named_with_the_command_that_fetches_it() {
    let cache = Cache::new();
    let text = cache.refusal("hub:org/tinny");
    assert!(text.contains("`org/tinny` is not in the hub cache"), "{text}");
    assert!(text.contains(&cache.root().join("models--org--tinny").display().to_string()), "{text}");
    assert!(text.contains("there is org/tiny") && text.contains("`hf download org/tinny`"), "{text}");
    let text = cache.refusal("hub:other/gemma-27b@v2");
    assert!(text.contains("`hf download other/gemma-27b --revision v2`") && !text.contains("there is"), "{text}");
    let text = cache.refusal("hub:org/tiny@v9");
    assert!(text.contains("revision `v9` of `org/tiny`") && text.contains("there is main"), "{text}");
    assert!(text.contains("`hf download org/tiny --revision v9`"), "{text}");
    let text = cache.refusal("hub:org/tiny@0123");
    assert!(text.contains(COMMIT) && text.contains(OTHER), "{text}");
}

#[test]
fn a_download_that_has_not_ended_says_so() {
    let cache = Cache::new();
    std::fs::write(cache.model().join("blobs/abc.incomplete"), "x").unwrap();
    let text = cache.refusal(&format!("hub:org/tiny@{OTHER}"));
    assert!(text.contains("2 of 2 shards are missing, the first is `model-00001-of-00002.safetensors`"), "{text}");
    assert!(text.contains("1 file is half downloaded") && text.contains("`hf download org/tiny --revision"), "{text}");
    let weights = cache.snapshot(COMMIT).join("model.safetensors");
    std::fs::remove_file(cache.model().join("blobs").join(std::fs::read_link(&weights).unwrap().file_name().unwrap()))
        .unwrap();
    assert!(cache.refusal("hub:org/tiny").contains("`model.safetensors` links to nothing"));
    std::fs::remove_file(&weights).unwrap();
    assert!(cache.refusal("hub:org/tiny").contains("there are no weights"));
}

#[test]
fn hostile_ids_and_references_stay_in_the_cache() {
    let cache = Cache::new();
    for id in ["hub:../tiny", "hub:org/../tiny", "hub:", "hub:org/", "hub:org/tiny@../../x", "hub:a/b/c"] {
        assert!(cache.refusal(id).contains("names no model"), "{id}");
    }
    std::fs::write(cache.model().join("refs/evil"), "../../../plain").unwrap();
    assert!(cache.refusal("hub:org/tiny@evil").contains("does not hold a commit hash"));
}
