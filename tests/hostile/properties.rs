//! Random headers, valid and mutated, against the reference reader: what it refuses is refused here, and what is
//! accepted here it reads the same. The reverse does not hold: see the head of `src/checkpoint/parse.rs`.

use bantam::checkpoint::{Dtype, Header, METADATA, header_bytes, parse_header};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn any_dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![
        Dtype::BOOL,
        Dtype::F4,
        Dtype::F6_E2M3,
        Dtype::U8,
        Dtype::F8_E4M3,
        Dtype::I16,
        Dtype::BF16,
        Dtype::F32,
        Dtype::C64,
        Dtype::U64,
    ])
}

/// A valid file: tensors of whole bytes under different names, in random order, entries shuffled in the JSON.
fn any_file() -> impl Strategy<Value = Vec<u8>> {
    let tensor = (".{0,12}", any_dtype(), prop::collection::vec(0_usize..5, 0..4));
    prop::collection::vec(tensor, 0..8).prop_map(|mut tensors| {
        for (index, (name, dtype, shape)) in tensors.iter_mut().enumerate() {
            name.push_str(&index.to_string());
            if dtype.bitsize() < 8 {
                shape.push(8);
            }
        }
        let listed = tensors.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice()));
        let mut file = header_bytes(listed, METADATA);
        let data: usize =
            tensors.iter().map(|(_, dtype, shape)| shape.iter().product::<usize>() * dtype.bitsize() / 8).sum();
        file.resize(file.len() + data, 0);
        file
    })
}

/// Changes that reach deep into the header: bytes replaced by ones that JSON means something by, pieces repeated.
#[derive(Debug, Clone)]
enum Change {
    Replace(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Grow(usize),
}

fn any_change() -> impl Strategy<Value = Change> {
    let byte = prop::sample::select(b"0123456789{}[],:\"-.eU8F \\x\xff".to_vec());
    prop_oneof![
        4 => (any::<prop::sample::Index>(), byte).prop_map(|(at, byte)| Change::Replace(at, byte)),
        1 => (any::<prop::sample::Index>(), 1_usize..20).prop_map(|(at, bytes)| Change::Remove(at, bytes)),
        1 => (any::<prop::sample::Index>(), 1_usize..80).prop_map(|(at, bytes)| Change::Repeat(at, bytes)),
        1 => (0_usize..20).prop_map(Change::Grow),
    ]
}

/// Applies the change to header and data, and corrects the header's length so that the change is what is judged.
fn apply(file: &mut Vec<u8>, change: &Change) {
    let header_bytes = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header = file[8..8 + header_bytes].to_vec();
    let mut data = file.split_off(8 + header_bytes);
    let range = |at: &prop::sample::Index, bytes: usize, header: &[u8]| {
        let start = at.index(header.len());
        start..(start + bytes).min(header.len())
    };
    match change {
        _ if header.is_empty() => {}
        Change::Replace(at, byte) => {
            let at = at.index(header.len());
            header[at] = *byte;
        }
        Change::Remove(at, bytes) => {
            let range = range(at, *bytes, &header);
            header.drain(range);
        }
        Change::Repeat(at, bytes) => {
            let range = range(at, *bytes, &header);
            let piece = header[range.clone()].to_vec();
            header.splice(range.end..range.end, piece);
        }
        Change::Grow(bytes) => data.resize(data.len() + bytes, 0),
    }
    *file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
}

/// Both readers must give the same tensors.
fn assert_same(header: &Header, official: &SafeTensors<'_>, file: &[u8]) {
    assert_eq!(header.tensors.len(), official.len());
    for tensor in &header.tensors {
        let expected = official.tensor(&tensor.name).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape[..]), (expected.dtype(), expected.shape()));
        let start =
            file.len() - (expected.data().as_ptr_range().start as usize..file.as_ptr_range().end as usize).len();
        assert_eq!((tensor.offset, tensor.bytes), (start as u64, expected.data().len() as u64), "{}", tensor.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn valid_files_are_read_as_the_reference_reads_them(file in any_file()) {
        let header = parse_header("x".as_ref(), &file, file.len() as u64).unwrap();
        assert_same(&header, &SafeTensors::deserialize(&file).unwrap(), &file);
        prop_assert_eq!(&header.metadata["format"], "pt");
    }

    #[test]
    fn what_the_reference_refuses_is_refused(
        mut file in any_file(),
        changes in prop::collection::vec(any_change(), 1..4),
    ) {
        for change in &changes {
            apply(&mut file, change);
        }
        if let Ok(header) = parse_header("x".as_ref(), &file, file.len() as u64) {
            match SafeTensors::deserialize(&file) {
                Ok(official) => assert_same(&header, &official, &file),
                Err(error) => prop_assert!(false, "accepted what the reference refuses: {}", error),
            }
        }
    }
}
