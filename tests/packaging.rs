//! What packages say about themselves agrees with the crate; the container's recipe is sound as far as reading it tells.
//! `.ci/run` builds the wheel and the static binary; nothing builds the container.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn table(path: &str) -> toml::Table {
    text(path).parse().unwrap()
}

#[test]
fn the_wheel_says_what_the_crate_says() {
    let (cargo, python) = (table("Cargo.toml"), table("pyproject.toml"));
    let (package, project) = (&cargo["package"], &python["project"]);
    for key in ["description", "license", "readme", "keywords"] {
        assert_eq!(package[key], project[key], "{key}");
    }
    assert_eq!(project["name"].as_str(), Some("bantam-compress"));
    assert_eq!(project["dynamic"].as_array().unwrap(), &["version".into()]);
    assert_eq!(python["tool"]["maturin"]["bindings"].as_str(), Some("bin"));
    for file in project["license-files"].as_array().unwrap() {
        assert!(at(file.as_str().unwrap()).is_file(), "{file}");
    }
}

/// Instructions of a container's recipe: word and arguments, continued lines joined.
fn instructions() -> Vec<(String, String)> {
    let lines = text("Containerfile").replace("\\\n", " ");
    let lines = lines.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let split = |line: &str| line.split_once(' ').map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()));
    lines.map(|line| split(line).unwrap_or_else(|| panic!("no instruction: {line}"))).collect()
}

fn all<'a>(instructions: &'a [(String, String)], word: &str) -> Vec<&'a str> {
    instructions.iter().filter(|(known, _)| known == word).map(|(_, rest)| rest.as_str()).collect()
}

#[test]
fn the_container_is_built_in_two_stages_from_fixed_images() {
    let instructions = instructions();
    let known = ["FROM", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "ENTRYPOINT", "CMD"];
    for (word, _) in &instructions {
        assert!(known.contains(&word.as_str()), "{word}");
    }
    let stages = all(&instructions, "FROM");
    let [build, last] = stages[..] else { panic!("{stages:?}") };
    let toolchain = table("Cargo.toml")["package"]["rust-version"].as_str().unwrap().to_owned();
    assert_eq!(build, format!("docker.io/library/rust:{toolchain}-slim-bookworm AS build"));
    // The C library of the build has to be there at run time.
    assert_eq!(last, "docker.io/library/debian:bookworm-slim");
    let (_, run) = instructions.iter().find(|(word, rest)| word == "RUN" && rest.starts_with("cargo ")).unwrap();
    assert!(run.contains("--locked"));
    let profile = run.split_once("--profile ").and_then(|(_, rest)| rest.split(' ').next()).unwrap();
    assert!(table("Cargo.toml")["profile"].get(profile).is_some(), "{profile}");
    let binary = format!("--from=build /source/target/{profile}/bantam /usr/local/bin/bantam");
    assert!(all(&instructions, "COPY").contains(&binary.as_str()));
}

#[test]
fn the_container_runs_as_a_user_of_its_own() {
    let instructions = instructions();
    let place = |word: &str| instructions.iter().rposition(|(known, _)| known == word).unwrap();
    assert_eq!(all(&instructions, "USER"), ["bantam"]);
    assert!(place("USER") > place("RUN") && place("USER") > place("COPY"), "something after it runs as that user");
    assert!(all(&instructions, "RUN").iter().any(|run| run.starts_with("useradd") && run.ends_with(" bantam")));
    // A list, not a line for a shell: signals reach the program.
    let entry: Vec<String> = serde_json::from_str(all(&instructions, "ENTRYPOINT")[0]).unwrap();
    assert_eq!(entry, ["bantam"]);
    let arguments: Vec<String> = serde_json::from_str(all(&instructions, "CMD")[0]).unwrap();
    assert_eq!(arguments, ["--help"]);
    assert_eq!(all(&instructions, "WORKDIR").last(), Some(&"/work"));
}

#[test]
fn the_container_gets_what_it_builds_from() {
    let ignored = text(".containerignore");
    assert_eq!(ignored, text(".dockerignore"));
    for needed in ["Cargo.toml", "Cargo.lock", "src", "passes", "shaders", "benches", "examples", "LICENSE-MIT"] {
        assert!(at(needed).exists(), "{needed}");
        assert!(!ignored.lines().any(|line| line.trim_matches('/') == needed), "{needed}");
    }
    for copied in all(&instructions(), "COPY") {
        for source in copied.split(' ').filter_map(|word| word.strip_prefix("/source/")) {
            assert!(source.starts_with("target/") || at(source).is_file(), "{source}");
        }
    }
}
