//! What the file says about the tokenizer, from `tokenizer.json` and `tokenizer_config.json`.

mod special;
mod splits;

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value as Json;

use self::special::Special;
use crate::checkpoint::{
    Checkpoint,
    gguf::{Array, Value},
};

/// Types of tokens, as llama.cpp numbers them.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// The two kinds of vocabularies that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Byte-level BPE.
    ByteLevel,
    /// SentencePiece-like BPE: `▁` for a space, bytes where no piece fits.
    Pieces,
}

/// The key-values of a model's tokenizer. What they cannot say is added to `lost`; without a tokenizer all of it.
pub(super) fn entries(
    checkpoint: &Checkpoint,
    vocabulary: usize,
    lost: &mut Vec<String>,
) -> Result<Vec<(String, Value)>, String> {
    let tokenizer = read_json(checkpoint, "tokenizer.json")?;
    let Some(tokenizer) = tokenizer.filter(|tokenizer| tokenizer["model"].is_object()) else {
        lost.push("the model has no tokenizer.json with a model in it, so the file holds no tokenizer".to_owned());
        return Ok(vec![entry("model", Value::Text("none".to_owned()))]);
    };
    let config = read_json(checkpoint, "tokenizer_config.json")?.unwrap_or_default();
    let template = companion(checkpoint, "chat_template.jinja").map(read_text).transpose()?;
    of_json(&tokenizer, &config, template, checkpoint.config().map(|config| &config.value), vocabulary, lost)
}

fn of_json(
    tokenizer: &Json,
    config: &Json,
    template: Option<String>,
    model_config: Option<&Json>,
    vocabulary: usize,
    lost: &mut Vec<String>,
) -> Result<Vec<(String, Value)>, String> {
    let family = family(tokenizer)?;
    let tokens = Tokens::of(tokenizer, family, vocabulary)?;
    let special = Special::of(tokenizer, config, model_config, &tokens.ids, lost);
    let text = |text: &str| Value::Text(text.to_owned());
    let mut entries = match family {
        Family::ByteLevel => {
            let pre = splits::name(tokenizer, lost);
            vec![entry("model", text("gpt2")), entry("pre", text(pre))]
        }
        Family::Pieces => vec![entry("model", text("llama")), entry("pre", text("default"))],
    };
    entries.push(entry("tokens", Value::Array(Array::Texts(tokens.texts))));
    if family == Family::Pieces {
        entries.push(entry("scores", Value::Array(Array::Floats(tokens.scores))));
    }
    entries.push(entry("token_type", Value::Array(Array::Signed(tokens.kinds))));
    entries.push(entry("merges", Value::Array(Array::Texts(tokens.merges))));
    entries.extend(special.entries().into_iter().map(|(key, value)| entry(key, value)));
    if family == Family::Pieces {
        entries.push(entry("add_space_prefix", Value::Bool(splits::prepends_space(tokenizer, lost))));
    }
    entries.extend(templates(config, template, lost));
    Ok(entries)
}

fn entry(key: &str, value: Value) -> (String, Value) {
    (format!("tokenizer.ggml.{key}"), value)
}

/// The path of a small file beside the weights.
fn companion<'a>(checkpoint: &'a Checkpoint, name: &str) -> Option<&'a Path> {
    let named = |path: &&std::path::PathBuf| path.file_name().is_some_and(|found| found == name);
    checkpoint.companions().iter().find(named).map(std::path::PathBuf::as_path)
}

fn read_text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn read_json(checkpoint: &Checkpoint, name: &str) -> Result<Option<Json>, String> {
    let Some(path) = companion(checkpoint, name) else { return Ok(None) };
    let parsed = serde_json::from_str(&read_text(path)?);
    parsed.map(Some).map_err(|error| format!("{} is not JSON: {error}", path.display()))
}

/// The kind of vocabulary; an error names one that is not written.
fn family(tokenizer: &Json) -> Result<Family, String> {
    let model = &tokenizer["model"];
    let kind = model["type"].as_str().unwrap_or("of no type");
    if kind != "BPE" {
        return Err(format!("layout `gguf` writes tokenizers of the type BPE; tokenizer.json is {kind}"));
    }
    if model["byte_fallback"].as_bool() == Some(true) {
        return Ok(Family::Pieces);
    }
    let steps = splits::steps(&tokenizer["pre_tokenizer"], "pretokenizers");
    if steps.iter().any(|step| step["type"] == "ByteLevel") {
        return Ok(Family::ByteLevel);
    }
    Err("layout `gguf` writes BPE on bytes, or with bytes where no piece fits; tokenizer.json is neither".to_owned())
}

/// The vocabulary, by number.
struct Tokens {
    ids: BTreeMap<String, usize>,
    texts: Vec<String>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
}

impl Tokens {
    fn of(tokenizer: &Json, family: Family, vocabulary: usize) -> Result<Self, String> {
        let model = &tokenizer["model"];
        let wrong = |what: String| format!("tokenizer.json: {what}");
        let Json::Object(listed) = &model["vocab"] else { return Err(wrong("has no `model.vocab`".to_owned())) };
        let mut texts: Vec<Option<String>> = vec![None; vocabulary];
        let mut kinds = vec![kind::UNUSED; vocabulary];
        let mut ids = BTreeMap::new();
        let unknown = model["unk_token"].as_str();
        for (text, id) in listed {
            let place = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < vocabulary);
            let place = place.ok_or_else(|| wrong(format!("token {text:?} has the number {id} of {vocabulary}")))?;
            if let Some(other) = texts[place].replace(text.clone()) {
                return Err(wrong(format!("{text:?} and {other:?} have the number {place}")));
            }
            kinds[place] = match family {
                Family::Pieces if is_byte(text) => kind::BYTE,
                Family::Pieces if unknown == Some(text) => kind::UNKNOWN,
                _ => kind::NORMAL,
            };
            ids.insert(text.clone(), place);
        }
        for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default();
            let place = token["id"].as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < vocabulary);
            let place = place
                .ok_or_else(|| wrong(format!("added token {text:?} has the number {} of {vocabulary}", token["id"])))?;
            match &texts[place] {
                Some(other) if other != text => {
                    return Err(wrong(format!("{text:?} and {other:?} have the number {place}")));
                }
                _ => texts[place] = Some(text.to_owned()),
            }
            ids.insert(text.to_owned(), place);
            if kinds[place] != kind::UNKNOWN {
                kinds[place] =
                    if token["special"].as_bool() == Some(true) { kind::CONTROL } else { kind::USER_DEFINED };
            }
        }
        let merges = merges(model)?;
        let scores = match family {
            Family::ByteLevel => Vec::new(),
            Family::Pieces => scores(&merges, &ids, &kinds)?,
        };
        let named = |(id, text): (usize, Option<String>)| text.unwrap_or_else(|| format!("[PAD{id}]"));
        let texts = texts.into_iter().enumerate().map(named).collect();
        let merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        Ok(Self { ids, texts, kinds, scores, merges })
    }
}

/// Whether a piece stands for one byte: `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The merges, which stand as one text or as two.
fn merges(model: &Json) -> Result<Vec<(String, String)>, String> {
    let mut merges = Vec::new();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let pair = match merge {
            Json::String(text) => text.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        let (left, right) = pair.ok_or_else(|| format!("tokenizer.json: {merge} is no merge"))?;
        if [left, right].iter().any(|part| part.is_empty() || part.contains(' ')) {
            return Err(format!("tokenizer.json: the merge of {left:?} and {right:?} cannot be written in a GGUF file"));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// Scores under which llama.cpp, which joins the pair whose piece has the largest score, makes the same pieces as the
/// merges in their order: minus the piece's number, counted from the first normal one. That holds where pieces are
/// numbered as they are merged, as SentencePiece numbers them.
fn scores(merges: &[(String, String)], ids: &BTreeMap<String, usize>, kinds: &[i32]) -> Result<Vec<f32>, String> {
    let mut last = 0;
    for (left, right) in merges {
        let piece = format!("{left}{right}");
        let Some(&id) = ids.get(&piece) else {
            return Err(format!("tokenizer.json: {left:?} and {right:?} are merged into {piece:?}, which is no token"));
        };
        if id < last {
            return Err(format!(
                "tokenizer.json: the piece {piece:?} is merged later than its number {id} says; a GGUF file orders \
                 merges of SentencePiece vocabularies by numbers alone"
            ));
        }
        last = id;
    }
    let first = kinds.iter().position(|&kind| kind == kind::NORMAL).unwrap_or(0);
    let score = |(id, &kind): (usize, &i32)| match kind {
        kind::NORMAL => -((id - first) as f32),
        _ => 0.0,
    };
    Ok(kinds.iter().enumerate().map(score).collect())
}

/// Chat templates: the one, or several by name.
fn templates(config: &Json, file: Option<String>, lost: &mut Vec<String>) -> Vec<(String, Value)> {
    const KEY: &str = "tokenizer.chat_template";
    if let Some(text) = file.or_else(|| config["chat_template"].as_str().map(str::to_owned)) {
        return vec![(KEY.to_owned(), Value::Text(text))];
    }
    let (mut entries, mut names) = (Vec::new(), Vec::new());
    for template in config["chat_template"].as_array().into_iter().flatten() {
        let (Some(name), Some(text)) = (template["name"].as_str(), template["template"].as_str()) else { continue };
        if name == "default" {
            entries.insert(0, (KEY.to_owned(), Value::Text(text.to_owned())));
        } else if name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
            entries.push((format!("{KEY}.{name}"), Value::Text(text.to_owned())));
            names.push(name.to_owned());
        } else {
            lost.push(format!("the chat template {name:?} has a name that a GGUF file cannot hold"));
        }
    }
    if !names.is_empty() {
        entries.push(("tokenizer.chat_templates".to_owned(), Value::Array(Array::Texts(names))));
    }
    entries
}

#[cfg(test)]
mod tests;
