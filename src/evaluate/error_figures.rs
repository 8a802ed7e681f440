//! How far a coded matrix is from its source.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use crate::codec::{Codec, CodecError, CodedRows, MatrixParameters, RowSource};

/// Error figures of one tensor, as written to manifests. Never not-a-number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ErrorFigures {
    /// Relative Frobenius error ‖Ŵ − W‖ / ‖W‖. 0 when both are zero or empty; infinite (written as `null`) when only the
    /// source is zero, or when a decoded weight is not finite.
    #[serde(with = "null_is_infinite")]
    pub relative: f64,
    /// Signal-to-noise ratio 10·log10(‖W‖² / ‖Ŵ − W‖²) in dB; `null` when exact, or when `relative` is infinite.
    pub snr_db: Option<f64>,
    /// Largest |Ŵ − W|; infinite (written as `null`) when a decoded weight is not finite.
    #[serde(with = "null_is_infinite")]
    pub max_abs: f64,
    /// Cosine of the angle between W and Ŵ as vectors: 1 when exact (also when both are zero), 0 when one is zero or not finite.
    pub cosine: f64,
}

/// JSON has no infinity.
mod null_is_infinite {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
    }
}

/// Sums from which the figures follow; added up stripe by stripe in a fixed order, so that they are the same for any
/// number of threads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ErrorSums {
    /// Σ w².
    pub source_squares: f64,
    /// Σ ŵ².
    pub decoded_squares: f64,
    /// Σ w·ŵ.
    pub products: f64,
    /// Σ (ŵ − w)².
    pub error_squares: f64,
    /// max |ŵ − w|.
    pub max_abs: f32,
}

/// Weights whose products are summed in F32 before they go into F64: 64 a lane, which costs no more than 2⁻¹⁸ of a sum.
const BLOCK: usize = 1024;
/// Independent partial sums of a block; fixed, so that every instruction set adds in the same order.
const LANES: usize = 16;
/// Below this a sum of squares of a block may have lost digits to underflow, above its inverse to overflow.
const SMALLEST_SAFE: f32 = 1e-28;

impl ErrorSums {
    /// Adds one row: `source` and `decoded` are the same weights before and after.
    ///
    /// # Panics
    /// Panics when the rows differ in length.
    pub fn accumulate_row(&mut self, source: &[f32], decoded: &[f32]) {
        assert_eq!(source.len(), decoded.len(), "one decoded weight per weight");
        accumulate(self, source, decoded);
    }

    /// Adds the sums of other rows. Rounding depends on the order, so merge in the order of rows.
    pub fn merge(&mut self, other: &Self) {
        self.source_squares += other.source_squares;
        self.decoded_squares += other.decoded_squares;
        self.products += other.products;
        self.error_squares += other.error_squares;
        self.max_abs = largest(self.max_abs, other.max_abs);
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> ErrorFigures {
        let relative = if self.error_squares == 0.0 {
            0.0
        } else {
            Some((self.error_squares / self.source_squares).sqrt()).filter(|r| r.is_finite()).unwrap_or(f64::INFINITY)
        };
        let inexact = relative > 0.0 && relative.is_finite();
        let norms = self.source_squares.sqrt() * self.decoded_squares.sqrt();
        let cosine = if self.error_squares == 0.0 {
            1.0
        } else {
            Some(self.products / norms).filter(|c| c.is_finite()).unwrap_or(0.0).clamp(-1.0, 1.0)
        };
        ErrorFigures {
            relative,
            snr_db: inexact.then(|| -20.0 * relative.log10()),
            max_abs: if self.max_abs.is_nan() { f64::INFINITY } else { f64::from(self.max_abs) },
            cosine,
        }
    }
}

/// The larger of two magnitudes, where not-a-number is larger than anything.
#[inline(always)]
fn largest(a: f32, b: f32) -> f32 {
    f32::from_bits(a.to_bits().max(b.to_bits()))
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn accumulate(sums: &mut ErrorSums, source: &[f32], decoded: &[f32]) {
    for (source, decoded) in source.chunks(BLOCK).zip(decoded.chunks(BLOCK)) {
        let mut squares = [0.0f32; LANES];
        let mut decoded_squares = [0.0f32; LANES];
        let mut products = [0.0f32; LANES];
        let mut errors = [0.0f32; LANES];
        let mut max_abs = [0u32; LANES];
        let mut add = |lane: usize, w: f32, d: f32| {
            let error = d - w;
            squares[lane] += w * w;
            decoded_squares[lane] += d * d;
            products[lane] += w * d;
            errors[lane] += error * error;
            max_abs[lane] = max_abs[lane].max(error.to_bits() & 0x7fff_ffff);
        };
        let (source_lanes, source_rest) = source.as_chunks::<LANES>();
        let (decoded_lanes, decoded_rest) = decoded.as_chunks::<LANES>();
        for (w, d) in source_lanes.iter().zip(decoded_lanes) {
            for lane in 0..LANES {
                add(lane, w[lane], d[lane]);
            }
        }
        for (lane, (w, d)) in source_rest.iter().zip(decoded_rest).enumerate() {
            add(lane, *w, *d);
        }
        let max_abs = f32::from_bits(max_abs.into_iter().fold(0, u32::max));
        let block = ErrorSums {
            source_squares: total(squares),
            decoded_squares: total(decoded_squares),
            products: total(products),
            error_squares: total(errors),
            max_abs,
        };
        let safe = f64::from(SMALLEST_SAFE)..1.0 / f64::from(SMALLEST_SAFE);
        let exact_error = max_abs == 0.0 || safe.contains(&block.error_squares);
        if safe.contains(&block.source_squares) && safe.contains(&block.decoded_squares) && exact_error {
            sums.merge(&block);
        } else {
            accumulate_wide(sums, source, decoded, max_abs);
        }
    }
}

/// The sum of the lanes in F64, by halves.
#[inline(always)]
fn total(lanes: [f32; LANES]) -> f64 {
    let mut sums = lanes.map(f64::from);
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// The same in F64, for blocks whose squares F32 does not hold.
#[cold]
fn accumulate_wide(sums: &mut ErrorSums, source: &[f32], decoded: &[f32], max_abs: f32) {
    let mut block = ErrorSums { max_abs, ..ErrorSums::default() };
    for (&w, &d) in source.iter().zip(decoded) {
        let (w, d) = (f64::from(w), f64::from(d));
        block.source_squares += w * w;
        block.decoded_squares += d * d;
        block.products += w * d;
        block.error_squares += (d - w) * (d - w);
    }
    sums.merge(&block);
}

/// Measures a coded stripe against its source, whose rows are read again, few at a time.
///
/// # Errors
/// [`CodecError`] when the stripe is malformed or does not fit the source, or the source cannot be read.
pub fn measure(
    source: &dyn RowSource,
    coded: &CodedRows,
    codec: &Codec,
    parameters: &MatrixParameters,
) -> Result<ErrorSums, CodecError> {
    coded.check(codec)?;
    let end = coded.first_row + coded.rows;
    if end > source.rows() {
        return Err(CodecError::Rows { first_row: coded.first_row, end, rows: source.rows() });
    }
    if coded.columns != source.columns() {
        let (expected, got) = (source.columns(), coded.columns);
        return Err(CodecError::Length { what: "columns", expected, got });
    }
    let mut sums = ErrorSums::default();
    let at_once = source.rows_at_once().clamp(1, coded.rows.max(1));
    let mut weights = vec![0.0; at_once * coded.columns];
    let mut decoded = vec![0.0; coded.columns];
    let mut divided = Vec::new();
    for first in (0..coded.rows).step_by(at_once) {
        let count = at_once.min(coded.rows - first);
        let weights = &mut weights[..count * coded.columns];
        source.read_rows(coded.first_row + first, weights)?;
        for (offset, weights) in weights.chunks_exact(coded.columns.max(1)).enumerate() {
            codec.row_unchecked(coded, first + offset, parameters, &mut divided, &mut decoded)?;
            sums.accumulate_row(weights, &decoded);
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        checkpoint::{Dtype, encode_from_f32},
        codec::{DenseRows, ScaleFormat},
    };

    /// What blocks of F32 sums may cost.
    const TOLERANCE: f64 = 4e-6;

    /// All figures in F64, one weight after the other.
    fn reference(source: &[f32], decoded: &[f32]) -> (f64, f64, f64) {
        let pairs = || source.iter().zip(decoded).map(|(w, d)| (f64::from(*w), f64::from(*d)));
        let squares = pairs().map(|(w, _)| w * w).sum::<f64>();
        let decoded_squares = pairs().map(|(_, d)| d * d).sum::<f64>();
        let errors = pairs().map(|(w, d)| (d - w) * (d - w)).sum::<f64>();
        let products = pairs().map(|(w, d)| w * d).sum::<f64>();
        ((errors / squares).sqrt(), products / (squares * decoded_squares).sqrt(), squares)
    }

    fn figures(source: &[f32], decoded: &[f32]) -> ErrorFigures {
        let mut sums = ErrorSums::default();
        sums.accumulate_row(source, decoded);
        sums.figures()
    }

    proptest! {
        #[test]
        fn figures_agree_with_f64(
            pairs in prop::collection::vec((-1.0f32..1.0, -0.1f32..0.1), 1..3000),
            exponent in -60i32..55,
        ) {
            let unit = 2f32.powi(exponent);
            let source: Vec<f32> = pairs.iter().map(|(w, _)| w * unit).collect();
            let decoded: Vec<f32> = pairs.iter().map(|(w, e)| (w + e) * unit).collect();
            let (relative, cosine, squares) = reference(&source, &decoded);
            prop_assume!(squares > 0.0 && relative > 0.0);
            let got = figures(&source, &decoded);
            prop_assert!((got.relative / relative - 1.0).abs() < TOLERANCE, "{} {}", got.relative, relative);
            prop_assert!((got.cosine - cosine).abs() < TOLERANCE);
            prop_assert!((got.snr_db.unwrap() + 20.0 * relative.log10()).abs() < 1e-4);
            let max_abs = source.iter().zip(&decoded).map(|(w, d)| (d - w).abs()).fold(0.0, f32::max);
            prop_assert_eq!(got.max_abs, f64::from(max_abs));
        }

        #[test]
        fn rows_add_up_in_order(
            rows in prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 0..40), 0..8),
            cut in 0usize..8,
        ) {
            let decoded = |row: &[f32]| row.iter().map(|w| (w * 8.0).round() / 8.0).collect::<Vec<_>>();
            let mut whole = ErrorSums::default();
            for row in &rows {
                whole.accumulate_row(row, &decoded(row));
            }
            let (mut first, mut second) = (ErrorSums::default(), ErrorSums::default());
            for (index, row) in rows.iter().enumerate() {
                if index < cut { &mut first } else { &mut second }.accumulate_row(row, &decoded(row));
            }
            first.merge(&second);
            prop_assert!((first.error_squares - whole.error_squares).abs() <= 1e-12 * whole.error_squares);
            prop_assert_eq!(first.max_abs, whole.max_abs);
            let all: Vec<f32> = rows.concat();
            prop_assert!((whole.source_squares - reference(&all, &all).2).abs() <= TOLERANCE * whole.source_squares);
        }
    }

    #[test]
    fn squares_beyond_f32_are_still_measured() {
        for unit in [1e-45, 1e-40, 1e-30, 1e25, 1e38] {
            let source = vec![unit; 2500];
            let decoded = vec![unit * 2.0; 2500];
            let got = figures(&source, &decoded);
            assert!((got.relative - 1.0).abs() < 1e-6 && (got.cosine - 1.0).abs() < 1e-6, "{unit:e}: {got:?}");
            assert_eq!(got.max_abs, f64::from(unit), "{unit:e}");
        }
    }

    #[test]
    fn figures_of_nothing_and_of_zeros_are_defined() {
        let exact = ErrorFigures { relative: 0.0, snr_db: None, max_abs: 0.0, cosine: 1.0 };
        assert_eq!(figures(&[], &[]), exact);
        assert_eq!(figures(&[0.0; 5], &[-0.0; 5]), exact);
        assert_eq!(figures(&[1.5; 5], &[1.5; 5]), exact);
        let lost = figures(&[0.0; 5], &[1.0; 5]);
        assert_eq!(lost, ErrorFigures { relative: f64::INFINITY, snr_db: None, max_abs: 1.0, cosine: 0.0 });
        assert_eq!(figures(&[1.0; 5], &[0.0; 5]).relative, 1.0);
    }

    #[test]
    fn a_decoded_weight_that_is_not_finite_shows_in_every_figure_and_in_json() {
        let infinite = ErrorFigures { relative: f64::INFINITY, snr_db: None, max_abs: f64::INFINITY, cosine: 0.0 };
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 15, 16, 299] {
                let source = vec![1.0; 300];
                let mut decoded = source.clone();
                decoded[place] = wrong;
                let got = figures(&source, &decoded);
                assert_eq!(got, infinite);
                let json = serde_json::to_string(&got).unwrap();
                assert_eq!(json, r#"{"relative":null,"snr_db":null,"max_abs":null,"cosine":0.0}"#);
                assert_eq!(serde_json::from_str::<ErrorFigures>(&json).unwrap(), got);
            }
        }
    }

    #[test]
    fn a_stripe_is_measured_against_its_rows() {
        let weights: Vec<f32> = (0..30).map(|i| (i as f32 - 14.0) / 7.0).collect();
        let codec = Codec::parse_name("int4-channel", ScaleFormat::F32).unwrap();
        let coded = CodedRows {
            first_row: 2,
            rows: 3,
            columns: 5,
            codes: (0..15).collect(),
            scales: vec![0.25, 0.5, 1.0],
            zeros: vec![],
        };
        let mut decoded = vec![0.0; 15];
        codec.dequantize_rows(&coded, &MatrixParameters::default(), &mut decoded).unwrap();
        assert_eq!(decoded[..6], [-2.0, -1.75, -1.5, -1.25, -1.0, -1.5]);
        let mut expected = ErrorSums::default();
        for row in 0..3 {
            expected.accumulate_row(&weights[10 + row * 5..][..5], &decoded[row * 5..][..5]);
        }

        let mut plain = vec![];
        encode_from_f32(Dtype::F32, &weights, &mut plain);
        let mut turned = vec![];
        for column in 0..5 {
            let stored: Vec<f32> = (0..6).map(|row| weights[row * 5 + column]).collect();
            encode_from_f32(Dtype::F32, &stored, &mut turned);
        }
        let plain = DenseRows::new(Dtype::F32, &plain, 6, 5).unwrap();
        let turned = DenseRows::transposed(Dtype::F32, &turned, 6, 5, 1).unwrap();
        for source in [&plain, &turned] {
            assert_eq!(measure(source, &coded, &codec, &MatrixParameters::default()), Ok(expected));
        }

        let outside = CodedRows { first_row: 4, ..coded.clone() };
        let error = measure(&plain, &outside, &codec, &MatrixParameters::default());
        assert_eq!(error, Err(CodecError::Rows { first_row: 4, end: 7, rows: 6 }));
        let narrow = CodedRows { columns: 4, codes: vec![0; 12], ..coded };
        let error = measure(&plain, &narrow, &codec, &MatrixParameters::default());
        assert_eq!(error, Err(CodecError::Length { what: "columns", expected: 5, got: 4 }));
    }
}
