//! Candidates against the formula, losses never above those of plain rounding, limits against the definition.

use super::*;
use crate::{
    forward::InputFormat,
    passes::folding::tests::{consumer, noise, round_groups, statistics, tokens},
};

#[test]
fn settings_are_typed_and_complete() {
    let parse = |text: &str| Settings::parse(&text.parse::<toml::Table>().unwrap());
    let settings = parse("folds = [\"up\"]").unwrap();
    assert_eq!(serde_json::to_string(&settings).unwrap(), r#"{"grid":20,"clip":true,"folds":["up"]}"#);
    assert_eq!(parse("grid = 0").unwrap_err().key, "grid");
    assert_eq!(parse("clip = 1").unwrap_err().key, "clip");
    assert_eq!(parse("bits = 4").unwrap_err().key, "bits");
}

#[test]
fn candidates_are_those_of_the_formula() {
    let means = [0.5_f32, 2.0, 0.0, 1e-9, 4.0];
    let scales = candidate(&means, Channels { count: 5, of: None }, 0.5);
    let (least, largest) = (1e-4_f64, 2.0_f64);
    let centre = (least * largest).sqrt();
    for (scale, expected) in scales.iter().zip([0.5_f64.sqrt(), 2f64.sqrt(), centre, least, 2.0]) {
        assert!((scale / (expected / centre) - 1.0).abs() < 1e-7, "{scale} {expected}");
    }
    assert_eq!(candidate(&means, Channels { count: 5, of: None }, 0.0), [1.0; 5]);
    let of = [0, 1, 0, 1];
    let shared = candidate(&[1.0, 4.0, 3.0, 4.0], Channels { count: 2, of: Some(&of) }, 1.0);
    assert!((shared[0] / shared[1] - 0.5).abs() < 1e-12 && (shared[0] * shared[1] - 1.0).abs() < 1e-12);
}

#[test]
fn scales_never_lose_to_plain_rounding() {
    let mut helped = 0;
    for seed in 0..8 {
        let owned = statistics(&tokens(40, 28, seed));
        let weights = noise(20 * 28, seed + 100);
        let consumers = [consumer(&weights, 20, InputFormat::Exact)];
        let channels = Channels { count: 28, of: None };
        let chosen = scales(&owned.view(), &consumers, channels, 20);
        assert!(chosen.loss <= chosen.plain_loss);
        helped += usize::from(chosen.loss < chosen.plain_loss);
        let plain = scales(&owned.view(), &consumers, channels, 1);
        assert_eq!((plain.strength, &plain.scales, plain.loss), (None, &vec![1.0; 28], chosen.plain_loss));
    }
    assert_eq!(helped, 8);
}

#[test]
fn limits_have_the_least_loss_of_each_group() {
    let (rows, width) = (5, 20);
    let owned = statistics(&tokens(30, width, 1));
    let mut weights = noise(rows * width, 2);
    weights[2] = 9.0;
    // Rows are not divided evenly into groups of 8, so each row is rounded for itself.
    let quantize = |weights: &[f32], _: usize| -> Vec<f32> {
        weights.chunks(width).flat_map(|row| round_groups(row, 1)).collect()
    };
    let consumer = Consumer { weights: &weights, rows, quantize: &quantize, group: Some(8), input: InputFormat::Exact };
    let limits = clip(&owned.view(), &consumer).unwrap();
    assert_eq!(limits.len(), rows * 3);
    assert!(limits.iter().any(|limit| limit.is_finite()));
    let hessian = owned.hessian.as_ref().unwrap();
    let loss = |row: usize, group: usize, limit: f32| {
        let columns = group * 8..width.min(group * 8 + 8);
        let part = &weights[row * width..][columns.clone()];
        let clipped: Vec<f32> = part.iter().map(|weight| weight.clamp(-limit, limit)).collect();
        let difference: Vec<f64> = round_groups(&clipped, 1).iter().zip(part).map(|(q, w)| f64::from(q - w)).collect();
        let mut sum = 0.0;
        for (i, a) in columns.clone().zip(&difference) {
            for (j, b) in columns.clone().zip(&difference) {
                sum += a * b * hessian[i * width + j];
            }
        }
        sum
    };
    for row in 0..rows {
        for group in 0..3 {
            let part = &weights[row * width..][group * 8..width.min(group * 8 + 8)];
            let largest = part.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
            let chosen = loss(row, group, limits[row * 3 + group]);
            for step in 0..10 {
                let other = loss(row, group, largest * (1.0 - step as f32 / 20.0));
                assert!(chosen <= other * 1.0001 + 1e-9, "{row} {group} {step}: {chosen} {other}");
            }
        }
    }
    // Through the tokens where there are no second moments.
    let view = FoldStatistics { hessian: None, ..owned.view() };
    assert_eq!(clip(&view, &consumer).unwrap(), limits);
    assert!(clip(&FoldStatistics::default(), &consumer).is_none());
}
