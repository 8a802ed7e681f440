//! Tokens with a task, and which are put around a text.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::splits::steps;
use crate::checkpoint::gguf::Value;

/// Numbers of tokens with a task.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Special {
    bos: Option<usize>,
    eos: Option<usize>,
    unknown: Option<usize>,
    padding: Option<usize>,
    add_bos: bool,
    add_eos: bool,
}

impl Special {
    pub(super) fn of(
        tokenizer: &Json,
        config: &Json,
        model_config: Option<&Json>,
        ids: &BTreeMap<String, usize>,
        lost: &mut Vec<String>,
    ) -> Self {
        let nothing = Json::Null;
        let model_config = model_config.unwrap_or(&nothing);
        // The tokenizer's own word first; a model's configuration may have several.
        let find = |name: &str| {
            let text = config[name].as_str().or_else(|| config[name]["content"].as_str());
            let by_text = text.and_then(|text| ids.get(text).copied());
            by_text.or_else(|| {
                let id = &model_config[format!("{name}_id")];
                let id = id.as_u64().or_else(|| id[0].as_u64())?;
                usize::try_from(id).ok().filter(|id| ids.values().any(|known| known == id))
            })
        };
        let unknown = tokenizer["model"]["unk_token"].as_str().and_then(|text| ids.get(text).copied());
        let mut special = Self {
            bos: find("bos_token"),
            eos: find("eos_token"),
            unknown: find("unk_token").or(unknown),
            padding: find("pad_token"),
            add_bos: false,
            add_eos: false,
        };
        for step in steps(&tokenizer["post_processor"], "processors") {
            match step["type"].as_str() {
                // It moves offsets, not tokens.
                Some("ByteLevel") => {}
                Some("TemplateProcessing") if special.take_template(step, ids) => {}
                other => lost.push(format!(
                    "a GGUF file cannot say what tokenizer.json's post-processor {} puts around a text",
                    other.unwrap_or("of no type")
                )),
            }
        }
        special
    }

    /// Takes a template of the form `[bos] text [eos]`; says whether it is one.
    fn take_template(&mut self, step: &Json, ids: &BTreeMap<String, usize>) -> bool {
        let Some(single) = step["single"].as_array() else { return false };
        let Some(text) = single.iter().position(|part| part["Sequence"].is_object()) else { return false };
        let id = |part: &Json| part["SpecialToken"]["id"].as_str().and_then(|text| ids.get(text).copied());
        let (before, after) = (&single[..text], &single[text + 1..]);
        let fits = |parts: &[Json], token: Option<usize>| match parts {
            [] => Some(false),
            [part] => (token.is_some() && id(part) == token).then_some(true),
            _ => None,
        };
        let (Some(bos), Some(eos)) = (fits(before, self.bos), fits(after, self.eos)) else { return false };
        (self.add_bos, self.add_eos) = (bos, eos);
        true
    }

    pub(super) fn entries(&self) -> Vec<(&'static str, Value)> {
        let numbers = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("unknown_token_id", self.unknown),
            ("padding_token_id", self.padding),
        ];
        let numbers = numbers.into_iter().filter_map(|(key, id)| Some((key, Value::Unsigned(id? as u64))));
        let added = [("add_bos_token", self.add_bos), ("add_eos_token", self.add_eos)];
        numbers.chain(added.map(|(key, yes)| (key, Value::Bool(yes)))).collect()
    }
}
