//! Recipes that mean harm, or are damaged: an error, never a panic.

use proptest::prelude::*;

use super::*;

const WHOLE: &str = r#"# a recipe with everything in it
schema = 1
model = "../tiny-llama"
seed = 7
input = { non_finite = "keep" }

[calibration]
text = ["ä.txt", '''b''']
sequences = 0x10
sequence_length = 1_024

[[pass]]
use = "int4"
select = ["linear", "block.0-3.mlp", "*.q_proj.{weight,bias}", "/[kv]_proj/"]
skip = "head"
optional = true
symmetric = false

  [[pass.override]]
  select = ["mlp.down"]
  bits = 8

[[pass]]
use = "rtn"
format = "fp8"
block = [128, 128]

[artifact]
out = "../../out/x"
layout = "bantam"
shard_size = "5GB"
"#;

/// Pieces that mean something in TOML or in a recipe.
const PIECES: [&str; 30] = [
    "[[",
    "]]",
    "[",
    "]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\n",
    "\"",
    "'''",
    "\"\"\"",
    "#",
    "\\",
    "\0",
    "\u{1b}",
    "\r\n",
    "é",
    "𝄞",
    "use",
    "pass",
    "override",
    "select",
    "1e400",
    "-9223372036854775809",
    "nan",
    "/",
    "*",
    "block.9-1",
];

fn survives(text: &str) {
    match Recipe::parse(text, Path::new("dir/r.toml")) {
        Ok(recipe) => {
            let _ = recipe.assign(&llama()).map_err(|error| error.to_string());
            assert!(recipe.resolved().is_object());
        }
        Err(error) => assert!(!error.to_string().chars().any(|c| c.is_control() && c != '\n'), "{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_recipes_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, 0..PIECES.len()), 1..6)
    ) {
        let mut characters: Vec<char> = WHOLE.chars().collect();
        for (place, removed, piece) in edits {
            let start = place.index(characters.len().max(1)).min(characters.len());
            let end = (start + removed).min(characters.len());
            characters.splice(start..end, PIECES[piece].chars());
        }
        survives(&characters.into_iter().collect::<String>());
    }

    #[test]
    fn any_text_never_panics(text in "\\PC{0,200}") {
        survives(&text);
    }

    #[test]
    fn any_selector_never_panics(text in "[a-z0-9.*?\\[\\]{},/\\\\()|+^$é-]{0,60}") {
        if let Ok(selector) = Selector::parse(&text) {
            for tensor in &llama().tensors {
                let _ = selector.matches(tensor);
            }
        }
    }
}

#[test]
fn the_whole_recipe_is_sound() {
    Recipe::parse(WHOLE, Path::new("dir/r.toml")).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn deep_nesting_is_an_error() {
    for text in [
        format!("a = {}1{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("a = {}", "{a=".repeat(100_000)),
        format!("{}a = 1", "a.".repeat(100_000)),
        format!("[{}a]", "a.".repeat(100_000)),
        format!("[[pass]]\nuse = \"rtn\"\nselect = [\"{}\"]", "{".repeat(1000)),
        format!("[[pass]]\nuse = \"rtn\"\nselect = [\"/{}/\"]", "(".repeat(1000)),
    ] {
        assert!(Recipe::parse(&text, Path::new("r.toml")).is_err());
        survives(&text);
    }
}

#[test]
fn too_much_text_is_refused_before_it_is_parsed() {
    let text = "#".repeat(2 << 20);
    assert!(matches!(Recipe::parse(&text, Path::new("r.toml")), Err(RecipeError::TooLarge { bytes: 2_097_152, .. })));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.toml");
    std::fs::write(&path, &text).unwrap();
    assert!(matches!(Recipe::read(&path), Err(RecipeError::TooLarge { bytes: 2_097_152, .. })));
}

#[test]
fn files_that_are_no_text_or_are_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.toml");
    assert!(matches!(Recipe::read(&path), Err(RecipeError::Read { .. })));
    std::fs::write(&path, b"schema = 1 # \xff").unwrap();
    assert!(matches!(Recipe::read(&path), Err(RecipeError::NotText { offset: 13, .. })));
}

#[test]
fn many_errors_are_counted_not_all_shown() {
    let text = (0..1000).fold(String::new(), |text, index| text + &format!("key{index} = 1\n"));
    let Err(RecipeError::Wrong { diagnostics, omitted }) = Recipe::parse(&text, Path::new("r.toml")) else { panic!() };
    assert_eq!((diagnostics.len(), omitted), (20, 984), "1000 keys, and schema, model, pass and out missing");
}

#[test]
fn a_megabyte_of_errors_is_reported_in_little_time_and_space() {
    let start = std::time::Instant::now();
    let word = "x".repeat(900_000);
    let rules = |rule: &str, times: usize| rule.repeat(times);
    for text in [
        (0..60_000).fold(String::new(), |text, index| text + &format!("k{index} = 1\n")),
        format!("a = {{ {} }}", rules("b = [], ", 100_000)),
        rules("[[pass]]\nuse = \"rtn\"\nbit = 1\n", 30_000),
        format!("{word} = 1"),
        format!("seed = \"{word}\""),
        format!("[[pass]]\nuse = \"{word}\""),
        format!("[[pass]]\nuse = \"rtn\"\nformat = \"{word}\""),
        format!("[[pass]]\nuse = \"rtn\"\nselect = \"{word}\""),
        format!("[artifact]\nshard_size = \"{word}\"\nlayout = \"{word}\""),
    ] {
        let message = Recipe::parse(&text, Path::new("r.toml")).unwrap_err().to_string();
        assert!(message.len() < 40_000, "{} bytes of message", message.len());
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
