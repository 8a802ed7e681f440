//! The bytes of an expanded down-projection, both ways.

use rayon::prelude::*;

use super::Taylor;
use crate::{
    checkpoint::{Dtype, TensorBytes, bits_of, decode_to_f32},
    codec::CodecError,
};

/// Rows of the terms that tell the signs of units, at most.
pub(crate) const TELLING_ROWS: usize = 64;

/// Where the units' polynomials stand, as stored: one number of each for every expanded unit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Points {
    /// Middle: where s = 0.
    pub z0: Vec<f32>,
    /// Scale: s = (z − z0) / h.
    pub h: Vec<f32>,
    /// Below this, z counts as this.
    pub lo: Vec<f32>,
    /// Above this, z counts as this.
    pub hi: Vec<f32>,
}

impl Points {
    /// The stored bytes, `[4, units]`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.z0, &self.h, &self.lo, &self.hi].into_iter().flatten().flat_map(|value| value.to_le_bytes()).collect()
    }
}

/// An expanded matrix as stored, checked.
#[derive(Debug, Clone)]
pub struct Expansion<'a> {
    /// How.
    pub format: Taylor,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix, all units.
    pub columns: usize,
    /// Expanded units, ascending.
    pub units: Vec<usize>,
    /// Where their polynomials stand.
    pub points: Points,
    terms: TensorBytes<'a>,
    merged: TensorBytes<'a>,
    plain: TensorBytes<'a>,
}

/// The largest k of the factors ±2^k that a hardened gate's rows are stored times.
pub(crate) const LARGEST_EXPONENT: i32 = 3;

impl<'a> Expansion<'a> {
    /// Checks stored bytes, which are hostile until then.
    ///
    /// # Errors
    /// [`CodecError`] for tensors of other lengths, units that are not ascending columns, points that are no ranges, and
    /// numbers that are not finite.
    pub fn new<B>(format: Taylor, rows: usize, columns: usize, stored: &[B]) -> Result<Self, CodecError>
    where
        B: Into<TensorBytes<'a>> + Clone,
    {
        let stored: Vec<TensorBytes<'a>> = stored.iter().cloned().map(Into::into).collect();
        format.validate(rows, columns)?;
        let tensors = format.tensors(rows, columns);
        if stored.len() != tensors.len() {
            return Err(CodecError::Length { what: "tensors", expected: tensors.len(), got: stored.len() });
        }
        for (tensor, bytes) in tensors.iter().zip(&stored) {
            if bytes.len() != tensor.bytes() {
                let (expected, got) = (tensor.bytes(), bytes.len());
                return Err(CodecError::Length { what: "bytes of a stored tensor", expected, got });
            }
        }
        let malformed = |what, problem: String| CodecError::Stored { what, problem };
        let mut units: Vec<usize> = Vec::with_capacity(format.units);
        for bytes in stored[2].chunks_exact(4) {
            let unit = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let ascends = |unit: &usize| *unit < columns && units.last().is_none_or(|last| last < unit);
            let Some(unit) = usize::try_from(unit).ok().filter(ascends) else {
                let problem = format!("unit {unit} at {} does not ascend below {columns}", units.len());
                return Err(malformed("units", problem));
            };
            units.push(unit);
        }
        let mut numbers = vec![0.0; 4 * format.units];
        decode_to_f32(Dtype::F32, &stored[1], &mut numbers);
        let mut parts = numbers.chunks_exact(format.units).map(<[f32]>::to_vec);
        let mut part = || parts.next().unwrap_or_default();
        let points = Points { z0: part(), h: part(), lo: part(), hi: part() };
        for (at, unit) in units.iter().enumerate() {
            let (z0, h, lo, hi) = (points.z0[at], points.h[at], points.lo[at], points.hi[at]);
            let finite = [z0, h, lo, hi].iter().all(|value| value.is_finite());
            if !(finite && h >= f32::MIN_POSITIVE && lo <= z0 && z0 <= hi) {
                return Err(malformed("points", format!("unit {unit} has z0 {z0}, h {h}, range {lo} to {hi}")));
            }
        }
        let mut stored = stored.into_iter();
        let terms = stored.next().unwrap_or_default();
        let mut rest = stored.skip(2);
        let merged = if format.hardened { rest.next().unwrap_or_default() } else { TensorBytes::default() };
        let plain = rest.next().unwrap_or_default();
        let expansion = Self { format, rows, columns, units, points, terms, merged, plain };
        for (what, dtype, bytes) in [
            ("terms", format.terms, &expansion.terms),
            ("merged terms", Dtype::F32, &expansion.merged),
            ("plain columns", format.plain, &expansion.plain),
        ] {
            if let Some(found) = crate::checkpoint::scan_non_finite(dtype, bytes) {
                return Err(malformed(what, format!("number {} is not finite", found.first_index)));
            }
        }
        Ok(expansion)
    }

    /// Columns that are stored as they are, ascending.
    #[must_use]
    pub fn plain_units(&self) -> Vec<usize> {
        let mut expanded = self.units.iter().copied().peekable();
        (0..self.columns).filter(|unit| expanded.next_if_eq(unit).is_none()).collect()
    }

    /// The sum of the terms of power zero, `[rows, rows]` times the MLP's input, or `[rows]`; none where each unit has its own.
    #[must_use]
    pub fn merged(&self) -> Option<Vec<f32>> {
        let mut merged = vec![0.0; self.merged.len() / 4];
        decode_to_f32(Dtype::F32, &self.merged, &mut merged);
        self.format.hardened.then_some(merged)
    }

    /// `Θ_n` of some rows, `[rows, units]`; of one of [`Taylor::powers`].
    pub fn read_terms(&self, power: usize, first_row: usize, out: &mut [f32]) {
        let width = bits_of(self.format.terms) / 8;
        let power = power - self.format.powers().start();
        let start = (power * self.rows + first_row) * self.units.len() * width;
        decode_to_f32(self.format.terms, &self.terms[start..start + out.len() * width], out);
    }

    /// Rows of the matrix with zeros in place of the expanded columns.
    pub fn read_plain(&self, first_row: usize, out: &mut [f32]) {
        let plain = self.plain_units();
        let width = bits_of(self.format.plain) / 8;
        let mut line = vec![0.0; plain.len()];
        for (offset, out) in out.chunks_exact_mut(self.columns.max(1)).enumerate() {
            out.fill(0.0);
            if plain.is_empty() {
                continue;
            }
            let start = (first_row + offset) * plain.len() * width;
            decode_to_f32(self.format.plain, &self.plain[start..start + plain.len() * width], &mut line);
            for (unit, value) in plain.iter().zip(&line) {
                out[*unit] = *value;
            }
        }
    }

    /// What the gate's row of each expanded unit is stored times, and the polynomial that the terms are made with, over the sum
    /// of its squares: of the factors that can be, the one that the terms agree with best, and 1 where none does better.
    fn fitted(&self) -> Vec<(f32, Vec<f64>)> {
        let (powers, units) = (self.format.powers(), self.units.len());
        let count = powers.clone().count();
        let step = self.rows.div_ceil(TELLING_ROWS).max(1);
        let rows: Vec<usize> = (0..self.rows).step_by(step).collect();
        let mut sample = vec![0.0; rows.len() * count * units];
        if self.format.perturbed {
            for (place, out) in sample.chunks_exact_mut(units).enumerate() {
                self.read_terms(powers.start() + place % count, rows[place / count], out);
            }
        }
        let largest = if self.format.hardened { LARGEST_EXPONENT } else { 0 };
        let mut magnitudes: Vec<f32> = (-largest..=largest).map(|exponent| 2_f32.powi(exponent)).collect();
        magnitudes.sort_by_key(|magnitude| *magnitude != 1.0);
        let factors = magnitudes.into_iter().flat_map(|magnitude| [magnitude, -magnitude]);
        let factors: Vec<f32> = factors.take(if self.format.perturbed { usize::MAX } else { 1 }).collect();
        (0..units)
            .into_par_iter()
            .map(|at| {
                let norm = |p: &[f64]| p.iter().map(|p| p * p).sum::<f64>().max(f64::MIN_POSITIVE);
                let residual = |p: &[f64]| -> f64 {
                    let norm = norm(p);
                    let of_row = |row: &[f32]| {
                        let term = |n: usize| f64::from(row[n * units + at]);
                        let weight = p.iter().enumerate().map(|(n, p)| p * term(n)).sum::<f64>() / norm;
                        p.iter().enumerate().map(|(n, p)| (term(n) - p * weight).powi(2)).sum::<f64>()
                    };
                    sample.chunks_exact(count * units).map(of_row).sum()
                };
                let mut best: Option<(f64, f32, Vec<f64>)> = None;
                for factor in &factors {
                    let all = self.format.coefficients(self.points.z0[at], self.points.h[at], *factor);
                    let polynomial = all[powers.clone()].to_vec();
                    let left = if factors.len() > 1 { residual(&polynomial) } else { 0.0 };
                    if best.as_ref().is_none_or(|(least, ..)| left < *least) {
                        best = Some((left, *factor, polynomial));
                    }
                }
                let (_, factor, mut polynomial) = best.unwrap_or_default();
                let norm = norm(&polynomial);
                for coefficient in &mut polynomial {
                    *coefficient /= norm;
                }
                (factor, polynomial)
            })
            .collect()
    }

    /// What the gate's row of every unit, as stored, is times the original.
    #[must_use]
    pub fn gate_factors(&self) -> Vec<f32> {
        let mut factors = vec![1.0; self.columns];
        for (unit, (factor, _)) in self.units.iter().zip(self.fitted()) {
            factors[*unit] = factor;
        }
        factors
    }

    /// The dense matrix, `[rows, columns]`: of expanded columns the least-squares solution of `Θ_n = W p_n` over all n. All rows
    /// share each unit's polynomial, which follows from its point, so that nothing is lost but rounding.
    #[must_use]
    pub fn dense(&self) -> Vec<f32> {
        let fitted = self.fitted();
        let mut values = vec![0.0; self.rows * self.columns];
        values.par_chunks_mut(self.columns.max(1)).enumerate().for_each(|(row, out)| {
            self.read_plain(row, out);
            let mut sums = vec![0.0_f64; self.units.len()];
            let mut terms = vec![0.0; self.units.len()];
            for (at, power) in self.format.powers().enumerate() {
                self.read_terms(power, row, &mut terms);
                for ((sum, term), (_, polynomial)) in sums.iter_mut().zip(&terms).zip(&fitted) {
                    *sum += f64::from(*term) * polynomial[at];
                }
            }
            for (unit, sum) in self.units.iter().zip(sums) {
                out[*unit] = sum as f32;
            }
        });
        values
    }
}
