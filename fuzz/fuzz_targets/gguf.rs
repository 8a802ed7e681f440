//! A GGUF header: never a panic, and every tensor of what is accepted lies in the file, with the bytes of its type.
#![no_main]

use std::path::Path;

use bantam::checkpoint::gguf::parse_gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(header) = parse_gguf(Path::new("x"), input, input.len() as u64) else { return };
    let mut end = 0;
    for tensor in &header.tensors {
        assert!(tensor.offset >= end, "tensors do not overlap");
        end = tensor.offset + tensor.bytes;
        assert!(end <= input.len() as u64);
        assert_eq!(tensor.kind.tensor_bytes(&tensor.shape), Some(tensor.bytes));
    }
});
