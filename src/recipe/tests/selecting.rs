//! Selectors alone.

use super::*;

fn selected(selector: &str, model: &ModelMap) -> Vec<String> {
    let selector = Selector::parse(selector).unwrap();
    model.tensors.iter().filter(|tensor| selector.matches(tensor)).map(|tensor| tensor.name.clone()).collect()
}

fn count(selector: &str, model: &ModelMap) -> usize {
    selected(selector, model).len()
}

#[test]
fn roles_select_what_they_name() {
    for (selector, expected) in [
        ("linear", 15),
        ("head", 1),
        ("embedding", 1),
        ("norm", 3),
        ("attention", 8),
        ("attention.key", 2),
        ("attention.qkv", 0),
        ("mlp", 6),
        ("mlp.down", 2),
        ("expert", 0),
        ("block.1", 8),
        ("block.0-1", 16),
        ("block.1.mlp.down", 1),
        ("block.0-1.attention", 8),
        ("block.2", 0),
    ] {
        assert_eq!(count(selector, &llama()), expected, "{selector}");
        assert!(!Selector::parse(selector).unwrap().is_name(), "{selector}");
    }
}

#[test]
fn experts_are_mlps_with_an_index() {
    for (selector, expected) in [
        ("linear", 9),
        ("router", 1),
        ("other", 1),
        ("mlp", 9),
        ("mlp.down", 3),
        ("expert", 6),
        ("expert.gate", 2),
        ("expert.1", 3),
        ("expert.1.gate", 1),
        ("expert.2", 0),
        ("shared_expert", 3),
        ("shared_expert.up", 1),
    ] {
        assert_eq!(count(selector, &mixture()), expected, "{selector}");
    }
}

#[test]
fn globs_match_whole_names_and_cross_dots() {
    for (selector, expected) in [
        ("*.down_proj.weight", 2),
        ("*.down_proj", 2),
        ("model.layers.{0,1}.*", 16),
        ("model.layers.[01].mlp.*", 6),
        ("layers.*", 0),
        ("model.layers.?.mlp.up_proj.weight", 2),
    ] {
        assert_eq!(count(selector, &llama()), expected, "{selector}");
    }
}

#[test]
fn regular_expressions_match_anywhere() {
    assert_eq!(count("/[qk]_proj/", &llama()), 4);
    assert_eq!(count("/^model\\.norm/", &llama()), 1);
    assert_eq!(count("/^proj/", &llama()), 0);
}

#[test]
fn names_select_a_tensor_a_module_or_all_inside() {
    assert_eq!(selected("lm_head", &llama()), ["lm_head.weight"]);
    assert_eq!(selected("lm_head.weight", &llama()), ["lm_head.weight"]);
    assert_eq!(count("model.layers.1.mlp", &llama()), 3);
    assert_eq!(count("model.layers.1.ml", &llama()), 0);
    assert!(Selector::parse("attention.keys").unwrap().is_name());
}

#[test]
fn selectors_that_can_select_nothing_are_refused() {
    for (selector, message) in [
        ("", "an empty selector; expected a role, a glob, a /regular expression/ or a name"),
        ("/(/", "not a regular expression: unclosed group"),
        ("[a", "not a glob: unclosed character class; missing ']'"),
        ("block.3-1", "blocks 3-1 end before they begin; expected block.1-3"),
    ] {
        assert_eq!(Selector::parse(selector).unwrap_err().to_string(), message);
    }
    assert_eq!(Selector::parse(&"a".repeat(2000)).unwrap_err(), SelectorError::TooLong { bytes: 2000 });
    assert!(Selector::parse("/(a{1000}){1000}/").is_err(), "a regular expression that compiles to megabytes");
}

#[test]
fn every_word_offered_as_help_is_a_role() {
    for word in selector::role_words() {
        assert!(!Selector::parse(&word).unwrap().is_name(), "{word}");
    }
}
