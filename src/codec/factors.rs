//! A matrix as the product of two thin ones: a runtime keeps the small product of the input with the second, the latent,
//! where it would keep the outputs.
//!
//! `W ≈ B·A` by groups of rows: the rows of group g are `B[:, columns of g] · A[rows of g, :]`. With one group that is the
//! plain product. Groups of key or value heads are those of Palu (Chang et al., arXiv 2407.21118, §3.2); one group is the
//! joint projection of CSKV (Wang et al., arXiv 2409.10593, §2).

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{CodecError, ScaleFormat, StoredTensor};
use crate::checkpoint::{Dtype, bits_of, decode_to_f32, encode_from_f32};

/// What follows the module's name in the name of A.
pub const LATENT: &str = "_a.weight";
/// What follows it in the name of B.
pub const OUTPUT: &str = "_b.weight";
/// What follows it in the name of the matrix itself, where that is kept beside its factors.
pub const EXACT: &str = "_exact.weight";
const EXACT_NAME: &str = "-exact";

/// Two factors of a matrix, by groups of rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factors {
    /// Latent channels of each group of rows, each from 1 to the group's rows and the matrix's columns.
    pub ranks: Vec<usize>,
    /// Element type of what is stored.
    pub storage: ScaleFormat,
    /// Whether the matrix itself is kept beside its factors.
    pub exact: bool,
}

impl Factors {
    /// Its short name: `factors-32`, `factors-12.20`, `factors-32-exact`.
    #[must_use]
    pub fn name(&self) -> String {
        let ranks: Vec<String> = self.ranks.iter().map(usize::to_string).collect();
        format!("factors-{}{}", ranks.join("."), if self.exact { EXACT_NAME } else { "" })
    }

    /// Reads a short name back.
    #[must_use]
    pub fn parse_name(name: &str, storage: ScaleFormat) -> Option<Self> {
        let rest = name.strip_prefix("factors-")?;
        let (rest, exact) = rest.strip_suffix(EXACT_NAME).map_or((rest, false), |rest| (rest, true));
        let ranks = rest.split('.').map(|rank| rank.parse().ok()).collect::<Option<Vec<usize>>>()?;
        let format = Self { ranks, storage, exact };
        (!format.ranks.contains(&0) && format.name() == name).then_some(format)
    }

    /// Latent channels of all groups.
    #[must_use]
    pub fn latent(&self) -> usize {
        self.ranks.iter().sum()
    }

    /// The latent channels of each group.
    pub fn channels(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        self.ranks.iter().map(move |rank| {
            start += rank;
            start - rank..start
        })
    }

    /// Checks that a matrix of this shape can be stored so.
    ///
    /// # Errors
    /// [`CodecError`] for groups that do not divide the rows, ranks of 0 or above what a group can have, a type of floats
    /// that factors are not stored in, and a matrix that cannot be addressed.
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        if self.ranks.is_empty() {
            return Err(CodecError::Zero { what: "number of groups" });
        }
        if !matches!(self.storage, ScaleFormat::F16 | ScaleFormat::BF16 | ScaleFormat::F32) {
            let problem = format!("{:?} holds no factors; expected F16, BF16 or F32", self.storage);
            return Err(CodecError::Stored { what: "type of the factors", problem });
        }
        match rows.checked_mul(columns) {
            Some(weights) if weights < usize::MAX / 64 => {}
            _ => return Err(CodecError::TooLarge { rows, columns }),
        }
        if !rows.is_multiple_of(self.ranks.len()) {
            let problem = format!("{} groups do not divide {rows} rows", self.ranks.len());
            return Err(CodecError::Stored { what: "ranks", problem });
        }
        let most = (rows / self.ranks.len()).min(columns);
        match self.ranks.iter().find(|rank| !(1..=most).contains(rank)) {
            Some(0) => Err(CodecError::Zero { what: "rank" }),
            Some(&got) => Err(CodecError::Length { what: "latent channels of a group", expected: most, got }),
            None => Ok(()),
        }
    }

    /// The tensors of a valid matrix: A `[latent, columns]`, B `[rows of a group, latent]`, and the matrix itself where it is
    /// kept.
    #[must_use]
    pub fn tensors(&self, rows: usize, columns: usize) -> Vec<StoredTensor> {
        let (dtype, latent) = (Dtype::from(self.storage), self.latent());
        let stored = |suffix, shape| StoredTensor { suffix, dtype, shape };
        let mut tensors =
            vec![stored(LATENT, vec![latent, columns]), stored(OUTPUT, vec![rows / self.ranks.len().max(1), latent])];
        if self.exact {
            tensors.push(stored(EXACT, vec![rows, columns]));
        }
        tensors
    }

    /// The bytes of values, each rounded to the nearest that the stored type has.
    #[must_use]
    pub fn stored(&self, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_from_f32(self.storage.into(), values, &mut bytes);
        bytes
    }

    /// The matrix `[rows, columns]`: in F32, products added in the order of the latent channels. What is kept of the matrix
    /// itself is checked for its length and has no part in it.
    ///
    /// # Errors
    /// [`CodecError`] for tensors of other lengths and factors that are not finite.
    pub fn decode(&self, rows: usize, columns: usize, stored: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        self.validate(rows, columns)?;
        let demanded = self.tensors(rows, columns);
        if stored.len() != demanded.len() {
            return Err(CodecError::Length { what: "tensors", expected: demanded.len(), got: stored.len() });
        }
        for (tensor, bytes) in demanded.iter().zip(stored) {
            if bytes.len() != tensor.bytes() {
                let (expected, got) = (tensor.bytes(), bytes.len());
                return Err(CodecError::Length { what: "bytes of a factor", expected, got });
            }
        }
        let [a, b, ..] = stored else {
            return Err(CodecError::Length { what: "tensors", expected: demanded.len(), got: stored.len() });
        };
        let (a, b) = (self.factor("factor A", a)?, self.factor("factor B", b)?);
        let (latent, group_rows) = (self.latent(), rows / self.ranks.len());
        let channels: Vec<Range<usize>> = self.channels().collect();
        let mut values = vec![0.0; rows * columns];
        values.par_chunks_mut(columns).enumerate().for_each(|(row, out)| {
            let channels = channels[row / group_rows].clone();
            let weights = &b[row % group_rows * latent..][channels.clone()];
            for (weight, a) in weights.iter().zip(a[channels.start * columns..].chunks_exact(columns)) {
                out.iter_mut().zip(a).for_each(|(out, a)| *out += weight * a);
            }
        });
        Ok(values)
    }

    fn factor(&self, what: &'static str, bytes: &[u8]) -> Result<Vec<f32>, CodecError> {
        let dtype = Dtype::from(self.storage);
        let mut values = vec![0.0; bytes.len() * 8 / bits_of(dtype)];
        decode_to_f32(dtype, bytes, &mut values);
        match values.iter().position(|value: &f32| !value.is_finite()) {
            Some(at) => Err(CodecError::Stored { what, problem: format!("number {at} is {}", values[at]) }),
            None => Ok(values),
        }
    }
}

#[cfg(test)]
#[path = "factors_tests.rs"]
mod tests;
