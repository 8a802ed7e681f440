//! Scales against the formula, and the search against the definition of its loss.

use super::*;
use crate::{
    forward::{InputFormat, Matrix, rounded},
    passes::folding::tests::{consumer, noise, round_groups, statistics, tokens},
};

#[test]
fn settings_are_typed_and_complete() {
    let parse = |text: &str| Settings::parse(&text.parse::<toml::Table>().unwrap());
    let json = |settings: &Settings| serde_json::to_string(settings).unwrap();
    let settings = parse("").unwrap();
    assert_eq!(json(&settings), r#"{"strength":0.5,"folds":["attention","value","mlp","up","latent"]}"#);
    let settings = parse("strength = \"search\"\nfolds = [\"mlp\", \"attention\", \"mlp\"]").unwrap();
    assert_eq!(json(&settings), r#"{"strength":"search","folds":["attention","mlp"]}"#);
    assert_eq!(parse("strength = 1").unwrap().strength, Strength::Given(1.0));
    for (text, key) in [
        ("strength = 1.5", "strength"),
        ("strength = \"find\"", "strength"),
        ("folds = []", "folds"),
        ("folds = [\"down\"]", "folds"),
        ("folds = \"mlp\"", "folds"),
        ("alpha = 0.5", "alpha"),
    ] {
        assert_eq!(parse(text).unwrap_err().key, key);
    }
}

#[test]
fn scales_are_those_of_equation_4() {
    let sample = tokens(20, 16, 1);
    let mut owned = statistics(&sample);
    owned.absmax[5] = 0.0;
    let (first, mut second) = (noise(6 * 16, 2), noise(4 * 16, 3));
    second.iter_mut().skip(7).step_by(16).for_each(|weight| *weight = 0.0);
    let first: Vec<f32> = first.iter().enumerate().map(|(i, w)| if i % 16 == 7 { 0.0 } else { *w }).collect();
    let consumers = [consumer(&first, 6, InputFormat::Exact), consumer(&second, 4, InputFormat::Exact)];
    let channels = Channels { count: 16, of: None };
    for strength in [0.0, 0.3, 0.85, 1.0] {
        let scales = fold_scales(&owned.view(), &consumers, channels, strength);
        for (j, scale) in scales.iter().enumerate() {
            let column = first.iter().chain(&second).skip(j).step_by(16);
            let weight = column.fold(0.0_f64, |largest, w| largest.max(f64::from(w.abs()))).max(1e-5);
            let activation = f64::from(owned.absmax[j]);
            let expected = (strength * activation.ln() - (1.0 - strength) * weight.ln()).exp();
            let expected = if j == 5 { 1.0 } else { expected };
            assert!((scale / expected - 1.0).abs() < 1e-12);
        }
    }
    let of: Vec<usize> = (0..16).map(|channel| channel % 8).collect();
    let shared = fold_scales(&owned.view(), &consumers, Channels { count: 8, of: Some(&of) }, 1.0);
    assert_eq!(shared[3], f64::from(owned.absmax[3].max(owned.absmax[11])));
}

#[test]
fn the_search_has_the_least_loss_of_its_grid() {
    let sample = tokens(60, 16, 4);
    let owned = statistics(&sample);
    let weights = noise(12 * 16, 5);
    let channels = Channels { count: 16, of: None };
    for input in [InputFormat::Int8PerToken, InputFormat::Int8Static(9.0), InputFormat::Exact] {
        let consumers = [consumer(&weights, 12, input)];
        let chosen = search(&owned.view(), &consumers, channels);
        assert!(chosen.loss <= chosen.plain_loss);
        let loss = |scales: &[f64]| {
            let divided: Vec<f32> =
                sample.values.iter().enumerate().map(|(i, x)| (f64::from(*x) / scales[i % 16]) as f32).collect();
            let largest = divided.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let format = match input {
                InputFormat::Int8Static(_) => InputFormat::Int8Static(largest / 127.0),
                other => other,
            };
            let x = rounded(&Matrix { values: divided, ..sample.clone() }, format);
            let scaled: Vec<f32> =
                weights.iter().enumerate().map(|(i, w)| (f64::from(*w) * scales[i % 16]) as f32).collect();
            let w = round_groups(&scaled, 12);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let mut sum = 0.0;
            for (exact, lossy) in sample.values.chunks_exact(16).zip(x.values.chunks_exact(16)) {
                for (weight, rounded) in weights.chunks_exact(16).zip(w.chunks_exact(16)) {
                    sum += (dot(exact, weight) - dot(lossy, rounded)).powi(2);
                }
            }
            sum
        };
        assert!((loss(&chosen.scales) / chosen.loss - 1.0).abs() < 1e-3);
        for step in 0..=20 {
            let scales = fold_scales(&owned.view(), &consumers, channels, f64::from(step) / 20.0);
            assert!(loss(&scales) >= chosen.loss * 0.999);
        }
    }
    let blind = FoldStatistics { sample: None, ..owned.view() };
    assert_eq!(search(&blind, &[consumer(&weights, 12, InputFormat::Exact)], channels).strength, Some(0.5));
}

#[test]
fn smoothing_helps_rounded_activations() {
    let sample = tokens(64, 56, 6);
    let owned = statistics(&sample);
    let weights = noise(32 * 56, 7);
    let consumers = [consumer(&weights, 32, InputFormat::Int8PerToken)];
    let chosen = search(&owned.view(), &consumers, Channels { count: 56, of: None });
    assert!(chosen.strength.is_some() && chosen.loss < chosen.plain_loss);
}
