//! Weights of chosen tensors before and after, counted in the same bins.

use serde::Serialize;

use super::{Artifact, Opened};
use crate::{
    Result,
    checkpoint::is_float,
    evaluate::{Histogram, Statistics},
    layout::LogicalCheckpoint,
    manifest::{InputTensor, Manifest, hash_of_tensor},
};

/// Passes that move scales between layers.
const FOLDING: [&str; 3] = ["smoothquant", "smoothquant_plus", "awq"];

/// All histograms of a report, and why there are no more.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Histograms {
    /// The tensors.
    pub tensors: Vec<TensorHistogram>,
    /// What could not be shown, a sentence each.
    pub notes: Vec<String>,
}

/// A tensor that is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Its name.
    pub name: String,
    /// Why this one, in a few words.
    pub why: &'static str,
}

/// One tensor before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorHistogram {
    /// Its name.
    pub name: String,
    /// Why this one was chosen.
    pub why: &'static str,
    /// How it is stored.
    pub codec: String,
    /// Whether scales were folded into it, so that it differs from its source by more than rounding.
    pub folded: bool,
    /// Standard deviation of the source's weights.
    pub standard_deviation: f64,
    /// Left edge of the first bin.
    pub low: f64,
    /// Right edge of the last bin; what is beyond counts in the outermost bins.
    pub high: f64,
    /// The source's weights in each bin.
    pub before: Vec<u64>,
    /// The artifact's.
    pub after: Vec<u64>,
    /// Those of the artifact beside it, where it has the tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Vec<u64>>,
}

/// Without a choice: the tensor furthest from its source, the median one, and the one with the most weights.
#[must_use]
pub fn default_choice(artifact: &Artifact) -> Vec<Chosen> {
    let worst = artifact.worst_first();
    let largest = worst.iter().max_by(|a, b| a.weights.cmp(&b.weights).then_with(|| b.name.cmp(&a.name)));
    let candidates = [
        (worst.first(), "Furthest from its source"),
        (worst.get(worst.len() / 2), "Median error"),
        (largest, "Most weights"),
    ];
    let mut chosen: Vec<Chosen> = Vec::new();
    for (row, why) in candidates {
        if let Some(row) = row.filter(|row| chosen.iter().all(|earlier| earlier.name != row.name)) {
            chosen.push(Chosen { name: row.name.clone(), why });
        }
    }
    chosen
}

/// What is read: models, opened.
#[derive(Debug, Clone, Copy)]
pub struct Sides<'a> {
    /// What the artifact was made of.
    pub source: &'a LogicalCheckpoint,
    /// The artifact.
    pub artifact: &'a LogicalCheckpoint,
    /// The one beside it.
    pub against: Option<&'a LogicalCheckpoint>,
}

impl Histograms {
    /// No histograms, for this reason.
    #[must_use]
    pub fn none(reason: String) -> Self {
        Self { tensors: Vec::new(), notes: vec![reason] }
    }

    /// Reads the chosen tensors stripe by stripe, one after the other: a stripe per thread is in memory. A tensor whose source
    /// is not what went into the artifact is named in the notes instead.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn of(opened: &Opened, sides: Sides<'_>, chosen: &[Chosen]) -> Result<Self> {
        let mut histograms = Self::default();
        for Chosen { name, why } in chosen {
            match one(&opened.manifest, sides, name, why)? {
                Ok(tensor) => histograms.tensors.push(tensor),
                Err(reason) => histograms.notes.push(format!("{name}: {reason}.")),
            }
        }
        Ok(histograms)
    }
}

/// One tensor's histogram, or why there is none.
fn one(
    manifest: &Manifest,
    Sides { source, artifact, against }: Sides<'_>,
    name: &str,
    why: &'static str,
) -> Result<std::result::Result<TensorHistogram, &'static str>> {
    let (Some(stated), Some(stored)) = (manifest.tensor(name), artifact.tensor(name)) else {
        return Ok(Err("the artifact does not store it under this name"));
    };
    let Some(original) = source.tensor(name) else {
        return Ok(Err("the source has no tensor of this name"));
    };
    if !is_float(original.dtype) || !is_float(stored.dtype) {
        return Ok(Err("its values are integers"));
    }
    let inputs = manifest.inputs.iter().filter(|input| stated.source.contains(&input.name));
    if original.shape != stated.shape || !inputs.clone().all(|input| went_in(source, input)) {
        return Ok(Err("the source's tensor is not the one that went into the artifact"));
    }
    let statistics = Statistics::of(source.rows(name, false)?.as_ref())?;
    let Histogram { low, high, counts: before } = statistics.histogram;
    let count = |model: &LogicalCheckpoint| -> Result<Vec<u64>> {
        Ok(Histogram::count(model.rows(name, false)?.as_ref(), low, high)?.counts)
    };
    let same_shape = |model: &&LogicalCheckpoint| {
        model.tensor(name).is_some_and(|tensor| tensor.shape == stated.shape && is_float(tensor.dtype))
    };
    Ok(Ok(TensorHistogram {
        name: name.to_owned(),
        why,
        codec: stated.codec.clone(),
        folded: stated.passes.iter().any(|pass| FOLDING.contains(&pass.as_str())),
        standard_deviation: statistics.std,
        low,
        high,
        after: count(artifact)?,
        against: against.filter(same_shape).map(count).transpose()?,
        before,
    }))
}

/// Whether the source's stored tensor is what the manifest says went in.
fn went_in(source: &LogicalCheckpoint, input: &InputTensor) -> bool {
    source.checkpoint().tensor(&input.name).is_some_and(|entry| {
        (entry.dtype, &entry.shape) == (input.dtype, &input.shape)
            && hash_of_tensor(source.checkpoint(), entry) == input.hash
    })
}
