//! What a runtime keeps of a key or value projection that is stored in factors: latents instead of keys and values.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{LayoutError, MatrixSpec, Refusal};
use crate::codec::{Factors, Whole};

/// The key under which configurations describe the cache.
pub const KEY: &str = "lowrank_kv";
/// Tokens whose latents are quantized together.
pub const QUANTIZED_TOKENS: usize = 32;

/// Which of the two a runtime keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cached {
    /// Keys.
    Key,
    /// Values.
    Value,
}

/// How a runtime keeps the outputs of one projection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentCache {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// What the projection makes.
    pub part: Cached,
    /// The latest tokens whose keys and values are exact; the newest one is one of them.
    pub window: usize,
    /// Bits of latents; none where they stay floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
    /// Whether B of values is folded into the output projection when the model is loaded.
    pub absorb_values: bool,
}

/// The cache of a whole model, as configurations have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePolicy {
    /// The latest tokens whose keys and values are exact.
    pub window: usize,
    /// Bits of latents; none where they stay floats.
    pub cache_bits: Option<u8>,
    /// Tokens whose latents are quantized together.
    pub cache_group: usize,
    /// Whether B of values is folded into the output projection when the model is loaded.
    pub absorb_values: bool,
    /// The layers, from the first.
    pub layers: Vec<LayerRanks>,
}

/// Latent channels of one layer, by groups of heads; empty where it keeps keys or values themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRanks {
    /// Of keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_ranks: Vec<usize>,
    /// Of values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub value_ranks: Vec<usize>,
}

impl CachePolicy {
    /// The policy of a model's `config.json`: under `bantam` (layout `remote-code`) or `quantization_config` (layout
    /// `bantam`); none where its cache is the usual one.
    ///
    /// # Errors
    /// [`LayoutError::Config`] for one that is malformed.
    pub fn of(config: &Value) -> Result<Option<Self>, LayoutError> {
        let sections = ["bantam", "quantization_config"];
        let Some((section, value)) =
            sections.iter().map(|section| (section, &config[*section][KEY])).find(|(_, value)| !value.is_null())
        else {
            return Ok(None);
        };
        let wrong = |message: String| LayoutError::Config { key: format!("{section}.{KEY}"), message };
        let policy: Self = serde_json::from_value(value.clone()).map_err(|error| wrong(error.to_string()))?;
        if policy.cache_group == 0 || policy.cache_bits.is_some_and(|bits| !matches!(bits, 4 | 8)) {
            let (group, bits) = (policy.cache_group, policy.cache_bits);
            return Err(wrong(format!(
                "has groups of {group} tokens in {bits:?} bits; expected at least 1, and 4 or 8"
            )));
        }
        Ok(Some(policy))
    }

    /// The policy of the matrices that are to be stored; none where no cache changes.
    #[must_use]
    pub fn of_matrices(matrices: &[MatrixSpec], layers: usize) -> Option<Self> {
        let cached: Vec<(&LatentCache, &Factors)> = matrices.iter().filter_map(cached).collect();
        let (first, _) = cached.first()?;
        let count = cached.iter().map(|(cache, _)| cache.layer + 1).max().unwrap_or(0).max(layers);
        let mut ranks = vec![LayerRanks::default(); count];
        for (cache, factors) in &cached {
            let layer = &mut ranks[cache.layer];
            let place = match cache.part {
                Cached::Key => &mut layer.key_ranks,
                Cached::Value => &mut layer.value_ranks,
            };
            place.clone_from(&factors.ranks);
        }
        Some(Self {
            window: first.window,
            cache_bits: first.bits,
            cache_group: QUANTIZED_TOKENS,
            absorb_values: first.absorb_values,
            layers: ranks,
        })
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!(self)
    }
}

fn cached(matrix: &MatrixSpec) -> Option<(&LatentCache, &Factors)> {
    match (&matrix.cache, matrix.codec.whole()) {
        (Some(cache), Some(Whole::Factors(factors))) => Some((cache, factors)),
        _ => None,
    }
}

/// Refuses matrices whose caches cannot be one model's: policies that differ, two projections in one place.
pub(super) fn agree(matrices: &[MatrixSpec]) -> Result<(), Refusal> {
    let mut cached = matrices.iter().filter_map(|matrix| Some((matrix, matrix.cache.as_ref()?)));
    let Some((first, policy)) = cached.next() else { return Ok(()) };
    let of = |cache: &LatentCache| (cache.window, cache.bits, cache.absorb_values);
    for (matrix, cache) in cached {
        if of(cache) != of(policy) {
            return Err(Refusal::Format(format!(
                "`window`, `cache_bits` and `absorb_values` are the whole model's, but `{}` and `{}` differ in them",
                first.name, matrix.name
            )));
        }
    }
    let mut places: Vec<_> = matrices.iter().filter_map(|m| Some((m.cache.as_ref()?, &m.name))).collect();
    places.sort_by_key(|(cache, _)| (cache.layer, cache.part));
    let same =
        |pair: &&[(&LatentCache, &String)]| (pair[0].0.layer, pair[0].0.part) == (pair[1].0.layer, pair[1].0.part);
    match places.windows(2).find(same) {
        Some(pair) => Err(Refusal::Format(format!(
            "`{}` and `{}` both make the same part of layer {}'s cache",
            pair[0].1, pair[1].1, pair[0].0.layer
        ))),
        None => Ok(()),
    }
}

/// Refuses layers of which only keys, or only values, are kept as latents.
pub(super) fn in_pairs(matrices: &[MatrixSpec]) -> Result<(), Refusal> {
    let Some(policy) = CachePolicy::of_matrices(matrices, 0) else { return Ok(()) };
    let single = |ranks: &LayerRanks| ranks.key_ranks.is_empty() != ranks.value_ranks.is_empty();
    match policy.layers.iter().position(single) {
        Some(layer) => Err(Refusal::Format(format!(
            "layer {layer} would keep either keys or values as latents; the modelling file keeps both so, or neither"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_read_back_and_malformed_ones_are_named() {
        let layers = vec![LayerRanks { key_ranks: vec![3, 4], value_ranks: vec![5, 6] }, LayerRanks::default()];
        let policy = CachePolicy { window: 32, cache_bits: Some(4), cache_group: 32, absorb_values: true, layers };
        let written = policy.to_json();
        assert_eq!(written["layers"], json!([{"key_ranks": [3, 4], "value_ranks": [5, 6]}, {}]));
        for section in ["bantam", "quantization_config"] {
            let config = json!({section: {KEY: written}});
            assert_eq!(CachePolicy::of(&config).unwrap().as_ref(), Some(&policy));
        }
        assert_eq!(CachePolicy::of(&json!({"bantam": {"groups": []}})).unwrap(), None);
        for (key, wrong) in [
            ("window", json!(-1)),
            ("cache_bits", json!(3)),
            ("cache_group", json!(0)),
            ("layers", json!([{"key_ranks": [-1]}])),
            ("absorb_values", json!("yes")),
        ] {
            let mut value = written.clone();
            value[key] = wrong;
            let error = CachePolicy::of(&json!({"bantam": {KEY: value}})).unwrap_err().to_string();
            assert!(error.contains("bantam.lowrank_kv"), "{error}");
        }
    }
}
