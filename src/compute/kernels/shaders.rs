//! Every shader parses, validates, and says at its head what it computes and how its data lies. Needs no adapter.

use std::{
    fs,
    path::{Path, PathBuf},
};

use naga::valid::{Capabilities, ValidationFlags, Validator};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

/// The shaders, with their parts behind them as `shader!` has it.
fn shaders() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wgsl") {
            let mut text = fs::read_to_string(&path).unwrap();
            let needs = text.lines().find_map(|line| line.strip_prefix("// needs: ")).unwrap_or("").to_owned();
            for part in needs.split_whitespace() {
                text += &fs::read_to_string(folder().join(part)).unwrap();
            }
            all.push((path.file_stem().unwrap().to_string_lossy().into_owned(), text));
        }
    }
    all
}

#[test]
fn every_shader_is_valid_wgsl() {
    let shaders = shaders();
    assert!(shaders.len() >= 6, "only {} shaders were found", shaders.len());
    for (name, text) in shaders {
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string_with_path(&text, &name)));
        // F16 in F32 arithmetic, `unpack2x16float`: all that Vulkan, Metal and Direct3D 12 drive has it.
        let capabilities =
            Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32 | Capabilities::SUBGROUP;
        Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string_with_path(&text, &name)));
        assert!(!module.entry_points.is_empty(), "{name} has no kernel");
    }
}

#[test]
fn every_shader_says_what_it_computes_and_how_its_data_lies() {
    for (name, text) in shaders() {
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//")).collect();
        for keyword in ["// Formula", "// Layout", "// Threads"] {
            assert!(head.iter().any(|line| line.starts_with(keyword)), "{name}'s head lacks `{keyword}`");
        }
    }
}

#[test]
fn a_shader_with_a_mistake_is_found() {
    let (_, text) = shaders().into_iter().find(|(name, _)| name == "pack").unwrap();
    assert!(naga::front::wgsl::parse_str(&text.replacen("out[index] = word", "out[index] = 1.5", 1)).is_err());
}
