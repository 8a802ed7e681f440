//! Stored forms that bantam reads but does not write, against weights worked out element by element; and parts that do
//! not fit together, each refused by name.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeMap, path::Path};

use bantam::{
    checkpoint::{Checkpoint, Dtype},
    layout::LogicalCheckpoint,
};
use half::{bf16, f16};
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Stored {
    (name.to_owned(), dtype, shape.to_vec(), bytes)
}

fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn halves(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect()
}

fn brains(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect()
}

fn singles(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn write(folder: &Path, tensors: &[Stored], config: &Value) {
    let views: BTreeMap<&str, TensorView> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), json!({ "quantization_config": config }).to_string()).unwrap();
}

fn open(tensors: &[Stored], config: &Value) -> Result<LogicalCheckpoint, String> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), tensors, config);
    LogicalCheckpoint::open(Checkpoint::open(folder.path()).unwrap()).map_err(|error| error.to_string())
}

fn weights(read: &LogicalCheckpoint, name: &str, transposed: bool) -> Vec<f32> {
    let source = read.rows(name, transposed).unwrap();
    let mut all = vec![0.0; source.rows() * source.columns()];
    source.read_rows(0, &mut all).unwrap();
    all
}

/// The error of `rows`.
fn refusal(read: &LogicalCheckpoint, name: &str) -> String {
    match read.rows(name, false) {
        Ok(_) => panic!("{name} has rows"),
        Err(error) => error.to_string(),
    }
}

/// FP8 values of a few bytes, by hand.
const FP8: [(u8, f32); 4] = [(0x38, 1.0), (0x40, 2.0), (0xb8, -1.0), (0x44, 3.0)];

#[test]
fn fp8_blocks_are_multiplied_by_their_inverse_scale() {
    let (rows, columns) = (130, 200);
    let code = |row: usize, column: usize| FP8[(row * 7 + column) % 4];
    let scales = [0.5f32, 2.0, 4.0, 0.25];
    let bytes = (0..rows).flat_map(|row| (0..columns).map(move |column| code(row, column).0)).collect();
    let tensors = [
        tensor("a.weight", Dtype::F8_E4M3, &[rows, columns], bytes),
        tensor("a.weight_scale_inv", Dtype::F32, &[2, 2], singles(scales)),
        tensor("norm.weight", Dtype::BF16, &[2], brains([1.0, 2.0])),
    ];
    let config = json!({ "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128] });
    let read = open(&tensors, &config).unwrap();
    assert_eq!(read.tensors().len(), 2);
    let logical = read.tensor("a.weight").unwrap();
    assert_eq!((logical.format, logical.describe()), ("fp8-block-inverse", "fp8-block128x128".to_owned()));
    assert_eq!((logical.dtype, logical.stored_bytes), (Dtype::BF16, (rows * columns + 16) as u64));
    let expected: Vec<f32> = (0..rows)
        .flat_map(|row| (0..columns).map(move |column| code(row, column).1 * scales[row / 128 * 2 + column / 128]))
        .collect();
    assert_eq!(weights(&read, "a.weight", false), expected);
    // Rows that start in the middle of a block and end in the next.
    let mut some = vec![0.0; 5 * columns];
    read.rows("a.weight", false).unwrap().read_rows(125, &mut some).unwrap();
    assert_eq!(some, expected[125 * columns..]);
    assert_eq!(weights(&read, "norm.weight", false), [1.0, 2.0]);
    assert!(read.tensor("norm.weight").unwrap().is_plain());
}

#[test]
fn fp8_blocks_need_no_configuration_and_must_fit() {
    let tensors = |scale_shape: &[usize]| {
        let scales = singles(vec![1.0; scale_shape.iter().product()]);
        [
            tensor("a.weight", Dtype::F8_E4M3, &[256, 128], vec![0x38; 256 * 128]),
            tensor("a.weight_scale_inv", Dtype::F32, scale_shape, scales),
        ]
    };
    assert!(open(&tensors(&[2, 1]), &Value::Null).is_ok());
    let error = open(&tensors(&[2, 2]), &Value::Null).unwrap_err();
    assert!(error.contains("`a.weight_scale_inv` has shape [2, 2]; expected [2, 1]"), "{error}");
    let config = json!({ "quant_method": "fp8", "weight_block_size": [0, 128] });
    assert!(open(&tensors(&[2, 1]), &config).unwrap_err().contains("weight_block_size"));
}

#[test]
fn mxfp4_experts_equal_the_dense_checkpoint() {
    const FP4: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    let (experts, outputs, groups) = (2, 5, 3);
    let inputs = groups * 32;
    let code = |expert: usize, output: usize, input: usize| (expert * 3 + output * 5 + input * 7) % 16;
    let exponent = |expert: usize, output: usize, group: usize| (120 + (expert + output * 2 + group) % 9) as u8;
    let (mut blocks, mut scales) = (Vec::new(), Vec::new());
    for expert in 0..experts {
        for output in 0..outputs {
            for group in 0..groups {
                scales.push(exponent(expert, output, group));
                for byte in 0..16 {
                    let input = group * 32 + byte * 2;
                    blocks.push((code(expert, output, input) | code(expert, output, input + 1) << 4) as u8);
                }
            }
        }
    }
    let tensors = [
        tensor("e.gate_up_proj_blocks", Dtype::U8, &[experts, outputs, groups, 16], blocks),
        tensor("e.gate_up_proj_scales", Dtype::U8, &[experts, outputs, groups], scales),
        tensor("e.gate_up_proj_bias", Dtype::BF16, &[experts, outputs], brains(vec![0.0; experts * outputs])),
    ];
    let read = open(&tensors, &json!({ "quant_method": "mxfp4" })).unwrap();
    let logical = read.tensor("e.gate_up_proj").unwrap();
    assert_eq!(logical.shape, [experts, inputs, outputs]);
    assert_eq!((logical.format, logical.describe()), ("mxfp4-blocks", "mxfp4".to_owned()));
    let value = |expert, output, input: usize| {
        FP4[code(expert, output, input)] * 2f32.powi(i32::from(exponent(expert, output, input / 32)) - 127)
    };
    let (mut as_stored, mut as_matrix) = (Vec::new(), Vec::new());
    for expert in 0..experts {
        as_stored.extend((0..inputs).flat_map(|input| (0..outputs).map(move |output| value(expert, output, input))));
        as_matrix.extend((0..outputs).flat_map(|output| (0..inputs).map(move |input| value(expert, output, input))));
    }
    assert_eq!(weights(&read, "e.gate_up_proj", false), as_stored);
    assert_eq!(weights(&read, "e.gate_up_proj", true), as_matrix);
    assert_eq!(read.coded_rows("e.gate_up_proj", 7, 2).unwrap().codes[3] as usize, code(1, 2, 3));
}

/// A GPTQ matrix of 32 inputs in 4 groups, 32 outputs, 4 bits, stored by the formula of each field.
fn gptq(group_of_input: &[u32; 32], zero: impl Fn(usize, usize) -> u32) -> (Vec<Stored>, Vec<f32>) {
    let code = |input: usize, output: usize| ((input * 5 + output * 3) % 16) as u32;
    let scale = |group: usize, output: usize| (1 + group + output) as f32 / 64.0;
    let qweight = (0..4).flat_map(|word| {
        (0..32).map(move |output| (0..8).fold(0, |packed, lane| packed | code(word * 8 + lane, output) << (4 * lane)))
    });
    let stored_zero = |group, output| zero(group, output).wrapping_sub(1) & 15;
    let mut qzeros = Vec::new();
    for group in 0..4 {
        for word in 0..4 {
            qzeros.push((0..8).fold(0, |packed, lane| packed | stored_zero(group, word * 8 + lane) << (4 * lane)));
        }
    }
    let tensors = vec![
        tensor("a.qweight", Dtype::I32, &[4, 32], words(qweight)),
        tensor("a.qzeros", Dtype::I32, &[4, 4], words(qzeros)),
        tensor("a.scales", Dtype::F16, &[4, 32], halves((0..4).flat_map(|g| (0..32).map(move |o| scale(g, o))))),
        tensor("a.g_idx", Dtype::I32, &[32], words(*group_of_input)),
    ];
    let mut expected = Vec::new();
    for output in 0..32 {
        for (input, &group) in group_of_input.iter().enumerate() {
            let difference = code(input, output) as f32 - zero(group as usize, output) as f32;
            expected.push(difference * scale(group as usize, output));
        }
    }
    (tensors, expected)
}

#[test]
fn gptq_with_permuted_groups() {
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": true });
    for symmetric in [false, true] {
        let zero =
            move |group: usize, output: usize| if symmetric { 8 } else { ((group * 7 + output) % 15 + 1) as u32 };
        let (tensors, expected) = gptq(&std::array::from_fn(|input| (input * 11 % 4) as u32), zero);
        let read = open(&tensors, &config).unwrap();
        let logical = read.tensor("a.weight").unwrap();
        assert_eq!((logical.codec.as_ref(), logical.format), (None, "gptq-act-order"));
        assert!(!logical.is_plain());
        assert_eq!(logical.describe(), "gptq-act-order");
        assert_eq!(weights(&read, "a.weight", false), expected);
        assert!(read.coded_rows("a.weight", 0, 1).unwrap_err().to_string().contains("no codes"));
        // Groups of consecutive inputs are a codec, whatever `desc_act` says.
        let (tensors, expected) = gptq(&std::array::from_fn(|input| (input / 8) as u32), zero);
        let read = open(&tensors, &config).unwrap();
        assert_eq!(read.tensor("a.weight").unwrap().describe(), if symmetric { "int4-g8" } else { "int4-g8-asym" });
        assert_eq!(weights(&read, "a.weight", false), expected);
    }
}

#[test]
fn gptq_zero_points_of_zero_wrap_within_their_field() {
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 8 });
    let (tensors, expected) = gptq(&std::array::from_fn(|input| (input / 8) as u32), |_, output| (output % 3) as u32);
    assert_eq!(weights(&open(&tensors, &config).unwrap(), "a.weight", false), expected);
}

#[test]
fn gptq_parts_that_do_not_fit_are_refused() {
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 8 });
    let change = |index: usize, replacement: Option<Stored>| {
        let (mut tensors, _) = gptq(&std::array::from_fn(|input| (input / 8) as u32), |_, _| 8);
        tensors.remove(index);
        tensors.extend(replacement);
        open(&tensors, &config).unwrap_err()
    };
    for (index, replacement, expected) in [
        (1, None, "`a.weight` is stored in format `gptq`, but its tensor `a.qzeros` is missing"),
        (2, None, "its tensor `a.scales` is missing"),
        (
            1,
            Some(tensor("a.qzeros", Dtype::I32, &[4, 5], vec![0; 80])),
            "`a.qzeros` has shape [4, 5]; expected 32 zero",
        ),
        (1, Some(tensor("a.qzeros", Dtype::F32, &[4, 4], vec![0; 64])), "`a.qzeros` has type F32; expected I32"),
        (
            2,
            Some(tensor("a.scales", Dtype::F16, &[3, 32], vec![0; 192])),
            "`a.scales` has shape [3, 32]; expected [4, 32]",
        ),
        (2, Some(tensor("a.scales", Dtype::I8, &[4, 32], vec![0; 128])), "`a.scales` has type I8; expected F16, BF16"),
        (3, Some(tensor("a.g_idx", Dtype::I32, &[31], vec![0; 124])), "`a.g_idx` has shape [31]; expected [32]"),
        (3, Some(tensor("a.g_idx", Dtype::I32, &[32], words([4; 32]))), "`a.g_idx`: column 0 is in group 4 of 4"),
        (3, Some(tensor("a.g_idx", Dtype::I32, &[32], words([u32::MAX; 32]))), "column 0 is in group -1 of 4"),
        (0, Some(tensor("a.qweight", Dtype::I32, &[0, 32], vec![])), "`a.qweight` has shape [0, 32]; expected two"),
    ] {
        let error = change(index, replacement);
        assert!(error.contains(expected), "{error} should contain {expected}");
    }
    let (mut tensors, _) = gptq(&[0; 32], |_, _| 8);
    tensors.push(tensor("a.weight", Dtype::F16, &[1], vec![0; 2]));
    assert!(open(&tensors, &config).unwrap_err().contains("`a.weight` is stored twice"));
    tensors.pop();
    let error = open(&tensors, &json!({ "quant_method": "gptq", "checkpoint_format": "marlin" })).unwrap_err();
    assert!(error.contains("checkpoint_format") && error.contains("marlin"), "{error}");
    let error = open(&tensors, &Value::Null).unwrap_err();
    assert!(error.contains("`quantization_config.quant_method` is missing"), "{error}");
    let error = open(&tensors, &json!({ "quant_method": "bitsandbytes" })).unwrap_err();
    assert!(error.contains("`bitsandbytes`, which bantam does not read"), "{error}");
}

fn packed_config(bits: u8, symmetric: bool) -> Value {
    json!({ "quant_method": "compressed-tensors", "config_groups": { "group_0": {
        "targets": ["Linear"],
        "weights": { "num_bits": bits, "type": "int", "strategy": "group", "group_size": 20, "symmetric": symmetric },
    } } })
}

#[test]
fn three_bit_words_from_before_and_after_the_dense_stream() {
    let (rows, columns) = (3, 40);
    let code = |row: usize, column: usize| ((row * 3 + column * 5) % 8) as u32;
    let scale = |row: usize, group: usize| (1 + row + 2 * group) as f32;
    let zero = |row: usize, group: usize| ((row * 2 + group) % 8) as u32;
    // A word of the old form holds ten codes; the old zero points lie the same way down the rows.
    let mut old = Vec::new();
    for row in 0..rows {
        old.extend((0..4).map(|w| (0..10).fold(0, |word, lane| word | code(row, w * 10 + lane) << (3 * lane))));
    }
    let old_zeros = (0..2).map(|group| (0..rows).fold(0, |word, row| word | zero(row, group) << (3 * row)));
    let mut new = Vec::new();
    for row in 0..rows {
        let stream = (0..columns).fold(0u128, |stream, column| stream | u128::from(code(row, column)) << (3 * column));
        new.extend((0..4).map(|w| (stream >> (32 * w)) as u32));
    }
    let expected: Vec<f32> = (0..rows)
        .flat_map(|row| {
            (0..columns)
                .map(move |column| (code(row, column) as f32 - zero(row, column / 20) as f32) * scale(row, column / 20))
        })
        .collect();
    // 40 codes of 3 bits fill 4 words in both forms: the version decides.
    for (packed, version) in [(&new, "0.17.0"), (&new, "1.2"), (&old, "0.14.0.1")] {
        let tensors = [
            tensor("a.weight_packed", Dtype::I32, &[rows, 4], words(packed.iter().copied())),
            tensor(
                "a.weight_scale",
                Dtype::BF16,
                &[rows, 2],
                brains((0..rows).flat_map(|r| (0..2).map(move |g| scale(r, g)))),
            ),
            tensor("a.weight_zero_point", Dtype::I32, &[1, 2], words(old_zeros.clone())),
            tensor("a.weight_shape", Dtype::I64, &[2], [3i64, 40].iter().flat_map(|n| n.to_le_bytes()).collect()),
        ];
        let mut config = packed_config(3, false);
        config["version"] = json!(version);
        assert_eq!(weights(&open(&tensors, &config).unwrap(), "a.weight", false), expected, "{version}");
    }
}

#[test]
fn old_three_bit_words_are_known_by_their_number() {
    // 128 codes of 3 bits are 12 words as a stream, and 13 words of ten codes.
    let (rows, columns, word_count) = (2, 128, 13);
    let code = |row: usize, column: usize| ((row * 3 + column * 5) % 8) as u32;
    let mut wide = Vec::new();
    for row in 0..rows {
        for w in 0..word_count {
            let lanes = (0..10).filter(|lane| w * 10 + lane < columns);
            wide.push(lanes.fold(0, |word, lane| word | code(row, w * 10 + lane) << (3 * lane)));
        }
    }
    let tensors = |words_in_row: usize, packed: &[u32]| {
        [
            tensor("a.weight_packed", Dtype::I32, &[rows, words_in_row], words(packed.iter().copied())),
            tensor("a.weight_scale", Dtype::BF16, &[rows, 7], brains(vec![1.0; rows * 7])),
            tensor(
                "a.weight_shape",
                Dtype::I64,
                &[2],
                [2i64, columns as i64].iter().flat_map(|n| n.to_le_bytes()).collect(),
            ),
        ]
    };
    let read = open(&tensors(13, &wide), &packed_config(3, true)).unwrap();
    let expected: Vec<f32> =
        (0..rows).flat_map(|row| (0..columns).map(move |column| code(row, column) as f32 - 4.0)).collect();
    assert_eq!(weights(&read, "a.weight", false), expected);
    assert!(open(&tensors(12, &wide[..24]), &packed_config(3, true)).is_ok());
    let error = open(&tensors(11, &wide[..22]), &packed_config(3, true)).unwrap_err();
    assert!(
        error.contains("has shape [2, 11]; expected [2, 12] (or [2, 13] from before 0.17) for 128 codes"),
        "{error}"
    );
}

#[test]
fn compressed_tensors_parts_that_do_not_fit_are_refused() {
    let good = || {
        vec![
            tensor("a.weight_packed", Dtype::I32, &[3, 5], vec![0; 60]),
            tensor("a.weight_scale", Dtype::BF16, &[3, 2], vec![0; 12]),
            tensor("a.weight_shape", Dtype::I64, &[2], [3i64, 40].iter().flat_map(|n| n.to_le_bytes()).collect()),
        ]
    };
    assert!(open(&good(), &packed_config(4, true)).is_ok());
    let shape = |rows: i64, columns: i64| [rows, columns].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    for (index, replacement, expected) in [
        (0, tensor("a.weight_packed", Dtype::I32, &[60], vec![0; 240]), "expected two dimensions"),
        (0, tensor("a.weight_packed", Dtype::I64, &[3, 5], vec![0; 120]), "has type I64; expected I32"),
        (
            1,
            tensor("a.weight_scale", Dtype::BF16, &[3, 3], vec![0; 18]),
            "[3, 3]; expected [3, 2] (strategy group of 20",
        ),
        (1, tensor("a.weight_scale", Dtype::I32, &[3, 2], vec![0; 24]), "has type I32; expected F16, BF16 or F32"),
        (2, tensor("a.weight_shape", Dtype::I64, &[2], shape(4, 40)), "tells the shape [4, 40]; expected 3 rows"),
        (2, tensor("a.weight_shape", Dtype::I64, &[2], shape(3, -1)), "tells the shape [3, -1]"),
        (2, tensor("a.weight_shape", Dtype::I64, &[2], shape(3, i64::MAX)), "can be addressed"),
        (2, tensor("a.weight_shape", Dtype::I64, &[2], shape(3, 1 << 40)), "[3, 5]; expected [3, 137438953472]"),
        (2, tensor("a.weight_shape", Dtype::I64, &[1], vec![0; 8]), "has shape [1]; expected [2]"),
    ] {
        let mut tensors = good();
        tensors[index] = replacement;
        let error = open(&tensors, &packed_config(4, true)).unwrap_err();
        assert!(error.contains(expected), "{error} should contain {expected}");
    }
    let error = open(&good(), &packed_config(4, false)).unwrap_err();
    assert!(error.contains("`a.weight_zero_point` is missing"), "{error}");
    for (key, value, expected) in [
        ("num_bits", json!(9), "weights.num_bits` is 9 (int); expected integers of 2 to 8"),
        ("num_bits", json!(999), "weights.num_bits` is 999"),
        ("group_size", json!(0), "weights.group_size` is missing; expected a number above 0"),
        ("strategy", json!("spiral"), "weights.strategy` is `spiral`; expected tensor"),
    ] {
        let mut config = packed_config(4, true);
        config["config_groups"]["group_0"]["weights"][key] = value;
        let error = open(&good(), &config).unwrap_err();
        assert!(error.contains(expected), "{error} should contain {expected}");
    }
    assert!(open(&good(), &json!({ "quant_method": "compressed-tensors" })).unwrap_err().contains("config_groups"));
}

#[test]
fn sparse_fp8_codes_and_masks_that_keep_too_many() {
    let tensors = |mask: Vec<u8>| {
        [
            tensor("a.compressed", Dtype::F8_E4M3, &[2, 4], vec![0x38, 0x40, 0xb8, 0x44, 0x40, 0x40, 0x38, 0x38]),
            tensor("a.bitmask", Dtype::U8, &[2, 1], mask),
            tensor("a.shape", Dtype::I64, &[2, 1], [2i64, 8].iter().flat_map(|n| n.to_le_bytes()).collect()),
            tensor("a.weight_scale", Dtype::BF16, &[2, 1], brains([0.5, 2.0])),
        ]
    };
    let config = json!({ "quant_method": "compressed-tensors", "sparsity_config": { "format": "sparse-24-bitmask" } });
    let read = open(&tensors(vec![0b1001_0110, 0b0011_1100]), &config).unwrap();
    assert_eq!(read.tensor("a.weight").unwrap().describe(), "fp8-channel");
    let expected = [0.0, 0.5, 1.0, 0.0, -0.5, 0.0, 0.0, 1.5, 0.0, 0.0, 4.0, 4.0, 2.0, 2.0, 0.0, 0.0];
    assert_eq!(weights(&read, "a.weight", false), expected);
    let error = open(&tensors(vec![0b1001_0110, 0b1011_1100]), &config).unwrap_err();
    assert!(error.contains("`a.bitmask`: row 1 keeps 5 of 8 weights; expected half"), "{error}");
}

#[test]
fn asymmetric_int8_has_signed_zero_points() {
    let tensors = [
        tensor("a.weight", Dtype::I8, &[2, 2], vec![0x80, 0x7f, 0x00, 0xff]),
        tensor("a.weight_scale", Dtype::F16, &[2, 1], halves([1.0, 0.5])),
        tensor("a.weight_zero_point", Dtype::I8, &[2, 1], vec![0xfe, 0x03]),
        tensor("a.input_scale", Dtype::F16, &[1], halves([1.0])),
    ];
    let read = open(&tensors, &Value::Null).unwrap();
    assert_eq!(read.tensors().len(), 1);
    assert_eq!(weights(&read, "a.weight", false), [-126.0, 129.0, -1.5, -2.0]);
    assert_eq!(read.coded_rows("a.weight", 0, 2).unwrap().zeros, [126.0, 131.0]);
}

#[test]
fn plain_tensors_of_every_rank_and_tensors_without_weights() {
    let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
    let tensors = [
        tensor("cube", Dtype::F32, &[2, 3, 4], singles(values.clone())),
        tensor("scalar", Dtype::F16, &[], halves([7.0])),
        tensor("ids", Dtype::I64, &[1], vec![0; 8]),
    ];
    let read = open(&tensors, &Value::Null).unwrap();
    assert_eq!(weights(&read, "cube", false), values);
    let turned: Vec<f32> =
        (0..2).flat_map(|a| (0..4).flat_map(move |c| (0..3).map(move |b| (a * 12 + b * 4 + c) as f32))).collect();
    assert_eq!(weights(&read, "cube", true), turned);
    let source = read.rows("cube", true).unwrap();
    assert_eq!((source.rows(), source.columns()), (8, 3));
    let mut across = vec![0.0; 9];
    source.read_rows(3, &mut across).unwrap();
    assert_eq!(across, turned[9..18]);
    assert_eq!(weights(&read, "scalar", true), [7.0]);
    assert!(refusal(&read, "ids").contains("`ids` has type I64, which holds no weights"));
    assert!(refusal(&read, "none").contains("there is no tensor `none`"));
    assert!(read.coded_rows("cube", 0, 1).unwrap_err().to_string().contains("stored as `plain`"));
}

#[test]
fn our_own_layout_checks_what_it_is_told() {
    let config = |shape: Value, version: u64| {
        json!({ "quant_method": "bantam", "version": version, "groups": [{
            "codec": "int3-channel", "scale_dtype": "BF16",
            "dtype": "BF16", "outliers": true, "transposed": false, "activations": "none",
            "tensors": { "a": shape },
        }] })
    };
    let tensors = |starts: [u32; 3], columns: [u16; 2]| {
        [
            tensor("a.codes", Dtype::U8, &[2, 2], vec![0; 4]),
            tensor("a.scales", Dtype::BF16, &[2, 1], brains([1.0, 2.0])),
            tensor("a.outlier_row_starts", Dtype::I32, &[3], words(starts)),
            tensor("a.outlier_columns", Dtype::I16, &[2], columns.into_iter().flat_map(u16::to_le_bytes).collect()),
            tensor("a.outlier_values", Dtype::BF16, &[2], brains([9.0, 8.0])),
        ]
    };
    let read = open(&tensors([0, 1, 2], [4, 0]), &config(json!([2, 5]), 1)).unwrap();
    assert_eq!(weights(&read, "a", false), [-4.0, -4.0, -4.0, -4.0, 9.0, 8.0, -8.0, -8.0, -8.0, -8.0]);
    for (starts, columns) in
        [([0, 3, 2], [0, 1]), ([1, 1, 2], [0, 1]), ([0, 1, 1], [0, 1]), ([0, 0, 2], [1, 1]), ([0, 1, 2], [0, 5])]
    {
        let read = open(&tensors(starts, columns), &config(json!([2, 5]), 1)).unwrap();
        assert!(refusal(&read, "a").contains("`a.outlier_row_starts`"), "{starts:?} {columns:?}");
    }
    for (shape, version, expected) in [
        (json!([2, 5]), 3, "version` is 3; this bantam reads versions 1 and 2"),
        (json!([2, 6]), 1, "`a.codes` has shape [2, 2]; expected [2, 3]"),
        (json!([5]), 1, "groups.0.tensors.a` is [5]; expected two or three lengths"),
        (json!([2, 0]), 1, "expected lengths above 0"),
        (json!([2, -1]), 1, "groups.0"),
        (json!([4294967296u64, 4294967296u64]), 1, "groups.0.tensors.a"),
    ] {
        let error = open(&tensors([0, 1, 2], [4, 0]), &config(shape, version)).unwrap_err();
        assert!(error.contains(expected), "{error} should contain {expected}");
    }
}
