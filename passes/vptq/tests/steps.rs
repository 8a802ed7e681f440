//! Sweep, descent and refit against slow ones in F64.

use super::fixtures::{factor, formats, identity, loss, moments, normal, weights};
use crate::{
    codec::{ScaleFormat, VectorFormat},
    passes::{
        gptq::{Factor, Order},
        vptq::{
            book::Book,
            descent,
            problem::{Codes, Problem, searchers},
            random::Random,
            refit::Refit,
            sweep,
        },
    },
};

const COLUMNS: usize = 24;

/// Codebooks of the right size without any care.
fn books(problem: &Problem, random: &mut Random) -> Vec<Book> {
    let format = problem.format;
    let spread = if format.norm { 1.0 } else { 0.06 };
    let mut numbers =
        |count: usize, spread: f64| -> Vec<f32> { (0..count).map(|_| (normal(random) * spread) as f32).collect() };
    (0..problem.books())
        .map(|book| {
            let length = problem.length(book);
            let apart = book == format.groups;
            let count = if apart { format.outliers.unwrap().centroids } else { format.centroids };
            let residuals = if apart { 0 } else { format.residual_centroids };
            Book { length, main: numbers(count * length, spread), residual: numbers(residuals * length, spread * 0.3) }
        })
        .collect()
}

/// The matrix that codes stand for, padding cut off.
fn decoded(problem: &Problem, books: &[Book], codes: &[Codes]) -> Vec<f32> {
    let mut matrix = vec![0.0; problem.rows * problem.columns];
    for (chunk, codes) in codes.iter().enumerate() {
        let mut values = vec![0.0; problem.lanes_of(chunk)];
        for column in 0..problem.columns {
            problem.decode(books, codes, column, &mut values);
            for (lane, value) in values[..problem.rows_of(chunk)].iter().enumerate() {
                matrix[(chunk * problem.chunk_rows + lane) * problem.columns + column] = *value;
            }
        }
    }
    matrix
}

struct Case {
    format: VectorFormat,
    target: Vec<f32>,
    rows: usize,
    hessian: Vec<f64>,
}

impl Case {
    fn all(rows: usize, hessian: impl Fn(&mut Random) -> Vec<f64>) -> Vec<Self> {
        let case = |format: VectorFormat| {
            let mut random = Random::new(&format.name(), "case");
            Self { target: weights(rows, COLUMNS, &mut random), rows, hessian: hessian(&mut random), format }
        };
        formats().into_iter().map(case).collect()
    }

    fn problem(&self) -> Problem<'_> {
        let diagonal: Vec<f64> = (0..COLUMNS).map(|column| self.hessian[column * (COLUMNS + 1)]).collect();
        Problem::new(&self.format, &self.target, self.rows, COLUMNS, &diagonal)
    }
}

fn damped(factor: &Factor) -> Vec<f64> {
    factor.hessian.iter().map(|value| f64::from(*value)).collect()
}

fn swept(problem: &Problem, factor: &Factor, books: &[Book], block: usize) -> Vec<Codes> {
    let searchers = searchers(books, usize::MAX);
    (0..problem.chunks()).map(|chunk| sweep::sweep(problem, factor, books, &searchers, chunk, block)).collect()
}

#[test]
fn without_correlations_the_sweep_finds_the_nearest_codes() {
    for case in Case::all(150, |_| identity(COLUMNS)) {
        let problem = case.problem();
        let books = books(&problem, &mut Random::new("books", ""));
        let searchers = searchers(&books, 4);
        let factor = factor(&case.hessian, COLUMNS, 0.01, Order::Activation);
        for chunk in 0..problem.chunks() {
            let swept = sweep::sweep(&problem, &factor, &books, &searchers, chunk, 7);
            let nearest = sweep::nearest(&problem, &searchers, chunk, problem.target_of(chunk));
            assert!(nearest.first.iter().any(|index| *index > 0));
            assert_eq!(swept, nearest, "{}", case.format.name());
        }
    }
}

fn inverse(matrix: &[f64], order: usize) -> Vec<f64> {
    let (mut left, mut right) = (matrix.to_vec(), identity(order));
    for pivot in 0..order {
        let scale = 1.0 / left[pivot * order + pivot];
        for k in 0..order {
            left[pivot * order + k] *= scale;
            right[pivot * order + k] *= scale;
        }
        for row in (0..order).filter(|row| *row != pivot) {
            let by = left[row * order + pivot];
            for k in 0..order {
                left[row * order + k] -= by * left[pivot * order + k];
                right[row * order + k] -= by * right[pivot * order + k];
            }
        }
    }
    right
}

/// Optimal brain quantization in the factor's order: after each column the inverse of what is left of H is made anew.
fn reference_sweep(problem: &Problem, factor: &Factor, books: &[Book], target: &[f32]) -> Vec<f32> {
    let rows = problem.rows;
    let hessian = damped(factor);
    let mut work: Vec<f64> = target.iter().map(|value| f64::from(*value)).collect();
    let mut out = vec![0.0; rows * COLUMNS];
    for place in 0..COLUMNS {
        let left = &factor.permutation[place..];
        let of_left = |i: usize, j: usize| hessian[left[i] * COLUMNS + left[j]];
        let part: Vec<f64> = (0..left.len().pow(2)).map(|at| of_left(at / left.len(), at % left.len())).collect();
        let inverse = inverse(&part, left.len());
        let info = problem.column[left[0]];
        let (book, scale, bias) = (&books[info.book], f64::from(info.scale), f64::from(info.bias));
        for vector in 0..rows.div_ceil(book.length) {
            let lanes: Vec<usize> = (vector * book.length..rows.min((vector + 1) * book.length)).collect();
            let mut best = (f64::INFINITY, Vec::new());
            for main in book.main.chunks(book.length) {
                let nothing = vec![0.0; book.length];
                let residuals: Vec<&[f32]> =
                    if book.residual.is_empty() { vec![&nothing] } else { book.residual.chunks(book.length).collect() };
                for residual in residuals {
                    let values: Vec<f64> = main
                        .iter()
                        .zip(residual)
                        .map(|(a, b)| (f64::from(*a) + f64::from(*b)) * scale + bias)
                        .collect();
                    let distance: f64 = lanes
                        .iter()
                        .zip(&values)
                        .map(|(row, value)| (work[row * COLUMNS + left[0]] - value).powi(2))
                        .sum();
                    if distance < best.0 {
                        best = (distance, values);
                    }
                }
            }
            for (row, value) in lanes.iter().zip(&best.1) {
                out[row * COLUMNS + left[0]] = *value as f32;
                let error = (work[row * COLUMNS + left[0]] - value) / inverse[0];
                for (index, column) in left.iter().enumerate() {
                    work[row * COLUMNS + column] -= error * inverse[index];
                }
            }
        }
    }
    out
}

#[test]
fn the_sweep_is_optimal_brain_quantization() {
    // Whole vectors, for what lies beyond the matrix counts in one and not in the other.
    for case in Case::all(96, |random| moments(COLUMNS, 100, random)) {
        let problem = case.problem();
        let books = books(&problem, &mut Random::new("books", ""));
        for (order, block) in [(Order::None, 5), (Order::Conditional, 128)] {
            let factor = factor(&case.hessian, COLUMNS, 0.02, order);
            let found = decoded(&problem, &books, &swept(&problem, &factor, &books, block));
            let expected = reference_sweep(&problem, &factor, &books, &case.target);
            let same = found.iter().zip(&expected).filter(|(a, b)| (**a - **b).abs() < 1e-5).count();
            assert!(same * 1000 >= found.len() * 990, "{}: {same} of {}", case.format.name(), found.len());
            let hessian = damped(&factor);
            let [got, wanted] = [&found, &expected].map(|values| loss(values, &case.target, &hessian, COLUMNS));
            assert!((got - wanted).abs() < 0.01 * wanted, "{}: {got} {wanted}", case.format.name());
        }
    }
}

#[test]
fn descent_gains_what_it_says() {
    for case in Case::all(96, |random| moments(COLUMNS, 100, random)) {
        let problem = case.problem();
        let books = books(&problem, &mut Random::new("books", ""));
        let factor = factor(&case.hessian, COLUMNS, 0.02, Order::None);
        let hessian = damped(&factor);
        let searchers = searchers(&books, 4);
        let mut codes: Vec<Codes> = (0..problem.chunks())
            .map(|chunk| sweep::nearest(&problem, &searchers, chunk, problem.target_of(chunk)))
            .collect();
        let mut before = loss(&decoded(&problem, &books, &codes), &case.target, &hessian, COLUMNS);
        for round in 0..4 {
            let gained: f64 = codes
                .iter_mut()
                .enumerate()
                .map(|(chunk, codes)| descent::descend(&problem, &factor, &books, &searchers, chunk, codes))
                .sum();
            let after = loss(&decoded(&problem, &books, &codes), &case.target, &hessian, COLUMNS);
            assert!(gained >= 0.0 && after <= before * (1.0 + 1e-6), "{}: {before} {after}", case.format.name());
            assert!((before - after - gained).abs() < 1e-4 * before, "{}: {gained}", case.format.name());
            assert!(round > 0 || gained > 0.05 * before, "{}: {gained} of {before}", case.format.name());
            before = after;
        }
    }
}

/// The least loss that any centroids reach with these codes: the loss is a quadratic form of them, whose parts are found by
/// evaluating it, and whose minimum is found by eigenvalues.
fn least_loss(problem: &Problem, books: &[Book], codes: &[Codes], target: &[f32], hessian: &[f64]) -> f64 {
    // Decoded weights for all centroids zero, and what each number of the codebooks adds.
    let with = |set: &dyn Fn(usize) -> f32| {
        let mut books = books.to_vec();
        let mut index = 0;
        for book in &mut books {
            for value in book.main.iter_mut().chain(&mut book.residual) {
                *value = set(index);
                index += 1;
            }
        }
        (decoded(problem, &books, codes), index)
    };
    let (zero, count) = with(&|_| 0.0);
    let constant: Vec<f64> = zero.iter().zip(target).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let parts: Vec<Vec<f64>> = (0..count)
        .map(|at| {
            // A large step, so that rounding next to the bias does not matter.
            let (values, _) = with(&|index| if index == at { 1024.0 } else { 0.0 });
            values.iter().zip(&zero).map(|(a, b)| (f64::from(*a) - f64::from(*b)) / 1024.0).collect()
        })
        .collect();
    let product = |a: &[f64], b: &[f64]| -> f64 {
        let mut sum = 0.0;
        for (a, b) in a.chunks(COLUMNS).zip(b.chunks(COLUMNS)) {
            for i in (0..COLUMNS).filter(|i| a[*i] != 0.0) {
                sum += a[i] * (0..COLUMNS).map(|j| hessian[i * COLUMNS + j] * b[j]).sum::<f64>();
            }
        }
        sum
    };
    let normal = ndarray::Array2::from_shape_fn((count, count), |(i, j)| product(&parts[i], &parts[j]));
    let slope: Vec<f64> = parts.iter().map(|part| product(part, &constant)).collect();
    let eigen = crate::linalg::default_backend().symmetric_eigen(normal.view()).unwrap();
    let largest = eigen.values.iter().copied().fold(0.0, f64::max);
    let mut least = product(&constant, &constant);
    for (value, vector) in eigen.values.iter().zip(eigen.vectors.columns()) {
        if *value > largest * 1e-10 {
            let along: f64 = vector.iter().zip(&slope).map(|(v, s)| v * s).sum();
            least -= along * along / value;
        }
    }
    least
}

#[test]
fn refitted_centroids_are_those_of_least_squares() {
    for case in Case::all(48, |random| moments(COLUMNS, 100, random)) {
        let problem = case.problem();
        let given = books(&problem, &mut Random::new("books", ""));
        let factor = factor(&case.hessian, COLUMNS, 0.02, Order::None);
        let hessian = damped(&factor);
        let codes = swept(&problem, &factor, &given, 128);
        let refit = Refit { problem: &problem, factor: &factor, codes: &codes };
        let slow = |books: &[Book]| loss(&decoded(&problem, books, &codes), &case.target, &hessian, COLUMNS);
        let least = least_loss(&problem, &given, &codes, &case.target, &hessian);
        let name = case.format.name();
        let mut before = slow(&given);
        for steps in [0, 1, 2, 4, 8, 300] {
            let (books, at_start) = refit.run(&given, steps);
            assert!((at_start - slow(&given)).abs() < 1e-4 * at_start, "{name}");
            let after = slow(&books);
            assert!((refit.loss(&books) - after).abs() < 1e-4 * at_start, "{name}");
            assert!(after <= before * (1.0 + 1e-6), "{name}, {steps} steps: {before} {after}");
            before = after;
        }
        assert!(before <= least * 1.002 + 1e-5 * slow(&given), "{name}: {before} instead of {least}");
        assert!(before < 0.9 * slow(&given), "{name}: {before} of {}", slow(&given));
    }
}

#[test]
fn centroids_that_nothing_is_stored_as_stay() {
    let mut random = Random::new("unused", "");
    let format = VectorFormat::plain(2, 8, 0, ScaleFormat::F32);
    let target = weights(20, COLUMNS, &mut random);
    let problem = Problem::new(&format, &target, 20, COLUMNS, &[1.0; COLUMNS]);
    let mut given = books(&problem, &mut random);
    given[0].main[14..].fill(1e6);
    let factor = factor(&moments(COLUMNS, 80, &mut random), COLUMNS, 0.1, Order::None);
    let codes = swept(&problem, &factor, &given, 128);
    let (found, _) = Refit { problem: &problem, factor: &factor, codes: &codes }.run(&given, 10);
    assert_eq!(found[0].main[14..], [1e6; 2]);
    assert_ne!(found[0].main[..14], given[0].main[..14]);
}
