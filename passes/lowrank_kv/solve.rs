//! From weights to factors.

use faer::MatRef;
use rayon::prelude::*;

use super::{
    Method,
    principal::{Metric, Principal, gram, principal, product, weighted, wide},
};
use crate::{
    codec::{CodecError, Factors, StoredMatrix, range},
    linalg::Rotation,
    passes::gptq::{Report, SolveError},
};

/// What ASVD adds to each channel's mean magnitude, as CSKV's code does.
const CHANNEL_FLOOR: f64 = 1e-6;
/// Share of the largest eigenvalue below which channels are scaled alike.
const EIGENVALUE_FLOOR: f64 = 1e-8;

/// One projection.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Its name, from which random signs follow.
    pub name: &'a str,
    /// Weights, `[rows, columns]`.
    pub weights: &'a [f32],
    /// Columns.
    pub columns: usize,
    /// What it becomes.
    pub format: &'a Factors,
    /// Whether latents are rotated.
    pub rotate: bool,
}

/// Factors, and what they lose.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// What is stored.
    pub tensors: StoredMatrix,
    /// Losses over all tokens: of the plain decomposition, and of what is stored.
    pub report: Report,
}

impl Linear<'_> {
    fn groups(&self) -> usize {
        self.format.ranks.len().max(1)
    }

    fn rows(&self) -> usize {
        self.weights.len() / self.columns.max(1)
    }

    fn check(&self) -> Result<(), SolveError> {
        self.format.validate(self.rows(), self.columns)?;
        match range::first_non_finite(self.weights) {
            Some(at) => {
                let (row, column) = (at / self.columns, at % self.columns);
                Err(CodecError::NonFinite { row, column, value: self.weights[at] }.into())
            }
            None => Ok(()),
        }
    }

    /// The weights of each group of rows, in F64.
    fn parts(&self) -> Vec<Vec<f64>> {
        let length = self.rows() / self.groups() * self.columns;
        self.weights.chunks_exact(length.max(1)).map(wide).collect()
    }
}

/// How much each channel counts for ASVD with α = ½: S² for S = diag((mean |x| + ε)^½).
#[must_use]
pub fn channels(magnitudes: &[f32]) -> Vec<f64> {
    magnitudes.iter().map(|magnitude| f64::from(*magnitude) + CHANNEL_FLOOR).collect()
}

/// Factors by the truncated singular value decomposition.
///
/// # Errors
/// [`SolveError`] for weights that are not finite, and a format of another shape.
pub fn encode(linear: &Linear<'_>) -> Result<StoredMatrix, SolveError> {
    linear.check()?;
    let parts = linear.parts();
    let found = parts.par_iter().map(|weights| principal(weights, linear.columns, Metric::Alike));
    Ok(store(linear, &parts, &found.collect::<Result<Vec<_>, _>>()?))
}

/// Factors under what is known of the input: `moments` is `Σ x xᵀ`, `[columns, columns]`, and `magnitudes` the mean |x| of
/// each channel.
///
/// # Errors
/// As for [`encode`]; [`SolveError`] for moments of another length or that are not finite.
pub fn solve(linear: &Linear<'_>, method: Method, moments: &[f64], magnitudes: &[f32]) -> Result<Solution, SolveError> {
    linear.check()?;
    let columns = linear.columns;
    let length = |what, expected, got| {
        if expected == got { Ok(()) } else { Err(SolveError::Length { what, expected, got }) }
    };
    length("second moments", columns * columns, moments.len())?;
    length("mean magnitudes", columns, magnitudes.len())?;
    if let Some(at) = moments.iter().position(|value| !value.is_finite()) {
        return Err(SolveError::NotFinite { row: at / columns, column: at % columns });
    }
    let channels = channels(magnitudes);
    let metric = match method {
        Method::Svd => Metric::Alike,
        Method::Asvd => Metric::Channels(&channels),
        Method::Optimal => Metric::Moments(moments),
    };
    let parts = linear.parts();
    let plain = parts.par_iter().map(|weights| principal(weights, columns, Metric::Alike));
    let plain = plain.collect::<Result<Vec<_>, _>>()?;
    let loss_nearest = linear.format.ranks.iter().zip(parts.iter().zip(&plain));
    let loss_nearest = loss_nearest.map(|(rank, (weights, plain))| dropped(plain, *rank, weights, columns, moments));
    let loss_nearest = loss_nearest.sum();
    let found = match method {
        Method::Svd => plain,
        _ => parts.par_iter().map(|weights| principal(weights, columns, metric)).collect::<Result<Vec<_>, _>>()?,
    };
    let tensors = store(linear, &parts, &found);
    let stored: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let decoded = linear.format.decode(linear.rows(), columns, &stored)?;
    let loss = loss(linear.weights, &decoded, columns, moments);
    let report = Report { loss_nearest, loss_refined: loss, target_loss_refined: loss, ..Report::default() };
    Ok(Solution { tensors, report })
}

/// `tr((W − P Pᵀ W) H (W − P Pᵀ W)ᵀ)` where P spans the first vectors of a subspace that need not be H's.
fn dropped(subspace: &Principal, rank: usize, weights: &[f64], columns: usize, moments: &[f64]) -> f64 {
    let rows = subspace.values.len();
    let gram = gram(weights, columns, Metric::Moments(moments));
    // With the orthonormal rest R of the vectors, W − P Pᵀ W = R Rᵀ W.
    let rest = &subspace.vectors[rank * rows..];
    let turned =
        product(MatRef::from_row_major_slice(rest, rows - rank, rows), MatRef::from_row_major_slice(&gram, rows, rows));
    turned.iter().zip(rest).map(|(a, b)| a * b).sum()
}

/// `tr((W − Ŵ) H (W − Ŵ)ᵀ)`.
fn loss(weights: &[f32], decoded: &[f32], columns: usize, moments: &[f64]) -> f64 {
    let difference: Vec<f64> = weights.iter().zip(decoded).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let turned = weighted(&difference, columns, Metric::Moments(moments));
    turned.iter().zip(&difference).map(|(a, b)| a * b).sum()
}

/// Both factors of all groups, and the matrix itself where the format keeps it.
fn store(linear: &Linear<'_>, parts: &[Vec<f64>], subspaces: &[Principal]) -> StoredMatrix {
    let (format, columns) = (linear.format, linear.columns);
    let group_rows = linear.rows() / linear.groups();
    let latent = format.latent();
    let groups = format.ranks.par_iter().zip(parts.par_iter().zip(subspaces)).enumerate();
    let factors: Vec<(Vec<f64>, Vec<f64>)> = groups
        .map(|(group, (rank, (weights, subspace)))| {
            let (mut a, mut b) = factors(subspace, *rank, weights, columns);
            if linear.rotate {
                let turn = Turn::new(*rank, &format!("{} {group}", linear.name));
                turn.apply(&mut a, columns);
                turn.apply(&mut b, group_rows);
            }
            balance(&mut a, &mut b);
            (a, b)
        })
        .collect();
    let narrow = |values: &[f64]| -> Vec<f32> { values.iter().map(|value| *value as f32).collect() };
    let mut outputs = vec![0.0; group_rows * latent];
    for (channels, (_, b)) in format.channels().zip(&factors) {
        for (channel, values) in channels.zip(b.chunks_exact(group_rows)) {
            for (row, value) in values.iter().enumerate() {
                outputs[row * latent + channel] = *value;
            }
        }
    }
    let inputs: Vec<f64> = factors.into_iter().flat_map(|(a, _)| a).collect();
    let mut stored = vec![format.stored(&narrow(&inputs)), format.stored(&narrow(&outputs))];
    if format.exact {
        stored.push(format.stored(linear.weights));
    }
    stored
}

/// A `[rank, columns]` and Bᵀ `[rank, rows]` of one group. Latent channel k is scaled to `λ_k^¼` in the mean, λ being the
/// eigenvalue: after a rotation, which spreads them evenly, that makes the error of quantized latents smallest. (Noise of
/// variance Σ `λ_k` / `s_k²` in each channel is multiplied by Σ `s_k²`; the product is least for `s_k²` = √`λ_k`.) For the singular
/// value decomposition it is the usual split, √Σ on either side.
fn factors(subspace: &Principal, rank: usize, weights: &[f64], columns: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = subspace.values.len();
    let mut b = subspace.vectors[..rank * rows].to_vec();
    let (left, right) =
        (MatRef::from_row_major_slice(&b, rank, rows), MatRef::from_row_major_slice(weights, rows, columns));
    let mut a = product(left, right);
    let largest = subspace.values.first().copied().unwrap_or(0.0);
    if largest > 0.0 {
        for (channel, value) in subspace.values[..rank].iter().enumerate() {
            let scale = (value / largest).max(EIGENVALUE_FLOOR).sqrt().sqrt();
            b[channel * rows..][..rows].iter_mut().for_each(|value| *value *= scale);
            a[channel * columns..][..columns].iter_mut().for_each(|value| *value /= scale);
        }
    }
    (a, b)
}

/// Makes the largest magnitudes of both factors alike, by a power of two, so that neither leaves the range of a narrow type.
fn balance(a: &mut [f64], b: &mut [f64]) {
    let largest = |values: &[f64]| values.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let ratio = (largest(a) / largest(b)).sqrt();
    if !ratio.is_finite() || ratio <= 0.0 {
        return;
    }
    let scale = ratio.log2().round().exp2();
    for value in a {
        *value /= scale;
    }
    for value in b {
        *value *= scale;
    }
}

/// A rotation of latents that mixes all of them, whatever their number: a randomized Hadamard matrix, or, where none of that
/// order is known, one of the largest power of two on the first channels and then one on the last.
struct Turn {
    whole: Rotation,
    ends: Option<[Rotation; 2]>,
}

impl Turn {
    fn new(rank: usize, name: &str) -> Self {
        let mut seed = [0; 8];
        seed.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
        let seed = u64::from_le_bytes(seed);
        let whole = Rotation::new(rank, seed);
        let ends = (whole.order() < rank).then(|| {
            let power = 1 << rank.ilog2();
            [Rotation::new(power, seed), Rotation::new(power, seed.wrapping_add(1))]
        });
        Self { whole, ends }
    }

    /// Q M for M `[rank, columns]`.
    fn apply(&self, matrix: &mut [f64], columns: usize) {
        match &self.ends {
            None => self.whole.columns_forward(matrix, columns),
            Some([first, last]) => {
                let length = first.size() * columns;
                first.columns_forward(&mut matrix[..length], columns);
                let start = matrix.len() - length;
                last.columns_forward(&mut matrix[start..], columns);
            }
        }
    }
}
