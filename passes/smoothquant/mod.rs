//! SmoothQuant: moves the difficulty of quantizing activations into the weights.
//!
//! Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
//! (arXiv 2211.10438), eq. 4: `s_j = max|X_j|^α / max|W_j|^(1−α)`. Beyond the paper: the fold is exact in the stored types,
//! channels without any activation are left alone, every exact fold of a block can be used, and α may be searched for
//! each fold.

#[cfg(test)]
mod tests;

use serde::{Serialize, Serializer};

pub use super::folding::{Channels, Chosen, Consumer, FoldKind, FoldStatistics, OwnedStatistics, rescale_statistics};
use super::{
    SettingError,
    folding::{LossRows, fold_kinds, within},
    setting::known_keys,
};

/// The registry entry.
pub const INFO: crate::passes::PassInfo = crate::passes::PassInfo {
    name: "smoothquant",
    kind: crate::passes::Kind::Transform,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse: |table| Settings::parse(table).map(crate::passes::Settings::SmoothQuant),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &["folds", "strength"];

/// The least scale, and the least largest weight.
const LEAST: f64 = 1e-5;

/// The exponent of the activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strength {
    /// This.
    Given(f64),
    /// Whatever costs each fold least.
    Search,
}

impl Serialize for Strength {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Given(strength) => serializer.serialize_f64(*strength),
            Self::Search => serializer.serialize_str("search"),
        }
    }
}

/// Settings of `smoothquant`, every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// The exponent.
    pub strength: Strength,
    /// The folds that are used.
    pub folds: Vec<FoldKind>,
}

impl Settings {
    /// Types and checks the keys of a rule (its own keys only).
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &toml::Table) -> Result<Self, SettingError> {
        known_keys(table, "smoothquant", KEYS)?;
        let strength = if table.get("strength").and_then(toml::Value::as_str) == Some("search") {
            Strength::Search
        } else {
            let given =
                within(table, "strength", "a number from 0 to 1 or \"search\"", |value| (0.0..=1.0).contains(&value))?;
            Strength::Given(given.unwrap_or(0.5))
        };
        Ok(Self { strength, folds: fold_kinds(table)? })
    }
}

/// The largest magnitude in each column of all consumers.
#[must_use]
pub fn column_maxima(consumers: &[Consumer<'_>], width: usize) -> Vec<f32> {
    let mut largest = vec![0.0_f32; width];
    for row in consumers.iter().flat_map(|consumer| consumer.weights.chunks_exact(width.max(1))) {
        for (largest, weight) in largest.iter_mut().zip(row) {
            *largest = largest.max(weight.abs());
        }
    }
    largest
}

/// Eq. 4 from the maxima of each channel's activations and weights. Channels that share a scale take their largest
/// values; a channel without any activation keeps 1.
#[must_use]
pub fn scales(absmax: &[f32], weights: &[f32], channels: Channels<'_>, strength: f64) -> Vec<f64> {
    let pairs = channels.largest(absmax).into_iter().zip(channels.largest(weights));
    pairs
        .map(|(activation, weight)| {
            if activation == 0.0 || !activation.is_finite() || !weight.is_finite() {
                return 1.0;
            }
            (activation.powf(strength) / weight.max(LEAST).powf(1.0 - strength)).max(LEAST)
        })
        .collect()
}

/// The scales of one fold, by a given strength.
#[must_use]
pub fn fold_scales(
    statistics: &FoldStatistics<'_>,
    consumers: &[Consumer<'_>],
    channels: Channels<'_>,
    strength: f64,
) -> Vec<f64> {
    scales(statistics.absmax, &column_maxima(consumers, statistics.absmax.len()), channels, strength)
}

/// The strength with the least ‖X Wᵀ − Q(X S⁻¹) Q(W S)ᵀ‖² over the sample, of 0, 0.05 … 1 and no scales at all; of equals
/// the first, beginning with none. At most 512 evenly spaced rows of each consumer count. Without a sample: strength 0.5,
/// with losses that are not a number.
#[must_use]
pub fn search(statistics: &FoldStatistics<'_>, consumers: &[Consumer<'_>], channels: Channels<'_>) -> Chosen {
    let width = statistics.absmax.len();
    let weights = column_maxima(consumers, width);
    let of = |strength: f64| scales(statistics.absmax, &weights, channels, strength);
    let Some(sample) = statistics.sample else {
        return Chosen { scales: of(0.5), strength: Some(0.5), loss: f64::NAN, plain_loss: f64::NAN };
    };
    let rows = LossRows::new(consumers, width);
    let loss = |scales: &[f64]| rows.output_loss(consumers, sample, statistics.absmax, &channels.spread(scales));
    let plain = vec![1.0; channels.count];
    let plain_loss = loss(&plain);
    let mut best = Chosen { scales: plain, strength: None, loss: plain_loss, plain_loss };
    for step in 0..=20 {
        let strength = f64::from(step) / 20.0;
        let scales = of(strength);
        let loss = loss(&scales);
        if loss < best.loss {
            best = Chosen { scales, strength: Some(strength), loss, plain_loss };
        }
    }
    best
}
