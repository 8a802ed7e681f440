use super::{Plane, Share, Signs, decompose, pack, parametrization, scales, solve::descend, store};
use crate::{codec::Delta, forward::Matrix, reverse::Moment};

/// Standard normal numbers by Box and Muller, seeded.
fn normal(rows: usize, columns: usize, seed: u64) -> Matrix {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((state ^ (state >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    let mut value = || (-2.0 * uniform().ln()).sqrt() * (2.0 * std::f64::consts::PI * uniform()).cos();
    Matrix { rows, columns, values: (0..rows * columns).map(|_| value() as f32).collect() }
}

fn hessian(columns: usize) -> Vec<f64> {
    let x = normal(3 * columns, columns, 77);
    let mut hessian = vec![0.0; columns * columns];
    for token in 0..x.rows {
        for (i, a) in x.row(token).iter().enumerate() {
            for (j, b) in x.row(token).iter().enumerate() {
                hessian[i * columns + j] += f64::from(*a) * f64::from(*b) / (1.0 + (i + j) as f64);
            }
        }
    }
    hessian
}

fn squares(matrix: &Matrix) -> f64 {
    matrix.values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

fn rest(difference: &Matrix, planes: &[Plane]) -> Matrix {
    let mut rest = difference.clone();
    for (index, value) in rest.values.iter_mut().enumerate() {
        let (row, column) = (index / difference.columns, index % difference.columns);
        for plane in planes {
            *value -= if plane.signs.is_positive(row, column) { plane.scale(row) } else { -plane.scale(row) };
        }
    }
    rest
}

/// `tr(R H Rᵀ)` of the rows in `rows`.
fn output_error(rest: &Matrix, hessian: &[f64], rows: std::ops::Range<usize>) -> f64 {
    let columns = rest.columns;
    let mut sum = 0.0;
    for row in rows {
        for (i, a) in rest.row(row).iter().enumerate() {
            for (j, b) in rest.row(row).iter().enumerate() {
                sum += f64::from(*a) * hessian[i * columns + j] * f64::from(*b);
            }
        }
    }
    sum
}

#[test]
fn a_gaussian_difference_keeps_two_over_pi_of_its_energy() {
    let difference = normal(1000, 1000, 5);
    let planes = decompose(difference.clone(), 1, Share::Matrix, None);
    let relative = squares(&rest(&difference, &planes)) / squares(&difference);
    assert!((relative - (1.0 - 2.0 / std::f64::consts::PI)).abs() < 2e-3, "{relative}");
    // α is the mean magnitude, √(2/π).
    assert!((f64::from(planes[0].scales[0]) - (2.0 / std::f64::consts::PI).sqrt()).abs() < 2e-3);
}

#[test]
fn what_is_left_is_orthogonal_to_the_signs() {
    let difference = normal(37, 83, 6);
    let signs = Signs::of(37, 83, &difference.values);
    let sign = |index: usize| if signs.is_positive(index / 83, index % 83) { 1.0 } else { -1.0 };
    let whole = scales(&difference, &signs, Share::Matrix, None);
    let mean = difference.values.iter().map(|value| f64::from(value.abs())).sum::<f64>() / (37.0 * 83.0);
    assert!((whole[0] - mean).abs() < 1e-12);
    let rows = scales(&difference, &signs, Share::Row, None);
    let product = |row: usize, scale: f64| -> f64 {
        (row * 83..(row + 1) * 83).map(|i| (f64::from(difference.values[i]) - scale * sign(i)) * sign(i)).sum()
    };
    assert!((0..37).map(|row| product(row, whole[0])).sum::<f64>().abs() < 1e-9);
    for (row, scale) in rows.iter().enumerate() {
        assert!(product(row, *scale).abs() < 1e-10);
    }
}

#[test]
fn scales_under_second_moments_minimise_the_error_of_the_outputs() {
    let (rows, columns) = (70, 33);
    let (difference, hessian) = (normal(rows, columns, 8), hessian(columns));
    let signs = Signs::of(rows, columns, &difference.values);
    let error = |scales: &[f64], rows: std::ops::Range<usize>| {
        let plane = Plane { signs: signs.clone(), scales: scales.iter().map(|scale| *scale as f32).collect() };
        output_error(&rest(&difference, &[plane]), &hessian, rows)
    };
    for share in [Share::Matrix, Share::Row] {
        let best = scales(&difference, &signs, share, Some(&hessian));
        let plain = scales(&difference, &signs, share, None);
        assert_ne!(best, plain);
        for row in 0..if share == Share::Row { rows } else { 1 } {
            let range = if share == Share::Row { row..row + 1 } else { 0..rows };
            let least = error(&best, range.clone());
            for factor in [0.98, 1.02] {
                let other: Vec<f64> = best.iter().map(|scale| scale * factor).collect();
                assert!(error(&other, range.clone()) > least, "{share:?} {row}");
            }
            assert!(error(&plain, range) >= least, "{share:?} {row}");
        }
    }
}

#[test]
fn every_plane_takes_a_part_of_what_is_left() {
    let difference = normal(40, 70, 9);
    let planes = decompose(difference.clone(), 4, Share::Row, None);
    let mut before = squares(&difference);
    for count in 1..=4 {
        let left = squares(&rest(&difference, &planes[..count]));
        // ‖R − αS‖² = ‖R‖² − N α² for the best α.
        let taken: f64 = planes[count - 1].scales.iter().map(|scale| 70.0 * f64::from(*scale).powi(2)).sum();
        assert!((before - taken - left).abs() < 1e-5 * before, "{count}: {before} - {taken} is not {left}");
        assert!(taken > 0.3 * before);
        before = left;
    }
}

#[test]
fn a_difference_of_one_magnitude_is_exact_and_nothing_stays_nothing() {
    let values = (0..5 * 40).map(|i| if i % 3 == 0 { -0.25 } else { 0.25 }).collect();
    let difference = Matrix { rows: 5, columns: 40, values };
    let planes = decompose(difference.clone(), 1, Share::Matrix, None);
    assert!(rest(&difference, &planes).values.iter().all(|value| *value == 0.0));
    let zero = Matrix::zeros(5, 40);
    for hessian in [None, Some(vec![0.0; 1600])] {
        let planes = decompose(zero.clone(), 2, Share::Row, hessian.as_deref());
        assert!(planes.iter().all(|plane| plane.scales == [0.0; 5] && plane.signs.is_positive(4, 39)));
    }
    // Inputs that were never seen: as without moments.
    let planes = decompose(difference, 1, Share::Row, Some(&vec![0.0; 1600]));
    assert_eq!(planes[0].scales, [0.25; 5]);
}

#[test]
fn words_hold_columns_from_the_lowest_bit() {
    let mut values = vec![-1.0; 2 * 35];
    for column in [0, 33] {
        values[column] = 0.0;
    }
    values[35 + 31] = 2.0;
    let signs = Signs::of(2, 35, &values);
    assert_eq!(signs.words(), [1, 2, 1 << 31, 0]);
    assert_eq!(signs.transposed_words(), [1, 1 << 31, 2, 0]);
    assert_eq!(Signs::from_words(2, 35, signs.words().to_vec()), Some(signs.clone()));
    assert_eq!(Signs::from_words(2, 35, vec![0, 8, 0, 0]), None);
    assert_eq!(Signs::from_words(3, 35, signs.words().to_vec()), None);
    let mut row = [0_i8; 35];
    signs.fill(0, 1, -1, &mut row);
    assert!(row.iter().enumerate().all(|(column, sign)| (*sign == 1) == signs.is_positive(0, column)));
}

/// H as factors have it: single precision and damped.
fn damped(hessian: &[f64], columns: usize) -> (Vec<f64>, Vec<f32>) {
    let mut wide = hessian.to_vec();
    (0..columns).for_each(|at| wide[at * columns + at] += 0.1);
    let single: Vec<f32> = wide.iter().map(|moment| *moment as f32).collect();
    (single.iter().map(|moment| f64::from(*moment)).collect(), single)
}

#[test]
fn with_nothing_known_of_the_input_signs_and_scales_are_those_of_the_difference() {
    let (rows, columns) = (67, 40);
    let difference = normal(rows, columns, 10);
    let mut identity = vec![0.0_f32; columns * columns];
    (0..columns).for_each(|at| identity[at * columns + at] = 3.0);
    for share in [Share::Matrix, Share::Row] {
        let plain = decompose(difference.clone(), 1, share, None);
        let found = descend(&difference, &identity, 1, share, 5);
        assert_eq!(found[0].signs, plain[0].signs);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5 * b.abs();
        assert!(found[0].scales.iter().zip(&plain[0].scales).all(close), "{share:?}");
    }
}

#[test]
fn no_single_sign_and_no_scale_can_be_better() {
    let (rows, columns) = (70, 33);
    let difference = normal(rows, columns, 11);
    let (hessian, single) = damped(&hessian(columns), columns);
    for (planes, share) in [(1, Share::Row), (1, Share::Matrix), (2, Share::Row), (3, Share::Row)] {
        let found = descend(&difference, &single, planes, share, 50);
        let greedy = decompose(difference.clone(), planes, share, Some(&hessian));
        let all = output_error(&rest(&difference, &found), &hessian, 0..rows);
        let before = output_error(&rest(&difference, &greedy), &hessian, 0..rows);
        assert!(all < 0.95 * before, "{planes} {share:?}: {all} of {before}");
        for row in [0, 41, 69] {
            let error = |planes: &[Plane]| output_error(&rest(&difference, planes), &hessian, row..row + 1);
            let least = error(&found);
            for plane in 0..planes {
                for column in 0..columns {
                    let mut other = found.clone();
                    let sign = |at: usize| found[plane].signs.is_positive(at / columns, at % columns);
                    let flipped = (0..rows * columns).map(|at| sign(at) != (at == row * columns + column));
                    let values: Vec<f32> = flipped.map(|positive| if positive { 1.0 } else { -1.0 }).collect();
                    other[plane].signs = Signs::of(rows, columns, &values);
                    assert!(error(&other) >= least * (1.0 - 1e-5), "{planes} {share:?} {row} {plane} {column}");
                }
            }
        }
        // The residual is orthogonal to every plane's signs under H, in each row or in all rows together.
        let left = rest(&difference, &found);
        for (plane, Plane { signs, scales }) in found.iter().enumerate() {
            let products: Vec<f64> = (0..rows)
                .map(|row| {
                    let sign = |column| if signs.is_positive(row, column) { 1.0 } else { -1.0 };
                    let along = |i: usize| (0..columns).map(|j| hessian[i * columns + j] * sign(j)).sum::<f64>();
                    (0..columns).map(|i| f64::from(left.row(row)[i]) * along(i)).sum()
                })
                .collect();
            let scale = before / f64::from(scales[0]).abs();
            match share {
                Share::Row => assert!(products.iter().all(|sum| sum.abs() < 1e-4 * scale), "{planes} {plane}"),
                Share::Matrix => assert!(products.iter().sum::<f64>().abs() < 1e-4 * scale, "{planes} {plane}"),
            }
        }
    }
}

#[test]
fn trained_scales_are_stored_and_read_back() {
    let difference = normal(7, 43, 12);
    for share in [Share::Matrix, Share::Row] {
        let delta = Delta { planes: 2, share };
        let stored = pack(&decompose(difference.clone(), 2, share, None));
        let (made, start) = parametrization(&delta, 7, 43, &stored).unwrap();
        assert_eq!((made.shape(), made.parameters()), ((7, 43), start.len()));
        // In units of the mean: one step of a rate moves all scales by the same share.
        assert!((start.iter().sum::<f32>() / start.len() as f32 - 1.0).abs() < 1e-5);
        let decoded =
            |stored: &[Vec<u8>]| delta.decode(7, 43, &stored.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&decoded(&store(&stored, &start)), &decoded(&stored)));
        let moved: Vec<f32> = start.iter().enumerate().map(|(at, value)| value * (0.5 + at as f32)).collect();
        let weight = made.weight(&moved, Matrix::zeros(7, 43).into(), Moment::default());
        assert!(close(&weight.values, &decoded(&store(&stored, &moved))));
        assert!(parametrization(&delta, 7, 50, &stored).is_none());
    }
}
