//! The model map over configs and names that mean harm, and its speed.

use std::time::Instant;

use bantam::model::{ModelMap, NamedShape, Role};
use serde_json::{Value, json};

fn tensor(name: &str, shape: &[usize]) -> NamedShape {
    NamedShape { name: name.to_owned(), shape: shape.to_vec() }
}

/// One Phi-3 block: the family whose map depends most on the config's numbers.
fn phi3() -> Vec<NamedShape> {
    vec![
        tensor("lm_head.weight", &[64, 32]),
        tensor("model.embed_tokens.weight", &[64, 32]),
        tensor("model.layers.0.input_layernorm.weight", &[32]),
        tensor("model.layers.0.mlp.gate_up_proj.weight", &[96, 32]),
        tensor("model.layers.0.self_attn.qkv_proj.weight", &[64, 32]),
    ]
}

#[test]
fn hostile_configs_cost_a_note_and_nothing_more() {
    let hostile = [
        json!(0),
        json!(-1),
        json!(0.5),
        json!(1e308),
        json!(u64::MAX),
        json!("32"),
        json!([]),
        json!({}),
        json!(true),
        Value::Null,
    ];
    let good = json!({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_size": 32, "head_dim": 8, "num_hidden_layers": 1,
        "tie_word_embeddings": false, "text_config": null});
    let expected = ModelMap::new(Some(&good), &phi3());
    assert_eq!(expected.notes, Vec::<String>::new());
    let fused = &expected.tensors[4].matrix.as_ref().expect("a linear").fused;
    assert_eq!(*fused, [("query", 32), ("key", 16), ("value", 16)]);
    for key in good.as_object().expect("an object").keys() {
        for value in &hostile {
            let mut config = good.clone();
            config[key] = value.clone();
            let map = ModelMap::new(Some(&config), &phi3());
            assert_eq!(map.tensors.len(), 5);
            for tensor in &map.tensors {
                let Some(matrix) = &tensor.matrix else { continue };
                let parts: usize = matrix.fused.iter().map(|(_, rows)| rows).sum();
                assert!(matrix.fused.is_empty() || parts == matrix.rows, "{key} = {value}: {matrix:?}");
            }
            let counted = ["num_attention_heads", "num_key_value_heads", "num_hidden_layers"].contains(&key.as_str());
            if counted && !value.is_null() {
                let said = map
                    .notes
                    .iter()
                    .any(|note| note.contains(key) || note.contains("cannot be cut") || note.contains("blocks"));
                assert!(said, "{key} = {value}: {:?}", map.notes);
            }
        }
    }
    for value in &hostile {
        assert_eq!(ModelMap::new(Some(value), &phi3()).tensors.len(), 5, "{value}");
    }
}

#[test]
fn hostile_names_and_shapes_are_left_alone() {
    let config = json!({"model_type": "llama"});
    let mut tensors = vec![
        tensor("model.layers.0.self_attn.q_proj.weight", &[32, 32]),
        tensor("model.layers.1.self_attn.q_proj.weight", &[32]),
        tensor("model.layers.2.self_attn.q_proj.weight", &[0, 32]),
        tensor("model.layers.3.self_attn.q_proj.weight", &[2, 3, 4]),
        tensor("model.layers.4.self_attn.q_proj.weight", &[usize::MAX, usize::MAX]),
        tensor("model.layers.5.self_attn.mystery.weight", &[8, 8]),
    ];
    for name in [
        "",
        ".",
        "model.layers.",
        "model.layers..weight",
        "model.layers.18446744073709551615.self_attn.q_proj.weight",
        "model.layers.99999999999999999999999.self_attn.q_proj.weight",
        "model.layers.-1.self_attn.q_proj.weight",
        "model.layers.0",
        "модель.layers.0.weight",
    ] {
        tensors.push(tensor(name, &[8, 8]));
    }
    let map = ModelMap::new(Some(&config), &tensors);
    assert!(map.known);
    assert_eq!(map.blocks, 5, "an index beyond reason is no block");
    for (index, mapped) in map.tensors.iter().enumerate() {
        assert_eq!(mapped.matrix.is_some(), index == 0 || index == 4, "{}", mapped.name);
    }
    assert!(map.tensors[6..].iter().all(|tensor| tensor.role == Role::Other && tensor.block.is_none()));
    assert!(
        map.notes.iter().any(|note| note.starts_with("3 tensors named like linears")
            && note.contains("`model.layers.1.self_attn.q_proj.weight` [32]")),
        "{:?}",
        map.notes
    );
    assert!(
        map.notes.iter().any(|note| note.starts_with("1 matrix in the blocks") && note.contains("mystery")),
        "{:?}",
        map.notes
    );
    assert_eq!(ModelMap::new(None, &[]).tensors, []);
}

#[test]
fn a_head_stored_beside_a_tied_embedding_is_left_alone() {
    let tensors = [
        tensor("lm_head.weight", &[64, 32]),
        tensor("model.embed_tokens.weight", &[64, 32]),
        tensor("model.layers.0.self_attn.q_proj.weight", &[32, 32]),
    ];
    for (config, tied, has_matrix) in [
        (json!({"model_type": "llama", "tie_word_embeddings": true}), true, false),
        (json!({"model_type": "llama", "tie_word_embeddings": false}), false, true),
        (json!({"model_type": "llama"}), false, true),
        (json!({"model_type": "gemma"}), true, false),
        (json!({"model_type": "llama", "tie_word_embeddings": "true"}), false, true),
    ] {
        let map = ModelMap::new(Some(&config), &tensors);
        assert_eq!(map.tied_embeddings, tied, "{config}");
        assert_eq!(map.tensors[0].role, Role::Head);
        assert_eq!(map.tensors[0].matrix.is_some(), has_matrix, "{config}");
        assert_eq!(map.notes.iter().any(|note| note.contains("`lm_head.weight` is stored")), tied, "{:?}", map.notes);
    }
}

#[test]
fn a_missing_head_is_said() {
    let tensors = [tensor("model.layers.0.self_attn.q_proj.weight", &[32, 32])];
    let config = json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false});
    let map = ModelMap::new(Some(&config), &tensors);
    assert_eq!((map.tied_embeddings, map.head_module.as_deref()), (false, Some("lm_head")));
    assert_eq!(map.notes, ["there is no `lm_head.weight`, and the config does not tie it to the embedding"]);
}

#[test]
fn a_hundred_thousand_tensors_are_mapped_and_found_quickly() {
    let mut tensors = Vec::new();
    for block in 0..130 {
        for expert in 0..256 {
            for part in ["down", "gate", "up"] {
                tensors
                    .push(tensor(&format!("model.layers.{block}.mlp.experts.{expert}.{part}_proj.weight"), &[64, 32]));
            }
        }
        tensors.push(tensor(&format!("model.layers.{block}.mlp.gate.weight"), &[256, 32]));
        tensors.push(tensor(&format!("model.layers.{block}.post_attention_layernorm.weight"), &[32]));
    }
    tensors.sort_by(|left, right| left.name.cmp(&right.name));
    assert!(tensors.len() > 100_000);
    let config = json!({"model_type": "qwen3_moe"});
    let start = Instant::now();
    let map = ModelMap::new(Some(&config), &tensors);
    let mapped = start.elapsed();
    assert_eq!(map.inputs.len(), 130 * 257, "one for all gates and ups of a block, one per expert's down");
    let shared = map.inputs.iter().filter(|input| input.linears.len() == 512 && input.norm.is_some());
    assert_eq!(shared.filter(|input| input.others.len() == 1).count(), 130);
    let start = Instant::now();
    assert!(tensors.iter().all(|tensor| map.tensor(&tensor.name).is_some_and(|found| found.name == tensor.name)));
    let found = start.elapsed();
    println!("{} tensors: mapped in {mapped:?}, each found again in {found:?}", tensors.len());
    // Ten times and more what an optimised build needs: catches quadratic behaviour, not a busy machine.
    assert!(mapped.as_secs() < 5 && found.as_secs() < 5, "{mapped:?}, {found:?}");
}
