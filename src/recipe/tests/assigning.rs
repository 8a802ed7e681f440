//! Rules against models: union and subtraction, overrides, later rules, the grammar of passes.

use super::*;

const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";

fn failure(rules: &str, model: &ModelMap) -> Vec<Diagnostic> {
    match recipe(rules).assign(model) {
        Err(RecipeError::Wrong { diagnostics, omitted: 0 }) => diagnostics,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rule_takes_linears_without_the_head_by_default() {
    let names = assigned(&recipe("[[pass]]\nuse = \"rtn\""), &llama());
    assert_eq!(names.len(), 14);
    assert!(names.iter().all(|(rule, name)| *rule == 0 && name.contains("_proj")));
}

#[test]
fn select_is_a_union_and_skip_subtracts() {
    let rules = "[[pass]]\nuse = \"rtn\"\nselect = [\"mlp.down\", \"*.up_proj\", \"mlp.down\"]\nskip = [\"block.1\"]";
    assert_eq!(assigned(&recipe(rules), &llama()), [(0, UP.to_owned()), (0, DOWN.to_owned())]);
}

#[test]
fn the_default_skip_yields_to_what_select_asks_for() {
    for (select, head) in [
        ("[\"head\"]", true),
        ("[\"linear\", \"head\"]", true),
        ("\"lm_head\"", true),
        ("[\"linear\"]", false),
        ("[\"*\"]", false),
    ] {
        let names = assigned(&recipe(&format!("[[pass]]\nuse = \"rtn\"\nselect = {select}")), &llama());
        assert_eq!(names.iter().any(|(_, name)| name == "lm_head.weight"), head, "{select}");
    }
}

#[test]
fn a_written_skip_replaces_the_default_and_never_yields() {
    let names = assigned(&recipe("[[pass]]\nuse = \"rtn\"\nskip = []"), &llama());
    assert_eq!(names.len(), 15);
    let rules = "[[pass]]\nuse = \"rtn\"\nselect = [\"linear\", \"head\"]\nskip = [\"head\"]";
    assert_eq!(assigned(&recipe(rules), &llama()).len(), 14);
}

#[test]
fn a_glob_over_a_block_leaves_its_norms_alone() {
    let names = assigned(&recipe("[[pass]]\nuse = \"rtn\"\nselect = [\"model.layers.0.*\"]"), &llama());
    assert_eq!(names.len(), 7);
}

#[test]
fn embeddings_and_other_tensors_are_taken_when_asked_for() {
    let rules = "[[pass]]\nuse = \"rtn\"\nselect = [\"embedding\"]";
    assert_eq!(assigned(&recipe(rules), &llama()).len(), 1);
}

#[test]
fn outside_of_the_language_model_patterns_take_weights_of_linears_and_names_take_all() {
    let names = ["visual.0.qkv.weight", "visual.0.qkv.bias", "visual.0.norm1.weight", "visual.patch_embed.proj.weight"];
    let tower = model(names.map(|name| tensor(name, Role::Other)).into());
    let taken = |select: &str| {
        let names = assigned(&recipe(&format!("[[pass]]\nuse = \"rtn\"\nselect = [\"{select}\"]")), &tower);
        names.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    for pattern in ["visual.*", "/^visual/", "visual"] {
        assert_eq!(taken(pattern), ["visual.0.qkv.weight"], "{pattern}");
    }
    assert_eq!(taken("visual.patch_embed.proj.weight"), ["visual.patch_embed.proj.weight"]);
    assert_eq!(
        failure("[[pass]]\nuse = \"rtn\"\nselect = [\"other\"]", &tower)[0].message,
        "this rule of pass `rtn` selects no matrix"
    );
}

#[test]
fn later_overrides_win_leaf_by_leaf() {
    let rules = "[[pass]]\nuse = \"int4\"\ngroup_size = 64\n\
        [[pass.override]]\nselect = [\"mlp\"]\nbits = 6\nsymmetric = false\n\
        [[pass.override]]\nselect = [\"mlp.down\"]\nskip = [\"block.1\"]\nbits = 8\n";
    let recipe = recipe(rules);
    assert_eq!(bits(&recipe, &llama(), DOWN), Some(8));
    assert_eq!(bits(&recipe, &llama(), UP), Some(6));
    assert_eq!(bits(&recipe, &llama(), "model.layers.1.mlp.down_proj.weight"), Some(6));
    assert_eq!(bits(&recipe, &llama(), "model.layers.0.self_attn.q_proj.weight"), Some(4));
    let assignments = recipe.assign(&llama()).unwrap();
    let assigned = assignments.iter().find(|assignment| assignment.tensor == DOWN).unwrap();
    let down = assigned.settings.number().unwrap();
    assert!(!down.symmetric, "set by the first override, not touched by the second");
    assert_eq!(down.sharing, rtn::Sharing::Group { group_size: 64 }, "set by the rule");
}

#[test]
fn a_later_encoding_rule_replaces_an_earlier_one() {
    let rules = "[[pass]]\nuse = \"int4\"\nsymmetric = false\n[[pass]]\nuse = \"int8\"\nselect = [\"mlp.down\"]";
    let recipe = recipe(rules);
    let names = assigned(&recipe, &llama());
    assert_eq!(names.len(), 14, "one encoding a tensor");
    assert!(names.iter().all(|(rule, name)| (*rule == 1) == name.contains("down")), "{names:?}");
    assert!(names.is_sorted_by_key(|(rule, _)| *rule));
    assert_eq!(bits(&recipe, &llama(), DOWN), Some(8));
    let settings = recipe.assign(&llama()).unwrap().pop().unwrap().settings;
    let down = settings.number().unwrap();
    assert!(down.symmetric, "nothing of the replaced rule is left");
}

#[test]
fn transforms_add_up_and_come_before_encodings() {
    let rules = "[[pass]]\nuse = \"smooth\"\nselect = [\"mlp\"]\n[[pass]]\nuse = \"smooth\"\nselect = [\"mlp.up\"]\n[[pass]]\nuse = \"rtn\"";
    let count = |rule| assigned(&recipe(rules), &llama()).iter().filter(|(index, _)| *index == rule).count();
    assert_eq!([count(0), count(1), count(2)], [6, 2, 14]);
}

#[test]
fn a_transform_after_an_encoding_names_both_lines() {
    let rules =
        "[[pass]]\nuse = \"rtn\"\nselect = [\"mlp\"]\n[[pass]]\nuse = \"smooth\"\nselect = [\"mlp.up\", \"attention\"]";
    let found = failure(rules, &llama());
    assert_eq!(
        found[0].to_string(),
        "`smooth` on line 7 transforms what `rtn` on line 4 has encoded\n --> r.toml:8:7\n  |\n8 | use = \"smooth\"\n  |       ^^^^^^^^\n  \
         = both take `model.layers.0.mlp.up_proj.weight` and 1 more\n  \
         = help: an encoding comes last for a tensor: write the transform before it"
    );
}

#[test]
fn a_rule_that_selects_nothing_says_what_there_is() {
    let found = failure("[[pass]]\nuse = \"rtn\"\nselect = [\"expert\"]", &llama());
    assert_eq!(
        found[0].to_string(),
        "this rule of pass `rtn` selects nothing in the model\n --> r.toml:6:10\n  |\n6 | select = [\"expert\"]\n  |          ^^^^^^^^^^\n  \
         = the model has attention.key (2), attention.output (2), attention.query (2), attention.value (2), \
         embedding (1), head (1), mlp.down (2), mlp.gate (2), mlp.up (2), norm (3)\n  \
         = help: write `optional = true` in the rule if that is fine"
    );
    let optional = "[[pass]]\nuse = \"rtn\"\nselect = [\"expert\"]\noptional = true";
    assert_eq!(assigned(&recipe(optional), &llama()), []);
}

#[test]
fn a_rule_that_skips_all_and_one_that_takes_no_matrix_say_so() {
    let found = failure("[[pass]]\nuse = \"rtn\"\nselect = [\"mlp\"]\nskip = [\"linear\"]", &llama());
    assert_eq!(found[0].message, "this rule of pass `rtn` skips all 6 tensors that it selects");
    let found = failure("[[pass]]\nuse = \"rtn\"\nselect = [\"norm\"]", &llama());
    assert_eq!(found[0].message, "this rule of pass `rtn` selects no matrix");
    assert_eq!(
        found[0].notes,
        ["it selects 3 tensors that are no matrices, such as `model.layers.0.input_layernorm.weight` (norm)"]
    );
}

#[test]
fn an_override_that_selects_nothing_of_its_rule_is_an_error() {
    let rules =
        "[[pass]]\nuse = \"rtn\"\nselect = [\"attention\"]\n[[pass.override]]\nselect = [\"mlp.down\"]\nbits = 8\n";
    let found = failure(rules, &llama());
    assert_eq!(found[0].message, "this override selects nothing of what its rule takes");
    assert_eq!(
        found[0].notes,
        ["the rule takes attention.key (2), attention.output (2), attention.query (2), attention.value (2)"]
    );
    assert_eq!(assigned(&recipe(&format!("{rules}optional = true")), &llama()).len(), 8);
}

#[test]
fn unknown_words_get_the_nearest_role_or_name() {
    for (word, help) in [
        ("atention.key", "did you mean `attention.key`?"),
        ("liner", "did you mean `linear`?"),
        ("lm_haed", "did you mean `lm_head`?"),
        ("q_proj", "did you mean `*.q_proj`, all modules of that name?"),
        ("model.layers.0.mlp.dwon_proj", "did you mean `model.layers.0.mlp.down_proj`?"),
    ] {
        for key in ["select", "skip"] {
            let found = failure(&format!("[[pass]]\nuse = \"rtn\"\n{key} = [\"{word}\"]"), &llama());
            assert_eq!(found.len(), 1);
            assert_eq!(
                found[0].message,
                format!("{word:?} is neither a role nor the name of a tensor or module in the model")
            );
            assert_eq!(found[0].help.as_deref(), Some(help), "{word}");
        }
    }
}

#[test]
fn the_head_may_be_skipped_by_name_where_it_is_tied() {
    let mut tied = llama();
    tied.tensors.retain(|tensor| tensor.role != Role::Head);
    assert_eq!(assigned(&recipe("[[pass]]\nuse = \"rtn\"\nskip = [\"lm_head\"]"), &tied).len(), 14);
}

#[test]
fn fused_projections_are_pointed_out_both_ways() {
    let fused = model(vec![
        tensor("h.0.qkv_proj.weight", Role::Attention("qkv")),
        tensor("h.0.gate_up_proj.weight", Role::Mlp("gate_up")),
    ]);
    let help = |select: &str, model: &ModelMap| {
        failure(&format!("[[pass]]\nuse = \"rtn\"\nselect = [\"{select}\"]"), model)[0].help.clone().unwrap()
    };
    assert_eq!(help("attention.key", &fused), "the model stores this fused with others: select `attention.qkv`");
    assert_eq!(help("block.0.mlp.up", &fused), "the model stores this fused with others: select `mlp.gate_up`");
    assert_eq!(
        help("attention.qkv", &llama()),
        "the model does not fuse these: select [\"attention.query\", \"attention.key\", \"attention.value\"]"
    );
}

#[test]
fn settings_that_clash_only_together_are_shown_in_the_last_override() {
    let rules = "[[pass]]\nuse = \"rtn\"\n\
        [[pass.override]]\nselect = [\"mlp\"]\nrange = \"hqq\"\n\
        [[pass.override]]\nselect = [\"mlp.down\"]\nsymmetric = true\n";
    let found = failure(rules, &llama());
    assert_eq!((found[0].place.line, found[0].place.column), (11, 13), "{}", found[0]);
}
