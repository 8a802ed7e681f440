//! SmoothQuant+: smoothing for weight-only quantization, with one strength for the whole model found by the error of the
//! whole quantized model.
//!
//! Pan et al., "SmoothQuant+: Accurate and Efficient 4-bit Post-Training Weight Quantization for LLM"
//! (arXiv 2312.03788). The caller drives the search over [`candidates`]; beyond the paper, [`refine`] then moves the
//! strength of each fold.

#[cfg(test)]
mod tests;

use serde::Serialize;

use super::{
    SettingError,
    folding::{Channels, Chosen, Consumer, FoldKind, FoldStatistics, LossRows, Measure, fold_kinds, switch, within},
    setting::known_keys,
    smoothquant,
};

/// The registry entry.
pub const INFO: crate::passes::PassInfo = crate::passes::PassInfo {
    name: "smoothquant_plus",
    kind: crate::passes::Kind::Transform,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse: |table| Settings::parse(table).map(crate::passes::Settings::SmoothQuantPlus),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &["folds", "refine", "step"];

/// Settings of `smoothquant_plus`, every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Distance of the strengths that are tried.
    pub step: f64,
    /// Whether each fold's strength is refined.
    pub refine: bool,
    /// The folds that are used.
    pub folds: Vec<FoldKind>,
}

impl Settings {
    /// Types and checks the keys of a rule (its own keys only).
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &toml::Table) -> Result<Self, SettingError> {
        known_keys(table, "smoothquant_plus", KEYS)?;
        let step = within(table, "step", "a number from 0.001 to 1", |value| (0.001..=1.0).contains(&value))?;
        let (refine, folds) = (switch(table, "refine", true)?, fold_kinds(table)?);
        Ok(Self { step: step.unwrap_or(0.05), refine, folds })
    }
}

/// The strengths of the grid: 0, step, 2·step … and 1.
#[must_use]
pub fn candidates(step: f64) -> Vec<f64> {
    // Far from a whole number only where 1 is no multiple of the step.
    let count = (1.0 / step - 1e-9).ceil().max(1.0) as usize;
    (0..=count).map(|index| (index as f64 * step).min(1.0)).collect()
}

/// The scales of one fold with one strength; the formula is SmoothQuant's.
#[must_use]
pub fn scales(
    statistics: &FoldStatistics<'_>,
    consumers: &[Consumer<'_>],
    channels: Channels<'_>,
    strength: f64,
) -> Vec<f64> {
    smoothquant::fold_scales(statistics, consumers, channels, strength)
}

/// Moves the strength of one fold by steps, up or down, as long as Σ tr(Δ H Δᵀ) over the consumers falls; and not at all
/// where it is least to begin with. Scaling nothing is chosen when even the best strength is worse. Rows are those of
/// [`LossRows`]. Without second moments or sample: the given strength, with losses that are not a number.
#[must_use]
pub fn refine(
    statistics: &FoldStatistics<'_>,
    consumers: &[Consumer<'_>],
    channels: Channels<'_>,
    strength: f64,
    step: f64,
) -> Chosen {
    let width = statistics.absmax.len();
    let weights = smoothquant::column_maxima(consumers, width);
    let of = |strength: f64| smoothquant::scales(statistics.absmax, &weights, channels, strength);
    let Some(measure) = Measure::new(statistics, width) else {
        return Chosen { scales: of(strength), strength: Some(strength), loss: f64::NAN, plain_loss: f64::NAN };
    };
    let rows = LossRows::new(consumers, width);
    let loss = |scales: &[f64]| rows.weight_loss(consumers, &measure, &channels.spread(scales));
    let plain = vec![1.0; channels.count];
    let plain_loss = loss(&plain);
    let try_one = |strength: f64| {
        let scales = of(strength);
        let loss = loss(&scales);
        Chosen { scales, strength: Some(strength), loss, plain_loss }
    };
    let mut best = try_one(strength);
    for direction in [step, -step] {
        let mut moved = false;
        for index in 1.. {
            let next = strength + f64::from(index) * direction;
            if !(-1e-9..=1.0 + 1e-9).contains(&next) {
                break;
            }
            let chosen = try_one(next.clamp(0.0, 1.0));
            if chosen.loss >= best.loss {
                break;
            }
            (best, moved) = (chosen, true);
        }
        if moved {
            break;
        }
    }
    if plain_loss < best.loss {
        return Chosen { scales: plain, strength: None, loss: plain_loss, plain_loss };
    }
    best
}
