//! Takes tensor names apart, once each: block index, expert index, and a key to look up in a family's table.

use std::collections::HashMap;

use super::families::Rule;

/// No model has as many blocks or experts; an index beyond is not taken for one.
const MAXIMUM_INDEX: usize = 1 << 16;

/// What the last word of a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// `.weight`, or the bare parameter that a table names (gpt-oss's `experts.down_proj`).
    Weight,
    /// `.bias`.
    Bias,
}

/// The rules of one place (a block, the trunk, the root), to be looked up by key.
#[derive(Debug)]
pub(super) struct RuleIndex(HashMap<&'static str, &'static Rule>);

impl RuleIndex {
    pub(super) fn new(rules: &[&'static [Rule]]) -> Self {
        Self(rules.iter().copied().flatten().map(|rule| (rule.pattern, rule)).collect())
    }

    /// The rule for `rest`, a tensor's name behind the place's prefix; with the index that stood for `#` in its pattern.
    /// `key` is scratch space.
    pub(super) fn find(&self, rest: &str, key: &mut String) -> Option<(&'static Rule, Option<usize>, Ending)> {
        let (module, ending) = split_ending(rest);
        let index = normalise(module, key);
        Some((self.0.get(key.as_str()).copied()?, index, ending))
    }
}

/// Splits `.weight` or `.bias` off (and what the oldest BERT files call them in norms).
fn split_ending(name: &str) -> (&str, Ending) {
    for (suffix, ending) in
        [(".weight", Ending::Weight), (".bias", Ending::Bias), (".gamma", Ending::Weight), (".beta", Ending::Bias)]
    {
        if let Some(module) = name.strip_suffix(suffix) {
            return (module, ending);
        }
    }
    (name, Ending::Weight)
}

/// Writes `module` to `key` with its first number as `#`, and returns that number.
fn normalise(module: &str, key: &mut String) -> Option<usize> {
    key.clear();
    let mut index = None;
    for (position, word) in module.split('.').enumerate() {
        if position > 0 {
            key.push('.');
        }
        match number(word) {
            Some(number) if index.is_none() => {
                index = Some(number);
                key.push('#');
            }
            _ => key.push_str(word),
        }
    }
    index
}

/// A plain index: digits only, no leading zero, below a bound that no model reaches.
pub(super) fn number(word: &str) -> Option<usize> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word.len() == 1 || !word.starts_with('0'));
    if plain { word.parse().ok().filter(|index| *index < MAXIMUM_INDEX) } else { None }
}

/// Splits a block's tensor name behind the words before the index: `12.mlp.up_proj.weight` gives 12 and the rest.
pub(super) fn split_block(name: &str) -> Option<(usize, &str)> {
    let (index, rest) = name.split_once('.')?;
    Some((number(index)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_apart() {
        let mut key = String::new();
        assert_eq!(normalise("mlp.experts.17.gate_proj", &mut key), Some(17));
        assert_eq!(key, "mlp.experts.#.gate_proj");
        assert_eq!(normalise("self_attn.q_proj", &mut key), None);
        assert_eq!(key, "self_attn.q_proj");
        assert_eq!(split_ending("a.weight"), ("a", Ending::Weight));
        assert_eq!(split_ending("a.beta"), ("a", Ending::Bias));
        assert_eq!(split_ending("a.sinks"), ("a.sinks", Ending::Weight));
        assert_eq!(split_block("12.mlp.up_proj.weight"), Some((12, "mlp.up_proj.weight")));
    }

    #[test]
    fn only_plain_small_numbers_are_indices() {
        for word in ["", "-1", "+1", "01", "1a", "65536", "99999999999999999999999999", "²"] {
            assert_eq!(number(word), None, "{word}");
        }
        assert_eq!((number("0"), number("65535")), (Some(0), Some(65535)));
    }
}
