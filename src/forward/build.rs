//! From config and tensor names to what every block computes.

mod plain;

use super::{
    Activation, ForwardError, Kind, LinearSpec, Stage, WeightSource,
    attention::Attention,
    config::Config,
    kernels::NormKind,
    rope::{Rope, yarn_scale},
    spec::{After, BlockSpec, ExpertsSpec, Latent, NormSpec, RouterRule},
};

/// Families that differ in what they compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Gemma,
    Gemma2,
    Gemma3,
    Phi3,
    Mixtral,
    QwenMoe,
    DeepSeek,
    GptOss,
    Opt,
    Gpt2,
    Bert,
}

impl Family {
    pub(super) fn of(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "llama" | "mistral" | "qwen2" | "qwen3" | "qwen2_5_vl_text" | "qwen2_vl_text" | "qwen3_vl_text" => {
                Self::Llama
            }
            "gemma" => Self::Gemma,
            "gemma2" => Self::Gemma2,
            "gemma3" | "gemma3_text" => Self::Gemma3,
            "phi3" => Self::Phi3,
            "mixtral" => Self::Mixtral,
            "qwen2_moe" | "qwen3_moe" => Self::QwenMoe,
            "deepseek_v2" | "deepseek_v3" => Self::DeepSeek,
            "gpt_oss" => Self::GptOss,
            "opt" => Self::Opt,
            "gpt2" => Self::Gpt2,
            "bert" => Self::Bert,
            _ => return None,
        })
    }

    fn norm(self) -> NormKind {
        match self {
            Self::Gemma | Self::Gemma2 | Self::Gemma3 => NormKind::RootMeanSquareOffset,
            Self::Opt | Self::Gpt2 | Self::Bert => NormKind::Layer,
            _ => NormKind::RootMeanSquare,
        }
    }
}

/// Everything that building needs at hand.
pub(super) struct Builder<'a> {
    pub(super) family: Family,
    pub(super) config: Config<'a>,
    pub(super) source: &'a dyn WeightSource,
    /// Before everything beside the blocks.
    pub(super) trunk: String,
    /// Before a block's index.
    pub(super) blocks: String,
}

impl<'a> Builder<'a> {
    pub(super) fn new(config: Config<'a>, source: &'a dyn WeightSource) -> Result<Self, ForwardError> {
        let model_type = config.model_type();
        let family =
            Family::of(model_type).ok_or_else(|| ForwardError::Architecture { architecture: model_type.to_owned() })?;
        // A block's probe, and where blocks and the rest may lie.
        let (probes, trunks): (&[&str], &[(&str, &str)]) = match family {
            Family::Opt => (&["fc1.weight"], &[("model.decoder.", "layers."), ("decoder.", "layers.")]),
            Family::Gpt2 => (&["attn.c_attn.weight"], &[("transformer.", "h."), ("", "h.")]),
            Family::Bert => (&["attention.self.query.weight"], &[("bert.", "encoder.layer."), ("", "encoder.layer.")]),
            _ => (&["input_layernorm.weight"], &[("model.", "layers."), ("", "layers.")]),
        };
        let prefixes = ["", "language_model.", "model.language_model.", "llm.", "text_model.", "model.text_model."];
        let here = |trunk: &str, blocks: &str| {
            probes.iter().any(|probe| source.shape(&format!("{trunk}{blocks}0.{probe}")).is_some())
        };
        for prefix in prefixes {
            for (base, words) in trunks {
                let trunk = format!("{prefix}{base}");
                if here(&trunk, words) {
                    return Ok(Self { family, config, source, blocks: format!("{trunk}{words}"), trunk });
                }
            }
        }
        Err(ForwardError::Tensor {
            tensor: format!("{}{}0.{}", trunks[0].0, trunks[0].1, probes[0]),
            problem: format!("is missing: the tensors are not named as those of a {model_type} model"),
        })
    }

    pub(super) fn count_of_blocks(&self) -> Result<usize, ForwardError> {
        match self.config.count("num_hidden_layers")? {
            Some(count) => Ok(count),
            None => self.config.needed("n_layer"),
        }
    }

    pub(super) fn hidden(&self) -> Result<usize, ForwardError> {
        match self.config.count("hidden_size")? {
            Some(width) => Ok(width),
            None => self.config.needed("n_embd"),
        }
    }

    fn heads(&self) -> Result<usize, ForwardError> {
        match self.config.count("num_attention_heads")? {
            Some(heads) if heads > 0 => Ok(heads),
            Some(_) => Err(ForwardError::config("num_attention_heads", "is 0")),
            None => self.config.needed("n_head"),
        }
    }

    pub(super) fn epsilon(&self) -> Result<f32, ForwardError> {
        for key in ["rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"] {
            if let Some(epsilon) = self.config.number(key)? {
                return Ok(epsilon as f32);
            }
        }
        Ok(if self.family.norm() == NormKind::Layer { 1e-5 } else { 1e-6 })
    }

    pub(super) fn norm(&self, name: String) -> Result<NormSpec, ForwardError> {
        Ok(NormSpec { name, kind: self.family.norm(), epsilon: self.epsilon()? })
    }

    fn has(&self, name: &str) -> bool {
        self.source.shape(name).is_some()
    }

    /// A linear by its module's name, with its shape checked.
    fn linear(&self, module: &str, rows: usize, columns: usize, transposed: bool) -> Result<LinearSpec, ForwardError> {
        let weight = format!("{module}.weight");
        let bias = Some(format!("{module}.bias")).filter(|bias| self.has(bias));
        self.checked(LinearSpec { weight, bias, rows, columns, transposed, expert: None }, None)
    }

    fn checked(&self, linear: LinearSpec, experts: Option<usize>) -> Result<LinearSpec, ForwardError> {
        let mut expected: Vec<usize> = experts.into_iter().collect();
        expected.extend(if linear.transposed { [linear.columns, linear.rows] } else { [linear.rows, linear.columns] });
        match self.source.shape(&linear.weight) {
            Some(shape) if shape == expected => Ok(linear),
            Some(shape) => Err(ForwardError::Tensor {
                tensor: linear.weight,
                problem: format!("is {shape:?}, expected {expected:?} from config.json"),
            }),
            None => Err(ForwardError::Tensor { tensor: linear.weight, problem: "is missing".to_owned() }),
        }
    }

    pub(super) fn activation(&self) -> Result<Activation, ForwardError> {
        let keys = ["hidden_activation", "hidden_act", "activation_function"];
        let default = match self.family {
            Family::Gemma | Family::Gemma2 | Family::Gemma3 => "gelu_pytorch_tanh",
            Family::Gpt2 => "gelu_new",
            Family::Opt => "relu",
            Family::Bert => "gelu",
            _ => "silu",
        };
        let (key, word) =
            keys.iter().find_map(|key| Some((*key, self.config.word(key)?))).unwrap_or(("hidden_act", default));
        // Gemma's oldest configs say "gelu" and mean the approximation.
        let word = if self.family == Family::Gemma && word == "gelu" { default } else { word };
        Activation::by_name(word).ok_or_else(|| ForwardError::config(key, format!("is \"{word}\", which is not known")))
    }

    /// Whether a block slides a window, and how wide.
    fn window(&self, index: usize) -> Result<Option<usize>, ForwardError> {
        let width = self.config.count("sliding_window")?.filter(|width| *width > 0);
        let Some(width) = width else { return Ok(None) };
        if let Some(kinds) = self.config.value("layer_types").and_then(serde_json::Value::as_array) {
            let sliding = kinds.get(index).and_then(serde_json::Value::as_str) == Some("sliding_attention");
            return Ok(sliding.then_some(width));
        }
        let sliding = match self.family {
            Family::Gemma2 | Family::GptOss => index.is_multiple_of(2),
            Family::Gemma3 => {
                let pattern = self.config.count("sliding_window_pattern")?.unwrap_or(6).max(1);
                !(index + 1).is_multiple_of(pattern)
            }
            Family::Llama | Family::QwenMoe if self.config.model_type().starts_with("qwen") => {
                self.config.flag("use_sliding_window")?.unwrap_or(false)
                    && index >= self.config.count("max_window_layers")?.unwrap_or(28)
            }
            _ => true,
        };
        Ok(sliding.then_some(width))
    }

    /// What block `index` computes.
    pub(super) fn block(&self, index: usize) -> Result<BlockSpec, ForwardError> {
        match self.family {
            Family::Opt => self.opt_block(index),
            Family::Gpt2 => self.gpt2_block(index),
            Family::Bert => self.bert_block(index),
            _ => self.decoder_block(index),
        }
    }

    fn decoder_block(&self, index: usize) -> Result<BlockSpec, ForwardError> {
        let (config, family) = (&self.config, self.family);
        let (name, hidden, heads) = (format!("{}{index}.", self.blocks), self.hidden()?, self.heads()?);
        let window = self.window(index)?;
        let layer = if window.is_some() { "sliding_attention" } else { "full_attention" };
        let sandwich = matches!(family, Family::Gemma2 | Family::Gemma3);
        let mut latent = None;
        let mut stages = Vec::new();
        let attention;
        let (rope, default_base);
        let mut latent_norms = None;
        let module = |part: &str| format!("{name}self_attn.{part}");
        if family == Family::DeepSeek {
            let widths = Latent {
                query: config.count("q_lora_rank")?.filter(|rank| *rank > 0),
                key_value: config.needed("kv_lora_rank")?,
                plain: config.needed("qk_nope_head_dim")?,
                rotated: config.needed("qk_rope_head_dim")?,
            };
            let (value_width, key_width) = (config.needed("v_head_dim")?, widths.plain + widths.rotated);
            let mut read = Rope::read(config, layer, widths.rotated, 10000.0)?;
            read.interleaved = config.flag("rope_interleave")?.unwrap_or(true);
            rope = Some(read);
            attention = Attention {
                heads,
                key_value_heads: heads,
                key_width,
                value_width,
                scale: self.latent_scale(key_width)?,
                causal: true,
                window,
                soft_cap: None,
            };
            let down = widths.key_value + widths.rotated;
            let first = match widths.query {
                Some(rank) => self.linear(&module("q_a_proj"), rank, hidden, false)?,
                None => self.linear(&module("q_proj"), heads * key_width, hidden, false)?,
            };
            let linears = vec![first, self.linear(&module("kv_a_proj_with_mqa"), down, hidden, false)?];
            stages.push(Stage { kind: Kind::LatentInput, linears });
            if let Some(rank) = widths.query {
                let linears = vec![self.linear(&module("q_b_proj"), heads * key_width, rank, false)?];
                stages.push(Stage { kind: Kind::LatentQuery, linears });
            }
            let rows = heads * (widths.plain + value_width);
            let linears = vec![self.linear(&module("kv_b_proj"), rows, widths.key_value, false)?];
            stages.push(Stage { kind: Kind::LatentKeyValue, linears });
            let query_norm = widths.query.map(|_| self.norm(module("q_a_layernorm"))).transpose()?;
            let mut norms = (query_norm, self.norm(module("kv_a_layernorm"))?);
            // Latent norms keep their class's own epsilon.
            norms.1.epsilon = 1e-6;
            if let Some(norm) = &mut norms.0 {
                norm.epsilon = 1e-6;
            }
            latent_norms = Some(norms);
            latent = Some(widths);
        } else {
            let width = match config.count("head_dim")?.filter(|width| *width > 0) {
                Some(width) => width,
                None if family == Family::Gemma3 => 256,
                None => hidden / heads,
            };
            let key_value_heads = config.count("num_key_value_heads")?.filter(|heads| *heads > 0).unwrap_or(heads);
            if !heads.is_multiple_of(key_value_heads) {
                return Err(ForwardError::config(
                    "num_key_value_heads",
                    format!("is {key_value_heads}, which does not divide {heads} heads"),
                ));
            }
            default_base = match family {
                Family::Gemma3 if window.is_none() => 1e6,
                Family::Mixtral => 1e6,
                Family::GptOss => 150_000.0,
                _ => 10000.0,
            };
            rope = Some(Rope::read(config, layer, width, default_base)?);
            let scale = match config.number("query_pre_attn_scalar")? {
                Some(scalar) if sandwich => scalar.powf(-0.5),
                _ => (width as f64).powf(-0.5),
            };
            attention = Attention {
                heads,
                key_value_heads,
                key_width: width,
                value_width: width,
                scale: scale as f32,
                causal: true,
                window,
                soft_cap: config.number("attn_logit_softcapping")?.filter(|_| sandwich).map(|cap| cap as f32),
            };
            let (query, key) = (heads * width, key_value_heads * width);
            let linears = if self.has(&format!("{}.weight", module("qkv_proj"))) {
                vec![self.linear(&module("qkv_proj"), query + 2 * key, hidden, false)?]
            } else {
                vec![
                    self.linear(&module("q_proj"), query, hidden, false)?,
                    self.linear(&module("k_proj"), key, hidden, false)?,
                    self.linear(&module("v_proj"), key, hidden, false)?,
                ]
            };
            stages.push(Stage { kind: Kind::Attention, linears });
        }
        let mixed = attention.heads * attention.value_width;
        let linears = vec![self.linear(&module("o_proj"), hidden, mixed, false)?];
        stages.push(Stage { kind: Kind::AttentionOutput, linears });
        let experts = self.experts(&name, index, hidden)?;
        if experts.is_some() {
            stages.push(Stage { kind: Kind::Router, linears: Vec::new() });
            for shared in ["shared_experts", "shared_expert"] {
                let module = format!("{name}mlp.{shared}");
                if let Some(shape) = self.source.shape(&format!("{module}.gate_proj.weight")) {
                    self.push_mlp(&mut stages, &module, shape[0], hidden, true)?;
                }
            }
            stages.push(Stage { kind: Kind::Experts, linears: Vec::new() });
        } else {
            let width = config.needed("intermediate_size")?;
            self.push_mlp(&mut stages, &format!("{name}mlp"), width, hidden, false)?;
        }
        let norm = |part: &str| self.norm(format!("{name}{part}"));
        let head_norms = if self.has(&format!("{}.weight", module("q_norm"))) {
            Some([self.norm(module("q_norm"))?, self.norm(module("k_norm"))?])
        } else {
            None
        };
        let sinks = Some(module("sinks")).filter(|name| self.has(name));
        Ok(BlockSpec {
            index,
            stages,
            attention_norm: Some(norm("input_layernorm")?),
            after_attention: if sandwich { After::Branch(norm("post_attention_layernorm")?) } else { After::Nothing },
            mlp_norm: Some(norm(if sandwich { "pre_feedforward_layernorm" } else { "post_attention_layernorm" })?),
            after_mlp: if sandwich { After::Branch(norm("post_feedforward_layernorm")?) } else { After::Nothing },
            head_norms,
            latent_norms,
            attention,
            latent,
            cache: None,
            sinks,
            rope,
            activation: self.activation()?,
            gated: true,
            experts,
        })
    }

    /// DeepSeek's attention scale, raised with YaRN's context (arXiv 2405.04434, appendix).
    fn latent_scale(&self, key_width: usize) -> Result<f32, ForwardError> {
        let mut scale = (key_width as f64).powf(-0.5);
        let parameters = self.config.value("rope_parameters").or_else(|| self.config.value("rope_scaling"));
        if let Some(parameters) = parameters {
            let kind = parameters["rope_type"].as_str().or_else(|| parameters["type"].as_str()).unwrap_or("default");
            let all = parameters["mscale_all_dim"].as_f64().unwrap_or(0.0);
            if kind != "default" && all != 0.0 {
                let factor = parameters["factor"]
                    .as_f64()
                    .ok_or_else(|| ForwardError::config("rope_parameters.factor", "is missing"))?;
                scale *= yarn_scale(factor, all).powi(2);
            }
        }
        Ok(scale as f32)
    }

    fn push_mlp(
        &self,
        stages: &mut Vec<Stage>,
        module: &str,
        width: usize,
        hidden: usize,
        shared: bool,
    ) -> Result<(), ForwardError> {
        let linears = if self.has(&format!("{module}.gate_up_proj.weight")) {
            vec![self.linear(&format!("{module}.gate_up_proj"), 2 * width, hidden, false)?]
        } else {
            vec![
                self.linear(&format!("{module}.gate_proj"), width, hidden, false)?,
                self.linear(&format!("{module}.up_proj"), width, hidden, false)?,
            ]
        };
        let down = vec![self.linear(&format!("{module}.down_proj"), hidden, width, false)?];
        let (first, second) =
            if shared { (Kind::SharedExpert, Kind::SharedExpertOutput) } else { (Kind::Mlp, Kind::MlpOutput) };
        stages.push(Stage { kind: first, linears });
        stages.push(Stage { kind: second, linears: down });
        Ok(())
    }

    /// The experts of a block, where it has any.
    fn experts(&self, name: &str, index: usize, hidden: usize) -> Result<Option<ExpertsSpec>, ForwardError> {
        let config = &self.config;
        let old = format!("{name}block_sparse_moe");
        let new = format!("{name}mlp");
        let routers = [format!("{old}.gate.weight"), format!("{new}.gate.weight"), format!("{new}.router.weight")];
        let Some(router) = routers.into_iter().find(|router| self.has(router)) else { return Ok(None) };
        let base = if router.starts_with(&old) { old } else { new };
        let shape = self.source.shape(&router).unwrap_or_default();
        let experts = shape.first().copied().unwrap_or(0);
        let top = config.needed("num_experts_per_tok")?;
        if top > experts {
            return Err(ForwardError::config(
                "num_experts_per_tok",
                format!("is {top}, but block {index} has {experts} experts"),
            ));
        }
        let oss = self.family == Family::GptOss;
        let stacked = format!("{base}.experts.gate_up_proj");
        let (mut inputs, mut outputs) = (Vec::with_capacity(experts), Vec::with_capacity(experts));
        let width = match config.count("moe_intermediate_size")? {
            Some(width) => width,
            None => config.needed("intermediate_size")?,
        };
        for expert in 0..experts {
            if self.has(&stacked) {
                let bias = |name: String| Some(name).filter(|name| self.has(name));
                let up = LinearSpec {
                    weight: stacked.clone(),
                    bias: bias(format!("{stacked}_bias")),
                    rows: 2 * width,
                    columns: hidden,
                    transposed: oss,
                    expert: Some(expert),
                };
                let down = format!("{base}.experts.down_proj");
                let down = LinearSpec {
                    bias: bias(format!("{down}_bias")),
                    weight: down,
                    rows: hidden,
                    columns: width,
                    transposed: oss,
                    expert: Some(expert),
                };
                inputs.push(vec![self.checked(up, Some(experts))?]);
                outputs.push(self.checked(down, Some(experts))?);
            } else {
                let module = format!("{base}.experts.{expert}");
                let names = if self.has(&format!("{module}.w1.weight")) {
                    ["w1", "w3", "w2"]
                } else {
                    ["gate_proj", "up_proj", "down_proj"]
                };
                inputs.push(vec![
                    self.linear(&format!("{module}.{}", names[0]), width, hidden, false)?,
                    self.linear(&format!("{module}.{}", names[1]), width, hidden, false)?,
                ]);
                outputs.push(self.linear(&format!("{module}.{}", names[2]), hidden, width, false)?);
            }
        }
        let normalize = config.flag("norm_topk_prob")?;
        let rule = match self.family {
            Family::GptOss => RouterRule::SoftmaxOfTop,
            Family::DeepSeek if config.model_type() == "deepseek_v2" => RouterRule::GroupedSoftmax {
                groups: match config.word("topk_method") {
                    Some("group_limited_greedy") => config.count("n_group")?.unwrap_or(1).max(1),
                    _ => 1,
                },
                chosen_groups: config.count("topk_group")?.unwrap_or(1).max(1),
                scale: config.number("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            },
            Family::DeepSeek => RouterRule::GroupedSigmoid {
                groups: config.count("n_group")?.unwrap_or(1).max(1),
                chosen_groups: config.count("topk_group")?.unwrap_or(1).max(1),
                normalize: normalize.unwrap_or(true),
                scale: config.number("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            },
            Family::Mixtral => RouterRule::Softmax { normalize: true },
            _ => RouterRule::Softmax { normalize: normalize.unwrap_or(false) },
        };
        let sibling =
            |word: &str| Some(format!("{}{word}", router.trim_end_matches("weight"))).filter(|name| self.has(name));
        Ok(Some(ExpertsSpec {
            inputs,
            outputs,
            top,
            router_bias: sibling("bias"),
            correction: sibling("e_score_correction_bias"),
            rule,
            alternating: if oss {
                let (alpha, limit) = (config.number("swiglu_alpha")?, config.number("swiglu_limit")?);
                Some((alpha.unwrap_or(1.702) as f32, limit.unwrap_or(7.0) as f32))
            } else {
                None
            },
            shared_gate: Some(format!("{base}.shared_expert_gate.weight")).filter(|name| self.has(name)),
            router,
        }))
    }
}
