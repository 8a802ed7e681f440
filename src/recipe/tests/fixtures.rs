//! The recipes in `fixtures/recipes`, and the examples of the documentation.

use std::collections::BTreeSet;

use super::*;
use crate::{
    checkpoint::Dtype,
    layout::{MatrixSpec, layout},
    passes::{Matrix, Settings},
};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn every_fixture_is_a_recipe_for_the_fixture_model() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder("fixtures/recipes")).unwrap() {
        let path = entry.unwrap().path();
        let recipe = Recipe::read(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(recipe.model, folder("fixtures/tiny-llama"), "{}", path.display());
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(recipe.artifact.out.ends_with(format!("out/tiny-llama-{name}")), "{}", recipe.artifact.out.display());
        let encoded: BTreeSet<String> = recipe.assign(&llama()).unwrap().into_iter().map(|it| it.tensor).collect();
        assert_eq!(encoded.len(), 14, "{name}: seven linears in two blocks, without the head");
        count += 1;
    }
    assert!(count >= 25, "{count} recipes");
}

#[test]
fn every_fixture_asks_its_layout_for_something_it_can_hold() {
    let mut asked = 0;
    for entry in std::fs::read_dir(folder("fixtures/recipes")).unwrap() {
        let path = entry.unwrap().path();
        let recipe = Recipe::read(&path).unwrap();
        let target = layout(recipe.artifact.layout);
        for Assignment { tensor, settings, .. } in recipe.assign(&llama()).unwrap() {
            // What is stored follows from encodings; rotations are checked with the one behind them.
            if settings.needs_weights() || matches!(settings, Settings::Rotate(_)) {
                continue;
            }
            let (rows, columns) = if tensor.contains("down_proj") { (256, 768) } else { (768, 256) };
            let matrix = Matrix {
                name: tensor.clone(),
                rows,
                columns,
                dense_dtype: Dtype::BF16,
                scale: target.scale_format(Dtype::BF16),
                experts: 1,
                seed: 0,
                minimum_zero_point: 0,
                float_zero_allowed: recipe.artifact.layout == LayoutName::Bantam,
                minima: crate::layout::layout(recipe.artifact.layout).minima(),
            };
            let choice = settings.codec(&matrix).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
            let spec = MatrixSpec {
                name: tensor,
                experts: None,
                rows,
                columns,
                transposed: false,
                dense_dtype: Dtype::BF16,
                codec: choice.codec,
                rotations: None,
                codebook_of: None,
                cache: None,
                bias: false,
                activations: choice.activations,
            };
            assert_eq!(target.accepts(&spec), Ok(()), "{}", path.display());
            asked += 1;
        }
    }
    assert!(asked > 300, "{asked}");
}

#[test]
fn the_examples_of_the_documentation_are_recipes() {
    let text = std::fs::read_to_string(folder("docs/recipe.md")).unwrap();
    let examples: Vec<&str> = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 3);
    for example in examples {
        let missing = |key: &str, line: &str| if example.contains(key) { String::new() } else { format!("{line}\n") };
        let mut text = missing("schema =", "schema = 1") + &missing("model =", "model = \"m\"") + example;
        text += &missing("[[pass]]", "[[pass]]\nuse = \"int4\"");
        text += &missing("[artifact]", "[artifact]\nout = \"o\"");
        Recipe::parse(&text, Path::new("docs/recipe.md")).unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
}

#[test]
fn the_documentation_lists_every_preset_with_its_settings() {
    let text = std::fs::read_to_string(folder("docs/recipe.md")).unwrap();
    for preset in PRESETS {
        let settings = preset.settings.replace('\n', "`, `");
        let row = format!("| `{}` | `{}`: `{settings}` | {} |", preset.name, preset.pass, preset.summary);
        assert!(text.contains(&row), "docs/recipe.md lacks this row:\n{row}");
    }
}

#[test]
fn the_documentation_lists_every_setting_of_every_pass() {
    let text = std::fs::read_to_string(folder("docs/recipe.md")).unwrap();
    for pass in crate::passes::REGISTRY {
        let section = text.split(&format!("## Settings of `{}`\n", pass.name)).nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        for key in pass.keys {
            assert!(section.contains(&format!("| `{key}` |")), "docs/recipe.md lacks `{key}` of `{}`", pass.name);
        }
    }
}
