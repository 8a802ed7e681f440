//! Maps a model of an unknown architecture: by shape and by what names commonly mean. Says so in one line.

use super::{
    MappedTensor, MatrixView, ModelMap, NamedShape, Role, config::ConfigView, families::Family, known::matrices,
    names::number,
};

/// Words of towers that are not the language model.
const OUTSIDE: &[&str] = &["vision", "visual", "audio", "image", "multi_modal", "multimodal", "mm_projector"];

/// Last modules of common heads.
const HEADS: &[&str] = &["lm_head", "embed_out", "output_layer"];

/// Maps by shape and name. `named` is the known family that the config names but whose tensor names are not there.
pub(super) fn map(config: &mut ConfigView<'_>, tensors: &[NamedShape], named: Option<&Family>) -> ModelMap {
    let mut blocks = 0;
    let mut head_module = None;
    let mut found = 0;
    let mut mapped = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let block = tensor.name.split('.').find_map(number);
        let role = role(&tensor.name, &tensor.shape);
        let matrix = match (&role, &tensor.shape[..]) {
            (Role::Linear | Role::Head, [rows, columns]) if *rows > 0 && *columns > 0 => {
                Some(MatrixView { experts: None, rows: *rows, columns: *columns, transposed: false, fused: Vec::new() })
            }
            _ => None,
        };
        if role == Role::Head {
            head_module = tensor.name.strip_suffix(".weight").map(str::to_owned);
        }
        if role == Role::Linear {
            blocks = blocks.max(block.map_or(0, |block| block + 1));
        }
        found += usize::from(matrix.is_some());
        mapped.push(MappedTensor { name: tensor.name.clone(), role, block, matrix, input: None });
    }
    let tied_embeddings = config.tied().unwrap_or(head_module.is_none());
    let architecture = config.architecture();
    let found = matrices(found);
    let why = match named {
        Some(family) => {
            format!("config.json says `{architecture}`, but no tensor is named as in {} models", family.name)
        }
        None => format!("architecture `{architecture}` is not known to bantam"),
    };
    let mut notes = std::mem::take(&mut config.notes);
    notes.push(format!("{why}: {found} found by shape and name; passes that need data will refuse it"));
    ModelMap {
        architecture,
        known: false,
        prefix: String::new(),
        blocks,
        tied_embeddings,
        head_module: Some(head_module.unwrap_or_else(|| "lm_head".to_owned())),
        tensors: mapped,
        inputs: Vec::new(),
        notes,
    }
}

/// What a tensor of this name and shape most likely is.
fn role(name: &str, shape: &[usize]) -> Role {
    let name = name.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let (module, parameter) = name.rsplit_once('.').unwrap_or(("", &name));
    let last = module.rsplit('.').next().unwrap_or(module);
    if has(OUTSIDE) {
        return Role::Other;
    }
    if is_norm(last) {
        return Role::Norm;
    }
    if parameter != "weight" {
        return Role::Other;
    }
    if HEADS.contains(&last) {
        return Role::Head;
    }
    if last == "wpe" || has(&["embed_pos", "pos_embed", "position", "relative_attention_bias"]) {
        return Role::OtherEmbedding("position");
    }
    if has(&["type_embed"]) {
        return Role::OtherEmbedding("type");
    }
    if last == "wte" || has(&["embed", "rotary"]) {
        return Role::Embedding;
    }
    if is_router(&name, last, shape) {
        return Role::Router;
    }
    if matches!(shape, [rows, columns] if *rows > 0 && *columns > 0) { Role::Linear } else { Role::Other }
}

fn is_norm(module: &str) -> bool {
    module.contains("norm") || module == "ln" || module.starts_with("ln_") || module.ends_with("_ln")
}

/// A router has a row per expert, far fewer than it has columns; a gated MLP's `gate` has more.
fn is_router(name: &str, module: &str, shape: &[usize]) -> bool {
    let few_rows = matches!(shape, [rows, columns] if rows.saturating_mul(2) <= *columns);
    let gate = ["gate", "wg", "shared_expert_gate"].contains(&module);
    name.contains("router") || (gate && (few_rows || name.contains("moe") || name.contains("expert")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_shapes_of_common_models_mean_what_they_mean() {
        for (name, shape, expected) in [
            ("transformer.h.0.self_attention.query_key_value.weight", vec![48, 32], Role::Linear),
            ("transformer.h.0.self_attention.query_key_value.bias", vec![48], Role::Other),
            ("transformer.word_embeddings.weight", vec![64, 32], Role::Embedding),
            ("transformer.h.0.ln_attn.weight", vec![32], Role::Norm),
            ("gpt_neox.embed_in.weight", vec![64, 32], Role::Embedding),
            ("embed_out.weight", vec![64, 32], Role::Head),
            ("model.layers.3.feed_forward.router.weight", vec![16, 512], Role::Router),
            ("model.layers.3.mlp.gate.weight", vec![16, 512], Role::Router),
            ("model.layers.3.ffn.gate.weight", vec![1024, 512], Role::Linear),
            ("model.layers.3.moe.gate.weight", vec![512, 512], Role::Router),
            ("backbone.layers.0.mixer.conv1d.weight", vec![64, 1, 4], Role::Other),
            ("backbone.layers.0.mixer.A_log", vec![64, 4], Role::Other),
            ("vision_tower.encoder.layers.0.mlp.fc1.weight", vec![24, 16], Role::Other),
            ("wpe.weight", vec![32, 32], Role::OtherEmbedding("position")),
            ("encoder.block.0.layer.0.SelfAttention.q.weight", vec![32, 32], Role::Linear),
            (
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                vec![32, 4],
                Role::OtherEmbedding("position"),
            ),
            ("encoder.block.0.layer.0.layer_norm.weight", vec![32], Role::Norm),
            ("x.weight", vec![0, 4], Role::Other),
            ("weight", vec![4, 4], Role::Linear),
            ("", vec![], Role::Other),
        ] {
            assert_eq!(role(name, &shape), expected, "{name}");
        }
    }
}
