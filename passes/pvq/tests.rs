//! The sweep against an independent reference, and what every result must keep to.

use super::*;
use crate::{
    codec::{
        CodecError, Pyramid,
        pyramid::{Points, search::nearest_direction},
    },
    linalg::Rotation,
    passes::gptq::{Factor, Moments, Order, SolveError},
};

/// Numbers without a pattern, the same on every machine.
struct Numbers(u64);

impl Numbers {
    /// Uniform in −1..1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 / (1_u64 << 53) as f64) * 2.0 - 1.0
    }

    /// About normal.
    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.next()).sum::<f64>() * 0.7
    }

    fn weights(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.normal() * 0.05) as f32).collect()
    }

    /// Correlated second moments with very unequal channels, rotated.
    fn moments(&mut self, columns: usize, tokens: usize) -> Vec<f64> {
        let directions = columns / 4 + 1;
        let mix: Vec<f64> = (0..columns * directions).map(|_| self.normal()).collect();
        let size: Vec<f64> = (0..columns).map(|_| (self.normal() * 0.8).exp()).collect();
        let mut hessian = vec![0.0; columns * columns];
        for _ in 0..tokens {
            let z: Vec<f64> = (0..directions).map(|k| self.normal() * 2.0 / (1.0 + k as f64).sqrt()).collect();
            let x: Vec<f64> = (0..columns)
                .map(|i| {
                    size[i] * (self.normal() + (0..directions).map(|k| mix[i * directions + k] * z[k]).sum::<f64>())
                })
                .collect();
            for i in 0..columns {
                for j in 0..columns {
                    hessian[i * columns + j] += x[i] * x[j];
                }
            }
        }
        Rotation::new(columns, 1).symmetric(&mut hessian);
        hessian
    }
}

fn identity(columns: usize) -> Vec<f64> {
    (0..columns * columns).map(|index| f64::from(u8::from(index % (columns + 1) == 0))).collect()
}

const FORMATS: [Pyramid; 4] = [
    Pyramid { dimension: 16, pulses: 12, gain_bits: 3 },
    Pyramid { dimension: 8, pulses: 20, gain_bits: 4 },
    Pyramid { dimension: 32, pulses: 105, gain_bits: 2 },
    Pyramid { dimension: 13, pulses: 30, gain_bits: 5 },
];

fn solve_with(linear: &Linear, moments: &Moments, options: &SolveOptions) -> Solution {
    let factor = Factor::new(moments, &options.factoring()).unwrap();
    let solution = solve(&factor, moments, linear, None, options).unwrap();
    assert_decodes(linear, &solution);
    solution
}

fn assert_decodes(linear: &Linear, solution: &Solution) {
    let tensors: Vec<&[u8]> = solution.tensors.iter().map(Vec::as_slice).collect();
    let decoded = linear.pyramid.decode(linear.rows, linear.columns, &tensors).unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert!(bits(&decoded) == bits(&solution.decoded), "{}: decodes to something else", linear.pyramid.name());
    let shapes = linear.pyramid.tensors(linear.rows, linear.columns).unwrap();
    for ((name, dtype, shape), tensor) in shapes.iter().zip(&solution.tensors) {
        assert_eq!(shape.iter().product::<usize>() * dtype.bitsize() / 8, tensor.len(), "{name}");
    }
}

/// tr(Δ H Δᵀ), the slow way.
fn loss(values: &[f32], target: &[f32], hessian: &[f64], columns: usize) -> f64 {
    let mut total = 0.0;
    for (values, target) in values.chunks(columns).zip(target.chunks(columns)) {
        let d: Vec<f64> = values.iter().zip(target).map(|(v, t)| f64::from(*v) - f64::from(*t)).collect();
        for i in 0..columns {
            for j in 0..columns {
                total += d[i] * d[j] * hessian[i * columns + j];
            }
        }
    }
    total
}

#[test]
fn without_correlation_results_are_those_of_plain_quantization() {
    let (rows, columns) = (150, 40);
    let weights = Numbers(3).weights(rows * columns);
    let hessian = identity(columns);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    for pyramid in FORMATS {
        for (order, rounds) in [(Order::None, 0), (Order::Activation, 1), (Order::Conditional, 0)] {
            let options = SolveOptions { order, rounds, damping: 0.0, ..SolveOptions::default() };
            let linear = Linear { weights: &weights, rows, columns, pyramid };
            let solution = solve_with(&linear, &moments, &options);
            let plain = encode(&linear, &options).unwrap();
            if rounds == 0 {
                assert_eq!(solution.tensors, plain.tensors, "{} {order:?}", pyramid.name());
                assert!((solution.report.loss_refined - solution.report.loss_nearest).abs() < 1e-9);
            }
            let relative = solution.report.loss_refined / plain.report.loss_refined;
            assert!((relative - 1.0).abs() < 1e-3, "{} {order:?} {relative}", pyramid.name());
        }
    }
}

#[test]
fn every_shape_is_encoded_and_comes_back() {
    for (rows, columns) in [(1, 1), (7, 5), (16, 3), (17, 1), (64, 33), (1100, 2), (0, 4), (4, 0), (0, 0)] {
        let weights = Numbers(5).weights(rows * columns);
        for pyramid in FORMATS {
            let linear = Linear { weights: &weights, rows, columns, pyramid };
            let solution = encode(&linear, &SolveOptions::default()).unwrap();
            assert_decodes(&linear, &solution);
            let total: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
            let lost = loss(&solution.decoded, &weights, &identity(columns), columns.max(1));
            assert!((solution.report.loss_refined - lost).abs() <= 1e-5 * total, "{rows} × {columns}");
            assert!(rows < 64 || lost < 0.2 * total, "{rows} × {columns} {}: {}", pyramid.name(), lost / total);
        }
    }
}

#[test]
fn extreme_weights_stay_finite() {
    let pyramid = FORMATS[0];
    for size in [0.0, 1e-44, 1e-30, 1.0, 1e30, f32::MAX] {
        let mut weights: Vec<f32> =
            Numbers(1).weights(48 * 6).iter().map(|w| (w * 5.0).clamp(-1.0, 1.0) * size).collect();
        weights[5] = size;
        // A column of nothing, and one that is much smaller than the others.
        weights.iter_mut().skip(2).step_by(6).for_each(|w| *w = 0.0);
        weights.iter_mut().skip(3).step_by(6).for_each(|w| *w *= 1e-6);
        let linear = Linear { weights: &weights, rows: 48, columns: 6, pyramid };
        let solution = encode(&linear, &SolveOptions::default()).unwrap();
        assert_decodes(&linear, &solution);
        assert!(solution.decoded.iter().all(|w| w.is_finite()));
        assert!(solution.decoded.iter().skip(2).step_by(6).all(|w| *w == 0.0));
        let total: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
        let lost = loss(&solution.decoded, &weights, &identity(6), 6);
        assert!(!(1e-40..1e35).contains(&size) || lost < 0.2 * total, "{size}: {}", lost / total);
    }
}

/// Optimal Brain Quantization in F64, straight from the paper, with the plain search: after each column, the remaining
/// weights move by −(w − q) / [H⁻¹]qq · H⁻¹[q, :], and the row and column leave H⁻¹ by one step of elimination.
fn reference(linear: &Linear, hessian: &[f64], damping: f64, coded: &Points) -> Vec<f32> {
    let (columns, dimension) = (linear.columns, linear.pyramid.dimension);
    let mean = (0..columns).map(|i| hessian[i * columns + i]).sum::<f64>() / columns as f64;
    let mut inverse = hessian.to_vec();
    (0..columns).for_each(|i| inverse[i * columns + i] += damping * mean);
    let mut inverse = inverted(inverse, columns);
    let mut w: Vec<f64> = linear.weights.iter().map(|w| f64::from(*w)).collect();
    let mut out = vec![0.0; w.len()];
    for q in 0..columns {
        let pivot = inverse[q * columns + q];
        for first in (0..linear.rows).step_by(dimension) {
            let x: Vec<f32> = (first..first + dimension).map(|row| w[row * columns + q] as f32).collect();
            let mut y = vec![0.0; dimension];
            nearest_direction(&x, linear.pyramid.pulses, &mut y);
            let norm = y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>().sqrt();
            let gain = x.iter().zip(&y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() / norm;
            let scale = coded.column_scales[q].to_f64();
            let levels = coded.gain_codebook.iter().map(|level| scale * f64::from(*level));
            let level = levels.min_by(|a, b| (a - gain).abs().total_cmp(&(b - gain).abs())).unwrap();
            for (place, y) in y.iter().enumerate() {
                let row = first + place;
                let value = level / norm * f64::from(*y);
                let error = w[row * columns + q] - value;
                out[row * columns + q] = value as f32;
                for k in q..columns {
                    w[row * columns + k] -= error / pivot * inverse[q * columns + k];
                }
            }
        }
        let row: Vec<f64> = inverse[q * columns..][..columns].to_vec();
        for i in 0..columns {
            let factor = inverse[i * columns + q] / pivot;
            (0..columns).for_each(|j| inverse[i * columns + j] -= factor * row[j]);
        }
    }
    out
}

/// Gauss and Jordan.
fn inverted(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let mut b = identity(n);
    for p in 0..n {
        let pivot = a[p * n + p];
        for j in 0..n {
            a[p * n + j] /= pivot;
            b[p * n + j] /= pivot;
        }
        for i in (0..n).filter(|i| *i != p) {
            let factor = a[i * n + p];
            for j in 0..n {
                a[i * n + j] -= factor * a[p * n + j];
                b[i * n + j] -= factor * b[p * n + j];
            }
        }
    }
    b
}

#[test]
fn the_sweep_is_optimal_brain_quantization() {
    let (rows, columns) = (96, 50);
    let mut numbers = Numbers(8);
    let weights = numbers.weights(rows * columns);
    let hessian = numbers.moments(columns, 200);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    for pyramid in &FORMATS[..3] {
        for block_size in [1, 16, 128] {
            let options = SolveOptions { order: Order::None, rounds: 0, block_size, ..SolveOptions::default() };
            let linear = Linear { weights: &weights, rows, columns, pyramid: *pyramid };
            let solution = solve_with(&linear, &moments, &options);
            let expected = reference(&linear, &hessian, options.damping, &solution.coded);
            // A rounding may turn a choice that is open to the last bit, and what follows after it.
            let same = solution.decoded.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() < 1e-6).count();
            assert!(same * 100 > weights.len() * 90, "{}: {same} of {}", pyramid.name(), weights.len());
            let (found, reference) =
                (loss(&solution.decoded, &weights, &hessian, columns), loss(&expected, &weights, &hessian, columns));
            assert!((found / reference - 1.0).abs() < 0.02, "{}: {found} {reference}", pyramid.name());
        }
    }
}

#[test]
fn losses_are_what_they_are_said_to_be_and_fall() {
    let (rows, columns) = (200, 96);
    let mut numbers = Numbers(21);
    let weights = numbers.weights(rows * columns);
    let hessian = numbers.moments(columns, 300);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    for pyramid in FORMATS {
        let linear = Linear { weights: &weights, rows, columns, pyramid };
        for order in [Order::None, Order::Conditional] {
            let options = SolveOptions { order, ..SolveOptions::default() };
            let solution = solve_with(&linear, &moments, &options);
            let report = &solution.report;
            let found = loss(&solution.decoded, &weights, &hessian, columns);
            assert!((report.loss_refined / found - 1.0).abs() < 1e-3, "{}: {report:?} {found}", pyramid.name());
            assert_eq!(report.target_loss_refined, report.loss_refined);
            assert!(report.target_loss_refined < report.target_loss_sweep, "{}: {report:?}", pyramid.name());
            assert!(report.target_loss_sweep < 0.8 * report.loss_nearest, "{}: {report:?}", pyramid.name());
            let plain = encode(&linear, &SolveOptions { rounds: 0, ..options.clone() }).unwrap();
            let nearest = loss(&plain.decoded, &weights, &hessian, columns);
            assert!((report.loss_nearest / nearest - 1.0).abs() < 1e-3, "{}: {report:?} {nearest}", pyramid.name());
            let again = solve_with(&linear, &moments, &SolveOptions { sweeps: 2, ..options });
            assert!(again.report.loss_refined < report.loss_refined * 1.001, "{}", pyramid.name());
        }
    }
}

#[test]
fn the_target_is_corrected_for_what_is_lost_before() {
    let (rows, columns) = (64, 48);
    let mut numbers = Numbers(4);
    let weights = numbers.weights(rows * columns);
    let hessian = numbers.moments(columns, 200);
    let drift: Vec<f32> = hessian.iter().map(|h| (h * 0.05 + numbers.normal()) as f32).collect();
    let residual: Vec<f32> = (0..rows * columns).map(|_| numbers.normal() as f32).collect();
    let moments = Moments { columns, hessian: &hessian, drift: Some(&drift) };
    let options = SolveOptions::default();
    let linear = Linear { weights: &weights, rows, columns, pyramid: FORMATS[1] };
    let factor = Factor::new(&moments, &options.factoring()).unwrap();
    let solution = solve(&factor, &moments, &linear, Some(&residual), &options).unwrap();
    // T = W + (W D + R) (H + damping)⁻¹.
    let mean = (0..columns).map(|i| hessian[i * columns + i]).sum::<f64>() / columns as f64;
    let mut damped = hessian.clone();
    (0..columns).for_each(|i| damped[i * columns + i] += options.damping * mean);
    let inverse = inverted(damped, columns);
    let mut target = Vec::new();
    for (w, r) in weights.chunks(columns).zip(residual.chunks(columns)) {
        let missed: Vec<f64> = (0..columns)
            .map(|j| {
                f64::from(r[j]) + (0..columns).map(|k| f64::from(w[k]) * f64::from(drift[k * columns + j])).sum::<f64>()
            })
            .collect();
        target.extend((0..columns).map(|j| {
            (f64::from(w[j]) + (0..columns).map(|k| missed[k] * inverse[k * columns + j]).sum::<f64>()) as f32
        }));
    }
    let report = &solution.report;
    let found = loss(&solution.decoded, &target, &hessian, columns);
    assert!((report.target_loss_refined / found - 1.0).abs() < 0.02, "{report:?} {found}");
    let against_given = loss(&solution.decoded, &weights, &hessian, columns);
    assert!((report.loss_refined / against_given - 1.0).abs() < 1e-3, "{report:?} {against_given}");
    assert!(report.loss_sweep.is_none() && report.target_loss_refined < report.target_loss_sweep);
}

#[test]
fn threads_do_not_matter() {
    let (rows, columns) = (2100, 20);
    let mut numbers = Numbers(9);
    let weights = numbers.weights(rows * columns);
    let hessian = numbers.moments(columns, 100);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    let linear = Linear { weights: &weights, rows, columns, pyramid: FORMATS[1] };
    let [one, three] = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| solve_with(&linear, &moments, &SolveOptions { sweeps: 2, ..SolveOptions::default() }))
    });
    assert!(one == three);
}

#[test]
fn what_cannot_be_solved_is_refused() {
    let hessian = identity(4);
    let moments = Moments { columns: 4, hessian: &hessian, drift: None };
    let options = SolveOptions::default();
    let factor = Factor::new(&moments, &options.factoring()).unwrap();
    let weights = vec![1.0; 32];
    let linear = Linear { weights: &weights, rows: 8, columns: 4, pyramid: FORMATS[1] };
    let short = Linear { rows: 9, ..linear };
    assert!(matches!(solve(&factor, &moments, &short, None, &options), Err(SolveError::Length { .. })));
    let narrow = Linear { columns: 2, rows: 16, ..linear };
    assert!(matches!(solve(&factor, &moments, &narrow, None, &options), Err(SolveError::Length { .. })));
    let residual = [0.0; 31];
    assert!(matches!(solve(&factor, &moments, &linear, Some(&residual), &options), Err(SolveError::Length { .. })));
    let mut broken = weights.clone();
    broken[6] = f32::NAN;
    let error = encode(&Linear { weights: &broken, ..linear }, &options).unwrap_err();
    assert!(matches!(error, SolveError::Codec(CodecError::NonFinite { row: 1, column: 2, .. })));
    let impossible = Pyramid { dimension: 32, pulses: 107, gain_bits: 2 };
    assert!(encode(&Linear { pyramid: impossible, ..linear }, &options).is_err());
    let residual = [f32::MAX; 32];
    let error = solve(&factor, &moments, &linear, Some(&residual), &options).map(|_| ());
    assert!(error.is_ok() || matches!(error, Err(SolveError::Target { .. })), "{error:?}");
}
