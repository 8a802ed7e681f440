//! What is printed from the code itself: schemas, completions, man pages, help.
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

fn help(arguments: &[&str]) -> String {
    String::from_utf8(expect_exit(bantam().args(arguments).arg("--help"), 0).stdout).unwrap()
}

/// The names of all commands, from the help.
fn commands() -> Vec<String> {
    let help = help(&[]);
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<String> = lines
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    assert!(commands.iter().any(|name| name == "check") && commands.len() > 12, "{commands:?}");
    commands
}

/// Help fits 80 columns, and that of every command has an example of it.
#[test]
fn every_command_has_an_example_and_help_that_fits() {
    for command in commands() {
        let help = help(&[&command]);
        let wide: Vec<&str> = help.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{command}: {wide:#?}");
        let example = help.lines().skip_while(|line| !line.starts_with("Example")).nth(1);
        let begins = format!("  bantam {command}");
        assert!(example.is_some_and(|line| line.starts_with(&begins)), "{command}: {help}");
    }
    assert!(help(&[]).lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn completions_and_man_pages_name_every_command() {
    let commands = commands();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = String::from_utf8(expect_exit(bantam().args(["completions", shell]), 0).stdout).unwrap();
        let missing: Vec<_> = commands.iter().filter(|command| !text.contains(command.as_str())).collect();
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

/// The recipe that `init` writes is planned and run as it stands.
#[test]
fn a_recipe_for_the_built_in_example_runs() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let mut init = bantam();
    init.arg("init").arg(fixture("tiny-llama")).arg("--out").arg(&recipe);
    expect_exit(&mut init, 0);
    let text = std::fs::read_to_string(&recipe).unwrap();
    assert!(text.contains("# LlamaForCausalLM: 4 blocks.") && text.contains("use = \"int4\""), "{text}");
    let plan = json(&expect_exit(bantam().args(["plan", "--json"]).arg(&recipe), 0));
    assert!(plan["bits_per_weight"].as_f64().unwrap() < 4.2, "{plan}");
    expect_exit(bantam().args(["run", "--quiet"]).arg(&recipe).current_dir(folder.path()), 0);
    assert!(folder.path().join("tiny-llama-compressed/manifest.json").exists());
    // What is there is not written over.
    expect_exit(&mut init, 2);
    assert_eq!(std::fs::read_to_string(&recipe).unwrap(), text);
}

/// Groups that do not divide the rows are made smaller.
#[test]
fn a_recipe_fits_the_models_rows() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    common::write_model(&model, common::Shape { hidden: 96, intermediate: 160, blocks: 1, vocabulary: 64 });
    let recipe = folder.path().join("recipe.toml");
    expect_exit(bantam().arg("init").arg(&model).arg("--out").arg(&recipe), 0);
    let text = std::fs::read_to_string(&recipe).unwrap();
    assert!(text.contains("group_size = 32"), "{text}");
    let plan = json(&expect_exit(bantam().args(["plan", "--json"]).arg(&recipe), 0));
    assert_eq!(plan["fallbacks"].as_array().map(Vec::len), Some(0), "{plan}");
}
