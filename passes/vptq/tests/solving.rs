//! What every solution must keep to.

use super::fixtures::{factor, formats, loss, moments, weights};
use crate::{
    codec::{CodecError, OutlierColumns, ScaleFormat, VectorFormat},
    passes::{
        gptq::{Factor, Moments, Order, SolveError},
        vptq::{
            Linear, Solution, SolveOptions, choose, random::Random, solve, solve_nearest, solve_stacked, solve_towards,
        },
    },
};

const COLUMNS: usize = 24;

fn quick() -> SolveOptions {
    SolveOptions { beam: 4, sample_rounds: 10, sweeps: 2, ..SolveOptions::default() }
}

struct Layer {
    weights: Vec<f32>,
    rows: usize,
    hessian: Vec<f64>,
    factor: Factor,
}

impl Layer {
    fn new(rows: usize, name: &str) -> Self {
        let mut random = Random::new(name, "layer");
        let hessian = moments(COLUMNS, 150, &mut random);
        let factor = factor(&hessian, COLUMNS, 0.02, Order::Conditional);
        Self { weights: weights(rows, COLUMNS, &mut random), rows, hessian, factor }
    }

    fn linear<'a>(&'a self, format: &'a VectorFormat) -> Linear<'a> {
        Linear { name: "layer", weights: &self.weights, rows: self.rows, format, arithmetic: format.storage }
    }

    fn moments(&self) -> Moments<'_> {
        Moments { columns: COLUMNS, hessian: &self.hessian, drift: None }
    }

    fn solve(&self, format: &VectorFormat, options: &SolveOptions) -> Solution {
        solve(&self.factor, &self.moments(), &self.linear(format), options).unwrap()
    }
}

fn close(a: f64, b: f64, what: &str) {
    assert!((a - b).abs() <= 2e-4 * b.abs(), "{what}: {a} instead of {b}");
}

#[test]
fn solutions_are_what_they_say_and_each_step_helps() {
    // 118 rows: no vector length but 1 and 2 divides them.
    let layer = Layer::new(118, "steps");
    for format in formats() {
        let name = format.name();
        let solution = layer.solve(&format, &quick());
        let tensors: Vec<&[u8]> = solution.tensors.iter().map(Vec::as_slice).collect();
        let decoded = format.decode(118, COLUMNS, &tensors, format.storage).unwrap();
        assert_eq!(decoded, solution.decoded, "{name}");
        assert_eq!(format.unpack(118, COLUMNS, &tensors).unwrap(), solution.parts, "{name}");
        let report = &solution.report;
        close(report.loss_refined, loss(&decoded, &layer.weights, &layer.hessian, COLUMNS), &name);
        assert_eq!(report.target_loss_refined, report.loss_refined);
        let sweep = report.loss_sweep.unwrap();
        assert!(sweep < report.loss_nearest * 0.9, "{name}: {} then {sweep}", report.loss_nearest);
        assert!(report.loss_refined < sweep * 0.95, "{name}: {sweep} then {}", report.loss_refined);
        assert!(report.rounds > 0);
        let without = layer.solve(&format, &SolveOptions { refine_rounds: 0, sweeps: 1, ..quick() });
        // Up to the roundings of the runtime's arithmetic.
        let decoded = without.report.loss_refined;
        assert!((decoded - sweep).abs() < 0.02 * sweep, "{name}: {decoded} {sweep}");
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let layer = Layer::new(300, "threads");
    for format in formats() {
        let solve = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| layer.solve(&format, &quick()))
        };
        let one = solve(1);
        assert!(solve(2) == one && solve(7) == one, "{}", format.name());
    }
}

#[test]
fn names_seed_the_choices() {
    let layer = Layer::new(300, "seeds");
    let format = &formats()[0];
    let solve = |name| {
        let linear = Linear { name, ..layer.linear(format) };
        solve(&layer.factor, &layer.moments(), &linear, &quick()).unwrap().tensors
    };
    assert_eq!(solve("a"), solve("a"));
    assert_ne!(solve("a"), solve("b"));
}

/// Norm makes the solution independent of the channels' scales, if and only if H is scaled along: with weights times a
/// power of two for each column, and inputs divided by it, all codes must be the same.
#[test]
fn norm_and_permutation_go_with_the_moments() {
    let layer = Layer::new(90, "norm");
    let by: Vec<f64> = (0..COLUMNS).map(|column| [1.0, 0.25, 8.0, 0.5, 2.0][column % 5]).collect();
    let scaled = Layer {
        weights: layer.weights.iter().enumerate().map(|(at, value)| value * by[at % COLUMNS] as f32).collect(),
        rows: 90,
        hessian: (0..COLUMNS * COLUMNS).map(|at| layer.hessian[at] / by[at / COLUMNS] / by[at % COLUMNS]).collect(),
        factor: layer.factor.clone(),
    };
    let undamped = |layer: &Layer| factor(&layer.hessian, COLUMNS, 0.0, Order::None);
    for format in formats().into_iter().filter(|format| format.norm) {
        let solve = |layer: &Layer| {
            let layer = Layer {
                factor: undamped(layer),
                weights: layer.weights.clone(),
                hessian: layer.hessian.clone(),
                rows: 90,
            };
            layer.solve(&format, &quick())
        };
        let (one, other) = (solve(&layer), solve(&scaled));
        assert_eq!(one.parts.indices, other.parts.indices, "{}", format.name());
        assert_eq!(one.parts.permutation, other.parts.permutation);
        assert_eq!(one.parts.centroids, other.parts.centroids);
        for (at, (one, other)) in one.decoded.iter().zip(&other.decoded).enumerate() {
            assert_eq!(one * by[at % COLUMNS] as f32, *other, "{}", format.name());
        }
        close(other.report.loss_refined, one.report.loss_refined, "loss");
    }
}

#[test]
fn permuted_columns_fall_by_importance_and_outliers_are_first() {
    let layer = Layer::new(60, "order");
    let format = &formats()[4];
    let parts = layer.solve(format, &quick()).parts;
    let weight = |column: u16| {
        let column = usize::from(column);
        let curvature = f64::from(layer.factor.hessian[column * (COLUMNS + 1)]);
        curvature * f64::from(parts.scales[column]).powi(2)
    };
    assert!(parts.permutation.windows(2).all(|pair| weight(pair[0]) >= weight(pair[1])));
}

#[test]
fn outlier_columns_are_stored_better() {
    // A few columns carry most of the input.
    let mut layer = Layer::new(128, "outliers");
    for at in 0..COLUMNS * COLUMNS {
        let by = |column: usize| if column % 8 == 3 { 12.0 } else { 1.0 };
        layer.hessian[at] *= by(at / COLUMNS) * by(at % COLUMNS);
    }
    layer.factor = factor(&layer.hessian, COLUMNS, 0.02, Order::Conditional);
    let outliers = Some(OutlierColumns { columns: 3, vector_length: 2, centroids: 128 });
    let with = VectorFormat { vector_length: 4, outliers, ..formats()[4].clone() };
    let without = VectorFormat { outliers: None, ..with.clone() };
    let [with, without] = [with, without].map(|format| layer.solve(&format, &quick()).report.loss_refined);
    assert!(with < without * 0.8, "{with} {without}");
}

/// With the residual (T − W) H, the target of W is T.
#[test]
fn a_correction_is_solved_for() {
    let layer = Layer::new(64, "correction");
    let format = &formats()[2];
    let shift = weights(64, COLUMNS, &mut Random::new("shift", ""));
    let target: Vec<f32> = layer.weights.iter().zip(&shift).map(|(weight, shift)| weight + 0.3 * shift).collect();
    let mut residual = vec![0.0_f32; target.len()];
    for row in 0..64 {
        for column in 0..COLUMNS {
            let parts = (0..COLUMNS).map(|k| {
                let missing = f64::from(target[row * COLUMNS + k]) - f64::from(layer.weights[row * COLUMNS + k]);
                missing * f64::from(layer.factor.hessian[k * COLUMNS + column])
            });
            residual[row * COLUMNS + column] = parts.sum::<f64>() as f32;
        }
    }
    let linear = layer.linear(format);
    let solution = solve_towards(&layer.factor, &layer.moments(), &linear, Some(&residual), &quick()).unwrap();
    let report = &solution.report;
    assert_eq!(report.loss_sweep, None);
    close(report.loss_refined, loss(&solution.decoded, &layer.weights, &layer.hessian, COLUMNS), "given");
    let direct = loss(&solution.decoded, &target, &layer.hessian, COLUMNS);
    assert!((report.target_loss_refined - direct).abs() < 0.01 * direct, "{} {direct}", report.target_loss_refined);
    let plain = layer.solve(format, &quick());
    assert!(direct < 0.5 * loss(&plain.decoded, &target, &layer.hessian, COLUMNS));
    let off = SolveOptions { drift_share: 0.0, ..quick() };
    let off = solve_towards(&layer.factor, &layer.moments(), &linear, Some(&residual), &off).unwrap();
    assert_eq!(off, plain);
}

#[test]
fn stacked_layers_share_their_codebooks() {
    let (one, two) = (Layer::new(36, "one"), Layer::new(60, "two"));
    for format in [&formats()[2], &formats()[4]] {
        let linears = [one.linear(format), Linear { name: "two", ..two.linear(format) }];
        let (solutions, report) = solve_stacked(&one.factor, &one.moments(), &linears, &quick()).unwrap();
        assert_eq!(solutions[0].parts.centroids, solutions[1].parts.centroids);
        let mut total = 0.0;
        for (solution, layer) in solutions.iter().zip([&one, &two]) {
            let tensors: Vec<&[u8]> = solution.tensors.iter().map(Vec::as_slice).collect();
            assert_eq!(format.decode(layer.rows, COLUMNS, &tensors, format.storage).unwrap(), solution.decoded);
            total += loss(&solution.decoded, &layer.weights, &one.hessian, COLUMNS);
        }
        close(report.loss_refined, total, "both");
    }
    let uneven = Layer::new(37, "uneven");
    let format = &formats()[0];
    let error = solve_stacked(&one.factor, &one.moments(), &[uneven.linear(format)], &quick()).unwrap_err();
    assert!(matches!(error, SolveError::Codec(CodecError::Vector { .. })), "{error}");
    assert_eq!(solve_stacked(&one.factor, &one.moments(), &[], &quick()).unwrap().0, []);
}

#[test]
fn without_moments_codes_are_nearest() {
    let layer = Layer::new(118, "nearest");
    for format in formats() {
        let solution = solve_nearest(&layer.linear(&format), COLUMNS, &quick()).unwrap();
        let ones = super::fixtures::identity(COLUMNS);
        let squares = loss(&solution.decoded, &layer.weights, &ones, COLUMNS);
        close(solution.report.loss_refined, squares, &format.name());
        let all = loss(&vec![0.0; layer.weights.len()], &layer.weights, &ones, COLUMNS);
        assert!(squares < all * 0.8, "{}: {squares} of {all}", format.name());
        // With moments, the squared error is larger, and the loss smaller.
        let solved = layer.solve(&format, &quick());
        assert!(loss(&solved.decoded, &layer.weights, &ones, COLUMNS) > squares);
        assert!(solved.report.loss_refined < loss(&solution.decoded, &layer.weights, &layer.hessian, COLUMNS));
    }
}

#[test]
fn matrices_of_any_shape_are_solved() {
    for (rows, columns) in [(0, 24), (1, 24), (3, 24), (40, 1), (257, 7)] {
        let mut random = Random::new("shapes", "");
        let hessian = moments(columns, 60, &mut random);
        let factor = factor(&hessian, columns, 0.1, Order::Conditional);
        let moments = Moments { columns, hessian: &hessian, drift: None };
        let weights = weights(rows, columns, &mut random);
        let format = VectorFormat { norm: true, permuted: true, ..VectorFormat::plain(4, 16, 4, ScaleFormat::F16) };
        let linear = Linear { name: "", weights: &weights, rows, format: &format, arithmetic: ScaleFormat::F32 };
        for solution in
            [solve(&factor, &moments, &linear, &quick()).unwrap(), solve_nearest(&linear, columns, &quick()).unwrap()]
        {
            assert_eq!(solution.decoded.len(), rows * columns);
            assert!(solution.decoded.iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn constant_and_dead_columns_are_no_trouble() {
    let mut layer = Layer::new(64, "dead");
    for at in 0..COLUMNS * COLUMNS {
        if at / COLUMNS == 5 || at % COLUMNS == 5 {
            layer.hessian[at] = 0.0;
        }
    }
    layer.factor = factor(&layer.hessian, COLUMNS, 0.02, Order::Conditional);
    layer.weights.iter_mut().skip(7).step_by(COLUMNS).for_each(|weight| *weight = 0.25);
    layer.weights.iter_mut().skip(9).step_by(COLUMNS).for_each(|weight| *weight = 0.0);
    for format in formats() {
        let solution = layer.solve(&format, &quick());
        assert!(solution.decoded.iter().all(|value| value.is_finite()), "{}", format.name());
        assert_eq!(solution.report.deviations.get("dead-columns"), Some(&1));
    }
}

#[test]
fn what_cannot_be_solved_is_refused() {
    let layer = Layer::new(30, "refused");
    let format = formats()[0].clone();
    let linear = layer.linear(&format);
    let refused = |linear: &Linear| solve(&layer.factor, &layer.moments(), linear, &quick()).unwrap_err();
    let mut weights = layer.weights.clone();
    weights[2 * COLUMNS + 3] = f32::NAN;
    let error = refused(&Linear { weights: &weights, ..linear });
    assert!(matches!(error, SolveError::Codec(CodecError::NonFinite { row: 2, column: 3, .. })), "{error}");
    let error = refused(&Linear { weights: &layer.weights[1..], ..linear });
    assert_eq!(error, SolveError::Length { what: "weights", expected: 720, got: 719 });
    let wrong = VectorFormat { groups: 5, ..format.clone() };
    assert!(matches!(refused(&Linear { format: &wrong, ..linear }), SolveError::Codec(CodecError::Vector { .. })));
}

#[test]
fn chosen_formats_fit_and_small_matrices_get_small_codebooks() {
    let like = VectorFormat { norm: true, permuted: true, ..VectorFormat::plain(8, 256, 0, ScaleFormat::BF16) };
    for (rows, columns) in [(4096, 14336), (4096, 4096), (1024, 4096), (256, 256)] {
        let format = choose(&like, rows, columns, 2.3, 65536).unwrap();
        format.validate(rows, columns).unwrap();
        assert!(format.norm && format.permuted && format.bits_per_weight(rows, columns) <= 2.3, "{}", format.name());
        let codebook = ((format.centroids + format.residual_centroids) * format.vector_length * 16) as f64;
        let share = codebook / format.stored_bits(rows, columns) as f64;
        assert!(share < 0.35, "{rows} × {columns}: {} has codebooks of {share}", format.name());
        assert!(rows > 256 || format.centroids <= 256, "{}", format.name());
    }
    for bits in [1.5, 2.0, 3.0, 4.0] {
        let format = choose(&like, 4096, 4096, bits, 4096).unwrap();
        let got = format.bits_per_weight(4096, 4096);
        assert!(got <= bits && got > bits - 0.3, "{bits}: {} has {got}", format.name());
        assert!(format.centroids <= 4096 && format.residual_centroids <= format.centroids);
    }
    assert_eq!(choose(&like, 64, 64, 0.2, 65536), None);
}
