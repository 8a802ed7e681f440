//! Every shader parses, validates, and says at its head what it computes and how its data lies. Needs no adapter.

use std::{
    fs,
    path::{Path, PathBuf},
};

use naga::valid::{Capabilities, ValidationFlags, Validator};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

/// Parts that take each other's place, by what the adapter has.
const ALTERNATIVES: [(&str, &str); 3] = [
    ("parts/reduce.wgsl", "parts/reduce_subgroup.wgsl"),
    ("parts/extremes.wgsl", "parts/extremes_subgroup.wgsl"),
    ("parts/cooperative_16.wgsl", "parts/cooperative_8.wgsl"),
];

/// The shaders, with their parts behind them as `shader!` has it.
fn shaders() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wgsl") {
            let mut text = fs::read_to_string(&path).unwrap();
            let needs = text.lines().find_map(|line| line.strip_prefix("// needs: ")).unwrap_or("").to_owned();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            for (one, other) in ALTERNATIVES {
                if needs.contains(one) {
                    all.push((format!("{name} with {other}"), with_parts(&text, &needs.replace(one, other))));
                }
            }
            text = with_parts(&text, &needs);
            all.push((name, text));
        }
    }
    all
}

fn with_parts(text: &str, needs: &str) -> String {
    let parts = needs.split_whitespace().map(|part| fs::read_to_string(folder().join(part)).unwrap());
    parts.fold(text.to_owned(), |text, part| text + &part)
}

#[test]
fn every_shader_is_valid_wgsl() {
    let shaders = shaders();
    assert!(shaders.len() >= 20, "only {} shaders were found", shaders.len());
    for (_, other) in ALTERNATIVES {
        assert!(shaders.iter().any(|(name, _)| name.ends_with(other)), "no shader with {other}");
    }
    for (name, text) in shaders {
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string_with_path(&text, &name)));
        // F16 in F32 arithmetic, `unpack2x16float`: all that Vulkan, Metal and Direct3D 12 drive has it.
        let capabilities = Capabilities::SHADER_FLOAT16
            | Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | Capabilities::SUBGROUP
            | Capabilities::COOPERATIVE_MATRIX;
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string_with_path(&text, &name)));
        assert!(!module.entry_points.is_empty(), "{name} has no kernel");
        // As drivers do before they translate it: overrides become constants, and all is checked again.
        let constants = naga::back::PipelineConstants::default();
        naga::back::pipeline_constants::process_overrides(&module, &info, None, &constants)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// What no adapter of the tests runs is at least translated for the drivers that could. The translator is there where wgpu
/// itself needs it.
#[cfg(any(target_os = "linux", target_os = "windows"))]
#[test]
fn cooperative_matrices_become_spir_v() {
    let mut count = 0;
    for (name, text) in shaders().into_iter().filter(|(name, _)| name.starts_with("multiply_cooperative")) {
        let mut module = naga::front::wgsl::parse_str(&text).unwrap();
        naga::proc::ensure_block_returns(&mut module.entry_points[0].function.body);
        let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).unwrap();
        let constants = naga::back::PipelineConstants::default();
        let (module, info) =
            naga::back::pipeline_constants::process_overrides(&module, &info, None, &constants).unwrap();
        let options = naga::back::spv::Options { lang_version: (1, 6), ..naga::back::spv::Options::default() };
        let words = naga::back::spv::write_vec(&module, &info, &options, None)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        // OpCooperativeMatrixMulAddKHR, of SPV_KHR_cooperative_matrix: four for each step of the loop.
        let products = instructions(&words).filter(|opcode| *opcode == 4459).count();
        assert_eq!(products, 4, "{name}");
        count += 1;
    }
    assert_eq!(count, 2);
}

/// Opcodes of the instructions of a module, behind its header of five words.
#[cfg(any(target_os = "linux", target_os = "windows"))]
fn instructions(words: &[u32]) -> impl Iterator<Item = u32> {
    let mut rest = &words[5..];
    std::iter::from_fn(move || {
        let first = *rest.first()?;
        rest = &rest[(first >> 16) as usize..];
        Some(first & 0xffff)
    })
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
