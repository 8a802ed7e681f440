//! Where channels of a block can be scaled without changing what it computes: what makes a channel is divided by s, what
//! reads it is multiplied by s.
//!
//! Sources: SmoothQuant (arXiv 2211.10438, §4) folds norms into the linears behind them; AWQ (arXiv 2306.00978, §3.2)
//! adds values → attention output and up → down. Beyond them: shared scales of grouped value heads, fused projections,
//! latent attention, every consumer of an expert block's norm (router and shared gate included).

pub use crate::passes::folding::FoldKind;
use crate::{
    forward::{After, BlockSpec, ExpertsSpec, Kind, LinearSpec, NormKind, NormSpec, Stage},
    passes::folding::Channels,
};

/// What makes the channels of a fold.
#[derive(Debug, Clone, PartialEq)]
pub enum Producer {
    /// A norm: its weight, and its bias where it has one.
    Norm {
        /// Name without `.weight`.
        name: String,
        /// Gemma: the norm multiplies by one plus the stored weight.
        offset_one: bool,
    },
    /// Rows of a linear, and their biases.
    Rows {
        /// The linear.
        linear: LinearSpec,
        /// The row (of one expert) that makes each free channel.
        rows: Vec<usize>,
    },
}

/// A place where channels can be scaled for free.
#[derive(Debug, Clone, PartialEq)]
pub struct Fold {
    /// Which.
    pub kind: FoldKind,
    /// The producer's name, for reports.
    pub name: String,
    /// Free scales.
    pub channels: usize,
    /// Input channels of the consumers.
    pub width: usize,
    /// The free scale of each consumer channel, where they are not one to one: heads that share values.
    pub channel_of: Option<Vec<usize>>,
    /// What is divided.
    pub producer: Producer,
    /// Linears whose columns are multiplied.
    pub consumers: Vec<LinearSpec>,
    /// Other tensors whose columns are multiplied, not quantized: router, gate of the shared expert.
    pub others: Vec<String>,
    /// The stage whose input the consumers read; [`Kind::Experts`] for experts, though the router reads the same input
    /// a stage earlier.
    pub stage: usize,
    /// The routed expert that the fold lies in.
    pub expert: Option<usize>,
}

impl Fold {
    /// How free scales map to the consumers' channels.
    #[must_use]
    pub fn sharing(&self) -> Channels<'_> {
        Channels { count: self.channels, of: self.channel_of.as_deref() }
    }
}

/// Every exact fold of a block, in the order in which its stages compute.
#[must_use]
pub fn folds(block: &BlockSpec) -> Vec<Fold> {
    let mut found = Vec::new();
    // A norm that both branches read would have to be folded into both at once.
    let shared_norm = match (&block.attention_norm, &block.mlp_norm) {
        (Some(attention), Some(mlp)) => attention.name == mlp.name,
        _ => false,
    };
    let pre_norm = |norm: &'_ Option<NormSpec>, after: &After| -> Option<NormSpec> {
        norm.clone().filter(|_| !shared_norm && !matches!(after, After::Sum(_)))
    };
    for (index, stage) in block.stages.iter().enumerate() {
        let next = block.stages.get(index + 1);
        match stage.kind {
            Kind::Attention | Kind::LatentInput | Kind::LatentCache => {
                let norm = pre_norm(&block.attention_norm, &block.after_attention);
                found.extend(norm_fold(FoldKind::Attention, norm.as_ref(), stage.linears.clone(), index));
                if stage.kind == Kind::Attention {
                    found.extend(value_fold(block, stage, next, index + 1));
                }
            }
            Kind::LatentQuery => {
                let norm = block.latent_norms.as_ref().and_then(|norms| norms.0.as_ref());
                found.extend(norm_fold(FoldKind::Latent, norm, stage.linears.clone(), index));
            }
            Kind::LatentKeyValue => {
                let norm = block.latent_norms.as_ref().map(|norms| &norms.1);
                found.extend(norm_fold(FoldKind::Latent, norm, stage.linears.clone(), index));
                found.extend(value_fold(block, stage, next, index + 1));
            }
            Kind::Mlp | Kind::SharedExpert => {
                if stage.kind == Kind::Mlp {
                    let norm = pre_norm(&block.mlp_norm, &block.after_mlp);
                    found.extend(norm_fold(FoldKind::Mlp, norm.as_ref(), stage.linears.clone(), index));
                }
                let down = next.and_then(|next| next.linears.first());
                found.extend(up_fold(block, &stage.linears, down, index + 1, None));
            }
            Kind::Experts => {
                let Some(experts) = &block.experts else { continue };
                let norm = pre_norm(&block.mlp_norm, &block.after_mlp);
                found.extend(experts_fold(block, experts, norm.as_ref(), index));
                if experts.alternating.is_none() {
                    for (expert, (inputs, output)) in experts.inputs.iter().zip(&experts.outputs).enumerate() {
                        found.extend(up_fold(block, inputs, Some(output), index, Some(expert)));
                    }
                }
            }
            Kind::AttentionOutput | Kind::MlpOutput | Kind::Router | Kind::SharedExpertOutput => {}
        }
    }
    found
}

fn norm_fold(kind: FoldKind, norm: Option<&NormSpec>, consumers: Vec<LinearSpec>, stage: usize) -> Option<Fold> {
    let norm = norm?;
    let width = consumers.first()?.columns;
    let offset_one = norm.kind == NormKind::RootMeanSquareOffset;
    Some(Fold {
        kind,
        name: norm.name.clone(),
        channels: width,
        width,
        channel_of: None,
        producer: Producer::Norm { name: norm.name.clone(), offset_one },
        consumers,
        others: Vec::new(),
        stage,
        expert: None,
    })
}

/// The norm before routed experts: everything that reads it.
fn experts_fold(block: &BlockSpec, experts: &ExpertsSpec, norm: Option<&NormSpec>, stage: usize) -> Option<Fold> {
    let shared = block.stages.iter().filter(|stage| stage.kind == Kind::SharedExpert).flat_map(|stage| &stage.linears);
    let consumers = shared.chain(experts.inputs.iter().flatten()).cloned().collect();
    let mut fold = norm_fold(FoldKind::Mlp, norm, consumers, stage)?;
    fold.others = std::iter::once(&experts.router).chain(&experts.shared_gate).cloned().collect();
    Some(fold)
}

/// Values → attention's output. Attention mixes tokens, not channels, so a value channel passes it as it is; heads that
/// share values share scales.
fn value_fold(block: &BlockSpec, stage: &Stage, next: Option<&Stage>, output_stage: usize) -> Option<Fold> {
    let output = next.filter(|next| next.kind == Kind::AttentionOutput)?.linears.first()?;
    let attention = &block.attention;
    let (heads, shared, width) = (attention.heads, attention.key_value_heads, attention.value_width);
    if output.columns != heads * width || shared == 0 || !heads.is_multiple_of(shared) {
        return None;
    }
    // The first value row among the outputs of all linears side by side, and from one head to the next.
    let (first, stride) = match &block.latent {
        Some(latent) => (latent.plain, latent.plain + width),
        None => ((heads + shared) * attention.key_width, width),
    };
    let mut before = 0;
    let linear = stage.linears.iter().find(|linear| {
        let here = (before..before + linear.rows).contains(&first);
        before += if here { 0 } else { linear.rows };
        here
    })?;
    let rows: Vec<usize> = (0..shared * width).map(|c| first - before + c / width * stride + c % width).collect();
    if rows.last().is_none_or(|last| *last >= linear.rows) {
        return None;
    }
    let group = heads / shared;
    let channel_of = (group > 1).then(|| (0..heads * width).map(|c| c / width / group * width + c % width).collect());
    Some(rows_fold(FoldKind::Value, linear, rows, output, channel_of, output_stage))
}

/// Up → down: σ(gate) · up is linear in up. Without a gate only `ReLU` passes a positive scale on.
fn up_fold(
    block: &BlockSpec,
    inputs: &[LinearSpec],
    down: Option<&LinearSpec>,
    stage: usize,
    expert: Option<usize>,
) -> Option<Fold> {
    let down = down?;
    let width = down.columns;
    let gated = block.gated || expert.is_some();
    let (linear, first) = match inputs {
        [_, up] if gated => (up, 0),
        [fused] if gated => (fused, width),
        [only] if block.activation == crate::forward::Activation::Relu => (only, 0),
        _ => return None,
    };
    if linear.rows != first + width {
        return None;
    }
    let mut fold = rows_fold(FoldKind::Up, linear, (first..first + width).collect(), down, None, stage);
    fold.expert = expert;
    Some(fold)
}

fn rows_fold(
    kind: FoldKind,
    linear: &LinearSpec,
    rows: Vec<usize>,
    consumer: &LinearSpec,
    channel_of: Option<Vec<usize>>,
    stage: usize,
) -> Fold {
    let module = linear.weight.strip_suffix(".weight").unwrap_or(&linear.weight);
    let name = linear.expert.map_or_else(|| module.to_owned(), |expert| format!("{module}[{expert}]"));
    Fold {
        kind,
        name,
        channels: rows.len(),
        width: consumer.columns,
        channel_of,
        producer: Producer::Rows { linear: linear.clone(), rows },
        consumers: vec![consumer.clone()],
        others: Vec::new(),
        stage,
        expert: None,
    }
}
