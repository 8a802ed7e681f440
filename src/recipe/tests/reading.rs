//! What a sound recipe becomes.

use serde_json::json;

use super::*;

#[test]
fn everything_has_a_default_but_model_use_and_out() {
    let recipe = recipe("[[pass]]\nuse = \"rtn\"");
    assert_eq!(recipe.seed, 0);
    assert_eq!(recipe.non_finite, NonFinite::Refuse);
    assert_eq!(recipe.calibration, None);
    assert_eq!(recipe.artifact.layout, LayoutName::CompressedTensors);
    assert_eq!(recipe.artifact.shard_size, 5_000_000_000);
    assert_eq!((recipe.passes[0].pass.as_str(), recipe.passes[0].line), ("rtn", 4));
}

#[test]
fn paths_are_relative_to_the_recipe_and_overrides_to_the_working_folder() {
    let text = "schema = 1\nmodel = \"../m\"\n[calibration]\ntext = \"t.txt\"\n[[pass]]\nuse = \"int4\"\n[artifact]\nout = \"/o\"";
    let read = |overrides| Recipe::parse_with(text, Path::new("no-such-folder/r.toml"), &overrides).unwrap();
    let recipe = read(Overrides::default());
    assert_eq!(recipe.model, Path::new("no-such-folder/../m"));
    assert_eq!(recipe.artifact.out, Path::new("/o"));
    assert_eq!(recipe.calibration.unwrap().text, [Path::new("no-such-folder/t.txt")]);
    let place = |path: &str| Some(PathBuf::from(path));
    let recipe = read(Overrides { model: place("x/m"), base: None, out: place("x/o"), default_out: place("y") });
    assert_eq!(recipe.model, Path::new("x/m"));
    assert_eq!(recipe.artifact.out, Path::new("x/o"));
}

#[test]
fn a_folder_and_back_is_taken_out_of_paths_except_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    let text = "schema = 1\nmodel = \"../m\"\n[[pass]]\nuse = \"int4\"\n[artifact]\nout = \"../../o\"";
    let recipe = Recipe::parse(text, &root.join("a/b/r.toml")).unwrap();
    assert_eq!(recipe.model, root.join("a/m"));
    assert_eq!(recipe.artifact.out, root.join("o"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(root.join("a/b"), root.join("link")).unwrap();
        let recipe = Recipe::parse(text, &root.join("link/r.toml")).unwrap();
        assert_eq!(recipe.model, root.join("link/../m"), "which is a/m, not m");
    }
}

#[test]
fn places_may_come_from_the_command_line_alone() {
    let text = "schema = 1\n[[pass]]\nuse = \"int4\"";
    let place = |path: &str| Some(PathBuf::from(path));
    let given = Overrides { model: place("m"), base: None, out: None, default_out: place("o") };
    let recipe = Recipe::parse_with(text, Path::new("r.toml"), &given).unwrap();
    assert_eq!((recipe.model.as_path(), recipe.artifact.out.as_path()), (Path::new("m"), Path::new("o")));
    assert!(
        Recipe::parse_with(text, Path::new("r.toml"), &Overrides { model: place("m"), ..Overrides::default() })
            .is_err()
    );
}

#[test]
fn the_resolved_recipe_is_canonical() {
    let text = "schema = 1\nmodel = \"../m\"\n[[pass]]\nuse = \"int4\"\n[[pass.override]]\nselect = \"mlp.down\"\nbits = 8\n\
        [artifact]\nout = \"../o\"\nshard_size = \"1KiB\"\n";
    let place = Overrides { model: Some("/x".into()), base: None, out: Some("/y".into()), default_out: None };
    let recipe = Recipe::parse_with(text, Path::new("f/r.toml"), &place).unwrap();
    assert_eq!(
        recipe.resolved(),
        json!({
            "schema": 1,
            "model": "../m",
            "seed": 0,
            "input": { "non_finite": "refuse" },
            "pass": [{
                "use": "rtn",
                "select": ["linear"],
                "skip": ["head"],
                "optional": false,
                "bits": 4,
                "granularity": "group",
                "group_size": 128,
                "symmetric": true,
                "range": "minmax",
                "activations": "none",
                "override": [{ "select": ["mlp.down"], "skip": [], "optional": false, "bits": 8 }],
            }],
            "artifact": { "out": "../o", "layout": "compressed-tensors", "shard_size": 1024 },
        })
    );
    let text = recipe.resolved().to_string();
    assert!(text.starts_with("{\"artifact\":{\"layout\":"), "sorted keys: {text}");
}

#[test]
fn a_preset_resolves_like_the_same_settings_written_out() {
    for preset in PRESETS {
        let short = recipe(&format!("[[pass]]\nuse = \"{}\"", preset.name)).resolved();
        let long = recipe(&format!("[[pass]]\nuse = \"{}\"\n{}", preset.pass, preset.settings)).resolved();
        assert_eq!(short, long, "{}", preset.name);
    }
}

#[test]
fn settings_beside_a_preset_win_and_replace_its_sharing_as_a_whole() {
    let same = |preset: &str, written: &str| {
        assert_eq!(
            recipe(&format!("[[pass]]\n{preset}")).resolved(),
            recipe(&format!("[[pass]]\n{written}")).resolved()
        );
    };
    same("use = \"int4\"\nbits = 5", "use = \"rtn\"\nbits = 5\ngroup_size = 128");
    same("use = \"int4\"\ngranularity = \"channel\"", "use = \"rtn\"\nbits = 4\ngranularity = \"channel\"");
    same("use = \"int8\"\ngroup_size = 32", "use = \"rtn\"\nbits = 8\ngroup_size = 32");
    same(
        "use = \"int4\"\n[[pass.override]]\nselect = \"mlp\"\ngranularity = \"channel\"",
        "use = \"rtn\"\nbits = 4\n[[pass.override]]\nselect = \"mlp\"\ngranularity = \"channel\"",
    );
    same("use = \"int4\"\ntarget_bits = 4.5", "use = \"rtn\"\nbits = 4\ntarget_bits = 4.5");
}

#[test]
fn the_resolved_rules_are_rules_again() {
    let first = recipe("[[pass]]\nuse = \"fp8-block\"\n[[pass]]\nuse = \"hqq4\"\nselect = [\"mlp\"]").resolved();
    let rules = toml::to_string(&json!({ "pass": first["pass"] })).unwrap();
    assert_eq!(recipe(&rules).resolved()["pass"], first["pass"]);
}
