//! An index of shards: never a panic, and no accepted file name leaves the folder.
#![no_main]

use std::path::{Component, Path};

use bantam::checkpoint::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(index) = Index::parse(Path::new("x"), text) else { return };
    assert!(!index.weight_map.is_empty());
    for file in index.weight_map.values() {
        let path = Path::new(file);
        assert!(path.is_relative() && !path.components().any(|part| part == Component::ParentDir), "{file}");
        assert!(file.ends_with(".safetensors") || file.ends_with(".safetensors/"), "{file}");
    }
});
