//! Tests of recipes against hand-made models.

mod assigning;
mod fixtures;
mod hostile;
mod reading;
mod selecting;

use std::path::Path;

use super::*;
use crate::{
    model::{MappedTensor, MatrixView, ModelMap, Role},
    passes::{Kind, PassInfo, SettingError, rtn},
};

/// A stand-in transform; its settings do not matter, only that it checks them.
const SMOOTH: PassInfo = PassInfo {
    name: "smooth",
    kind: Kind::Transform,
    keys: &["strength", "folds"],
    default_select: &["linear"],
    default_skip: &[],
    parse: |table| match table.get("strength") {
        Some(value) if !value.is_float() => {
            Err(SettingError { key: "strength".to_owned(), message: format!("expected a share, got {value}") })
        }
        _ => (rtn::INFO.parse)(&toml::Table::new()),
    },
};

const FAKE_REGISTRY: [PassInfo; 2] = [rtn::INFO, SMOOTH];

const HEAD: &str = "schema = 1\nmodel = \"m\"\nartifact = { out = \"o\" }\n";

/// A recipe of these rules, read with the stand-ins too.
fn recipe(rules: &str) -> Recipe {
    try_recipe(rules).unwrap_or_else(|error| panic!("{error}"))
}

fn try_recipe(rules: &str) -> Result<Recipe, RecipeError> {
    read::parse(&format!("{HEAD}{rules}"), Path::new("r.toml"), &Overrides::default(), &FAKE_REGISTRY)
}

fn tensor(name: &str, role: Role) -> MappedTensor {
    let block = name.split('.').find_map(|word| word.parse().ok());
    let linear = !matches!(role, Role::Embedding | Role::OtherEmbedding(_) | Role::Norm | Role::Other);
    let matrix =
        linear.then(|| MatrixView { experts: None, rows: 8, columns: 8, transposed: false, fused: Vec::new() });
    MappedTensor { name: name.to_owned(), role, block, matrix, input: None }
}

fn model(tensors: Vec<MappedTensor>) -> ModelMap {
    ModelMap {
        architecture: "Test".to_owned(),
        known: true,
        prefix: String::new(),
        blocks: 2,
        tied_embeddings: false,
        head_module: Some("lm_head".to_owned()),
        tensors,
        inputs: Vec::new(),
        notes: Vec::new(),
    }
}

/// Two blocks as Llama has them.
fn llama() -> ModelMap {
    let mut tensors = vec![tensor("model.embed_tokens.weight", Role::Embedding)];
    for block in 0..2 {
        let name = |part: &str| format!("model.layers.{block}.{part}.weight");
        tensors.push(tensor(&name("input_layernorm"), Role::Norm));
        for (module, part) in [("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")] {
            tensors.push(tensor(&name(&format!("self_attn.{module}_proj")), Role::Attention(part)));
        }
        for part in ["gate", "up", "down"] {
            tensors.push(tensor(&name(&format!("mlp.{part}_proj")), Role::Mlp(part)));
        }
    }
    tensors.push(tensor("model.norm.weight", Role::Norm));
    tensors.push(tensor("lm_head.weight", Role::Head));
    model(tensors)
}

/// One block with two experts, a shared one and a router.
fn mixture() -> ModelMap {
    let mut tensors = vec![tensor("model.layers.0.mlp.gate.weight", Role::Router)];
    for part in ["gate", "up", "down"] {
        for expert in [0, 1] {
            let name = format!("model.layers.0.mlp.experts.{expert}.{part}_proj.weight");
            tensors.push(tensor(&name, Role::Expert(Some(expert), part)));
        }
        let name = format!("model.layers.0.mlp.shared_expert.{part}_proj.weight");
        tensors.push(tensor(&name, Role::SharedExpert(part)));
    }
    tensors.push(tensor("visual.patch.weight", Role::Other));
    model(tensors)
}

/// Names of the tensors that each rule got.
fn assigned(recipe: &Recipe, model: &ModelMap) -> Vec<(usize, String)> {
    let assignments = recipe.assign(model).unwrap_or_else(|error| panic!("{error}"));
    assignments.into_iter().map(|assignment| (assignment.rule, assignment.tensor)).collect()
}

/// Bits that a tensor gets.
fn bits(recipe: &Recipe, model: &ModelMap, name: &str) -> Option<u8> {
    let assignments = recipe.assign(model).unwrap_or_else(|error| panic!("{error}"));
    let settings = assignments.iter().find(|assignment| assignment.tensor == name)?.settings.number()?;
    match settings.number {
        rtn::Number::Integer { bits } => Some(bits),
        rtn::Number::Float { .. } | rtn::Number::KQuant { .. } => None,
    }
}
