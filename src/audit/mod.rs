//! What a `TaylorMLP` artifact gives away: mounts the known recovery on it and says how much of the original that gets back.
//!
//! Only what the artifact stores is used. Its terms `Θ_n` are one column times numbers `p_n`, and all numbers of the column
//! share these: their ratios tell the polynomial, and the column follows. A source, where given, is the judge alone.
//! `docs/passes/taylor_mlp_audit.md` tells the attacks and what the hardened form withholds.

mod error;
mod judge;
mod layer;
mod recover;

pub use error::AuditError;
pub use layer::Layer;
pub use recover::{Attack, Columns, Reading, columns, profiles, read};

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use judge::{Original, guessed_factors, median, merged_error};

/// Below this relative error a column counts as recovered.
pub const RECOVERED: f64 = 1e-5;

/// What came out.
#[derive(Debug, Serialize)]
pub struct Audit {
    /// Protected columns of all layers.
    pub protected: usize,
    /// Those that were recovered, by the attack that recovered most.
    pub recovered: usize,
    /// Their share.
    pub recovered_share: f64,
    /// Whether a source was there to judge; else columns are judged by whether they explain all terms.
    pub against_source: bool,
    /// Layer by layer.
    pub layers: Vec<LayerAudit>,
}

/// What came out of one layer.
#[derive(Debug, Serialize)]
pub struct LayerAudit {
    /// The down projection's name without `.weight`.
    pub name: String,
    /// Hidden units.
    pub units: usize,
    /// Protected ones.
    pub protected: usize,
    /// Whether the artifact is hardened.
    pub hardened: bool,
    /// What each attack got.
    pub attacks: Vec<AttackAudit>,
    /// What the hardened form withholds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
}

/// What one attack got.
#[derive(Debug, Serialize)]
pub struct AttackAudit {
    /// Its name.
    pub attack: &'static str,
    /// Columns recovered. Of a hardened layer: up to their factor, which the up projection has the inverse of.
    pub recovered: usize,
    /// Relative error of the terms as predicted from the columns.
    pub inconsistency: Spread,
    /// Relative error of the columns against the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Spread>,
    /// Gates whose factor was read off right, of a source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gates: Option<usize>,
}

/// The largest and the middle of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The largest.
    pub largest: f64,
    /// The median.
    pub median: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        let median = median(&mut values).unwrap_or(0.0);
        Self { largest: values.last().copied().unwrap_or(0.0), median }
    }
}

/// What the hardened form withholds, and what is left of that.
#[derive(Debug, Serialize)]
pub struct Withheld {
    /// Relative error of the merged zeroth terms as predicted from the columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merged_error: Option<f64>,
    /// Columns that are the source's as they are and where they are: by their factors and places being 1 by chance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_they_are: Option<usize>,
    /// Factors whose magnitude is guessed right from the lengths of unprotected units, of a source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guessed_magnitudes: Option<usize>,
    /// Factors below zero, of a source's: a coin each, which nothing in the artifact tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative: Option<usize>,
}

/// Audits an artifact; `source` is the checkpoint it was made of. `watch` hears how many bytes of terms are done, and of all.
///
/// # Errors
/// [`AuditError`] for an artifact that has no expanded layers, stored tensors that do not fit together, and a source that is
/// none of it.
pub fn audit(
    artifact: &Checkpoint,
    source: Option<&Checkpoint>,
    watch: &dyn Fn(u64, u64),
) -> Result<Audit, AuditError> {
    let layers = Layer::all(artifact)?;
    let mut done = Vec::with_capacity(layers.len());
    let (mut bytes, total) = (0, layers.iter().map(Layer::bytes).sum());
    for layer in &layers {
        done.push(audit_layer(layer, source)?);
        bytes += layer.bytes();
        watch(bytes, total);
    }
    let protected = done.iter().map(|layer| layer.protected).sum();
    let most = |layer: &LayerAudit| layer.attacks.iter().map(|attack| attack.recovered).max().unwrap_or(0);
    let recovered = done.iter().map(most).sum();
    Ok(Audit {
        protected,
        recovered,
        recovered_share: recovered as f64 / protected as f64,
        against_source: source.is_some(),
        layers: done,
    })
}

fn audit_layer(layer: &Layer<'_>, source: Option<&Checkpoint>) -> Result<LayerAudit, AuditError> {
    let original = match source {
        None => None,
        Some(source) => {
            let missing = || AuditError::Source { module: layer.module.clone() };
            Some(Original::of(source, layer).ok_or_else(missing)?)
        }
    };
    let matches = original.as_ref().map(|original| original.matches(layer));
    let profiles = profiles(layer);
    // A hardened gate's bias lies in the points, which then tell nothing of where activations are expanded.
    let kinds: &[Attack] = match (layer.is_hardened(), layer.biased) {
        (true, true) => &[Attack::Ratios],
        (true, false) => &[Attack::Point],
        (false, _) => &[Attack::Point, Attack::Ratios],
    };
    let (mut attacks, mut withheld) = (Vec::new(), None);
    for attack in kinds {
        let readings = read(layer, &profiles, *attack);
        let columns = columns(layer, &readings);
        let errors =
            original.as_ref().zip(matches.as_ref()).map(|(original, matches)| original.errors(&columns, matches));
        let below = |values: &[f64]| values.iter().filter(|value| **value < RECOVERED).count();
        let right = |matches: &Vec<Option<judge::Match>>| {
            let pairs = readings.iter().zip(matches);
            pairs.filter(|(reading, found)| found.is_some_and(|found| found.gate == reading.gate)).count()
        };
        attacks.push(AttackAudit {
            attack: attack.name(),
            recovered: below(errors.as_ref().unwrap_or(&columns.inconsistency)),
            inconsistency: Spread::of(&columns.inconsistency),
            error: errors.as_deref().map(Spread::of),
            gates: matches.as_ref().map(right),
        });
        if layer.is_hardened() {
            let guesses = guessed_factors(layer, &columns);
            // The column has the inverse of what the up row has.
            let magnitudes = guesses.zip(matches.as_ref()).map(|(guesses, matches)| {
                let pairs = guesses.iter().zip(matches);
                pairs.filter(|(guess, found)| found.is_some_and(|found| found.up.abs() == **guess)).count()
            });
            let in_place = original.as_ref().map(|original| below(&original.errors_in_place(&columns, &layer.units)));
            let negative =
                |matches: &Vec<Option<judge::Match>>| matches.iter().flatten().filter(|m| m.up < 0.0).count();
            withheld = Some(Withheld {
                merged_error: merged_error(layer, &columns, &readings),
                as_they_are: in_place,
                guessed_magnitudes: magnitudes,
                negative: matches.as_ref().map(negative),
            });
        }
    }
    Ok(LayerAudit {
        name: layer.module.clone(),
        units: layer.hidden_units,
        protected: layer.units.len(),
        hardened: layer.is_hardened(),
        attacks,
        withheld,
    })
}
