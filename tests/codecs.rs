//! Every codec there and back: codes from the row kernels, weights from the codec, against definitions in F64.

use bantam::codec::{
    Codec, CodecError, CodedRows, Element, Granularity, MatrixParameters, OutlierCount, Outliers, ScaleFormat,
    ZeroPoint, bits, float4, float8, integer,
};
use proptest::prelude::*;

/// A weight's value by definition: the code's value in F64, less the zero point, times the scale.
fn by_definition(element: Element, code: u8, zero: f64, scale: f64) -> f64 {
    let value = match element {
        Element::Integer { .. } => f64::from(code),
        Element::Fp4E2M1 => {
            let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
            if code & 8 == 0 { magnitude } else { -magnitude }
        }
        Element::Fp8E4M3 => {
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
            let magnitude =
                if exponent == 0 { mantissa * 2f64.powi(-6) } else { (1.0 + mantissa) * 2f64.powi(exponent - 7) };
            if code & 0x80 == 0 { magnitude } else { -magnitude }
        }
    };
    (value - zero) * scale
}

fn element() -> impl Strategy<Value = Element> {
    prop_oneof![
        4 => (2u8..=8).prop_map(|bits| Element::Integer { bits }),
        1 => Just(Element::Fp8E4M3),
        1 => Just(Element::Fp4E2M1),
    ]
}

fn granularity() -> impl Strategy<Value = Granularity> {
    prop_oneof![
        Just(Granularity::Tensor),
        Just(Granularity::Channel),
        prop_oneof![Just(16usize), Just(32), Just(64), 1usize..100].prop_map(Granularity::Group),
        (1usize..6, 1usize..40).prop_map(|(rows, columns)| Granularity::Block { rows, columns }),
    ]
}

/// Any codec whose scales are plain floats, or NVFP4's.
fn codec() -> impl Strategy<Value = Codec> {
    (element(), granularity(), 0..4, any::<bool>()).prop_map(|(element, granularity, zero, over_global)| {
        let integer = matches!(element, Element::Integer { .. });
        let over_global = over_global && !integer && granularity != Granularity::Tensor;
        Codec {
            element,
            granularity,
            scale: if over_global { ScaleFormat::E4M3OverGlobal } else { ScaleFormat::F32 },
            zero: match zero {
                1 if integer => ZeroPoint::Integer,
                2 if integer => ZeroPoint::Float,
                3 if integer => ZeroPoint::Minimum,
                _ => ZeroPoint::None,
            },
            outliers: None,
        }
    })
}

/// A number from 0 to 1 that depends on the index only.
fn noise(index: usize) -> f32 {
    ((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32
}

/// Some coded rows with valid codes, and their parameters.
fn coded(codec: &Codec, first_row: usize, rows: usize, columns: usize) -> (CodedRows, MatrixParameters) {
    let levels = 1u32 << codec.codec_bits();
    let groups = codec.scale_row_range(first_row, rows).len() * codec.groups_per_row(columns);
    // 0x7f is E4M3's not-a-number.
    let code = |index| ((noise(index) * levels as f32) as u32).min(levels - 1) as u8 & 0xfe;
    let zero = |index: usize| match codec.zero {
        ZeroPoint::Float | ZeroPoint::Minimum => noise(index) * 3.0,
        _ => (noise(index) * (levels - 1) as f32).round(),
    };
    let has_zeros = codec.zero != ZeroPoint::None;
    let tensor = codec.granularity == Granularity::Tensor;
    let coded = CodedRows {
        first_row,
        rows,
        columns,
        codes: (0..rows * columns).map(code).collect(),
        scales: (0..groups).map(|index| 0.01 + noise(index + 99)).collect(),
        zeros: if has_zeros { (0..groups).map(zero).collect() } else { vec![] },
    };
    let parameters = MatrixParameters {
        tensor_scale: (tensor || codec.scale == ScaleFormat::E4M3OverGlobal).then_some(3.7),
        tensor_zero: (tensor && has_zeros).then(|| zero(5)),
        outliers: None,
    };
    (coded, parameters)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn weights_follow_the_definition(
        codec in codec(),
        first_row in 0usize..9,
        rows in 0usize..9,
        columns in 0usize..200,
    ) {
        codec.validate(first_row + rows, columns).unwrap();
        let (coded, parameters) = coded(&codec, first_row, rows, columns);
        let mut out = vec![f32::NAN; rows * columns];
        codec.dequantize_rows(&coded, &parameters, &mut out).unwrap();
        let (block_rows, block_columns) = match codec.granularity {
            Granularity::Tensor => (usize::MAX, usize::MAX),
            Granularity::Channel => (1, usize::MAX),
            Granularity::Group(size) => (1, size),
            Granularity::Block { rows, columns } => (rows, columns),
        };
        let groups = columns.div_ceil(block_columns.min(columns.max(1)));
        for row in 0..rows {
            for column in 0..columns {
                let scale_row = (first_row + row) / block_rows - first_row / block_rows;
                let group = scale_row * groups + column / block_columns;
                let global = f64::from(parameters.tensor_scale.unwrap_or(1.0));
                let scale = match codec.granularity {
                    Granularity::Tensor => global,
                    _ if codec.scale == ScaleFormat::E4M3OverGlobal => f64::from(coded.scales[group]) / global,
                    _ => f64::from(coded.scales[group]),
                };
                let zero = match (codec.zero, codec.element) {
                    (ZeroPoint::None, Element::Integer { bits }) => 2f64.powi(i32::from(bits) - 1),
                    (ZeroPoint::None, _) => 0.0,
                    (_, _) if codec.granularity == Granularity::Tensor => f64::from(parameters.tensor_zero.unwrap()),
                    _ => f64::from(coded.zeros[group]),
                };
                let code = coded.codes[row * columns + column];
                let expected = match codec.zero {
                    ZeroPoint::Minimum => f64::from(code) * scale + zero,
                    _ => by_definition(codec.element, code, zero, scale),
                };
                let got = f64::from(out[row * columns + column]);
                prop_assert!((got - expected).abs() <= expected.abs() * 2e-7 + 1e-6 * scale, "{} {}", got, expected);
            }
            let mut alone = vec![f32::NAN; columns];
            codec.dequantize_row(&coded, row, &parameters, &mut alone).unwrap();
            prop_assert_eq!(&alone, &out[row * columns..][..columns]);
        }
    }

    #[test]
    fn integers_come_back_within_half_a_step_through_any_packing(
        bits in 2u8..=8,
        group in prop_oneof![Just(16usize), Just(32), Just(128), 1usize..90],
        asymmetric in any::<bool>(),
        row in prop::collection::vec(-1.0f32..1.0, 0..300),
        exponent in -120i32..120,
    ) {
        let unit = 2f32.powi(exponent);
        let row: Vec<f32> = row.iter().map(|weight| weight * unit).collect();
        let largest_code = f32::from((1u16 << bits) - 1);
        let groups = row.len().div_ceil(group);
        let zero = if asymmetric { ZeroPoint::Integer } else { ZeroPoint::None };
        let (element, granularity) = (Element::Integer { bits }, Granularity::Group(group));
        let codec = Codec { element, granularity, scale: ScaleFormat::F32, zero, outliers: None };
        // Covers −1 to 1 on both sides of either zero point.
        let scales = vec![unit * 4.0 / largest_code; groups];
        let zeros = vec![(largest_code / 2.0).floor(); if asymmetric { groups } else { 0 }];
        let mut codes = vec![0; row.len()];
        if asymmetric {
            integer::quantize_asymmetric_row(&row, &scales, &zeros, group, bits, &mut codes);
        } else {
            integer::quantize_symmetric_row(&row, &scales, group, bits, &mut codes);
        }
        let mut stream = vec![0; bits::packed_bytes(row.len(), bits)];
        bits::pack(&codes, bits, &mut stream);
        let mut again = vec![0; row.len()];
        bits::unpack(&stream, bits, &mut again);
        prop_assert_eq!(&again, &codes);

        let coded = CodedRows { first_row: 0, rows: 1, columns: row.len(), codes: again, scales, zeros };
        let mut out = vec![f32::NAN; row.len()];
        codec.dequantize_rows(&coded, &MatrixParameters::default(), &mut out).unwrap();
        let step = f64::from(unit) * 4.0 / f64::from(largest_code);
        for (weight, back) in row.iter().zip(&out) {
            let error = (f64::from(*weight) - f64::from(*back)).abs();
            prop_assert!(error <= step * 0.500_001, "{weight} {back}");
        }
    }

    #[test]
    fn floats_come_back_within_half_the_distance_of_their_neighbours(
        row in prop::collection::vec(any::<f32>().prop_filter("finite", |w| w.is_finite()), 0..100),
        scale in prop_oneof![Just(1.0f32), 1e-3f32..1e3],
        group in prop_oneof![Just(16usize), Just(32), 1usize..40],
    ) {
        let scales = vec![scale; row.len().div_ceil(group)];
        for element in [Element::Fp8E4M3, Element::Fp4E2M1] {
            let mut codes = vec![0; row.len()];
            let (smallest, relative, largest) = if element == Element::Fp8E4M3 {
                float8::quantize_fp8_row(&row, &scales, group, &mut codes);
                (2f64.powi(-10), 1.0 / 16.0, 448.0)
            } else {
                float4::quantize_fp4_row(&row, &scales, group, &mut codes);
                (0.25, 0.25, 6.0)
            };
            for (weight, code) in row.iter().zip(&codes) {
                let wanted = (f64::from(*weight) / f64::from(scale)).clamp(-largest, largest);
                let error = (by_definition(element, *code, 0.0, 1.0) - wanted).abs();
                prop_assert!(error <= smallest.max(wanted.abs() * relative) * 1.000_001, "{:?} {} {}", element, wanted, code);
            }
        }
    }
}

#[test]
fn outliers_replace_what_the_codes_say() {
    let mut codec = Codec::parse_name("int4-g8", ScaleFormat::F16).unwrap();
    codec.outliers = Some(OutlierCount { count: 3 });
    let (coded, mut parameters) = coded(&codec, 2, 2, 20);
    let mut plain = vec![0.0; 40];
    let missing = CodecError::Missing { what: "list of outliers" };
    assert_eq!(codec.dequantize_rows(&coded, &parameters, &mut plain), Err(missing));
    codec.outliers = None;
    codec.dequantize_rows(&coded, &parameters, &mut plain).unwrap();
    codec.outliers = Some(OutlierCount { count: 3 });
    let list = |row_starts: &[u32], columns: &[u32]| {
        Some(Outliers {
            row_starts: row_starts.to_vec(),
            columns: columns.to_vec(),
            values: vec![100.0, -200.0, 300.0],
        })
    };

    parameters.outliers = list(&[0, 1, 1, 3, 3], &[7, 0, 19]);
    let mut out = vec![0.0; 40];
    codec.dequantize_rows(&coded, &parameters, &mut out).unwrap();
    let mut expected = plain;
    (expected[0], expected[19]) = (-200.0, 300.0);
    assert_eq!(out, expected);

    for (row_starts, columns) in [
        (&[0, 1, 1][..], &[7, 0, 19]),
        (&[0, 1, 1, 4, 4], &[7, 0, 19]),
        (&[0, 1, 3, 1, 3], &[7, 0, 19]),
        (&[0, 1, 1, 3, 3], &[7, 0, 20]),
        (&[0, 1, 1, 3, 3], &[7, 5, 5]),
        (&[0, 1, 1, u32::MAX, 3], &[7, 0, 19]),
    ] {
        parameters.outliers = list(row_starts, columns);
        let result = codec.dequantize_rows(&coded, &parameters, &mut out);
        assert!(matches!(result, Err(CodecError::Outliers { .. })), "{row_starts:?} {columns:?}: {result:?}");
    }
}

#[test]
fn malformed_rows_are_errors() {
    let codec = Codec::parse_name("int4-g8-asym", ScaleFormat::F16).unwrap();
    let (good, parameters) = coded(&codec, 0, 3, 20);
    let mut out = vec![0.0; 60];
    codec.dequantize_rows(&good, &parameters, &mut out).unwrap();
    for (what, wrong) in [
        ("codes", CodedRows { codes: vec![0; 59], ..good.clone() }),
        ("scales", CodedRows { scales: vec![1.0; 8], ..good.clone() }),
        ("zero points", CodedRows { zeros: vec![], ..good.clone() }),
        ("scales", CodedRows { columns: 60, rows: 1, ..good.clone() }),
    ] {
        let result = codec.dequantize_rows(&wrong, &parameters, &mut out);
        assert!(matches!(result, Err(CodecError::Length { what: found, .. }) if found == what), "{what}: {result:?}");
    }
    let huge = CodedRows { rows: usize::MAX, columns: 2, ..CodedRows::default() };
    assert!(matches!(codec.dequantize_rows(&huge, &parameters, &mut out), Err(CodecError::TooLarge { .. })));
    assert!(matches!(codec.dequantize_rows(&good, &parameters, &mut out[1..]), Err(CodecError::Length { .. })));
    assert!(matches!(codec.dequantize_row(&good, 3, &parameters, &mut out[..20]), Err(CodecError::Rows { .. })));

    for name in ["int8-tensor", "int8-tensor-asym", "nvfp4"] {
        let codec = Codec::parse_name(name, ScaleFormat::F16).unwrap();
        let (good, _) = coded(&codec, 0, 3, 20);
        let result = codec.dequantize_rows(&good, &MatrixParameters::default(), &mut out);
        assert!(matches!(result, Err(CodecError::Missing { .. })), "{name}: {result:?}");
    }
}

#[test]
fn what_is_no_codec_is_refused() {
    let good = Codec::parse_name("int4-g128", ScaleFormat::BF16).unwrap();
    good.validate(3, 5).unwrap();
    let outliers = |count| Some(OutlierCount { count });
    for (wrong, expected) in [
        (Codec { element: Element::Integer { bits: 1 }, ..good.clone() }, "2 to 8"),
        (Codec { element: Element::Integer { bits: 9 }, ..good.clone() }, "2 to 8"),
        (Codec { granularity: Granularity::Group(0), ..good.clone() }, "group size is 0"),
        (Codec { granularity: Granularity::Block { rows: 0, columns: 1 }, ..good.clone() }, "block size is 0"),
        (Codec { element: Element::Fp8E4M3, zero: ZeroPoint::Float, ..good.clone() }, "no zero point"),
        (Codec { scale: ScaleFormat::E8M0, ..good.clone() }, "E8M0"),
        (Codec { outliers: outliers(16), ..good.clone() }, "16 outliers do not fit a matrix of 3 × 5"),
    ] {
        let error = wrong.validate(3, 5).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = good.validate(usize::MAX, 2).unwrap_err();
    assert!(matches!(error, CodecError::TooLarge { .. }));
    Codec { outliers: outliers(15), ..good }.validate(3, 5).unwrap();
}

#[test]
fn sizes_of_odd_shapes() {
    let sizes = |name, rows, columns| {
        let codec = Codec::parse_name(name, ScaleFormat::BF16).unwrap();
        (codec.groups_per_row(columns), codec.scale_rows(rows), codec.scale_count(rows, columns))
    };
    assert_eq!(sizes("int4-g128", 3, 300), (3, 3, 9));
    assert_eq!(sizes("int4-g128", 3, 1), (1, 3, 3));
    assert_eq!(sizes("int4-g128", 0, 0), (0, 0, 0));
    assert_eq!(sizes("fp8-channel", 7, 300), (1, 7, 7));
    assert_eq!(sizes("fp8-tensor", 7, 300), (1, 0, 0));
    assert_eq!(sizes("fp8-block128x128", 129, 256), (2, 2, 4));
    let blocks = Codec::parse_name("fp8-block128x128", ScaleFormat::BF16).unwrap();
    assert_eq!(blocks.scale_row_range(128, 128), 1..2);
    assert_eq!(blocks.scale_row_range(100, 200), 0..3);
    assert_eq!(blocks.scale_row_range(128, 0), 0..0);
}
