//! The grid, and refinement that never worsens its own loss.

use super::*;
use crate::{
    forward::InputFormat,
    passes::folding::tests::{consumer, noise, statistics, tokens},
};

#[test]
fn settings_are_typed_and_complete() {
    let parse = |text: &str| Settings::parse(&text.parse::<toml::Table>().unwrap());
    let settings = parse("folds = [\"mlp\"]").unwrap();
    assert_eq!(serde_json::to_string(&settings).unwrap(), r#"{"step":0.05,"refine":true,"folds":["mlp"]}"#);
    assert_eq!(parse("step = 0").unwrap_err().key, "step");
    assert_eq!(parse("refine = \"yes\"").unwrap_err().key, "refine");
}

#[test]
fn the_grid_ends_at_one() {
    let grid = candidates(0.05);
    assert_eq!((grid.len(), grid[0], grid[20]), (21, 0.0, 1.0));
    assert_eq!(candidates(0.3), [0.0, 0.3, 0.6, 0.8999999999999999, 1.0]);
    assert_eq!(candidates(1.0), [0.0, 1.0]);
}

#[test]
fn refinement_never_worsens() {
    for seed in 0..6 {
        let owned = statistics(&tokens(40, 28, seed));
        let weights = noise(20 * 28, seed + 50);
        let consumers = [consumer(&weights, 20, InputFormat::Exact)];
        let channels = Channels { count: 28, of: None };
        let start = scales(&owned.view(), &consumers, channels, 0.5);
        let measure = Measure::new(&owned.view(), 28).unwrap();
        let before = LossRows::new(&consumers, 28).weight_loss(&consumers, &measure, &start);
        let chosen = refine(&owned.view(), &consumers, channels, 0.5, 0.05);
        assert!(chosen.loss <= before && chosen.loss <= chosen.plain_loss);
        let of = chosen.strength.map(|strength| scales(&owned.view(), &consumers, channels, strength));
        assert_eq!(of.unwrap_or_else(|| vec![1.0; 28]), chosen.scales);
    }
}
