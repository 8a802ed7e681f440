//! `bantam audit`: the recovery succeeds on what pass `taylor_mlp` writes, gets all but the scale of units back from the
//! hardened form, and claims nothing where there is nothing to recover.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bantam::{
    checkpoint::{Checkpoint, Dtype, decode_to_f32, encode_from_f32},
    codec::taylor::{Basis, Points, Smooth, coefficients},
    forward::Matrix,
    passes::taylor_mlp::hardened::{Disguise, merged, secret},
};
use common::{bantam, expect_exit, fixture, json};
use safetensors::tensor::TensorView;
use serde_json::Value;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn audit(artifact: &Path, source: Option<&Path>) -> Value {
    let mut command = bantam();
    command.args(["audit", "--json"]).arg(artifact);
    if let Some(source) = source {
        command.arg("--source").arg(source);
    }
    let report = json(&expect_exit(&mut command, 0));
    assert_eq!(report["schema"], "bantam.audit/1");
    report
}

fn encoded(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_from_f32(dtype, values, &mut bytes);
    bytes
}

fn write(folder: &Path, tensors: &Tensors, config: &str) {
    fs::create_dir_all(folder).unwrap();
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
}

fn stored(checkpoint: &Checkpoint) -> Tensors {
    let tensors = checkpoint.tensors();
    tensors
        .map(|entry| (entry.name.clone(), (entry.dtype, entry.shape.clone(), checkpoint.bytes(entry).to_vec())))
        .collect()
}

fn matrix(tensors: &Tensors, name: &str) -> Matrix {
    let (dtype, shape, bytes) = &tensors[name];
    let (rows, columns) = (shape[0], shape.get(1).copied().unwrap_or(1));
    let mut matrix = Matrix::zeros(rows, columns);
    decode_to_f32(*dtype, bytes, &mut matrix.values);
    matrix
}

fn rows(matrix: &Matrix, rows: &[usize]) -> Matrix {
    let values = rows.iter().flat_map(|row| matrix.row(*row).iter().copied()).collect();
    Matrix { rows: rows.len(), columns: matrix.columns, values }
}

fn columns(matrix: &Matrix, columns: &[usize]) -> Matrix {
    let values = (0..matrix.rows).flat_map(|row| columns.iter().map(move |column| matrix.row(row)[*column])).collect();
    Matrix { rows: matrix.rows, columns: columns.len(), values }
}

/// Names of an MLP's modules, and its activation.
struct Family {
    gate: &'static str,
    up: Option<&'static str>,
    down: &'static str,
    activation: Smooth,
}

const LLAMA: Family =
    Family { gate: "mlp.gate_proj", up: Some("mlp.up_proj"), down: "mlp.down_proj", activation: Smooth::Silu };
const PHI: Family = Family { gate: "mlp.fc1", up: None, down: "mlp.fc2", activation: Smooth::GeluTanh };

/// Rows times factors.
fn scaled(rows: &Matrix, factors: &[f32]) -> Matrix {
    let mut scaled = rows.clone();
    for (row, factor) in scaled.values.chunks_exact_mut(rows.columns).zip(factors) {
        for value in row {
            *value *= factor;
        }
    }
    scaled
}

/// The polynomials that stored gates, ups and points ask for: s = ratio · s', from (z − z0) / h and (a z − a z0) / h'.
fn coefficients_of(disguise: &Disguise, before: &[Vec<f64>], points: &Points, stored: &Points) -> Vec<Vec<f64>> {
    let of_unit = |unit: usize| {
        let ratio = f64::from(stored.h[unit]) / (f64::from(disguise.gate[unit]) * f64::from(points.h[unit]));
        let powers = before[unit].iter().enumerate();
        powers.map(|(n, p)| p * ratio.powi(n as i32) / f64::from(disguise.up[unit])).collect()
    };
    (0..before.len()).map(of_unit).collect()
}

/// Hardens every other unit of the first layers of a checkpoint, as the page of the audit says.
fn harden(source: &Path, folder: &Path, family: &Family, layers: usize, basis: Basis) {
    let checkpoint = Checkpoint::open(source).unwrap();
    let mut tensors = stored(&checkpoint);
    for layer in 0..layers {
        let name = |module: &str, what: &str| format!("model.layers.{layer}.{module}{what}");
        let (gate_name, down_name) = (name(family.gate, ".weight"), name(family.down, ".weight"));
        let (gate, down) = (matrix(&tensors, &gate_name), matrix(&tensors, &down_name));
        let dtype = tensors[&gate_name].0;
        let units: Vec<usize> = (0..gate.rows).step_by(2).collect();
        let others: Vec<usize> = (1..gate.rows).step_by(2).collect();
        let up_name = family.up.map(|up| name(up, ".weight"));
        let up = up_name.as_ref().map(|up| matrix(&tensors, up));
        let bias_name = name(family.gate, ".bias");
        let bias = tensors.contains_key(&bias_name).then(|| matrix(&tensors, &bias_name).values);
        let mut points = Points::default();
        for unit in 0..units.len() {
            let (lo, hi) = (-2.5 + (unit % 7) as f32 * 0.2, 0.4 + (unit % 11) as f32 * 0.15);
            points.lo.push(lo);
            points.hi.push(hi);
            points.z0.push(f32::midpoint(lo, hi));
            points.h.push(if basis == Basis::Taylor { 1.0 } else { (hi - lo) / 2.0 });
        }
        let polynomial = |unit: usize| {
            coefficients(family.activation, basis, 8, f64::from(points.z0[unit]), f64::from(points.h[unit]))
        };
        let polynomials: Vec<Vec<f64>> = (0..units.len()).map(polynomial).collect();
        let hidden = columns(&down, &units);
        let own_gate = rows(&gate, &units);
        let own_up = up.as_ref().map(|up| rows(up, &units));
        let key = secret(0, &down_name, &hidden.values);
        let disguise = Disguise::draw(&key, &own_gate, own_up.as_ref(), dtype);
        let own_bias: Option<Vec<f32>> = bias.as_ref().map(|bias| units.iter().map(|unit| bias[*unit]).collect());
        let moved = disguise.points(&points, own_bias.as_deref());
        let changed = coefficients_of(&disguise, &polynomials, &points, &moved);
        let mut terms = Vec::new();
        for n in 1..=8 {
            for row in 0..hidden.rows {
                let term = hidden.row(row).iter().zip(&changed).map(|(w, p)| (f64::from(*w) * p[n]) as f32);
                terms.extend(term);
            }
        }
        let zeroth: Vec<f64> = polynomials.iter().map(|polynomial| polynomial[0]).collect();
        let merged = merged(&hidden, &zeroth, own_up.as_ref());
        let mut put = |name: String, dtype: Dtype, shape: Vec<usize>, values: &[f32]| {
            tensors.insert(name, (dtype, shape, encoded(dtype, values)));
        };
        let mut scatter = |name: &str, all: &Matrix, own: &Matrix| {
            let mut all = all.clone();
            for (place, unit) in units.iter().enumerate() {
                all.row_mut(*unit).copy_from_slice(own.row(place));
            }
            put(name.to_owned(), dtype, vec![all.rows, all.columns], &all.values);
        };
        scatter(&gate_name, &gate, &scaled(&own_gate, &disguise.gate));
        if let (Some(name), Some(up), Some(own)) = (&up_name, &up, &own_up) {
            scatter(name, up, &scaled(own, &disguise.up));
        }
        if let Some(mut bias) = bias {
            for unit in &units {
                bias[*unit] = 0.0;
            }
            put(bias_name, dtype, vec![bias.len()], &bias);
        }
        let part = |part: &str| name(family.down, part);
        put(part("_terms.weight"), Dtype::F32, vec![8, down.rows, units.len()], &terms);
        let Points { z0, h, lo, hi } = &moved;
        put(part("_points.weight"), Dtype::F32, vec![4, units.len()], &[&z0[..], h, lo, hi].concat());
        put(part("_plain.weight"), dtype, vec![down.rows, others.len()], &columns(&down, &others).values);
        let shape = if up.is_some() { vec![merged.rows, merged.columns] } else { vec![merged.rows] };
        put(part("_merged.weight"), Dtype::F32, shape, &merged.values);
        let indices = units.iter().flat_map(|unit| (*unit as i32).to_le_bytes()).collect();
        tensors.insert(part("_units"), (Dtype::I32, vec![units.len()], indices));
        tensors.remove(&down_name);
    }
    write(folder, &tensors, &checkpoint.config().unwrap().text);
}

/// A small model without up projections, with biases.
fn phi(folder: &Path) -> PathBuf {
    let mut state = 1_u32;
    let mut fill = |rows: usize, columns: usize| -> Vec<f32> {
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 0.3
        };
        (0..rows * columns).map(next).collect()
    };
    let mut tensors = Tensors::new();
    for (name, rows, columns) in [("fc1.weight", 48, 32), ("fc2.weight", 32, 48), ("fc1.bias", 48, 1)] {
        let shape = if columns > 1 { vec![rows, columns] } else { vec![rows] };
        let bytes = encoded(Dtype::BF16, &fill(rows, columns));
        tensors.insert(format!("model.layers.0.mlp.{name}"), (Dtype::BF16, shape, bytes));
    }
    let path = folder.join("phi");
    write(&path, &tensors, r#"{"model_type": "phi", "hidden_act": "gelu_new"}"#);
    path
}

/// Writes an artifact of the example with pass `taylor_mlp`.
fn expanded(folder: &Path, settings: &str) -> PathBuf {
    let text = fs::read_to_string(fixture("calibrated/taylor-mlp.toml")).unwrap();
    let text = text.replace("order = 8\n", settings).replace("../text", fixture("text").to_str().unwrap());
    let recipe = folder.join("recipe.toml");
    fs::write(&recipe, text).unwrap();
    let out = folder.join("artifact");
    expect_exit(
        bantam().args(["run", "--quiet"]).arg(recipe).arg("--model").arg(fixture("tiny-llama")).arg("--out").arg(&out),
        0,
    );
    out
}

#[test]
fn every_column_of_a_plain_artifact_is_recovered_by_both_attacks_in_both_bases() {
    for settings in ["order = 8\n", "order = 8\nbasis = \"chebyshev\"\n"] {
        let folder = tempfile::tempdir().unwrap();
        let artifact = expanded(folder.path(), settings);
        let source = fixture("tiny-llama");
        let report = audit(&artifact, Some(&source));
        assert_eq!(report["recovered_share"], 1.0, "{report}");
        assert_eq!(report["recovered"], 4 * 384);
        for layer in report["layers"].as_array().unwrap() {
            let attacks = layer["attacks"].as_array().unwrap();
            assert_eq!(
                attacks.iter().map(|attack| attack["attack"].as_str().unwrap()).collect::<Vec<_>>(),
                ["point", "ratios"]
            );
            for attack in attacks {
                assert!(attack["error"]["largest"].as_f64().unwrap() < 1e-5, "{settings}: {attack}");
                assert_eq!(attack["gates"], layer["protected"], "{attack}");
            }
        }
        // The judge changes nothing about the recovery.
        let alone = audit(&artifact, None);
        assert_eq!(alone["recovered_share"], 1.0);
        assert_eq!(alone["against_source"], false);
        assert_eq!(
            alone["layers"][0]["attacks"][0]["inconsistency"],
            report["layers"][0]["attacks"][0]["inconsistency"]
        );
    }
}

#[test]
fn hardened_columns_are_recovered_up_to_the_scale_of_their_units() {
    for basis in [Basis::Taylor, Basis::Chebyshev] {
        let folder = tempfile::tempdir().unwrap();
        let (source, artifact) = (fixture("tiny-llama"), folder.path().join("hardened"));
        harden(&source, &artifact, &LLAMA, 4, basis);
        let report = audit(&artifact, Some(&source));
        assert_eq!(report["recovered_share"], 1.0, "{report}");
        for layer in report["layers"].as_array().unwrap() {
            let (attack, withheld) = (&layer["attacks"][0], &layer["withheld"]);
            assert!(attack["error"]["largest"].as_f64().unwrap() < 1e-5, "{attack}");
            assert_eq!(attack["gates"], layer["protected"]);
            assert!(withheld["merged_error"].as_f64().unwrap() < 1e-5, "{withheld}");
            // One factor of the fourteen is 1.
            let same = withheld["as_they_are"].as_f64().unwrap() / layer["protected"].as_f64().unwrap();
            assert!(same < 0.15, "{withheld}");
            // The lengths of unprotected units tell magnitudes; nothing tells signs.
            assert_eq!(withheld["guessed_magnitudes"], layer["protected"]);
            let negative = withheld["negative"].as_f64().unwrap() / layer["protected"].as_f64().unwrap();
            assert!((0.35..0.65).contains(&negative), "{withheld}");
        }
        assert_eq!(audit(&artifact, None)["recovered_share"], 1.0);
    }
}

#[test]
fn a_withheld_bias_is_solved_for() {
    for basis in [Basis::Taylor, Basis::Chebyshev] {
        let folder = tempfile::tempdir().unwrap();
        let (source, artifact) = (phi(folder.path()), folder.path().join("hardened"));
        harden(&source, &artifact, &PHI, 1, basis);
        let report = audit(&artifact, Some(&source));
        assert_eq!(report["recovered"], 24, "{report}");
        assert_eq!(report["layers"][0]["attacks"][0]["attack"], "ratios");
        assert!(report["layers"][0]["withheld"]["merged_error"].as_f64().unwrap() < 1e-5, "{report}");
    }
}

#[test]
fn what_is_no_product_of_a_column_and_a_polynomial_is_not_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let (source, artifact) = (phi(folder.path()), folder.path().join("hardened"));
    harden(&source, &artifact, &PHI, 1, Basis::Taylor);
    let checkpoint = Checkpoint::open(&artifact).unwrap();
    let mut tensors = stored(&checkpoint);
    let config = checkpoint.config().unwrap().text.clone();
    let name = "model.layers.0.mlp.fc2_terms.weight";
    let values: Vec<f32> = (0..8 * 32 * 24_usize).map(|i| (i * 7919 % 1009) as f32 / 500.0 - 1.0).collect();
    tensors.get_mut(name).unwrap().2 = encoded(Dtype::F32, &values);
    let noise = folder.path().join("noise");
    write(&noise, &tensors, &config);
    assert_eq!(audit(&noise, None)["recovered"], 0);
    assert_eq!(audit(&noise, Some(&source))["recovered"], 0);

    // Units that do not ascend.
    tensors.get_mut("model.layers.0.mlp.fc2_units").unwrap().2.fill(0);
    let wrong = folder.path().join("wrong");
    write(&wrong, &tensors, &config);
    let output = expect_exit(bantam().arg("audit").arg(&wrong), 3);
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not ascend"));
}

#[test]
fn an_artifact_of_another_pass_is_refused_with_what_to_do() {
    let output = expect_exit(bantam().arg("audit").arg(fixture("tiny-llama")), 3);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("no expanded layers") && message.contains("taylor_mlp"), "{message}");
}
