//! Polynomials of s = (z − z0) / h in place of an activation.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::series::{Smooth, series};

/// What a polynomial is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The first terms of the power series: exact at the point, and worse the farther away.
    Taylor,
    /// Interpolation at Chebyshev's points of the range: nearly the least error over all of it.
    Chebyshev,
}

impl Basis {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Taylor => "taylor",
            Self::Chebyshev => "chebyshev",
        }
    }

    /// By its name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Taylor, Self::Chebyshev].into_iter().find(|basis| basis.name() == name)
    }
}

/// The coefficients of powers 0 to `order` of s, 1/n! in them, of a polynomial in place of z ↦ φ(z).
#[must_use]
pub fn coefficients(activation: Smooth, basis: Basis, order: usize, z0: f64, h: f64) -> Vec<f64> {
    match basis {
        Basis::Taylor => {
            let mut power = 1.0;
            let scaled = series(activation, z0, order + 1).into_iter().map(|coefficient| {
                let scaled = coefficient * power;
                power *= h;
                scaled
            });
            scaled.collect()
        }
        Basis::Chebyshev => chebyshev(&|s| activation.value(z0 + h * s), order),
    }
}

/// Powers of the polynomial of this order that agrees with `f` at the zeros of T_{order+1} on \[−1, 1\].
#[must_use]
pub fn chebyshev(f: &dyn Fn(f64) -> f64, order: usize) -> Vec<f64> {
    let count = order + 1;
    let angle = |k: usize| PI * (k as f64 + 0.5) / count as f64;
    let values: Vec<f64> = (0..count).map(|k| f(libm::cos(angle(k)))).collect();
    let mut powers = vec![0.0; count];
    // T_{m−1} and T_m in powers.
    let (mut before, mut current) = (vec![0.0; count], vec![0.0; count]);
    current[0] = 1.0;
    for m in 0..count {
        let sum: f64 = values.iter().enumerate().map(|(k, value)| value * libm::cos(m as f64 * angle(k))).sum();
        let coefficient = sum * if m == 0 { 1.0 } else { 2.0 } / count as f64;
        for (power, t) in powers.iter_mut().zip(&current) {
            *power += coefficient * t;
        }
        // T_1 = s T_0, T_{m+1} = 2 s T_m − T_{m−1}.
        let double = if m == 0 { 1.0 } else { 2.0 };
        let next = (0..count).map(|n| if n > 0 { double * current[n - 1] } else { 0.0 } - before[n]).collect();
        before = std::mem::replace(&mut current, next);
    }
    powers
}

/// Horner's rule.
#[must_use]
pub fn evaluate(coefficients: &[f64], s: f64) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, coefficient| sum * s + coefficient)
}

/// Points of the range at which errors are measured.
const MEASURED: usize = 1024;

/// A bound of |φ(z) − p((z − z0) / h)| for z in \[lo, hi\].
///
/// The largest error at K = 1024 Chebyshev points is at least cos(π m / 2K) of the largest anywhere for a polynomial of degree
/// m (Ehlich and Zeller 1964). m = 256 is taken for the error: what is left of its Chebyshev series falls as ρ^−256, with ρ
/// from the nearest pole, and is below F64's rounding for ranges as wide as ±20.
#[must_use]
pub fn uniform_error(activation: Smooth, coefficients: &[f64], z0: f64, h: f64, lo: f64, hi: f64) -> f64 {
    let (middle, half) = (f64::midpoint(lo, hi), (hi - lo) / 2.0);
    let at = |k: usize| middle + half * libm::cos(PI * (k as f64 + 0.5) / MEASURED as f64);
    let error = |z: f64| (activation.value(z) - evaluate(coefficients, (z - z0) / h)).abs();
    let largest = (0..MEASURED).map(|k| error(at(k))).fold(error(lo).max(error(hi)), f64::max);
    largest / libm::cos(PI / 8.0)
}
