//! The sweep against an independent reference, and what every result must keep to.

use super::*;
use crate::{
    checkpoint::Dtype,
    codec::{Codec, Element, Granularity, ScaleFormat, ZeroPoint},
    passes::rtn::{
        grid::{Grid, GroupScale},
        kernels::extent,
    },
};

/// Numbers without a pattern, the same on every machine.
pub(super) struct Numbers(pub(super) u64);

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
}

/// Correlated second moments with very unequal channels, as those of a language model are.
pub(super) fn moments(columns: usize, tokens: usize, numbers: &mut Numbers) -> Vec<f64> {
    let mix: Vec<f64> = (0..columns * columns).map(|_| numbers.normal() / (columns as f64).sqrt()).collect();
    let size: Vec<f64> = (0..columns).map(|_| (numbers.normal() * 0.8).exp()).collect();
    let mut hessian = vec![0.0; columns * columns];
    for _ in 0..tokens {
        let z: Vec<f64> = (0..columns).map(|_| numbers.normal()).collect();
        let common = numbers.normal();
        let x: Vec<f64> = (0..columns)
            .map(|i| size[i] * (z[i] * 0.6 + common + (0..columns).map(|j| mix[i * columns + j] * z[j]).sum::<f64>()))
            .collect();
        for i in 0..columns {
            for j in 0..columns {
                hessian[i * columns + j] += x[i] * x[j];
            }
        }
    }
    hessian
}

pub(super) fn weights(count: usize, numbers: &mut Numbers) -> Vec<f32> {
    (0..count).map(|_| (numbers.normal() * 0.05) as f32).collect()
}

fn identity(columns: usize) -> Vec<f64> {
    (0..columns * columns).map(|index| f64::from(u8::from(index % (columns + 1) == 0))).collect()
}

pub(super) fn codec(element: Element, granularity: Granularity, scale: ScaleFormat, zero: ZeroPoint) -> Codec {
    Codec { element, granularity, scale, zero, outliers: None }
}

pub(super) fn formats() -> Vec<Codec> {
    use Granularity::{Block, Channel, Group, Tensor};
    let integer = |bits, granularity, zero| codec(Element::Integer { bits }, granularity, ScaleFormat::F16, zero);
    vec![
        integer(2, Group(16), ZeroPoint::Integer),
        integer(3, Group(24), ZeroPoint::Integer),
        integer(4, Group(32), ZeroPoint::None),
        integer(3, Group(20), ZeroPoint::Float),
        integer(4, Group(32), ZeroPoint::Minimum),
        codec(Element::Integer { bits: 3 }, Channel, ScaleFormat::BF16, ZeroPoint::Minimum),
        integer(5, Channel, ZeroPoint::Integer),
        integer(8, Channel, ZeroPoint::None),
        integer(4, Tensor, ZeroPoint::Integer),
        integer(6, Block { rows: 24, columns: 20 }, ZeroPoint::None),
        codec(Element::Integer { bits: 4 }, Group(16), ScaleFormat::BF16, ZeroPoint::Integer),
        codec(Element::Integer { bits: 2 }, Group(64), ScaleFormat::F32, ZeroPoint::Integer),
        codec(Element::Fp8E4M3, Channel, ScaleFormat::BF16, ZeroPoint::None),
        codec(Element::Fp8E4M3, Group(32), ScaleFormat::E8M0, ZeroPoint::None),
        codec(Element::Fp4E2M1, Group(32), ScaleFormat::E8M0, ZeroPoint::None),
        codec(Element::Fp4E2M1, Group(16), ScaleFormat::E4M3OverGlobal, ZeroPoint::None),
    ]
}

fn plain() -> SolveOptions {
    SolveOptions { search_steps: 0, refine: false, order: Order::None, damping: 0.01, ..SolveOptions::default() }
}

fn solve_with(weights: &[f32], rows: usize, codec: &Codec, moments: &Moments, options: &SolveOptions) -> Solution {
    let grid = Grid::new(codec, Dtype::BF16, 0);
    let factor = Factor::new(moments, options).unwrap();
    let solution = solve(&factor, moments, &Linear { weights, rows, codec, grid: &grid }, options).unwrap();
    let mut decoded = vec![0.0; weights.len()];
    codec.dequantize_rows(&solution.coded, &solution.parameters, &mut decoded).unwrap();
    assert!(decoded.iter().zip(&solution.dequantized).all(|(a, b)| a == b), "{codec:?}: decodes to something else");
    solution
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
fn without_correlation_codes_are_those_of_round_to_nearest() {
    let (rows, columns) = (70, 100);
    let weights = weights(rows * columns, &mut Numbers(3));
    let hessian = identity(columns);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    for order in [Order::None, Order::Activation, Order::Conditional] {
        for codec in formats() {
            let solution = solve_with(&weights, rows, &codec, &moments, &SolveOptions { order, ..plain() });
            let matrix = crate::passes::Matrix {
                name: String::new(),
                rows,
                columns,
                dense_dtype: Dtype::BF16,
                scale: codec.scale,
                experts: 1,
                seed: 0,
                minimum_zero_point: 0,
                float_zero_allowed: true,
                minima: crate::layout::Minima::WhereAsked,
            };
            let settings =
                (crate::passes::rtn::INFO.parse)(&toml::Table::from_iter([("bits".into(), 4.into())])).unwrap();
            let choice = crate::passes::Choice {
                codec: codec.clone().into(),
                rotations: None,
                codebook_of: None,
                mask: None,
                activations: crate::layout::Activations::None,
            };
            let encoder = settings.encoder(&matrix, &choice);
            let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
            let source = crate::codec::DenseRows::new(Dtype::F32, &bytes, rows, columns).unwrap();
            let parameters = encoder.prepare(&source).unwrap();
            let encoded = encoder.encode(&source, &parameters, 0, rows).unwrap();
            assert!(solution.coded == encoded.rows, "{codec:?}");
            assert_eq!(solution.parameters, parameters, "{codec:?}");
            let report = &solution.report;
            assert!((report.loss_nearest - report.target_loss_sweep).abs() <= 1e-5 * report.loss_nearest, "{codec:?}");
        }
    }
}

/// Optimal Brain Quantization in F64, straight from the paper: after each column, the remaining weights move by
/// −(w − q) / [H⁻¹]qq · H⁻¹[q, :], and the row and column leave H⁻¹ by one step of elimination.
fn reference(
    weights: &[f32],
    columns: usize,
    hessian: &[f64],
    damping: f64,
    order: &[usize],
    groups: impl Fn(usize, usize) -> GroupScale,
    grid: &Grid,
) -> Vec<u8> {
    let mean = (0..columns).map(|i| hessian[i * columns + i]).sum::<f64>() / columns as f64;
    let mut start = hessian.to_vec();
    (0..columns).for_each(|i| start[i * columns + i] += damping * mean);
    let start = inverse(start, columns);
    let mut codes = vec![0; weights.len()];
    for (row, weights) in weights.chunks(columns).enumerate() {
        let mut w: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
        let mut inverse = start.clone();
        for q in order.iter().copied() {
            let group = groups(row, q);
            let code = &mut codes[row * columns + q..][..1];
            grid.encode(&[w[q] as f32], &group, code);
            let error = w[q] - f64::from(grid.decode(code[0], &group));
            let pivot = inverse[q * columns + q];
            for k in 0..columns {
                w[k] -= error / pivot * inverse[q * columns + k];
            }
            let row: Vec<f64> = inverse[q * columns..][..columns].to_vec();
            for i in 0..columns {
                let factor = inverse[i * columns + q] / pivot;
                (0..columns).for_each(|j| inverse[i * columns + j] -= factor * row[j]);
            }
        }
    }
    codes
}

/// Gauss and Jordan.
fn inverse(mut a: Vec<f64>, n: usize) -> Vec<f64> {
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
    // One group per row, so that scales come from the untouched weights in both.
    let (rows, columns) = (48, 60);
    for seed in 1..4 {
        let mut numbers = Numbers(seed);
        let hessian = moments(columns, 400, &mut numbers);
        let weights = weights(rows * columns, &mut numbers);
        let moments = Moments { columns, hessian: &hessian, drift: None };
        for bits in [2, 4] {
            let codec = codec(Element::Integer { bits }, Granularity::Channel, ScaleFormat::F16, ZeroPoint::Integer);
            let grid = Grid::new(&codec, Dtype::BF16, 0);
            for (order, block_size) in [(Order::None, 7), (Order::Activation, 128)] {
                let options = SolveOptions { order, block_size, ..plain() };
                let solution = solve_with(&weights, rows, &codec, &moments, &options);
                let mut columns_in_order: Vec<usize> = (0..columns).collect();
                if order == Order::Activation {
                    columns_in_order.sort_by(|a, b| hessian[b * (columns + 1)].total_cmp(&hessian[a * (columns + 1)]));
                }
                let group = |row: usize, _| grid.min_max(extent(&weights[row * columns..][..columns]).unwrap());
                let expected = reference(&weights, columns, &hessian, 0.01, &columns_in_order, group, &grid);
                let differing = expected.iter().zip(&solution.coded.codes).filter(|(a, b)| a != b).count();
                // One tie decided otherwise changes what comes after it in the row.
                assert!(differing * 100 <= expected.len(), "{bits} bits, {order:?}: {differing} of {}", expected.len());
            }
        }
    }
}

#[test]
fn each_step_lowers_the_loss() {
    let (rows, columns) = (40, 100);
    for seed in 11..13 {
        let mut numbers = Numbers(seed);
        let hessian = moments(columns, 600, &mut numbers);
        let weights = weights(rows * columns, &mut numbers);
        let moments = Moments { columns, hessian: &hessian, drift: None };
        let mean = (0..columns).map(|i| hessian[i * (columns + 1)]).sum::<f64>() / columns as f64;
        let mut damped = hessian.clone();
        (0..columns).for_each(|i| damped[i * (columns + 1)] += 0.01 * mean);
        for codec in formats() {
            for order in [Order::None, Order::Activation, Order::Conditional] {
                let options = SolveOptions { order, damping: 0.01, ..SolveOptions::default() };
                let solution = solve_with(&weights, rows, &codec, &moments, &options);
                let report = &solution.report;
                assert!(report.target_loss_sweep < report.loss_nearest, "{codec:?} {order:?}: {report:?}");
                let sweep = SolveOptions { refine: false, ..options.clone() };
                let sweep = solve_with(&weights, rows, &codec, &moments, &sweep);
                let before = loss(&sweep.dequantized, &weights, &damped, columns);
                let after = loss(&solution.dequantized, &weights, &damped, columns);
                assert!(after <= before, "{codec:?} {order:?}: {before} {after}");
                let exact = loss(&solution.dequantized, &weights, &hessian, columns);
                assert!((report.loss_refined / exact - 1.0).abs() < 1e-3, "{codec:?}: {exact} {report:?}");
            }
        }
    }
}

#[test]
fn wide_and_uneven_groups_are_refined() {
    use Granularity::{Channel, Group, Tensor};
    let (rows, columns) = (20, 700);
    let mut numbers = Numbers(31);
    let hessian = moments(columns, 800, &mut numbers);
    let weights = weights(rows * columns, &mut numbers);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    for granularity in [Channel, Group(650), Group(300), Group(129), Tensor] {
        let codec = codec(Element::Integer { bits: 3 }, granularity, ScaleFormat::BF16, ZeroPoint::Integer);
        let report = solve_with(&weights, rows, &codec, &moments, &SolveOptions::default()).report;
        assert!(report.target_loss_sweep < report.loss_nearest, "{granularity:?}: {report:?}");
        assert!(report.loss_refined < report.target_loss_sweep, "{granularity:?}: {report:?}");
        assert!(report.rounds > 0);
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (rows, columns) = (200, 300);
    let mut numbers = Numbers(5);
    let hessian = moments(columns, 350, &mut numbers);
    let drift: Vec<f32> = hessian.iter().map(|moment| (moment * numbers.next() * 0.01) as f32).collect();
    let weights = weights(rows * columns, &mut numbers);
    let moments = Moments { columns, hessian: &hessian, drift: Some(&drift) };
    let residual: Vec<f32> = weights.iter().map(|weight| weight * 0.1).collect();
    let codec = codec(Element::Integer { bits: 3 }, Granularity::Group(32), ScaleFormat::F16, ZeroPoint::Integer);
    let grid = Grid::new(&codec, Dtype::BF16, 0);
    let solve_on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let options = SolveOptions::default();
            let factor = Factor::new(&moments, &options).unwrap();
            let linear = Linear { weights: &weights, rows, codec: &codec, grid: &grid };
            solve_towards(&factor, &moments, &linear, Some(&residual), &options).unwrap()
        })
    };
    let alone = solve_on(1);
    assert_eq!(alone, solve_on(2));
    assert_eq!(alone, solve_on(7));
}

#[test]
fn singular_moments_are_damped_until_they_factor() {
    let (rows, columns) = (16, 64);
    let mut numbers = Numbers(8);
    let hessian = moments(columns, 5, &mut numbers);
    let weights = weights(rows * columns, &mut numbers);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    let codec = &formats()[0];
    let options = SolveOptions { damping: 0.0, ..SolveOptions::default() };
    let factor = Factor::new(&moments, &options).unwrap();
    assert!(factor.escalations() > 0 && factor.damping() > 0.0);
    let solution = solve_with(&weights, rows, codec, &moments, &options);
    assert!(solution.report.deviations["damping-raised"] > 0);
    assert!(solution.report.loss_refined < solution.report.loss_nearest);
}

#[test]
fn dead_channels_are_rounded_to_nearest() {
    let (rows, columns) = (20, 48);
    let mut numbers = Numbers(9);
    let mut hessian = moments(columns, 300, &mut numbers);
    let weights = weights(rows * columns, &mut numbers);
    let dead = [3, 17, 18];
    for index in 0..columns {
        for column in dead {
            hessian[index * columns + column] = 0.0;
            hessian[column * columns + index] = 0.0;
        }
    }
    let moments = Moments { columns, hessian: &hessian, drift: None };
    for codec in formats() {
        let solution = solve_with(&weights, rows, &codec, &moments, &SolveOptions::default());
        assert_eq!(solution.report.deviations["dead-columns"], 3);
        if codec.element != (Element::Integer { bits: 8 }) {
            continue;
        }
        for row in 0..rows {
            let step = solution.coded.scales[row];
            for column in dead {
                let place = row * columns + column;
                let error = (solution.dequantized[place] - weights[place]).abs();
                assert!(error <= step * 0.5001 || [0, 255].contains(&solution.coded.codes[place]), "{codec:?}");
            }
        }
    }
    let nothing = vec![0.0; columns * columns];
    let moments = Moments { columns, hessian: &nothing, drift: None };
    let solution = solve_with(&weights, rows, &formats()[0], &moments, &plain());
    assert_eq!(solution.report.deviations["dead-columns"], columns as u64);
    let hessian = identity(columns);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    assert_eq!(solution.coded, solve_with(&weights, rows, &formats()[0], &moments, &plain()).coded);
}

#[test]
fn the_corrected_target_makes_up_for_the_lossy_input() {
    // x = x_dense · S with a known S, so that (x_dense − x) xᵀ is exact and the corrected weights undo S.
    let (rows, columns) = (24, 40);
    let mut numbers = Numbers(21);
    let dense = moments(columns, 300, &mut numbers);
    let factors: Vec<f64> = (0..columns).map(|_| 1.0 + 0.2 * numbers.next()).collect();
    let at = |i: usize, j: usize| dense[i * columns + j];
    let each = || (0..columns).flat_map(|i| (0..columns).map(move |j| (i, j)));
    let hessian: Vec<f64> = each().map(|(i, j)| at(i, j) * factors[i] * factors[j]).collect();
    let drift: Vec<f32> = each().map(|(i, j)| (at(i, j) * (1.0 - factors[i]) * factors[j]) as f32).collect();
    let weights = weights(rows * columns, &mut numbers);
    let moments = Moments { columns, hessian: &hessian, drift: Some(&drift) };
    let options = SolveOptions { damping: 1e-7, ..SolveOptions::default() };
    let factor = Factor::new(&moments, &options).unwrap();
    let target =
        target::corrected(&factor, &weights, &target::Correction { drift: Some(&drift), residual: None, share: 1.0 });
    for (index, (target, weight)) in target.iter().zip(&weights).enumerate() {
        let expected = f64::from(*weight) / factors[index % columns];
        assert!((f64::from(*target) - expected).abs() < 2e-4, "{target} {expected}");
    }
    let codec = &formats()[1];
    let solution = solve_with(&weights, rows, codec, &moments, &options);
    let exact = loss(&solution.dequantized, &target, &hessian, columns);
    assert!((solution.report.target_loss_refined / exact - 1.0).abs() < 1e-3);
    assert!(solution.report.target_loss_refined <= solution.report.target_loss_sweep);
}

#[test]
fn what_cannot_be_solved_is_refused() {
    let hessian = identity(4);
    let good = Moments { columns: 4, hessian: &hessian, drift: None };
    let codec = formats()[0].clone();
    let grid = Grid::new(&codec, Dtype::BF16, 0);
    let factor = Factor::new(&good, &plain()).unwrap();
    let attempt = |weights: &[f32], codec: &Codec| {
        solve(&factor, &good, &Linear { weights, rows: 2, codec, grid: &grid }, &plain()).unwrap_err()
    };
    assert!(matches!(attempt(&[0.0; 7], &codec), SolveError::Length { what: "weights", .. }));
    let mut bad = [0.0; 8];
    bad[6] = f32::NAN;
    assert!(matches!(
        attempt(&bad, &codec),
        SolveError::Codec(crate::codec::CodecError::NonFinite { row: 1, column: 2, .. })
    ));
    let endless = [f32::MAX; 8];
    let linear = Linear { weights: &[f32::MAX; 8], rows: 2, codec: &codec, grid: &grid };
    let refused = solve_towards(&factor, &good, &linear, Some(&endless), &plain()).unwrap_err();
    assert_eq!(refused, SolveError::Target { row: 0, column: 0 });
    let outliers = Codec { outliers: Some(crate::codec::OutlierCount { count: 1 }), ..codec.clone() };
    assert_eq!(attempt(&[0.0; 8], &outliers), SolveError::Outliers);
    let mut infinite = hessian.clone();
    infinite[9] = f64::INFINITY;
    let refused = Factor::new(&Moments { hessian: &infinite, ..good }, &plain()).unwrap_err();
    assert_eq!(refused, SolveError::NotFinite { row: 2, column: 1 });
    let empty = Moments { columns: 0, hessian: &[], drift: None };
    let factor = Factor::new(&empty, &plain()).unwrap();
    let solution = solve(&factor, &empty, &Linear { weights: &[], rows: 2, codec: &codec, grid: &grid }, &plain());
    assert!(solution.unwrap().coded.codes.is_empty());
}
