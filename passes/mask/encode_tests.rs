//! Codes behind a mask: of what it keeps, and of nothing else.

use super::{
    tests::{Numbers, loss as slow_loss, moments, weights},
    *,
};
use crate::{
    checkpoint::Dtype,
    codec::{Codec, CodecError, DenseRows, Element, Granularity, ScaleFormat, ZeroPoint},
    passes::{
        Choice, Matrix, MatrixEncoder,
        gptq::{self, Factor, Linear, Moments, SolveOptions},
        rtn::grid::Grid,
    },
};

fn int4() -> Codec {
    Codec {
        element: Element::Integer { bits: 4 },
        granularity: Granularity::Group(32),
        scale: ScaleFormat::BF16,
        zero: ZeroPoint::Integer,
        outliers: None,
    }
}

#[test]
fn codes_towards_refitted_weights_keep_the_mask_and_lose_little_more_than_it() {
    let (rows, columns) = (70, 96);
    let mut numbers = Numbers(81);
    let hessian = moments(columns, 500, &mut numbers);
    let weights = weights(rows * columns, &mut numbers);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    let options = MaskOptions::default();
    let found = solve(&factor(&moments, &options).unwrap(), &moments, (&weights, rows), None, None, &options).unwrap();
    let gptq_options = SolveOptions::default();
    let factor = Factor::new(&moments, &gptq_options).unwrap();
    let codec = int4();
    let grid = Grid::new(&codec, Dtype::BF16, 0);
    let linear = Linear { weights: &weights, rows, codec: &codec, grid: &grid };
    let kept = (&found.mask, found.weights.clone());
    let solution = gptq::solve_kept(&factor, &moments, &linear, kept, &gptq_options).unwrap();
    for (index, weight) in solution.dequantized.iter().enumerate() {
        assert!(found.mask.keeps(index / columns, index % columns) || weight.to_bits() == 0, "{index}");
    }
    let lost = slow_loss(&solution.dequantized, &weights, &hessian, columns);
    assert!((solution.report.loss_refined - lost).abs() <= 1e-3 * lost, "{lost} {:?}", solution.report);
    let fast = super::loss(&factor, &weights, &solution.dequantized, rows).unwrap();
    assert!((fast - lost).abs() <= 1e-3 * lost, "{fast} {lost}");
    // Of what is refitted already only the codes' own errors are left; rounding to nearest makes nothing up for those.
    let mut nearest = vec![0.0; weights.len()];
    let bytes: Vec<u8> = found.weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let source = DenseRows::new(Dtype::F32, &bytes, rows, columns).unwrap();
    let encoder = encoder(None);
    let parameters = encoder.prepare(&source).unwrap();
    let stripe = encoder.encode(&source, &parameters, 0, rows).unwrap();
    codec.dequantize_rows(&stripe.rows, &parameters, &mut nearest).unwrap();
    let rounded = slow_loss(&nearest, &weights, &hessian, columns);
    assert!(lost < rounded && lost < 1.5 * found.report.loss, "{lost} {rounded} {}", found.report.loss);
}

/// Rounds to nearest, with or without a mask.
fn encoder(mask: Option<&str>) -> Box<dyn MatrixEncoder> {
    let matrix = Matrix {
        name: String::new(),
        rows: 70,
        columns: 96,
        experts: 1,
        seed: 0,
        dense_dtype: Dtype::F32,
        scale: ScaleFormat::BF16,
        minimum_zero_point: 0,
        float_zero_allowed: true,
        minima: crate::layout::Minima::Never,
    };
    let table = "bits = 4\ngroup_size = 32\nsymmetric = false".parse().unwrap();
    let settings = (crate::passes::rtn::INFO.parse)(&table).unwrap();
    let choice = settings.codec(&matrix).unwrap();
    assert_eq!(choice.codec, int4().into());
    let mask = mask.map(|text| Settings::parse(&text.parse().unwrap()).unwrap());
    settings.encoder(&matrix, &Choice { mask, ..choice })
}

#[test]
fn encoding_masked_rows_is_encoding_the_masked_matrix_stripe_by_stripe() {
    let (rows, columns) = (70, 96);
    let mut numbers = Numbers(82);
    let mut weights = weights(rows * columns, &mut numbers);
    // Ranges that have to be widened to hold zero.
    weights[..960].iter_mut().for_each(|weight| *weight = weight.abs() + 0.2);
    let mask = magnitude(&weights, rows, columns, Pattern::TWO_OF_FOUR).unwrap();
    let mut masked = weights.clone();
    mask.apply(&mut masked).unwrap();
    let bytes = |values: &[f32]| values.iter().flat_map(|weight| weight.to_le_bytes()).collect::<Vec<u8>>();
    let (given, explicit) = (bytes(&weights), bytes(&masked));
    let given = DenseRows::new(Dtype::F32, &given, rows, columns).unwrap();
    let explicit = DenseRows::new(Dtype::F32, &explicit, rows, columns).unwrap();
    let (with, plain) = (encoder(Some("criterion = 'magnitude'")), encoder(None));
    let parameters = with.prepare(&given).unwrap();
    for (first, count) in [(0, 33), (33, 37)] {
        let stripe = with.encode(&given, &parameters, first, count).unwrap();
        assert_eq!(stripe, plain.encode(&explicit, &parameters, first, count).unwrap());
        assert_ne!(stripe, plain.encode(&given, &parameters, first, count).unwrap());
        let mut decoded = vec![0.0; count * columns];
        int4().dequantize_rows(&stripe.rows, &parameters, &mut decoded).unwrap();
        for (index, weight) in decoded.iter().enumerate() {
            assert!(mask.keeps(first + index / columns, index % columns) || weight.to_bits() == 0, "{index}");
        }
    }
    // The smallest of its group would be left out unseen.
    weights[5 * columns + 7] = f32::NAN;
    let bad = bytes(&weights);
    let bad = DenseRows::new(Dtype::F32, &bad, rows, columns).unwrap();
    let error = with.encode(&bad, &parameters, 0, 33).unwrap_err();
    assert!(matches!(error, CodecError::NonFinite { row: 5, column: 7, .. }), "{error}");
}
