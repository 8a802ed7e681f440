//! Files as they should be: every type, odd offsets, any order of entries, empty and scalar tensors; speed.

use std::{fs, time::Instant};

use bantam::checkpoint::{Checkpoint, Dtype, parse_header, write_file};

use crate::{entry, file_of};

const EVERY_TYPE: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

#[test]
fn every_type_at_an_odd_offset_with_empty_and_scalar_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let names: Vec<String> = EVERY_TYPE.iter().map(Dtype::to_string).collect();
    let mut tensors = vec![("odd", Dtype::U8, vec![1], vec![0xaa])];
    for (index, (dtype, name)) in EVERY_TYPE.iter().zip(&names).enumerate() {
        // 3 × 8 elements fill whole bytes in every type.
        let bytes = (0..3 * dtype.bitsize()).map(|byte| (byte + 17 * index) as u8).collect();
        tensors.push((name, *dtype, vec![3, 8], bytes));
    }
    tensors.push(("empty", Dtype::F64, vec![4, 0], Vec::new()));
    tensors.push(("scalar", Dtype::F32, vec![], 1.5_f32.to_le_bytes().to_vec()));
    write_file(&path, &tensors).unwrap();

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().len(), tensors.len());
    for (name, dtype, shape, bytes) in &tensors {
        let entry = checkpoint.tensor(name).unwrap();
        assert_eq!((entry.dtype, &entry.shape), (*dtype, shape));
        assert_eq!(checkpoint.bytes(entry), bytes, "{name}");
        // What is given back is read again.
        checkpoint.release(entry, 0..usize::MAX);
        assert_eq!(checkpoint.bytes(entry), bytes, "{name}");
    }
    assert_eq!(checkpoint.files()[0].metadata["format"], "pt");
    let sorted: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert!(sorted.is_sorted());
}

#[test]
fn entries_in_any_order_and_escaped_names() {
    let entries =
        [entry("\\u00e9\\\"", "U8", "[2]", 3, 5), entry("a", "U8", "[0]", 3, 3), entry("", "U8", "[3]", 0, 3)];
    let file = file_of(&format!("{{{},\"__metadata__\":{{\"k\":\"v\"}}}}   \n", entries.join(",")), 5);
    let header = parse_header("x".as_ref(), &file, file.len() as u64).unwrap();
    let found: Vec<_> = header.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.bytes)).collect();
    assert_eq!(found, [("", 3), ("a", 0), ("é\"", 2)]);
    assert_eq!(header.metadata["k"], "v");
}

/// A guard against quadratic work: the limit is far above what it takes, and far below
/// what a quadratic reader takes.
#[test]
fn a_hundred_thousand_tensors_open_at_once() {
    const TENSORS: usize = 100_000;
    let limit_seconds = if cfg!(debug_assertions) { 10.0 } else { 0.5 };
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..TENSORS).map(|index| format!("model.layers.{index}.mlp.down_proj.weight")).collect();
    let tensors: Vec<_> = names.iter().map(|name| (name.as_str(), Dtype::U8, vec![1, 1], vec![1])).collect();
    write_file(&folder.path().join("model.safetensors"), &tensors).unwrap();
    let start = Instant::now();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("opened {TENSORS} tensors in {:.1} ms", seconds * 1e3);
    assert_eq!(checkpoint.tensors().len(), TENSORS);
    assert!(seconds < limit_seconds, "{seconds} s");
}

#[test]
fn the_small_trained_model_opens() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tiny-llama");
    let checkpoint = Checkpoint::open(path.as_ref()).unwrap();
    let file = fs::read(checkpoint.root().join("model.safetensors")).unwrap();
    let official = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(checkpoint.tensors().len(), official.len());
    for tensor in checkpoint.tensors() {
        let expected = official.tensor(&tensor.name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape[..]), (expected.dtype(), expected.shape()));
        assert_eq!(checkpoint.bytes(tensor), expected.data(), "{}", tensor.name);
    }
    assert_eq!(checkpoint.config().unwrap().value["model_type"], "llama");
}
