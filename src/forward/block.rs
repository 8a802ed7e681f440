//! One block, computed stage by stage.

use rayon::prelude::*;

use super::{
    BlockSpec, Expanded, ForwardError, Kind, Matrix, State, WeightSource, apply_together,
    attention::Heads,
    experts::Router,
    kernels::{self, Norm, NormKind},
    latent_cache::LatentCache,
    matrix::multiply_transposed,
    rope::Rotation,
    spec::{After, NormSpec},
    weights::Linear,
};

/// A block with its small weights (norms, sinks, router) in memory; linears are read by whoever drives it.
#[derive(Debug)]
pub struct Block<'a> {
    /// What it computes.
    pub spec: &'a BlockSpec,
    pub(super) attention_norm: Option<Norm>,
    pub(super) after_attention: Option<Norm>,
    pub(super) mlp_norm: Option<Norm>,
    pub(super) after_mlp: Option<Norm>,
    pub(super) head_norms: Option<[Norm; 2]>,
    latent_norms: Option<(Option<Norm>, Norm)>,
    pub(super) sinks: Vec<f32>,
    pub(super) rotation: Option<Rotation>,
    cache: Option<LatentCache<'a>>,
    router: Option<Router>,
    shared_gate: Option<Matrix>,
    /// Polynomials in place of the activation of some hidden units.
    pub(super) expanded: Option<Expanded>,
}

/// Reads one row of numbers.
pub(crate) fn vector(source: &dyn WeightSource, name: &str) -> Result<Vec<f32>, ForwardError> {
    let shape = source
        .shape(name)
        .ok_or_else(|| ForwardError::Tensor { tensor: name.to_owned(), problem: "is missing".to_owned() })?;
    let mut values = vec![0.0; shape.iter().product()];
    source.read(name, false, 0, &mut values)?;
    Ok(values)
}

impl NormSpec {
    /// Reads its weights.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub(crate) fn read(&self, source: &dyn WeightSource) -> Result<Norm, ForwardError> {
        let (weight, bias) = (format!("{}.weight", self.name), format!("{}.bias", self.name));
        let mut weight = match source.shape(&weight) {
            Some(_) => vector(source, &weight)?,
            // LayerNorm without affine parameters.
            None if self.kind == NormKind::Layer => Vec::new(),
            None => return Err(ForwardError::Tensor { tensor: weight, problem: "is missing".to_owned() }),
        };
        if self.kind == NormKind::RootMeanSquareOffset {
            for value in &mut weight {
                *value += 1.0;
            }
        }
        let bias = if source.shape(&bias).is_some() { vector(source, &bias)? } else { Vec::new() };
        Ok(Norm { kind: self.kind, weight, bias, epsilon: self.epsilon })
    }
}

impl<'a> Block<'a> {
    /// Reads the small weights, for sequences of `length` tokens.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn read(spec: &'a BlockSpec, source: &dyn WeightSource, length: usize) -> Result<Self, ForwardError> {
        let norm = |spec: &Option<NormSpec>| spec.as_ref().map(|spec| spec.read(source)).transpose();
        let after = |after: &After| match after {
            After::Nothing => Ok(None),
            After::Branch(spec) | After::Sum(spec) => spec.read(source).map(Some),
        };
        let shared_gate = match spec.experts.as_ref().and_then(|experts| experts.shared_gate.as_ref()) {
            Some(name) => {
                let values = vector(source, name)?;
                Some(Matrix { rows: 1, columns: values.len(), values })
            }
            None => None,
        };
        Ok(Self {
            spec,
            attention_norm: norm(&spec.attention_norm)?,
            after_attention: after(&spec.after_attention)?,
            mlp_norm: norm(&spec.mlp_norm)?,
            after_mlp: after(&spec.after_mlp)?,
            head_norms: match &spec.head_norms {
                Some([query, key]) => Some([query.read(source)?, key.read(source)?]),
                None => None,
            },
            latent_norms: match &spec.latent_norms {
                Some((query, key_value)) => Some((norm(query)?, key_value.read(source)?)),
                None => None,
            },
            sinks: spec.sinks.as_ref().map(|name| vector(source, name)).transpose()?.unwrap_or_default(),
            rotation: spec.rope.as_ref().map(|rope| rope.rotation(length)),
            cache: spec.cache.as_ref().map(|cache| LatentCache::read(cache, source)).transpose()?,
            router: spec.experts.as_ref().map(|experts| Router::read(experts, source)).transpose()?,
            shared_gate,
            expanded: match spec.stages.iter().find(|stage| stage.kind == Kind::MlpOutput) {
                Some(stage) => source.expanded(&stage.linears[0].weight)?,
                None => None,
            },
        })
    }

    /// The input of a stage's linears, `[tokens, input]`. Empty for the router and the experts.
    #[must_use]
    pub fn input(&self, stage: usize, state: &State) -> Matrix {
        let normed = |norm: &Option<Norm>| {
            let mut x = state.hidden.clone();
            if let Some(norm) = norm {
                norm.apply(&mut x);
            }
            x
        };
        match self.spec.stages[stage].kind {
            Kind::Attention | Kind::LatentInput | Kind::LatentCache => normed(&self.attention_norm),
            Kind::Mlp => normed(&self.mlp_norm),
            Kind::AttentionOutput | Kind::LatentQuery | Kind::MlpOutput | Kind::SharedExpert => {
                state.carried[0].clone()
            }
            Kind::LatentKeyValue => state.carried[1].clone(),
            Kind::SharedExpertOutput => state.carried[3].clone(),
            Kind::Router | Kind::Experts => Matrix::default(),
        }
    }

    /// What follows from the outputs of a stage's linears, side by side in `y`. For [`Kind::Experts`] the experts have
    /// been added up in `carried[2]` by [`super::Expert`] before.
    ///
    /// # Errors
    /// [`ForwardError::Overflow`] when the residual stream is not finite any more.
    pub fn finish(&self, stage: usize, state: &mut State, mut y: Matrix) -> Result<(), ForwardError> {
        match self.spec.stages[stage].kind {
            Kind::Attention => {
                self.prepare_heads(&mut y, state.length);
                state.carried = vec![self.attend(&y, state.length)];
            }
            Kind::LatentCache => {
                let mixed = self.cache.as_ref().map(|cache| cache.attend(self, &y, state.length));
                state.carried = vec![mixed.unwrap_or_default()];
            }
            Kind::AttentionOutput => {
                state.carried.clear();
                let norm = self.after_attention.as_ref();
                self.residual(
                    &mut state.hidden,
                    y,
                    norm,
                    matches!(self.spec.after_attention, After::Sum(_)),
                    "attention",
                )?;
            }
            Kind::LatentInput => state.carried = self.split_latents(&y),
            Kind::LatentQuery => state.carried[0] = y,
            Kind::LatentKeyValue => {
                let mixed = self.attend_latent(&state.carried[0], &state.carried[2], &y, state.length);
                state.carried = vec![mixed];
            }
            Kind::Mlp => {
                state.carried = match &self.expanded {
                    Some(expanded) => {
                        let [s, u] = expanded.arguments(&y, self.spec.gated);
                        vec![self.activate(y), s, u]
                    }
                    None => vec![self.activate(y)],
                }
            }
            Kind::MlpOutput | Kind::Experts => {
                if let (Some(expanded), [_, s, u]) = (&self.expanded, &state.carried[..]) {
                    // Nothing was added to the residual stream since the MLP read it.
                    let mlp = self.spec.stages.iter().position(|stage| stage.kind == Kind::Mlp).unwrap_or(stage);
                    expanded.add_to(&mut y, s, u, || self.input(mlp, state), self.spec.gated);
                }
                let y = if self.spec.stages[stage].kind == Kind::Experts {
                    std::mem::take(&mut state.carried[2])
                } else {
                    y
                };
                state.carried.clear();
                let norm = self.after_mlp.as_ref();
                self.residual(&mut state.hidden, y, norm, matches!(self.spec.after_mlp, After::Sum(_)), "mlp")?;
            }
            Kind::Router => {
                let mut x = state.hidden.clone();
                if let Some(norm) = &self.mlp_norm {
                    norm.apply(&mut x);
                }
                let routing = self.router.as_ref().map(|router| router.route(&x)).unwrap_or_default();
                let sum = Matrix::zeros(x.rows, x.columns);
                state.carried = vec![x, routing, sum];
            }
            Kind::SharedExpert => state.carried.push(self.activate(y)),
            Kind::SharedExpertOutput => {
                state.carried.truncate(3);
                if let Some(gate) = &self.shared_gate {
                    let shares = multiply_transposed(&state.carried[0], gate);
                    for (row, share) in y.values.chunks_exact_mut(y.columns.max(1)).zip(&shares.values) {
                        let share = 1.0 / (1.0 + (-share).exp());
                        for value in row {
                            *value *= share;
                        }
                    }
                }
                state.carried[2].add(&y);
            }
        }
        Ok(())
    }

    /// One stage from beginning to end, for stages with linears.
    ///
    /// # Errors
    /// As [`Block::finish`].
    pub fn apply(&self, stage: usize, state: &mut State, linears: &[Linear]) -> Result<(), ForwardError> {
        let y = if linears.is_empty() { Matrix::default() } else { apply_together(linears, &self.input(stage, state)) };
        self.finish(stage, state, y)
    }

    fn activate(&self, mut y: Matrix) -> Matrix {
        if self.spec.gated {
            return kernels::gated(&y, self.spec.activation);
        }
        kernels::activate(&mut y, self.spec.activation);
        y
    }

    fn residual(
        &self,
        hidden: &mut Matrix,
        mut y: Matrix,
        norm: Option<&Norm>,
        of_sum: bool,
        what: &'static str,
    ) -> Result<(), ForwardError> {
        match norm {
            Some(norm) if of_sum => {
                hidden.add(&y);
                norm.apply(hidden);
            }
            Some(norm) => {
                norm.apply(&mut y);
                hidden.add(&y);
            }
            None => hidden.add(&y),
        }
        if hidden.is_finite() { Ok(()) } else { Err(ForwardError::Overflow { block: self.spec.index, what }) }
    }

    /// Norms and rotates query and key heads in place, in rows `[query | key | value]`.
    fn prepare_heads(&self, y: &mut Matrix, length: usize) {
        let attention = &self.spec.attention;
        let (width, query) = (attention.key_width, attention.heads * attention.key_width);
        let keys = query + attention.key_value_heads * width;
        y.values.par_chunks_mut(y.columns.max(1)).enumerate().with_min_len(8).for_each(|(token, row)| {
            for (index, head) in row[..keys].chunks_exact_mut(width).enumerate() {
                if let Some([query, key]) = &self.head_norms {
                    if index < attention.heads { query.apply_row(head) } else { key.apply_row(head) }
                }
                if let Some(rotation) = &self.rotation {
                    rotation.apply(token % length, head);
                }
            }
        });
    }

    fn attend(&self, y: &Matrix, length: usize) -> Matrix {
        let attention = &self.spec.attention;
        let (query, key) = (attention.heads * attention.key_width, attention.key_value_heads * attention.key_width);
        let heads = |first, stride| Heads { matrix: y, first, stride };
        attention.compute(
            heads(0, attention.key_width),
            heads(query, attention.key_width),
            heads(query + key, attention.value_width),
            length,
            &self.sinks,
        )
    }

    /// `[query or its latent | key-value latent | rotated key]` apart, latents normed.
    fn split_latents(&self, y: &Matrix) -> Vec<Matrix> {
        let Some(latent) = self.spec.latent else { return Vec::new() };
        let attention = &self.spec.attention;
        let query = latent.query.unwrap_or(attention.heads * attention.key_width);
        let mut parts = vec![
            y.columns(0..query),
            y.columns(query..query + latent.key_value),
            y.columns(query + latent.key_value..query + latent.key_value + latent.rotated),
        ];
        if let Some((query_norm, key_value_norm)) = &self.latent_norms {
            if let Some(norm) = query_norm {
                norm.apply(&mut parts[0]);
            }
            key_value_norm.apply(&mut parts[1]);
        }
        parts
    }

    /// Latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1): the rotated key is one for all heads.
    fn attend_latent(&self, query: &Matrix, rotated_key: &Matrix, key_value: &Matrix, length: usize) -> Matrix {
        let Some(latent) = self.spec.latent else { return Matrix::default() };
        let attention = &self.spec.attention;
        let (width, plain) = (attention.key_width, latent.plain);
        let mut query = query.clone();
        let rotate = |token: usize, head: &mut [f32]| {
            if let Some(rotation) = &self.rotation {
                rotation.apply(token % length, head);
            }
        };
        query.values.par_chunks_mut(query.columns.max(1)).enumerate().for_each(|(token, row)| {
            for head in row.chunks_exact_mut(width) {
                rotate(token, &mut head[plain..]);
            }
        });
        let stride = plain + attention.value_width;
        let mut key = Matrix::zeros(query.rows, attention.heads * width);
        key.values.par_chunks_mut(key.columns.max(1)).enumerate().for_each(|(token, row)| {
            let mut shared = rotated_key.row(token).to_vec();
            rotate(token, &mut shared);
            for (head, source) in row.chunks_exact_mut(width).zip(key_value.row(token).chunks_exact(stride)) {
                head[..plain].copy_from_slice(&source[..plain]);
                head[plain..].copy_from_slice(&shared);
            }
        });
        attention.compute(
            Heads { matrix: &query, first: 0, stride: width },
            Heads { matrix: &key, first: 0, stride: width },
            Heads { matrix: key_value, first: plain, stride },
            length,
            &[],
        )
    }
}
