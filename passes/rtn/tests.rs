//! Properties of the whole family, against references that share nothing with the code they check.

use half::{bf16, f16};
use proptest::prelude::*;

use super::{
    Settings,
    grid::Grid,
    hqq::{half_quadratic, objective},
    kernels::extent,
};
use crate::{
    checkpoint::Dtype,
    codec::{Codec, CodecError, Element, Granularity, MatrixParameters, RowSource, ScaleFormat, ZeroPoint},
    layout::Minima,
    passes::{self, Choice, ChooseError, EncodedStripe, Matrix},
};

#[derive(Debug)]
struct Dense {
    rows: usize,
    columns: usize,
    weights: Vec<f32>,
}

impl RowSource for Dense {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        out.copy_from_slice(&self.weights[first_row * self.columns..][..out.len()]);
        Ok(())
    }
}

impl Dense {
    fn matrix(&self, scale: ScaleFormat) -> Matrix {
        Matrix {
            name: "m.weight".to_owned(),
            rows: self.rows,
            columns: self.columns,
            dense_dtype: if scale == ScaleFormat::F16 { Dtype::F16 } else { Dtype::BF16 },
            scale,
            experts: 1,
            seed: 0,
            minimum_zero_point: 0,
            float_zero_allowed: true,
            minima: crate::layout::Minima::WhereAsked,
        }
    }
}

fn settings(text: &str) -> Settings {
    Settings::parse(&text.parse().unwrap()).unwrap()
}

/// Encodes in stripes of so many rows.
fn encode_in(dense: &Dense, settings: &Settings, matrix: &Matrix, choice: &Choice, stripe: usize) -> Encoded {
    let encoder = settings.encoder(matrix, choice.codec.scalar().unwrap());
    let parameters = encoder.prepare(dense).unwrap();
    let mut whole = EncodedStripe::default();
    for first in (0..dense.rows).step_by(stripe) {
        let rows = stripe.min(dense.rows - first);
        let part = encoder.encode(dense, &parameters, first, rows).unwrap();
        assert_eq!((part.rows.first_row, part.rows.rows, part.rows.columns), (first, rows, dense.columns));
        whole.rows.codes.extend(part.rows.codes);
        whole.rows.scales.extend(part.rows.scales);
        whole.rows.zeros.extend(part.rows.zeros);
        for (name, count) in part.deviations {
            *whole.deviations.entry(name).or_default() += count;
        }
    }
    Encoded { choice: choice.clone(), parameters, stripe: whole }
}

struct Encoded {
    choice: Choice,
    parameters: MatrixParameters,
    stripe: EncodedStripe,
}

fn encode(dense: &Dense, settings: &Settings, scale: ScaleFormat) -> Encoded {
    let matrix = dense.matrix(scale);
    let choice = settings.codec(&matrix).unwrap();
    encode_in(dense, settings, &matrix, &choice, 128)
}

/// One small float by its definition: sign, exponent, mantissa.
fn small_float(code: u8, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let mantissa = f64::from(u32::from(code) & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    let exponent = (u32::from(code) >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let sign = if code >> (exponent_bits + mantissa_bits) == 0 { 1.0 } else { -1.0 };
    sign * if exponent == 0 {
        mantissa * 2.0_f64.powi(1 - bias)
    } else {
        (1.0 + mantissa) * 2.0_f64.powi(exponent as i32 - bias)
    }
}

impl Encoded {
    fn codec(&self) -> &Codec {
        self.choice.codec.scalar().unwrap()
    }

    /// Index of the scale of a weight.
    fn group(&self, dense: &Dense, row: usize, column: usize) -> usize {
        match self.codec().granularity {
            Granularity::Tensor => 0,
            Granularity::Channel => row,
            Granularity::Group(size) => row * dense.columns.div_ceil(size) + column / size,
            Granularity::Block { rows, columns } => row / rows * dense.columns.div_ceil(columns) + column / columns,
        }
    }

    /// The weight that level 1 of a group stands for.
    fn step(&self, group: usize) -> f64 {
        match (self.codec().scale, self.parameters.tensor_scale) {
            (ScaleFormat::E4M3OverGlobal, Some(global)) => {
                f64::from(self.stripe.rows.scales[group]) / f64::from(global)
            }
            (_, Some(scale)) => f64::from(scale),
            (_, None) => f64::from(self.stripe.rows.scales[group]),
        }
    }

    /// What the codes mean, in F64, outliers put in place.
    fn decoded(&self, dense: &Dense) -> Vec<f64> {
        let mut decoded = Vec::with_capacity(dense.weights.len());
        for row in 0..dense.rows {
            for column in 0..dense.columns {
                let code = self.stripe.rows.codes[row * dense.columns + column];
                let group = self.group(dense, row, column);
                let level = match self.codec().element {
                    Element::Integer { bits } => {
                        assert!(u32::from(code) < 1 << bits);
                        let implied = f64::from(1_u32 << (bits - 1));
                        let zero = if self.codec().zero == ZeroPoint::None {
                            implied
                        } else if let Some(zero) = self.parameters.tensor_zero {
                            f64::from(zero)
                        } else {
                            f64::from(self.stripe.rows.zeros[group])
                        };
                        if self.codec().zero == ZeroPoint::Minimum {
                            decoded.push(f64::from(code) * self.step(group) + zero);
                            continue;
                        }
                        f64::from(code) - zero
                    }
                    Element::Fp8E4M3 => small_float(code, 4, 3),
                    Element::Fp4E2M1 => small_float(code, 2, 1),
                };
                decoded.push(level * self.step(group));
            }
        }
        if let Some(outliers) = &self.parameters.outliers {
            for row in 0..dense.rows {
                for entry in outliers.row_starts[row]..outliers.row_starts[row + 1] {
                    let column = outliers.columns[entry as usize] as usize;
                    decoded[row * dense.columns + column] = f64::from(outliers.values[entry as usize]);
                }
            }
        }
        decoded
    }

    fn squared_error(&self, dense: &Dense) -> f64 {
        self.decoded(dense)
            .iter()
            .zip(&dense.weights)
            .map(|(decoded, weight)| (decoded - f64::from(*weight)).powi(2))
            .sum()
    }
}

/// Weights as they come and as they should not come: all of one magnitude class, with zeros, of either sign or one.
fn any_matrix() -> impl Strategy<Value = Dense> {
    let class = prop_oneof![
        4 => Just((1e-2_f32, 0.0_f32)),
        1 => Just((1.0, 0.0)),
        1 => Just((1e-3, 0.7)),
        1 => Just((1e30, 0.0)),
        1 => Just((1e-36, 0.0)),
        1 => Just((1e-41, 0.0)),
        1 => Just((0.0, 0.25)),
        1 => Just((0.0, 0.0)),
        1 => Just((0.0, -3.0)),
    ];
    (1_usize..7, 1_usize..150, class).prop_flat_map(|(rows, columns, (spread, offset))| {
        let weight = prop_oneof![
            8 => (-1.0_f32..1.0).prop_map(move |x| x * x * x * spread + offset),
            1 => Just(0.0_f32),
            1 => Just(-0.0_f32),
        ];
        proptest::collection::vec(weight, rows * columns).prop_map(move |weights| {
            let weights = weights.into_iter().map(|weight| bf16::from_f32(weight).to_f32()).collect();
            Dense { rows, columns, weights }
        })
    })
}

fn usual(rows: usize, columns: usize, seed: u64) -> Dense {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    // Sums of uniforms are near enough to normal; a few are large.
    let weights = (0..rows * columns)
        .map(|index| {
            let normal: f32 = (0..6).map(|_| next()).sum();
            bf16::from_f32(normal * if index % 97 == 13 { 0.2 } else { 0.02 }).to_f32()
        })
        .collect();
    Dense { rows, columns, weights }
}

/// Round to nearest by exhaustive comparison in F64: the code whose value is nearest, for the scale as stored.
#[derive(Debug)]
struct Nearest {
    scale: f64,
    zero: f64,
    codes: Vec<u8>,
}

fn nearest_of(weights: &[f32], bits: u32, symmetric: bool) -> Nearest {
    let top = f64::from((1_u32 << bits) - 1);
    let largest = weights.iter().fold(0.0_f64, |largest, w| largest.max(f64::from(*w)));
    let smallest = weights.iter().fold(0.0_f64, |smallest, w| smallest.min(f64::from(*w)));
    let range = if symmetric { 2.0 * largest.max(-smallest) } else { largest - smallest };
    let scale = f64::from(f16::from_f64(range / top));
    let zero =
        if symmetric { f64::from(1_u32 << (bits - 1)) } else { (-smallest / scale).round_ties_even().clamp(0.0, top) };
    let nearest = |weight: &f32| {
        let error = |code: &u8| (f64::from(*code) - zero - f64::from(*weight) / scale).abs();
        (0..=top as u8).min_by(|a, b| error(a).total_cmp(&error(b))).unwrap()
    };
    Nearest { scale, zero, codes: weights.iter().map(nearest).collect() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn integers_are_the_nearest_codes(bits in 2_u32..9, symmetric: bool, seed in 1_u64..1 << 40, columns in 1_usize..40) {
        let dense = usual(2, columns, seed);
        let settings = settings(&format!("bits = {bits}\ngroup_size = 0\nsymmetric = {symmetric}"));
        let encoded = encode(&dense, &settings, ScaleFormat::F16);
        for (row, weights) in dense.weights.chunks(columns).enumerate() {
            let nearest = nearest_of(weights, bits, symmetric);
            if nearest.scale == 0.0 {
                continue;
            }
            prop_assert_eq!(f64::from(encoded.stripe.rows.scales[row]), nearest.scale);
            if !symmetric {
                prop_assert_eq!(f64::from(encoded.stripe.rows.zeros[row]), nearest.zero);
            }
            for ((code, expected), weight) in
                encoded.stripe.rows.codes[row * columns..].iter().zip(&nearest.codes).zip(weights)
            {
                // Ties, and what F32 makes of the quotient next to a tie, may go either way.
                let units = f64::from(*weight) / nearest.scale;
                let tie = (units - units.floor() - 0.5).abs() < 1e-4;
                prop_assert!(code == expected || tie && code.abs_diff(*expected) == 1, "{} {} {}", code, expected, units);
            }
        }
    }

    #[test]
    fn errors_stay_within_the_step(dense in any_matrix(), kind in 0_usize..12, range in 0_usize..2) {
        let texts = [
            "bits = 2", "bits = 3\nsymmetric = false", "bits = 4", "bits = 4\nsymmetric = false\ngroup_size = 32",
            "bits = 5\ngroup_size = 7", "bits = 8\ngranularity = \"channel\"", "bits = 8\ngranularity = \"tensor\"",
            "bits = 6\ngranularity = \"block\"\nblock = [2, 16]", "format = \"fp8\"", "format = \"mxfp4\"",
            "format = \"mxfp8\"", "format = \"nvfp4\"",
        ];
        let settings = settings(&format!("{}\nrange = \"{}\"", texts[kind], ["minmax", "mse"][range]));
        let encoded = encode(&dense, &settings, ScaleFormat::BF16);
        let decoded = encoded.decoded(&dense);
        let clamped = !encoded.stripe.deviations.is_empty();
        for (place, (decoded, weight)) in decoded.iter().zip(&dense.weights).enumerate() {
            prop_assert!(decoded.is_finite() && (*decoded as f32).is_finite());
            let weight = f64::from(*weight);
            let step = encoded.step(encoded.group(&dense, place / dense.columns, place % dense.columns));
            prop_assert!(step > 0.0);
            if range == 1 || clamped {
                continue;
            }
            // Half a step, and what rounding the scale to 8 bits cuts off the ends; the zero point costs another half.
            let bound = match encoded.codec().element {
                Element::Integer { bits } => {
                    let zero = if encoded.codec().zero == ZeroPoint::None { 0.0 } else { 0.5 };
                    step * (0.5 + zero + 2.0_f64.powi(i32::from(bits) - 8))
                }
                // Half a unit in the last place; saturation cuts off at most 1/16 (scale rounding; MX: 1.75 × 2^8 = 448).
                Element::Fp8E4M3 => (weight.abs() / 16.0).max(step / 1024.0),
                // Likewise; MX cuts off at most 7 of 6.
                Element::Fp4E2M1 => (weight.abs() / 4.0).max(step / 4.0),
            } * 1.000_01;
            prop_assert!((decoded - weight).abs() <= bound, "{} {} step {} bound {}", decoded, weight, step, bound);
        }
    }

    #[test]
    fn least_squares_is_never_worse_than_min_max(dense in any_matrix(), kind in 0_usize..11) {
        let texts = [
            "bits = 2", "bits = 3\nsymmetric = false", "bits = 4", "bits = 4\nsymmetric = false\ngroup_size = 32",
            "bits = 8\ngranularity = \"channel\"", "bits = 4\nsymmetric = false\ngranularity = \"tensor\"", "format = \"fp8\"",
            "format = \"mxfp4\"", "format = \"mxfp8\"", "format = \"nvfp4\"",
            "symmetric = false\nzero = \"minimum\"\ngroup_size = 32",
        ];
        let error = |range: &str| {
            let settings = settings(&format!("{}\nrange = \"{range}\"", texts[kind]));
            encode(&dense, &settings, ScaleFormat::BF16).squared_error(&dense)
        };
        let (mse, min_max) = (error("mse"), error("minmax"));
        // The decoder rounds each weight to F32, this reference does not.
        prop_assert!(mse <= min_max * (1.0 + 1e-6), "{} {}", mse, min_max);
    }

    #[test]
    fn half_quadratic_is_never_worse_than_its_start(dense in any_matrix(), bits in 2_u8..9, float: bool, minimum in 0_u8..2) {
        let codec = Codec {
            element: Element::Integer { bits },
            granularity: Granularity::Channel,
            scale: ScaleFormat::F16,
            zero: if float { ZeroPoint::Float } else { ZeroPoint::Integer },
            outliers: None,
        };
        let grid = Grid::new(&codec, Dtype::BF16, minimum);
        for weights in dense.weights.chunks(dense.columns) {
            let range = extent(weights).unwrap();
            let (start, found) = (grid.min_max(range), half_quadratic(weights, &grid, range));
            let unit = grid.step(&start);
            prop_assert!(objective(weights, &grid, &found, unit) <= objective(weights, &grid, &start, unit));
            prop_assert!(float || found.zero >= f32::from(minimum) && found.zero.fract() == 0.0);
        }
    }

    #[test]
    fn the_codec_decodes_what_was_encoded(dense in any_matrix(), kind in 0_usize..7) {
        let texts = [
            "bits = 4", "bits = 5\nsymmetric = false\ngranularity = \"tensor\"", "bits = 3\nrange = \"hqq\"\ngroup_size = 9",
            "format = \"fp8\"\nblock = [4, 16]", "format = \"nvfp4\"", "format = \"mxfp8\"", "bits = 2\noutliers = 0.05",
        ];
        let encoded = encode(&dense, &settings(texts[kind]), ScaleFormat::BF16);
        encoded.codec().validate(dense.rows, dense.columns).unwrap();
        let mut rows = encoded.stripe.rows.clone();
        (rows.rows, rows.columns) = (dense.rows, dense.columns);
        let mut decoded = vec![0.0; dense.weights.len()];
        encoded.codec().dequantize_rows(&rows, &encoded.parameters, &mut decoded).unwrap();
        let largest = dense.weights.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
        for (got, expected) in decoded.iter().zip(encoded.decoded(&dense)) {
            prop_assert!((f64::from(*got) - expected).abs() <= f64::from(largest) * 1e-6 + 1e-44, "{} {}", got, expected);
        }
    }

    #[test]
    fn stripes_make_no_difference(dense in any_matrix(), kind in 0_usize..7) {
        let texts = [
            "bits = 4", "bits = 4\nrange = \"hqq\"", "format = \"fp8\"\ngranularity = \"tensor\"\nrange = \"mse\"",
            "format = \"nvfp4\"", "bits = 3\noutliers = 0.1", "bits = 8\ngranularity = \"tensor\"\noutliers = 0.02",
            "bits = 4\nblock = [2, 8]\noutliers = 0.03",
        ];
        let settings = settings(texts[kind]);
        let matrix = dense.matrix(ScaleFormat::BF16);
        let choice = settings.codec(&matrix).unwrap();
        let whole = encode_in(&dense, &settings, &matrix, &choice, dense.rows);
        let parts = encode_in(&dense, &settings, &matrix, &choice, 2);
        prop_assert_eq!(whole.stripe.rows.codes, parts.stripe.rows.codes);
        prop_assert_eq!(whole.stripe.rows.scales, parts.stripe.rows.scales);
        prop_assert_eq!(whole.stripe.rows.zeros, parts.stripe.rows.zeros);
        prop_assert_eq!(whole.parameters, parts.parameters);
    }

    #[test]
    fn outliers_are_the_farthest_from_the_mean_and_exact(dense in any_matrix(), share in 0.0_f64..0.5) {
        let settings = settings(&format!("bits = 4\ngroup_size = 16\noutliers = {share:?}"));
        let encoded = encode(&dense, &settings, ScaleFormat::BF16);
        let count = (share * dense.weights.len() as f64).round_ties_even() as usize;
        let Some(outliers) = &encoded.parameters.outliers else {
            prop_assert_eq!(count, 0);
            return Ok(());
        };
        prop_assert_eq!(outliers.columns.len(), count);
        prop_assert_eq!(outliers.row_starts.len(), dense.rows + 1);
        let mean = dense.weights.iter().map(|weight| f64::from(*weight)).sum::<f64>() / dense.weights.len() as f64;
        let mut order: Vec<usize> = (0..dense.weights.len()).collect();
        order.sort_by(|a, b| {
            let distance = |place: &usize| (f64::from(dense.weights[*place]) - mean).abs() as f32;
            distance(b).total_cmp(&distance(a)).then(a.cmp(b))
        });
        let mut expected = order[..count].to_vec();
        expected.sort_unstable();
        let mut got = Vec::new();
        let decoded = encoded.decoded(&dense);
        for row in 0..dense.rows {
            for entry in outliers.row_starts[row]..outliers.row_starts[row + 1] {
                got.push(row * dense.columns + outliers.columns[entry as usize] as usize);
            }
        }
        for place in &got {
            prop_assert_eq!(decoded[*place], f64::from(dense.weights[*place]));
        }
        // The mean is summed in another order, so equal distances may differ in the last bit: compare as distances.
        let distances = |places: &[usize]| {
            let mut distances: Vec<f64> = places.iter().map(|place| (f64::from(dense.weights[*place]) - mean).abs()).collect();
            distances.sort_by(f64::total_cmp);
            distances
        };
        let scale = dense.weights.iter().fold(0.0_f64, |scale, weight| scale.max(f64::from(weight.abs())));
        for (got, expected) in distances(&got).iter().zip(distances(&expected)) {
            prop_assert!((got - expected).abs() <= scale * 1e-6);
        }
    }

    #[test]
    fn settings_survive_writing_and_reading(kind in 0_usize..13) {
        let texts = [
            "", "bits = 3\ngroup_size = 0", "format = \"nvfp4\"", "format = \"fp8\"\nblock = [64, 128]", "range = \"hqq\"\nbits = 2",
            "outliers = 0.01", "outlier_sigma = 3", "target_bits = 4.5\noutliers = \"auto\"", "target_bits = 4.25",
            "bits = 8\ngranularity = \"tensor\"\nactivations = \"dynamic\"", "format = \"mxfp8\"\nrange = \"mse\"",
            "format = \"fp8\"\nactivations = \"static\"", "symmetric = false\nzero = \"minimum\"",
        ];
        let settings = settings(texts[kind]);
        let written = toml::to_string(&settings).unwrap();
        prop_assert_eq!(Settings::parse(&written.parse().unwrap()).unwrap(), settings, "{}", written);
    }
}

#[test]
fn equal_distances_are_taken_from_the_start() {
    let weights = vec![1.0, -1.0, 1.0, -1.0, 1.0, -1.0];
    let encoded = encode(&Dense { rows: 3, columns: 2, weights }, &settings("outliers = 0.5"), ScaleFormat::BF16);
    let outliers = encoded.parameters.outliers.unwrap();
    assert_eq!((outliers.row_starts, outliers.columns), (vec![0, 2, 3, 3], vec![0, 1, 0]));
}

#[test]
fn outliers_by_sigma_are_counted_from_the_weights() {
    let mut weights = vec![0.0_f32; 1000];
    weights.iter_mut().enumerate().for_each(|(place, weight)| *weight = if place % 2 == 0 { 0.1 } else { -0.1 });
    weights[77] = 2.0;
    weights[800] = -2.0;
    let dense = Dense { rows: 10, columns: 100, weights };
    let rule = passes::Settings::Rtn(settings("outlier_sigma = 3"));
    assert!(rule.needs_weights() && rule.codec(&dense.matrix(ScaleFormat::BF16)).is_err());
    let choices = choose_all(&[&dense], &rule, None).unwrap();
    assert_eq!(choices[0].codec.scalar().unwrap().outliers.unwrap().count, 2);
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    for text in [
        "",
        "symmetric = false",
        "range = \"mse\"",
        "format = \"fp8\"\nblock = [2, 3]",
        "format = \"nvfp4\"",
        "outliers = 0.1",
    ] {
        let mut dense = usual(5, 20, 3);
        dense.weights[3 * 20 + 7] = f32::NAN;
        let matrix = dense.matrix(ScaleFormat::BF16);
        let settings = settings(text);
        let encoder = settings.encoder(&matrix, settings.codec(&matrix).unwrap().codec.scalar().unwrap());
        let error = match encoder.prepare(&dense) {
            Ok(parameters) => encoder.encode(&dense, &parameters, 0, 5).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains("row 3, column 7"), "{text}: {error}");
    }
}

#[test]
fn zero_points_below_the_smallest_are_raised_and_counted() {
    let dense = Dense { rows: 1, columns: 4, weights: vec![0.0, 1.0, 2.0, 3.0] };
    let mut matrix = dense.matrix(ScaleFormat::F16);
    matrix.minimum_zero_point = 1;
    let settings = settings("symmetric = false");
    let choice = settings.codec(&matrix).unwrap();
    let encoded = encode_in(&dense, &settings, &matrix, &choice, 1);
    assert_eq!(encoded.stripe.rows.zeros, [1.0]);
    assert_eq!(encoded.stripe.deviations.get("zero-point-clamped"), Some(&1));
    assert!(encoded.squared_error(&dense) < 0.02, "the range above the zero point must still be covered");
}

#[test]
fn scales_beyond_the_storage_type_are_clamped_and_counted() {
    let tiny = Dense { rows: 1, columns: 4, weights: vec![1e-9, -1e-9, 2e-9, 0.0] };
    let encoded = encode(&tiny, &settings("bits = 8\ngroup_size = 0"), ScaleFormat::F16);
    assert_eq!(encoded.stripe.deviations.get("scale-clamped"), Some(&1));
    let huge = Dense { rows: 1, columns: 2, weights: vec![3e38, -3e38] };
    let encoded = encode(&huge, &settings("bits = 4\nsymmetric = false"), ScaleFormat::F16);
    assert_eq!(encoded.stripe.deviations.get("scale-clamped"), Some(&1));
    assert!(encoded.decoded(&huge).iter().all(|weight| weight.is_finite()));
}

#[test]
fn empty_matrices_are_encoded() {
    for (rows, columns) in [(0, 5), (5, 0), (0, 0)] {
        let dense = Dense { rows, columns, weights: Vec::new() };
        for text in [
            "",
            "format = \"nvfp4\"",
            "bits = 8\ngranularity = \"tensor\"\nrange = \"mse\"",
            "outliers = 0.5",
            "block = [2, 2]",
        ] {
            let encoded = encode(&dense, &settings(text), ScaleFormat::BF16);
            assert!(encoded.stripe.rows.codes.is_empty(), "{text}");
        }
    }
}

/// Bits that this codec takes: codes, scales, zero points, 48 bits per outlier and a row table.
fn bits_of(dense: &Dense, choice: &Choice) -> u64 {
    let codec = choice.codec.scalar().unwrap();
    let Element::Integer { bits } = codec.element else { panic!("integers only") };
    let groups = match codec.granularity {
        Granularity::Channel => dense.rows,
        Granularity::Group(size) => dense.rows * dense.columns.div_ceil(size),
        _ => panic!("groups and channels only"),
    };
    let per_group = if codec.zero == ZeroPoint::None { 16 } else { 16 + u64::from(bits) };
    let outliers = codec.outliers.map_or(0, |outliers| outliers.count * 48 + (dense.rows as u64 + 1) * 32);
    (dense.rows * dense.columns) as u64 * u64::from(bits) + groups as u64 * per_group + outliers
}

fn choose_all(dense: &[&Dense], rule: &passes::Settings, refused: Option<usize>) -> Result<Vec<Choice>, ChooseError> {
    let matrices: Vec<_> = dense.iter().map(|dense| (rule.clone(), dense.matrix(ScaleFormat::BF16))).collect();
    let stored = |index: usize, choice: &Choice| (refused != Some(index)).then(|| bits_of(dense[index], choice));
    let open = |index: usize| -> Result<Box<dyn RowSource>, ChooseError> {
        let dense = dense[index];
        Ok(Box::new(Dense { rows: dense.rows, columns: dense.columns, weights: dense.weights.clone() }))
    };
    passes::choose(&matrices, &stored, &open)
}

#[test]
fn a_target_is_met_from_below_and_more_bits_never_hurt() {
    // One matrix with rows of very uneven magnitude, where groups help; one that is even.
    let mut uneven = usual(64, 1024, 5);
    uneven
        .weights
        .iter_mut()
        .enumerate()
        .for_each(|(place, weight)| *weight *= if place / 64 % 16 == 3 { 30.0 } else { 1.0 });
    let even = usual(32, 512, 6);
    let dense = [&uneven, &even];
    let weights: usize = dense.iter().map(|dense| dense.weights.len()).sum();
    let rule = |target: f64| passes::Settings::Rtn(settings(&format!("target_bits = {target:?}")));
    let error = |dense: &Dense, choice: &Choice| {
        let rule = rule(5.0);
        let rule = rule.number().unwrap();
        let energy: f64 = dense.weights.iter().map(|weight| f64::from(*weight).powi(2)).sum();
        encode_in(dense, rule, &dense.matrix(ScaleFormat::BF16), choice, 128).squared_error(dense) / energy
    };
    // Every pair of granularities, for comparison.
    let levels = |dense: &Dense| -> Vec<(u64, f64)> {
        let sizes = [0, 512, 256, 128, 64, 32].into_iter().filter(|size| *size < dense.columns);
        let level = |size| {
            let choice = settings(&format!("group_size = {size}")).codec(&dense.matrix(ScaleFormat::BF16)).unwrap();
            (bits_of(dense, &choice), error(dense, &choice))
        };
        sizes.map(level).collect()
    };
    let (first, second) = (levels(&uneven), levels(&even));
    let pairs: Vec<(u64, f64)> = first.iter().flat_map(|a| second.iter().map(|b| (a.0 + b.0, a.1 + b.1))).collect();
    let mut last_error = f64::INFINITY;
    for target in [4.03, 4.05, 4.1, 4.15, 4.2, 4.25, 4.3, 4.4, 4.5, 5.0] {
        let choices = choose_all(&dense, &rule(target), None).unwrap();
        let bits: u64 = dense.iter().zip(&choices).map(|(dense, choice)| bits_of(dense, choice)).sum();
        let budget = target * weights as f64;
        assert!(bits as f64 <= budget, "{target}");
        let total: f64 = dense.iter().zip(&choices).map(|(dense, choice)| error(dense, choice)).sum();
        assert!(total <= last_error * (1.0 + 1e-6), "{target}: {total} after {last_error}");
        last_error = total;
        let best = pairs
            .iter()
            .filter(|(bits, _)| *bits as f64 <= budget)
            .map(|(_, error)| *error)
            .fold(f64::INFINITY, f64::min);
        assert!(total <= best * 1.1, "{target}: {total}, the best pair has {best}");
    }
    assert_ne!(
        choose_all(&dense, &rule(4.2), None).unwrap()[0].codec.scalar().unwrap().granularity,
        Granularity::Channel
    );
}

#[test]
fn an_impossible_target_says_what_is_possible() {
    let dense = usual(64, 256, 7);
    let rule = passes::Settings::Rtn(settings("target_bits = 4.0"));
    let error = choose_all(&[&dense], &rule, None).unwrap_err();
    // Whole rows: 4 bits and 16 per 256 weights.
    assert!(error.to_string().contains("4.0625"), "{error}");
    assert!(choose_all(&[&dense], &passes::Settings::Rtn(settings("target_bits = 4.0625")), None).is_ok());
}

#[test]
fn what_the_layout_cannot_hold_takes_no_part_in_a_target() {
    let (a, b) = (usual(64, 256, 8), usual(64, 256, 9));
    let rule = passes::Settings::Rtn(settings("target_bits = 4.25"));
    let choices = choose_all(&[&a, &b], &rule, Some(0)).unwrap();
    assert_eq!(choices[0].codec.scalar().unwrap().granularity, Granularity::Channel);
    assert_eq!(choices[1], choose_all(&[&b], &rule, None).unwrap()[0]);
}

#[test]
fn a_target_is_filled_up_with_outliers() {
    let (a, b) = (usual(64, 256, 10), usual(32, 128, 11));
    let weights = (a.weights.len() + b.weights.len()) as f64;
    let rule = passes::Settings::Rtn(settings("bits = 3\ngroup_size = 128\noutliers = \"auto\"\ntarget_bits = 4"));
    let choices = choose_all(&[&a, &b], &rule, None).unwrap();
    let bits: u64 = bits_of(&a, &choices[0]) + bits_of(&b, &choices[1]);
    assert!(bits as f64 <= 4.0 * weights && bits as f64 > 3.99 * weights, "{}", bits as f64 / weights);
    let shares = choices.iter().zip([&a, &b]).map(|(choice, dense)| {
        choice.codec.scalar().unwrap().outliers.unwrap().count as f64 / dense.weights.len() as f64
    });
    let shares: Vec<f64> = shares.collect();
    assert!((shares[0] - shares[1]).abs() < 1e-3, "{shares:?}");
    let error = choose_all(&[&a, &b], &passes::Settings::Rtn(settings("outliers = \"auto\"\ntarget_bits = 3")), None);
    assert!(matches!(error, Err(ChooseError::Target { .. })));
}

#[test]
fn outliers_and_least_squares_lower_the_error() {
    let dense = usual(64, 512, 12);
    let error = |text: &str| encode(&dense, &settings(text), ScaleFormat::BF16).squared_error(&dense);
    let (plain, mse) = (error("bits = 3"), error("bits = 3\nrange = \"mse\""));
    let (easy, hqq) = (error("bits = 3\noutliers = 0.01"), error("bits = 3\nrange = \"hqq\""));
    assert!(mse < 0.85 * plain, "{mse} {plain}");
    assert!(easy < 0.5 * mse, "{easy} {mse}");
    assert!(hqq < plain, "{hqq} {plain}");
}

#[test]
fn wrong_settings_name_the_key_and_what_was_expected() {
    for (text, key, words) in [
        ("bits = 9", "bits", "from 2 to 8, got 9"),
        ("bits = \"4\"", "bits", "got \"4\""),
        ("bits = 4\nformat = \"fp8\"", "format", "exclude each other"),
        ("format = \"fp4\"", "format", "\"nvfp4\""),
        ("format = \"mxfp4\"\ngroup_size = 64", "group_size", "groups of 32"),
        ("format = \"nvfp4\"\ngranularity = \"channel\"", "granularity", "groups of 16"),
        ("granularity = \"group\"\ngroup_size = 0", "group_size", "channel"),
        ("granularity = \"channel\"\ngroup_size = 64", "group_size", "granularity = \"group\""),
        ("block = [100, 128]", "block", "divide 128, got 100"),
        ("block = [128]", "block", "[128, 128]"),
        ("block_rows = 3", "block_rows", "divide 128"),
        ("block = [128, 128]\ngranularity = \"tensor\"", "block", "granularity = \"block\""),
        ("format = \"fp8\"\nsymmetric = false", "symmetric", "no zero points"),
        ("range = \"best\"", "range", "\"mse\""),
        ("range = \"hqq\"\nsymmetric = true", "symmetric", "finds zero points"),
        ("range = \"hqq\"\nformat = \"fp8\"", "range", "zero points"),
        ("zero = \"float\"", "zero", "hqq"),
        ("zero = \"minimum\"", "zero", "symmetric = false"),
        ("zero = \"minimum\"\nrange = \"hqq\"", "zero", "finds zero points"),
        ("outliers = 0.7", "outliers", "0 to 0.5"),
        ("outliers = 0.1\noutlier_sigma = 3", "outlier_sigma", "exclude each other"),
        ("outliers = \"auto\"", "outliers", "target_bits"),
        ("target_bits = 4.5\ngroup_size = 64", "group_size", "chooses the granularity"),
        ("target_bits = 0", "target_bits", "above 0"),
        ("target_bits = 4.5\nformat = \"fp8\"", "target_bits", "integers"),
        ("activations = \"token\"", "activations", "\"static\""),
        ("bitz = 4", "bitz", "no such setting"),
    ] {
        let error = Settings::parse(&text.parse().unwrap()).unwrap_err();
        assert_eq!(error.key, key, "{text}: {}", error.message);
        assert!(error.message.contains(words), "{text}: {}", error.message);
    }
}

#[test]
fn whole_zero_points_are_used_where_the_layout_needs_them() {
    let dense = usual(4, 64, 13);
    let mut matrix = dense.matrix(ScaleFormat::F16);
    assert_eq!(settings("range = \"hqq\"").codec(&matrix).unwrap().codec.scalar().unwrap().zero, ZeroPoint::Float);
    matrix.float_zero_allowed = false;
    assert_eq!(settings("range = \"hqq\"").codec(&matrix).unwrap().codec.scalar().unwrap().zero, ZeroPoint::Integer);
    assert_eq!(settings("range = \"hqq\"\nzero = \"float\"").codec(&matrix).unwrap_err().key, "zero");
}

#[test]
fn k_quants_take_what_they_fix_and_nothing_else() {
    for (format, group_size, symmetric) in [("q4_k", 32, false), ("q6_k", 16, true)] {
        let parsed = settings(&format!("format = \"{format}\""));
        let written = toml::to_string(&parsed).unwrap();
        assert_eq!(Settings::parse(&written.parse().unwrap()).unwrap(), parsed, "{written}");
        let fixed = format!("group_size = {group_size}\nsymmetric = {symmetric}\nrange = \"mse\"");
        assert_eq!(settings(&format!("format = \"{format}\"\n{fixed}")), parsed);
        let mut matrix = usual(2, 512, 14).matrix(ScaleFormat::BF16);
        matrix.dense_dtype = crate::checkpoint::Dtype::F32;
        assert_eq!(parsed.codec(&matrix).unwrap().codec.name(), format);
        assert!(!parsed.needs_weights());
    }
    assert!(Settings::parse(&"format = \"q5_k\"".parse().unwrap()).unwrap_err().message.contains("\"q6_k\""));
}

#[test]
fn minima_are_used_where_the_layout_or_the_recipe_says_so() {
    let mut matrix = usual(4, 64, 15).matrix(ScaleFormat::F16);
    let zero = |text: &str, matrix: &Matrix| {
        settings(text).codec(matrix).map(|choice| choice.codec.scalar().unwrap().zero).map_err(|error| error.key)
    };
    let (plain, asked, whole) = (
        "symmetric = false\ngroup_size = 32",
        "symmetric = false\ngroup_size = 32\nzero = \"minimum\"",
        "symmetric = false\ngroup_size = 32\nzero = \"integer\"",
    );
    for (minima, expected) in [
        (Minima::Never, [Ok(ZeroPoint::Integer), Err("zero".to_owned()), Ok(ZeroPoint::Integer)]),
        (Minima::WhereAsked, [Ok(ZeroPoint::Integer), Ok(ZeroPoint::Minimum), Ok(ZeroPoint::Integer)]),
        (Minima::Always, [Ok(ZeroPoint::Minimum), Ok(ZeroPoint::Minimum), Err("zero".to_owned())]),
    ] {
        matrix.minima = minima;
        assert_eq!([plain, asked, whole].map(|text| zero(text, &matrix)), expected, "{minima:?}");
        assert_eq!(zero("group_size = 32", &matrix), Ok(ZeroPoint::None), "{minima:?}");
    }
}

/// Q4_1 as ggml has it: d and m in F16, codes from the smallest weight on.
#[test]
fn minima_are_the_smallest_weights_and_reach_the_largest() {
    let mut dense = usual(8, 256, 16);
    // Groups far from zero on either side, and one that is constant.
    dense.weights[..32].iter_mut().for_each(|weight| *weight += 3.0);
    dense.weights[32..64].iter_mut().for_each(|weight| *weight -= 3.0);
    dense.weights[64..96].fill(0.75);
    dense.weights[96..128].fill(0.0);
    let encoded = encode(&dense, &settings("symmetric = false\ngroup_size = 32\nzero = \"minimum\""), ScaleFormat::F16);
    let rows = &encoded.stripe.rows;
    assert_eq!(encoded.codec().name(), "int4-g32-min");
    for (group, weights) in dense.weights.chunks(32).enumerate() {
        let (step, minimum) = (f64::from(rows.scales[group]), rows.zeros[group]);
        assert_eq!(half::f16::from_f32(minimum).to_f32(), minimum, "minima are F16");
        let (min, max) = weights.iter().fold((f64::MAX, f64::MIN), |(min, max), weight| {
            (min.min(f64::from(*weight)), max.max(f64::from(*weight)))
        });
        assert!((f64::from(minimum) - min).abs() <= min.abs() / 2048.0, "{group}: {minimum} for {min}");
        for (code, weight) in rows.codes[group * 32..][..32].iter().zip(weights) {
            let error = (f64::from(*code) * step + f64::from(minimum) - f64::from(*weight)).abs();
            assert!(error <= step * 0.51 + (max.abs() + min.abs()) / 2048.0, "{group}: {error} of {step}");
        }
        // Of zeros, the scale is that of other writers.
        let reach = if max == 0.0 && min == 0.0 {
            1.0
        } else {
            (max - min).max(min.abs() / 4096.0) * 1.01 + min.abs() / 1024.0
        };
        assert!(step * 15.0 <= reach, "{group}: {step}");
    }
    assert!(encoded.decoded(&dense)[64..128].iter().zip(&dense.weights[64..]).all(|(a, b)| *a == f64::from(*b)));
    let whole = encode(&dense, &settings("symmetric = false\ngroup_size = 32"), ScaleFormat::F16);
    assert!(encoded.squared_error(&dense) < 0.5 * whole.squared_error(&dense));
}
