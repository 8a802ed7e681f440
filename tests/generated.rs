//! What is printed from the code itself: schemas, completions, man pages.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::{bantam, expect_exit, fixture, json};
use serde_json::Value;

/// What `bantam schema` prints accepts our own recipes and policies and refuses unknown keys.
#[test]
fn schemas_accept_what_is_read() {
    let schema = |of: &str| json(&expect_exit(bantam().args(["schema", of]), 0));
    let read = |path: &Path| -> Value {
        let text = std::fs::read_to_string(path).unwrap();
        serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap()
    };
    let recipe = jsonschema::validator_for(&schema("recipe")).unwrap();
    let mut recipes = 0;
    for folder in ["recipes", "calibrated"] {
        for entry in fixture(folder).read_dir().unwrap() {
            let path = entry.unwrap().path();
            let written = read(&path);
            let errors: Vec<String> = recipe.iter_errors(&written).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", path.display());
            let mut wrong = written;
            wrong["pass"][0]["groop_size"] = 3.into();
            assert!(!recipe.is_valid(&wrong), "{}", path.display());
            recipes += 1;
        }
    }
    assert!(recipes > 40, "{recipes}");
    let policy = jsonschema::validator_for(&schema("policy")).unwrap();
    let mut written = read(&fixture("ci/policy.toml"));
    assert!(
        policy.is_valid(&written),
        "{:?}",
        policy.iter_errors(&written).map(|error| error.to_string()).collect::<Vec<_>>()
    );
    written["limits"]["min_snr"] = 3.into();
    assert!(!policy.is_valid(&written));
}

#[test]
fn completions_and_man_pages_name_every_command() {
    let help = String::from_utf8(expect_exit(bantam().arg("--help"), 0).stdout).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"check") && commands.len() > 12, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = String::from_utf8(expect_exit(bantam().args(["completions", shell]), 0).stdout).unwrap();
        let missing: Vec<_> = commands.iter().filter(|command| !text.contains(**command)).collect();
        assert!(missing.is_empty(), "{shell}: {missing:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    expect_exit(bantam().arg("man").arg("--out").arg(&pages), 0);
    for command in commands {
        assert!(pages.join(format!("bantam-{command}.1")).exists(), "{command}");
    }
    assert!(!expect_exit(bantam().arg("man"), 0).stdout.is_empty());
}
