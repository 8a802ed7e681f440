//! What a layout writes is read back the same, for every layout and number format; what cannot be is refused.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeMap, path::Path};

use bantam::{
    checkpoint::{Checkpoint, Dtype},
    codec::{
        Codec, CodedRows, Granularity, MatrixParameters, OutlierCount, Outliers, Rotations, ScaleFormat, ZeroPoint,
    },
    forward::InputFormat,
    layout::{
        Activations, Layout, LayoutName, LogicalCheckpoint, MatrixSpec, Refusal, STRIPE_ALIGNMENT, layout, scatter,
    },
};
use proptest::prelude::*;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

/// A small generator of bits, so that a case is told by one number.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (self.0 ^ self.0 >> 29).wrapping_mul(0xbf58476d1ce4e5b9);
        mixed ^ mixed >> 32
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A positive value that the format holds exactly.
    fn scale(&mut self, format: ScaleFormat) -> f32 {
        match format {
            // Eight bits of mantissa: exact in F32, F16 and BF16.
            ScaleFormat::F32 | ScaleFormat::F16 | ScaleFormat::BF16 => {
                (128 + self.below(128)) as f32 * 2f32.powi(-12 - self.below(4) as i32)
            }
            ScaleFormat::E8M0 => 2f32.powi(self.below(60) as i32 - 30),
            ScaleFormat::E4M3OverGlobal => (8 + self.below(8)) as f32,
        }
    }
}

/// A matrix in codes, all rows.
fn random_matrix(spec: &MatrixSpec, least_zero: u8, random: &mut Random) -> (CodedRows, MatrixParameters) {
    let codec = spec.scalar();
    let bits = codec.codec_bits();
    let count = codec.scale_count(spec.rows, spec.columns);
    let whole = codec.granularity == Granularity::Tensor;
    let zero = |random: &mut Random| match codec.zero {
        ZeroPoint::Integer => (u64::from(least_zero) + random.below((1 << bits) - u64::from(least_zero))) as f32,
        _ => random.scale(codec.scale) * 128.0,
    };
    let zeros = if codec.zero == ZeroPoint::None { 0 } else { count };
    let coded = CodedRows {
        first_row: 0,
        rows: spec.rows,
        columns: spec.columns,
        codes: (0..spec.rows * spec.columns).map(|_| random.below(1 << bits) as u8).collect(),
        scales: (0..count).map(|_| random.scale(codec.scale)).collect(),
        zeros: (0..zeros).map(|_| zero(random)).collect(),
    };
    let global = whole || codec.scale == ScaleFormat::E4M3OverGlobal;
    let parameters = MatrixParameters {
        tensor_scale: global.then(|| random.scale(ScaleFormat::BF16)),
        tensor_zero: (whole && codec.zero != ZeroPoint::None).then(|| zero(random)),
        outliers: codec.outliers.map(|outliers| random_outliers(spec, outliers.count as usize, random)),
    };
    (coded, parameters)
}

fn random_outliers(spec: &MatrixSpec, count: usize, random: &mut Random) -> Outliers {
    let mut places = std::collections::BTreeSet::new();
    while places.len() < count {
        places.insert((random.below(spec.rows as u64) as usize, random.below(spec.columns as u64) as u32));
    }
    let row_starts = (0..=spec.rows).map(|row| places.iter().filter(|place| place.0 < row).count() as u32).collect();
    let values = places.iter().map(|_| random.scale(spec.scalar().scale) * 64.0).collect();
    Outliers { row_starts, columns: places.iter().map(|place| place.1).collect(), values }
}

/// Some rows of a whole matrix.
fn stripe(codec: &Codec, all: &CodedRows, first_row: usize, rows: usize) -> CodedRows {
    let groups = codec.groups_per_row(all.columns);
    let scale_rows = codec.scale_row_range(first_row, rows);
    let part = |values: &[f32]| match values {
        [] => Vec::new(),
        _ => values[scale_rows.start * groups..scale_rows.end * groups].to_vec(),
    };
    CodedRows {
        first_row,
        rows,
        columns: all.columns,
        codes: all.codes[first_row * all.columns..][..rows * all.columns].to_vec(),
        scales: part(&all.scales),
        zeros: part(&all.zeros),
    }
}

/// A static scale that every float type holds.
const INPUT_SCALE: f32 = 0.0234375;

/// All tensors of a matrix, packed in stripes into buffers that held `fill` before.
fn assemble(
    layout: &dyn Layout,
    spec: &MatrixSpec,
    all: &CodedRows,
    parameters: &MatrixParameters,
    fill: u8,
) -> Vec<Vec<u8>> {
    let mut buffers: Vec<Vec<u8>> =
        layout.tensors(spec).iter().map(|tensor| vec![fill; tensor.bytes() as usize]).collect();
    scatter(&layout.pack_parameters(spec, parameters), &mut buffers);
    if spec.activations == Activations::Static {
        scatter(&layout.pack_input_scale(spec, INPUT_SCALE), &mut buffers);
    }
    let mut first = 0;
    // Stripes of one and of two alignments, to see that packing looks at where a stripe starts.
    for stripe_rows in [STRIPE_ALIGNMENT, 2 * STRIPE_ALIGNMENT].into_iter().cycle() {
        if first >= spec.rows {
            break;
        }
        let rows = stripe_rows.min(spec.rows - first);
        scatter(&layout.pack(spec, &stripe(spec.scalar(), all, first, rows)), &mut buffers);
        first += rows;
    }
    buffers
}

/// Writes a checkpoint folder.
fn write(folder: &Path, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)], config: &Value) {
    let views: BTreeMap<&str, TensorView> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn open(folder: &Path) -> Result<LogicalCheckpoint, String> {
    LogicalCheckpoint::open(Checkpoint::open(folder).unwrap()).map_err(|error| error.to_string())
}

/// A folder with random matrices written through a layout, and what they are.
struct Written {
    folder: tempfile::TempDir,
    matrices: Vec<(CodedRows, MatrixParameters)>,
}

fn write_random(name: LayoutName, specs: &[MatrixSpec], seed: u64) -> Written {
    let layout = layout(name);
    let mut random = Random(seed);
    let mut tensors = Vec::new();
    let mut matrices = Vec::new();
    for spec in specs {
        layout.accepts(spec).unwrap_or_else(|refusal| panic!("{name:?} {spec:?}: {refusal:?}"));
        let (coded, parameters) = random_matrix(spec, layout.minimum_zero_point(), &mut random);
        let buffers = assemble(&*layout, spec, &coded, &parameters, 0);
        let twin = assemble(&*layout, spec, &coded, &parameters, 0xff);
        for ((tensor, bytes), twin) in layout.tensors(spec).into_iter().zip(buffers).zip(twin) {
            assert_eq!(bytes, twin, "every byte of {} is written", tensor.name);
            tensors.push((tensor.name, tensor.dtype, tensor.shape, bytes));
        }
        matrices.push((coded, parameters));
    }
    layout.accepts_together(specs).unwrap();
    let dense = ["lm_head".to_owned()];
    let config = json!({ "dtype": "bfloat16", "quantization_config": layout.quantization_config(specs, &dense) });
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &tensors, &config);
    Written { folder, matrices }
}

/// Writes matrices through a layout and reads each back: codes, scales, zero points, parameters, weights.
fn round_trip(name: LayoutName, specs: &[MatrixSpec], seed: u64) {
    let layout = layout(name);
    let written = write_random(name, specs, seed);
    let read = open(written.folder.path()).unwrap_or_else(|error| panic!("{name:?} {specs:?}: {error}"));
    assert_eq!(read.tensors().len(), specs.len());
    for (spec, (coded, parameters)) in specs.iter().zip(&written.matrices) {
        let tensor = read.tensor(&spec.name).unwrap();
        assert_eq!(tensor.codec.as_ref(), Some(&spec.codec), "{}", spec.name);
        let stored: u64 = layout.tensors(spec).iter().map(bantam::layout::TensorSpec::bytes).sum();
        assert_eq!((tensor.stored_bytes, tensor.parts.len()), (stored, layout.tensors(spec).len()));
        assert_eq!(read.parameters(&spec.name).unwrap(), *parameters);
        for (first, rows) in [(0, spec.rows), (spec.rows / 3, spec.rows / 2), (spec.rows, 0)] {
            let expected = stripe(spec.scalar(), coded, first, rows);
            assert_eq!(read.coded_rows(&spec.name, first, rows).unwrap(), expected, "{} {first}+{rows}", spec.name);
        }
        assert!(read.coded_rows(&spec.name, 1, spec.rows).is_err());
        check_weights(&read, spec, coded, parameters);
    }
}

/// The weights in both orders of the last two dimensions.
fn check_weights(read: &LogicalCheckpoint, spec: &MatrixSpec, coded: &CodedRows, parameters: &MatrixParameters) {
    let mut expected = vec![0.0; spec.rows * spec.columns];
    spec.scalar().dequantize_rows(coded, parameters, &mut expected).unwrap();
    let (experts, columns) = (spec.experts.unwrap_or(1), spec.columns);
    let expert_rows = spec.rows / experts;
    for turned in [spec.transposed, !spec.transposed] {
        let source = read.rows(&spec.name, turned).unwrap();
        let direct = turned == spec.transposed;
        let shape = if direct { (spec.rows, columns) } else { (experts * columns, expert_rows) };
        assert_eq!((source.rows(), source.columns()), shape);
        let (first, count) = (shape.0 / 4, shape.0.div_ceil(2));
        let mut weights = vec![0.0; count * shape.1];
        source.read_rows(first, &mut weights).unwrap();
        for (index, weight) in weights.iter().enumerate() {
            let (row, column) = (first + index / shape.1, index % shape.1);
            let place = if direct {
                row * columns + column
            } else {
                (row / columns * expert_rows + column) * columns + row % columns
            };
            assert_eq!(weight.to_bits(), expected[place].to_bits(), "{} [{row}, {column}]", spec.name);
        }
        source.release_rows(0..shape.0);
        assert!(source.read_rows(shape.0, &mut weights).is_err(), "rows beyond the matrix");
    }
}

fn spec(name: &str, rows: usize, columns: usize, codec: Codec) -> MatrixSpec {
    MatrixSpec {
        name: name.to_owned(),
        experts: None,
        rows,
        columns,
        transposed: false,
        dense_dtype: Dtype::BF16,
        codec: codec.into(),
        rotations: None,
        codebook_of: None,
        cache: None,
        bias: false,
        activations: Activations::None,
    }
}

fn codec(name: &str, scale: ScaleFormat) -> Codec {
    Codec::parse_name(name, scale).unwrap_or_else(|| panic!("{name} is a codec"))
}

fn float_scale() -> impl Strategy<Value = ScaleFormat> {
    prop::sample::select(vec![ScaleFormat::BF16, ScaleFormat::F16, ScaleFormat::F32])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compressed_tensors_integers(
        rows in 1usize..400, groups in 1usize..4, size in prop::sample::select(vec![8usize, 32, 128]),
        bits in prop::sample::select(vec![4u8, 8]), asymmetric in any::<bool>(), channel in any::<bool>(),
        scale in float_scale(), seed in any::<u64>(),
    ) {
        let (suffix, group) = (if asymmetric { "-asym" } else { "" }, if channel { "channel".into() } else { format!("g{size}") });
        let codec = codec(&format!("int{bits}-{group}{suffix}"), scale);
        round_trip(LayoutName::CompressedTensors, &[spec("a.weight", rows, groups * size, codec)], seed);
    }

    #[test]
    fn compressed_tensors_floats_and_int8_activations(
        rows in 1usize..400, groups in 1usize..5, scale in float_scale(), dynamic in any::<bool>(), seed in any::<u64>(),
    ) {
        for name in ["fp8-channel", "fp8-tensor", "fp8-block128x128", "mxfp4", "mxfp8", "nvfp4", "int8-channel", "int8-tensor"] {
            let columns = if name == "fp8-block128x128" && dynamic { groups * 128 } else { groups * 32 };
            let mut spec = spec("a.weight", rows, columns, codec(name, scale));
            if name.starts_with("int8") || (dynamic && name != "nvfp4") {
                spec.activations = Activations::Dynamic;
            }
            round_trip(LayoutName::CompressedTensors, &[spec], seed);
        }
    }

    #[test]
    fn gptq_in_both_versions(
        row_words in 1usize..12, groups in 1usize..4, size in prop::sample::select(vec![32usize, 64, 128]),
        bits in prop::sample::select(vec![2u8, 3, 4, 8]), asymmetric in any::<bool>(), channel in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (suffix, group) = (if asymmetric { "-asym" } else { "" }, if channel { "channel".into() } else { format!("g{size}") });
        let codec = codec(&format!("int{bits}-{group}{suffix}"), ScaleFormat::F16);
        for name in [LayoutName::Gptq, LayoutName::GptqV2] {
            round_trip(name, &[spec("a.b.weight", row_words * 32, groups * size, codec.clone())], seed);
        }
    }

    #[test]
    fn awq(
        row_words in 1usize..50, groups in 1usize..4, size in prop::sample::select(vec![32usize, 64, 128]),
        asymmetric in any::<bool>(), channel in any::<bool>(), seed in any::<u64>(),
    ) {
        let (suffix, group) = (if asymmetric { "-asym" } else { "" }, if channel { "channel".into() } else { format!("g{size}") });
        let codec = codec(&format!("int4-{group}{suffix}"), ScaleFormat::F16);
        round_trip(LayoutName::Awq, &[spec("a.weight", row_words * 8, groups * size, codec)], seed);
    }

    #[test]
    fn bantam_holds_everything(
        expert_rows in 1usize..200, columns in 1usize..200, experts in prop::option::of(1usize..4), transposed in any::<bool>(),
        bits in 2u8..=8, size in 1usize..70, outliers in prop::option::of(0u64..9), scale in float_scale(), seed in any::<u64>(),
    ) {
        let specs = every_codec(expert_rows, columns, experts, transposed, bits, size, outliers, scale);
        round_trip(LayoutName::Bantam, &specs, seed);
    }
}

/// A matrix in each codec that our own layout holds.
#[expect(clippy::too_many_arguments, reason = "each is one choice of a property test")]
fn every_codec(
    expert_rows: usize,
    columns: usize,
    experts: Option<usize>,
    transposed: bool,
    bits: u8,
    size: usize,
    outliers: Option<u64>,
    scale: ScaleFormat,
) -> Vec<MatrixSpec> {
    let names = [
        "channel",
        "tensor",
        "channel-asym",
        "tensor-asym",
        "channel-hqq",
        "tensor-hqq",
        "channel-min",
        "tensor-min",
        "block16x24-asym",
    ];
    let groups = ["", "-asym", "-hqq", "-min"].map(|zero| format!("g{size}{zero}"));
    let integers = names.into_iter().map(str::to_owned).chain(groups).map(|rest| format!("int{bits}-{rest}"));
    let floats = ["fp8-channel", "fp8-tensor", "fp8-block128x128", "mxfp4", "mxfp8", "nvfp4"].map(str::to_owned);
    let one = |(index, name): (usize, String)| {
        let rows = expert_rows * experts.unwrap_or(1);
        let mut spec = spec(&format!("m{index}.weight"), rows, columns, codec(&name, scale));
        let count = outliers.map(|count| count.min((rows * columns) as u64));
        spec.codec = Codec { outliers: count.map(|count| OutlierCount { count }), ..spec.scalar().clone() }.into();
        spec.experts = experts;
        spec.transposed = transposed;
        spec
    };
    integers.chain(floats).enumerate().map(one).collect()
}

/// A Python that has `numpy`: that of the interoperability tests, or the system's.
fn python() -> Option<std::path::PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/bantam/interop/bin/python"));
    home.into_iter().chain([Path::new("python3").to_owned()]).find(|python| {
        let numpy = std::process::Command::new(python).args(["-c", "import numpy"]).output();
        numpy.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn the_documented_decoder_reads_every_codec_of_our_own_layout() {
    let Some(python) = python() else {
        eprintln!("SKIPPED: no Python with NumPy");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats/bantam_decode.py");
    for (experts, transposed, bits, outliers, scale) in [
        (None, false, 3, None, ScaleFormat::BF16),
        (None, true, 5, Some(7), ScaleFormat::F16),
        (Some(3), true, 8, Some(7), ScaleFormat::F32),
        (Some(2), false, 2, None, ScaleFormat::F16),
    ] {
        let specs = every_codec(37, 75, experts, transposed, bits, 20, outliers, scale);
        let written = write_random(LayoutName::Bantam, &specs, 11);
        let out = tempfile::tempdir().unwrap();
        let run = std::process::Command::new(&python).arg(script).args([written.folder.path(), out.path()]).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let read = open(written.folder.path()).unwrap();
        for spec in &specs {
            let source = read.rows(&spec.name, false).unwrap();
            let mut weights = vec![0.0; source.rows() * source.columns()];
            source.read_rows(0, &mut weights).unwrap();
            let file = std::fs::read(out.path().join(format!("{}.npy", spec.name))).unwrap();
            // A header that tells type and shape, then the array as it lies in memory.
            let (header, array) = file.split_at(file.len() - weights.len() * 4);
            let header = String::from_utf8_lossy(header);
            assert!(header.contains("'<f4'") && header.ends_with('\n'), "{header}");
            let decoded = array.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value));
            for (index, (got, expected)) in decoded.zip(&weights).enumerate() {
                // FP8 has bytes that are not numbers.
                let same = got == *expected || got.is_nan() && expected.is_nan();
                assert!(same, "{} {:?} [{index}]: {got}, not {expected}", spec.name, spec.codec);
            }
        }
    }
}

#[test]
fn static_scales_of_inputs_stand_beside_the_codes_and_are_read_back() {
    for (name, expected) in [
        ("int8-channel", InputFormat::Int8Static(INPUT_SCALE)),
        ("int8-tensor", InputFormat::Int8Static(INPUT_SCALE)),
        ("fp8-channel", InputFormat::Fp8Static(INPUT_SCALE)),
        ("fp8-tensor", InputFormat::Fp8Static(INPUT_SCALE)),
    ] {
        for scale in [ScaleFormat::BF16, ScaleFormat::F16, ScaleFormat::F32] {
            let mut specs =
                vec![spec("a.weight", 200, 96, codec(name, scale)), spec("b.weight", 64, 128, codec(name, scale))];
            specs[0].activations = Activations::Static;
            round_trip(LayoutName::CompressedTensors, &specs[..1], 5);
            // Beside another group, which targets by name.
            specs[1].activations = Activations::Dynamic;
            let written = write_random(LayoutName::CompressedTensors, &specs, 6);
            let read = open(written.folder.path()).unwrap();
            assert_eq!(read.input_format("a.weight"), expected, "{name} {scale:?}");
            assert!(matches!(read.input_format("b.weight"), InputFormat::Int8PerToken | InputFormat::Fp8PerToken));
        }
    }
}

#[test]
fn several_formats_in_one_compressed_tensors_artifact() {
    let mut specs = vec![
        spec("model.a.weight", 64, 256, codec("int4-g128", ScaleFormat::BF16)),
        spec("model.b.weight", 32, 128, codec("int4-g128-asym", ScaleFormat::BF16)),
        spec("model.c.weight", 32, 128, codec("fp8-channel", ScaleFormat::BF16)),
        spec("model.d.weight", 64, 256, codec("int4-g128", ScaleFormat::BF16)),
        spec("model.e.weight", 64, 256, codec("int8-channel", ScaleFormat::BF16)),
    ];
    specs[4].activations = Activations::Dynamic;
    round_trip(LayoutName::CompressedTensors, &specs, 3);
    let config = layout(LayoutName::CompressedTensors).quantization_config(&specs, &[]).unwrap();
    assert_eq!(config["format"], "mixed-precision");
    assert_eq!(config["config_groups"]["group_0"]["targets"], json!(["model.a", "model.d"]));
    assert_eq!(config["config_groups"]["group_2"]["format"], "float-quantized");
    assert_eq!(config["config_groups"].as_object().unwrap().len(), 4);
}

/// The configurations that the format's own tools write, key by key.
#[test]
fn compressed_tensors_configurations_equal_the_reference_ones() {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/interop/golden"));
    if !golden.is_dir() {
        eprintln!("SKIPPED: reference artifacts are not at {}", golden.display());
        return;
    }
    for (artifact, name, activations) in [
        ("w4a16-rtn-g128", "int4-g128", Activations::None),
        ("w4a16-asym-rtn-g128", "int4-g128-asym", Activations::None),
        ("w8a16-rtn-channel", "int8-channel", Activations::None),
        ("w8a8-rtn", "int8-channel", Activations::Dynamic),
        ("fp8-dynamic", "fp8-channel", Activations::Dynamic),
        ("fp8-block", "fp8-block128x128", Activations::Dynamic),
        ("mxfp4a16", "mxfp4", Activations::None),
        ("mxfp8", "mxfp8", Activations::Dynamic),
        ("nvfp4a16", "nvfp4", Activations::None),
    ] {
        let mut spec = spec("model.a.weight", 128, 128, codec(name, ScaleFormat::BF16));
        spec.activations = activations;
        let written = layout(LayoutName::CompressedTensors).quantization_config(&[spec], &["lm_head".to_owned()]);
        let text = std::fs::read_to_string(golden.join(artifact).join("config.json")).unwrap();
        let reference: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written.as_ref(), Some(&reference["quantization_config"]), "{artifact}");
    }
}

#[test]
fn what_a_layout_has_not_is_refused() {
    let refused = |name: LayoutName, spec: &MatrixSpec| match layout(name).accepts(spec) {
        Err(Refusal::Shape(message)) => format!("shape: {message}"),
        Err(Refusal::Format(message)) => format!("format: {message}"),
        Ok(()) => panic!("{name:?} takes {spec:?}"),
    };
    let matrix = |rows, columns, name: &str| spec("x.weight", rows, columns, codec(name, ScaleFormat::F16));
    let (tensors, gptq, awq) = (LayoutName::CompressedTensors, LayoutName::Gptq, LayoutName::Awq);
    for (layout, spec, expected) in [
        (tensors, matrix(128, 100, "int4-g64"), "shape: `x.weight` has 100 columns, which groups of 64"),
        (tensors, matrix(128, 128, "int3-g64"), "format: layout `compressed-tensors` writes integers of 4 and 8 bits"),
        (tensors, matrix(128, 128, "int4-g64-hqq"), "format: layout `compressed-tensors` has whole zero points only"),
        (tensors, matrix(128, 128, "int4-g32-min"), "format: layout `compressed-tensors` has whole zero points only"),
        (tensors, matrix(128, 128, "int4-tensor"), "format: layout `compressed-tensors` has one integer scale"),
        (tensors, matrix(128, 128, "fp8-block96x128"), "format: layout `compressed-tensors` has blocks of rows"),
        (gptq, matrix(128, 128, "int5-g64"), "format: layout `gptq` has integers of 2, 3, 4 and 8 bits, not 5"),
        (gptq, matrix(100, 128, "int4-g64"), "shape: `x.weight` has 100 rows; layout `gptq` needs a multiple of 32"),
        (gptq, matrix(128, 48, "int4-g48"), "shape: `x.weight` has 48 columns; layout `gptq` needs a multiple of 32"),
        (awq, matrix(128, 128, "int8-g64"), "format: layout `awq` has integers of 4 bits"),
        (awq, matrix(100, 128, "int4-g64"), "shape: `x.weight` has 100 rows; layout `awq` needs a multiple of 8"),
        (LayoutName::Bantam, matrix(128, 128, "int4-block96x16"), "format: layout `bantam` has blocks of rows"),
        (LayoutName::Dense, matrix(128, 128, "int4-g64"), "format: layout `dense` holds no codes"),
    ] {
        let message = refused(layout, &spec);
        assert!(message.starts_with(expected), "{message}");
    }
    for change in [
        |spec: &mut MatrixSpec| spec.experts = Some(2),
        |spec: &mut MatrixSpec| spec.transposed = true,
        |spec: &mut MatrixSpec| spec.rotations = Some(Rotations { seed: 1, inputs: true, outputs: true }),
        |spec: &mut MatrixSpec| {
            let outliers = Some(OutlierCount { count: 1 });
            spec.codec = Codec { outliers, ..spec.scalar().clone() }.into();
        },
    ] {
        let mut spec = matrix(128, 128, "int4-g64");
        change(&mut spec);
        for layout in [tensors, gptq, LayoutName::GptqV2, awq] {
            let message = refused(layout, &spec);
            assert!(message.starts_with("format:") && message.contains("use layout `bantam`"), "{message}");
        }
        layout(LayoutName::Bantam).accepts(&spec).unwrap();
    }
    let different = [matrix(128, 128, "int4-g64"), matrix(128, 128, "int4-g128")];
    assert!(matches!(layout(gptq).accepts_together(&different), Err(Refusal::Format(_))));
    assert!(layout(tensors).accepts_together(&different).is_ok());
}

#[test]
fn gptq_names_what_is_left_out_of_blocks() {
    let specs = [spec("model.layers.0.mlp.up_proj.weight", 64, 64, codec("int4-g64", ScaleFormat::F16))];
    let gptq = layout(LayoutName::Gptq);
    let plain = gptq.quantization_config(&specs, &["lm_head".to_owned()]).unwrap();
    assert!(plain.get("dynamic").is_none() && plain.get("modules_in_block_to_quantize").is_none());
    let fallback = ["lm_head".to_owned(), "model.layers.0.mlp.down_proj".to_owned()];
    let config = gptq.quantization_config(&specs, &fallback).unwrap();
    assert_eq!(config["dynamic"], json!({ r"-:^model\.layers\.0\.mlp\.down_proj$": {} }));
    assert_eq!(config["modules_in_block_to_quantize"], json!([["model.layers.0.mlp.up_proj"]]));
    let files = gptq.extra_files(&specs, &fallback);
    assert_eq!(files[0].0, "quantize_config.json");
    assert_eq!(serde_json::from_slice::<Value>(&files[0].1).unwrap(), config);
}
