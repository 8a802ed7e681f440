//! Attention over a cache of latents (CSKV: Wang et al., arXiv 2409.10593, §2.3): old keys and values come back from what
//! the cache holds of them, the latest are exact.
//!
//! The query of index t sees the keys and values of index j exactly where j > t − W, W being the window; where latents are
//! quantized, those of a whole block [G i, G i + G − 1] of indices from their codes once G i + G − 1 ≤ t − W; all others
//! from their latents. `docs/formats/remote-code.md` tells the same of the modelling file.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Block, ForwardError, Kind, LinearSpec, Matrix, Model, WeightSource,
    attention::{Branch, Heads},
    block::vector,
    kernels::Norm,
    matrix::multiply_transposed_into,
};
use crate::{
    checkpoint::{Dtype, decode_to_f32, encode_from_f32},
    layout::{CachePolicy, LogicalCheckpoint},
};

/// What a block keeps instead of keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// The latest tokens whose keys and values are exact; the query's own is one of them.
    pub window: usize,
    /// Bits of latents; none where they stay floats.
    pub bits: Option<u8>,
    /// Tokens of a block whose keys' latents share a scale.
    pub block: usize,
    /// Keys and values.
    pub sides: [SideSpec; 2],
}

/// Keys or values of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideSpec {
    /// Name of B, `[rows of a group, Σ ranks]`.
    pub factor: String,
    /// Name of the bias behind B.
    pub bias: Option<String>,
    /// Latent channels of each group of heads; empty where keys or values are kept themselves.
    pub ranks: Vec<usize>,
    /// Output features.
    pub rows: usize,
}

impl SideSpec {
    fn latent(&self) -> usize {
        self.ranks.iter().sum()
    }
}

impl Model {
    /// The model of a checkpoint or an artifact as a runtime computes it: with the cache that the artifact is for. `window`
    /// stands in for the window that it records; without a cache of latents it changes nothing.
    ///
    /// # Errors
    /// As [`Model::new`] and [`Model::keep_latents`], and when the configuration's cache cannot be read.
    pub fn as_run(source: &LogicalCheckpoint, window: Option<usize>) -> crate::Result<Self> {
        let config = source.checkpoint().config().map(|config| &config.value);
        let mut model = Self::new(config, source)?;
        if let Some(policy) = config.map(CachePolicy::of).transpose()?.flatten() {
            model.keep_latents(&policy, window, source)?;
        }
        Ok(model)
    }

    /// Makes the model compute as with a cache of latents: that of `policy` or, where given, with another window. Without a
    /// window and without quantization that is the model as it is, whose projections are the products of their factors.
    ///
    /// # Errors
    /// [`ForwardError`] when the policy does not fit the model or its tensors, and for a window where the artifact holds
    /// no exact projections.
    pub fn keep_latents(
        &mut self,
        policy: &CachePolicy,
        window: Option<usize>,
        source: &dyn WeightSource,
    ) -> Result<(), ForwardError> {
        let window = window.unwrap_or(policy.window);
        if window == 0 && policy.cache_bits.is_none() {
            return Ok(());
        }
        for (block, ranks) in self.blocks.iter_mut().zip(&policy.layers) {
            if ranks.key_ranks.is_empty() && ranks.value_ranks.is_empty() {
                continue;
            }
            let stage = block.stages.iter_mut().find(|stage| stage.kind == Kind::Attention);
            let wrong =
                |problem: &str| ForwardError::config("lowrank_kv", format!("{problem} in layer {}", block.index));
            let Some(stage) = stage.filter(|stage| stage.linears.len() == 3 && block.attention.causal) else {
                return Err(wrong("names a cache for attention without key and value projections of its own"));
            };
            let mut sides = Vec::new();
            let mut exact = Vec::new();
            for (place, ranks) in [(1, &ranks.key_ranks), (2, &ranks.value_ranks)] {
                let dense = stage.linears[place].clone();
                let module = dense.weight.strip_suffix(".weight").unwrap_or(&dense.weight).to_owned();
                let side = SideSpec {
                    factor: format!("{module}_b.weight"),
                    bias: dense.bias.clone(),
                    ranks: ranks.clone(),
                    rows: dense.rows,
                };
                if !ranks.is_empty() {
                    let group_rows = dense.rows / ranks.len();
                    let latent = ranks.iter().fold(0_usize, |sum, rank| sum.saturating_add(*rank));
                    if group_rows * ranks.len() != dense.rows || latent == 0 {
                        return Err(wrong("has ranks that do not divide the heads"));
                    }
                    let first = LinearSpec {
                        weight: format!("{module}_a.weight"),
                        bias: None,
                        rows: latent,
                        columns: dense.columns,
                        ..dense.clone()
                    };
                    expect(source, &first.weight, &[latent, dense.columns])?;
                    expect(source, &side.factor, &[group_rows, latent])?;
                    stage.linears[place] = first;
                    if window > 0 {
                        let weight = format!("{module}_exact.weight");
                        expect(source, &weight, &[dense.rows, dense.columns])?;
                        exact.push(LinearSpec { weight, ..dense });
                    }
                }
                sides.push(side);
            }
            stage.linears.extend(exact);
            stage.kind = Kind::LatentCache;
            let Ok(sides) = sides.try_into() else { return Err(wrong("has more than keys and values")) };
            block.cache = Some(CacheSpec { window, bits: policy.cache_bits, block: policy.cache_group, sides });
        }
        Ok(())
    }
}

fn expect(source: &dyn WeightSource, name: &str, shape: &[usize]) -> Result<(), ForwardError> {
    let problem = match source.shape(name) {
        Some(found) if found == shape => return Ok(()),
        Some(found) => format!("is {found:?}, expected {shape:?}"),
        None => "is missing: without it there is no window (run `lowrank_kv` with `window` above 0)".to_owned(),
    };
    Err(ForwardError::Tensor { tensor: name.to_owned(), problem })
}

/// What turns latents into keys or values.
#[derive(Debug)]
struct Side {
    factor: Matrix,
    bias: Vec<f32>,
    /// The type that a cache stores scales in.
    dtype: Dtype,
}

/// The small weights of a block with a cache of latents: B of keys and values.
#[derive(Debug)]
pub(super) struct LatentCache<'a> {
    spec: &'a CacheSpec,
    sides: [Side; 2],
}

impl<'a> LatentCache<'a> {
    pub(super) fn read(spec: &'a CacheSpec, source: &dyn WeightSource) -> Result<Self, ForwardError> {
        let read = |side: &SideSpec| -> Result<Side, ForwardError> {
            let (mut factor, mut bias) = (Matrix::default(), Vec::new());
            if !side.ranks.is_empty() {
                factor = Matrix::zeros(side.rows / side.ranks.len(), side.latent());
                source.read(&side.factor, false, 0, &mut factor.values)?;
                bias = side.bias.as_ref().map(|name| vector(source, name)).transpose()?.unwrap_or_default();
            }
            Ok(Side { factor, bias, dtype: source.stored_type(&side.factor).unwrap_or(Dtype::F32) })
        };
        Ok(Self { spec, sides: [read(&spec.sides[0])?, read(&spec.sides[1])?] })
    }

    /// The outputs of all heads from the stage's linears side by side: query, then of keys and of values the latents (or
    /// they themselves), then exact keys and values.
    pub(super) fn attend(&self, block: &Block<'_>, y: &Matrix, length: usize) -> Matrix {
        let attention = &block.spec.attention;
        let norms = block.head_norms.as_ref();
        let mut query = y.columns(0..attention.heads * attention.key_width);
        rotate(block, norms.map(|[query, _]| query), &mut query, length);
        let mut first = query.columns;
        let mut take = |width: usize| {
            first += width;
            y.columns(first - width..first)
        };
        let held =
            self.spec.sides.each_ref().map(|side| take(if side.ranks.is_empty() { side.rows } else { side.latent() }));
        let exact = self
            .spec
            .sides
            .each_ref()
            .map(|side| (self.spec.window > 0 && !side.ranks.is_empty()).then(|| take(side.rows)));
        let branch = |[key, value]: [Matrix; 2]| {
            let mut key = key;
            rotate(block, norms.map(|[_, key]| key), &mut key, length);
            [key, value]
        };
        let coded = self.spec.bits.map(|bits| {
            branch([0, 1].map(|side| self.rebuilt(side, &self.quantized(side, &held[side], bits, length))))
        });
        let exact = (self.spec.window > 0)
            .then(|| branch([0, 1].map(|side| exact[side].clone().unwrap_or_else(|| self.rebuilt(side, &held[side])))));
        let latent = branch([0, 1].map(|side| self.rebuilt(side, &held[side])));
        let heads = |matrix, stride| Heads { matrix, first: 0, stride };
        let branches: Vec<Branch<'_>> = [(0, coded.as_ref()), (1, Some(&latent)), (2, exact.as_ref())]
            .into_iter()
            .filter_map(|(kind, made)| {
                let [key, value] = made?;
                let (key, value) = (heads(key, attention.key_width), heads(value, attention.value_width));
                Some(Branch { kind, key, value })
            })
            .collect();
        attention.compute_parts(
            heads(&query, attention.key_width),
            &branches,
            &|query| self.seen(query),
            length,
            &block.sinks,
        )
    }

    /// The indices that a query sees from codes, from latents, and exactly.
    fn seen(&self, query: usize) -> [Range<usize>; 3] {
        let behind = (query + 1).saturating_sub(self.spec.window);
        let coded = if self.spec.bits.is_some() { behind / self.spec.block * self.spec.block } else { 0 };
        [0..coded, coded..behind, behind..query + 1]
    }

    /// Keys before norm and rotation, or values.
    fn rebuilt(&self, side: usize, held: &Matrix) -> Matrix {
        let (spec, weights) = (&self.spec.sides[side], &self.sides[side]);
        if spec.ranks.is_empty() {
            return held.clone();
        }
        let mut out = Matrix::zeros(held.rows, spec.rows);
        let mut first = 0;
        for (group, rank) in spec.ranks.iter().enumerate() {
            let factor = weights.factor.view().subcols(first, *rank);
            let start = group * weights.factor.rows;
            multiply_transposed_into(&held.columns(first..first + rank), factor, &mut out, start);
            first += rank;
        }
        if !weights.bias.is_empty() {
            out.values.par_chunks_mut(spec.rows.max(1)).for_each(|row| {
                row.iter_mut().zip(&weights.bias).for_each(|(value, bias)| *value += bias);
            });
        }
        out
    }

    /// The latents as the cache's codes give them back: of keys each channel over the tokens of a block, of values each
    /// group of channels of a token has a least value and a scale. Tokens after the last whole block stay as they are.
    fn quantized(&self, side: usize, held: &Matrix, bits: u8, length: usize) -> Matrix {
        let (spec, mut out) = (&self.spec.sides[side], held.clone());
        let (width, block, dtype) = (held.columns, self.spec.block, self.sides[side].dtype);
        if spec.ranks.is_empty() || length == 0 {
            return out;
        }
        let whole = length / block * block;
        out.values.par_chunks_mut(length * width).for_each(|sequence| {
            for tokens in sequence[..whole * width].chunks_exact_mut(block * width) {
                if side == 0 {
                    for channel in 0..width {
                        let mut values: Vec<f32> = tokens[channel..].iter().step_by(width).copied().collect();
                        round(&mut values, bits, dtype);
                        tokens[channel..].iter_mut().step_by(width).zip(values).for_each(|(to, from)| *to = from);
                    }
                } else {
                    for token in tokens.chunks_exact_mut(width) {
                        let mut rest = token;
                        for rank in &spec.ranks {
                            let (group, after) = rest.split_at_mut(*rank);
                            round(group, bits, dtype);
                            rest = after;
                        }
                    }
                }
            }
        });
        out
    }
}

/// Norms and rotates all heads of queries, or of keys.
fn rotate(block: &Block<'_>, norm: Option<&Norm>, heads: &mut Matrix, length: usize) {
    let width = block.spec.attention.key_width;
    heads.values.par_chunks_mut(heads.columns.max(1)).enumerate().with_min_len(8).for_each(|(token, row)| {
        for head in row.chunks_exact_mut(width) {
            if let Some(norm) = norm {
                norm.apply_row(head);
            }
            if let Some(rotation) = &block.rotation {
                rotation.apply(token % length, head);
            }
        }
    });
}

/// Asymmetric rounding of numbers that share a scale: least + scale · round((x − least) / scale), with scale and least in
/// the stored type.
fn round(values: &mut [f32], bits: u8, dtype: Dtype) {
    let levels = ((1_u32 << bits) - 1) as f32;
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (scale, least) = (stored((most - least) / levels, dtype), stored(least, dtype));
    let step = if scale == 0.0 { 1.0 } else { scale };
    for value in values {
        let code = ((*value - least) / step).round_ties_even().clamp(0.0, levels);
        *value = code * scale + least;
    }
}

fn stored(value: f32, dtype: Dtype) -> f32 {
    let (mut bytes, mut back) = (Vec::new(), [0.0]);
    encode_from_f32(dtype, &[value], &mut bytes);
    decode_to_f32(dtype, &bytes, &mut back);
    back[0]
}

#[cfg(test)]
#[path = "latent_cache_tests.rs"]
mod tests;
