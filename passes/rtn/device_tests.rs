//! Whole stripes on the device against the processor's: codes, scales, zero points and deviations, all equal.

use half::{bf16, f16};

use super::Settings;
use crate::{
    checkpoint::Dtype,
    codec::{DenseRows, MatrixParameters, RowSource, ScaleFormat},
    compute::{ComputeError, tests::fixtures},
    passes::{Matrix, MatrixEncoder},
};

const RECIPES: [&str; 10] = [
    "bits = 2\ngroup_size = 16",
    "bits = 4\ngroup_size = 128",
    "bits = 3\ngroup_size = 37\nsymmetric = false",
    "bits = 8\ngranularity = \"channel\"",
    "bits = 8\ngranularity = \"tensor\"\nsymmetric = false\nrange = \"mse\"",
    "format = \"fp8\"\ngranularity = \"block\"",
    "format = \"fp8\"\ngranularity = \"channel\"",
    "format = \"mxfp4\"",
    "format = \"mxfp8\"",
    "format = \"nvfp4\"",
];
/// What only the processor does.
const NOT_FOR_DEVICES: [&str; 3] =
    ["bits = 4\nrange = \"mse\"", "bits = 4\nsymmetric = false\nrange = \"hqq\"", "bits = 4\noutliers = 0.01"];
const SHAPES: [(usize, usize); 7] = [(1, 1), (1, 131), (131, 1), (7, 97), (130, 260), (257, 64), (3, 4099)];

fn encoder(recipe: &str, rows: usize, columns: usize, dtype: Dtype) -> Box<dyn MatrixEncoder> {
    let settings = Settings::parse(&recipe.parse().unwrap()).unwrap();
    let matrix = Matrix {
        name: "m.weight".to_owned(),
        rows,
        columns,
        dense_dtype: dtype,
        scale: if dtype == Dtype::F16 { ScaleFormat::F16 } else { ScaleFormat::BF16 },
        experts: 1,
        seed: 0,
        minimum_zero_point: u8::from(recipe.contains("false")),
        float_zero_allowed: true,
        minima: crate::layout::Minima::Never,
    };
    settings.encoder(&matrix, settings.codec(&matrix).unwrap().codec.scalar().unwrap())
}

/// Weights of all sizes with ties, zeros and whole zero rows among them.
fn weights(dtype: Dtype, rows: usize, columns: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..rows * columns {
        let hash = (index as u32 ^ 0x51).wrapping_mul(0x9e37_79b9);
        let value = match (index / columns % 5, hash >> 28) {
            (4, _) => 0.0,
            (3, 0..4) => (hash % 17) as f32 * 0.25 - 2.0,
            (_, 15) => f32::from_bits(hash % 0x0100_0000),
            _ => ((hash >> 8) % 4001) as f32 / 2000.0 - 1.0,
        };
        match dtype {
            Dtype::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            _ => bytes.extend(value.to_le_bytes()),
        }
    }
    bytes
}

#[test]
fn stripes_are_the_processors() {
    let Some(device) = fixtures::device(Some(64 << 10)) else { return };
    for (index, recipe) in RECIPES.into_iter().enumerate() {
        for (rows, columns) in SHAPES {
            let dtype = [Dtype::BF16, Dtype::F16, Dtype::F32][(index + rows) % 3];
            let bytes = weights(dtype, rows, columns);
            let plain = DenseRows::new(dtype, &bytes, rows, columns).unwrap();
            let turned = DenseRows::transposed(dtype, &bytes, rows, columns, 1).unwrap();
            for source in [&plain as &dyn RowSource, &turned] {
                let encoder = encoder(recipe, rows, columns, dtype);
                let parameters = encoder.prepare(source).unwrap();
                for (first, count) in [(0, rows.min(128)), (rows.min(128), rows.saturating_sub(128))] {
                    let expected = encoder.encode(source, &parameters, first, count).unwrap();
                    let found = encoder.encode_on(&device, source, &parameters, first, count).unwrap();
                    let equal = if count == 0 { found.is_none() } else { found.as_ref() == Some(&expected) };
                    assert!(equal, "{recipe}: rows {first} and {count} more of {rows} × {columns}, {dtype:?}");
                }
            }
        }
    }
}

#[test]
fn what_devices_do_not_do_is_left_to_the_processor() {
    let Some(device) = fixtures::device(None) else { return };
    let bytes = weights(Dtype::BF16, 8, 256);
    let source = DenseRows::new(Dtype::BF16, &bytes, 8, 256).unwrap();
    for recipe in NOT_FOR_DEVICES {
        let encoder = encoder(recipe, 8, 256, Dtype::BF16);
        let parameters = encoder.prepare(&source).unwrap();
        assert_eq!(encoder.encode_on(&device, &source, &parameters, 0, 8), Ok(None), "{recipe}");
    }
    // The processor's error names row and column.
    let mut broken = bytes.clone();
    broken[514..516].copy_from_slice(&bf16::NAN.to_le_bytes());
    let source = DenseRows::new(Dtype::BF16, &broken, 8, 256).unwrap();
    for recipe in ["bits = 4\ngroup_size = 32", "bits = 4\ngroup_size = 32\nsymmetric = false"] {
        let encoder = encoder(recipe, 8, 256, Dtype::BF16);
        assert_eq!(encoder.encode_on(&device, &source, &MatrixParameters::default(), 0, 8), Ok(None), "{recipe}");
        assert!(encoder.encode(&source, &MatrixParameters::default(), 0, 8).is_err());
    }
}

#[test]
fn a_device_that_is_gone_is_an_error() {
    let Some(device) = fixtures::device(None) else { return };
    device.destroy();
    let bytes = weights(Dtype::BF16, 8, 256);
    let source = DenseRows::new(Dtype::BF16, &bytes, 8, 256).unwrap();
    let encoder = encoder("bits = 4\ngroup_size = 128", 8, 256, Dtype::BF16);
    let error = encoder.encode_on(&device, &source, &MatrixParameters::default(), 0, 8).unwrap_err();
    assert!(matches!(error, ComputeError::Lost { .. }), "{error}");
}
