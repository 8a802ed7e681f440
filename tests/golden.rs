//! Artifacts that other tools wrote decode to the weights that their own decoders give.
#![expect(clippy::unwrap_used)] // a failure is the test's

use std::path::{Path, PathBuf};

use bantam::{
    checkpoint::{Checkpoint, decode_to_f32},
    codec::{
        Whole,
        sparse::{Mask, Pattern, Sparse},
    },
    layout::{Activations, LayoutName, LogicalCheckpoint, MatrixSpec, layout},
};

/// Compared with BF16 weights that the reference computed in BF16 arithmetic: one rounding of the product, 2⁻⁸ relative.
const BF16_ROUNDING: f32 = 1.0 / 256.0;

/// F32 expectations: the product of an F16 scale and a small integer is exact in F32, so equal but for its last place.
const F32_ROUNDING: f32 = f32::EPSILON;

fn golden() -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/interop/golden"));
    if path.is_dir() {
        return Some(path.to_owned());
    }
    eprintln!("SKIPPED: reference artifacts are not at {}", path.display());
    None
}

fn open(path: &Path) -> LogicalCheckpoint {
    LogicalCheckpoint::open(Checkpoint::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All rows of a logical tensor, read in stripes that fall across words, blocks and groups.
fn weights(checkpoint: &LogicalCheckpoint, name: &str, stripe: usize) -> Vec<f32> {
    let rows = checkpoint.rows(name, false).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut all = vec![0.0; rows.rows() * rows.columns()];
    for (index, out) in all.chunks_mut(stripe * rows.columns()).enumerate() {
        rows.read_rows(index * stripe, out).unwrap();
        rows.release_rows(index * stripe..index * stripe + out.len() / rows.columns());
    }
    all
}

fn check(name: &str, codec: &str, relative: f32) {
    let Some(golden) = golden() else { return };
    let artifact = open(&golden.join(name));
    let expected = Checkpoint::open(&golden.join(format!("expected/{name}.safetensors"))).unwrap();
    assert!(expected.tensors().len() >= 7, "{name} has expected values");
    for entry in expected.tensors() {
        let weight =
            if entry.name.ends_with(".weight") { entry.name.clone() } else { format!("{}.weight", entry.name) };
        let tensor = artifact.tensor(&weight).unwrap_or_else(|| panic!("{name}: no {weight}"));
        assert_eq!(tensor.shape, entry.shape, "{name} {weight}");
        assert_eq!(tensor.describe(), codec, "{name} {weight}");
        assert!(tensor.parts.len() >= 2 && tensor.stored_bytes > 0);
        let mut reference = vec![0.0; entry.shape.iter().product()];
        decode_to_f32(entry.dtype, &expected.bytes(entry), &mut reference);
        for stripe in [128, 37] {
            let decoded = weights(&artifact, &weight, stripe);
            for (index, (got, expected)) in decoded.iter().zip(&reference).enumerate() {
                assert!(
                    (got - expected).abs() <= relative * expected.abs(),
                    "{name} {weight} [{index}] in stripes of {stripe}: {got} instead of {expected}"
                );
            }
        }
    }
}

#[test]
fn packed_integers() {
    check("w4a16-rtn-g128", "int4-g128", BF16_ROUNDING);
    check("w4a16-gptq-g128", "int4-g128", BF16_ROUNDING);
    check("w4a16-asym-rtn-g128", "int4-g128-asym", BF16_ROUNDING);
    check("w8a16-rtn-channel", "int8-channel", BF16_ROUNDING);
    check("w3a16-rtn-g128", "int3-g128", BF16_ROUNDING);
}

#[test]
fn int8_and_fp8_bytes() {
    check("w8a8-rtn", "int8-channel", BF16_ROUNDING);
    check("w8a8-smoothquant-gptq", "int8-channel", BF16_ROUNDING);
    check("fp8-dynamic", "fp8-channel", BF16_ROUNDING);
    check("fp8-block", "fp8-block128x128", BF16_ROUNDING);
}

#[test]
fn microscaling_and_nvfp4() {
    check("mxfp4a16", "mxfp4", BF16_ROUNDING);
    check("mxfp8", "mxfp8", BF16_ROUNDING);
    check("nvfp4a16", "nvfp4", BF16_ROUNDING);
}

#[test]
fn gptq_of_all_widths() {
    check("gptq-v1-2b-g64-sym", "int2-g64", F32_ROUNDING);
    check("gptq-v1-3b-g128-sym", "int3-g128", F32_ROUNDING);
    check("gptq-v1-4b-g128-sym", "int4-g128", F32_ROUNDING);
    check("gptq-v1-4b-g128-asym", "int4-g128-asym", F32_ROUNDING);
    check("gptq-v1-8b-g128-sym", "int8-g128", F32_ROUNDING);
}

#[test]
fn awq() {
    check("awq-gemm-4b-g128", "int4-g128-asym", F32_ROUNDING);
}

#[test]
fn two_of_four_bitmask_puts_each_kept_weight_in_its_place() {
    let Some(golden) = golden() else { return };
    let sparse = open(&golden.join("sparse24-sparsegpt-bitmask"));
    let stored = sparse.checkpoint();
    let mut matrices = 0;
    for tensor in sparse.tensors().iter().filter(|tensor| !tensor.is_plain()) {
        matrices += 1;
        assert_eq!(tensor.describe(), "sparse-24-bitmask");
        let module = tensor.name.strip_suffix(".weight").unwrap();
        let entry = |suffix: &str| stored.tensor(&format!("{module}.{suffix}")).unwrap();
        let (mask, values) = (stored.bytes(entry("bitmask")), entry("compressed"));
        let mut kept = vec![0.0; values.shape.iter().product()];
        decode_to_f32(values.dtype, &stored.bytes(values), &mut kept);
        // Built the other way round than the reader does it: by looking at single bits of the whole mask.
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let mut next = 0;
        let decoded = weights(&sparse, &tensor.name, 37);
        for row in 0..rows {
            for column in 0..columns {
                let set = mask[row * columns / 8 + column / 8] & (1 << (column % 8)) != 0;
                let expected = if set { kept[next] } else { 0.0 };
                next += usize::from(set);
                assert_eq!(decoded[row * columns + column], expected, "{} [{row}, {column}]", tensor.name);
            }
        }
        for four in decoded.chunks(4) {
            assert!(four.iter().filter(|&&weight| weight == 0.0).count() >= 2, "{}: {four:?}", tensor.name);
        }
        assert_eq!(next, kept.len());
        // Written again, the same bytes under the same names.
        let format = Sparse { keep: 2, of: 4, dtype: values.dtype };
        let mask = Mask::new(Pattern::TWO_OF_FOUR, rows, columns, mask.to_vec()).unwrap();
        let spec = masked(&tensor.name, rows, columns, format);
        let writer = layout(LayoutName::Sparse24Bitmask);
        let pieces = writer.pack_whole(&spec, 0, format.encode(&decoded, &mask).unwrap().into());
        for (written, piece) in writer.tensors(&spec).iter().zip(&pieces) {
            let entry = stored.tensor(&written.name).unwrap();
            assert_eq!((written.dtype, &written.shape), (entry.dtype, &entry.shape), "{}", written.name);
            assert_eq!(stored.bytes(entry), piece.bytes, "{}", written.name);
        }
        assert_eq!(pieces.len(), tensor.parts.len());
        let mut config = writer.quantization_config(&[spec], &["lm_head".to_owned()]).unwrap();
        let reference = &stored.config().unwrap().value["quantization_config"];
        // Of the masked matrices here, of all tensors there.
        config["sparsity_config"]["global_sparsity"] = reference["sparsity_config"]["global_sparsity"].clone();
        assert_eq!(config, *reference);
    }
    assert_eq!(matrices, 14);
}

fn masked(name: &str, rows: usize, columns: usize, format: Sparse) -> MatrixSpec {
    MatrixSpec {
        name: name.to_owned(),
        experts: None,
        rows,
        columns,
        transposed: false,
        dense_dtype: format.dtype,
        codec: Whole::Sparse(format).into(),
        rotations: None,
        codebook_of: None,
        cache: None,
        activations: Activations::None,
        bias: false,
    }
}

#[test]
fn methods_that_are_not_read_are_refused_by_name() {
    let Some(golden) = golden() else { return };
    let error = LogicalCheckpoint::open(Checkpoint::open(&golden.join("aqlm-2x8")).unwrap()).unwrap_err();
    assert!(error.to_string().contains("`aqlm`"), "{error}");
    assert!(error.hint().is_some());
}

/// The reference computed in F32, a BF16 module rounds each of three operations, the last of which may cancel.
#[test]
fn vectors_of_centroids() {
    let Some(golden) = golden() else { return };
    let name = "vptq-v4-k256-r16";
    let artifact = open(&golden.join(name));
    let expected = Checkpoint::open(&golden.join(format!("expected/{name}.safetensors"))).unwrap();
    assert!(expected.tensors().len() >= 7);
    for entry in expected.tensors() {
        let weight =
            if entry.name.ends_with(".weight") { entry.name.clone() } else { format!("{}.weight", entry.name) };
        let tensor = artifact.tensor(&weight).unwrap_or_else(|| panic!("no {weight}"));
        assert_eq!((&tensor.shape, tensor.describe().as_str()), (&entry.shape, "vptq-v4-k256-r16-norm-perm"));
        let mut reference = vec![0.0; entry.shape.iter().product()];
        decode_to_f32(entry.dtype, &expected.bytes(entry), &mut reference);
        let largest = reference.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for stripe in [128, 37] {
            let decoded = weights(&artifact, &weight, stripe);
            let worst = decoded.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Scale and bias may be twice as large as what comes of them; each rounding costs half of `BF16_ROUNDING`.
            assert!(worst <= 3.0 * BF16_ROUNDING * largest, "{weight}: {worst:e} of {largest:e}");
        }
    }
}
