//! What a model computes, as data.

use super::{Activation, CacheSpec, LinearSpec, attention::Attention, kernels::NormKind, rope::Rope};

/// What a stage does with the outputs of its linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Queries, keys and values, then attention.
    Attention,
    /// Attention's outputs back into the residual stream.
    AttentionOutput,
    /// Latent attention: down-projections of queries (or queries themselves) and of keys and values.
    LatentInput,
    /// Latent attention: queries from their latents.
    LatentQuery,
    /// Latent attention: keys and values from their latents, then attention.
    LatentKeyValue,
    /// Queries, and latents of keys and values that a cache holds, then attention over them; see [`CacheSpec`].
    LatentCache,
    /// Gate and up, or the only up-projection, then the activation.
    Mlp,
    /// Back into the residual stream.
    MlpOutput,
    /// The router: no linears of its own that a pass takes.
    Router,
    /// Gate and up of the expert that sees every token.
    SharedExpert,
    /// Its output.
    SharedExpertOutput,
    /// All routed experts, then back into the residual stream; see [`super::Expert`].
    Experts,
}

impl Kind {
    /// What its input is called in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention | Self::LatentInput | Self::LatentCache => "attention input",
            Self::AttentionOutput => "attention output",
            Self::LatentQuery => "query latent",
            Self::LatentKeyValue => "key-value latent",
            Self::Mlp => "mlp input",
            Self::MlpOutput => "mlp hidden",
            Self::Router => "router",
            Self::SharedExpert => "shared expert input",
            Self::SharedExpertOutput => "shared expert hidden",
            Self::Experts => "experts",
        }
    }
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// What it does.
    pub kind: Kind,
    /// The linears that share its input, in the order of their outputs.
    pub linears: Vec<LinearSpec>,
}

/// A norm by name; the weights are read with the block.
#[derive(Debug, Clone, PartialEq)]
pub struct NormSpec {
    /// Name without `.weight`.
    pub name: String,
    /// Its rule.
    pub kind: NormKind,
    /// Its epsilon.
    pub epsilon: f32,
}

/// Where a block normalises behind a branch.
#[derive(Debug, Clone, PartialEq)]
pub enum After {
    /// Nowhere: h + branch.
    Nothing,
    /// h + norm(branch): Gemma 2 and 3.
    Branch(NormSpec),
    /// norm(h + branch): BERT, OPT-350m.
    Sum(NormSpec),
}

/// How tokens choose experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouterRule {
    /// Soft-max over all experts, the largest k; perhaps divided by their sum.
    Softmax {
        /// Whether the k weights are made to sum to one.
        normalize: bool,
    },
    /// The largest k logits, soft-max over those: gpt-oss.
    SoftmaxOfTop,
    /// Soft-max, groups by their best: DeepSeek-V2.
    GroupedSoftmax {
        /// Groups.
        groups: usize,
        /// Groups that a token may use.
        chosen_groups: usize,
        /// What the weights are multiplied by.
        scale: f32,
    },
    /// Sigmoid, groups by the sum of their two best, correction bias for the choice only: DeepSeek-V3.
    GroupedSigmoid {
        /// Groups.
        groups: usize,
        /// Groups that a token may use.
        chosen_groups: usize,
        /// Whether the k weights are made to sum to one.
        normalize: bool,
        /// What the weights are multiplied by.
        scale: f32,
    },
}

/// The experts of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsSpec {
    /// Each expert's linears on its input (gate and up, or one fused).
    pub inputs: Vec<Vec<LinearSpec>>,
    /// Each expert's down-projection.
    pub outputs: Vec<LinearSpec>,
    /// Experts per token.
    pub top: usize,
    /// Name of the router's weight.
    pub router: String,
    /// Name of the router's bias.
    pub router_bias: Option<String>,
    /// Name of the correction bias.
    pub correction: Option<String>,
    /// How tokens choose.
    pub rule: RouterRule,
    /// gpt-oss: gate and up in turn, with these alpha and limit.
    pub alternating: Option<(f32, f32)>,
    /// Name of the weight of the shared expert's gate.
    pub shared_gate: Option<String>,
}

/// Latent attention's widths (DeepSeek).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Width of the query latent; none where queries are made at once.
    pub query: Option<usize>,
    /// Width of the key-value latent.
    pub key_value: usize,
    /// Channels of a head that are not rotated.
    pub plain: usize,
    /// Channels of a head that are rotated.
    pub rotated: usize,
}

/// One block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSpec {
    /// Which.
    pub index: usize,
    /// Its stages, in order.
    pub stages: Vec<Stage>,
    /// Norm before attention.
    pub attention_norm: Option<NormSpec>,
    /// Behind attention.
    pub after_attention: After,
    /// Norm before the MLP.
    pub mlp_norm: Option<NormSpec>,
    /// Behind the MLP.
    pub after_mlp: After,
    /// Norms of query and key heads.
    pub head_norms: Option<[NormSpec; 2]>,
    /// Norms of latents (query where there is one, key-value).
    pub latent_norms: Option<(Option<NormSpec>, NormSpec)>,
    /// Attention.
    pub attention: Attention,
    /// Latent attention.
    pub latent: Option<Latent>,
    /// What is kept instead of keys and values.
    pub cache: Option<CacheSpec>,
    /// Name of the sinks.
    pub sinks: Option<String>,
    /// Rotary embedding.
    pub rope: Option<Rope>,
    /// The MLP's activation.
    pub activation: Activation,
    /// Whether the MLP is gated.
    pub gated: bool,
    /// Experts instead of an MLP.
    pub experts: Option<ExpertsSpec>,
}

impl BlockSpec {
    /// Every linear of the block, experts included.
    pub fn linears(&self) -> impl Iterator<Item = &LinearSpec> {
        let experts = self.experts.iter().flat_map(|experts| experts.inputs.iter().flatten().chain(&experts.outputs));
        self.stages.iter().flat_map(|stage| &stage.linears).chain(experts)
    }
}
