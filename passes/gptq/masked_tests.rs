//! Masks under quantization: what is left out is exactly zero, and nothing else is lost by it.

use super::{
    tests::{Numbers, codec, moments, weights},
    *,
};
use crate::{
    checkpoint::Dtype,
    codec::{
        Codec, DenseRows, Element, Granularity, ScaleFormat, ZeroPoint,
        sparse::{Mask, Pattern},
    },
    passes::{Choice, Matrix, mask::magnitude, rtn::grid::Grid},
};

fn formats() -> Vec<Codec> {
    use Granularity::{Block, Channel, Group, Tensor};
    let integer = |bits, granularity, zero| codec(Element::Integer { bits }, granularity, ScaleFormat::F16, zero);
    vec![
        integer(2, Group(16), ZeroPoint::Integer),
        integer(4, Group(32), ZeroPoint::None),
        integer(4, Channel, ZeroPoint::Integer),
        integer(4, Tensor, ZeroPoint::Integer),
        integer(6, Block { rows: 24, columns: 20 }, ZeroPoint::None),
        codec(Element::Fp8E4M3, Channel, ScaleFormat::BF16, ZeroPoint::None),
        codec(Element::Fp8E4M3, Group(32), ScaleFormat::E8M0, ZeroPoint::None),
        codec(Element::Fp4E2M1, Group(32), ScaleFormat::E8M0, ZeroPoint::None),
        codec(Element::Fp4E2M1, Group(16), ScaleFormat::E4M3OverGlobal, ZeroPoint::None),
    ]
}

fn decoded(codec: &Codec, solution: &Solution) -> Vec<f32> {
    let mut decoded = vec![0.0; solution.dequantized.len()];
    codec.dequantize_rows(&solution.coded, &solution.parameters, &mut decoded).unwrap();
    decoded
}

#[test]
fn what_a_mask_leaves_out_stays_exactly_zero() {
    let (rows, columns) = (70, 100);
    let mut numbers = Numbers(41);
    let hessian = moments(columns, 500, &mut numbers);
    let drift: Vec<f32> = hessian.iter().enumerate().map(|(i, h)| *h as f32 * 0.01 * (i % 3) as f32).collect();
    let mut weights = weights(rows * columns, &mut numbers);
    // Groups in which all weights have one sign, whose range has to be widened to hold zero.
    weights[..800].iter_mut().for_each(|weight| *weight = weight.abs() + 0.2);
    let mask = magnitude(&weights, rows, columns, Pattern::TWO_OF_FOUR).unwrap();
    mask.apply(&mut weights).unwrap();
    for codec in formats() {
        let grid = Grid::new(&codec, Dtype::BF16, 1);
        let linear = Linear { weights: &weights, rows, codec: &codec, grid: &grid };
        for drift in [None, Some(drift.as_slice())] {
            let moments = Moments { columns, hessian: &hessian, drift };
            let options = SolveOptions { sweeps: 2, ..SolveOptions::default() };
            let factor = Factor::new(&moments, &options).unwrap();
            let solution = solve_masked(&factor, &moments, &linear, None, Some(&mask), &options).unwrap();
            let decoded = decoded(&codec, &solution);
            assert!(decoded == solution.dequantized, "{codec:?}");
            for (index, weight) in decoded.iter().enumerate() {
                assert!(mask.keeps(index / columns, index % columns) || weight.to_bits() == 0, "{codec:?} {index}");
            }
            let report = &solution.report;
            assert!(report.target_loss_refined <= report.target_loss_sweep, "{codec:?}: {report:?}");
            if drift.is_none() {
                assert!(report.loss_refined < report.loss_nearest, "{codec:?}: {report:?}");
            }
        }
    }
}

#[test]
fn a_mask_costs_less_than_zeroing_afterwards() {
    let (rows, columns) = (64, 96);
    let mut numbers = Numbers(43);
    let hessian = moments(columns, 500, &mut numbers);
    let mut weights = weights(rows * columns, &mut numbers);
    let mask = magnitude(&weights, rows, columns, Pattern::TWO_OF_FOUR).unwrap();
    mask.apply(&mut weights).unwrap();
    let moments = Moments { columns, hessian: &hessian, drift: None };
    let options = SolveOptions::default();
    let factor = Factor::new(&moments, &options).unwrap();
    let codec = codec(Element::Integer { bits: 3 }, Granularity::Group(32), ScaleFormat::F16, ZeroPoint::Integer);
    let grid = Grid::new(&codec, Dtype::BF16, 0);
    let linear = Linear { weights: &weights, rows, codec: &codec, grid: &grid };
    let masked = solve_masked(&factor, &moments, &linear, None, Some(&mask), &options).unwrap();
    let free = solve(&factor, &moments, &linear, &options).unwrap();
    assert_ne!(masked.coded, free.coded);
    let mut zeroed = free.dequantized.clone();
    mask.apply(&mut zeroed).unwrap();
    let loss = |values: &[f32]| {
        let rows = values.chunks(columns).zip(weights.chunks(columns));
        let of_row = rows.map(|(values, weights)| {
            let d: Vec<f64> = values.iter().zip(weights).map(|(v, w)| f64::from(*v) - f64::from(*w)).collect();
            let terms = d.iter().enumerate().flat_map(|(i, a)| d.iter().enumerate().map(move |(j, b)| (i, j, a * b)));
            terms.map(|(i, j, product)| product * hessian[i * columns + j]).sum::<f64>()
        });
        of_row.sum::<f64>()
    };
    let (with, without) = (loss(&masked.dequantized), loss(&zeroed));
    assert!(with < without, "{with} {without}");
}

#[test]
fn a_mask_that_keeps_the_same_as_none_changes_no_byte() {
    // Three columns are no whole group of four: all are kept.
    let (rows, columns) = (33, 3);
    let mut numbers = Numbers(44);
    let hessian = moments(columns, 50, &mut numbers);
    let weights = weights(rows * columns, &mut numbers);
    let moments = Moments { columns, hessian: &hessian, drift: None };
    let mask = Mask::new(Pattern::TWO_OF_FOUR, rows, columns, vec![0b111; rows]).unwrap();
    for codec in formats() {
        let grid = Grid::new(&codec, Dtype::BF16, 0);
        let linear = Linear { weights: &weights, rows, codec: &codec, grid: &grid };
        let options = SolveOptions::default();
        let factor = Factor::new(&moments, &options).unwrap();
        let with = solve_masked(&factor, &moments, &linear, None, Some(&mask), &options).unwrap();
        assert_eq!(with, solve(&factor, &moments, &linear, &options).unwrap(), "{codec:?}");
    }
    let hqq = codec(Element::Integer { bits: 4 }, Granularity::Group(2), ScaleFormat::F16, ZeroPoint::Float);
    let grid = Grid::new(&hqq, Dtype::BF16, 0);
    let linear = Linear { weights: &weights, rows, codec: &hqq, grid: &grid };
    let factor = Factor::new(&moments, &SolveOptions::default()).unwrap();
    let refused = |mask: &Mask| solve_masked(&factor, &moments, &linear, None, Some(mask), &SolveOptions::default());
    assert_eq!(refused(&mask), Err(SolveError::MaskedZero));
    let short = Mask::new(Pattern::TWO_OF_FOUR, 1, columns, vec![0b111]).unwrap();
    assert!(matches!(refused(&short), Err(SolveError::Length { .. })));
}

#[test]
fn rounding_to_nearest_keeps_zeros() {
    let (rows, columns) = (70, 100);
    let mut numbers = Numbers(45);
    let mut weights = weights(rows * columns, &mut numbers);
    weights[..1600].iter_mut().for_each(|weight| *weight = weight.abs() + 0.2);
    weights[1600..3200].iter_mut().for_each(|weight| *weight = -weight.abs() - 0.2);
    let mask = magnitude(&weights, rows, columns, Pattern::TWO_OF_FOUR).unwrap();
    mask.apply(&mut weights).unwrap();
    let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let source = DenseRows::new(Dtype::F32, &bytes, rows, columns).unwrap();
    for codec in formats() {
        for (minimum_zero_point, range) in [(0, "minmax"), (1, "minmax"), (0, "mse")] {
            let matrix = Matrix {
                name: String::new(),
                rows,
                columns,
                dense_dtype: Dtype::BF16,
                scale: codec.scale,
                experts: 1,
                seed: 0,
                minimum_zero_point,
                float_zero_allowed: true,
                minima: crate::layout::Minima::Never,
            };
            let table = format!("bits = 4\nrange = '{range}'").parse().unwrap();
            let settings = (crate::passes::rtn::INFO.parse)(&table).unwrap();
            let choice = Choice {
                codec: codec.clone().into(),
                rotations: None,
                codebook_of: None,
                mask: None,
                activations: crate::layout::Activations::None,
            };
            let encoder = settings.encoder(&matrix, &choice);
            let parameters = encoder.prepare(&source).unwrap();
            let encoded = encoder.encode(&source, &parameters, 0, rows).unwrap();
            let mut decoded = vec![0.0; rows * columns];
            codec.dequantize_rows(&encoded.rows, &parameters, &mut decoded).unwrap();
            for (index, weight) in decoded.iter().enumerate() {
                assert!(mask.keeps(index / columns, index % columns) || weight.to_bits() == 0, "{codec:?} {index}");
            }
        }
    }
}
