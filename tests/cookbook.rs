//! Runs the pages that promise to be executable: every recipe and command of the cookbook and of the first artifact.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "cookbook/page.rs"]
mod page;

use std::path::{Path, PathBuf};

use common::{fixture, weights, write_tensors};
use page::{Section, Step, lines_match, sections};
use safetensors::SafeTensors;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The built-in example with some noise on the linears of its blocks: what a fine-tune changes.
fn write_fine_tune(base: &Path, folder: &Path) {
    copy(base, folder);
    let bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let value = |bytes: &[u8]| half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let tuned: Vec<(String, Vec<usize>, Vec<u8>)> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            if name.contains("_proj") {
                let noise = weights(&name, data.len() / 2);
                for (weight, noise) in data.chunks_exact_mut(2).zip(noise.chunks_exact(2)) {
                    let changed = value(weight) + value(noise) / 16.0;
                    weight.copy_from_slice(&half::bf16::from_f32(changed).to_le_bytes());
                }
            }
            (name, view.shape().to_vec(), data)
        })
        .collect();
    write_tensors(&folder.join("model.safetensors"), &tuned);
}

/// The folder that the pages describe.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    copy(&fixture("tiny-llama"), &models.join("llama"));
    write_fine_tune(&models.join("llama"), &models.join("llama-chat"));
    let texts = folder.path().join("texts");
    std::fs::create_dir_all(&texts).unwrap();
    for (from, to) in [("calibration.txt", "calibration.txt"), ("checkpoints.txt", "evaluation.txt")] {
        std::fs::copy(fixture("text").join(from), texts.join(to)).unwrap();
    }
    folder
}

fn run(sections: &[Section]) {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_bantam"));
    let folder = workplace();
    for section in sections {
        section.run(folder.path(), binary.parent().unwrap());
    }
}

#[test]
fn the_cookbook_does_what_it_says() {
    let page = sections(&read("cookbook.md"));
    let runs = |section: &&Section| {
        section.steps.iter().any(|step| matches!(step, Step::Command { line, .. } if line.starts_with("bantam ")))
    };
    let recipes = page.iter().filter(runs).count();
    assert!(recipes >= 10, "ten tasks: {recipes}");
    run(&page);
}

#[test]
fn the_first_artifact_is_made_as_told() {
    let page = sections(&read("first-artifact.md"));
    assert!(page.iter().flat_map(|section| &section.steps).count() > 5);
    run(&page);
}

#[test]
fn pages_are_taken_apart() {
    let text = "# T\n\n## One\n```toml\n# r.toml\nschema = 1\n```\ntext\n```console\n$ a b\nout\n…\n$ c\n```\n## Two\n\
                ```sh\nnot run\n```\n";
    let command = |line: &str, shown: &[&str]| Step::Command {
        line: line.to_owned(),
        shown: shown.iter().map(|&line| line.to_owned()).collect(),
    };
    let file = Step::File { name: "r.toml".to_owned(), text: "# r.toml\nschema = 1".to_owned() };
    let one =
        Section { title: "One".to_owned(), steps: vec![file, command("a b", &["out", "…"]), command("c", &[])] };
    assert_eq!(sections(text), [one]);
}

#[test]
fn what_is_shown_has_to_be_printed() {
    for (shown, printed, same) in [
        (vec!["a"], vec!["a"], true),
        (vec!["a"], vec!["b"], false),
        (vec!["a"], vec!["a", "b"], false),
        (vec!["a", "…"], vec!["a", "b", "c"], true),
        (vec!["…", "c"], vec!["a", "b", "c"], true),
        (vec!["…", "d"], vec!["a", "b", "c"], false),
        (vec!["x … y … z"], vec!["x 1 y 2 z"], true),
        (vec!["x … y … z"], vec!["x 1 z"], false),
        (vec!["x …"], vec!["x "], true),
        (vec!["x"], vec!["x 1"], false),
        (vec!["x … z"], vec!["x 1 z 2"], false),
        (vec![], vec!["a"], false),
        (vec!["a"], vec![], false),
    ] {
        assert_eq!(lines_match(&shown, &printed), same, "{shown:?} {printed:?}");
    }
}

#[test]
fn a_page_that_shows_something_else_fails() {
    let folder = tempfile::tempdir().unwrap();
    for (page, good) in [
        ("```console\n$ echo one\none\n```\n", true),
        ("```console\n$ echo one\ntwo\n```\n", false),
        ("```console\n$ false\n```\n", false),
        ("```console\n$ false\n$ echo $?\n1\n```\n", true),
        ("```console\n$ true\n$ echo $?\n1\n```\n", false),
        ("```toml\n# a.toml\nx = 1\n```\n```console\n$ grep x a.toml\nx = 1\n```\n", true),
    ] {
        let page = sections(page);
        let ran = std::panic::catch_unwind(|| page[0].run(folder.path(), folder.path()));
        assert_eq!(ran.is_ok(), good, "{page:?}");
    }
}
