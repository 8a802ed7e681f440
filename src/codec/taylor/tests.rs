use std::f64::consts::PI;

use super::*;

const ALL: [Smooth; 4] = [Smooth::Silu, Smooth::Gelu, Smooth::GeluTanh, Smooth::GeluQuick];

/// A complex number.
type Complex = (f64, f64);

fn times(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

fn over(a: Complex, b: Complex) -> Complex {
    let norm = b.0 * b.0 + b.1 * b.1;
    ((a.0 * b.0 + a.1 * b.1) / norm, (a.1 * b.0 - a.0 * b.1) / norm)
}

fn exp(a: Complex) -> Complex {
    (a.0.exp() * a.1.cos(), a.0.exp() * a.1.sin())
}

/// The activation in the complex plane, from its definition: tanh by exponentials, the normal distribution by an integral.
fn of_complex(activation: Smooth, z: Complex) -> Complex {
    let logistic = |w: Complex| {
        over((1.0, 0.0), {
            let e = exp((-w.0, -w.1));
            (1.0 + e.0, e.1)
        })
    };
    let scaled = |k: f64| (k * z.0, k * z.1);
    let factor = match activation {
        Smooth::Silu => logistic(z),
        Smooth::GeluQuick => logistic(scaled(1.702)),
        Smooth::GeluTanh => {
            let cube = times(z, times(z, z));
            let inner = (z.0 + 0.044715 * cube.0, z.1 + 0.044715 * cube.1);
            let k = (2.0 / PI).sqrt();
            let (plus, minus) = (exp((k * inner.0, k * inner.1)), exp((-k * inner.0, -k * inner.1)));
            let tanh = over((plus.0 - minus.0, plus.1 - minus.1), (plus.0 + minus.0, plus.1 + minus.1));
            (0.5 * (1.0 + tanh.0), 0.5 * tanh.1)
        }
        Smooth::Gelu => {
            // Φ(x + iy) = Φ(x) + i ∫ ϕ(x + it) dt from 0 to y, by Simpson's rule: nothing cancels.
            let steps = 2000;
            let width = z.1 / f64::from(steps);
            let density = |t: f64| exp(((t * t - z.0 * z.0) / 2.0, -z.0 * t));
            let weight = |k: i32| if k == 0 || k == steps { 1.0 } else { f64::from(2 + 2 * (k % 2)) };
            let (re, im) = (0..=steps).fold((0.0, 0.0), |sum, k| {
                let value = density(width * f64::from(k));
                (sum.0 + weight(k) * value.0, sum.1 + weight(k) * value.1)
            });
            let scale = width / 3.0 / (2.0 * PI).sqrt();
            (0.5 * libm::erfc(-z.0 * std::f64::consts::FRAC_1_SQRT_2) - scale * im, scale * re)
        }
    };
    times(z, factor)
}

/// φ⁽ⁿ⁾(z)/n! by Cauchy's integral over a circle, by the trapezoidal rule.
fn cauchy(activation: Smooth, z: f64, n: usize, r: f64) -> f64 {
    let points = 128;
    let sum: f64 = (0..points)
        .map(|k| {
            let angle = 2.0 * PI * k as f64 / points as f64;
            let value = of_complex(activation, (z + r * angle.cos(), r * angle.sin()));
            let turned = times(value, exp((0.0, -(n as f64) * angle)));
            turned.0
        })
        .sum();
    sum / points as f64 / r.powi(n as i32)
}

#[test]
fn derivatives_of_silu_are_the_golden_ones() {
    let golden: [(f64, [f64; 9]); 3] = [
        (0.0, [0.0, 0.5, 0.5, 0.0, -0.5, 0.0, 1.5, 0.0, -8.5]),
        (
            1.0,
            [
                0.731_058_58,
                0.927_670_51,
                0.302_366_12,
                -0.307_898_82,
                -0.017_795_46,
                0.566_492_33,
                -0.589_685_77,
                -1.420_943_42,
                5.135_336_09,
            ],
        ),
        (
            -2.0,
            [
                -0.238_405_84,
                -0.090_784_25,
                0.050_062_17,
                0.162_184_17,
                0.196_974_86,
                0.069_732_45,
                -0.308_082_59,
                -0.841_069_50,
                -0.698_262_47,
            ],
        ),
    ];
    for (z, expected) in golden {
        for (n, (got, expected)) in derivatives(Smooth::Silu, z, 9).into_iter().zip(expected).enumerate() {
            assert!((got - expected).abs() < 1e-8, "z {z}, n {n}: {got}, not {expected}");
        }
    }
}

#[test]
fn truncation_of_silu_is_the_golden_one() {
    for (z0, delta, order, expected, digits) in [
        (0.0, 1.0, 8, 1.94e-5, 0.01e-5),
        (0.0, 1.0, 4, 1.9e-3, 0.05e-3),
        (0.0, 2.0, 8, 1.56e-2, 0.01e-2),
        (0.0, 2.5, 8, 0.125, 0.001),
        (0.0, 4.0, 8, 8.54, 0.01),
        (0.0, 4.0, 12, 22.5, 0.1),
        (1.0, 1.0, 8, 7.24e-6, 0.01e-6),
        (-2.0, 1.0, 8, 1.06e-5, 0.01e-5),
    ] {
        let powers = coefficients(Smooth::Silu, Basis::Taylor, order, z0, 1.0);
        let got = (evaluate(&powers, delta) - Smooth::Silu.value(z0 + delta)).abs();
        assert!((got - expected).abs() <= digits, "z0 {z0} δ {delta} N {order}: {got:e}, not {expected:e}");
    }
}

#[test]
fn series_agree_with_cauchy_integrals() {
    for activation in ALL {
        for z in [-9.0, -3.3, -1.0, -0.2, 0.0, 0.01, 0.7, 2.0, 4.5] {
            let got = series(activation, z, 17);
            for (n, got) in got.into_iter().enumerate() {
                let r = (0.6 * radius(activation, z)).min(1.5);
                let expected = cauchy(activation, z, n, r);
                // Rounding of the integral: of the largest value on the circle.
                let tolerance = 1e-13 * (z.abs() + 3.0) / r.powi(n as i32) + 1e-12 * expected.abs();
                assert!((got - expected).abs() < tolerance, "{activation:?} at {z}, n {n}: {got:e}, not {expected:e}");
            }
        }
    }
}

#[test]
fn far_from_zero_derivatives_keep_their_digits() {
    // Where σ ≈ e^z, φ ≈ x e^x: φ⁽ⁿ⁾/n! = (z + n) e^z / n!.
    let z = -40.0;
    let mut factorial = 1.0;
    for (n, got) in series(Smooth::Silu, z, 17).into_iter().enumerate() {
        factorial *= n.max(1) as f64;
        let expected = (z + n as f64) * z.exp() / factorial;
        assert!((got / expected - 1.0).abs() < 1e-9, "n {n}: {got:e}, not {expected:e}");
    }
    // φ(x) = x + φ(−x): the same derivatives on both sides, up to signs.
    for activation in ALL {
        let (left, right) = (series(activation, -7.0, 17), series(activation, 7.0, 17));
        for n in 2..17 {
            let mirrored = if n % 2 == 0 { left[n] } else { -left[n] };
            assert!((mirrored / right[n] - 1.0).abs() < 1e-9, "{activation:?} n {n}: {} and {}", left[n], right[n]);
        }
    }
}

/// The radius that the coefficients themselves show: of the last ones, `|c_n|^(−1/n)`, least over some consecutive n.
#[test]
fn radii_are_where_coefficients_stop_falling() {
    for activation in [Smooth::Silu, Smooth::GeluTanh, Smooth::GeluQuick] {
        for z in [0.0, 0.5, -1.5, 2.5, 5.0] {
            let coefficients = series(activation, z, 300);
            let seen = (240..300).map(|n| coefficients[n].abs().powf(-1.0 / n as f64)).fold(f64::INFINITY, f64::min);
            let radius = radius(activation, z);
            assert!((seen / radius - 1.0).abs() < 0.03, "{activation:?} at {z}: {seen}, not {radius}");
        }
    }
    assert!((radius(Smooth::Silu, 3.0) - (9.0 + PI * PI).sqrt()).abs() < 1e-12);
    assert!(radius(Smooth::Gelu, 3.0).is_infinite());
}

#[test]
fn chebyshev_is_exact_for_polynomials_and_nearly_the_best() {
    let powers = chebyshev(&|s| 3.0 - s + 2.0 * s * s * s - 0.25 * s.powi(5), 5);
    for (got, expected) in powers.into_iter().zip([3.0, -1.0, 0.0, 2.0, 0.0, -0.25]) {
        assert!((got - expected).abs() < 1e-13, "{got}, not {expected}");
    }
    // On ±4 the power series of order 8 diverges; the interpolation does not.
    let error = |basis, h: f64| {
        let powers = coefficients(Smooth::Silu, basis, 8, 0.0, h);
        uniform_error(Smooth::Silu, &powers, 0.0, h, -4.0, 4.0)
    };
    let (taylor, chebyshev) = (error(Basis::Taylor, 1.0), error(Basis::Chebyshev, 4.0));
    assert!(taylor > 8.0 && chebyshev < 0.02, "{taylor} and {chebyshev}");
}

#[test]
fn bounds_hold_and_are_not_loose() {
    for activation in ALL {
        for (basis, z0, half) in [
            (Basis::Taylor, 0.3, 1.2),
            (Basis::Taylor, -1.0, 0.01),
            (Basis::Chebyshev, 0.5, 6.0),
            (Basis::Taylor, 2.0, 2.0),
        ] {
            let h = if basis == Basis::Taylor { 1.0 } else { half };
            for order in [2, 5, 8, 16] {
                let powers = coefficients(activation, basis, order, z0, h);
                let bound = uniform_error(activation, &powers, z0, h, z0 - half, z0 + half);
                let error = |k: u32| {
                    let z = z0 + half * (f64::from(k) / 5000.0 - 1.0);
                    (activation.value(z) - evaluate(&powers, (z - z0) / h)).abs()
                };
                let seen = (0..=10000).map(error).fold(0.0, f64::max);
                assert!(seen <= bound && bound <= 1.09 * seen + 1e-300, "{activation:?} {order}: {seen:e} {bound:e}");
            }
        }
    }
}

fn format() -> Taylor {
    Taylor {
        basis: Basis::Taylor,
        order: 6,
        units: 5,
        activation: Smooth::Silu,
        gated: true,
        terms: Dtype::F32,
        plain: Dtype::F32,
        perturbed: true,
        hardened: false,
    }
}

/// An expanded matrix `[3, 8]`, its weights, and which gates are negated; written down from the definition.
fn example(format: Taylor) -> (Vec<Vec<u8>>, Vec<f32>, Vec<f32>) {
    let (rows, columns) = (3, 8);
    let weights: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 + 11) % 29) as f32 / 7.0 - 2.0).collect();
    let units = [0_usize, 2, 3, 5, 7];
    let signs = [1.0_f32, -1.0, -1.0, 1.0, -1.0];
    // One point lies where φ is 0, of either sign.
    let points: [f32; 5] = [0.0, 0.0, 1.25, -2.0, -0.5];
    let h = if format.basis == Basis::Taylor { 1.0_f32 } else { 1.5 };
    let mut terms: Vec<f32> = Vec::new();
    for n in 0..=format.order {
        for row in 0..rows {
            for (at, unit) in units.iter().enumerate() {
                // z' = sign z: the point of z is sign times that of z'.
                let powers = coefficients(
                    format.activation,
                    format.basis,
                    format.order,
                    f64::from(signs[at] * points[at]),
                    f64::from(h),
                );
                let sign = f64::from(signs[at]).powi(n as i32);
                terms.push((f64::from(weights[row * columns + unit]) * powers[n] * sign) as f32);
            }
        }
    }
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let all = Points {
        z0: points.to_vec(),
        h: vec![h; 5],
        lo: points.map(|z| z - 1.5).to_vec(),
        hi: points.map(|z| z + 1.5).to_vec(),
    };
    let plain: Vec<f32> = (0..rows).flat_map(|row| [1, 4, 6].map(|unit| weights[row * columns + unit])).collect();
    let indices = units.iter().flat_map(|unit| (*unit as i32).to_le_bytes()).collect();
    let mut of_all = vec![1.0; columns];
    units.iter().zip(signs).for_each(|(unit, sign)| of_all[*unit] = sign);
    (vec![floats(&terms), all.to_bytes(), indices, floats(&plain)], weights, of_all)
}

fn parts(stored: &[Vec<u8>]) -> Vec<&[u8]> {
    stored.iter().map(Vec::as_slice).collect()
}

#[test]
fn weights_and_signs_come_back() {
    for basis in [Basis::Taylor, Basis::Chebyshev] {
        for activation in ALL {
            let format = Taylor { basis, activation, ..format() };
            let (stored, weights, signs) = example(format);
            let expansion = Expansion::new(format, 3, 8, &parts(&stored)).unwrap();
            assert_eq!(expansion.gate_factors(), signs, "{basis:?} {activation:?}");
            for (got, expected) in expansion.dense().into_iter().zip(&weights) {
                assert!(
                    (got - expected).abs() <= 1e-6 * expected.abs(),
                    "{basis:?} {activation:?}: {got}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn names_read_back() {
    for format in [
        format(),
        Taylor { basis: Basis::Chebyshev, gated: false, perturbed: false, ..format() },
        Taylor { activation: Smooth::GeluTanh, terms: Dtype::BF16, order: 16, ..format() },
    ] {
        assert_eq!(Taylor::parse_name(&format.name(), Dtype::F32), Some(format), "{}", format.name());
    }
    for name in [
        "taylor-17-silu-5-f32",
        "taylor-0-silu-5-f32",
        "taylor-8-relu-5-f32",
        "taylor-8-silu-0-f32",
        "taylor-08-silu-5-f32",
    ] {
        assert_eq!(Taylor::parse_name(name, Dtype::F32), None, "{name}");
    }
    assert_eq!(gate_of("model.layers.0.mlp.down_proj.weight").as_deref(), Some("model.layers.0.mlp.gate_proj.weight"));
    assert_eq!(gate_of("h.0.mlp.c_proj.weight").as_deref(), Some("h.0.mlp.c_fc.weight"));
    assert_eq!(gate_of("model.layers.0.mlp.upfc2.weight"), None);
}

#[test]
fn malformed_bytes_are_named() {
    let format = format();
    let (good, ..) = example(format);
    let refused = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut stored = good.clone();
        change(&mut stored);
        Expansion::new(format, 3, 8, &parts(&stored)).unwrap_err().to_string()
    };
    let nan = f32::NAN.to_le_bytes();
    assert!(refused(&|stored| stored[0][4..8].copy_from_slice(&nan)).contains("terms"));
    assert!(refused(&|stored| stored[3][0..4].copy_from_slice(&nan)).contains("plain"));
    assert!(refused(&|stored| stored[1][0..4].copy_from_slice(&nan)).contains("points"));
    assert!(refused(&|stored| stored[1][20..24].copy_from_slice(&0.0_f32.to_le_bytes())).contains("points"));
    assert!(refused(&|stored| stored[2][0..4].copy_from_slice(&(-1_i32).to_le_bytes())).contains("units"));
    assert!(refused(&|stored| stored[2][16..20].copy_from_slice(&8_i32.to_le_bytes())).contains("units"));
    assert!(refused(&|stored| stored[2][4..8].copy_from_slice(&0_i32.to_le_bytes())).contains("units"));
    assert!(refused(&|stored| stored[0].truncate(3)).contains("bytes"));
    assert!(refused(&|stored| drop(stored.pop())).contains("tensors"));
    let wide = Taylor { units: 9, ..format };
    assert!(wide.validate(3, 8).is_err() && Taylor { order: 17, ..format }.validate(3, 8).is_err());
    assert!(format.validate(usize::MAX / 2, 9).is_err());
    assert!(wide.tensors(3, 9).len() == 3, "no plain columns are left");
}
