//! What the passes that move scales between layers share: kinds of folds, statistics of an input, the linears that read
//! it, losses of rounding them.

mod keys;
mod loss;
#[cfg(test)]
pub(super) mod tests;

pub(super) use keys::{fold_kinds, switch, within};
pub use loss::{LossRows, Measure};
use serde::Serialize;

use crate::forward::{InputFormat, Matrix};

/// Which fold of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoldKind {
    /// Norm → queries, keys and values, or their latents.
    Attention,
    /// Values → attention's output.
    Value,
    /// Norm → gate and up; experts, shared expert, router and its gate too.
    Mlp,
    /// Up → down.
    Up,
    /// Norm of a latent → what is made of it.
    Latent,
}

impl FoldKind {
    /// All, in canonical order.
    pub const ALL: [Self; 5] = [Self::Attention, Self::Value, Self::Mlp, Self::Up, Self::Latent];

    /// Its name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Value => "value",
            Self::Mlp => "mlp",
            Self::Up => "up",
            Self::Latent => "latent",
        }
    }
}

/// How free scales map to the channels of an input.
#[derive(Debug, Clone, Copy)]
pub struct Channels<'a> {
    /// Free scales.
    pub count: usize,
    /// The free scale of each channel; none where they are one to one.
    pub of: Option<&'a [usize]>,
}

impl Channels<'_> {
    fn of(&self, channel: usize) -> usize {
        self.of.map_or(channel, |of| of[channel])
    }

    /// One value per channel from one per free scale.
    #[must_use]
    pub fn spread(&self, scales: &[f64]) -> Vec<f64> {
        self.of.map_or_else(|| scales.to_vec(), |of| of.iter().map(|free| scales[*free]).collect())
    }

    /// The largest value of the channels that share a scale.
    #[must_use]
    pub fn largest(&self, values: &[f32]) -> Vec<f64> {
        let mut largest = vec![0.0_f64; self.count];
        for (channel, value) in values.iter().enumerate() {
            let place = &mut largest[self.of(channel)];
            *place = place.max(f64::from(*value));
        }
        largest
    }

    /// The mean value of the channels that share a scale.
    #[must_use]
    pub fn mean(&self, values: &[f32]) -> Vec<f64> {
        let mut sums = vec![(0.0_f64, 0_u32); self.count];
        for (channel, value) in values.iter().enumerate() {
            let (sum, count) = &mut sums[self.of(channel)];
            *sum += f64::from(*value);
            *count += 1;
        }
        sums.into_iter().map(|(sum, count)| sum / f64::from(count.max(1))).collect()
    }
}

/// Statistics of the consumers' input as it is now, earlier transforms applied.
#[derive(Debug, Clone, Copy, Default)]
pub struct FoldStatistics<'a> {
    /// Largest magnitude of each channel.
    pub absmax: &'a [f32],
    /// Mean magnitude of each channel.
    pub mean_abs: &'a [f32],
    /// Σ x xᵀ, `[channels, channels]`.
    pub hessian: Option<&'a [f64]>,
    /// Some token rows.
    pub sample: Option<&'a Matrix>,
}

/// Statistics that own their numbers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OwnedStatistics {
    /// As in [`FoldStatistics`].
    pub absmax: Vec<f32>,
    /// As in [`FoldStatistics`].
    pub mean_abs: Vec<f32>,
    /// As in [`FoldStatistics`].
    pub hessian: Option<Vec<f64>>,
    /// As in [`FoldStatistics`].
    pub sample: Option<Matrix>,
}

impl OwnedStatistics {
    /// As the passes take them.
    #[must_use]
    pub fn view(&self) -> FoldStatistics<'_> {
        FoldStatistics {
            absmax: &self.absmax,
            mean_abs: &self.mean_abs,
            hessian: self.hessian.as_deref(),
            sample: self.sample.as_ref(),
        }
    }
}

/// A linear that reads the input.
#[derive(Clone, Copy)]
pub struct Consumer<'a> {
    /// Its weights as they are now, `[rows, channels]`.
    pub weights: &'a [f32],
    /// Its output features.
    pub rows: usize,
    /// What its number format leaves of weights of so many whole rows. Must not depend on rows that are not given.
    pub quantize: &'a (dyn Fn(&[f32], usize) -> Vec<f32> + Sync),
    /// Columns that share a scale; none for whole rows.
    pub group: Option<usize>,
    /// How its input is rounded at run time.
    pub input: InputFormat,
}

/// Scales that a search chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// One per free channel.
    pub scales: Vec<f64>,
    /// The exponent that gave them; none where nothing is scaled.
    pub strength: Option<f64>,
    /// The loss with them, on the rows that the search looks at.
    pub loss: f64,
    /// The loss of scaling nothing.
    pub plain_loss: f64,
}

/// The statistics behind a fold: x' = S⁻¹x, hence H' = S⁻¹HS⁻¹. `scales` are one per channel; see
/// [`Channels::spread`].
#[must_use]
pub fn rescale_statistics(statistics: &FoldStatistics<'_>, scales: &[f64]) -> OwnedStatistics {
    let divide = |values: &[f32]| -> Vec<f32> {
        values.iter().zip(scales.iter().cycle()).map(|(value, scale)| (f64::from(*value) / scale) as f32).collect()
    };
    let hessian = statistics.hessian.map(|hessian| {
        let mut out = Vec::with_capacity(hessian.len());
        for (row, scale) in hessian.chunks_exact(scales.len().max(1)).zip(scales) {
            out.extend(row.iter().zip(scales).map(|(value, other)| value / (scale * other)));
        }
        out
    });
    OwnedStatistics {
        absmax: divide(statistics.absmax),
        mean_abs: divide(statistics.mean_abs),
        hessian,
        sample: statistics.sample.map(|sample| Matrix {
            rows: sample.rows,
            columns: sample.columns,
            values: divide(&sample.values),
        }),
    }
}
