//! A pass of one's own, with the crate as a library: `examples/custom_pass.rs` makes what any encoding makes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[allow(dead_code, reason = "its `main` is what the example runs")]
#[path = "../examples/custom_pass.rs"]
mod custom_pass;

use std::path::{Path, PathBuf};

use bantam::{
    checkpoint::Checkpoint,
    layout::LogicalCheckpoint,
    recipe::{Overrides, Recipe},
};

use self::common::{SMALL, assert_same, bantam, expect_exit, write_model};

const RULE: &str = "use = \"power_of_two\"\ngroup_size = 64\n";

fn recipe(folder: &Path, rule: &str) -> PathBuf {
    if !folder.join("model").exists() {
        write_model(&folder.join("model"), SMALL);
    }
    let path = folder.join("recipe.toml");
    std::fs::write(&path, format!("schema = 1\nmodel = \"model\"\n[[pass]]\n{rule}")).unwrap();
    path
}

fn compress(folder: &Path, name: &str, threads: usize) -> PathBuf {
    let out = folder.join(name);
    let overrides = Overrides { out: Some(out.clone()), ..Overrides::default() };
    custom_pass::compress(&recipe(folder, RULE), &overrides, threads).unwrap();
    out
}

fn weights(folder: &Path, tensor: &str) -> Vec<f32> {
    let checkpoint = LogicalCheckpoint::open(Checkpoint::open(folder).unwrap()).unwrap();
    let rows = checkpoint.rows(tensor, false).unwrap();
    let mut weights = vec![0.0; rows.rows() * rows.columns()];
    rows.read_rows(0, &mut weights).unwrap();
    weights
}

/// The best code of the two scales, in F64 and by trying all sixteen.
fn nearest(group: &[f32]) -> Vec<f64> {
    let largest = group.iter().fold(0.0_f64, |largest, weight| largest.max(f64::from(*weight).abs()));
    let below = (largest / 7.5).log2().floor().exp2();
    let rounded = |scale: f64| -> Vec<f64> {
        let of = |weight: f64| {
            (-8..8)
                .map(|code| f64::from(code) * scale)
                .min_by(|a, b| (a - weight).abs().total_cmp(&(b - weight).abs()))
                .unwrap()
        };
        group.iter().map(|weight| of(f64::from(*weight))).collect()
    };
    let error = |values: &[f64]| -> f64 { values.iter().zip(group).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum() };
    let (fine, coarse) = (rounded(below), rounded(2.0 * below));
    if error(&fine) < error(&coarse) { fine } else { coarse }
}

#[test]
fn a_pass_of_ones_own_goes_the_whole_way() {
    let folder = tempfile::tempdir().unwrap();
    let one = compress(folder.path(), "one", 1);
    let three = compress(folder.path(), "three", 3);
    assert_same(&one, &three);

    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(one.join("manifest.json")).unwrap()).unwrap();
    let rule = &manifest["recipe"]["pass"][0];
    assert_eq!((rule["use"].as_str(), rule["group_size"].as_u64()), (Some("power_of_two"), Some(64)));
    let name = "model.layers.1.mlp.down_proj.weight";
    let tensor = manifest["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == name).unwrap();
    assert_eq!(tensor["passes"], serde_json::json!(["power_of_two"]));
    assert_eq!(manifest["totals"]["compressed_tensors"], 14);

    // The binary, which does not know the pass, reads, verifies and measures what it made.
    expect_exit(bantam().arg("verify").arg(&one).arg("--source").arg(folder.path().join("model")), 0);

    let (before, after) = (weights(&folder.path().join("model"), name), weights(&one, name));
    let expected: Vec<f64> = before.chunks(64).flat_map(nearest).collect();
    let (mut error, mut least) = (0.0, 0.0);
    for ((before, after), expected) in before.iter().zip(&after).zip(&expected) {
        error += f64::from(before - after).powi(2);
        least += (f64::from(*before) - expected).powi(2);
        // Codes of four bits times powers of two.
        assert!(after.to_bits().trailing_zeros() >= 20, "{after}");
    }
    assert!((error / least - 1.0).abs() < 1e-5, "{error} {least}");
}

#[test]
fn mistakes_in_its_settings_are_pointed_at() {
    let folder = tempfile::tempdir().unwrap();
    let overrides = Overrides { out: Some(folder.path().join("out")), ..Overrides::default() };
    for (rule, expected) in [
        ("use = \"power_of_two\"\ngroup_size = 0\n", "`group_size`: expected a whole number from 1 to 65536"),
        ("use = \"power_of_two\"\ngroupsize = 64\n", "did you mean `group_size`?"),
        ("use = \"power_of_too\"\n", "did you mean `power_of_two`?"),
    ] {
        let error = custom_pass::compress(&recipe(folder.path(), rule), &overrides, 1).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // Without being told of it, nobody knows the pass.
    let error = Recipe::read(&recipe(folder.path(), RULE)).unwrap_err();
    assert!(error.to_string().contains("unknown pass or preset \"power_of_two\""), "{error}");
}
