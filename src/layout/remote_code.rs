//! A folder that `transformers` loads with `trust_remote_code`: plain tensors with names of their own, and a modelling file
//! of ours that computes with them. `docs/formats/remote-code.md` tells it.

use serde_json::{Value, json};

use super::{
    Activations, Layout, LayoutName, MatrixSpec, Piece, Refusal, TensorSpec,
    bantam::{self, VERSION_WHOLE, groups},
    latent_cache::{self, CachePolicy, agree, in_pairs},
};
use crate::{
    checkpoint::{Dtype, config_text},
    codec::{CodedRows, MatrixParameters, ScaleFormat, StoredMatrix, Taylor, Whole},
};

/// The member of `config.json` that lists the matrices.
pub const MEMBER: &str = "bantam";

/// A modelling file: its name without `.py`, its text, and the classes that it has one of its own for.
struct ModellingFile {
    module: &'static str,
    text: &'static str,
    classes: &'static [&'static str],
}

const LOWRANK_KV: ModellingFile = ModellingFile {
    module: "modeling_bantam_lowrank_kv",
    text: include_str!("remote_code/modeling_bantam_lowrank_kv.py"),
    classes: &["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"],
};

const TAYLOR_MLP: ModellingFile = ModellingFile {
    module: "modeling_bantam_taylor_mlp",
    text: include_str!("remote_code/modeling_bantam_taylor_mlp.py"),
    classes: &[
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "PhiForCausalLM",
        "OPTForCausalLM",
        "GPT2LMHeadModel",
    ],
};

/// The file that computes with a matrix in this format.
fn file_of(matrix: &MatrixSpec) -> Option<&'static ModellingFile> {
    match matrix.codec.whole()? {
        Whole::Factors(_) => Some(&LOWRANK_KV),
        Whole::Taylor(_) => Some(&TAYLOR_MLP),
        _ => None,
    }
}

/// A config without what this layout adds to it; the text itself where it adds nothing.
#[must_use]
pub fn restored_config(text: &str) -> String {
    let Ok(config) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    if !config[MEMBER]["groups"].is_array() {
        return text.to_owned();
    }
    let mut text = config_text::remove_member(text, MEMBER);
    text = config_text::remove_member(&text, "auto_map");
    let class = config["architectures"][0].as_str().and_then(|class| class.strip_prefix("Bantam"));
    match class {
        Some(class) => config_text::set_member(&text, "architectures", &config_text::indented(&json!([class]))),
        None => text,
    }
}

/// What the modelling file for expanded down-projections reads: settings, and of each layer how many units are expanded.
fn taylor_member(matrices: &[MatrixSpec], layers: usize) -> Option<Result<Value, Refusal>> {
    let expanded: Vec<(&MatrixSpec, &Taylor)> = matrices
        .iter()
        .filter_map(|matrix| match matrix.codec.whole()? {
            Whole::Taylor(format) => Some((matrix, format)),
            _ => None,
        })
        .collect();
    let (first, format) = *expanded.first()?;
    let alike = |other: &Taylor| Taylor { units: 0, ..*other } == Taylor { units: 0, ..*format };
    let mut of_layers = vec![json!({}); layers];
    for (matrix, other) in &expanded {
        let mut numbers = matrix.name.split('.').filter_map(|part| part.parse::<usize>().ok());
        let layer = numbers.next().and_then(|layer| of_layers.get_mut(layer));
        match layer.filter(|_| alike(other)) {
            Some(layer) => *layer = json!({"units": other.units}),
            None => {
                return Some(Err(Refusal::Format(format!(
                    "the modelling file has one kind of polynomial for all layers; `{}` and `{}` differ",
                    first.name, matrix.name
                ))));
            }
        }
    }
    Some(Ok(json!({
        "activation": format.activation,
        "basis": format.basis,
        "hardened": format.hardened,
        "layers": of_layers,
        "order": format.order,
    })))
}

/// The layout.
pub(super) struct RemoteCode;

impl Layout for RemoteCode {
    fn name(&self) -> LayoutName {
        LayoutName::RemoteCode
    }

    fn scale_format(&self, dense: Dtype) -> ScaleFormat {
        super::scale_beside(dense)
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        let refuse = |what: &str| {
            Err(Refusal::Format(format!(
                "layout `remote-code` {what}, but `{}` is such a matrix; use layout `bantam` or leave it dense",
                matrix.name
            )))
        };
        if file_of(matrix).is_none() {
            return refuse("has modelling files for passes `lowrank_kv` and `taylor_mlp` and for no other codes");
        }
        let turned = matrix.transposed && !matches!(matrix.codec.whole(), Some(Whole::Taylor(_)));
        if turned || matrix.experts.is_some() || matrix.rotations.is_some() {
            return refuse("has no stacked, turned or rotated matrices");
        }
        if matrix.activations != Activations::None {
            return refuse("does not quantize activations");
        }
        if !matrix.name.ends_with(".weight") {
            return refuse("names matrices by their module and has none without `.weight`");
        }
        bantam::Bantam.accepts(matrix)
    }

    fn accepts_together(&self, matrices: &[MatrixSpec]) -> Result<(), Refusal> {
        let mut files = matrices.iter().filter_map(|matrix| Some((matrix, file_of(matrix)?)));
        if let Some((first, file)) = files.next()
            && let Some((other, _)) = files.find(|(_, other)| other.module != file.module)
        {
            return Err(Refusal::Format(format!(
                "an artifact has one modelling file, and `{}` and `{}` need two",
                first.name, other.name
            )));
        }
        agree(matrices)?;
        in_pairs(matrices)
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        bantam::Bantam.tensors(matrix)
    }

    fn pack_whole(&self, matrix: &MatrixSpec, expert: usize, stored: StoredMatrix) -> Vec<Piece> {
        bantam::Bantam.pack_whole(matrix, expert, stored)
    }

    fn pack(&self, _matrix: &MatrixSpec, _rows: &CodedRows) -> Vec<Piece> {
        Vec::new()
    }

    fn pack_parameters(&self, _matrix: &MatrixSpec, _parameters: &MatrixParameters) -> Vec<Piece> {
        Vec::new()
    }

    fn quantization_config(&self, _matrices: &[MatrixSpec], _dense_modules: &[String]) -> Option<Value> {
        None
    }

    fn config_members(
        &self,
        matrices: &[MatrixSpec],
        config: Option<&Value>,
    ) -> Result<Vec<(&'static str, Value)>, Refusal> {
        let Some(file) = matrices.iter().find_map(file_of) else { return Ok(Vec::new()) };
        let config = config.unwrap_or(&Value::Null);
        let architecture = config["architectures"][0].as_str().unwrap_or("none");
        // An artifact's own config names our class.
        let class = architecture.strip_prefix("Bantam").unwrap_or(architecture);
        if !file.classes.contains(&class) {
            return Err(Refusal::Format(format!(
                "`{}.py` has classes for {}; the architecture is {architecture}",
                file.module,
                file.classes.join(", ")
            )));
        }
        let mut member = json!({"groups": groups(matrices), "version": VERSION_WHOLE});
        let layers = ["num_hidden_layers", "n_layer"].iter().find_map(|key| config[key].as_u64());
        let layers = layers.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        if let Some(policy) = CachePolicy::of_matrices(matrices, layers.min(1 << 16)) {
            member[latent_cache::KEY] = policy.to_json();
        }
        if let Some(member_of) = taylor_member(matrices, layers.min(1 << 16)) {
            member["taylor_mlp"] = member_of?;
        }
        let class = format!("Bantam{class}");
        let auto_map = json!({"AutoModelForCausalLM": format!("{}.{class}", file.module)});
        Ok(vec![("architectures", json!([class])), ("auto_map", auto_map), (MEMBER, member)])
    }

    fn extra_files(&self, matrices: &[MatrixSpec], _dense_modules: &[String]) -> Vec<(String, Vec<u8>)> {
        let file = matrices.iter().find_map(file_of);
        file.map(|file| (format!("{}.py", file.module), file.text.as_bytes().to_vec())).into_iter().collect()
    }
}
