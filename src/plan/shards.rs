//! Places every output tensor: which file, which offset.

use std::collections::HashMap;

use super::{Action, Output, PlanError, Unit, WeightFile};
use crate::layout::{Container, TensorSpec};

/// Distributes the units' tensors over files of at most `shard_size` bytes of data (a single unit may be larger), in
/// the units' order, and gives every unit its outputs; containers without shards take all in one file. Fails when two
/// tensors have one name.
pub(super) fn place(
    units: &mut [Unit],
    specs: Vec<Vec<TensorSpec>>,
    shard_size: u64,
    container: &Container,
) -> Result<Vec<WeightFile>, PlanError> {
    refuse_name_clashes(units, &specs)?;
    let shards = distribute(&specs, if container.has_shards() { shard_size } else { u64::MAX });
    for (unit, specs) in units.iter_mut().zip(specs) {
        unit.outputs = specs.into_iter().map(|spec| Output { spec, file: 0, offset: 0 }).collect();
    }
    let count = shards.len();
    let mut files = Vec::with_capacity(count);
    for (file, members) in shards.into_iter().enumerate() {
        let mut places: Vec<(usize, usize)> =
            members.iter().flat_map(|&unit| (0..units[unit].outputs.len()).map(move |output| (unit, output))).collect();
        let spec = |(unit, output): (usize, usize)| &units[unit].outputs[output].spec;
        places.sort_by(|&a, &b| container.order(spec(a), spec(b)));
        let matrix = |unit: usize| match &units[unit].action {
            Action::Encode(encode) => Some(&encode.matrix),
            _ => None,
        };
        let tensors: Vec<_> = places.iter().map(|&(unit, output)| (spec((unit, output)), matrix(unit))).collect();
        let head = container.head(&tensors);
        for ((unit, output), offset) in places.into_iter().zip(head.offsets) {
            let output = &mut units[unit].outputs[output];
            (output.file, output.offset) = (file, offset);
        }
        files.push(WeightFile { name: container.file_name(file, count), header: head.bytes, bytes: head.file_bytes });
    }
    Ok(files)
}

/// The name that Hugging Face loaders expect of file `index` out of `count`.
pub(crate) fn file_name(index: usize, count: usize) -> String {
    if count == 1 { "model.safetensors".into() } else { format!("model-{:05}-of-{count:05}.safetensors", index + 1) }
}

fn refuse_name_clashes(units: &[Unit], specs: &[Vec<TensorSpec>]) -> Result<(), PlanError> {
    let mut owners: HashMap<&str, usize> = HashMap::new();
    for (unit, specs) in specs.iter().enumerate() {
        for spec in specs {
            if let Some(first) = owners.insert(&spec.name, unit) {
                return Err(PlanError::NameTwice {
                    name: spec.name.clone(),
                    first: units[first].name.clone(),
                    second: units[unit].name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Units of each shard; always at least one shard.
fn distribute(specs: &[Vec<TensorSpec>], shard_size: u64) -> Vec<Vec<usize>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0_u64;
    for (unit, specs) in specs.iter().enumerate() {
        let bytes: u64 = specs.iter().map(TensorSpec::bytes).sum();
        if filled > 0 && filled.saturating_add(bytes) > shard_size {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(unit);
        }
    }
    shards
}
