//! Round to nearest against the artifacts that compressed-tensors' own tools wrote from the same weights.
//!
//! MX and NVFP4 agree in every byte. For the others those tools divide in BF16: the quotient weight / scale is rounded to
//! 8 bits before it is rounded to a code, so some codes are not the nearest ones; with zero points max − min is rounded,
//! too. bantam divides in F32. The table states how many codes, scales and zero points differ, each reference code that
//! differs is shown to be what the BF16 quotient gives, and bantam's squared error is never the larger one.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;

use bantam::{
    checkpoint::Dtype,
    codec::{CodecError, MatrixParameters, RowSource, ScaleFormat},
    passes::{Matrix, Settings, rtn},
};
use half::bf16;
use safetensors::SafeTensors;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/interop/golden");

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

/// How an artifact stores its codes.
#[derive(Clone, Copy, PartialEq)]
enum Stored {
    /// 32-bit words of so many bits per code, least significant first.
    Words(u32),
    /// Signed bytes.
    Signed,
    /// E4M3 bytes.
    Bytes,
    /// Two E2M1 codes per byte, low nibble first.
    Nibbles,
}

/// What is expected of one artifact.
struct Expected {
    name: &'static str,
    settings: &'static str,
    stored: Stored,
    /// How many of the 1179648 codes differ.
    codes: u64,
    /// How many of the scales differ.
    scales: u64,
    /// How many of the zero points differ.
    zeros: u64,
}

#[derive(Default, Debug)]
struct Counts {
    codes: u64,
    codes_differ: u64,
    scales: u64,
    scales_differ: u64,
    zeros_differ: u64,
    not_explained: u64,
    error: f64,
    reference_error: f64,
}

fn open(name: &str) -> Option<Vec<u8>> {
    let path: PathBuf = [GOLDEN, name, "model.safetensors"].iter().collect();
    std::fs::read(path).ok()
}

fn bf16_values(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::BF16);
    tensor.data().chunks(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect()
}

fn field(words: &[u8], index: usize, bits: u32) -> u8 {
    let bit = index * bits as usize;
    // The widths here divide 8: no code crosses a byte.
    words[bit / 8] >> (bit % 8) & ((1_u16 << bits) - 1) as u8
}

/// Codes as bantam counts them: unsigned, integers offset by half the range.
fn codes(file: &SafeTensors, module: &str, stored: Stored, count: usize) -> Vec<u8> {
    let name = if matches!(stored, Stored::Words(_) | Stored::Nibbles) { "weight_packed" } else { "weight" };
    let data = file.tensor(&format!("{module}.{name}")).unwrap().data();
    match stored {
        Stored::Words(bits) => (0..count).map(|index| field(data, index, bits)).collect(),
        Stored::Signed => data.iter().map(|byte| byte.wrapping_add(128)).collect(),
        Stored::Bytes => data.to_vec(),
        Stored::Nibbles => data.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
    }
}

/// The value of a small float by its definition.
fn small_float(code: u8, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let mantissa = f64::from(u32::from(code) & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    let exponent = (u32::from(code) >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let sign = if code >> (exponent_bits + mantissa_bits) == 0 { 1.0 } else { -1.0 };
    let magnitude = if exponent == 0 {
        mantissa * 2.0_f64.powi(1 - bias)
    } else {
        (1.0 + mantissa) * 2.0_f64.powi(exponent as i32 - bias)
    };
    sign * magnitude
}

/// Scales as values, in the order of bantam's groups.
fn scales(file: &SafeTensors, module: &str) -> Vec<f32> {
    let name = format!("{module}.weight_scale");
    let tensor = file.tensor(&name).unwrap();
    match tensor.dtype() {
        Dtype::BF16 => bf16_values(file, &name),
        Dtype::U8 => tensor.data().iter().map(|byte| 2.0_f64.powi(i32::from(*byte) - 127) as f32).collect(),
        Dtype::F8_E4M3 => tensor.data().iter().map(|byte| small_float(*byte, 4, 3) as f32).collect(),
        other => panic!("{name} is {other:?}"),
    }
}

/// Zero points as bantam counts them, `[rows, groups]`; stored packed along the rows.
fn zeros(file: &SafeTensors, module: &str, groups: usize, bits: u32, count: usize) -> Option<Vec<f32>> {
    let tensor = file.tensor(&format!("{module}.weight_zero_point")).ok()?;
    let words: Vec<u32> = tensor.data().chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
    let per_word = (32 / bits) as usize;
    let zero = |index: usize| {
        let (row, group) = (index / groups, index % groups);
        let word = words[row / per_word * groups + group];
        (word >> (bits as usize * (row % per_word)) & ((1 << bits) - 1)) as f32
    };
    Some((0..count).map(zero).collect())
}

/// One matrix in codes, whoever wrote it.
struct Coded {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<Vec<f32>>,
    global: Option<f32>,
}

struct Shape {
    columns: usize,
    group: (usize, usize),
    stored: Stored,
}

impl Shape {
    fn scale_index(&self, index: usize) -> usize {
        let (row, column) = (index / self.columns, index % self.columns);
        row / self.group.0 * self.columns.div_ceil(self.group.1) + column / self.group.1
    }

    fn level(&self, coded: &Coded, index: usize) -> f64 {
        let code = coded.codes[index];
        match self.stored {
            Stored::Words(_) | Stored::Signed => {
                let bits = if let Stored::Words(bits) = self.stored { bits } else { 8 };
                let implied = f64::from(1_u32 << (bits - 1));
                let zero = coded.zeros.as_ref().map_or(implied, |zeros| f64::from(zeros[self.scale_index(index)]));
                f64::from(code) - zero
            }
            Stored::Bytes => small_float(code, 4, 3),
            Stored::Nibbles => small_float(code, 2, 1),
        }
    }

    fn error(&self, coded: &Coded, weights: &[f32]) -> f64 {
        let decoded = |index: usize| {
            let scale = f64::from(coded.scales[self.scale_index(index)]) / f64::from(coded.global.unwrap_or(1.0));
            self.level(coded, index) * scale
        };
        weights.iter().enumerate().map(|(index, weight)| (decoded(index) - f64::from(*weight)).powi(2)).sum()
    }

    /// Whether the reference's code is nearest to the quotient as BF16 has it: no other code is nearer.
    fn explained(&self, reference: &Coded, index: usize, weight: f32) -> bool {
        let scale = reference.scales[self.scale_index(index)];
        // NVFP4 divides by an F32 scale, so its quotient stays F32; a power of two divides exactly.
        let quotient = match reference.global {
            Some(global) => f64::from(weight / (scale / global)),
            None => f64::from(bf16::from_f32(weight / scale).to_f32()),
        };
        let distance = |code: u8| {
            let one = Coded { codes: vec![code], scales: vec![], zeros: None, global: None };
            let mut level = Shape { columns: 1, group: (1, 1), stored: self.stored }.level(&one, 0);
            if let (Some(zeros), Stored::Words(bits)) = (&reference.zeros, self.stored) {
                // The zero point is added in BF16, too.
                let zero = f64::from(zeros[self.scale_index(index)]) - f64::from(1_u32 << (bits - 1));
                let shifted = f64::from(bf16::from_f64(quotient + zero).to_f32());
                level -= shifted;
                return level.abs();
            }
            (level - quotient).abs()
        };
        let found = distance(reference.codes[index]);
        let all: std::ops::RangeInclusive<u8> = match self.stored {
            Stored::Words(bits) => 0..=((1_u16 << bits) - 1) as u8,
            Stored::Signed | Stored::Bytes => 0..=255,
            Stored::Nibbles => 0..=15,
        };
        all.filter(|code| self.stored != Stored::Bytes || code & 0x7F != 0x7F).all(|code| distance(code) >= found)
    }
}

fn encode(dense: &Dense, settings: &str, global: Option<f32>) -> (Coded, (usize, usize)) {
    let settings = (rtn::INFO.parse)(&settings.parse().unwrap()).unwrap();
    let matrix = Matrix {
        name: "golden".to_owned(),
        rows: dense.rows,
        columns: dense.columns,
        experts: 1,
        seed: 0,
        dense_dtype: Dtype::BF16,
        scale: ScaleFormat::BF16,
        minimum_zero_point: 0,
        float_zero_allowed: false,
        minima: bantam::layout::Minima::Never,
    };
    let choice = Settings::codec(&settings, &matrix).unwrap();
    let encoder = settings.encoder(&matrix, &choice);
    let prepared = encoder.prepare(dense).unwrap();
    let parameters = MatrixParameters { tensor_scale: global.or(prepared.tensor_scale), ..prepared };
    let stripe = encoder.encode(dense, &parameters, 0, dense.rows).unwrap();
    assert!(stripe.deviations.is_empty());
    let group = match choice.codec.scalar().unwrap().granularity {
        bantam::codec::Granularity::Block { rows, columns } => (rows, columns),
        _ => (1, choice.codec.scalar().unwrap().group_columns(dense.columns)),
    };
    let zeros = (!stripe.rows.zeros.is_empty()).then_some(stripe.rows.zeros);
    (Coded { codes: stripe.rows.codes, scales: stripe.rows.scales, zeros, global: parameters.tensor_scale }, group)
}

fn differ<T: PartialEq>(a: &[T], b: &[T]) -> u64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count() as u64
}

fn compare(expected: &Expected) -> Option<Counts> {
    let (source, artifact) = (open("dense-bf16")?, open(expected.name)?);
    let (source, artifact) = (SafeTensors::deserialize(&source).unwrap(), SafeTensors::deserialize(&artifact).unwrap());
    let mut counts = Counts::default();
    let modules: Vec<String> =
        artifact.names().into_iter().filter_map(|name| name.strip_suffix(".weight_scale").map(str::to_owned)).collect();
    assert_eq!(modules.len(), 14, "two blocks of seven linears");
    for module in modules {
        let name = format!("{module}.weight");
        let shape = source.tensor(&name).unwrap().shape().to_vec();
        let dense = Dense { rows: shape[0], columns: shape[1], weights: bf16_values(&source, &name) };
        let scales = scales(&artifact, &module);
        // The reference shares NVFP4's global scale between projections that a runtime fuses.
        let global = artifact.tensor(&format!("{module}.weight_global_scale")).ok();
        let global = global.map(|tensor| f32::from_le_bytes(tensor.data().try_into().unwrap()));
        let (ours, group) = encode(&dense, expected.settings, global);
        let bits = if let Stored::Words(bits) = expected.stored { bits } else { 8 };
        let groups = dense.columns / group.1;
        let reference = Coded {
            codes: codes(&artifact, &module, expected.stored, dense.weights.len()),
            zeros: zeros(&artifact, &module, groups, bits, scales.len()),
            scales,
            global,
        };
        let shape = Shape { columns: dense.columns, group, stored: expected.stored };
        counts.codes += ours.codes.len() as u64;
        counts.codes_differ += differ(&ours.codes, &reference.codes);
        counts.scales += ours.scales.len() as u64;
        counts.scales_differ += differ(&ours.scales, &reference.scales);
        if let (Some(ours), Some(reference)) = (&ours.zeros, &reference.zeros) {
            counts.zeros_differ += differ(ours, reference);
        }
        let explained = |index: usize| shape.explained(&reference, index, dense.weights[index]);
        counts.not_explained += (0..dense.weights.len())
            .filter(|index| ours.codes[*index] != reference.codes[*index] && !explained(*index))
            .count() as u64;
        counts.error += shape.error(&ours, &dense.weights);
        if let (Some(shared), Some(own)) = (global, encode(&dense, expected.settings, None).0.global) {
            let alone = module.ends_with("o_proj") || module.ends_with("down_proj");
            assert!(if alone { own == shared } else { own >= shared }, "{module}: {own} {shared}");
        }
        counts.reference_error += shape.error(&reference, &dense.weights);
    }
    Some(counts)
}

#[test]
fn codes_and_scales_agree_with_the_reference_writer() {
    let artifact =
        |name, settings, stored, codes, scales, zeros| Expected { name, settings, stored, codes, scales, zeros };
    let table = [
        artifact("w4a16-rtn-g128", "bits = 4", Stored::Words(4), 7266, 0, 0),
        artifact("w4a16-asym-rtn-g128", "bits = 4\nsymmetric = false", Stored::Words(4), 40668, 2233, 234),
        artifact("w8a16-rtn-channel", "bits = 8\ngroup_size = 0", Stored::Words(8), 105579, 0, 0),
        artifact("w8a8-rtn", "bits = 8\ngranularity = \"channel\"", Stored::Signed, 105579, 0, 0),
        artifact("fp8-dynamic", "format = \"fp8\"", Stored::Bytes, 35703, 0, 0),
        artifact("fp8-block", "format = \"fp8\"\ngranularity = \"block\"", Stored::Bytes, 33919, 0, 0),
        artifact("mxfp4a16", "format = \"mxfp4\"", Stored::Nibbles, 0, 0, 0),
        artifact("mxfp8", "format = \"mxfp8\"", Stored::Bytes, 0, 0, 0),
        artifact("nvfp4a16", "format = \"nvfp4\"", Stored::Nibbles, 0, 0, 0),
    ];
    for expected in &table {
        let Some(counts) = compare(expected) else {
            eprintln!("SKIPPED: {GOLDEN}/{} is not there", expected.name);
            continue;
        };
        let error = counts.error / counts.reference_error;
        println!(
            "{}: {} of {} codes, {} of {} scales, {} zero points differ; squared error {error:.5} of the reference's",
            expected.name, counts.codes_differ, counts.codes, counts.scales_differ, counts.scales, counts.zeros_differ
        );
        let got = (counts.codes_differ, counts.scales_differ, counts.zeros_differ);
        assert_eq!(got, (expected.codes, expected.scales, expected.zeros), "{}", expected.name);
        assert_eq!(counts.not_explained, 0, "{}: codes that a BF16 quotient does not explain", expected.name);
        assert!(error <= 1.0, "{}: squared error {error} of the reference's", expected.name);
    }
}
