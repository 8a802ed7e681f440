//! How a text is cut before pieces are joined. A GGUF file has no pattern, but the name of one that runtimes know.

use serde_json::Value as Json;

/// Llama 3's.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral Nemo's.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Patterns by the names that runtimes know them under.
const PATTERNS: [(&str, &str); 3] = [(LLAMA3, "llama-bpe"), (QWEN2, "qwen2"), (TEKKEN, "tekken")];

/// The steps of a part of tokenizer.json that may be a sequence of such; none where there is none.
pub(super) fn steps<'a>(part: &'a Json, list: &str) -> Vec<&'a Json> {
    match part["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => part[list].as_array().into_iter().flatten().flat_map(|step| steps(step, list)).collect(),
        Some(_) => vec![part],
    }
}

/// The name of how a byte-level vocabulary cuts a text; what has none is `default`, and is lost.
pub(super) fn name(tokenizer: &Json, lost: &mut Vec<String>) -> &'static str {
    let cuts = steps(&tokenizer["pre_tokenizer"], "pretokenizers");
    let name = known(&cuts).unwrap_or_else(|| {
        lost.push(
            "tokenizer.json cuts texts in a way that has no name in GGUF files: runtimes cut them in their default way"
                .to_owned(),
        );
        "default"
    });
    for step in steps(&tokenizer["normalizer"], "normalizers") {
        // What goes by that name brings a text to NFC first.
        if name != "qwen2" || step["type"] != "NFC" {
            lost.push(format!("a GGUF file cannot say that texts go through {} first", step["type"]));
        }
    }
    name
}

fn known(cuts: &[&Json]) -> Option<&'static str> {
    let (bytes, before) = cuts.split_last()?;
    let prefixed = bytes["add_prefix_space"].as_bool().unwrap_or(true);
    if bytes["type"] != "ByteLevel" || prefixed {
        return None;
    }
    match (before, bytes["use_regex"].as_bool().unwrap_or(true)) {
        ([], true) => Some("gpt-2"),
        ([digits], true) if digits["type"] == "Digits" && digits["individual_digits"] == true => Some("smollm"),
        ([split], false) if split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] != true => {
            let pattern = split["pattern"]["Regex"].as_str()?;
            PATTERNS.iter().find(|(known, _)| *known == pattern).map(|(_, name)| *name)
        }
        _ => None,
    }
}

/// Whether a vocabulary of pieces has a space put before a text.
pub(super) fn prepends_space(tokenizer: &Json, lost: &mut Vec<String>) -> bool {
    let mut prepends = false;
    for step in steps(&tokenizer["normalizer"], "normalizers") {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == "▁" => prepends = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == "▁" => {}
            other => lost
                .push(format!("a GGUF file cannot say that texts go through {} first", other.unwrap_or("something"))),
        }
    }
    for step in steps(&tokenizer["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str() {
            Some("Metaspace") if step["split"] != true => {
                let scheme = step["prepend_scheme"].as_str().unwrap_or("always");
                prepends |= scheme != "never" && step["add_prefix_space"] != false;
            }
            other => lost
                .push(format!("a GGUF file cannot say that texts are cut by {} first", other.unwrap_or("something"))),
        }
    }
    prepends
}
