//! Masks and weights against independent references in F64, and what every result must keep to.

use super::{forms::inverse_of, *};
use crate::{
    codec::CodecError,
    passes::gptq::{Factor, Moments, SolveError},
};

/// Numbers without a pattern, the same on every machine.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 / (1_u64 << 53) as f64) * 2.0 - 1.0
    }

    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.next()).sum::<f64>() * 0.7
    }
}

/// Second moments of inputs as language models have them: a direction that all channels share, a few strong ones, some
/// channels far larger than the rest, neighbours correlated, heavy tails over tokens.
pub(super) fn moments(columns: usize, tokens: usize, numbers: &mut Numbers) -> Vec<f64> {
    let directions = 24;
    let mix: Vec<f64> = (0..columns * directions).map(|_| numbers.normal()).collect();
    let size: Vec<f64> = (0..columns).map(|_| (numbers.normal() * 0.7).exp()).collect();
    let mut hessian = vec![0.0; columns * columns];
    for _ in 0..tokens {
        let strength = (numbers.normal() * 0.5).exp();
        let z: Vec<f64> = (0..directions).map(|k| numbers.normal() * 2.0 / (1.0 + k as f64 * 0.4)).collect();
        let common = numbers.normal();
        let own: Vec<f64> = (0..=columns).map(|_| numbers.normal()).collect();
        let x: Vec<f64> = (0..columns)
            .map(|i| {
                let shared: f64 = (0..directions).map(|k| mix[i * directions + k] * z[k]).sum();
                size[i] * strength * (shared * 0.4 + common * 0.5 + own[i] * 0.6 + own[i + 1] * 0.4)
            })
            .collect();
        for (i, row) in hessian.chunks_exact_mut(columns).enumerate() {
            row.iter_mut().zip(&x).for_each(|(moment, other)| *moment += x[i] * other);
        }
    }
    hessian
}

pub(super) fn weights(count: usize, numbers: &mut Numbers) -> Vec<f32> {
    (0..count).map(|_| (numbers.normal() * 0.05 * (numbers.normal() * 0.3).exp()) as f32).collect()
}

fn identity(columns: usize) -> Vec<f64> {
    (0..columns * columns).map(|index| f64::from(u8::from(index % (columns + 1) == 0))).collect()
}

fn damped(hessian: &[f64], columns: usize, damping: f64) -> Vec<f64> {
    let mean = (0..columns).map(|i| hessian[i * (columns + 1)]).sum::<f64>() / columns as f64;
    let mut damped = hessian.to_vec();
    (0..columns).for_each(|i| damped[i * (columns + 1)] += damping * mean);
    damped
}

/// Δ H Δᵀ of one row, the slow way.
fn row_loss(values: &[f64], target: &[f32], hessian: &[f64]) -> f64 {
    let d: Vec<f64> = values.iter().zip(target).map(|(v, t)| v - f64::from(*t)).collect();
    let rows = hessian.chunks_exact(d.len()).zip(&d);
    rows.map(|(row, a)| a * row.iter().zip(&d).map(|(h, b)| h * b).sum::<f64>()).sum()
}

pub(super) fn loss(values: &[f32], target: &[f32], hessian: &[f64], columns: usize) -> f64 {
    let wide = |row: &[f32]| row.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    let rows = values.chunks_exact(columns).zip(target.chunks_exact(columns));
    rows.map(|(values, target)| row_loss(&wide(values), target, hessian)).sum()
}

fn solve_with(weights: &[f32], rows: usize, moments: &Moments, options: &MaskOptions) -> Solution {
    let factor = factor(moments, options).unwrap();
    let solution = solve(&factor, moments, (weights, rows), None, None, options).unwrap();
    check(&solution, rows, moments.columns, options.pattern);
    solution
}

/// Every group has exactly as many zeros as the pattern says, all of them +0.
fn check(solution: &Solution, rows: usize, columns: usize, pattern: Pattern) {
    assert_eq!((solution.mask.rows(), solution.mask.columns(), solution.mask.pattern()), (rows, columns, pattern));
    assert_eq!(solution.report.dense_columns, columns % pattern.of);
    for (row, weights) in solution.weights.chunks_exact(columns).enumerate() {
        for (column, weight) in weights.iter().enumerate() {
            assert!(solution.mask.keeps(row, column) || weight.to_bits() == 0, "{row} {column}: {weight}");
        }
        for group in weights.chunks_exact(pattern.of) {
            let zeros = group.iter().filter(|weight| weight.to_bits() == 0).count();
            assert_eq!(zeros, pattern.of - pattern.keep, "row {row}: {group:?}");
        }
    }
}

fn sparse_gpt() -> MaskOptions {
    MaskOptions { refit: false, ..MaskOptions::default() }
}

/// `SparseGPT` as published, in F64: the two smallest w² / `U_jj`² of each quad go, one column after the other.
fn published(weights: &[f32], columns: usize, hessian: &[f64]) -> Vec<f32> {
    let upper = {
        // Rows of U from the inverse by elimination: U_jj² is the pivot, and the rest follows.
        let mut inverse = inverse_of(hessian, columns);
        let mut upper = vec![0.0; columns * columns];
        for j in 0..columns {
            let root = inverse[j * (columns + 1)].sqrt();
            (j..columns).for_each(|k| upper[j * columns + k] = inverse[j * columns + k] / root);
            for a in j..columns {
                for b in j..columns {
                    inverse[a * columns + b] -= upper[j * columns + a] * upper[j * columns + b];
                }
            }
        }
        upper
    };
    let mut out = Vec::new();
    for row in weights.chunks_exact(columns) {
        let mut w: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        for first in (0..columns / 4 * 4).step_by(4) {
            let score = |j: usize| (w[j] / upper[j * (columns + 1)]).powi(2);
            let mut order: Vec<usize> = (first..first + 4).collect();
            order.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
            let mut out = order[..2].to_vec();
            out.sort_unstable();
            for j in out {
                let error = w[j] / upper[j * (columns + 1)];
                (j..columns).for_each(|k| w[k] -= error * upper[j * columns + k]);
                w[j] = 0.0;
            }
        }
        out.extend(w.iter().map(|w| *w as f32));
    }
    out
}

#[test]
fn without_correlation_masks_are_those_of_magnitude() {
    let (rows, columns) = (70, 102);
    let mut numbers = Numbers(3);
    let mut weights = weights(rows * columns, &mut numbers);
    // Many equal magnitudes, too.
    weights[..2000].iter_mut().for_each(|weight| *weight = (*weight * 40.0).round() / 40.0 + 0.0125);
    let hessian = identity(columns);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    for (keep, of) in [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (2, 5)] {
        let pattern = Pattern { keep, of };
        let mask = magnitude(&weights, rows, columns, pattern).unwrap();
        let mut masked = weights.clone();
        mask.apply(&mut masked).unwrap();
        for options in [sparse_gpt(), MaskOptions::default()] {
            let solution = solve_with(&weights, rows, &moments, &MaskOptions { pattern, ..options });
            assert!(solution.mask == mask, "{pattern:?}");
            assert!(solution.weights == masked, "{pattern:?}");
        }
        assert_eq!(wanda(&weights, rows, &moments, pattern).unwrap(), mask, "{pattern:?}");
    }
}

#[test]
fn each_step_lowers_the_loss_and_all_beat_what_is_published() {
    let (rows, columns) = (96, 128);
    for seed in 1..4 {
        let mut numbers = Numbers(seed);
        let hessian = moments(columns, 600, &mut numbers);
        let weights = weights(rows * columns, &mut numbers);
        let moments = Moments { columns, hessian: &hessian, drift: None };
        let whole = damped(&hessian, columns, 0.01);
        let of = |solution: &Solution| loss(&solution.weights, &weights, &whole, columns);
        let plain = loss(&published(&weights, columns, &whole), &weights, &whole, columns);
        let simple = |criterion| {
            let options = MaskOptions { criterion, refit: false, ..MaskOptions::default() };
            of(&solve_with(&weights, rows, &moments, &options))
        };
        let (magnitude, wanda) = (simple(Criterion::Magnitude), simple(Criterion::Wanda));
        let swept = solve_with(&weights, rows, &moments, &sparse_gpt());
        let refitted = solve_with(&weights, rows, &moments, &MaskOptions::default());
        let options = MaskOptions { criterion: Criterion::Search, ..MaskOptions::default() };
        let searched = solve_with(&weights, rows, &moments, &options);
        let (a, b, c) = (of(&swept), of(&refitted), of(&searched));
        eprintln!(
            "seed {seed}: magnitude {:.3}, wanda {:.3}, groups {:.3}, refit {:.3} ({} steps), search {:.3} ({} changes, \
             {} steps) of SparseGPT as published",
            magnitude / plain,
            wanda / plain,
            a / plain,
            b / plain,
            refitted.report.steps,
            c / plain,
            searched.report.changed,
            searched.report.steps,
        );
        assert!(swept.mask == refitted.mask && swept.mask != searched.mask);
        assert!(c < b && b < a && a < plain && plain < wanda, "{c} {b} {a} {plain} {wanda} {magnitude}");
        for solution in [&swept, &refitted, &searched] {
            let exact = loss(&solution.weights, &weights, &hessian, columns);
            let report = &solution.report;
            assert!((report.loss / exact - 1.0).abs() < 1e-3, "{exact} {report:?}");
            assert!((report.target_loss / exact - 1.0).abs() < 1e-3, "{exact} {report:?}");
        }
        assert!((refitted.report.target_loss_selected / swept.report.loss - 1.0).abs() < 1e-6);
    }
}

#[test]
fn refitted_rows_are_those_of_a_direct_solve() {
    let (rows, columns) = (20, 90);
    let mut numbers = Numbers(17);
    let hessian = moments(columns, 400, &mut numbers);
    let weights = weights(rows * columns, &mut numbers);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    let whole = &damped(&hessian, columns, 0.01)[..];
    for (keep, of) in [(2, 4), (3, 8)] {
        for criterion in [Criterion::SparseGpt, Criterion::Magnitude] {
            let pattern = Pattern { keep, of };
            let options =
                MaskOptions { pattern, criterion, tolerance: 1e-9, refit_steps: 2000, ..MaskOptions::default() };
            let solution = solve_with(&weights, rows, &moments, &options);
            for (row, (found, target)) in
                solution.weights.chunks_exact(columns).zip(weights.chunks_exact(columns)).enumerate()
            {
                let kept: Vec<usize> = (0..columns).filter(|column| solution.mask.keeps(row, *column)).collect();
                let block: Vec<f64> =
                    kept.iter().flat_map(|a| kept.iter().map(move |b| whole[a * columns + b])).collect();
                let inverse = inverse_of(&block, kept.len());
                let right: Vec<f64> = kept
                    .iter()
                    .map(|a| (0..columns).map(|k| whole[a * columns + k] * f64::from(target[k])).sum())
                    .collect();
                let mut exact = vec![0.0; columns];
                for (index, column) in kept.iter().enumerate() {
                    exact[*column] = (0..kept.len()).map(|k| inverse[index * kept.len() + k] * right[k]).sum();
                }
                let found_wide: Vec<f64> = found.iter().map(|value| f64::from(*value)).collect();
                let (least, got) = (row_loss(&exact, target, whole), row_loss(&found_wide, target, whole));
                assert!(got <= least * (1.0 + 1e-5), "{pattern:?} {criterion:?} row {row}: {got} {least}");
                for (column, (found, exact)) in found_wide.iter().zip(&exact).enumerate() {
                    assert!((found - exact).abs() < 1e-3 * 0.05, "row {row}, column {column}: {found} {exact}");
                }
            }
        }
    }
}

#[test]
fn leaving_a_pair_out_costs_what_an_exact_solve_says() {
    // The first quad's choice with nothing fixed before it: the least of six exact losses with all else free.
    let (rows, columns) = (16, 24);
    let mut numbers = Numbers(23);
    let hessian = moments(columns, 200, &mut numbers);
    let weights = weights(rows * columns, &mut numbers);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    let whole = &damped(&hessian, columns, 0.01)[..];
    let factor = factor(&moments, &sparse_gpt()).unwrap();
    let first = factor.permutation[0];
    let solution = solve_with(&weights, rows, &moments, &sparse_gpt());
    for (row, weights) in weights.chunks_exact(columns).enumerate() {
        let cost = |pair: &[usize]| {
            // Constrained least squares by elimination: all but the pair free.
            let free: Vec<usize> = (0..columns).filter(|column| !pair.contains(column)).collect();
            let block: Vec<f64> = free.iter().flat_map(|a| free.iter().map(move |b| whole[a * columns + b])).collect();
            let inverse = inverse_of(&block, free.len());
            let mut d: Vec<f64> = vec![0.0; columns];
            for column in pair {
                d[*column] = -f64::from(weights[*column]);
            }
            let right: Vec<f64> =
                free.iter().map(|a| -pair.iter().map(|b| whole[a * columns + b] * d[*b]).sum::<f64>()).collect();
            for (index, column) in free.iter().enumerate() {
                d[*column] = (0..free.len()).map(|k| inverse[index * free.len() + k] * right[k]).sum();
            }
            let rows = whole.chunks_exact(columns).zip(&d);
            rows.map(|(row, a)| a * row.iter().zip(&d).map(|(h, b)| h * b).sum::<f64>()).sum::<f64>()
        };
        let pairs = Pattern::TWO_OF_FOUR.left_out();
        let costs: Vec<f64> =
            pairs.iter().map(|pair| cost(&pair.iter().map(|place| first + place).collect::<Vec<_>>())).collect();
        let chosen = pairs.iter().position(|pair| pair.iter().all(|place| !solution.mask.keeps(row, first + place)));
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(costs[chosen.unwrap()] <= least * (1.0 + 1e-4), "row {row}: {chosen:?} of {costs:?}");
    }
}

#[test]
fn given_masks_are_kept_and_bits_do_not_depend_on_threads() {
    let (rows, columns) = (150, 206);
    let mut numbers = Numbers(5);
    let hessian = moments(columns, 300, &mut numbers);
    let drift: Vec<f32> = hessian.iter().map(|moment| (moment * numbers.next() * 0.01) as f32).collect();
    let weights = weights(rows * columns, &mut numbers);
    let residual: Vec<f32> = weights.iter().map(|weight| weight * 0.1).collect();
    let moments = Moments { columns, hessian: &hessian, drift: Some(&drift) };
    let given = magnitude(&weights, rows, columns, Pattern::TWO_OF_FOUR).unwrap();
    for criterion in [Criterion::Search, Criterion::File] {
        let options = MaskOptions { criterion, block_size: 50, ..MaskOptions::default() };
        let solve_on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let factor = factor(&moments, &options).unwrap();
                solve(&factor, &moments, (&weights, rows), Some(&residual), Some(&given), &options).unwrap()
            })
        };
        let alone = solve_on(1);
        check(&alone, rows, columns, Pattern::TWO_OF_FOUR);
        assert_eq!(alone.report.dense_columns, 2);
        assert!(alone.report.target_loss < alone.report.target_loss_selected);
        assert_eq!(alone, solve_on(3));
        assert_eq!(criterion == Criterion::File, alone.mask == given);
    }
}

#[test]
fn dead_channels_and_singular_moments_are_survived() {
    let (rows, columns) = (20, 48);
    let mut numbers = Numbers(9);
    let mut hessian = moments(columns, 5, &mut numbers);
    let weights = weights(rows * columns, &mut numbers);
    for index in 0..columns {
        hessian[index * columns + 17] = 0.0;
        hessian[17 * columns + index] = 0.0;
    }
    for hessian in [hessian, vec![0.0; columns * columns]] {
        let moments = Moments { columns, hessian: &hessian, drift: None };
        for criterion in [Criterion::Search, Criterion::Wanda] {
            let options = MaskOptions { criterion, damping: 0.0, ..MaskOptions::default() };
            let solution = solve_with(&weights, rows, &moments, &options);
            assert!(solution.report.deviations["dead-columns"] >= 1);
            assert!(solution.weights.iter().all(|weight| weight.is_finite()));
        }
    }
}

#[test]
fn what_cannot_be_masked_is_refused() {
    let hessian = identity(4);
    let moments = Moments { columns: 4, hessian: &hessian, drift: None };
    let options = MaskOptions::default();
    let factor = factor(&moments, &options).unwrap();
    let attempt = |weights: &[f32], given: Option<&Mask>, options: &MaskOptions| {
        solve(&factor, &moments, (weights, 2), None, given, options).unwrap_err()
    };
    assert!(matches!(attempt(&[0.0; 7], None, &options), SolveError::Length { what: "weights", .. }));
    let mut bad = [0.0; 8];
    bad[6] = f32::NAN;
    let expected = |error| matches!(error, SolveError::Codec(CodecError::NonFinite { row: 1, column: 2, .. }));
    assert!(expected(attempt(&bad, None, &options)));
    let file = MaskOptions { criterion: Criterion::File, ..options.clone() };
    assert!(matches!(attempt(&[0.0; 8], None, &file), SolveError::Codec(CodecError::Missing { what: "mask" })));
    let other = magnitude(&[1.0; 8], 1, 8, Pattern::TWO_OF_FOUR).unwrap();
    assert!(matches!(attempt(&[0.0; 8], Some(&other), &file), SolveError::Length { .. }));
    let other = magnitude(&[1.0; 8], 2, 4, Pattern { keep: 1, of: 4 }).unwrap();
    assert!(matches!(attempt(&[0.0; 8], Some(&other), &file), SolveError::Length { .. }));
    let pattern = Pattern { keep: 4, of: 4 };
    let impossible = MaskOptions { pattern, ..options };
    assert!(matches!(attempt(&[0.0; 8], None, &impossible), SolveError::Codec(CodecError::Pattern { .. })));
    assert!(super::factor(&moments, &impossible).is_err());
    let empty = Moments { columns: 0, hessian: &[], drift: None };
    let none = super::factor(&empty, &file).unwrap();
    let solution = solve(&none, &empty, (&[], 2), None, None, &MaskOptions::default()).unwrap();
    assert!(solution.weights.is_empty());
    // All weights zero: a mask all the same, of weights kept that are zero.
    let solution = solve(&factor, &moments, (&[0.0; 8], 2), None, None, &MaskOptions::default()).unwrap();
    assert_eq!(solution.mask.bits(), [0b1100, 0b1100]);
    let _: &Factor = &factor;
}

#[test]
fn settings_are_typed() {
    let parse = |text: &str| Settings::parse(&text.parse().unwrap());
    let settings = parse("").unwrap();
    assert_eq!(settings, Settings { solve: MaskOptions::default(), masks: None, given: None, learning: None });
    assert!(settings.needs_calibration());
    let settings = parse("criterion = 'magnitude'\nkeep = 4\nof = 8").unwrap();
    assert_eq!(settings.solve.pattern, Pattern { keep: 4, of: 8 });
    assert!(!settings.solve.refit && !settings.needs_calibration());
    assert!(parse("criterion = 'magnitude'\nrefit = true").unwrap().needs_calibration());
    assert_eq!(parse("asymmetric = false\ndamping = 0.1").unwrap().solve.drift_share, 0.0);
    for (text, key) in [
        ("criterion = 'x'", "criterion"),
        ("keep = 4", "keep"),
        ("of = 9", "of"),
        ("damping = 0.0", "damping"),
        ("refit = 1", "refit"),
        ("tolerance = 'x'", "tolerance"),
        ("search_rounds = 0", "search_rounds"),
        ("sparsity = 0.5", "sparsity"),
    ] {
        assert_eq!(parse(text).unwrap_err().key, key, "{text}");
    }
    // What is written into a manifest reads back to the same, and is all that the criterion has.
    for (text, learns) in [
        ("criterion = 'search'\nasymmetric = false\ntolerance = 0.001", false),
        ("criterion = 'learned'\nprior = 'sparsegpt'\nnoise = 0.5\ntemperature = [2.0, 0.25]", true),
    ] {
        let settings = parse(text).unwrap();
        let table = toml::Table::try_from(serde_json::to_value(&settings).unwrap()).unwrap();
        let has = |key: &&str| *key != "masks" && (learns || !learned::KEYS.contains(key));
        assert!(table.keys().map(String::as_str).eq(settings::KEYS.iter().copied().filter(has)), "{table}");
        assert_eq!(Settings::parse(&table).unwrap(), settings);
    }
}
