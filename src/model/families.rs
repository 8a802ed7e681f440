//! The architectures that bantam knows, as tables: which module names they use, what each is for, and what it reads.
//!
//! To teach bantam an architecture is to add a [`Family`] here, a fixture with its real tensor names to
//! `tests/fixtures/model_maps`, and a line to `docs/models.md`. Names were checked against what transformers writes.

use super::{Role, fused::Fused};

/// An activation inside one block (or beside the blocks) that linears read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Group {
    /// What query, key and value read.
    Attention,
    /// What the attention's output projection reads.
    AttentionOutput,
    /// What latent attention's second query projection reads.
    QueryB,
    /// What latent attention's second key-value projection reads.
    KeyValueB,
    /// What gate and up read, of all experts too.
    Mlp,
    /// What down reads.
    Down,
    /// What the down projections of stacked experts read, or one expert's (the expert's index tells them apart).
    ExpertDown,
    /// What the shared expert's down projection reads.
    SharedDown,
    /// What the head reads.
    Head,
    /// Inputs of single matrices beside the blocks.
    Pooler,
    HeadTransform,
    ProjectIn,
    ProjectOut,
}

/// What a module has to do with an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// Nothing.
    None,
    /// A linear that reads it.
    Reads(Group),
    /// No linear to compress, but it reads it too.
    AlsoReads(Group),
    /// The norm that produces it.
    Feeds(Group),
}

/// One module: its name and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// The name behind the block's prefix, without `.weight`; `#` stands for an index.
    pub(super) pattern: &'static str,
    pub(super) role: Role,
    pub(super) link: Link,
    /// Whether a matrix is stored `[input, output]`.
    pub(super) transposed: bool,
    pub(super) fused: Fused,
}

impl Rule {
    const fn new(pattern: &'static str, role: Role, link: Link) -> Self {
        Self { pattern, role, link, transposed: false, fused: Fused::No }
    }

    const fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    const fn fused(self, fused: Fused) -> Self {
        Self { fused, ..self }
    }
}

const fn linear(pattern: &'static str, role: Role, reads: Group) -> Rule {
    Rule::new(pattern, role, Link::Reads(reads))
}

const fn reader(pattern: &'static str, also_reads: Group) -> Rule {
    Rule::new(pattern, Role::Router, Link::AlsoReads(also_reads))
}

const fn feeding(pattern: &'static str, feeds: Group) -> Rule {
    Rule::new(pattern, Role::Norm, Link::Feeds(feeds))
}

const fn norm(pattern: &'static str) -> Rule {
    Rule::new(pattern, Role::Norm, Link::None)
}

const fn plain(pattern: &'static str, role: Role) -> Rule {
    Rule::new(pattern, role, Link::None)
}

/// Where a model's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormPlace {
    /// Before attention and MLP: what they feed is theirs alone.
    Before,
    /// The config says (OPT's `do_layer_norm_before`); without it, before where the trunk ends in this norm.
    Told { key: &'static str, last_norm: &'static str },
}

/// Architectures that name their modules alike.
#[derive(Debug)]
pub(super) struct Family {
    /// Its name in messages.
    pub(super) name: &'static str,
    /// Values of `model_type`.
    pub(super) model_types: &'static [&'static str],
    /// Class names without what they are for (`Llama` of `LlamaForCausalLM`).
    pub(super) classes: &'static [&'static str],
    /// Words before a block's index, in two pieces: the trunk's prefix and the rest.
    pub(super) trunks: &'static [(&'static str, &'static str)],
    /// Modules of a block.
    pub(super) block: &'static [&'static [Rule]],
    /// Modules beside the blocks, behind the trunk's prefix.
    pub(super) trunk: &'static [Rule],
    /// Modules outside the trunk, the head first.
    pub(super) root: &'static [Rule],
    /// Whether the head is the embedding when the config is silent.
    pub(super) tied_by_default: bool,
    pub(super) norms: NormPlace,
    /// Block modules by which the family is recognised without a config; empty where names leave it open.
    pub(super) signature: &'static [&'static str],
    /// A block matrix that is stored wider than tall, which tells the family from another with the same names.
    pub(super) wide: Option<&'static str>,
}

const ATTENTION: &[Rule] = &[
    linear("self_attn.q_proj", Role::Attention("query"), Group::Attention),
    linear("self_attn.k_proj", Role::Attention("key"), Group::Attention),
    linear("self_attn.v_proj", Role::Attention("value"), Group::Attention),
    linear("self_attn.o_proj", Role::Attention("output"), Group::AttentionOutput),
    norm("self_attn.q_norm"),
    norm("self_attn.k_norm"),
    plain("self_attn.rotary_emb.inv_freq", Role::Other),
];

const FUSED_ATTENTION: &[Rule] = &[
    linear("self_attn.qkv_proj", Role::Attention("qkv"), Group::Attention).fused(Fused::Heads),
    linear("self_attn.o_proj", Role::Attention("output"), Group::AttentionOutput),
    plain("self_attn.rotary_emb.inv_freq", Role::Other),
];

const LATENT_ATTENTION: &[Rule] = &[
    linear("self_attn.q_proj", Role::Attention("query"), Group::Attention),
    linear("self_attn.q_a_proj", Role::Attention("query_a"), Group::Attention),
    feeding("self_attn.q_a_layernorm", Group::QueryB),
    linear("self_attn.q_b_proj", Role::Attention("query_b"), Group::QueryB),
    linear("self_attn.kv_a_proj_with_mqa", Role::Attention("key_value_a"), Group::Attention),
    feeding("self_attn.kv_a_layernorm", Group::KeyValueB),
    linear("self_attn.kv_b_proj", Role::Attention("key_value_b"), Group::KeyValueB),
    linear("self_attn.o_proj", Role::Attention("output"), Group::AttentionOutput),
    plain("self_attn.rotary_emb.inv_freq", Role::Other),
];

const MLP: &[Rule] = &[
    linear("mlp.gate_proj", Role::Mlp("gate"), Group::Mlp),
    linear("mlp.up_proj", Role::Mlp("up"), Group::Mlp),
    linear("mlp.down_proj", Role::Mlp("down"), Group::Down),
];

const FUSED_MLP: &[Rule] = &[
    linear("mlp.gate_up_proj", Role::Mlp("gate_up"), Group::Mlp).fused(Fused::Halves),
    linear("mlp.down_proj", Role::Mlp("down"), Group::Down),
];

const MIXTRAL_EXPERTS: &[Rule] = &[
    linear("block_sparse_moe.experts.#.w1", Role::Expert(None, "gate"), Group::Mlp),
    linear("block_sparse_moe.experts.#.w3", Role::Expert(None, "up"), Group::Mlp),
    linear("block_sparse_moe.experts.#.w2", Role::Expert(None, "down"), Group::ExpertDown),
    reader("block_sparse_moe.gate", Group::Mlp),
];

const EXPERTS: &[Rule] = &[
    linear("mlp.experts.#.gate_proj", Role::Expert(None, "gate"), Group::Mlp),
    linear("mlp.experts.#.up_proj", Role::Expert(None, "up"), Group::Mlp),
    linear("mlp.experts.#.down_proj", Role::Expert(None, "down"), Group::ExpertDown),
    reader("mlp.gate", Group::Mlp),
];

/// Stacked experts as transformers 5 holds them, `[experts, output, input]`.
const STACKED_EXPERTS: &[Rule] = &[
    linear("mlp.experts.gate_up_proj", Role::Expert(None, "gate_up"), Group::Mlp).fused(Fused::Halves),
    linear("mlp.experts.down_proj", Role::Expert(None, "down"), Group::ExpertDown),
];

/// The router beside stacked experts where the family's own names put it elsewhere.
const STACKED_ROUTER: &[Rule] = &[reader("mlp.gate", Group::Mlp)];

/// gpt-oss's stacked experts, `[experts, input, output]`, gate and up in turn.
const OSS_EXPERTS: &[Rule] = &[
    linear("mlp.experts.gate_up_proj", Role::Expert(None, "gate_up"), Group::Mlp)
        .transposed()
        .fused(Fused::Alternating),
    linear("mlp.experts.down_proj", Role::Expert(None, "down"), Group::ExpertDown).transposed(),
    plain("mlp.experts.gate_up_proj_bias", Role::Other),
    plain("mlp.experts.down_proj_bias", Role::Other),
    reader("mlp.router", Group::Mlp),
    plain("self_attn.sinks", Role::Other),
];

const QWEN2_SHARED_EXPERT: &[Rule] = &[
    linear("mlp.shared_expert.gate_proj", Role::SharedExpert("gate"), Group::Mlp),
    linear("mlp.shared_expert.up_proj", Role::SharedExpert("up"), Group::Mlp),
    linear("mlp.shared_expert.down_proj", Role::SharedExpert("down"), Group::SharedDown),
    reader("mlp.shared_expert_gate", Group::Mlp),
];

const DEEPSEEK_SHARED_EXPERTS: &[Rule] = &[
    linear("mlp.shared_experts.gate_proj", Role::SharedExpert("gate"), Group::Mlp),
    linear("mlp.shared_experts.up_proj", Role::SharedExpert("up"), Group::Mlp),
    linear("mlp.shared_experts.down_proj", Role::SharedExpert("down"), Group::SharedDown),
    plain("mlp.gate.e_score_correction_bias", Role::Router),
];

/// The module that only a multi-token-prediction layer has. No matrix to compress: runtimes load it as plain weights.
pub(super) const PREDICTION_MODULE: &str = "eh_proj";

const DEEPSEEK_PREDICTION: &[Rule] = &[
    norm("enorm"),
    norm("hnorm"),
    plain(PREDICTION_MODULE, Role::Other),
    plain("embed_tokens", Role::Embedding),
    feeding("shared_head.norm", Group::Head),
    linear("shared_head.head", Role::Head, Group::Head),
];

const NORMS: &[Rule] = &[feeding("input_layernorm", Group::Attention), feeding("post_attention_layernorm", Group::Mlp)];

const GEMMA_NORMS: &[Rule] = &[
    feeding("input_layernorm", Group::Attention),
    norm("post_attention_layernorm"),
    feeding("pre_feedforward_layernorm", Group::Mlp),
    norm("post_feedforward_layernorm"),
];

const TRUNK: &[Rule] = &[plain("embed_tokens", Role::Embedding), feeding("norm", Group::Head)];
const LANGUAGE_HEAD: &[Rule] = &[linear("lm_head", Role::Head, Group::Head)];
const TRUNKS: &[(&str, &str)] = &[("model.", "layers."), ("", "layers.")];

/// What most decoders share; each family changes what is its own.
const DECODER: Family = Family {
    name: "",
    model_types: &[],
    classes: &[],
    trunks: TRUNKS,
    block: &[NORMS, ATTENTION, MLP],
    trunk: TRUNK,
    root: LANGUAGE_HEAD,
    tied_by_default: false,
    norms: NormPlace::Before,
    signature: &[],
    wide: None,
};

/// Every family. Where names alone decide, the first that fits is taken.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "llama",
        model_types: &[
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            // Wrappers whose language model names no type of its own, and the types inside Qwen's.
            "llava",
            "mistral3",
            "qwen2_vl",
            "qwen2_vl_text",
            "qwen2_5_vl",
            "qwen2_5_vl_text",
            "qwen3_vl",
            "qwen3_vl_text",
        ],
        classes: &["Llama", "Mistral", "Qwen2", "Qwen3"],
        signature: &["input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "mlp.gate_proj"],
        ..DECODER
    },
    Family {
        name: "gemma 2/3",
        model_types: &["gemma2", "gemma3", "gemma3_text"],
        classes: &["Gemma2", "Gemma3"],
        block: &[GEMMA_NORMS, ATTENTION, MLP],
        tied_by_default: true,
        signature: &["input_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm", "mlp.gate_proj"],
        ..DECODER
    },
    // Without a config it is read as Llama, which has the same names and the same map.
    Family {
        name: "gemma",
        model_types: &["gemma", "paligemma"],
        classes: &["Gemma"],
        tied_by_default: true,
        ..DECODER
    },
    Family {
        name: "phi-3",
        model_types: &["phi3"],
        classes: &["Phi3"],
        block: &[NORMS, FUSED_ATTENTION, FUSED_MLP],
        signature: &["input_layernorm", "post_attention_layernorm", "self_attn.qkv_proj", "mlp.gate_up_proj"],
        ..DECODER
    },
    Family {
        name: "mixtral",
        model_types: &["mixtral"],
        classes: &["Mixtral"],
        block: &[NORMS, ATTENTION, MIXTRAL_EXPERTS, STACKED_EXPERTS, STACKED_ROUTER],
        signature: &["post_attention_layernorm", "self_attn.q_proj", "block_sparse_moe.experts.#.w1"],
        ..DECODER
    },
    Family {
        name: "qwen mixture of experts",
        model_types: &["qwen2_moe", "qwen3_moe"],
        classes: &["Qwen2Moe", "Qwen3Moe"],
        block: &[NORMS, ATTENTION, MLP, EXPERTS, STACKED_EXPERTS, QWEN2_SHARED_EXPERT],
        signature: &["post_attention_layernorm", "self_attn.q_proj", "mlp.experts.#.gate_proj"],
        ..DECODER
    },
    Family {
        name: "deepseek",
        model_types: &["deepseek_v2", "deepseek_v3"],
        classes: &["DeepseekV2", "DeepseekV3"],
        block: &[NORMS, LATENT_ATTENTION, MLP, EXPERTS, STACKED_EXPERTS, DEEPSEEK_SHARED_EXPERTS, DEEPSEEK_PREDICTION],
        signature: &["post_attention_layernorm", "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"],
        ..DECODER
    },
    Family {
        name: "gpt-oss",
        model_types: &["gpt_oss"],
        classes: &["GptOss"],
        block: &[NORMS, ATTENTION, OSS_EXPERTS],
        signature: &["self_attn.sinks", "mlp.router", "mlp.experts.gate_up_proj"],
        ..DECODER
    },
    Family {
        name: "opt",
        model_types: &["opt"],
        classes: &["OPT"],
        trunks: &[("model.decoder.", "layers."), ("decoder.", "layers.")],
        block: &[&[
            feeding("self_attn_layer_norm", Group::Attention),
            linear("self_attn.q_proj", Role::Attention("query"), Group::Attention),
            linear("self_attn.k_proj", Role::Attention("key"), Group::Attention),
            linear("self_attn.v_proj", Role::Attention("value"), Group::Attention),
            linear("self_attn.out_proj", Role::Attention("output"), Group::AttentionOutput),
            feeding("final_layer_norm", Group::Mlp),
            linear("fc1", Role::Mlp("up"), Group::Mlp),
            linear("fc2", Role::Mlp("down"), Group::Down),
        ]],
        trunk: &[
            plain("embed_tokens", Role::Embedding),
            plain("embed_positions", Role::OtherEmbedding("position")),
            linear("project_in", Role::Linear, Group::ProjectIn),
            linear("project_out", Role::Linear, Group::ProjectOut),
            feeding("final_layer_norm", Group::Head),
        ],
        tied_by_default: true,
        norms: NormPlace::Told { key: "do_layer_norm_before", last_norm: "final_layer_norm" },
        signature: &["self_attn_layer_norm", "self_attn.out_proj", "fc1", "fc2"],
        ..DECODER
    },
    Family {
        name: "gpt-2",
        model_types: &["gpt2"],
        classes: &["GPT2"],
        trunks: &[("transformer.", "h."), ("", "h.")],
        block: &[&[
            feeding("ln_1", Group::Attention),
            linear("attn.c_attn", Role::Attention("qkv"), Group::Attention).transposed().fused(Fused::Thirds),
            linear("attn.c_proj", Role::Attention("output"), Group::AttentionOutput).transposed(),
            // The causal mask, which old files store.
            plain("attn", Role::Other),
            plain("attn.masked_bias", Role::Other),
            feeding("ln_2", Group::Mlp),
            linear("mlp.c_fc", Role::Mlp("up"), Group::Mlp).transposed(),
            linear("mlp.c_proj", Role::Mlp("down"), Group::Down).transposed(),
        ]],
        trunk: &[
            plain("wte", Role::Embedding),
            plain("wpe", Role::OtherEmbedding("position")),
            feeding("ln_f", Group::Head),
        ],
        tied_by_default: true,
        signature: &["ln_1", "attn.c_attn", "mlp.c_fc"],
        wide: Some("attn.c_attn"),
        ..DECODER
    },
    Family {
        name: "bert",
        model_types: &["bert"],
        classes: &["Bert"],
        trunks: &[("bert.", "encoder.layer."), ("", "encoder.layer.")],
        // Its norms come after the residual sum, so none feeds linears alone.
        block: &[&[
            linear("attention.self.query", Role::Attention("query"), Group::Attention),
            linear("attention.self.key", Role::Attention("key"), Group::Attention),
            linear("attention.self.value", Role::Attention("value"), Group::Attention),
            linear("attention.output.dense", Role::Attention("output"), Group::AttentionOutput),
            norm("attention.output.LayerNorm"),
            linear("intermediate.dense", Role::Mlp("up"), Group::Mlp),
            linear("output.dense", Role::Mlp("down"), Group::Down),
            norm("output.LayerNorm"),
        ]],
        trunk: &[
            plain("embeddings.word_embeddings", Role::Embedding),
            plain("embeddings.position_embeddings", Role::OtherEmbedding("position")),
            plain("embeddings.token_type_embeddings", Role::OtherEmbedding("type")),
            plain("embeddings.position_ids", Role::Other),
            norm("embeddings.LayerNorm"),
            linear("pooler.dense", Role::Linear, Group::Pooler),
        ],
        root: &[
            linear("cls.predictions.decoder", Role::Head, Group::Head),
            linear("cls.predictions.transform.dense", Role::Linear, Group::HeadTransform),
            feeding("cls.predictions.transform.LayerNorm", Group::Head),
            plain("cls.seq_relationship", Role::Other),
            plain("classifier", Role::Other),
            plain("qa_outputs", Role::Other),
        ],
        tied_by_default: true,
        signature: &["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"],
        ..DECODER
    },
];

/// The family of a `model_type` or of a class in `architectures`.
pub(super) fn family_of(identity: &str) -> Option<&'static Family> {
    let stem = class_stem(identity);
    FAMILIES.iter().find(|family| family.model_types.contains(&identity) || family.classes.contains(&stem))
}

/// `LlamaForCausalLM`, `GPT2LMHeadModel`, `BertModel` without what the class is for.
fn class_stem(class: &str) -> &str {
    let stem = class.split_once("For").map_or(class, |(stem, _)| stem);
    stem.strip_suffix("LMHeadModel").or_else(|| stem.strip_suffix("Model")).unwrap_or(stem)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_family_says_two_things_of_one_module() {
        for family in FAMILIES {
            for rules in [&family.block.concat(), family.trunk, family.root] {
                let mut seen = HashSet::new();
                for rule in rules {
                    let again = !seen.insert(rule.pattern);
                    let same = rules.iter().filter(|other| other.pattern == rule.pattern).all(|other| other == rule);
                    assert!(!again || same, "{}: {}", family.name, rule.pattern);
                }
            }
        }
    }

    #[test]
    fn every_norm_feeds_something_that_is_read() {
        for family in FAMILIES {
            let rules = [family.block.concat(), family.trunk.to_vec(), family.root.to_vec()].concat();
            for rule in &rules {
                if let Link::Feeds(group) | Link::AlsoReads(group) = rule.link {
                    let read = rules.iter().any(|other| other.link == Link::Reads(group));
                    assert!(read, "{}: {}", family.name, rule.pattern);
                }
            }
        }
    }

    #[test]
    fn no_identity_belongs_to_two_families() {
        let mut seen = HashSet::new();
        for identity in FAMILIES.iter().flat_map(|family| family.model_types.iter().chain(family.classes)) {
            assert!(seen.insert(identity), "{identity}");
        }
    }

    #[test]
    fn signatures_are_modules_of_their_family() {
        for family in FAMILIES {
            let block = family.block.concat();
            for pattern in family.signature.iter().chain(family.wide.as_ref()) {
                assert!(block.iter().any(|rule| rule.pattern == *pattern), "{}: {pattern}", family.name);
            }
        }
    }

    #[test]
    fn classes_and_types_find_their_family() {
        for (identity, family) in [
            ("LlamaForCausalLM", Some("llama")),
            ("LlamaModel", Some("llama")),
            ("LlamaForSequenceClassification", Some("llama")),
            ("GPT2LMHeadModel", Some("gpt-2")),
            ("gpt2", Some("gpt-2")),
            ("Gemma3ForConditionalGeneration", Some("gemma 2/3")),
            ("DeepseekV3ForCausalLM", Some("deepseek")),
            ("BertForMaskedLM", Some("bert")),
            ("FalconForCausalLM", None),
            ("Llama4ForConditionalGeneration", None),
            ("", None),
        ] {
            assert_eq!(family_of(identity).map(|family| family.name), family, "{identity}");
        }
    }
}
