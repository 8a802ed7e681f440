//! A safetensors header: never a panic, and nothing accepted that the reference reader refuses or reads otherwise.
//! Input: two bytes that say how much data follows the header, then the header's JSON. The length before the header is
//! added here, so that the fuzzer need not keep it right; the input as a whole is judged as a file too.
#![no_main]

use std::path::Path;

use bantam::checkpoint::parse_header;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

fn judge(file: &[u8]) {
    let Ok(header) = parse_header(Path::new("x"), file, file.len() as u64) else { return };
    let official = SafeTensors::deserialize(file).expect("what is accepted, the reference reader accepts too");
    assert_eq!(header.tensors.len(), official.len());
    for tensor in &header.tensors {
        let expected = official.tensor(&tensor.name).expect("every tensor is there");
        assert_eq!((tensor.dtype, tensor.shape.as_slice()), (expected.dtype(), expected.shape()));
        let bytes = &file[tensor.offset as usize..(tensor.offset + tensor.bytes) as usize];
        assert!(std::ptr::eq(bytes, expected.data()) || bytes.is_empty(), "the same bytes of the file");
    }
}

fuzz_target!(|input: &[u8]| {
    judge(input);
    if let Some((data_bytes, json)) = input.split_first_chunk::<2>() {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json);
        file.resize(file.len() + usize::from(u16::from_le_bytes(*data_bytes)), 0);
        judge(&file);
    }
});
