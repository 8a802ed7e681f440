use std::path::Path;

use serde_json::json;

use super::{
    ContentHash, Fallback, FileEntry, InputTensor, Manifest, ManifestError, OutputTensor, Part, SCHEMA, Tool, Totals,
};
use crate::{checkpoint::Dtype, evaluate::ErrorFigures, layout::LayoutName};

fn manifest() -> Manifest {
    let hash = ContentHash::of(b"weights");
    let input = |name: &str| InputTensor { name: name.into(), dtype: Dtype::BF16, shape: vec![2, 3], bytes: 12, hash };
    let output = |name: &str, error| OutputTensor {
        expansion: None,
        name: name.into(),
        source: vec![name.into()],
        passes: vec![],
        codec: "bf16".into(),
        matrix: None,
        mask: None,
        shape: vec![2, 3],
        parts: vec![Part { name: name.into(), dtype: Dtype::BF16, shape: vec![2, 3], bytes: 12, hash }],
        bits_per_weight: 16.0,
        error,
        calibration: None,
        device: None,
        input: None,
        hash: ContentHash::of_parts(&[hash]),
    };
    let error = ErrorFigures { relative: 0.1, snr_db: Some(20.0), max_abs: 0.5, cosine: 0.99 };
    Manifest {
        schema: SCHEMA.into(),
        tool: Tool::default(),
        recipe: json!({"schema": 1}),
        layout: LayoutName::Dense,
        base: Vec::new(),
        merged: Vec::new(),
        inputs: vec![input("b"), input("a")],
        tensors: vec![output("b", Some(error)), output("a", None)],
        files: vec![FileEntry { name: "config.json".into(), bytes: 2, hash: ContentHash::of(b"{}") }],
        training: None,
        fallbacks: vec![Fallback { kind: "kept".into(), tensor: "a".into(), count: 1, message: "why".into() }],
        totals: Totals {
            tensors: 2,
            compressed_tensors: 0,
            weights: 12,
            compressed_weights: 0,
            bits_per_weight: None,
            source_bytes: 24,
            artifact_bytes: 24,
        },
    }
}

fn refusal(text: &str) -> String {
    Manifest::parse(text, Path::new("x/manifest.json")).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read_back_sorted() {
    let text = manifest().to_json().unwrap();
    assert!(text.ends_with("}\n"));
    let read = Manifest::parse(&text, Path::new("manifest.json")).unwrap();
    assert_eq!(read.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(read.tensor("b"), manifest().tensor("b"));
    assert_eq!(read.to_json().unwrap(), text);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let text = manifest().to_json().unwrap().replacen("\"count\": 1", "\"counts\": 1", 1);
    let message = refusal(&text);
    let line = text.lines().position(|line| line.contains("counts")).unwrap() + 1;
    assert!(message.starts_with(&format!("x/manifest.json:{line}:")), "{message}");
    assert!(message.contains("unknown field `counts`") && message.contains("in `\"counts\": 1,`"), "{message}");
}

#[test]
fn a_wrong_type_shows_the_line_that_names_the_key() {
    let text = manifest().to_json().unwrap().replacen("\"bytes\": 12", "\"bytes\": \"12\"", 1);
    let message = refusal(&text);
    assert!(message.contains("expected u64") && message.contains("\"bytes\": \"12\""), "{message}");
}

#[test]
fn contradictions_are_refused() {
    let mut wrong = manifest();
    wrong.inputs[0].bytes = 13;
    let message = refusal(&wrong.to_json().unwrap());
    assert_eq!(message, "x/manifest.json: key `inputs.b`: BF16 of shape [2, 3] is 12 bytes, not 13");

    let mut wrong = manifest();
    wrong.tensors[1].name = "b".into();
    assert!(refusal(&wrong.to_json().unwrap()).contains("`tensors.b`: stands there twice"));

    let mut wrong = manifest();
    wrong.tensors[0].parts[0].shape = vec![usize::MAX, usize::MAX];
    assert!(refusal(&wrong.to_json().unwrap()).contains("more than can be"));

    let mut wrong = manifest();
    wrong.files[0].name = "../config.json".into();
    assert!(refusal(&wrong.to_json().unwrap()).contains("not a plain file name"));
}

#[test]
fn another_schema_is_named_before_its_keys_are_judged() {
    let message = refusal("{\"schema\": \"bantam.manifest/9\", \"new\": 1}");
    assert_eq!(message, "x/manifest.json: key `schema` is `bantam.manifest/9`, this version reads `bantam.manifest/1`");
    assert!(refusal("{}").contains("missing field `schema`"));
    assert!(refusal("{\"schema\"").contains("x/manifest.json:1:"));
}

#[test]
fn an_infinite_error_survives_as_null() {
    let mut infinite = manifest();
    infinite.tensors[0].error =
        Some(ErrorFigures { relative: f64::INFINITY, snr_db: None, max_abs: f64::INFINITY, cosine: 0.0 });
    let read = Manifest::parse(&infinite.to_json().unwrap(), Path::new("manifest.json")).unwrap();
    assert_eq!(read.tensor("b"), infinite.tensor("b"));
}

#[test]
fn a_figure_that_json_cannot_hold_is_refused() {
    let mut wrong = manifest();
    wrong.tensors[0].bits_per_weight = f64::NAN;
    assert!(
        matches!(wrong.to_json(), Err(ManifestError::Unwritable { key, .. }) if key == "tensors.b.bits_per_weight")
    );
}
