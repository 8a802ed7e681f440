use std::path::Path;

use proptest::prelude::*;

use super::*;

fn text(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text);
}

/// A file made by hand, from the format's page: two keys, two tensors.
fn by_hand() -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
    text(&mut bytes, b"general.architecture");
    bytes.extend(8_u32.to_le_bytes());
    text(&mut bytes, b"llama");
    text(&mut bytes, b"t.list");
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend(5_u32.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend([1, 0, 0, 0, 255, 255, 255, 255]);
    // Q8_0 [2, 32]: dimensions with the fastest first.
    text(&mut bytes, b"a");
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend(32_u64.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend(8_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    text(&mut bytes, b"b");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(3_u64.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(96_u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes
}

fn tensors() -> Vec<GgufTensorSpec> {
    vec![
        GgufTensorSpec { name: "a".into(), kind: GgmlType::Q8_0, shape: vec![2, 32] },
        GgufTensorSpec { name: "b".into(), kind: GgmlType::F32, shape: vec![3] },
    ]
}

fn metadata() -> Vec<(String, Value)> {
    vec![
        ("general.architecture".into(), Value::Text("llama".into())),
        ("t.list".into(), Value::Array(Array::Signed(vec![1, -1]))),
    ]
}

fn read(bytes: &[u8]) -> Result<GgufHeader, String> {
    parse_gguf(Path::new("m.gguf"), bytes, bytes.len() as u64).map_err(|error| error.to_string())
}

#[test]
fn the_head_is_the_one_made_by_hand_and_reads_back() {
    let head = gguf_head(&metadata(), &[], &tensors());
    assert_eq!(head.bytes, by_hand());
    let data = head.bytes.len() as u64;
    assert_eq!((head.offsets.clone(), head.file_bytes), (vec![data, data + 96], data + 128));
    let mut file = head.bytes;
    file.resize(head.file_bytes as usize, 0);
    let header = read(&file).unwrap();
    assert_eq!(header.metadata["general.architecture"].as_text(), Some("llama"));
    assert_eq!(header.metadata["t.list"], Value::Array(Array::Length(2)));
    let found: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.offset, t.bytes)).collect();
    assert_eq!(found, [("a", data, 68), ("b", data + 96, 12)]);
    assert_eq!(header.tensors[0].shape, [2, 32]);
}

#[test]
fn constants_lie_first_and_are_part_of_the_head() {
    let constants = [("c".to_owned(), vec![1.5_f32, -2.0])];
    let head = gguf_head(&metadata(), &constants, &tensors());
    let mut file = head.bytes.clone();
    file.resize(head.file_bytes as usize, 0);
    let header = read(&file).unwrap();
    assert_eq!(header.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["c", "a", "b"]);
    let at = header.tensors[0].offset as usize;
    assert_eq!(&file[at..at + 8], [0, 0, 192, 63, 0, 0, 0, 192]);
    assert_eq!(head.offsets[0], head.bytes.len() as u64);
}

#[test]
fn every_defect_has_its_message() {
    let head = gguf_head(&metadata(), &[], &tensors());
    let mut good = head.bytes;
    good.resize(head.file_bytes as usize, 0);
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        read(&bytes).unwrap_err()
    };
    let find = |needle: &[u8]| good.windows(needle.len()).position(|window| window == needle).unwrap();
    let b = find(b"\x01\0\0\0\0\0\0\0b");
    assert!(changed(0, b"GGML").contains("does not begin with"));
    assert!(changed(4, &[9]).contains("version 9"));
    assert!(changed(4, &[0, 0, 0, 3]).contains("big-endian"));
    assert!(changed(8, &[255; 8]).contains("tensors, more than fit"));
    assert!(changed(16, &[255; 8]).contains("keys, more than fit"));
    assert!(changed(24, &[255; 8]).contains("ends in the middle of a key"));
    assert!(changed(32, &[255]).contains("not UTF-8"));
    assert!(changed(find(b"llama") - 12, &[13]).contains("type 13"));
    assert!(changed(b + 8, b"a").contains("stands twice"));
    assert!(changed(b + 9, &[17]).contains("17 dimensions"));
    assert!(changed(b + 13, &[255; 8]).contains("no whole number of F32"));
    assert!(changed(b + 21, &[13]).contains("type Q5_K, which bantam does not read"));
    assert!(changed(b + 21, &[99]).contains("type number 99"));
    assert!(changed(b + 21, &[8]).contains("no whole number of Q8_0"));
    assert!(changed(b + 25, &[97]).contains("no multiple of 32"));
    assert!(changed(b + 25, &[64]).contains("before the end of `a`"));
    assert!(changed(b + 25, &[128]).contains("truncated"));
    assert!(changed(b + 25, &[0, 0, 0, 0, 0, 0, 0, 128]).contains("truncated"));
    let mut long = good.clone();
    long.resize(good.len() + 32, 0);
    assert!(read(&long).unwrap_err().contains("no tensor's"));
    long[b + 25] = 128;
    assert!(read(&long).unwrap_err().contains("are no tensor's"));
    assert!(read(&good[..good.len() - 30]).unwrap_err().contains("truncated"));
}

proptest! {
    #[test]
    fn no_change_of_a_few_bytes_panics_or_leaves_the_file(
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..6), length in 0usize..500,
    ) {
        let head = gguf_head(&metadata(), &[("c".to_owned(), vec![1.0; 4])], &tensors());
        let mut file = head.bytes;
        file.resize(head.file_bytes as usize, 0);
        for (at, byte) in changes {
            let at = at % file.len();
            file[at] = byte;
        }
        file.truncate(length.max(1));
        if let Ok(header) = read(&file) {
            for tensor in header.tensors {
                prop_assert!(tensor.offset + tensor.bytes <= file.len() as u64);
                prop_assert_eq!(tensor.kind.tensor_bytes(&tensor.shape), Some(tensor.bytes));
            }
        }
    }
}
