//! AWQ: scales that protect the weights which large activations meet, then clipping.
//!
//! Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978, §3.2)
//! and the authors' code. Losses are exact through second moments: ‖X Δᵀ‖² = tr(Δ H Δᵀ) for a linear, `Δ_g H_gg Δ_gᵀ` for
//! a group. Beyond the paper: value heads that are shared take part with the mean over those that read them, channels
//! without any activation are left alone.

mod clip;
#[cfg(test)]
mod tests;

pub use clip::clip;
use serde::Serialize;

use super::{
    SettingError,
    folding::{Channels, Chosen, Consumer, FoldKind, FoldStatistics, LossRows, Measure, fold_kinds, switch, within},
    setting::known_keys,
};

/// The registry entry.
pub const INFO: crate::passes::PassInfo = crate::passes::PassInfo {
    name: "awq",
    kind: crate::passes::Kind::Transform,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse: |table| Settings::parse(table).map(crate::passes::Settings::Awq),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &["clip", "folds", "grid"];

/// The least scale before they are centred.
const LEAST: f64 = 1e-4;

/// Settings of `awq`, every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Exponents that are tried: 0, 1/grid … (grid − 1)/grid.
    pub grid: usize,
    /// Whether weights are clipped.
    pub clip: bool,
    /// The folds that are used.
    pub folds: Vec<FoldKind>,
}

impl Settings {
    /// Types and checks the keys of a rule (its own keys only).
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &toml::Table) -> Result<Self, SettingError> {
        known_keys(table, "awq", KEYS)?;
        let whole = |value: f64| (1.0..=1000.0).contains(&value) && value.fract() == 0.0;
        let grid = within(table, "grid", "a whole number from 1 to 1000", whole)?.unwrap_or(20.0) as usize;
        Ok(Self { grid, clip: switch(table, "clip", true)?, folds: fold_kinds(table)? })
    }
}

/// max(mean|x|^ratio, 1e-4), divided by √(largest · smallest). Channels that share a scale take their mean; a channel
/// without any activation keeps 1.
#[must_use]
pub fn candidate(mean_abs: &[f32], channels: Channels<'_>, ratio: f64) -> Vec<f64> {
    let means = channels.mean(mean_abs);
    let alive = |mean: &f64| *mean > 0.0 && mean.is_finite();
    let power = |mean: f64| mean.powf(ratio).max(LEAST);
    let (mut least, mut largest) = (f64::INFINITY, 0.0_f64);
    for mean in means.iter().filter(|mean| alive(mean)) {
        least = least.min(power(*mean));
        largest = largest.max(power(*mean));
    }
    let centre = (least * largest).sqrt();
    means.into_iter().map(|mean| if alive(&mean) { power(mean) / centre } else { 1.0 }).collect()
}

/// The candidate with the least Σ tr(Δ H Δᵀ) over the consumers, Δ = Q(W S) S⁻¹ − W; of equals the smallest exponent, and
/// exponent 0 is plain rounding. At most 512 evenly spaced rows of each consumer count, 4096 of all.
///
/// Where there is no Hessian the sample stands for it; without either nothing is scaled.
#[must_use]
pub fn scales(
    statistics: &FoldStatistics<'_>,
    consumers: &[Consumer<'_>],
    channels: Channels<'_>,
    grid: usize,
) -> Chosen {
    let width = statistics.mean_abs.len();
    let plain = vec![1.0; channels.count];
    let Some(measure) = Measure::new(statistics, width) else {
        return Chosen { scales: plain, strength: None, loss: f64::NAN, plain_loss: f64::NAN };
    };
    let rows = LossRows::new(consumers, width);
    let loss = |scales: &[f64]| rows.weight_loss(consumers, &measure, &channels.spread(scales));
    let plain_loss = loss(&plain);
    let mut best = Chosen { scales: plain, strength: None, loss: plain_loss, plain_loss };
    for step in 1..grid {
        let ratio = step as f64 / grid as f64;
        let scales = candidate(statistics.mean_abs, channels, ratio);
        let loss = loss(&scales);
        if loss < best.loss {
            best = Chosen { scales, strength: Some(ratio), loss, plain_loss };
        }
    }
    best
}
