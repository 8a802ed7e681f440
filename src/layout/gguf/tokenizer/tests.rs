use serde_json::json;

use super::*;

fn value<'a>(entries: &'a [(String, Value)], key: &str) -> &'a Value {
    let key = format!("tokenizer.ggml.{key}");
    &entries.iter().find(|(found, _)| *found == key).unwrap_or_else(|| panic!("{key}")).1
}

fn texts(entries: &[(String, Value)], key: &str) -> Vec<String> {
    let Value::Array(Array::Texts(texts)) = value(entries, key) else { panic!("{key}") };
    texts.clone()
}

fn pieces() -> Json {
    json!({
        "model": {
            "type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "a": 4, "b": 5, "▁": 6, "ab": 7, "▁ab": 8},
            "merges": ["a b", ["▁", "ab"]],
        },
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
            {"id": 2, "content": "</s>", "special": true}, {"id": 9, "content": "<tool>", "special": false},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ]},
    })
}

/// Metadata, and what is named as lost.
type Read = (Vec<(String, Value)>, Vec<String>);

fn read(tokenizer: &Json, vocabulary: usize) -> Result<Read, String> {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    let mut lost = Vec::new();
    let entries = of_json(tokenizer, &config, None, None, vocabulary, &mut lost)?;
    Ok((entries, lost))
}

#[test]
fn pieces_get_types_scores_and_special_numbers() {
    let (entries, lost) = read(&pieces(), 11).unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    let tokens = texts(&entries, "tokens");
    assert_eq!((tokens[8].as_str(), tokens[9].as_str(), tokens[10].as_str()), ("▁ab", "<tool>", "[PAD10]"));
    assert_eq!(*value(&entries, "token_type"), Value::Array(Array::Signed(vec![2, 3, 3, 6, 1, 1, 1, 1, 1, 4, 5])));
    let scores = vec![0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, 0.0, 0.0];
    assert_eq!(*value(&entries, "scores"), Value::Array(Array::Floats(scores)));
    assert_eq!(texts(&entries, "merges"), ["a b", "▁ ab"]);
    for (key, id) in [("bos_token_id", 1), ("eos_token_id", 2), ("unknown_token_id", 0)] {
        assert_eq!(*value(&entries, key), Value::Unsigned(id), "{key}");
    }
    for (key, yes) in [("add_bos_token", true), ("add_eos_token", false), ("add_space_prefix", true)] {
        assert_eq!(*value(&entries, key), Value::Bool(yes), "{key}");
    }
}

#[test]
fn byte_level_vocabularies_are_named_by_how_they_cut() {
    let with = |cut: Json| {
        let mut tokenizer = pieces();
        tokenizer["model"]["byte_fallback"] = false.into();
        tokenizer["normalizer"] = Json::Null;
        tokenizer["pre_tokenizer"] = cut;
        read(&tokenizer, 11).unwrap()
    };
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
    let split = |pattern: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let digits = json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]});
    for (cut, name, known) in [
        (bytes(true), "gpt-2", true),
        (split(r"\p{N}"), "default", false),
        (split(splits_of("llama-bpe")), "llama-bpe", true),
        (split(splits_of("qwen2")), "qwen2", true),
        (digits, "smollm", true),
    ] {
        let (entries, lost) = with(cut);
        assert_eq!(*value(&entries, "model"), Value::Text("gpt2".into()));
        assert_eq!(*value(&entries, "pre"), Value::Text(name.into()));
        assert_eq!(lost.is_empty(), known, "{name}: {lost:?}");
        assert!(!entries.iter().any(|(key, _)| key.ends_with("scores")));
    }
}

fn splits_of(name: &str) -> &'static str {
    match name {
        "qwen2" => {
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        }
        _ => {
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        }
    }
}

#[test]
fn what_cannot_be_written_is_refused_or_named() {
    let changed = |change: &dyn Fn(&mut Json)| {
        let mut tokenizer = pieces();
        change(&mut tokenizer);
        read(&tokenizer, 11)
    };
    let refused = |change: &dyn Fn(&mut Json)| changed(change).unwrap_err();
    assert!(refused(&|json| json["model"]["type"] = "Unigram".into()).contains("Unigram"));
    assert!(refused(&|json| json["model"]["byte_fallback"] = false.into()).contains("neither"));
    assert!(refused(&|json| json["model"]["merges"][1] = json!(["a", "▁"])).contains("no token"));
    assert!(refused(&|json| json["model"]["merges"] = json!(["▁ ab", "a b"])).contains("merged later"));
    assert!(refused(&|json| json["model"]["vocab"]["a"] = 11.into()).contains("11 of 11"));
    assert!(refused(&|json| json["model"]["vocab"]["a"] = 5.into()).contains("have the number 5"));
    assert!(refused(&|json| json["added_tokens"][3]["id"] = 4.into()).contains("have the number 4"));
    let lost = |change: &dyn Fn(&mut Json)| changed(change).unwrap().1.join("; ");
    assert!(lost(&|json| json["normalizer"] = json!({"type": "NFKC"})).contains("NFKC"));
    assert!(lost(&|json| json["post_processor"]["single"][0]["SpecialToken"]["id"] = "a".into()).contains("Template"));
    assert!(lost(&|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})).contains("Whitespace"));
}

#[test]
fn several_chat_templates_go_by_name() {
    let mut lost = Vec::new();
    let config = json!({"chat_template": [
        {"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}, {"name": "Ä", "template": "X"},
    ]});
    let entries = templates(&config, None, &mut lost);
    let keys: Vec<_> = entries.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["tokenizer.chat_template", "tokenizer.chat_template.tool_use", "tokenizer.chat_templates"]);
    assert_eq!(lost.len(), 1);
    let one = templates(&config, Some("file".to_owned()), &mut Vec::new());
    assert_eq!(one, [("tokenizer.chat_template".to_owned(), Value::Text("file".to_owned()))]);
}
