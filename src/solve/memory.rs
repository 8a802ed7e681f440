//! What calibration takes: the largest stage decides, never the model.

use crate::{
    forward::{After, BlockSpec, Kind, Limits, LinearSpec, Model},
    passes::TrainingSettings,
    plan::{FACTORS_BYTES_PER_WEIGHT, GRAM_BYTES_PER_PRODUCT},
    recipe::Calibration,
    solve::Wanted,
    train::{self, Held},
};

/// Tokens that are computed together when nothing limits them.
const BATCH_TOKENS: usize = 2048;
/// Default bytes for experts and their moments.
const DEFAULT_EXPERT_BYTES: u64 = 2 << 30;
/// The process itself.
const BASE_BYTES: u64 = 64 << 20;

/// What is to be solved, and with how much memory.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "what a recipe's passes need, each on its own")]
pub struct SolvePlan {
    /// What the model computes.
    pub model: Model,
    /// The text's description.
    pub calibration: Calibration,
    /// The text.
    pub tokens: crate::calibration::Tokens,
    /// Whether the stream of the original model runs beside that of the compressed one.
    pub both_streams: bool,
    /// Whether encodings see the compressed model.
    pub compressed: bool,
    /// Whether a difference from the original inputs is gathered.
    pub drift: bool,
    /// Whether any matrix is encoded with second moments.
    pub encodes: bool,
    /// Whether any of them has rotated inputs, whose moments are rotated alongside.
    pub rotated: bool,
    /// Whether any share codebooks, and so are found together.
    pub shared: bool,
    /// Whether any of them is masked, which has a factor of its own.
    pub masked: bool,
    /// Whether any of them is stored as a difference from a base, which is in memory beside it.
    pub differs: bool,
    /// Whether any of them becomes factors, which are found in F64.
    pub factored: bool,
    /// Whether anything has to be known of inputs, so that the text flows through the model.
    pub needs_inputs: bool,
    /// What is trained behind all that.
    pub training: Option<TrainingPlan>,
    /// The transforms, in the recipe's order.
    pub transforms: Vec<TransformRule>,
    /// Tensors that transforms change, and which passes do it.
    pub touched: std::collections::BTreeMap<String, Vec<String>>,
    /// What is in memory at a time.
    pub limits: Limits,
    /// Bytes of memory at most.
    pub peak_bytes: u64,
    /// The smallest budget that works.
    pub smallest_bytes: u64,
    /// Bytes of hidden states and solutions on disk.
    pub disk_bytes: u64,
}

/// A training of a recipe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingPlan {
    /// How.
    pub settings: TrainingSettings,
    /// What is held while it goes on.
    pub held: Held,
}

/// A transform of a recipe.
#[derive(Debug, Clone)]
pub struct TransformRule {
    /// The pass's name.
    pub pass: String,
    /// Its settings.
    pub settings: crate::passes::Settings,
    /// The linears it may change.
    pub linears: std::collections::BTreeSet<String>,
}

impl SolvePlan {
    /// What the moments of one input hold.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        let transforms = !self.transforms.is_empty();
        Wanted { hessian: self.encodes || transforms, drift: self.drift, sample: transforms, residual: 0 }
    }

    /// The same for a stage: where its outputs go straight into the residual stream, that stream's difference too.
    #[must_use]
    pub fn wanted_at(&self, block: &BlockSpec, stage: usize) -> Wanted {
        let after = match block.stages[stage].kind {
            Kind::AttentionOutput => &block.after_attention,
            Kind::MlpOutput => &block.after_mlp,
            _ => return self.wanted(),
        };
        // A norm of the branch alone stands between.
        let straight = self.drift && !matches!(after, After::Branch(_));
        Wanted { residual: if straight { self.model.hidden } else { 0 }, ..self.wanted() }
    }

    /// Chooses limits for a budget.
    ///
    /// # Errors
    /// [`super::SolveFailure::Memory`] with the smallest budget that works.
    pub fn fit(&mut self, budget: Option<u64>, solved_bytes: u64) -> Result<(), super::SolveFailure> {
        let length = self.calibration.sequence_length as usize;
        let smallest = Limits { batch_tokens: BATCH_TOKENS.max(length), expert_bytes: 0 };
        self.smallest_bytes = self.need(&smallest);
        let mut limits = Limits { batch_tokens: BATCH_TOKENS.max(length), expert_bytes: DEFAULT_EXPERT_BYTES };
        if let Some(budget) = budget {
            if budget < self.smallest_bytes {
                return Err(super::SolveFailure::Memory { budget, smallest: self.smallest_bytes });
            }
            limits.expert_bytes = budget / 2;
            // Batches stay as they are: sums over other batches would round otherwise.
            while self.need(&limits) > budget && limits.expert_bytes > 0 {
                limits.expert_bytes = if limits.expert_bytes < 1 << 20 { 0 } else { limits.expert_bytes * 3 / 4 };
            }
        }
        self.limits = limits;
        self.peak_bytes = self.need(&limits);
        let tokens = self.calibration.sequences * self.calibration.sequence_length;
        let streams = 1 + u64::from(self.both_streams);
        let state = self.model.state_width() as u64 + 2 * self.model.hidden as u64;
        self.disk_bytes = tokens * streams * state * 4 + solved_bytes;
        if let Some(TrainingPlan { settings, held }) = self.training {
            let disk = train::memory::disk_bytes(&self.model, length, settings.training.batch, held);
            self.disk_bytes += disk + held.fixed_bytes + 4 * held.parameters;
        }
        Ok(())
    }

    /// Experts whose moments are gathered at a time.
    #[must_use]
    pub fn experts_at_once(&self, block: &BlockSpec, limits: &Limits) -> usize {
        let Some(experts) = &block.experts else { return 1 };
        let one = self.expert_bytes(&experts.inputs[0], &experts.outputs[0]);
        ((limits.expert_bytes / one.max(1)) as usize).clamp(1, experts.outputs.len().max(1))
    }

    fn expert_bytes(&self, inputs: &[LinearSpec], output: &LinearSpec) -> u64 {
        let copies = 4 * (1 + u64::from(self.both_streams));
        let weights: u64 = inputs.iter().chain([output]).map(|linear| linear.weights() as u64).sum();
        let width = inputs.first().map_or(0, |linear| linear.columns);
        self.wanted().bytes(width.max(output.columns)) + copies * weights
    }

    /// Bytes that solving takes within these limits.
    fn need(&self, limits: &Limits) -> u64 {
        let length = self.calibration.sequence_length as usize;
        let tokens = (limits.batch_sequences(length) * length) as u64;
        let streams = 1 + u64::from(self.both_streams);
        let blocks = self.model.blocks.iter().map(|block| {
            // Two streams of one batch, or two batches of one stream.
            let activations = tokens * 4 * 2 * 3 * self.model.state_width() as u64;
            let mut before = 0;
            let mut largest = 0;
            for (index, stage) in block.stages.iter().enumerate() {
                let need = if stage.kind == Kind::Experts {
                    let experts = block.experts.as_ref();
                    let one = experts.map_or(0, |experts| self.expert_bytes(&experts.inputs[0], &experts.outputs[0]));
                    let solver = experts.map_or(0, |experts| self.solver_bytes(&experts.inputs[0]));
                    one * self.experts_at_once(block, limits) as u64 + solver
                } else {
                    let weights: u64 = stage.linears.iter().map(|linear| linear.weights() as u64).sum();
                    let outputs: u64 = stage.linears.iter().map(|linear| linear.rows as u64).sum();
                    let columns = stage.linears.first().map_or(0, |linear| linear.columns);
                    let held = before;
                    before = 4 * weights * streams;
                    let gather = self.wanted_at(block, index).bytes(columns);
                    held.max(before) + before + gather + self.solver_bytes(&stage.linears) + tokens * 4 * 2 * outputs
                };
                largest = largest.max(need);
            }
            activations + largest
        });
        let embedding = 64 << 20;
        let solving = BASE_BYTES + embedding + blocks.max().unwrap_or(0);
        let training = self.training.map_or(0, |TrainingPlan { settings, held }| {
            train::memory::peak_bytes(&self.model, length, settings.training.batch, held)
        });
        solving.max(training)
    }

    /// The factor, and copies of the largest matrix in work.
    fn solver_bytes(&self, linears: &[LinearSpec]) -> u64 {
        let columns = linears.first().map_or(0, |linear| linear.columns) as u64;
        let weights = linears.iter().map(|linear| linear.weights() as u64);
        let largest = if self.shared { weights.sum() } else { weights.max().unwrap_or(0) };
        let rotated =
            if self.rotated { self.wanted().bytes(linears.first().map_or(0, |linear| linear.columns)) } else { 0 };
        let masked = if self.masked { 12 * columns * columns } else { 0 };
        let factor = if self.encodes { 12 * columns * columns + rotated + masked } else { 0 };
        // Rotated: the weights, the residual's moments, and what is decoded.
        let copies = if self.rotated { 13 + 12 } else { 13 };
        // Masked: the weights kept, and what is stored of them as it is written and read.
        let copies = if self.masked { copies + 12 } else { copies };
        // A difference: the base, what is left, its products and what is added up again.
        let copies = if self.differs { copies + 24 } else { copies };
        // Factors: products of outputs of the plain decomposition and the one asked for.
        let rows = linears.iter().map(|linear| linear.rows as u64).max().unwrap_or(0);
        let factored = 2 * (FACTORS_BYTES_PER_WEIGHT * largest + GRAM_BYTES_PER_PRODUCT * rows * rows);
        let factored = if self.factored { factored } else { 0 };
        if self.encodes || self.compressed { factor + factored + copies * largest } else { 0 }
    }
}
