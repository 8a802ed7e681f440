//! Factors against definitions in F64 that are written differently: singular values, and losses as sums of eigenvalues.

use ndarray::{Array2, ArrayView2};

use super::{Linear, Method, Metric, Share, allocate, encode, energies, solve};
use crate::{
    codec::{CodecError, Factors, ScaleFormat},
    linalg::default_backend,
    passes::gptq::SolveError,
};

struct Case {
    rows: usize,
    columns: usize,
    weights: Vec<f32>,
    inputs: Array2<f64>,
}

impl Case {
    /// Weights whose rows and inputs whose channels differ in size; fewer tokens than channels make H singular.
    fn new(rows: usize, columns: usize, tokens: usize) -> Self {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 23) - 1.0
        };
        let weights = (0..rows * columns).map(|at| (next() / (1 + at / columns) as f64) as f32).collect();
        let inputs =
            Array2::from_shape_fn((tokens, columns), |(_, at)| next() * f64::from(1 + (at % 7) as u32).powi(2));
        Self { rows, columns, weights, inputs }
    }

    fn matrix(&self) -> Array2<f64> {
        let wide = self.weights.iter().copied().map(f64::from).collect();
        Array2::from_shape_vec((self.rows, self.columns), wide).unwrap()
    }

    fn moments(&self) -> Vec<f64> {
        self.inputs.t().dot(&self.inputs).iter().copied().collect()
    }

    fn magnitudes(&self) -> Vec<f32> {
        let tokens = self.inputs.nrows() as f64;
        self.inputs
            .columns()
            .into_iter()
            .map(|column| (column.iter().map(|x| x.abs()).sum::<f64>() / tokens) as f32)
            .collect()
    }

    /// ‖X (W − Ŵ)ᵀ‖².
    fn loss(&self, decoded: &[f32]) -> f64 {
        let wide: Vec<f64> = decoded.iter().copied().map(f64::from).collect();
        let decoded = Array2::from_shape_vec((self.rows, self.columns), wide).unwrap();
        self.inputs.dot(&(self.matrix() - decoded).t()).iter().map(|value| value * value).sum()
    }

    fn solved(&self, format: &Factors, method: Method, rotate: bool) -> (Vec<f32>, super::Solution) {
        let linear = Linear { name: "k", weights: &self.weights, columns: self.columns, format, rotate };
        let solution = solve(&linear, method, &self.moments(), &self.magnitudes()).unwrap();
        let stored: Vec<&[u8]> = solution.tensors.iter().map(Vec::as_slice).collect();
        (format.decode(self.rows, self.columns, &stored).unwrap(), solution)
    }
}

fn format(ranks: &[usize]) -> Factors {
    Factors { ranks: ranks.to_vec(), storage: ScaleFormat::F32, exact: false }
}

/// Squares of the singular values of `X W_gᵀ`: what output channels of a group of rows hold.
fn squares(case: &Case, rows: std::ops::Range<usize>) -> Vec<f64> {
    let outputs = case.inputs.dot(&case.matrix().slice(ndarray::s![rows, ..]).t());
    default_backend().thin_svd(outputs.view()).unwrap().values.iter().map(|value| value * value).collect()
}

#[test]
fn the_optimum_loses_what_it_drops_and_less_than_others() {
    for tokens in [400, 20] {
        let case = Case::new(24, 40, tokens);
        for ranks in [&[5][..], &[13], &[3, 6], &[1, 1, 1, 2]] {
            let height = case.rows / ranks.len();
            let dropped: f64 = ranks
                .iter()
                .enumerate()
                .map(|(group, rank)| squares(&case, group * height..(group + 1) * height)[*rank..].iter().sum::<f64>())
                .sum();
            let (optimal, solution) = case.solved(&format(ranks), Method::Optimal, false);
            let loss = case.loss(&optimal);
            assert!((loss / dropped - 1.0).abs() < 1e-4, "{ranks:?}: {loss} {dropped}");
            assert!((solution.report.loss_refined / loss - 1.0).abs() < 1e-4);
            let (svd, of_svd) = case.solved(&format(ranks), Method::Svd, false);
            assert!((solution.report.loss_nearest / case.loss(&svd) - 1.0).abs() < 1e-4);
            assert!((of_svd.report.loss_refined / of_svd.report.loss_nearest - 1.0).abs() < 1e-4);
            let (asvd, _) = case.solved(&format(ranks), Method::Asvd, false);
            assert!(loss < case.loss(&svd) && loss < case.loss(&asvd), "{loss}");
        }
    }
}

#[test]
fn svd_is_the_truncated_singular_value_decomposition() {
    let case = Case::new(12, 30, 50);
    let (scaled, _) = case.solved(&format(&[4]), Method::Svd, false);
    let linear = Linear { name: "k", weights: &case.weights, columns: 30, format: &format(&[4]), rotate: false };
    let stored = encode(&linear).unwrap();
    let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
    assert_eq!(format(&[4]).decode(12, 30, &stored).unwrap(), scaled);
    check_truncated(&case.matrix(), &scaled, 4, &[1.0; 30]);
}

#[test]
fn asvd_is_the_truncated_decomposition_of_scaled_channels() {
    let case = Case::new(12, 30, 50);
    let (scaled, _) = case.solved(&format(&[4]), Method::Asvd, false);
    let scales: Vec<f64> = case.magnitudes().iter().map(|x| (f64::from(*x) + 1e-6).sqrt()).collect();
    check_truncated(&case.matrix(), &scaled, 4, &scales);
}

/// Ŵ = `U_r` `Σ_r` `V_rᵀ` S⁻¹ with U Σ Vᵀ = W S.
fn check_truncated(weights: &Array2<f64>, decoded: &[f32], rank: usize, scales: &[f64]) {
    let scales = ArrayView2::from_shape((1, scales.len()), scales).unwrap();
    let svd = default_backend().thin_svd((weights * &scales).view()).unwrap();
    let kept = svd
        .left
        .slice(ndarray::s![.., ..rank])
        .dot(&ndarray::Array2::from_diag(&svd.values.slice(ndarray::s![..rank])));
    let expected = kept.dot(&svd.right.slice(ndarray::s![..rank, ..])) / scales;
    for (got, expected) in decoded.iter().zip(expected.iter()) {
        assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} {expected}");
    }
}

#[test]
fn rotated_latents_give_the_same_matrix_and_differ_less() {
    let case = Case::new(64, 80, 200);
    for rank in [16, 13, 20, 1] {
        let (plain, flat) = case.solved(&format(&[rank]), Method::Optimal, false);
        let (turned, spread) = case.solved(&format(&[rank]), Method::Optimal, true);
        let scale = plain.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        for (plain, turned) in plain.iter().zip(&turned) {
            assert!((plain - turned).abs() < 1e-5 * scale, "{rank}: {plain} {turned}");
        }
        let ratio = |stored: &[u8]| {
            let values: Vec<f64> =
                stored.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
            let a = Array2::from_shape_vec((rank, case.columns), values).unwrap();
            let energies: Vec<f64> =
                a.dot(&case.inputs.t()).rows().into_iter().map(|row| row.iter().map(|x| x * x).sum()).collect();
            energies.iter().copied().fold(0.0, f64::max) / energies.iter().copied().fold(f64::INFINITY, f64::min)
        };
        let (flat, spread) = (ratio(&flat.tensors[0]), ratio(&spread.tensors[0]));
        assert!(rank == 1 || spread < flat, "{rank}: {spread} of {flat}");
    }
}

#[test]
fn factors_stay_in_the_range_of_narrow_types() {
    for size in [1e-6_f32, 1.0, 1e4] {
        let mut case = Case::new(16, 32, 100);
        case.weights.iter_mut().for_each(|value| *value *= size);
        let format = Factors { storage: ScaleFormat::F16, ..format(&[16]) };
        let (decoded, _) = case.solved(&format, Method::Optimal, false);
        let error: f64 = case.loss(&decoded);
        let whole = case.loss(&vec![0.0; decoded.len()]);
        assert!(error < 1e-5 * whole, "{size}: {error} of {whole}");
    }
}

#[test]
fn an_exact_copy_is_the_matrix() {
    let case = Case::new(8, 8, 20);
    let format = Factors { exact: true, ..format(&[2]) };
    let linear = Linear { name: "k", weights: &case.weights, columns: 8, format: &format, rotate: false };
    assert_eq!(encode(&linear).unwrap()[2], format.stored(&case.weights));
}

#[test]
fn zeros_have_factors_and_what_is_not_finite_is_named() {
    let zeros = vec![0.0; 64];
    let format = format(&[2]);
    let linear = Linear { name: "k", weights: &zeros, columns: 8, format: &format, rotate: true };
    let solution = solve(&linear, Method::Optimal, &[0.0; 64], &[0.0; 8]).unwrap();
    let stored: Vec<&[u8]> = solution.tensors.iter().map(Vec::as_slice).collect();
    assert_eq!(format.decode(8, 8, &stored).unwrap(), zeros);
    let mut moments = [0.0; 64];
    moments[11] = f64::NAN;
    let wrong = solve(&linear, Method::Optimal, &moments, &[0.0; 8]);
    assert_eq!(wrong, Err(SolveError::NotFinite { row: 1, column: 3 }));
    let mut weights = zeros.clone();
    weights[9] = f32::INFINITY;
    let wrong = encode(&Linear { weights: &weights, ..linear });
    let expected = CodecError::NonFinite { row: 1, column: 1, value: f32::INFINITY };
    assert_eq!(wrong, Err(SolveError::Codec(expected)));
}

#[test]
fn energies_are_squares_of_singular_values() {
    let case = Case::new(12, 30, 50);
    let moments = case.moments();
    let found = energies(&case.weights, 30, 3, Metric::Moments(&moments)).unwrap();
    for (group, found) in found.iter().enumerate() {
        let expected = squares(&case, group * 4..group * 4 + 4);
        assert_eq!(found.len(), 4);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
        }
    }
}

#[test]
fn ranks_of_a_budget_are_the_best_of_all() {
    let shares = [
        Share { groups: vec![vec![8.0, 4.0, 1.0], vec![6.0, 0.5, 0.5]] },
        Share { groups: vec![vec![0.03, 0.02, 0.01]] },
    ];
    let kept = |ranks: &[Vec<usize>]| -> f64 {
        let share = |(share, ranks): (&Share, &Vec<usize>)| {
            let total: f64 = share.groups.iter().flatten().sum();
            share.groups.iter().zip(ranks).map(|(group, rank)| group[..*rank].iter().sum::<f64>() / total).sum::<f64>()
        };
        shares.iter().zip(ranks).map(share).sum()
    };
    for budget in 3..=9 {
        let ranks = allocate(&shares, budget).unwrap();
        assert_eq!(ranks.iter().flatten().sum::<usize>(), budget);
        let mut best = 0.0_f64;
        for (a, b, c) in (1..=3).flat_map(|a| (1..=3).flat_map(move |b| (1..=3).map(move |c| (a, b, c)))) {
            if a + b + c == budget {
                best = best.max(kept(&[vec![a, b], vec![c]]));
            }
        }
        assert!((kept(&ranks) - best).abs() < 1e-12, "{budget}: {ranks:?}");
    }
    assert_eq!(allocate(&shares, 2), None);
    assert_eq!(allocate(&shares, 100).unwrap(), [vec![3, 3], vec![3]]);
}
