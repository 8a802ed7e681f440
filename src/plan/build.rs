//! Makes the plan: recipe and model map to units, units to files, files to a schedule.

use std::collections::BTreeMap;

use super::{
    Encode, Options, Plan, PlanError,
    assemble::{Parts, assemble, cannot_hold, is_own},
    delta::{self, Shared},
    differences::{self, Wanted},
    expanded, lowrank, masks, merge, solving,
};
use crate::{
    Result,
    checkpoint::{is_float, scan_non_finite},
    codec::{Rotations, RowSource},
    layout::{
        LatentCache, Layout, LayoutName, LogicalCheckpoint, LogicalTensor, MatrixSpec, Refusal, TensorSpec, layout, layout_for,
    },
    manifest::Fallback,
    model::{MappedTensor, MatrixView, ModelMap, Role, matrix_by_shape},
    passes::{self, Choice, Kind, Matrix, Settings, mask, vptq},
    recipe::{Assignment, NonFinite, Recipe},
};

/// What a plan is made from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The model's tensors.
    pub source: &'a LogicalCheckpoint,
    /// What they mean.
    pub model: &'a ModelMap,
}

/// An encoding that a rule asks for, before the layout has agreed.
struct Wish<'a> {
    tensor: &'a LogicalTensor,
    mapped: &'a MappedTensor,
    view: MatrixView,
    matrix: Matrix,
    rule: usize,
    settings: Settings,
    /// From a transform of its own.
    rotations: Option<Rotations>,
    /// Likewise.
    mask: Option<mask::Settings>,
    /// Whether the model has a bias beside it.
    bias: bool,
    /// What a runtime keeps instead of its outputs.
    cache: Option<LatentCache>,
}

impl Wish<'_> {
    /// The choice, rotated and masked as the wish says.
    fn transformed(&self, mut choice: Choice) -> Choice {
        choice.rotations = choice.rotations.or(self.rotations);
        choice.mask.clone_from(&self.mask);
        choice
    }

    fn spec(&self, choice: &Choice) -> MatrixSpec {
        MatrixSpec {
            name: self.tensor.name.clone(),
            experts: self.view.experts,
            rows: self.matrix.rows,
            columns: self.matrix.columns,
            transposed: self.view.transposed,
            dense_dtype: self.tensor.dtype,
            codec: choice.codec.clone(),
            rotations: choice.rotations,
            codebook_of: choice.codebook_of.clone(),
            cache: self.cache.clone(),
            activations: choice.activations,
            bias: self.bias,
        }
    }
}

impl Plan {
    /// Makes the plan from headers; reads weights only where a setting's sizes depend on them, or where non-finite
    /// weights are to be kept, and says so in [`Plan::notes`].
    ///
    /// # Errors
    /// Everything that can be found before the run: see [`PlanError`] and [`crate::recipe::RecipeError`].
    pub fn new(inputs: Inputs<'_>, options: &Options) -> Result<Self> {
        let recipe = inputs.recipe;
        let name = recipe.artifact.layout;
        let config = inputs.source.checkpoint().config().map(|config| &config.value);
        let target = layout_for(name, config).map_err(|refusal| cannot_hold(layout(name).as_ref(), refusal))?;
        let mut notes = inputs.model.notes.clone();
        let mut fallbacks = Vec::new();
        let assignments = inputs.recipe.assign(inputs.model)?;
        let mut merges = merge::merges(inputs, target.name(), &assignments, &mut fallbacks, &mut notes)?;
        let mut books = masks::Books::default();
        let mut wishes = wishes(inputs, target.as_ref(), &assignments, &mut books)?;
        let lowrank = lowrank::choose(
            inputs,
            target.name(),
            wishes.iter().enumerate().filter_map(lowrank_of),
            options,
            &mut notes,
        )?;
        for (index, (_, cache)) in &lowrank {
            wishes[*index].cache = Some(cache.clone());
        }
        let lowrank = lowrank.into_iter().map(|(index, (choice, _))| (index, choice)).collect();
        let mut choices = choose(inputs, target.as_ref(), &wishes, lowrank, &mut notes, &mut fallbacks)?;
        share_codebooks(inputs, &wishes, &mut choices)?;
        for (wish, choice) in wishes.iter().zip(&choices) {
            let rule = &recipe.passes[wish.rule];
            masks::check(&rule.pass, rule.line, &wish.tensor.name, wish.matrix.experts, choice)?;
        }
        let mut encodes: BTreeMap<&str, Encode> = BTreeMap::new();
        let base = inputs.source.base().filter(|_| target.name() == LayoutName::Delta);
        let mut shared = base.map_or_else(BTreeMap::new, |base| {
            delta::notes(inputs.source, base, &mut notes);
            let encoded = wishes.iter().map(|wish| wish.tensor.name.as_str()).collect();
            delta::shared(inputs.source, base, &encoded)
        });
        for (wish, choice) in wishes.iter().zip(choices) {
            if shared.get(&wish.tensor.name) == Some(&Shared::All) {
                continue;
            }
            match accept(inputs, target.as_ref(), wish, choice)? {
                Ok(encode) => {
                    encodes.insert(&wish.tensor.name, encode);
                }
                Err(fallback) => {
                    let name = &wish.tensor.name;
                    if let Some(rows) = base.and_then(|base| delta::shared_of(inputs.source, base, name, false)) {
                        shared.insert(name.clone(), rows);
                    }
                    fallbacks.push(fallback);
                }
            }
        }
        notes.extend(masks::dense_columns(encodes.values()));
        if recipe.non_finite == NonFinite::Keep {
            keep_non_finite(inputs, &mut encodes, &mut fallbacks, &mut notes);
            let kept =
                |fallback: &Fallback, name: &String| fallback.kind == "non-finite-kept" && fallback.tensor == *name;
            merges.retain(|name, _| !fallbacks.iter().any(|fallback| kept(fallback, name)));
        }
        if options.deny_fallbacks
            && let Some(first) = fallbacks.first()
        {
            return Err(PlanError::FallbackDenied { count: fallbacks.len(), first: first.message.clone() }.into());
        }
        let solve = solving::solve_plan(inputs, &assignments, &encodes, &mut fallbacks, options)?;
        notes.extend(solve.as_ref().and_then(|solve| expanded::note(&solve.model, &encodes)));
        if options.deny_fallbacks
            && let Some(first) = fallbacks.first()
        {
            return Err(PlanError::FallbackDenied { count: fallbacks.len(), first: first.message.clone() }.into());
        }
        let parts = Parts { encodes, merges, shared, fallbacks, notes, solve, books };
        assemble(inputs, target.as_ref(), parts, options)
    }
}

fn wishes<'a>(
    inputs: Inputs<'a>,
    target: &dyn Layout,
    assignments: &[Assignment],
    books: &mut masks::Books,
) -> Result<Vec<Wish<'a>>> {
    let mut wishes = Vec::new();
    let mut rotations = rotations(inputs, assignments)?;
    let mut masks = masks::masks(inputs.recipe, assignments)?;
    for Assignment { rule, tensor: name, mut settings } in assignments.iter().cloned() {
        let alone = matches!(settings, Settings::Mask(_)) && masks.get(&name).is_some_and(|mask| mask.alone);
        let merged = matches!(settings, Settings::Breadcrumbs(_)) && target.name() == LayoutName::Dense;
        if (inputs.recipe.passes[rule].kind == Kind::Transform && !alone) || merged {
            continue;
        }
        let (Some(tensor), Some(mapped)) = (inputs.source.tensor(&name), inputs.model.tensor(&name)) else { continue };
        let view = match (&mapped.matrix, is_float(tensor.dtype)) {
            (Some(view), true) => view.clone(),
            (None, true) if tensor.shape.len() == 2 => matrix_by_shape(&tensor.shape),
            _ => {
                return Err(PlanError::NotAMatrix {
                    rule: rule + 1,
                    pass: inputs.recipe.passes[rule].pass.clone(),
                    line: inputs.recipe.passes[rule].line,
                    tensor: name,
                    what: format!("{:?} {:?} ({})", tensor.dtype, tensor.shape, mapped.role),
                }
                .into());
            }
        };
        let matrix = Matrix {
            name: name.clone(),
            rows: view.rows * view.experts.unwrap_or(1),
            columns: view.columns,
            experts: view.experts.unwrap_or(1),
            seed: inputs.recipe.seed,
            dense_dtype: tensor.dtype,
            scale: target.scale_format(tensor.dtype),
            minimum_zero_point: target.minimum_zero_point(),
            float_zero_allowed: target.float_zero_allowed(),
            minima: target.minima(),
        };
        let rotations = rotations.remove(&name);
        let mut mask = masks.remove(&name).filter(|mask| !mask.alone);
        if let Settings::Mask(settings) = &mut settings {
            books.find(inputs.recipe, rule, &name, matrix.experts, settings)?;
        }
        if let Some(masks::Wanted { rule, settings, .. }) = &mut mask {
            books.find(inputs.recipe, *rule, &name, matrix.experts, settings)?;
        }
        let mask = mask.map(|mask| mask.settings);
        let bias = name
            .strip_suffix(".weight")
            .is_some_and(|module| inputs.source.tensor(&format!("{module}.bias")).is_some());
        wishes.push(Wish { tensor, mapped, view, matrix, rule, settings, rotations, mask, bias, cache: None });
    }
    if let Some((tensor, _)) = rotations.into_iter().next() {
        return Err(PlanError::RotatedDense { tensor }.into());
    }
    Ok(wishes)
}

/// The rotations that rules ask for, by tensor. Whatever else is done to dense weights comes before.
fn rotations(inputs: Inputs<'_>, assignments: &[Assignment]) -> Result<BTreeMap<String, Rotations>> {
    let mut rotations = BTreeMap::new();
    for Assignment { rule, tensor, settings } in assignments {
        let rule = &inputs.recipe.passes[*rule];
        match settings {
            Settings::Rotate(settings) => {
                rotations.insert(tensor.clone(), settings.rotations(inputs.recipe.seed));
            }
            // Masks say themselves what they do not go with.
            Settings::Mask(_) => {}
            _ if rule.kind == Kind::Transform && rotations.contains_key(tensor) => {
                let (pass, line, tensor) = (rule.pass.clone(), rule.line, tensor.clone());
                return Err(PlanError::ScaledAfterRotation { pass, line, tensor }.into());
            }
            _ => {}
        }
    }
    Ok(rotations)
}

/// A projection of keys or values that is to become factors.
fn lowrank_of<'a>((index, wish): (usize, &'a Wish<'_>)) -> Option<(usize, lowrank::Wanted<'a>)> {
    let Settings::LowrankKv(settings) = &wish.settings else { return None };
    let wanted = lowrank::Wanted {
        matrix: &wish.matrix,
        view: &wish.view,
        role: &wish.mapped.role,
        settings,
        rule: wish.rule,
        rotated: wish.rotations.is_some(),
    };
    Some((index, wanted))
}

/// What decides the form of a difference.
fn differences_of<'a>(wish: &'a Wish<'_>) -> Wanted<'a> {
    Wanted { tensor: wish.tensor, matrix: &wish.matrix, transposed: wish.view.transposed, settings: &wish.settings }
}

/// What decides the form of an expanded matrix.
fn expansion_of<'a>(inputs: Inputs<'a>, wish: &'a Wish<'_>) -> expanded::Wanted<'a> {
    let rule = &inputs.recipe.passes[wish.rule];
    expanded::Wanted {
        settings: &wish.settings,
        matrix: &wish.matrix,
        rule: (&rule.pass, rule.line),
        changed: wish.rotations.is_some() || wish.mask.is_some(),
    }
}

/// The codec of every wish: from shapes alone, or, for the rules that ask for it, from the weights.
fn choose(
    inputs: Inputs<'_>,
    target: &dyn Layout,
    wishes: &[Wish<'_>],
    chosen: BTreeMap<usize, Choice>,
    notes: &mut Vec<String>,
    fallbacks: &mut Vec<Fallback>,
) -> Result<Vec<Choice>> {
    let mut choices: Vec<Option<Choice>> = Vec::with_capacity(wishes.len());
    let mut measured = differences::choose(inputs, wishes.iter().map(differences_of), fallbacks)?;
    measured.extend(chosen);
    measured.extend(expanded::choose(inputs, wishes.iter().map(|wish| expansion_of(inputs, wish)))?);
    let mut by_rule: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, wish) in wishes.iter().enumerate() {
        let rule = &inputs.recipe.passes[wish.rule];
        if let Some(choice) = measured.remove(&index) {
            choices.push(Some(choice));
        } else if wish.settings.needs_weights() {
            by_rule.entry(wish.rule).or_default().push(index);
            choices.push(None);
        } else {
            let choice = wish
                .settings
                .codec(&wish.matrix)
                .map_err(|error| PlanError::setting(&rule.pass, rule.line, &wish.tensor.name, error))?;
            choices.push(Some(wish.transformed(choice)));
        }
    }
    for (rule, members) in by_rule {
        let rule = &inputs.recipe.passes[rule];
        notes.push(format!(
            "sizes of rule `{}` (recipe line {}) follow from the weights: {} matrices were read to plan",
            rule.pass,
            rule.line,
            members.len()
        ));
        let entries: Vec<(Settings, Matrix)> =
            members.iter().map(|&index| (wishes[index].settings.clone(), wishes[index].matrix.clone())).collect();
        let stored_bits = |position: usize, choice: &Choice| {
            let spec = wishes[members[position]].spec(choice);
            let bytes: u64 = target.tensors(&spec).iter().map(TensorSpec::bytes).sum();
            target.accepts(&spec).is_ok().then_some(bytes * 8)
        };
        let open = |position: usize| -> Result<Box<dyn RowSource + '_>> {
            let wish = &wishes[members[position]];
            Ok(inputs.source.rows(&wish.tensor.name, wish.view.transposed)?)
        };
        let chosen = passes::choose(&entries, &stored_bits, &open).map_err(|error| match error {
            crate::Error::Choose(source) => {
                PlanError::Choice { pass: rule.pass.clone(), line: rule.line, source: Box::new(source) }.into()
            }
            other => other,
        })?;
        for (index, choice) in members.into_iter().zip(chosen) {
            choices[index] = Some(wishes[index].transformed(choice));
        }
    }
    Ok(choices.into_iter().flatten().collect())
}

/// Gives matrices that share an input one codebook where their settings say so: the first of them stores it.
fn share_codebooks(inputs: Inputs<'_>, wishes: &[Wish<'_>], choices: &mut [Choice]) -> Result<()> {
    let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (index, wish) in wishes.iter().enumerate() {
        let shared = matches!(&wish.settings, Settings::Vptq(settings) if settings.shared);
        let routed = wish.view.experts.is_some() || wish.mapped.role.to_string().contains("expert");
        if let (true, false, Some(input)) = (shared, routed, wish.mapped.input) {
            groups.entry((wish.rule, input)).or_default().push(index);
        }
    }
    for ((rule, _), members) in groups {
        let first = &wishes[members[0]];
        let alike = |&&index: &&usize| {
            let wish = &wishes[index];
            wish.settings == first.settings
                && wish.matrix.columns == first.matrix.columns
                && wish.matrix.scale == first.matrix.scale
                && wish.rotations.is_none()
        };
        let members: Vec<usize> = members.iter().filter(alike).copied().collect();
        let rows = members.iter().map(|&index| wishes[index].matrix.rows).sum();
        let rule = &inputs.recipe.passes[rule];
        let together = Matrix { rows, ..first.matrix.clone() };
        let choice = first
            .settings
            .codec(&together)
            .map_err(|error| PlanError::setting(&rule.pass, rule.line, &first.tensor.name, error))?;
        let whole_vectors = |&index: &usize| vptq::fits_whole_vectors(&choice.codec, wishes[index].matrix.rows);
        if members.len() < 2 || !members.iter().all(whole_vectors) {
            continue;
        }
        for (place, &index) in members.iter().enumerate() {
            let owner = (place > 0).then(|| first.tensor.name.clone());
            choices[index] = Choice { codebook_of: owner, ..choice.clone() };
        }
    }
    Ok(())
}

/// Asks the layout: an encoding, or the fallback that keeps the tensor dense.
fn accept(
    inputs: Inputs<'_>,
    target: &dyn Layout,
    wish: &Wish<'_>,
    choice: Choice,
) -> Result<std::result::Result<Encode, Fallback>> {
    let rule = &inputs.recipe.passes[wish.rule];
    let spec = wish.spec(&choice);
    let cannot = |message: String| PlanError::LayoutCannot {
        layout: target.name().as_str().into(),
        tensor: wish.tensor.name.clone(),
        codec: spec.codec.name(),
        line: rule.line,
        message,
    };
    let is_embedding = matches!(wish.mapped.role, Role::Embedding | Role::OtherEmbedding(_));
    if is_embedding && !is_own(target.name()) && target.name() != LayoutName::Gguf {
        return Err(cannot("runtimes read embeddings dense in this layout".into()).into());
    }
    let obstacle = || wish.settings.is_difference().then(|| delta::obstacle(inputs.source.base(), wish.tensor));
    let accepted = target.accepts(&spec).and_then(|()| match obstacle().flatten() {
        Some(message) => Err(Refusal::Shape(message)),
        None => Ok(()),
    });
    match accepted {
        Ok(()) => Ok(Ok(Encode {
            pass_matrix: wish.matrix.clone(),
            pass: rule.pass.clone(),
            settings: wish.settings.clone(),
            matrix: spec,
            choice,
            rotated: wish.rotations.is_some(),
        })),
        Err(Refusal::Shape(message)) => Ok(Err(Fallback {
            kind: "kept-dense".into(),
            tensor: wish.tensor.name.clone(),
            count: 1,
            message: format!("`{}` is kept dense: {message}", wish.tensor.name),
        })),
        Err(Refusal::Format(message)) => Err(cannot(message).into()),
    }
}

/// Takes the matrices with non-finite weights out of the encodings.
fn keep_non_finite(
    inputs: Inputs<'_>,
    encodes: &mut BTreeMap<&str, Encode>,
    fallbacks: &mut Vec<Fallback>,
    notes: &mut Vec<String>,
) {
    notes.push("all weights were read to plan: tensors with non-finite weights are kept as they are".into());
    for tensor in inputs.source.tensors() {
        if !tensor.is_plain() || !is_float(tensor.dtype) {
            continue;
        }
        let checkpoint = inputs.source.checkpoint();
        let Some(entry) = tensor.parts.first().and_then(|part| checkpoint.tensor(part)) else { continue };
        let report = scan_non_finite(entry.dtype, checkpoint.bytes(entry));
        checkpoint.release(entry, 0..usize::try_from(entry.bytes).unwrap_or(usize::MAX));
        if let Some(report) = report {
            encodes.remove(tensor.name.as_str());
            fallbacks.push(Fallback {
                kind: "non-finite-kept".into(),
                tensor: tensor.name.clone(),
                count: report.count,
                message: format!(
                    "`{}` is kept as it is: {} non-finite weights, the first at index {}",
                    tensor.name, report.count, report.first_index
                ),
            });
        }
    }
}
