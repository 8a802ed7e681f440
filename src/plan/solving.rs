//! The part of the plan that needs to see data: which passes, on which text, within which memory.

use std::collections::{BTreeMap, BTreeSet};

use super::{Encode, Inputs, Options, PlanError};
use crate::{
    calibration,
    codec::Whole,
    forward::{Limits, Model},
    layout::Activations,
    manifest::Fallback,
    passes::{Kind, Settings, TrainingSettings},
    recipe::{Assignment, Predecessor},
    reverse::supports,
    solve::{
        SolveFailure, SolvePlan, TrainingPlan, TransformRule,
        fold::{Producer, folds},
        held,
    },
    train::TrainError,
};

/// Plans what is found with calibration data; `None` when no pass needs any. Reads and tokenises the text, so that
/// whatever is wrong with it shows now.
pub(super) fn solve_plan(
    inputs: Inputs<'_>,
    assignments: &[Assignment],
    encodes: &BTreeMap<&str, Encode>,
    fallbacks: &mut Vec<Fallback>,
    options: &Options,
) -> crate::Result<Option<SolvePlan>> {
    let recipe = inputs.recipe;
    let mut transforms: Vec<(usize, TransformRule)> = Vec::new();
    for assignment in assignments {
        let rule = &recipe.passes[assignment.rule];
        if rule.kind != Kind::Transform || matches!(assignment.settings, Settings::Rotate(_) | Settings::Mask(_)) {
            continue;
        }
        let same = |(index, known): &&mut (usize, TransformRule)| {
            *index == assignment.rule && known.settings == assignment.settings
        };
        if let Some((_, known)) = transforms.iter_mut().find(same) {
            known.linears.insert(assignment.tensor.clone());
        } else {
            let linears = BTreeSet::from([assignment.tensor.clone()]);
            let rule = TransformRule { pass: rule.pass.clone(), settings: assignment.settings.clone(), linears };
            transforms.push((assignment.rule, rule));
        }
    }
    let solved: Vec<(&str, &Encode)> =
        encodes.iter().filter(|(_, encode)| encode.is_solved()).map(|(name, encode)| (*name, encode)).collect();
    let fixed: Vec<(&str, &Encode)> = encodes
        .iter()
        .filter(|(_, encode)| encode.choice.activations == Activations::Static)
        .map(|(name, encode)| (*name, encode))
        .collect();
    let trained: Vec<(&str, &Encode, TrainingSettings)> =
        encodes.iter().filter_map(|(name, encode)| Some((*name, encode, encode.settings.training()?))).collect();
    let first = solved.first().map(|(_, encode)| *encode).or(trained.first().map(|(_, encode, _)| *encode));
    let pass = transforms.first().map(|(_, rule)| &rule.pass).or(first.map(|encode| &encode.pass));
    let missing = match (pass, fixed.first()) {
        (Some(pass), _) => SolveFailure::NoCalibration { pass: pass.clone() },
        (None, Some((tensor, encode))) => {
            SolveFailure::NoStaticScales { pass: encode.pass.clone(), tensor: (*tensor).to_owned() }
        }
        (None, None) => return Ok(None),
    };
    let calibration = recipe.calibration.clone().ok_or(missing)?;
    let model = Model::new(inputs.source.checkpoint().config().map(|config| &config.value), inputs.source)?;
    let root = inputs.source.checkpoint().root();
    let tokens = calibration::read(root, model.vocabulary, model.max_positions, &calibration)?;
    let known: BTreeSet<&str> =
        model.blocks.iter().flat_map(crate::forward::BlockSpec::linears).map(|linear| linear.weight.as_str()).collect();
    if let Some((name, encode)) = fixed.iter().find(|(name, _)| !known.contains(name)) {
        return Err(PlanError::UnseenInput { pass: encode.pass.clone(), tensor: (*name).to_owned() }.into());
    }
    for (name, _) in solved.iter().filter(|(name, _)| !known.contains(name)) {
        fallbacks.push(Fallback {
            kind: "no-statistics".into(),
            tensor: (*name).to_owned(),
            count: 1,
            message: format!(
                "`{name}` is rounded to nearest: its input lies outside of the blocks that are calibrated"
            ),
        });
    }
    let training = training(&model, &trained, &known, recipe.seed, fallbacks)?;
    let drift = solved.iter().flat_map(|(_, encode)| encode.factorings()).any(|factoring| factoring.drift_share > 0.0);
    let compressed = calibration.predecessor == Predecessor::Compressed && !(solved.is_empty() && fixed.is_empty());
    let solved_bytes = solved.iter().map(|(_, encode)| (encode.matrix.rows * encode.matrix.columns) as u64).sum();
    let mut plan = SolvePlan {
        calibration,
        tokens,
        both_streams: compressed && (drift || !transforms.is_empty()),
        compressed,
        drift: compressed && drift,
        encodes: !solved.is_empty(),
        shared: solved.iter().any(|(_, encode)| encode.choice.codebook_of.is_some()),
        rotated: solved.iter().any(|(_, encode)| encode.choice.rotations.is_some_and(|rotations| rotations.inputs)),
        masked: solved.iter().any(|(_, encode)| encode.mask().is_some()),
        differs: solved.iter().any(|(_, encode)| matches!(encode.choice.codec.whole(), Some(Whole::Delta(_)))),
        factored: solved.iter().any(|(_, encode)| matches!(encode.choice.codec.whole(), Some(Whole::Factors(_)))),
        needs_inputs: !(transforms.is_empty() && solved.is_empty() && fixed.is_empty()),
        training,
        touched: touched(&model, &transforms, inputs),
        transforms: transforms.into_iter().map(|(_, rule)| rule).collect(),
        model,
        limits: Limits::default(),
        peak_bytes: 0,
        smallest_bytes: 0,
        disk_bytes: 0,
    };
    plan.fit(options.max_memory_bytes, solved_bytes)?;
    Ok(Some(plan))
}

/// Plans the training, if there is one: it goes through the whole model, so all that is trained is trained together.
fn training(
    model: &Model,
    trained: &[(&str, &Encode, TrainingSettings)],
    known: &BTreeSet<&str>,
    seed: u64,
    fallbacks: &mut Vec<Fallback>,
) -> Result<Option<TrainingPlan>, TrainError> {
    let Some((first, _, settings)) = trained.first() else { return Ok(None) };
    model.blocks.iter().try_for_each(supports)?;
    if let Some((second, ..)) = trained.iter().find(|(.., other)| other != settings) {
        let (first, second) = ((*first).to_owned(), (*second).to_owned());
        return Err(TrainError::Different { first, second, what: "how" });
    }
    for (name, ..) in trained.iter().filter(|(name, ..)| !known.contains(name)) {
        fallbacks.push(Fallback {
            kind: "not-trained".into(),
            tensor: (*name).to_owned(),
            count: 1,
            message: format!("`{name}` is not trained: it lies outside of the blocks that gradients go through"),
        });
    }
    let mut settings = *settings;
    settings.training.shuffle = Some(seed);
    let held = held(trained.iter().filter(|(name, ..)| known.contains(name)).map(|(_, encode, _)| *encode));
    Ok(Some(TrainingPlan { settings, held }))
}

/// The tensors that folds of these rules change, and by which passes.
fn touched(model: &Model, transforms: &[(usize, TransformRule)], inputs: Inputs<'_>) -> BTreeMap<String, Vec<String>> {
    let mut touched: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, rule) in transforms {
        for fold in model.blocks.iter().flat_map(folds) {
            if !rule.takes(&fold) {
                continue;
            }
            let mut names: Vec<String> = fold.consumers.iter().map(|linear| linear.weight.clone()).collect();
            names.extend(fold.others.iter().cloned());
            match &fold.producer {
                Producer::Norm { name, .. } => names.extend([format!("{name}.weight"), format!("{name}.bias")]),
                Producer::Rows { linear, .. } => {
                    names.push(linear.weight.clone());
                    names.extend(linear.bias.clone());
                }
            }
            for name in names.into_iter().filter(|name| inputs.source.tensor(name).is_some()) {
                let passes = touched.entry(name).or_default();
                if passes.last() != Some(&rule.pass) {
                    passes.push(rule.pass.clone());
                }
            }
        }
    }
    touched
}
