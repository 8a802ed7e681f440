//! Mixture of experts: the router, and one expert at a time.

use rayon::prelude::*;

use super::{
    ForwardError, Matrix, State, WeightSource, apply_together,
    block::vector,
    kernels::{self, Activation},
    matrix::multiply_transposed,
    spec::{BlockSpec, ExpertsSpec, RouterRule},
    weights::Linear,
};

/// A router's weights.
#[derive(Debug)]
pub(super) struct Router {
    weight: Matrix,
    bias: Vec<f32>,
    correction: Vec<f32>,
    rule: RouterRule,
    top: usize,
}

impl Router {
    pub(super) fn read(spec: &ExpertsSpec, source: &dyn WeightSource) -> Result<Self, ForwardError> {
        let values = vector(source, &spec.router)?;
        let experts = spec.outputs.len();
        let optional = |name: &Option<String>| -> Result<Vec<f32>, ForwardError> {
            name.as_ref().map(|name| vector(source, name)).transpose().map(Option::unwrap_or_default)
        };
        Ok(Self {
            weight: Matrix { rows: experts, columns: values.len() / experts.max(1), values },
            bias: optional(&spec.router_bias)?,
            correction: optional(&spec.correction)?,
            rule: spec.rule,
            top: spec.top,
        })
    }

    /// The experts of every token and their weights: rows `[index …, weight …]`, `[tokens, 2 · top]`.
    pub(super) fn route(&self, x: &Matrix) -> Matrix {
        let mut logits = multiply_transposed(x, &self.weight);
        let mut routing = Matrix::zeros(x.rows, 2 * self.top);
        let experts = self.weight.rows.max(1);
        routing.values.par_chunks_mut(2 * self.top).zip(logits.values.par_chunks_mut(experts)).for_each(
            |(out, logits)| {
                for (logit, bias) in logits.iter_mut().zip(&self.bias) {
                    *logit += bias;
                }
                self.choose(logits, out);
            },
        );
        routing
    }

    fn choose(&self, logits: &mut [f32], out: &mut [f32]) {
        let (indices, weights) = out.split_at_mut(self.top);
        match self.rule {
            RouterRule::Softmax { normalize } => {
                kernels::softmax(logits, None);
                largest(logits, indices);
                gather(logits, indices, weights);
                if normalize {
                    divide_by_sum(weights, 0.0);
                }
            }
            RouterRule::SoftmaxOfTop => {
                largest(logits, indices);
                gather(logits, indices, weights);
                kernels::softmax(weights, None);
            }
            RouterRule::GroupedSoftmax { groups, chosen_groups, scale } => {
                kernels::softmax(logits, None);
                let size = (logits.len() / groups.max(1)).max(1);
                let scores: Vec<f32> =
                    logits.chunks(size).map(|group| group.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
                let mut choice = logits.to_vec();
                keep_groups(&mut choice, size, &scores, chosen_groups);
                largest(&choice, indices);
                gather(logits, indices, weights);
                for weight in weights {
                    *weight *= scale;
                }
            }
            RouterRule::GroupedSigmoid { groups, chosen_groups, normalize, scale } => {
                let scores: Vec<f32> = logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
                let zero = vec![0.0; scores.len()];
                let correction = if self.correction.is_empty() { &zero } else { &self.correction };
                let mut choice: Vec<f32> = scores.iter().zip(correction).map(|(score, bias)| score + bias).collect();
                let size = (choice.len() / groups.max(1)).max(1);
                let group_scores: Vec<f32> = choice
                    .chunks(size)
                    .map(|group| {
                        let mut best = [0.0; 2];
                        let count = best.len().min(group.len());
                        largest(group, &mut best[..count]);
                        best[..count].iter().map(|index| group[*index as usize]).sum()
                    })
                    .collect();
                keep_groups(&mut choice, size, &group_scores, chosen_groups);
                largest(&choice, indices);
                gather(&scores, indices, weights);
                if normalize {
                    divide_by_sum(weights, 1e-20);
                }
                for weight in weights {
                    *weight *= scale;
                }
            }
        }
    }
}

/// Leaves only the groups with the best scores to choose from.
fn keep_groups(choice: &mut [f32], size: usize, scores: &[f32], chosen: usize) {
    let mut kept = vec![0.0; chosen.min(scores.len())];
    largest(scores, &mut kept);
    for (group, part) in choice.chunks_mut(size).enumerate() {
        if !kept.contains(&(group as f32)) {
            part.fill(f32::NEG_INFINITY);
        }
    }
}

/// Indices of the largest values, the first of equals first.
fn largest(values: &[f32], indices: &mut [f32]) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    for (index, place) in indices.iter_mut().zip(order) {
        *index = place as f32;
    }
}

fn gather(values: &[f32], indices: &[f32], out: &mut [f32]) {
    for (out, index) in out.iter_mut().zip(indices) {
        *out = values[*index as usize];
    }
}

fn divide_by_sum(weights: &mut [f32], least: f32) {
    let sum: f32 = weights.iter().sum::<f32>() + least;
    for weight in weights {
        *weight /= sum;
    }
}

/// Which tokens of a state an expert sees, and with what weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routing {
    /// Rows of the state's token matrices.
    pub tokens: Vec<usize>,
    /// The weight of the expert's output for each.
    pub weights: Vec<f32>,
}

impl Routing {
    /// The tokens of `expert` in a state behind the router.
    #[must_use]
    pub fn of(state: &State, expert: usize) -> Self {
        let mut routing = Self::default();
        let Some(table) = state.carried.get(1) else { return routing };
        let top = table.columns / 2;
        for token in 0..table.rows {
            let (indices, weights) = table.row(token).split_at(top);
            for (index, weight) in indices.iter().zip(weights) {
                if *index as usize == expert {
                    routing.tokens.push(token);
                    routing.weights.push(*weight);
                }
            }
        }
        routing
    }

    /// Adds to `counts` how many tokens of a state behind the router each expert sees.
    pub fn count(state: &State, counts: &mut [u64]) {
        let Some(table) = state.carried.get(1) else { return };
        for token in 0..table.rows {
            for index in &table.row(token)[..table.columns / 2] {
                if let Some(count) = counts.get_mut(*index as usize) {
                    *count += 1;
                }
            }
        }
    }

    /// The expert's input: those rows of the state's expert input.
    #[must_use]
    pub fn gather(&self, state: &State) -> Matrix {
        let source = &state.carried[0];
        let mut values = Vec::with_capacity(self.tokens.len() * source.columns);
        for token in &self.tokens {
            values.extend_from_slice(source.row(*token));
        }
        Matrix { rows: self.tokens.len(), columns: source.columns, values }
    }

    /// Adds the expert's outputs to the sum that the state carries.
    pub fn scatter(&self, state: &mut State, y: &Matrix) {
        let sum = &mut state.carried[2];
        for ((token, weight), row) in self.tokens.iter().zip(&self.weights).zip(y.values.chunks_exact(y.columns.max(1)))
        {
            for (sum, value) in sum.row_mut(*token).iter_mut().zip(row) {
                *sum += weight * value;
            }
        }
    }
}

/// One expert in memory.
#[derive(Debug)]
pub struct Expert {
    /// Gate and up.
    pub inputs: Vec<Linear>,
    /// Down.
    pub output: Linear,
    activation: Activation,
    alternating: Option<(f32, f32)>,
}

impl Expert {
    /// Reads expert `index` of a block.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn read(block: &BlockSpec, index: usize, source: &dyn WeightSource) -> Result<Option<Self>, ForwardError> {
        let Some(experts) = &block.experts else { return Ok(None) };
        let inputs = experts.inputs[index].iter().map(|linear| linear.read(source)).collect::<Result<Vec<_>, _>>()?;
        let output = experts.outputs[index].read(source)?;
        Ok(Some(Self { inputs, output, activation: block.activation, alternating: experts.alternating }))
    }

    /// The hidden activations of its input, the input of its down-projection.
    #[must_use]
    pub fn hidden(&self, x: &Matrix) -> Matrix {
        let y = apply_together(&self.inputs, x);
        match self.alternating {
            None => kernels::gated(&y, self.activation),
            Some((alpha, limit)) => {
                let mut out = Matrix::zeros(y.rows, y.columns / 2);
                for (out, row) in
                    out.values.chunks_exact_mut((y.columns / 2).max(1)).zip(y.values.chunks_exact(y.columns.max(1)))
                {
                    kernels::clamped_gate(row, alpha, limit, out);
                }
                out
            }
        }
    }

    /// Its outputs.
    #[must_use]
    pub fn output(&self, hidden: &Matrix) -> Matrix {
        apply_together(std::slice::from_ref(&self.output), hidden)
    }

    /// Adds its outputs for the tokens of a state that chose it.
    pub fn add_to(&self, state: &mut State, index: usize) {
        let routing = Routing::of(state, index);
        if routing.tokens.is_empty() {
            return;
        }
        let y = self.output(&self.hidden(&routing.gather(state)));
        routing.scatter(state, &y);
    }
}
