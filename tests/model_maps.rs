//! The model map of every architecture, from tensor names and shapes as transformers writes them.
#![allow(clippy::format_push_string)] // lines of a few words, in tests

use bantam::model::{MappedTensor, ModelMap, NamedShape, Role};
use serde_json::Value;

/// The config and the tensors of a tiny model, sorted by name; made by transformers 5 from a config alone.
fn fixture(name: &str) -> (Value, Vec<NamedShape>) {
    let path = format!("{}/tests/fixtures/model_maps/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    let value: Value = serde_json::from_str(&text).expect(&path);
    let shape = |shape: &Value| serde_json::from_value(shape.clone()).expect("a shape");
    let tensors = value["tensors"].as_object().expect("an object");
    let tensors = tensors.iter().map(|(name, dimensions)| NamedShape { name: name.clone(), shape: shape(dimensions) });
    (value["config"].clone(), tensors.collect())
}

fn map(name: &str) -> ModelMap {
    let (config, tensors) = fixture(name);
    ModelMap::new(Some(&config), &tensors)
}

/// One line on a tensor: role; matrix; parts; how many linears share its input, the norm before it, other readers.
fn line(map: &ModelMap, tensor: &MappedTensor) -> String {
    let mut line = tensor.role.to_string();
    if let Some(matrix) = &tensor.matrix {
        let experts = matrix.experts.map_or(String::new(), |experts| format!("{experts}×"));
        let transposed = if matrix.transposed { "ᵀ" } else { "" };
        line += &format!(" {experts}{}×{}{transposed}", matrix.rows, matrix.columns);
        if !matrix.fused.is_empty() {
            let parts: Vec<_> = matrix.fused.iter().map(|(part, rows)| format!("{part} {rows}")).collect();
            line += &format!(" [{}]", parts.join(", "));
        }
    }
    if let Some(input) = tensor.input.map(|index| &map.inputs[index]) {
        assert!(input.linears.contains(&tensor.name), "{}", tensor.name);
        line += &format!(" < {}", input.norm.as_deref().unwrap_or("-"));
        if input.linears.len() > 1 {
            line += &format!(", {} read it", input.linears.len());
        }
        for other in &input.others {
            line += &format!(", also {other}");
        }
    }
    line
}

/// Checks every tensor under `prefix` against hand-written lines, in which the prefix and `.weight` are left out.
#[track_caller]
fn check(map: &ModelMap, prefix: &str, expected: &str) {
    let under = map.tensors.iter().filter(|tensor| tensor.name.starts_with(prefix));
    let lines = under.map(|tensor| format!("{}: {}", tensor.name, line(map, tensor)).replace(".weight", ""));
    let actual: Vec<_> = lines.map(|line| line.replace(prefix, "")).collect();
    let expected: Vec<_> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert!(actual == expected, "expected:\n{}\ngot:\n{}", expected.join("\n"), actual.join("\n"));
}

/// Checks what holds of the whole model.
#[track_caller]
fn check_model(map: &ModelMap, prefix: &str, tied: bool, head: Option<&str>) {
    assert!(map.known, "{}", map.architecture);
    assert_eq!((map.prefix.as_str(), map.blocks), (prefix, 2), "{}", map.architecture);
    assert_eq!((map.tied_embeddings, map.head_module.as_deref()), (tied, head), "{}", map.architecture);
    assert_eq!(map.notes, Vec::<String>::new(), "{}", map.architecture);
    for (index, input) in map.inputs.iter().enumerate() {
        for name in &input.linears {
            let linear = map.tensor(name).expect("a linear of the map");
            assert_eq!(linear.input, Some(index));
            assert!(linear.matrix.is_some());
        }
        for name in input.norm.iter().chain(&input.others) {
            assert_eq!(map.tensor(name).expect("a tensor of the map").matrix, None);
        }
    }
}

#[test]
fn llama_and_its_like() {
    for name in ["llama", "mistral"] {
        let map = map(name);
        check_model(&map, "", false, Some("lm_head"));
        check(
            &map,
            "model.layers.1.",
            "input_layernorm: norm
             mlp.down_proj: mlp.down 32×48 < -
             mlp.gate_proj: mlp.gate 48×32 < post_attention_layernorm, 2 read it
             mlp.up_proj: mlp.up 48×32 < post_attention_layernorm, 2 read it
             post_attention_layernorm: norm
             self_attn.k_proj: attention.key 32×32 < input_layernorm, 3 read it
             self_attn.o_proj: attention.output 32×64 < -
             self_attn.q_proj: attention.query 64×32 < input_layernorm, 3 read it
             self_attn.v_proj: attention.value 32×32 < input_layernorm, 3 read it",
        );
        check(&map, "lm_head", ": head 64×32 < model.norm");
        check(&map, "model.embed", "_tokens: embedding");
        check(&map, "model.norm", ": norm");
        assert!(map.tensors.iter().filter(|t| t.name.contains("layers.1.")).all(|t| t.block == Some(1)));
        assert!(map.tensors.iter().filter(|t| !t.name.contains("layers.")).all(|t| t.block.is_none()));
    }
}

#[test]
fn qwen2_has_biases() {
    let map = map("qwen2");
    check_model(&map, "", false, Some("lm_head"));
    check(
        &map,
        "model.layers.0.self_attn.",
        "k_proj.bias: other
         k_proj: attention.key 16×32 < model.layers.0.input_layernorm, 3 read it
         o_proj: attention.output 32×32 < -
         q_proj.bias: other
         q_proj: attention.query 32×32 < model.layers.0.input_layernorm, 3 read it
         v_proj.bias: other
         v_proj: attention.value 16×32 < model.layers.0.input_layernorm, 3 read it",
    );
}

#[test]
fn qwen3_normalises_queries_and_keys_and_can_be_tied() {
    let map = map("qwen3");
    check_model(&map, "", true, Some("lm_head"));
    check(
        &map,
        "model.layers.0.self_attn.",
        "k_norm: norm
         k_proj: attention.key 32×32 < model.layers.0.input_layernorm, 3 read it
         o_proj: attention.output 32×64 < -
         q_norm: norm
         q_proj: attention.query 64×32 < model.layers.0.input_layernorm, 3 read it
         v_proj: attention.value 32×32 < model.layers.0.input_layernorm, 3 read it",
    );
}

const GEMMA3_BLOCK: &str = "input_layernorm: norm
     mlp.down_proj: mlp.down 32×48 < -
     mlp.gate_proj: mlp.gate 48×32 < pre_feedforward_layernorm, 2 read it
     mlp.up_proj: mlp.up 48×32 < pre_feedforward_layernorm, 2 read it
     post_attention_layernorm: norm
     post_feedforward_layernorm: norm
     pre_feedforward_layernorm: norm
     self_attn.k_norm: norm
     self_attn.k_proj: attention.key 32×32 < input_layernorm, 3 read it
     self_attn.o_proj: attention.output 32×64 < -
     self_attn.q_norm: norm
     self_attn.q_proj: attention.query 64×32 < input_layernorm, 3 read it
     self_attn.v_proj: attention.value 32×32 < input_layernorm, 3 read it";

#[test]
fn gemma_has_more_norms_and_a_tied_head() {
    let gemma3 = map("gemma3_text");
    check_model(&gemma3, "", true, Some("lm_head"));
    check(&gemma3, "model.layers.0.", GEMMA3_BLOCK);

    let gemma2 = map("gemma2");
    check_model(&gemma2, "", true, Some("lm_head"));
    let block: Vec<_> = GEMMA3_BLOCK.lines().filter(|line| !line.contains("_norm: ")).collect();
    check(&gemma2, "model.layers.0.", &block.join("\n"));

    let gemma = map("gemma");
    check_model(&gemma, "", true, Some("lm_head"));
    check(&gemma, "model.layers.0.mlp.up_proj", ": mlp.up 48×32 < model.layers.0.post_attention_layernorm, 2 read it");
}

#[test]
fn gemma_is_tied_even_when_the_config_is_silent() {
    for (name, tied) in [("gemma2", true), ("opt", true), ("gpt2", true), ("bert_mlm", true), ("llama", false)] {
        let (mut config, tensors) = fixture(name);
        config.as_object_mut().expect("an object").remove("tie_word_embeddings").expect("said in the fixture");
        assert_eq!(ModelMap::new(Some(&config), &tensors).tied_embeddings, tied, "{name}");
    }
}

#[test]
fn phi3_fuses_its_projections() {
    let map = map("phi3");
    check_model(&map, "", false, Some("lm_head"));
    check(
        &map,
        "model.layers.0.",
        "input_layernorm: norm
         mlp.down_proj: mlp.down 32×48 < -
         mlp.gate_up_proj: mlp.gate_up 96×32 [gate 48, up 48] < post_attention_layernorm
         post_attention_layernorm: norm
         self_attn.o_proj: attention.output 32×32 < -
         self_attn.qkv_proj: attention.qkv 64×32 [query 32, key 16, value 16] < input_layernorm",
    );
}

#[test]
fn mixtral_experts_and_router_share_an_input() {
    let map = map("mixtral");
    check_model(&map, "", false, Some("lm_head"));
    let shared = "< model.layers.0.post_attention_layernorm, 6 read it, also gate";
    let mut expected = String::new();
    for expert in 0..3 {
        expected += &format!("experts.{expert}.w1: expert.{expert}.gate 48×32 {shared}\n");
        expected += &format!("experts.{expert}.w2: expert.{expert}.down 32×48 < -\n");
        expected += &format!("experts.{expert}.w3: expert.{expert}.up 48×32 {shared}\n");
    }
    check(&map, "model.layers.0.block_sparse_moe.", &format!("{expected}gate: router"));
}

#[test]
fn qwen_mixtures_have_dense_blocks_and_shared_experts() {
    let qwen3 = map("qwen3_moe");
    check_model(&qwen3, "", false, Some("lm_head"));
    let norm = "< model.layers.0.post_attention_layernorm";
    let mut expected = String::new();
    for expert in 0..3 {
        expected += &format!("experts.{expert}.down_proj: expert.{expert}.down 32×24 < -\n");
        for part in ["gate", "up"] {
            expected +=
                &format!("experts.{expert}.{part}_proj: expert.{expert}.{part} 24×32 {norm}, 6 read it, also gate\n");
        }
    }
    check(&qwen3, "model.layers.0.mlp.", &format!("{expected}gate: router"));
    check(
        &qwen3,
        "model.layers.1.mlp.",
        "down_proj: mlp.down 32×48 < -
         gate_proj: mlp.gate 48×32 < model.layers.1.post_attention_layernorm, 2 read it
         up_proj: mlp.up 48×32 < model.layers.1.post_attention_layernorm, 2 read it",
    );

    let qwen2 = map("qwen2_moe");
    check_model(&qwen2, "", false, Some("lm_head"));
    let all = format!("{norm}, 8 read it, also model.layers.0.mlp.gate, also model.layers.0.mlp.shared_expert_gate");
    check(
        &qwen2,
        "model.layers.0.mlp.shared_expert.",
        &format!(
            "down_proj: shared_expert.down 32×40 < -
             gate_proj: shared_expert.gate 40×32 {all}
             up_proj: shared_expert.up 40×32 {all}"
        ),
    );
    check(&qwen2, "model.layers.0.mlp.shared_expert_gate", ": router");
}

#[test]
fn stacked_experts_are_one_matrix_each() {
    let mixtral = map("mixtral_stacked");
    check_model(&mixtral, "", false, Some("lm_head"));
    check(
        &mixtral,
        "model.layers.0.mlp.",
        "experts.down_proj: expert.down 3×32×48 < -
         experts.gate_up_proj: expert.gate_up 3×96×32 [gate 48, up 48] < \
         model.layers.0.post_attention_layernorm, also gate
         gate: router",
    );
    let qwen3 = map("qwen3_moe_stacked");
    check_model(&qwen3, "", false, Some("lm_head"));
    check(
        &qwen3,
        "model.layers.0.mlp.",
        "experts.down_proj: expert.down 3×32×24 < -
         experts.gate_up_proj: expert.gate_up 3×48×32 [gate 24, up 24] < \
         model.layers.0.post_attention_layernorm, also gate
         gate: router",
    );
    let deepseek = map("deepseek_v3_stacked");
    check_model(&deepseek, "", false, Some("lm_head"));
    let norm = "model.layers.1.post_attention_layernorm, 3 read it, also model.layers.1.mlp.gate";
    check(
        &deepseek,
        "model.layers.1.mlp.experts.",
        &format!("down_proj: expert.down 4×32×24 < -\ngate_up_proj: expert.gate_up 4×48×32 [gate 24, up 24] < {norm}"),
    );
}

#[test]
fn gpt_oss_stacks_experts_the_other_way_round() {
    let map = map("gpt_oss");
    check_model(&map, "", false, Some("lm_head"));
    check(
        &map,
        "model.layers.0.",
        "input_layernorm: norm
         mlp.experts.down_proj: expert.down 3×32×48ᵀ < -
         mlp.experts.down_proj_bias: other
         mlp.experts.gate_up_proj: expert.gate_up 3×96×32ᵀ < post_attention_layernorm, also mlp.router
         mlp.experts.gate_up_proj_bias: other
         mlp.router.bias: router
         mlp.router: router
         post_attention_layernorm: norm
         self_attn.k_proj.bias: other
         self_attn.k_proj: attention.key 32×32 < input_layernorm, 3 read it
         self_attn.o_proj.bias: other
         self_attn.o_proj: attention.output 32×64 < -
         self_attn.q_proj.bias: other
         self_attn.q_proj: attention.query 64×32 < input_layernorm, 3 read it
         self_attn.sinks: other
         self_attn.v_proj.bias: other
         self_attn.v_proj: attention.value 32×32 < input_layernorm, 3 read it",
    );
}

#[test]
fn deepseek_has_latent_attention_and_a_shared_expert() {
    let v3 = map("deepseek_v3");
    check_model(&v3, "", false, Some("lm_head"));
    check(
        &v3,
        "model.layers.0.",
        "input_layernorm: norm
         mlp.down_proj: mlp.down 32×48 < -
         mlp.gate_proj: mlp.gate 48×32 < post_attention_layernorm, 2 read it
         mlp.up_proj: mlp.up 48×32 < post_attention_layernorm, 2 read it
         post_attention_layernorm: norm
         self_attn.kv_a_layernorm: norm
         self_attn.kv_a_proj_with_mqa: attention.key_value_a 14×32 < input_layernorm, 2 read it
         self_attn.kv_b_proj: attention.key_value_b 56×10 < self_attn.kv_a_layernorm
         self_attn.o_proj: attention.output 32×24 < -
         self_attn.q_a_layernorm: norm
         self_attn.q_a_proj: attention.query_a 12×32 < input_layernorm, 2 read it
         self_attn.q_b_proj: attention.query_b 48×12 < self_attn.q_a_layernorm",
    );
    let shared = "< model.layers.1.post_attention_layernorm, 10 read it, also model.layers.1.mlp.gate";
    check(
        &v3,
        "model.layers.1.mlp.shared_experts.",
        &format!(
            "down_proj: shared_expert.down 32×48 < -
             gate_proj: shared_expert.gate 48×32 {shared}
             up_proj: shared_expert.up 48×32 {shared}"
        ),
    );
    check(&v3, "model.layers.1.mlp.gate", ".e_score_correction_bias: router\n: router");
    check(&v3, "model.layers.1.mlp.experts.3.up_proj", &format!(": expert.3.up 24×32 {shared}"));

    let v2 = map("deepseek_v2");
    check_model(&v2, "", false, Some("lm_head"));
    check(
        &v2,
        "model.layers.0.self_attn.q_",
        "proj: attention.query 48×32 < model.layers.0.input_layernorm, 2 read it",
    );
}

#[test]
fn deepseeks_prediction_layer_stands_behind_the_blocks() {
    let (config, mut tensors) = fixture("deepseek_v3");
    let last = tensors.iter().filter(|tensor| tensor.name.starts_with("model.layers.1.")).cloned();
    let mut extra: Vec<_> = last
        .map(|tensor| NamedShape { name: tensor.name.replace("layers.1.", "layers.2."), shape: tensor.shape })
        .collect();
    for (name, shape) in [
        ("eh_proj", vec![32, 64]),
        ("embed_tokens", vec![64, 32]),
        ("enorm", vec![32]),
        ("hnorm", vec![32]),
        ("shared_head.head", vec![64, 32]),
        ("shared_head.norm", vec![32]),
    ] {
        extra.push(NamedShape { name: format!("model.layers.2.{name}.weight"), shape });
    }
    tensors.extend(extra);
    let map = ModelMap::new(Some(&config), &tensors);
    assert_eq!(map.blocks, 2);
    assert_eq!(map.notes, ["1 multi-token-prediction layer behind the 2 blocks"]);
    for (name, expected) in [
        ("eh_proj", "other"),
        ("embed_tokens", "embedding"),
        ("enorm", "norm"),
        ("hnorm", "norm"),
        ("shared_head.head", "head 64×32 < model.layers.2.shared_head.norm.weight"),
        ("self_attn.kv_b_proj", "attention.key_value_b 56×10 < model.layers.2.self_attn.kv_a_layernorm.weight"),
    ] {
        let tensor = map.tensor(&format!("model.layers.2.{name}.weight")).expect(name);
        assert_eq!(line(&map, tensor), expected, "{name}");
        assert_eq!(tensor.block, Some(2));
    }
    assert_eq!(map.head_module.as_deref(), Some("lm_head"));
}

#[test]
fn opt_norms_feed_linears_only_where_they_come_first() {
    let before = map("opt_pre");
    check_model(&before, "", true, Some("lm_head"));
    check(
        &before,
        "model.decoder.layers.0.",
        "fc1.bias: other
         fc1: mlp.up 48×32 < final_layer_norm
         fc2.bias: other
         fc2: mlp.down 32×48 < -
         final_layer_norm.bias: norm
         final_layer_norm: norm
         self_attn.k_proj.bias: other
         self_attn.k_proj: attention.key 32×32 < self_attn_layer_norm, 3 read it
         self_attn.out_proj.bias: other
         self_attn.out_proj: attention.output 32×32 < -
         self_attn.q_proj.bias: other
         self_attn.q_proj: attention.query 32×32 < self_attn_layer_norm, 3 read it
         self_attn.v_proj.bias: other
         self_attn.v_proj: attention.value 32×32 < self_attn_layer_norm, 3 read it
         self_attn_layer_norm.bias: norm
         self_attn_layer_norm: norm",
    );
    let after = map("opt");
    check_model(&after, "", true, Some("lm_head"));
    assert!(after.inputs.iter().all(|input| input.norm.is_none()), "{:?}", after.inputs);
    check(&after, "model.decoder.embed", "_positions: embedding.position\n_tokens: embedding");
    check(&after, "model.decoder.project_", "in: linear 32×16 < -\nout: linear 16×32 < -");
    // Without a config the last norm tells which of the two it is.
    for (name, feeds) in [("opt_pre", true), ("opt", false)] {
        let map = ModelMap::new(None, &fixture(name).1);
        assert!(map.known);
        assert_eq!(map.inputs.iter().any(|input| input.norm.is_some()), feeds, "{name}");
    }
}

#[test]
fn gpt2_is_transposed_and_fused_under_either_prefix() {
    for (name, prefix, tied, head) in [("gpt2", "transformer.", true, Some("lm_head")), ("gpt2_bare", "", false, None)]
    {
        let map = map(name);
        check_model(&map, "", tied, head);
        check(
            &map,
            &format!("{prefix}h.0."),
            "attn.c_attn.bias: other
             attn.c_attn: attention.qkv 96×32ᵀ [query 32, key 32, value 32] < ln_1
             attn.c_proj.bias: other
             attn.c_proj: attention.output 32×32ᵀ < -
             ln_1.bias: norm
             ln_1: norm
             ln_2.bias: norm
             ln_2: norm
             mlp.c_fc.bias: other
             mlp.c_fc: mlp.up 128×32ᵀ < ln_2
             mlp.c_proj.bias: other
             mlp.c_proj: mlp.down 32×128ᵀ < -",
        );
        check(&map, &format!("{prefix}w"), "pe: embedding.position\nte: embedding");
    }
}

#[test]
fn bert_is_an_encoder_under_either_prefix() {
    let with_head = map("bert_pretraining");
    check_model(&with_head, "", true, Some("cls.predictions.decoder"));
    let expected = "attention.output.LayerNorm.bias: norm
         attention.output.LayerNorm: norm
         attention.output.dense.bias: other
         attention.output.dense: attention.output 32×32 < -
         attention.self.key.bias: other
         attention.self.key: attention.key 32×32 < -, 3 read it
         attention.self.query.bias: other
         attention.self.query: attention.query 32×32 < -, 3 read it
         attention.self.value.bias: other
         attention.self.value: attention.value 32×32 < -, 3 read it
         intermediate.dense.bias: other
         intermediate.dense: mlp.up 48×32 < -
         output.LayerNorm.bias: norm
         output.LayerNorm: norm
         output.dense.bias: other
         output.dense: mlp.down 32×48 < -";
    check(&with_head, "bert.encoder.layer.0.", expected);
    check(
        &with_head,
        "bert.embeddings.",
        "LayerNorm.bias: norm
         LayerNorm: norm
         position_embeddings: embedding.position
         token_type_embeddings: embedding.type
         word_embeddings: embedding",
    );
    check(&with_head, "bert.pooler.dense", ".bias: other\n: linear 32×32 < -");
    check(
        &with_head,
        "cls.",
        "predictions.bias: other
         predictions.transform.LayerNorm.bias: norm
         predictions.transform.LayerNorm: norm
         predictions.transform.dense.bias: other
         predictions.transform.dense: linear 32×32 < -
         seq_relationship.bias: other
         seq_relationship: other",
    );

    // A bare encoder, as `BertModel` writes it, with the oldest files' names for the norms' parameters.
    let (mut config, tensors) = fixture("bert_pretraining");
    config["architectures"] = serde_json::json!(["BertModel"]);
    let bare = tensors.iter().filter_map(|tensor| {
        let name = tensor.name.strip_prefix("bert.")?;
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        Some(NamedShape { name, shape: tensor.shape.clone() })
    });
    let bare = ModelMap::new(Some(&config), &bare.collect::<Vec<_>>());
    check_model(&bare, "", false, None);
    let old = expected.replace("LayerNorm.bias", "LayerNorm.beta").replace("LayerNorm:", "LayerNorm.gamma:");
    check(&bare, "encoder.layer.0.", &old);
}

#[test]
fn a_stored_head_of_bert_reads_the_norm_before_it() {
    let (mut config, mut tensors) = fixture("bert_mlm");
    config["tie_word_embeddings"] = serde_json::json!(false);
    tensors.push(NamedShape { name: "cls.predictions.decoder.weight".into(), shape: vec![64, 32] });
    let map = ModelMap::new(Some(&config), &tensors);
    check(&map, "cls.predictions.decoder", ": head 64×32 < cls.predictions.transform.LayerNorm");
}

#[test]
fn a_language_model_inside_another_is_found_and_the_rest_left_alone() {
    for (name, prefix, trunk, head, tied) in [
        ("gemma3", "language_model.", "language_model.model.", "lm_head", true),
        ("gemma3_live", "model.language_model.", "model.language_model.", "lm_head", true),
        ("llava", "language_model.", "language_model.model.", "language_model.lm_head", false),
        ("qwen2_5_vl", "", "model.", "lm_head", false),
        ("qwen3_vl", "model.language_model.", "model.language_model.", "lm_head", false),
    ] {
        let map = map(name);
        check_model(&map, prefix, tied, Some(head));
        let ours = |name: &str| name.starts_with(trunk) || name.starts_with(head);
        let (language, rest): (Vec<_>, Vec<_>) = map.tensors.iter().partition(|tensor| ours(&tensor.name));
        let linears = language.iter().filter(|tensor| tensor.matrix.is_some()).count();
        assert_eq!(linears, if tied { 14 } else { 15 }, "{name}");
        assert!(
            language
                .iter()
                .all(|tensor| !matches!(tensor.role, Role::Other) || tensor.name.rsplit('.').next() == Some("bias"))
        );
        assert!(rest.len() > 8, "{name}");
        for tensor in rest {
            assert_eq!((&tensor.role, tensor.block), (&Role::Other, None), "{}", tensor.name);
            assert_eq!((&tensor.matrix, tensor.input), (&None, None), "{}", tensor.name);
        }
        if !tied {
            check(&map, head, &format!(": head 64×32 < {trunk}norm"));
        }
    }
    check(&map("gemma3"), "language_model.model.layers.1.", GEMMA3_BLOCK);
    check(&map("gemma3_live"), "model.language_model.layers.1.", GEMMA3_BLOCK);
}

#[test]
fn names_alone_give_the_same_map_where_they_leave_nothing_open() {
    for name in [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v3_stacked",
        "gpt_oss",
        "opt",
        "opt_pre",
        "gpt2",
        "bert_mlm",
        "llava",
    ] {
        let (config, tensors) = fixture(name);
        let (with, without) = (ModelMap::new(Some(&config), &tensors), ModelMap::new(None, &tensors));
        assert!(without.known, "{name}: {:?}", without.notes);
        assert_eq!(without.architecture, "unknown");
        assert_eq!((with.tensors, with.inputs), (without.tensors, without.inputs), "{name}");
        assert_eq!(with.tied_embeddings, without.tied_embeddings, "{name}");
        assert!(without.notes[0].contains("by its tensor names"), "{name}: {:?}", without.notes);
    }
    // Where to cut Phi-3's projections is in its config alone.
    let map = ModelMap::new(None, &fixture("phi3").1);
    assert!(map.known);
    check(&map, "model.layers.0.self_attn.qkv", "_proj: attention.qkv 64×32 < model.layers.0.input_layernorm");
    assert!(map.notes[0].contains("cannot be cut"), "{:?}", map.notes);
    // Which way round experts are stacked, names do not say.
    for name in ["mixtral_stacked", "qwen3_moe_stacked", "falcon"] {
        assert!(!ModelMap::new(None, &fixture(name).1).known, "{name}");
    }
}

#[test]
fn gpt2_names_with_plain_linears_are_not_gpt2() {
    // GPT-BigCode's blocks have GPT-2's names but are stored `[output, input]`.
    let (_, mut tensors) = fixture("gpt2");
    for tensor in &mut tensors {
        if tensor.name.contains(".c_") {
            tensor.shape.reverse();
        }
    }
    let map = ModelMap::new(None, &tensors);
    assert!(!map.known);
    assert!(map.tensors.iter().all(|tensor| tensor.matrix.as_ref().is_none_or(|matrix| !matrix.transposed)));
}

#[test]
fn unknown_architectures_are_mapped_by_shape_and_name() {
    let falcon = map("falcon");
    assert!(!falcon.known);
    assert_eq!(falcon.architecture, "FalconForCausalLM");
    assert_eq!(
        falcon.notes,
        ["architecture `FalconForCausalLM` is not known to bantam: 8 matrices found by shape and name; passes that \
             need data will refuse it"]
    );
    assert_eq!((falcon.blocks, falcon.head_module.as_deref(), falcon.tied_embeddings), (2, Some("lm_head"), true));
    check(
        &falcon,
        "transformer.h.1.",
        "input_layernorm.bias: norm
         input_layernorm: norm
         mlp.dense_4h_to_h: linear 32×128
         mlp.dense_h_to_4h: linear 128×32
         self_attention.dense: linear 32×32
         self_attention.query_key_value: linear 48×32",
    );
    check(&falcon, "transformer.word_embeddings", ": embedding");
    check(
        &map("mamba"),
        "backbone.layers.0.",
        "mixer.A_log: other
         mixer.D: other
         mixer.conv1d.bias: other
         mixer.conv1d: other
         mixer.dt_proj.bias: other
         mixer.dt_proj: linear 64×2
         mixer.in_proj: linear 128×32
         mixer.out_proj: linear 32×64
         mixer.x_proj: linear 10×64
         norm: norm",
    );
}

#[test]
fn a_known_name_over_foreign_tensors_is_said_to_be_so() {
    let (config, _) = fixture("llama");
    let map = ModelMap::new(Some(&config), &fixture("falcon").1);
    assert!(!map.known);
    assert_eq!(map.notes.len(), 1);
    assert!(map.notes[0].starts_with("config.json says `LlamaForCausalLM`, but no tensor"), "{:?}", map.notes);
    assert!(map.notes[0].contains("8 matrices"), "{:?}", map.notes);
}
