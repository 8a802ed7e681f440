//! From text to a typed recipe: keys, types, values, names of passes, settings. Reports all that it finds, not the first.

mod rules;

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use rules::read_rule;
use toml::de::DeTable;

use super::{
    Artifact, Calibration, NonFinite, Overrides, PassRule, Predecessor, Recipe, RecipeError, Written,
    document::{Located, Reader, describe},
    error::{Problem, Source, did_you_mean, shown},
    size::parse_bytes,
};
use crate::{
    checkpoint::is_hub_id,
    layout::LayoutName,
    passes::{PassInfo, bitdelta, breadcrumbs},
    remote::is_remote,
};

/// Largest recipe in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;
/// Largest file of an artifact when the recipe does not say.
const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

const TEXT_HELP: &str = "write `text = [\"…\"]` under [calibration]: files that end in .txt, .jsonl or .safetensors";

const LAYOUTS: [LayoutName; 11] = [
    LayoutName::CompressedTensors,
    LayoutName::Gptq,
    LayoutName::GptqV2,
    LayoutName::Awq,
    LayoutName::Vptq,
    LayoutName::Bantam,
    LayoutName::Delta,
    LayoutName::RemoteCode,
    LayoutName::Sparse24Bitmask,
    LayoutName::Gguf,
    LayoutName::Dense,
];

/// Reads the text of a recipe with the passes of `registry`.
pub(super) fn parse(
    text: &str,
    path: &Path,
    overrides: &Overrides,
    registry: &[PassInfo],
) -> Result<Recipe, RecipeError> {
    if text.len() as u64 > MAX_BYTES {
        return Err(RecipeError::TooLarge { path: path.to_owned(), bytes: text.len() as u64, limit: MAX_BYTES });
    }
    let source = Source::new(path, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(source.error(errors.iter().map(|error| syntax_error(&source, error)).collect()));
    }
    let mut reader = Reader::new(&source);
    let recipe = read_root(&mut reader, document.get_ref(), path, overrides, registry);
    let problems = reader.problems;
    match recipe {
        Some(recipe) if problems.is_empty() => Ok(recipe),
        _ => Err(source.error(problems)),
    }
}

fn syntax_error(source: &Source, error: &toml::de::Error) -> Problem {
    let Some(span) = error.span() else { return Problem::of_all(format!("not TOML: {}", error.message())) };
    match (error.message(), source.text(&span)) {
        ("duplicate key", key) if !key.is_empty() => Problem::at(&span, format!("`{}` is set twice", shown(key))),
        ("string values must be quoted, expected literal string", "") => {
            Problem::at(&span, "not TOML: a value is missing")
        }
        (message, word) if is_word(word) && !message.contains("key") => {
            Problem::at(&span, "not TOML: a string without quotes").help(format!("write `\"{}\"`", shown(word)))
        }
        (message, _) => Problem::at(&span, format!("not TOML: {message}")),
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && !text.contains(['"', '\'', '\n'])
}

fn read_root(
    reader: &mut Reader<'_>,
    root: &DeTable<'_>,
    path: &Path,
    overrides: &Overrides,
    registry: &[PassInfo],
) -> Option<Recipe> {
    reader.check_keys(
        root,
        "the recipe",
        &["schema", "model", "base", "seed", "input", "calibration", "pass", "artifact"],
    );
    check_schema(reader, root);
    let (model, merged) = read_models(reader, root);
    if model.is_none() && overrides.model.is_none() && !root.contains_key("model") {
        missing(reader, None, "`model` is missing", "write `model = \"…\"` at the top, or give --model DIR");
    }
    let base = reader.string(root, "base", "the folder of the checkpoint that the model was made from");
    let seed = reader.whole(root, "seed", 0).unwrap_or(0);
    let non_finite = read_input(reader, root);
    let folder = path.parent().unwrap_or(Path::new(""));
    let calibration = read_calibration(reader, root, folder);
    let mut passes = Vec::new();
    for table in reader.tables(root, "pass", "pass") {
        passes.extend(read_rule(reader, &table, registry));
    }
    if !root.contains_key("pass") && !is_file_format(root) {
        missing(reader, None, "the recipe has no `[[pass]]`", "write `[[pass]]` and under it `use = \"int4\"`");
    }
    let (artifact, out) = read_artifact(reader, root, folder, overrides);
    let given = overrides.base.as_ref().map(|_| None).or(base.as_ref().map(|base| Some(base.span.clone())));
    check_base(reader, given, &passes, artifact.as_ref());
    // A model from the command line stands in for all of the recipe's.
    let merged = merged.filter(|_| overrides.model.is_none());
    check_merge(reader, merged.as_ref(), &passes, artifact.as_ref());
    let merged = merged.map_or_else(Vec::new, |merged| merged.value);
    let base = base.map(|base| base.value);
    let relative = |written: &str| {
        // An id of the hub or a URL is no path.
        if is_hub_id(Path::new(written)) || is_remote(Path::new(written)) {
            written.into()
        } else {
            tidy(&folder.join(written))
        }
    };
    Some(Recipe {
        path: path.to_owned(),
        model: overrides.model.clone().or_else(|| model.as_deref().map(relative)).unwrap_or_default(),
        merged: merged.iter().map(|model| relative(model)).collect(),
        base: overrides.base.clone().or_else(|| base.as_deref().map(relative)),
        seed,
        non_finite,
        calibration,
        passes,
        artifact: artifact?,
        written: Written { model, merged, base, out },
        source: reader.source.clone(),
    })
}

/// One checkpoint, or several that are merged: the first one, and the others with the place of the list.
fn read_models(reader: &mut Reader<'_>, root: &DeTable<'_>) -> (Option<String>, Option<Located<Vec<String>>>) {
    let expected = "the folder of a checkpoint";
    if !root.get("model").is_some_and(|value| value.get_ref().is_array()) {
        return (reader.string(root, "model", expected).map(|model| model.value), None);
    }
    let Some(list) = reader.strings(root, "model", expected) else { return (None, None) };
    if list.value.is_empty() || list.value.iter().any(|model| model.value.is_empty()) {
        reader.wrong(&list.span, "`model`: expected folders of checkpoints, got none or an empty string");
    }
    let mut models = list.value.into_iter().map(|model| model.value);
    let first = models.next();
    (first, Some(Located { value: models.collect(), span: list.span }))
}

/// Several models are merged by one pass into one whole model.
fn check_merge(
    reader: &mut Reader<'_>,
    merged: Option<&Located<Vec<String>>>,
    passes: &[PassRule],
    artifact: Option<&Artifact>,
) {
    let Some(list) = merged.filter(|list| !list.value.is_empty()) else { return };
    if passes.iter().any(|rule| rule.pass != breadcrumbs::INFO.name) {
        let problem = Problem::at(&list.span, "`model`: no pass merges several models");
        reader.report(problem.help("write `use = \"breadcrumbs\"` under [[pass]], or name one model".to_owned()));
    } else if artifact.is_some_and(|artifact| artifact.layout == LayoutName::Delta) {
        let problem = Problem::at(&list.span, "`model`: layout \"delta\" holds what one model has changed");
        reader.report(problem.help("write `layout = \"dense\"` under [artifact], or name one model".to_owned()));
    }
}

/// A base, the pass that takes differences from it and the layout that holds them: all of them or none. `base` is its place
/// in the recipe, none where the command line gives it.
#[expect(clippy::option_option, reason = "there is a base, and it has a place")]
fn check_base(
    reader: &mut Reader<'_>,
    base: Option<Option<Range<usize>>>,
    passes: &[PassRule],
    artifact: Option<&Artifact>,
) {
    let of_differences = |rule: &&PassRule| [bitdelta::INFO.name, breadcrumbs::INFO.name].contains(&rule.pass.as_str());
    let layout = artifact.map(|artifact| artifact.layout);
    let Some(first) = passes.iter().find(of_differences) else {
        let help = || "write `use = \"bitdelta\"` under [[pass]], or leave it out".to_owned();
        if let Some(base) = base {
            let message = "`base`: no pass stores differences from it";
            let problem = base.map_or_else(|| Problem::of_all(message), |span| Problem::at(&span, message));
            reader.report(problem.help(help()));
        } else if layout == Some(LayoutName::Delta) {
            let message = "layout \"delta\" holds differences from a base, and no pass of the recipe makes them";
            reader.report(Problem::of_all(message).help(help()));
        }
        return;
    };
    if base.is_none() {
        let help = "write `base = \"…\"` at the top: the folder of the checkpoint that the model was made from";
        let does = if first.pass == bitdelta::INFO.name { "stores" } else { "takes" };
        let message = format!("`{}` {does} differences from `base`, which is missing", first.pass);
        missing(reader, Some(&first.use_span), &message, help);
    }
    if let Some(other) = passes.iter().find(|rule| rule.pass != first.pass) {
        let message =
            format!("`{}` cannot stand beside `{}`, which takes the weights as they are", other.pass, first.pass);
        reader.report(Problem::at(&other.use_span, message));
    }
    let merges = first.pass == breadcrumbs::INFO.name;
    if layout.is_some_and(|layout| layout != LayoutName::Delta && !(merges && layout == LayoutName::Dense)) {
        let (or_dense, help) = if merges {
            (
                " or \"dense\"",
                "write `layout = \"dense\"` under [artifact] for a whole model, \"delta\" for what changed",
            )
        } else {
            ("", "write `layout = \"delta\"` under [artifact]")
        };
        let problem = Problem::at(&first.use_span, format!("`{}` needs the layout \"delta\"{or_dense}", first.pass));
        reader.report(problem.help(help.to_owned()));
    }
}

fn missing(reader: &mut Reader<'_>, span: Option<&Range<usize>>, message: &str, help: &str) {
    let problem = match span {
        Some(span) => Problem::at(span, message),
        None => Problem::of_all(message),
    };
    reader.report(problem.help(help.to_owned()));
}

fn check_schema(reader: &mut Reader<'_>, root: &DeTable<'_>) {
    match root.get("schema") {
        None => missing(reader, None, "`schema` is missing", "write `schema = 1` at the top"),
        Some(value) if value.get_ref().as_integer().is_some_and(|number| number.as_str() == "1") => {}
        Some(value) => {
            let got = describe(reader.source, value);
            let newer = value.get_ref().is_integer();
            let help = newer.then(|| "this version of bantam reads recipes of schema 1".to_owned());
            reader.report(Problem::at(&value.span(), format!("`schema`: expected 1, got {got}")).help(help));
        }
    }
}

fn read_input(reader: &mut Reader<'_>, root: &DeTable<'_>) -> NonFinite {
    let Some(table) = reader.table(root, "input") else { return NonFinite::default() };
    reader.check_keys(table.value, "[input]", &["non_finite"]);
    let Some(word) = reader.string(table.value, "non_finite", "\"refuse\" or \"keep\"") else {
        return NonFinite::default();
    };
    match word.value.as_str() {
        "refuse" => NonFinite::Refuse,
        "keep" => NonFinite::Keep,
        other => {
            let help = did_you_mean(other, ["refuse", "keep"]);
            let message = format!("`non_finite`: expected \"refuse\" or \"keep\", got \"{}\"", shown(other));
            reader.report(Problem::at(&word.span, message).help(help));
            NonFinite::default()
        }
    }
}

fn read_calibration(reader: &mut Reader<'_>, root: &DeTable<'_>, folder: &Path) -> Option<Calibration> {
    let Located { value: table, span } = reader.table(root, "calibration")?;
    reader.check_keys(table, "[calibration]", &["text", "sequences", "sequence_length", "predecessor", "statistics"]);
    let list = reader.strings(table, "text", "a list of files");
    if !table.contains_key("text") {
        missing(reader, Some(&span), "`text` is missing", TEXT_HELP);
    } else if let Some(list) = &list
        && list.value.is_empty()
    {
        let problem = Problem::at(&list.span, "`text`: expected at least one file, got none");
        reader.report(problem.help(TEXT_HELP.to_owned()));
    }
    let written: Vec<String> =
        list.map(|list| list.value.into_iter().map(|file| file.value).collect()).unwrap_or_default();
    let predecessor = reader.string(table, "predecessor", "\"compressed\" or \"original\"");
    let predecessor = match predecessor {
        None => Predecessor::default(),
        Some(word) => match word.value.as_str() {
            "compressed" => Predecessor::Compressed,
            "original" => Predecessor::Original,
            other => {
                let message =
                    format!("`predecessor`: expected \"compressed\" or \"original\", got \"{}\"", shown(other));
                reader.report(Problem::at(&word.span, message).help(did_you_mean(other, ["compressed", "original"])));
                Predecessor::default()
            }
        },
    };
    let statistics = reader.string(table, "statistics", "a file of `bantam calibrate`").map(|file| file.value);
    Some(Calibration {
        predecessor,
        statistics: statistics.as_ref().map(|file| tidy(&folder.join(file))),
        written_statistics: statistics,
        text: written.iter().map(|file| tidy(&folder.join(file))).collect(),
        sequences: reader.whole(table, "sequences", 1).unwrap_or(128),
        sequence_length: reader.whole(table, "sequence_length", 2).unwrap_or(256),
        written,
    })
}

fn read_artifact(
    reader: &mut Reader<'_>,
    root: &DeTable<'_>,
    folder: &Path,
    overrides: &Overrides,
) -> (Option<Artifact>, Option<String>) {
    let empty = DeTable::new();
    let located = reader.table(root, "artifact");
    if root.contains_key("artifact") && located.is_none() {
        return (None, None);
    }
    let table = located.as_ref().map_or(&empty, |located| located.value);
    reader.check_keys(table, "[artifact]", &["out", "layout", "shard_size"]);
    let written = reader.string(table, "out", "the folder to write").map(|out| out.value);
    let out = overrides.out.clone().or_else(|| {
        written.as_deref().map(|out| if is_remote(Path::new(out)) { out.into() } else { tidy(&folder.join(out)) })
    });
    let out = out.or_else(|| overrides.default_out.clone());
    if out.is_none() && !table.contains_key("out") {
        let span = located.as_ref().map(|located| &located.span);
        missing(reader, span, "`out` is missing", "write `out = \"…\"` under [artifact], or give --out DIR");
    }
    let artifact = Artifact {
        out: out.unwrap_or_default(),
        layout: read_layout(reader, table),
        shard_size: read_shard_size(reader, table),
    };
    (Some(artifact), written)
}

/// Whether the layout asked for is worth writing without encoding anything.
fn is_file_format(root: &DeTable<'_>) -> bool {
    let artifact = root.get("artifact").and_then(|artifact| artifact.get_ref().as_table());
    let layout = artifact.and_then(|artifact| artifact.get("layout")).and_then(|layout| layout.get_ref().as_str());
    layout == Some(LayoutName::Gguf.as_str())
}

fn read_layout(reader: &mut Reader<'_>, table: &DeTable<'_>) -> LayoutName {
    let Some(word) = reader.string(table, "layout", "the name of a layout") else {
        return LayoutName::CompressedTensors;
    };
    if let Some(layout) = LAYOUTS.into_iter().find(|layout| layout.as_str() == word.value) {
        return layout;
    }
    let names = LAYOUTS.map(LayoutName::as_str);
    let problem = Problem::at(&word.span, format!("unknown layout \"{}\"", shown(&word.value)))
        .note(format!("expected one of {}", quoted(names)))
        .help(did_you_mean(&word.value, names));
    reader.report(problem);
    LayoutName::CompressedTensors
}

fn read_shard_size(reader: &mut Reader<'_>, table: &DeTable<'_>) -> u64 {
    let bytes = match table.get("shard_size") {
        None => None,
        Some(value) if value.get_ref().is_str() => reader
            .string(table, "shard_size", "a size such as \"5GB\"")
            .and_then(|text| match parse_bytes(&text.value) {
                Ok(bytes) => Some(bytes),
                Err(message) => {
                    reader.wrong(&text.span, format!("`shard_size`: {message}"));
                    None
                }
            }),
        Some(value) if value.get_ref().is_integer() => reader.whole(table, "shard_size", 1),
        Some(value) => {
            let got = describe(reader.source, value);
            reader.wrong(
                &value.span(),
                format!("`shard_size`: expected a size such as \"5GB\" or a number of bytes, got {got}"),
            );
            None
        }
    };
    bytes.unwrap_or(DEFAULT_SHARD_BYTES)
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// Takes `folder/..` out of a path where that changes nothing, so that messages stay readable.
pub(super) fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut tidied = PathBuf::new();
    for component in path.components() {
        let plain_folder = matches!(tidied.components().next_back(), Some(Component::Normal(_)))
            && tidied.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        match component {
            Component::ParentDir if plain_folder => {
                tidied.pop();
            }
            Component::CurDir => {}
            other => tidied.push(other),
        }
    }
    if tidied.as_os_str().is_empty() { PathBuf::from(".") } else { tidied }
}
