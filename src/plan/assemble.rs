//! From decisions to a plan: units and what they store, places in files, the schedule.

use std::collections::BTreeMap;

use super::{
    Action, Encode, MemoryPlan, Merge, Options, Plan, PlanError, SolvePlan, Unit,
    build::Inputs,
    delta::{self, Shared},
    masks, memory, shards, small_files,
};
use crate::{
    Result,
    checkpoint::bits_of,
    forward::{CacheBytes, Model},
    layout::{BaseTensors, CachePolicy, Contained, Layout, LayoutName, LogicalCheckpoint, LogicalTensor, Refusal, TensorSpec},
    manifest::Fallback,
    model::{MappedTensor, Role},
};

/// What was decided, before it has places.
pub(super) struct Parts<'a> {
    pub(super) encodes: BTreeMap<&'a str, Encode>,
    pub(super) merges: BTreeMap<String, Merge>,
    pub(super) shared: BTreeMap<String, Shared>,
    pub(super) fallbacks: Vec<Fallback>,
    pub(super) notes: Vec<String>,
    pub(super) solve: Option<SolvePlan>,
    pub(super) books: masks::Books,
}

/// Gives everything a place: units, files, small files, the schedule, and what decides the bytes as a digest.
pub(super) fn assemble(inputs: Inputs<'_>, target: &dyn Layout, parts: Parts<'_>, options: &Options) -> Result<Plan> {
    let Parts { mut encodes, mut merges, mut shared, mut fallbacks, mut notes, solve, books } = parts;
    let recipe = inputs.recipe;
    let checkpoint = inputs.source.checkpoint();
    let mut tensors: Vec<&LogicalTensor> = inputs.source.tensors().iter().collect();
    tensors.sort_by_cached_key(|tensor| natural_key(&tensor.name));
    let mut units = Vec::with_capacity(tensors.len());
    let mut specs = Vec::with_capacity(tensors.len());
    let mut matrices = Vec::new();
    let mut dense_modules = Vec::new();
    shared.retain(|name, _| !encodes.contains_key(name.as_str()));
    let from_base =
        delta::base_tensors(shared.iter().filter_map(|(name, shared)| Some((inputs.source.tensor(name)?, shared))));
    for tensor in tensors {
        let mapped = inputs.model.tensor(&tensor.name);
        let stored = target.plain(&tensor.name, tensor.dtype, &tensor.shape);
        let plain = || stored.clone().map(|spec| vec![spec]).map_err(|refusal| cannot_hold(target, refusal));
        let kept = |spec: &TensorSpec| spec.dtype == tensor.dtype && target.keeps_rows(&tensor.name);
        let is_kept = stored.as_ref().is_ok_and(kept);
        let (action, outputs) = match encodes.remove(tensor.name.as_str()) {
            Some(encode) => {
                let outputs = target.tensors(&encode.matrix);
                matrices.push(encode.matrix.clone());
                (Action::Encode(Box::new(encode)), outputs)
            }
            None if solve.as_ref().is_some_and(|solve| solve.touched.contains_key(&tensor.name)) => {
                (Action::Transform, plain()?)
            }
            None if merges.contains_key(&tensor.name) => match merges.remove(&tensor.name) {
                Some(merge) => (Action::Merge(Box::new(merge)), plain()?),
                None => (Action::Copy, plain()?),
            },
            None if !tensor.is_plain() => (Action::Decode, plain()?),
            None if shared.contains_key(&tensor.name) => match shared.remove(&tensor.name) {
                Some(Shared::But(rows)) => {
                    let outputs = BaseTensors::stored_rows(&tensor.name, tensor.dtype, &tensor.shape, rows.len());
                    (Action::Rows(rows), outputs)
                }
                _ => (Action::Same, Vec::new()),
            },
            None if !is_kept => (Action::Cast, plain()?),
            None => (Action::Copy, plain()?),
        };
        if !matches!(action, Action::Encode(_)) {
            dense_modules.extend(dense_module(tensor, mapped));
        }
        units.push(Unit {
            name: tensor.name.clone(),
            role: mapped.map_or_else(|| "other".into(), |mapped| mapped.role.to_string()),
            shape: tensor.shape.clone(),
            weights: tensor.shape.iter().map(|&length| length as u64).product(),
            parts: tensor.parts.clone(),
            source_bytes: tensor.stored_bytes,
            base_bytes: beside(inputs, &action)
                .filter_map(|model| model.tensor(&tensor.name))
                .map(|tensor| tensor.stored_bytes + 8 * tensor.decoded_at_once)
                .sum(),
            coded_source: !tensor.is_plain(),
            decoded_at_once: tensor.decoded_at_once,
            action,
            outputs: Vec::new(),
        });
        specs.push(outputs);
    }
    dense_modules.extend(inputs.model.head_module.clone().filter(|head| {
        !dense_modules.contains(head) && !matrices.iter().any(|matrix| matrix.module() == head.as_str())
    }));
    if let Err(Refusal::Format(message) | Refusal::Shape(message)) = target.accepts_together(&matrices) {
        return Err(PlanError::Together { layout: target.name().as_str().into(), message }.into());
    }
    if let (Some(base), true) = (&recipe.base, specs.iter().all(Vec::is_empty)) {
        return Err(PlanError::NothingDiffers { model: recipe.model.clone(), base: base.clone() }.into());
    }
    let Contained { container, lost } = target.container(checkpoint).map_err(|refusal| cannot_hold(target, refusal))?;
    fallbacks.extend(lost.into_iter().map(|message| {
        let kind = format!("{}-lacks", target.name().as_str());
        Fallback { kind, tensor: String::new(), count: 1, message }
    }));
    if let (true, Some(first)) = (options.deny_fallbacks, fallbacks.first()) {
        return Err(PlanError::FallbackDenied { count: fallbacks.len(), first: first.message.clone() }.into());
    }
    let files = shards::place(&mut units, specs, recipe.artifact.shard_size, &container)?;
    let mut quantization_config = target.quantization_config(&matrices, &dense_modules);
    if target.name() == LayoutName::Delta
        && let Some(config) = &mut quantization_config
    {
        from_base.add_to(config);
    }
    if quantization_config.is_some() && checkpoint.config().is_none() && !is_own(target.name()) {
        let (layout, model) = (target.name().as_str().into(), recipe.model.clone());
        return Err(PlanError::NoConfig { layout, model }.into());
    }
    let decoded = units.iter().filter(|unit| matches!(unit.action, Action::Decode)).count();
    if decoded > 0 {
        notes.push(format!("{decoded} compressed tensors of the source are written dense: no rule encodes them"));
    }
    let extra_files = target.extra_files(&matrices, &dense_modules);
    let members = target.config_members(&matrices, checkpoint.config().map(|config| &config.value));
    let members = members.map_err(|(Refusal::Format(message) | Refusal::Shape(message))| PlanError::Together {
        layout: target.name().as_str().into(),
        message,
    })?;
    let config = (quantization_config.as_ref(), &members[..]);
    let small_files = small_files::small_files(checkpoint, config, extra_files, &units, &files)?;
    let stored = checkpoint.tensors().len() + units.iter().map(|unit| unit.outputs.len()).sum::<usize>();
    let mut memory: MemoryPlan = memory::schedule(&units, target, stored, options)?;
    let mut resolved = recipe.resolved();
    for (name, hash) in books.hashes() {
        resolved["masks"][name] = hash.to_string().into();
    }
    if let Some(solve) = &solve {
        memory.peak_bytes = memory.peak_bytes.max(solve.peak_bytes);
        memory.smallest_bytes = memory.smallest_bytes.max(solve.smallest_bytes);
        memory.scratch_disk_bytes += solve.disk_bytes;
        resolved["calibration"]["hash"] = solve.tokens.hash.to_string().into();
        let routed = solve.model.blocks.iter().filter(|block| block.experts.is_some()).count();
        if routed > 0 {
            notes.push(format!(
                "{routed} blocks have experts: `bantam calibrate RECIPE --coverage` tells how many tokens each will see"
            ));
        }
    }
    let mut plan = Plan {
        model: recipe.model.clone(),
        out: recipe.artifact.out.clone(),
        layout: target.name(),
        architecture: inputs.model.architecture.clone(),
        non_finite: recipe.non_finite,
        recipe: resolved,
        units,
        files,
        small_files,
        source_bytes: checkpoint.files().iter().map(|file| file.bytes).sum(),
        fallbacks,
        notes,
        memory,
        cache: None,
        solve,
        digest: String::new(),
    };
    if let Some(policy) = CachePolicy::of_matrices(&matrices, inputs.model.blocks) {
        let model = Model::new(checkpoint.config().map(|config| &config.value), inputs.source)?;
        let element_bits =
            matrices.iter().find(|matrix| matrix.cache.is_some()).map_or(16, |it| bits_of(it.dense_dtype));
        plan.cache = CacheBytes::of(&model, element_bits as u64 / 8, Some(&policy));
    }
    plan.digest = digest(&plan);
    Ok(plan)
}

/// The checkpoints that are read beside the source.
fn beside<'a>(inputs: Inputs<'a>, action: &Action) -> impl Iterator<Item = &'a LogicalCheckpoint> {
    let base = inputs.source.base().filter(|_| matches!(action, Action::Encode(_) | Action::Merge(_)));
    let merged = if matches!(action, Action::Merge(_)) { inputs.source.merged() } else { &[] };
    base.into_iter().chain(merged)
}

/// The error for a model that a layout has no place for.
pub(super) fn cannot_hold(target: &dyn Layout, refusal: Refusal) -> PlanError {
    let (Refusal::Format(message) | Refusal::Shape(message)) = refusal;
    PlanError::Model { layout: target.name().as_str().into(), message }
}

/// Whether a layout is our own, which no runtime reads.
pub(super) fn is_own(layout: LayoutName) -> bool {
    matches!(layout, LayoutName::Bantam | LayoutName::Delta)
}

/// The module that layouts must name as dense: every other matrix that a runtime may hold as a linear layer.
fn dense_module(tensor: &LogicalTensor, mapped: Option<&MappedTensor>) -> Option<String> {
    let module = tensor.name.strip_suffix(".weight")?;
    let embedding = mapped.is_some_and(|mapped| matches!(mapped.role, Role::Embedding | Role::OtherEmbedding(_)));
    (tensor.shape.len() == 2 && !embedding).then(|| module.to_owned())
}

/// A key that sorts `layers.2` before `layers.10`.
fn natural_key(name: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, after) = rest.split_at(text_end);
        let digits_end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (digits, after) = after.split_at(digits_end);
        // Numbers beyond u64 sort last among themselves by their text.
        key.push((0, text.to_owned()));
        key.push((digits.parse().unwrap_or(u64::MAX), digits.to_owned()));
        rest = after;
    }
    key
}

/// BLAKE3 over the plan's decisions: with the same digest, the same source gives the same bytes.
fn digest(plan: &Plan) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(env!("CARGO_PKG_VERSION"));
    add(&plan.recipe.to_string());
    for unit in &plan.units {
        add(&unit.name);
        add(unit.action.name());
        add(&unit.codec_name());
        for part in &unit.parts {
            add(part);
        }
    }
    for file in &plan.files {
        add(&file.name);
        hasher_bytes(&mut add, &file.header);
    }
    for file in &plan.small_files {
        add(&file.name);
        if let super::SmallContent::Bytes(bytes) = &file.content {
            hasher_bytes(&mut add, bytes);
        }
    }
    hasher.finalize().to_hex().to_string()
}

fn hasher_bytes(add: &mut impl FnMut(&str), bytes: &[u8]) {
    add(&blake3::hash(bytes).to_hex());
}

#[cfg(test)]
mod tests {
    use super::natural_key;

    #[test]
    fn numbers_sort_as_numbers() {
        let mut names = ["a.10.w", "a.9.w", "a.w", "b.1", "a.9.v", "a.99999999999999999999999.w"];
        names.sort_by_cached_key(|name| natural_key(name));
        assert_eq!(names, ["a.9.v", "a.9.w", "a.10.w", "a.99999999999999999999999.w", "a.w", "b.1"]);
    }
}
