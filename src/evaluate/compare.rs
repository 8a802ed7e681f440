//! How far one tensor is from another, both read as dense rows.

use super::{ErrorSums, stripes::map_stripes};
use crate::codec::{CodecError, RowSource};

/// Measures `decoded` against `source`, stripe by stripe on all cores; the same sums for any number of threads.
///
/// # Errors
/// [`CodecError`] when the two differ in shape, or either cannot be read.
pub fn compare(source: &dyn RowSource, decoded: &dyn RowSource) -> Result<ErrorSums, CodecError> {
    let columns = source.columns();
    if decoded.columns() != columns {
        return Err(CodecError::Length { what: "columns", expected: columns, got: decoded.columns() });
    }
    if decoded.rows() != source.rows() {
        return Err(CodecError::Length { what: "rows", expected: source.rows(), got: decoded.rows() });
    }
    let sums = map_stripes(source.rows(), columns, |rows| {
        let mut expected = vec![0.0; rows.len() * columns];
        let mut got = vec![0.0; rows.len() * columns];
        source.read_rows(rows.start, &mut expected)?;
        decoded.read_rows(rows.start, &mut got)?;
        source.release_rows(rows.clone());
        decoded.release_rows(rows);
        let mut sums = ErrorSums::default();
        for (expected, got) in expected.chunks(columns.max(1)).zip(got.chunks(columns.max(1))) {
            sums.accumulate_row(expected, got);
        }
        Ok(sums)
    })?;
    Ok(sums.iter().fold(ErrorSums::default(), |mut total, stripe| {
        total.merge(stripe);
        total
    }))
}

#[cfg(test)]
mod tests {
    use super::compare;
    use crate::{codec::CodecError, evaluate::test_matrix::Matrix};

    #[test]
    fn figures_agree_with_the_definition_over_several_stripes() {
        let (rows, columns) = (1500, 600);
        let source = Matrix::new(rows, columns, |i| ((i * 37 % 1001) as f32 - 500.0) / 250.0);
        let decoded = Matrix::new(rows, columns, |i| ((i * 37 % 1001) as f32 - 500.0) / 250.0 + (i % 3) as f32 * 0.01);
        let figures = compare(&source, &decoded).unwrap().figures();
        let mut error = 0.0_f64;
        let mut signal = 0.0_f64;
        for (&w, &d) in source.values.iter().zip(&decoded.values) {
            error += (f64::from(d) - f64::from(w)).powi(2);
            signal += f64::from(w).powi(2);
        }
        assert!((figures.relative / (error / signal).sqrt() - 1.0).abs() < 1e-5);
        assert!((figures.max_abs - 0.02).abs() < 1e-6);
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let source = Matrix::new(3000, 700, |i| (i as f32 * 0.37).sin());
        let decoded = Matrix::new(3000, 700, |i| (i as f32 * 0.37).sin() * 1.01);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| compare(&source, &decoded).unwrap())
        };
        assert_eq!(with(1), with(7));
    }

    #[test]
    fn different_shapes_are_refused() {
        let (a, b) = (Matrix::new(2, 3, |_| 0.0), Matrix::new(3, 2, |_| 0.0));
        assert!(matches!(compare(&a, &b), Err(CodecError::Length { what: "columns", expected: 3, got: 2 })));
        let c = Matrix::new(3, 3, |_| 0.0);
        assert!(matches!(compare(&a, &c), Err(CodecError::Length { what: "rows", expected: 2, got: 3 })));
    }
}
