//! The artifact comes out again: sampled tensors are made once more from the source and compared byte for byte.

use std::{collections::BTreeSet, path::Path};

use super::{Artifact, policy::Provenance, provenance::without_paths};
use crate::{
    Result,
    checkpoint::Checkpoint,
    layout::LogicalCheckpoint,
    manifest::ContentHash,
    model::ModelMap,
    plan::{Action, Inputs, Options, Plan},
    recipe::{Overrides, Recipe},
    run,
    verify::Finding,
};

const RULE: &str = "reproduce";

/// Tensors that are made again: those of the recipe are many, and each is as good a witness.
const SAMPLED_UNITS: usize = 8;

/// Runs the recipe again for some of the tensors that it changes, the same ones for the same artifact. What calibration finds
/// is found again for all of them, since one depends on the others.
pub(super) fn reproduce(artifact: &Artifact<'_>, recipe: &Path, from: &Provenance) -> Result<Vec<Finding>> {
    let scratch = tempfile::tempdir()?;
    let overrides = Overrides {
        model: from.source.clone(),
        base: from.base.clone(),
        out: Some(scratch.path().join("again")),
        ..Overrides::default()
    };
    let recipe = Recipe::read_with(recipe, &overrides)?;
    let open = |path: &Path| -> Result<LogicalCheckpoint> { Ok(LogicalCheckpoint::open(Checkpoint::open(path)?)?) };
    let mut source = open(&recipe.model)?;
    if let Some(base) = &recipe.base {
        source = source.with_base(open(base)?)?;
    }
    source = source.with_merged(recipe.merged.iter().map(|model| open(model)).collect::<Result<_>>()?);
    let map = ModelMap::of(&source);
    let threads = rayon::current_num_threads();
    let inputs = Inputs { recipe: &recipe, source: &source, model: &map };
    let plan = Plan::new(inputs, &Options { threads, ..Options::default() })?;
    let (now, then) = (without_paths(&plan.recipe), without_paths(&artifact.manifest.recipe));
    if now != then {
        let message = "the recipe is not the one that the artifact was made by".into();
        let (now, then) = (ContentHash::of(now.to_string().as_bytes()), ContentHash::of(then.to_string().as_bytes()));
        return Ok(vec![Finding::of_all(RULE, message).with(then.to_string(), now.to_string())]);
    }
    let sampled = sample(&plan, artifact);
    if sampled.is_empty() {
        return Ok(vec![Finding::of_all(RULE, "the recipe changes no tensor of the artifact".into())]);
    }
    let names: Vec<String> = plan.units.iter().map(|unit| unit.name.clone()).collect();
    let made = run::again(plan, &source, &sampled)?;
    let mut findings = Vec::new();
    for (unit, outputs) in made {
        let name = &names[unit];
        let Some(stated) = artifact.manifest.tensor(name) else {
            findings.push(Finding::new(RULE, name, "is missing in the artifact".into()));
            continue;
        };
        let hash = ContentHash::of_parts(&outputs);
        if hash != stated.hash {
            let message = "does not come out again: other bytes".into();
            findings.push(Finding::new(RULE, name, message).with(stated.hash.to_string(), hash.to_string()));
        }
    }
    Ok(findings)
}

/// The units of the tensors whose names hash to the least numbers.
fn sample(plan: &Plan, artifact: &Artifact<'_>) -> BTreeSet<usize> {
    let changed = |unit: &&(usize, &crate::plan::Unit)| !matches!(unit.1.action, Action::Copy | Action::Same);
    let units: Vec<_> = plan.units.iter().enumerate().collect();
    let mut units: Vec<&(usize, &crate::plan::Unit)> = units.iter().filter(changed).collect();
    let salt = artifact.manifest.recipe.to_string();
    units.sort_by_cached_key(|(_, unit)| blake3::hash(format!("{salt} {}", unit.name).as_bytes()).to_hex().to_string());
    units.into_iter().take(SAMPLED_UNITS).map(|(index, _)| *index).collect()
}
