//! The same tests for every backend, against known answers and products computed with plain loops.

use ndarray::{Array2, array};

use super::{DecompositionError, Decompositions, Faer, SymmetricEigen, ThinSvd, default_backend};

/// Largest accepted difference per unit of the matrix's norm and square root of its order: a few hundred roundings.
const TOLERANCE: f64 = 1e-13;

fn backends() -> Vec<&'static dyn Decompositions> {
    vec![
        &Faer,
        #[cfg(feature = "blas")]
        &super::Lapack,
    ]
}

/// Deterministic numbers in [−1, 1).
fn noise(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    Array2::from_shape_simple_fn((rows, columns), || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    })
}

/// The product by the schoolbook's three loops, independent of any library.
fn product(a: &Array2<f64>, b: &Array2<f64>) -> Array2<f64> {
    Array2::from_shape_fn((a.nrows(), b.ncols()), |(row, column)| {
        (0..a.ncols()).map(|inner| a[[row, inner]] * b[[inner, column]]).sum()
    })
}

fn transposed(a: &Array2<f64>) -> Array2<f64> {
    a.t().to_owned()
}

fn assert_close(actual: &Array2<f64>, expected: &Array2<f64>, context: &str) {
    assert_eq!(actual.dim(), expected.dim(), "{context}");
    let norm = expected.iter().map(|value| value * value).sum::<f64>().sqrt().max(1.0);
    let bound = TOLERANCE * norm * (expected.nrows().max(expected.ncols()) as f64).sqrt();
    for (index, value) in actual.indexed_iter() {
        let difference = (value - expected[index]).abs();
        assert!(difference <= bound, "{context}: {value} is not {} at {index:?} (bound {bound:e})", expected[index]);
    }
}

fn assert_orthonormal_columns(vectors: &Array2<f64>, context: &str) {
    assert_close(&product(&transposed(vectors), vectors), &Array2::eye(vectors.ncols()), context);
}

fn assert_signs(vectors: &Array2<f64>, context: &str) {
    for column in vectors.columns() {
        let largest =
            column.iter().copied().fold(0.0_f64, |best, value| if value.abs() > best.abs() { value } else { best });
        assert!(largest > 0.0, "{context}: a vector's largest component is {largest}");
    }
}

fn with_diagonal(values: &[f64]) -> Array2<f64> {
    let mut matrix = Array2::zeros((values.len(), values.len()));
    matrix.diag_mut().assign(&ndarray::ArrayView1::from(values));
    matrix
}

fn rebuilt_from_eigen(eigen: &SymmetricEigen) -> Array2<f64> {
    let diagonal = with_diagonal(&eigen.values.to_vec());
    product(&product(&eigen.vectors, &diagonal), &transposed(&eigen.vectors))
}

fn rebuilt_from_svd(svd: &ThinSvd) -> Array2<f64> {
    product(&product(&svd.left, &with_diagonal(&svd.values.to_vec())), &svd.right)
}

#[test]
fn cholesky_of_a_known_matrix() {
    let matrix = array![[4.0, 12.0, -16.0], [12.0, 37.0, -43.0], [-16.0, -43.0, 98.0]];
    let expected = array![[2.0, 0.0, 0.0], [6.0, 1.0, 0.0], [-8.0, 5.0, 3.0]];
    for backend in backends() {
        assert_close(&backend.cholesky(matrix.view()).unwrap(), &expected, backend.name());
    }
}

#[test]
fn cholesky_multiplies_back_and_is_lower() {
    for backend in backends() {
        for order in [1, 2, 7, 64, 131] {
            let root = noise(order, order + 3, order as u64);
            let mut matrix = product(&root, &transposed(&root));
            matrix.diag_mut().mapv_inplace(|value| value + 0.1);
            let context = format!("{} of order {order}", backend.name());
            let lower = backend.cholesky(matrix.view()).unwrap();
            assert_close(&product(&lower, &transposed(&lower)), &matrix, &context);
            assert!(lower.indexed_iter().all(|((row, column), &value)| column <= row || value == 0.0), "{context}");
            assert!(lower.diag().iter().all(|&value| value > 0.0), "{context}");
        }
    }
}

#[test]
fn only_the_lower_triangle_is_read_in_either_memory_order() {
    let clean = array![[4.0, 2.0], [2.0, 3.0]];
    let soiled = array![[4.0, f64::NAN], [2.0, 3.0]];
    let column_major = Array2::from_shape_vec(ndarray::ShapeBuilder::f((2, 2)), vec![4.0, 2.0, f64::NAN, 3.0]).unwrap();
    for backend in backends() {
        for view in [soiled.view(), column_major.view()] {
            assert_eq!(backend.cholesky(view).unwrap(), backend.cholesky(clean.view()).unwrap(), "{}", backend.name());
            let eigen = backend.symmetric_eigen(view).unwrap();
            assert_eq!(eigen, backend.symmetric_eigen(clean.view()).unwrap(), "{}", backend.name());
        }
    }
}

#[test]
fn cholesky_names_the_pivot_that_is_not_positive() {
    let mut rank_two = product(&noise(5, 2, 3), &transposed(&noise(5, 2, 3)));
    rank_two[[2, 2]] -= 1.0;
    for backend in backends() {
        for (matrix, pivot) in [
            (with_diagonal(&[1.0, 2.0, -1.0, 4.0]), 2),
            (with_diagonal(&[0.0, 1.0]), 0),
            (array![[1.0, 2.0], [2.0, 1.0]], 1),
            (Array2::zeros((3, 3)), 0),
            (rank_two.clone(), 2),
        ] {
            let refusal = backend.cholesky(matrix.view()).unwrap_err();
            assert_eq!(refusal, DecompositionError::NotPositiveDefinite { pivot }, "{}", backend.name());
        }
    }
}

#[test]
fn eigenvalues_of_a_known_matrix() {
    // The second difference matrix of order n has the eigenvalues 2 − 2 cos(k π / (n + 1)).
    let order = 9;
    let matrix = Array2::from_shape_fn((order, order), |(row, column)| match row.abs_diff(column) {
        0 => 2.0,
        1 => -1.0,
        _ => 0.0,
    });
    for backend in backends() {
        let eigen = backend.symmetric_eigen(matrix.view()).unwrap();
        for (index, value) in eigen.values.iter().enumerate() {
            let expected = 2.0 - 2.0 * (std::f64::consts::PI * (index + 1) as f64 / (order + 1) as f64).cos();
            assert!((value - expected).abs() < 1e-13, "{}: {value} is not {expected}", backend.name());
        }
    }
}

#[test]
fn eigenvectors_rebuild_the_matrix() {
    for backend in backends() {
        for order in [1, 2, 33, 100] {
            let root = noise(order, order, 7 + order as u64);
            let matrix = &root + &root.t();
            let context = format!("{} of order {order}", backend.name());
            let eigen = backend.symmetric_eigen(matrix.view()).unwrap();
            assert!(eigen.values.windows(2).into_iter().all(|pair| pair[0] <= pair[1]), "{context}");
            assert_orthonormal_columns(&eigen.vectors, &context);
            assert_close(&rebuilt_from_eigen(&eigen), &matrix, &context);
            assert_signs(&eigen.vectors, &context);
        }
    }
}

#[test]
fn singular_values_of_a_known_matrix() {
    let matrix = array![[3.0, 0.0], [4.0, 5.0]];
    for backend in backends() {
        let svd = backend.thin_svd(matrix.view()).unwrap();
        assert!((svd.values[0] - 45.0_f64.sqrt()).abs() < 1e-14, "{}: {}", backend.name(), svd.values);
        assert!((svd.values[1] - 5.0_f64.sqrt()).abs() < 1e-14, "{}: {}", backend.name(), svd.values);
        let half = std::f64::consts::FRAC_1_SQRT_2;
        assert_close(&svd.right.slice(ndarray::s![0..1, ..]).to_owned(), &array![[half, half]], backend.name());
    }
}

#[test]
fn thin_svd_rebuilds_matrices_of_any_shape() {
    for backend in backends() {
        for (rows, columns) in [(1, 1), (1, 9), (9, 1), (40, 17), (17, 40), (64, 64)] {
            let matrix = noise(rows, columns, (rows * 100 + columns) as u64);
            let context = format!("{} of {rows} × {columns}", backend.name());
            let svd = backend.thin_svd(matrix.view()).unwrap();
            assert_eq!(svd.values.len(), rows.min(columns), "{context}");
            assert!(svd.values.windows(2).into_iter().all(|pair| pair[0] >= pair[1]), "{context}");
            assert!(svd.values.iter().all(|&value| value >= 0.0), "{context}");
            assert_orthonormal_columns(&svd.left, &context);
            assert_orthonormal_columns(&transposed(&svd.right), &context);
            assert_close(&rebuilt_from_svd(&svd), &matrix, &context);
            assert_signs(&svd.left, &context);
        }
    }
}

#[test]
fn degenerate_matrices_still_give_orthonormal_vectors() {
    let rank_one = product(&noise(12, 1, 5), &noise(1, 12, 6));
    let scaled = noise(12, 12, 8).mapv(|value| value * 1e-160);
    for backend in backends() {
        for (name, matrix) in [
            ("zero", Array2::zeros((12, 12))),
            ("identity", Array2::eye(12)),
            ("rank one", rank_one.clone()),
            ("tiny", scaled.clone()),
        ] {
            let context = format!("{} of {name}", backend.name());
            let svd = backend.thin_svd(matrix.view()).unwrap();
            assert_orthonormal_columns(&svd.left, &context);
            assert_orthonormal_columns(&transposed(&svd.right), &context);
            assert_close(&rebuilt_from_svd(&svd), &matrix, &context);
            let symmetric = &matrix + &matrix.t();
            let eigen = backend.symmetric_eigen(symmetric.view()).unwrap();
            assert_orthonormal_columns(&eigen.vectors, &context);
            assert_close(&rebuilt_from_eigen(&eigen), &symmetric, &context);
        }
        let tiny = backend.thin_svd(scaled.view()).unwrap();
        let restored = rebuilt_from_svd(&tiny).mapv(|value| value * 1e160);
        assert_close(&restored, &scaled.mapv(|value| value * 1e160), "the tiny matrix, scaled up again");
    }
}

#[test]
fn empty_matrices_have_empty_decompositions() {
    for backend in backends() {
        assert_eq!(backend.cholesky(Array2::zeros((0, 0)).view()).unwrap().dim(), (0, 0));
        assert_eq!(backend.symmetric_eigen(Array2::zeros((0, 0)).view()).unwrap().values.len(), 0);
        for (rows, columns) in [(0, 0), (0, 3), (3, 0)] {
            let svd = backend.thin_svd(Array2::zeros((rows, columns)).view()).unwrap();
            assert_eq!((svd.left.dim(), svd.right.dim()), ((rows, 0), (0, columns)), "{}", backend.name());
        }
    }
}

#[test]
fn wrong_shapes_and_values_are_refused() {
    let mut infinite = Array2::eye(4);
    infinite[[3, 1]] = f64::INFINITY;
    for backend in backends() {
        let wide = Array2::<f64>::zeros((2, 3));
        let not_square = DecompositionError::NotSquare { rows: 2, columns: 3 };
        assert_eq!(backend.cholesky(wide.view()).unwrap_err(), not_square);
        assert_eq!(backend.symmetric_eigen(wide.view()).unwrap_err(), not_square);
        let not_finite = DecompositionError::NotFinite { row: 3, column: 1 };
        assert_eq!(backend.cholesky(infinite.view()).unwrap_err(), not_finite);
        assert_eq!(backend.symmetric_eigen(infinite.view()).unwrap_err(), not_finite);
        assert_eq!(backend.thin_svd(infinite.view()).unwrap_err(), not_finite);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let root = noise(90, 90, 11);
    let matrix = &root + &root.t();
    for backend in backends() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (backend.symmetric_eigen(matrix.view()).unwrap(), backend.thin_svd(root.view()).unwrap()))
        };
        assert_eq!(run(1), run(4), "{}", backend.name());
    }
}

#[test]
fn the_default_backend_is_the_one_of_the_build() {
    assert_eq!(default_backend().name(), if cfg!(feature = "blas") { "lapack" } else { "faer" });
}
