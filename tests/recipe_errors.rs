//! The full texts of error messages for wrong recipes: what a user reads must stay as good as this.

#![expect(clippy::needless_raw_string_hashes, reason = "all texts are written alike")]

use std::path::Path;

use bantam::{passes::REGISTRY, recipe::Recipe};

/// Compares the whole message. `{rule keys}` and `{override keys}` in the expected text stand for the lists of keys, which
/// grow with the pass.
fn shows(recipe: &str, expected: &str) {
    let error = Recipe::parse(recipe, Path::new("r.toml")).expect_err("the recipe is wrong");
    let keys = REGISTRY[0].keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let expected = expected
        .trim_start_matches('\n')
        .replace("{rule keys}", &format!("`use`, `select`, `skip`, `optional`, `override`, {keys}"))
        .replace("{override keys}", &format!("`select`, `skip`, `optional`, {keys}"));
    assert!(error.to_string() == expected, "got:\n{error}\n\nexpected:\n{expected}");
}

#[test]
fn an_unknown_setting() {
    shows(
        r#"schema = 1
model = "m"

[[pass]]
use = "rtn"
groupsize = 128

[artifact]
out = "o"
"#,
        r#"
unknown key `groupsize` in a rule of pass `rtn`
 --> r.toml:6:1
  |
6 | groupsize = 128
  | ^^^^^^^^^
  = expected one of {rule keys}
  = help: did you mean `group_size`?"#,
    );
}

#[test]
fn unknown_keys_and_tables_at_the_top() {
    shows(
        r#"schema = 1
model = "m"
sede = 3
[[pass]]
use = "int4"
[artefact]
out = "o"
"#,
        r#"
`out` is missing
 --> r.toml:1:1
  = help: write `out = "…"` under [artifact], or give --out DIR

error: unknown key `sede` in the recipe
 --> r.toml:3:1
  |
3 | sede = 3
  | ^^^^
  = expected one of `schema`, `model`, `base`, `seed`, `input`, `calibration`, `pass`, `artifact`
  = help: did you mean `seed`?

error: unknown key `artefact` in the recipe
 --> r.toml:6:2
  |
6 | [artefact]
  |  ^^^^^^^^
  = expected one of `schema`, `model`, `base`, `seed`, `input`, `calibration`, `pass`, `artifact`
  = help: did you mean `artifact`?"#,
    );
}

#[test]
fn wrong_types() {
    shows(
        r#"schema = 1
model = "m"
seed = "zero"
[[pass]]
use = "rtn"
bits = "four"
optional = 1
[artifact]
out = "o"
"#,
        r#"
`seed`: expected a whole number from 0, got the string `"zero"`
 --> r.toml:3:8
  |
3 | seed = "zero"
  |        ^^^^^^

error: `bits`: expected a whole number from 2 to 8, got "four"
 --> r.toml:6:8
  |
6 | bits = "four"
  |        ^^^^^^

error: `optional`: expected true or false, got the integer `1`
 --> r.toml:7:12
  |
7 | optional = 1
  |            ^"#,
    );
}

#[test]
fn impossible_values() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
use = "rtn"
bits = 9
[artifact]
out = "o"
shard_size = "5XB"
"#,
        r#"
`bits`: expected a whole number from 2 to 8, got 9
 --> r.toml:5:8
  |
5 | bits = 9
  |        ^

error: `shard_size`: expected a size such as "5GB", "500MiB" or a number of bytes, got "5XB"
 --> r.toml:8:14
  |
8 | shard_size = "5XB"
  |              ^^^^^"#,
    );
}

#[test]
fn mistakes_in_an_override() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
use = "int4"

  [[pass.override]]
  select = ["mlp.down"]
  bits = 1
  optionl = true
[artifact]
out = "o"
"#,
        r#"
`bits`: expected a whole number from 2 to 8, got 1
 --> r.toml:8:10
  |
8 |   bits = 1
  |          ^

error: unknown key `optionl` in an override of pass `rtn`
 --> r.toml:9:3
  |
9 |   optionl = true
  |   ^^^^^^^
  = expected one of {override keys}
  = help: did you mean `optional`?"#,
    );
}

#[test]
fn an_override_that_contradicts_its_rule() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
use = "rtn"
group_size = 64

  [[pass.override]]
  select = ["mlp.down"]
  granularity = "channel"
[artifact]
out = "o"
"#,
        r#"
`group_size`: a group size needs `granularity = "group"`; leave one of them out
 --> r.toml:7:3
  |
7 |   [[pass.override]]
  |   ^^^^^^^^^^^^^^^^^
  = `group_size` is set on line 5"#,
    );
}

#[test]
fn an_unknown_preset() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
use = "int-4"
[artifact]
out = "o"
"#,
        r#"
unknown pass or preset "int-4"
 --> r.toml:4:7
  |
4 | use = "int-4"
  |       ^^^^^^^
  = expected a pass ("rtn", "gptq", "smoothquant", "smoothquant_plus", "awq", "rotate", "mask_2_4", "pvq", "vptq", "bitdelta", "breadcrumbs", "lowrank_kv", "taylor_mlp") or a preset ("int4", "int4-asym", "int8", "w8a8", "fp8", "fp8-block", "mxfp4", "mxfp8", "nvfp4", "int3", "int2", "hqq4")
  = help: did you mean `int4`?"#,
    );
}

#[test]
fn a_setting_that_contradicts_a_preset() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
use = "int4"
format = "fp8"
[artifact]
out = "o"
"#,
        r#"
`format`: `bits` and `format` exclude each other: `bits` means integers; leave one out (an override cannot take a key away: use a rule of its own)
 --> r.toml:5:10
  |
5 | format = "fp8"
  |          ^^^^^
  = preset "int4" sets bits = 4, group_size = 128, symmetric = true"#,
    );
}

#[test]
fn an_unknown_layout() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
use = "int4"
[artifact]
out = "o"
layout = "compressed_tensor"
"#,
        r#"
unknown layout "compressed_tensor"
 --> r.toml:7:10
  |
7 | layout = "compressed_tensor"
  |          ^^^^^^^^^^^^^^^^^^^
  = expected one of "compressed-tensors", "gptq", "gptq-v2", "awq", "vptq", "bantam", "delta", "remote-code", "sparse-24-bitmask", "gguf", "dense"
  = help: did you mean `compressed-tensors`?"#,
    );
}

#[test]
fn text_that_is_not_toml() {
    shows(
        r#"schema = 1
model = "m
[[pass]]
use = int4
bits =
"#,
        r#"
not TOML: invalid basic string, expected `"`
 --> r.toml:2:11
  |
2 | model = "m
  |           ^

error: not TOML: a string without quotes
 --> r.toml:4:7
  |
4 | use = int4
  |       ^^^^
  = help: write `"int4"`

error: not TOML: a value is missing
 --> r.toml:5:7
  |
5 | bits =
  |       ^"#,
    );
}

#[test]
fn keys_and_tables_set_twice() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
use = "int4"
bits = 4
bits = 5
[artifact]
out = "o"
[artifact]
out = "p"
"#,
        r#"
`bits` is set twice
 --> r.toml:6:1
  |
6 | bits = 5
  | ^^^^

error: `artifact` is set twice
 --> r.toml:9:2
  |
9 | [artifact]
  |  ^^^^^^^^

error: `out` is set twice
  --> r.toml:10:1
   |
10 | out = "p"
   | ^^^"#,
    );
}

#[test]
fn one_bracket_instead_of_two() {
    shows(
        r#"schema = 1
model = "m"
[pass]
use = "int4"
[artifact]
out = "o"
"#,
        r#"
`pass`: expected a list of tables, each written `[[pass]]`, got a table
 --> r.toml:3:1
  |
3 | [pass]
  | ^^^^^^
  = help: write `[[pass]]`, with two brackets"#,
    );
}

#[test]
fn an_empty_recipe() {
    shows(
        r#"# nothing here
"#,
        r#"
`schema` is missing
 --> r.toml:1:1
  = help: write `schema = 1` at the top

error: `model` is missing
 --> r.toml:1:1
  = help: write `model = "…"` at the top, or give --model DIR

error: the recipe has no `[[pass]]`
 --> r.toml:1:1
  = help: write `[[pass]]` and under it `use = "int4"`

error: `out` is missing
 --> r.toml:1:1
  = help: write `out = "…"` under [artifact], or give --out DIR"#,
    );
}

#[test]
fn a_rule_without_a_pass() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
bits = 4
[artifact]
layout = "gptq"
"#,
        r#"
`use` is missing: the rule names no pass
 --> r.toml:3:1
  |
3 | [[pass]]
  | ^^^^^^^^
  = help: write `use = "…"`: a pass ("rtn", "gptq", "smoothquant", "smoothquant_plus", "awq", "rotate", "mask_2_4", "pvq", "vptq", "bitdelta", "breadcrumbs", "lowrank_kv", "taylor_mlp") or a preset ("int4", "int4-asym", "int8", "w8a8", "fp8", "fp8-block", "mxfp4", "mxfp8", "nvfp4", "int3", "int2", "hqq4")

error: `out` is missing
 --> r.toml:5:1
  |
5 | [artifact]
  | ^^^^^^^^^^
  = help: write `out = "…"` under [artifact], or give --out DIR"#,
    );
}

#[test]
fn a_newer_schema_and_empty_or_wrong_paths() {
    shows(
        r#"schema = 2
model = ""
[[pass]]
use = "int4"
[artifact]
out = 5
"#,
        r#"
`schema`: expected 1, got the integer `2`
 --> r.toml:1:10
  |
1 | schema = 2
  |          ^
  = help: this version of bantam reads recipes of schema 1

error: `model`: expected the folder of a checkpoint, got an empty string
 --> r.toml:2:9
  |
2 | model = ""
  |         ^^

error: `out`: expected the folder to write, got the integer `5`
 --> r.toml:6:7
  |
6 | out = 5
  |       ^"#,
    );
}

#[test]
fn selectors_that_cannot_be_read() {
    shows(
        r#"schema = 1
model = "m"
[[pass]]
use = "int4"
select = ["linear", "/(/", "a[", 7, "block.4-2", ""]
[artifact]
out = "o"
"#,
        r#"
not a regular expression: unclosed group
 --> r.toml:5:21
  |
5 | select = ["linear", "/(/", "a[", 7, "block.4-2", ""]
  |                     ^^^^^

error: not a glob: unclosed character class; missing ']'
 --> r.toml:5:28
  |
5 | select = ["linear", "/(/", "a[", 7, "block.4-2", ""]
  |                            ^^^^

error: `select`: expected a list of selectors, as in ["linear", "*.q_proj.weight"], got the integer `7`
 --> r.toml:5:34
  |
5 | select = ["linear", "/(/", "a[", 7, "block.4-2", ""]
  |                                  ^

error: blocks 4-2 end before they begin; expected block.2-4
 --> r.toml:5:37
  |
5 | select = ["linear", "/(/", "a[", 7, "block.4-2", ""]
  |                                     ^^^^^^^^^^^

error: an empty selector; expected a role, a glob, a /regular expression/ or a name
 --> r.toml:5:50
  |
5 | select = ["linear", "/(/", "a[", 7, "block.4-2", ""]
  |                                                  ^^"#,
    );
}

#[test]
fn wrong_words_and_numbers_in_the_other_tables() {
    shows(
        r#"schema = 1
model = "m"
[input]
non_finite = "kepe"
[calibration]
text = 5
sequences = 0
[[pass]]
use = "int4"
select = []
[artifact]
out = "o"
"#,
        r#"
`non_finite`: expected "refuse" or "keep", got "kepe"
 --> r.toml:4:14
  |
4 | non_finite = "kepe"
  |              ^^^^^^
  = help: did you mean `keep`?

error: `text`: expected a list of files, got the integer `5`
 --> r.toml:6:8
  |
6 | text = 5
  |        ^

error: `sequences`: expected a whole number from 1, got the integer `0`
 --> r.toml:7:13
  |
7 | sequences = 0
  |             ^

error: `select`: expected at least one selector, got none
  --> r.toml:10:10
   |
10 | select = []
   |          ^^
   = help: leave `select` out to take what the pass takes by itself"#,
    );
}

#[test]
fn calibration_without_text() {
    let recipe = |text: &str| {
        format!("schema = 1\nmodel = \"m\"\n[calibration]\n{text}\n[[pass]]\nuse = \"int4\"\n[artifact]\nout = \"o\"\n")
    };
    shows(
        &recipe("sequences = 1"),
        r#"
`text` is missing
 --> r.toml:3:1
  |
3 | [calibration]
  | ^^^^^^^^^^^^^
  = help: write `text = ["…"]` under [calibration]: files that end in .txt, .jsonl or .safetensors"#,
    );
    shows(
        &recipe("text = []"),
        r#"
`text`: expected at least one file, got none
 --> r.toml:4:8
  |
4 | text = []
  |        ^^
  = help: write `text = ["…"]` under [calibration]: files that end in .txt, .jsonl or .safetensors"#,
    );
}

#[test]
fn a_long_line_is_shortened_around_the_place() {
    let long = "é".repeat(100);
    let recipe = format!(
        "schema = 1\nmodel = \"m\"\n\tcalibration = {{ text = \"{long}\", \"größe\" = 1, sequences = 2 }} # {long}\n[[pass]]\nuse = \"int4\"\n[artifact]\nout = \"o\"\n"
    );
    shows(
        &recipe,
        r#"
unknown key `größe` in [calibration]
 --> r.toml:3:129
  |
3 | …éééééééééééééééééééééééééééééééééééééééééééééééé", "größe" = 1, sequences = 2 } # éééééééééééééééééééééééééééé…
  |                                                     ^^^^^^^
  = expected one of `text`, `sequences`, `sequence_length`, `predecessor`, `statistics`"#,
    );
}
