//! A whole model: embedding, blocks, head.

use serde_json::Value;

use super::{
    BlockSpec, ForwardError, Matrix, State, WeightSource,
    block::vector,
    build::{Builder, Family},
    config::Config,
    kernels::{self, Activation, Norm},
    matrix::multiply_transposed,
    spec::NormSpec,
    weights::{Linear, LinearSpec, apply_together},
};

/// What a model computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Its blocks.
    pub blocks: Vec<BlockSpec>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the token embedding.
    pub vocabulary: usize,
    /// The longest sequence that the config allows, where it says.
    pub max_positions: Option<usize>,
    /// Whether the model predicts the next token; an encoder does not.
    pub causal: bool,
    embedding: String,
    embedding_width: usize,
    embedding_scale: f32,
    /// Learned positions and the row of position 0.
    positions: Option<(String, usize)>,
    /// Added to every token (BERT's token type 0).
    types: Option<String>,
    embedding_norm: Option<NormSpec>,
    project_in: Option<LinearSpec>,
    pub(crate) final_norm: Option<NormSpec>,
    pub(crate) project_out: Option<LinearSpec>,
    /// BERT's transform before the head: dense, activation, norm.
    pub(crate) transform: Option<(LinearSpec, Activation, NormSpec)>,
    pub(crate) head: Option<LinearSpec>,
    pub(crate) head_bias: Option<String>,
    pub(crate) logit_cap: Option<f32>,
}

impl Model {
    /// Reads what the model computes from its config and tensor names.
    ///
    /// # Errors
    /// [`ForwardError`] for an architecture without a forward pass, or a config that does not fit the tensors.
    pub fn new(config: Option<&Value>, source: &dyn WeightSource) -> Result<Self, ForwardError> {
        let config = Config::new(config.ok_or(ForwardError::NoConfig)?);
        let builder = Builder::new(config, source)?;
        let (family, trunk) = (builder.family, builder.trunk.clone());
        let blocks =
            (0..builder.count_of_blocks()?).map(|index| builder.block(index)).collect::<Result<Vec<_>, _>>()?;
        let hidden = builder.hidden()?;
        let embedding = match family {
            Family::Gpt2 => format!("{trunk}wte.weight"),
            Family::Bert => format!("{trunk}embeddings.word_embeddings.weight"),
            _ => format!("{trunk}embed_tokens.weight"),
        };
        let shape = source
            .shape(&embedding)
            .ok_or_else(|| ForwardError::Tensor { tensor: embedding.clone(), problem: "is missing".to_owned() })?;
        let [vocabulary, embedding_width] = shape[..] else {
            return Err(ForwardError::Tensor {
                tensor: embedding,
                problem: format!("is {shape:?}, expected two dimensions"),
            });
        };
        let has = |name: &str| source.shape(name).is_some();
        let linear = |name: String, rows: usize, columns: usize| LinearSpec {
            weight: name,
            bias: None,
            rows,
            columns,
            transposed: false,
            expert: None,
        };
        let project = |name: String, rows, columns| {
            let linear = linear(name, rows, columns);
            if has(&linear.weight) { Some(linear) } else { None }
        };
        let before = family != Family::Opt || config.flag("do_layer_norm_before")?.unwrap_or(true);
        let final_norm = match family {
            Family::Opt if !before || config.flag("_remove_final_layer_norm")?.unwrap_or(false) => None,
            Family::Opt => Some(builder.norm(format!("{trunk}final_layer_norm"))?),
            Family::Gpt2 => Some(builder.norm(format!("{trunk}ln_f"))?),
            Family::Bert => None,
            _ => Some(builder.norm(format!("{trunk}norm"))?),
        };
        let project_out = project(format!("{trunk}project_out.weight"), embedding_width, hidden);
        let top = if project_out.is_some() { embedding_width } else { hidden };
        let (mut transform, mut head_bias) = (None, None);
        let head = if family == Family::Bert {
            let dense = "cls.predictions.transform.dense";
            if has(&format!("{dense}.weight")) {
                let mut first = linear(format!("{dense}.weight"), hidden, hidden);
                first.bias = Some(format!("{dense}.bias"));
                let norm = builder.norm("cls.predictions.transform.LayerNorm".to_owned())?;
                transform = Some((first, builder.activation()?, norm));
                head_bias = ["cls.predictions.bias", "cls.predictions.decoder.bias"]
                    .into_iter()
                    .find(|name| has(name))
                    .map(str::to_owned);
                let own = Some("cls.predictions.decoder.weight".to_owned()).filter(|name| has(name));
                Some(linear(own.unwrap_or_else(|| embedding.clone()), vocabulary, hidden))
            } else {
                None
            }
        } else {
            let prefixes = ["", "language_model.", "model.", "llm."];
            let own = prefixes.iter().map(|prefix| format!("{prefix}lm_head.weight")).find(|name| has(name));
            let rows = own.as_ref().and_then(|name| source.shape(name)).map_or(vocabulary, |shape| shape[0]);
            Some(linear(own.unwrap_or_else(|| embedding.clone()), rows, top))
        };
        let gemma = matches!(family, Family::Gemma | Family::Gemma2 | Family::Gemma3);
        // Dynamic scaling is there for sequences that are longer.
        let scaling = config.value("rope_parameters").or_else(|| config.value("rope_scaling"));
        let kind = scaling.and_then(|scaling| scaling["rope_type"].as_str().or_else(|| scaling["type"].as_str()));
        let limit = match config.count("max_position_embeddings")? {
            _ if kind == Some("dynamic") => None,
            Some(limit) => Some(limit),
            None => config.count("n_positions")?,
        };
        Ok(Self {
            blocks,
            hidden,
            vocabulary,
            max_positions: limit,
            causal: family != Family::Bert,
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
            positions: match family {
                Family::Opt => Some((format!("{trunk}embed_positions.weight"), 2)),
                Family::Gpt2 => Some((format!("{trunk}wpe.weight"), 0)),
                Family::Bert => Some((format!("{trunk}embeddings.position_embeddings.weight"), 0)),
                _ => None,
            },
            types: (family == Family::Bert).then(|| format!("{trunk}embeddings.token_type_embeddings.weight")),
            embedding_norm: match family {
                Family::Bert => Some(builder.norm(format!("{trunk}embeddings.LayerNorm"))?),
                _ => None,
            },
            project_in: project(format!("{trunk}project_in.weight"), hidden, embedding_width),
            final_norm,
            project_out,
            transform,
            head,
            head_bias,
            logit_cap: config.number("final_logit_softcapping")?.map(|cap| cap as f32),
            embedding,
            embedding_width,
        })
    }

    /// Name of the final norm without `.weight`.
    #[must_use]
    pub fn final_norm_name(&self) -> Option<&str> {
        self.final_norm.as_ref().map(|norm| norm.name.as_str())
    }

    /// The residual stream before the first block, for sequences of equal length.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn embed(&self, source: &dyn WeightSource, sequences: &[Vec<u32>]) -> Result<State, ForwardError> {
        let length = sequences.first().map_or(0, Vec::len);
        let mut hidden = Matrix::zeros(sequences.len() * length, self.embedding_width);
        for (row, token) in sequences.iter().flatten().enumerate() {
            source.read(&self.embedding, false, *token as usize, hidden.row_mut(row))?;
        }
        if self.embedding_scale != 1.0 {
            hidden.values.iter_mut().for_each(|value| *value *= self.embedding_scale);
        }
        if let Some(linear) = &self.project_in {
            hidden = apply_together(&[linear.read(source)?], &hidden);
        }
        if let Some((name, first)) = &self.positions {
            let mut row = vec![0.0; self.hidden];
            for position in 0..length {
                source.read(name, false, first + position, &mut row)?;
                for sequence in 0..sequences.len() {
                    add(hidden.row_mut(sequence * length + position), &row);
                }
            }
        }
        if let Some(name) = &self.types {
            let mut row = vec![0.0; self.hidden];
            source.read(name, false, 0, &mut row)?;
            for token in 0..hidden.rows {
                add(hidden.row_mut(token), &row);
            }
        }
        if let Some(norm) = &self.embedding_norm {
            norm.read(source)?.apply(&mut hidden);
        }
        Ok(State { length, hidden, carried: Vec::new() })
    }

    /// What follows the last block.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn head(&self, source: &dyn WeightSource) -> Result<Head<'_>, ForwardError> {
        Ok(Head {
            model: self,
            norm: self.final_norm.as_ref().map(|norm| norm.read(source)).transpose()?,
            project_out: self.project_out.as_ref().map(|linear| linear.read(source)).transpose()?,
            transform: match &self.transform {
                Some((linear, activation, norm)) => Some((linear.read(source)?, *activation, norm.read(source)?)),
                None => None,
            },
            bias: self.head_bias.as_ref().map(|name| vector(source, name)).transpose()?.unwrap_or_default(),
        })
    }

    /// Whether the model gives logits; an embedding model does not.
    #[must_use]
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Rows of the head.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.head.as_ref().map_or(0, |head| head.rows)
    }
}

fn add(row: &mut [f32], other: &[f32]) {
    for (value, other) in row.iter_mut().zip(other) {
        *value += other;
    }
}

/// The small weights behind the last block.
#[derive(Debug)]
pub struct Head<'a> {
    model: &'a Model,
    norm: Option<Norm>,
    project_out: Option<Linear>,
    transform: Option<(Linear, Activation, Norm)>,
    bias: Vec<f32>,
}

impl Head<'_> {
    /// The last hidden states, `[tokens, top]`: what the output projection reads.
    #[must_use]
    pub fn top(&self, hidden: &Matrix) -> Matrix {
        let mut x = hidden.clone();
        if let Some(norm) = &self.norm {
            norm.apply(&mut x);
        }
        if let Some(linear) = &self.project_out {
            x = apply_together(std::slice::from_ref(linear), &x);
        }
        if let Some((linear, activation, norm)) = &self.transform {
            x = apply_together(std::slice::from_ref(linear), &x);
            kernels::activate(&mut x, *activation);
            norm.apply(&mut x);
        }
        x
    }

    /// Rows `first..first + rows` of the output projection, read on demand: vocabularies can be larger than a block.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn classes(&self, source: &dyn WeightSource, first: usize, rows: usize) -> Result<Matrix, ForwardError> {
        let Some(head) = &self.model.head else { return Ok(Matrix::default()) };
        let mut weight = Matrix::zeros(rows, head.columns);
        source.read(&head.weight, false, first, &mut weight.values)?;
        Ok(weight)
    }

    /// Logits of the classes whose weights are given, `[tokens, classes]`.
    #[must_use]
    pub fn logits(&self, top: &Matrix, weights: &Matrix, first: usize) -> Matrix {
        self.finish(multiply_transposed(top, weights), weights.rows, first)
    }

    /// Logits from the products of the last hidden states with the weights of `classes` classes from `first` on.
    #[must_use]
    pub fn finish(&self, mut logits: Matrix, classes: usize, first: usize) -> Matrix {
        if !self.bias.is_empty() {
            for row in logits.values.chunks_exact_mut(classes.max(1)) {
                add(row, &self.bias[first..first + classes]);
            }
        }
        if let Some(cap) = self.model.logit_cap {
            kernels::soft_cap(&mut logits.values, cap);
        }
        logits
    }
}
