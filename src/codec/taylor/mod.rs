//! A down-projection of which some columns are stored as the terms of a polynomial of what they multiply (`TaylorMLP`, arXiv
//! 2410.05331): `y = W_plain h_plain + Σ_n Θ_n (s^n ∘ u)`, with s = (clamp(z, lo, hi) − z0) / h the gate's pre-activation
//! moved and scaled, and `Θ_n = W diag(p_n)` for the polynomial `Σ p_n s^n` that stands for the activation of each unit.

mod polynomial;
mod series;
mod stored;
#[cfg(test)]
mod tests;

pub use polynomial::{Basis, chebyshev, coefficients, evaluate, uniform_error};
pub use series::{Smooth, derivatives, radius, series};
pub(crate) use stored::TELLING_ROWS;
pub use stored::{Expansion, Points};

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::{CodecError, whole::StoredTensor};
use crate::checkpoint::Dtype;

/// The highest order of a polynomial.
pub const HIGHEST_ORDER: usize = 16;

/// How a down-projection is expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taylor {
    /// What the polynomials are.
    pub basis: Basis,
    /// The highest power, from 1.
    pub order: usize,
    /// Hidden units that are expanded.
    pub units: usize,
    /// The activation.
    pub activation: Smooth,
    /// Whether the activation is multiplied by an up-projection (`SwiGLU`).
    pub gated: bool,
    /// Type of the terms.
    pub terms: Dtype,
    /// Type of the other columns.
    pub plain: Dtype,
    /// Whether rows of the gate may be stored negated, as the terms say.
    pub perturbed: bool,
    /// Whether the terms of power zero are stored as one sum over all units, and gate and up times powers of two; then
    /// `perturbed` too.
    pub hardened: bool,
}

impl Hash for Taylor {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl Taylor {
    /// Its short name: `taylor-8-silu-gated-96-f32-signed`.
    #[must_use]
    pub fn name(&self) -> String {
        let gated = if self.gated { "-gated" } else { "" };
        let signed = match (self.hardened, self.perturbed) {
            (true, _) => "-hardened",
            (false, true) => "-signed",
            (false, false) => "",
        };
        let (basis, activation, terms) = (self.basis.name(), self.activation.name(), dtype_name(self.terms));
        format!("{basis}-{}-{activation}{gated}-{}-{terms}{signed}", self.order, self.units)
    }

    /// Reads a short name back; `plain` is the type of the columns that are not expanded.
    #[must_use]
    pub fn parse_name(name: &str, plain: Dtype) -> Option<Self> {
        let mut parts = name.split('-').peekable();
        let basis = Basis::by_name(parts.next()?)?;
        let order = parts.next()?.parse().ok()?;
        let activation = Smooth::by_name(parts.next()?)?;
        let gated = parts.next_if_eq(&"gated").is_some();
        let units = parts.next()?.parse().ok()?;
        let terms = dtype_by_name(parts.next()?)?;
        let hardened = parts.next_if_eq(&"hardened").is_some();
        let perturbed = hardened || parts.next_if_eq(&"signed").is_some();
        let format = Self { basis, order, units, activation, gated, terms, plain, perturbed, hardened };
        ((1..=HIGHEST_ORDER).contains(&order) && units > 0 && format.name() == name).then_some(format)
    }

    /// Checks that a matrix of this shape can be expanded so.
    ///
    /// # Errors
    /// [`CodecError`] for an order or a number of units that cannot be, and a matrix that cannot be addressed.
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        if self.order == 0 || self.units == 0 {
            return Err(CodecError::Zero { what: if self.order == 0 { "order" } else { "number of units" } });
        }
        if self.order > HIGHEST_ORDER {
            return Err(CodecError::Length { what: "powers", expected: HIGHEST_ORDER, got: self.order });
        }
        if self.units > columns {
            return Err(CodecError::Length { what: "expanded units", expected: columns, got: self.units });
        }
        match rows.checked_mul(columns).and_then(|weights| weights.checked_mul(self.order + 1)) {
            Some(weights) if weights < usize::MAX / 64 => Ok(()),
            _ => Err(CodecError::TooLarge { rows, columns }),
        }
    }

    /// The tensors of a valid matrix: `terms` `[order + 1, rows, units]`, `points` F32 `[4, units]` (z0, h, lo, hi),
    /// `units` I32 `[units]` ascending; hardened one power less and `merged` F32, `[rows, rows]` or `[rows]` without a gate;
    /// and, where any are left, the other columns `plain` `[rows, columns − units]`.
    #[must_use]
    pub fn tensors(&self, rows: usize, columns: usize) -> Vec<StoredTensor> {
        let stored = |suffix, dtype, shape| StoredTensor { suffix, dtype, shape };
        let mut tensors = vec![
            stored("_terms.weight", self.terms, vec![self.powers().count(), rows, self.units]),
            stored("_points.weight", Dtype::F32, vec![4, self.units]),
            stored("_units", Dtype::I32, vec![self.units]),
        ];
        if self.hardened {
            let shape = if self.gated { vec![rows, rows] } else { vec![rows] };
            tensors.push(stored("_merged.weight", Dtype::F32, shape));
        }
        if self.units < columns {
            tensors.push(stored("_plain.weight", self.plain, vec![rows, columns - self.units]));
        }
        tensors
    }

    /// The powers that units have terms of their own of.
    #[must_use]
    pub fn powers(&self) -> std::ops::RangeInclusive<usize> {
        usize::from(self.hardened)..=self.order
    }

    /// The coefficients of all powers of s for a unit whose gate is stored times `factor` and whose point and scale, as stored,
    /// are `z0` and `h`.
    #[must_use]
    pub fn coefficients(&self, z0: f32, h: f32, factor: f32) -> Vec<f64> {
        let factor = f64::from(factor);
        let (z0, h) = (f64::from(z0) / factor, f64::from(h) / factor.abs());
        let mut coefficients = coefficients(self.activation, self.basis, self.order, z0, h);
        if factor < 0.0 {
            coefficients.iter_mut().skip(1).step_by(2).for_each(|coefficient| *coefficient = -*coefficient);
        }
        coefficients
    }

    /// The dense matrix `[rows, columns]`: see [`Expansion::dense`].
    ///
    /// # Errors
    /// As [`Expansion::new`].
    pub fn decode(&self, rows: usize, columns: usize, stored: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        Ok(Expansion::new(*self, rows, columns, stored)?.dense())
    }
}

/// The name of the gate (or of the only up-projection) of an MLP, by the name of its down-projection; none for names that
/// follow no known pattern.
#[must_use]
pub fn gate_of(down: &str) -> Option<String> {
    const PAIRS: [(&str, &str); 4] =
        [("down_proj", "gate_proj"), ("fc2", "fc1"), ("c_proj", "c_fc"), ("dense_4h_to_h", "dense_h_to_4h")];
    let module = down.strip_suffix(".weight")?;
    PAIRS.iter().find_map(|(down, gate)| {
        let parent = module.strip_suffix(down).filter(|parent| parent.is_empty() || parent.ends_with('.'))?;
        Some(format!("{parent}{gate}.weight"))
    })
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "f16",
        Dtype::BF16 => "bf16",
        _ => "f32",
    }
}

fn dtype_by_name(name: &str) -> Option<Dtype> {
    [Dtype::F16, Dtype::BF16, Dtype::F32].into_iter().find(|dtype| dtype_name(*dtype) == name)
}
