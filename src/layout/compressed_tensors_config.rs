//! The `quantization_config` that compressed-tensors' readers take: exactly these keys, since unknown ones are refused.

use serde_json::{Map, Value, json};

use super::{Activations, MatrixSpec, compressed_tensors::Scheme};
use crate::codec::{Codec, Element, Granularity, ZeroPoint};

/// The version of the format's reference implementation whose files these are like; readers only print it.
const VERSION: &str = "0.19.0";

/// Matrices that are stored alike.
struct Group<'a> {
    codec: &'a Codec,
    activations: Activations,
    scheme: Scheme,
    modules: Vec<&'a str>,
}

/// The whole object; `None` without coded matrices.
pub(super) fn write(matrices: &[MatrixSpec], dense_modules: &[String]) -> Option<Value> {
    let mut groups: Vec<Group> = Vec::new();
    for matrix in matrices {
        // Refused matrices never come here; without a scheme there is nothing to say about one.
        let Ok(scheme) = Scheme::of(matrix) else { continue };
        let same = |group: &&mut Group| group.codec == matrix.scalar() && group.activations == matrix.activations;
        if let Some(group) = groups.iter_mut().find(same) {
            group.modules.push(matrix.module());
        } else {
            let (codec, activations) = (matrix.scalar(), matrix.activations);
            groups.push(Group { codec, activations, scheme, modules: vec![matrix.module()] });
        }
    }
    let first = groups.first()?.scheme;
    let format = if groups.iter().all(|group| group.scheme == first) { first.format() } else { "mixed-precision" };
    let config_groups: Map<String, Value> = groups
        .iter()
        .enumerate()
        .map(|(index, group)| {
            let targets = if groups.len() == 1 { json!(["Linear"]) } else { json!(group.modules) };
            let value = json!({
                "format": group.scheme.format(),
                "input_activations": input_arguments(group),
                "output_activations": null,
                "targets": targets,
                "weights": weight_arguments(group.codec),
            });
            (format!("group_{index}"), value)
        })
        .collect();
    Some(json!({
        "config_groups": config_groups,
        "format": format,
        "global_compression_ratio": null,
        "ignore": dense_modules,
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    }))
}

/// How the weights are quantized.
fn weight_arguments(codec: &Codec) -> Value {
    let (bits, kind) = bits_and_kind(codec);
    let mut arguments = arguments(bits, kind);
    arguments["dynamic"] = json!(false);
    arguments["observer"] = json!("memoryless_minmax");
    arguments["symmetric"] = json!(codec.zero == ZeroPoint::None);
    arguments["scale_dtype"] = scale_type(codec);
    match codec.granularity {
        Granularity::Tensor => arguments["strategy"] = json!("tensor"),
        Granularity::Channel => arguments["strategy"] = json!("channel"),
        Granularity::Group(size) => {
            let nvfp4 = codec.element == Element::Fp4E2M1 && size == 16;
            arguments["strategy"] = json!(if nvfp4 { "tensor_group" } else { "group" });
            arguments["group_size"] = json!(size);
        }
        Granularity::Block { rows, columns } => {
            arguments["strategy"] = json!("block");
            arguments["block_structure"] = json!([rows, columns]);
        }
    }
    if codec.zero == ZeroPoint::Integer {
        arguments["zp_dtype"] = json!("torch.int8");
    }
    arguments
}

/// How the runtime quantizes activations.
fn input_arguments(group: &Group) -> Value {
    if group.activations == Activations::None {
        return Value::Null;
    }
    let (bits, kind) = bits_and_kind(group.codec);
    let mut arguments = arguments(bits, kind);
    if group.activations == Activations::Static {
        arguments["strategy"] = json!("tensor");
        arguments["observer"] = json!("static_minmax");
        return arguments;
    }
    arguments["dynamic"] = json!(true);
    arguments["scale_dtype"] = scale_type(group.codec);
    match group.codec.granularity {
        Granularity::Tensor | Granularity::Channel => arguments["strategy"] = json!("token"),
        Granularity::Group(size) | Granularity::Block { columns: size, .. } => {
            arguments["strategy"] = json!("group");
            arguments["group_size"] = json!(size);
        }
    }
    arguments
}

fn bits_and_kind(codec: &Codec) -> (u8, &'static str) {
    match codec.element {
        Element::Integer { bits } => (bits, "int"),
        Element::Fp8E4M3 => (8, "float"),
        Element::Fp4E2M1 => (4, "float"),
    }
}

fn scale_type(codec: &Codec) -> Value {
    match codec.scale {
        crate::codec::ScaleFormat::E8M0 => json!("torch.uint8"),
        crate::codec::ScaleFormat::E4M3OverGlobal => json!("torch.float8_e4m3fn"),
        _ => Value::Null,
    }
}

/// All keys of one set of arguments, with the values that most have.
fn arguments(bits: u8, kind: &str) -> Value {
    json!({
        "actorder": null,
        "block_structure": null,
        "dynamic": false,
        "group_size": null,
        "num_bits": bits,
        "observer": null,
        "observer_kwargs": {},
        "scale_dtype": null,
        "strategy": null,
        "symmetric": true,
        "type": kind,
        "zp_dtype": null,
    })
}
