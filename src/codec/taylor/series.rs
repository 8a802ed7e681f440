//! Power series of activations in F64, by recurrences of their differential equations.
//!
//! With `c_n = f⁽ⁿ⁾(z) / n!`: σ' = σ (1 − σ) gives `(n + 1) c_{n+1} = c_n − Σ c_k c_{n−k}`, a product adds coefficients up, and
//! the Gaussian's ϕ' = −x ϕ gives `(n + 1) c_{n+1} = −(z c_n + c_{n−1})`. σ is expanded where it is below a half and mirrored, so
//! that nothing cancels where it is near one.

use serde::{Deserialize, Serialize};

/// An activation with a power series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smooth {
    /// x σ(x).
    Silu,
    /// x Φ(x), Φ the normal distribution.
    Gelu,
    /// x σ(2 √(2/π) (x + 0.044715 x³)): GELU by the hyperbolic tangent.
    GeluTanh,
    /// x σ(1.702 x).
    GeluQuick,
}

/// √(2/π).
const SLOPE: f64 = 0.797_884_560_802_865_4;
/// The cubic part of GELU by the hyperbolic tangent.
const CUBIC: f64 = 0.044_715;
/// The slope of the quick GELU.
const QUICK: f64 = 1.702;

impl Smooth {
    const ALL: [Self; 4] = [Self::Silu, Self::Gelu, Self::GeluTanh, Self::GeluQuick];

    /// Its name, as `transformers` calls it in short.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::GeluQuick => "gelu_quick",
        }
    }

    /// By its name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|activation| activation.name() == name)
    }

    /// φ(z).
    #[must_use]
    pub fn value(self, z: f64) -> f64 {
        z * match self {
            Self::Silu => sigmoid(z),
            Self::Gelu => 0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2),
            Self::GeluTanh => sigmoid(2.0 * SLOPE * (z + CUBIC * z * z * z)),
            Self::GeluQuick => sigmoid(QUICK * z),
        }
    }
}

fn sigmoid(z: f64) -> f64 {
    if z < 0.0 {
        let e = libm::exp(z);
        e / (1.0 + e)
    } else {
        1.0 / (1.0 + libm::exp(-z))
    }
}

/// φ⁽ⁿ⁾(z) / n! for n below `count`.
#[must_use]
pub fn series(activation: Smooth, z: f64, count: usize) -> Vec<f64> {
    // φ = x g, so c_n = z g_n + g_{n−1}.
    let factor = match activation {
        Smooth::Silu => logistic(z, count, |x| [x, 1.0, 0.0, 0.0]),
        Smooth::GeluQuick => logistic(z, count, |x| [QUICK * x, QUICK, 0.0, 0.0]),
        Smooth::GeluTanh => logistic(z, count, |x| {
            let scale = 2.0 * SLOPE;
            [
                scale * (x + CUBIC * x * x * x),
                scale * (1.0 + 3.0 * CUBIC * x * x),
                scale * 3.0 * CUBIC * x,
                scale * CUBIC,
            ]
        }),
        Smooth::Gelu => normal(z, count),
    };
    (0..count).map(|n| z * factor[n] + if n > 0 { factor[n - 1] } else { 0.0 }).collect()
}

/// φ⁽ⁿ⁾(z) for n below `count`.
#[must_use]
pub fn derivatives(activation: Smooth, z: f64, count: usize) -> Vec<f64> {
    let mut factorial = 1.0;
    let scaled = series(activation, z, count).into_iter().enumerate().map(|(n, coefficient)| {
        factorial *= n.max(1) as f64;
        coefficient * factorial
    });
    scaled.collect()
}

/// The series of σ(w) for an odd polynomial w of degree 3, given by its series at a point: y' = y (1 − y) w'.
fn logistic(z: f64, count: usize, inner: impl Fn(f64) -> [f64; 4]) -> Vec<f64> {
    let at = -z.abs();
    let w = inner(at);
    let mut y = Vec::with_capacity(count);
    // y (1 − y).
    let mut product: Vec<f64> = Vec::with_capacity(count);
    y.push(sigmoid(w[0]));
    for n in 0..count.saturating_sub(1) {
        let square: f64 = (0..=n).map(|k| y[k] * y[n - k]).sum();
        product.push(y[n] - square);
        let sum: f64 = (0..3.min(n + 1)).map(|k| (k + 1) as f64 * w[k + 1] * product[n - k]).sum();
        y.push(sum / (n + 1) as f64);
    }
    if z > 0.0 {
        // σ(w(z)) = 1 − σ(w(−z)).
        for (n, value) in y.iter_mut().enumerate() {
            *value = match n {
                0 => 1.0 - *value,
                _ if n % 2 == 0 => -*value,
                _ => *value,
            };
        }
    }
    y
}

/// The series of the normal distribution.
fn normal(z: f64, count: usize) -> Vec<f64> {
    let mut density = vec![libm::exp(-0.5 * z * z) / (2.0 * std::f64::consts::PI).sqrt()];
    for n in 0..count {
        let before = if n > 0 { density[n - 1] } else { 0.0 };
        density.push(-(z * density[n] + before) / (n + 1) as f64);
    }
    let first = 0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2);
    std::iter::once(first).chain((1..count).map(|n| density[n - 1] / n as f64)).collect()
}

/// The radius of convergence of the series at z: the distance of the nearest pole in the complex plane, infinite for an entire
/// function. σ has its poles at odd multiples of iπ.
#[must_use]
pub fn radius(activation: Smooth, z: f64) -> f64 {
    match activation {
        Smooth::Gelu => f64::INFINITY,
        Smooth::Silu => z.hypot(std::f64::consts::PI),
        Smooth::GeluQuick => z.hypot(std::f64::consts::PI / QUICK),
        Smooth::GeluTanh => {
            // 2 √(2/π) (x + 0.044715 x³) = (2k + 1) iπ. Later poles lie farther out, but may be nearer to a far z.
            let poles = (0..64).flat_map(|k| imaginary_roots((2 * k + 1) as f64 * std::f64::consts::PI));
            poles.map(|(re, im)| (z - re).hypot(im)).fold(f64::INFINITY, f64::min)
        }
    }
}

/// The roots with real part and imaginary part of 2 √(2/π) (x + 0.044715 x³) = i `value`, up to the sign of the real part.
fn imaginary_roots(value: f64) -> impl Iterator<Item = (f64, f64)> {
    // With x = i t: t − c t³ = value / (2 √(2/π)) =: q, which is t³ − t/c + q/c = 0. Its real roots are purely imaginary
    // poles; a pair of complex roots t = a ± ib is x = ∓b + ia.
    let q = value / (2.0 * SLOPE);
    let (p, r) = (-1.0 / CUBIC, q / CUBIC);
    let half = r / 2.0;
    let discriminant = half * half + p * p * p / 27.0;
    let roots = if discriminant > 0.0 {
        let root = discriminant.sqrt();
        let (u, v) = (libm::cbrt(-half + root), libm::cbrt(-half - root));
        let real = u + v;
        let (a, b) = (-real / 2.0, (u - v) * 3_f64.sqrt() / 2.0);
        [(0.0, real), (b, a), (-b, a)]
    } else {
        let radius = 2.0 * (-p / 3.0).sqrt();
        let angle = libm::acos((3.0 * r / (p * radius)).clamp(-1.0, 1.0)) / 3.0;
        let root = |k: f64| radius * libm::cos(angle - 2.0 * std::f64::consts::PI * k / 3.0);
        [(0.0, root(0.0)), (0.0, root(1.0)), (0.0, root(2.0))]
    };
    roots.into_iter()
}
