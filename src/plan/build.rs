//! Makes the plan: recipe and model map to units, units to files, files to a schedule.

use std::collections::BTreeMap;

use super::{
    Action, Encode, MemoryPlan, Merge, Options, Plan, PlanError, SolvePlan, Unit,
    delta::{self, Shared},
    differences::{self, Wanted},
    lowrank, masks, memory, merge, shards, small_files, solving,
};
use crate::{
    Result,
    checkpoint::{bits_of, is_float, scan_non_finite},
    codec::{Rotations, RowSource},
    forward::{CacheBytes, Model},
    layout::{
        BaseTensors, CachePolicy, LatentCache, Layout, LayoutName, LogicalCheckpoint, LogicalTensor, MatrixSpec,
        Refusal, TensorSpec, layout,
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
        let target = layout(recipe.artifact.layout);
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
        if options.deny_fallbacks
            && let Some(first) = fallbacks.first()
        {
            return Err(PlanError::FallbackDenied { count: fallbacks.len(), first: first.message.clone() }.into());
        }
        let parts = Parts { encodes, merges, shared, fallbacks, notes, solve, books };
        assemble(inputs, target.as_ref(), parts, options)
    }
}

/// What was decided, before it has places.
struct Parts<'a> {
    encodes: BTreeMap<&'a str, Encode>,
    merges: BTreeMap<String, Merge>,
    shared: BTreeMap<String, Shared>,
    fallbacks: Vec<Fallback>,
    notes: Vec<String>,
    solve: Option<SolvePlan>,
    books: masks::Books,
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
    if is_embedding && !is_own(target.name()) {
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
        let Some(entry) = checkpoint.tensor(&tensor.name) else { continue };
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

fn assemble(inputs: Inputs<'_>, target: &dyn Layout, parts: Parts<'_>, options: &Options) -> Result<Plan> {
    let Parts { mut encodes, mut merges, mut shared, fallbacks, mut notes, solve, books } = parts;
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
        let plain = || vec![TensorSpec { name: tensor.name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone() }];
        let (action, outputs) = match encodes.remove(tensor.name.as_str()) {
            Some(encode) => {
                let outputs = target.tensors(&encode.matrix);
                matrices.push(encode.matrix.clone());
                (Action::Encode(Box::new(encode)), outputs)
            }
            None if solve.as_ref().is_some_and(|solve| solve.touched.contains_key(&tensor.name)) => {
                (Action::Transform, plain())
            }
            None if merges.contains_key(&tensor.name) => match merges.remove(&tensor.name) {
                Some(merge) => (Action::Merge(Box::new(merge)), plain()),
                None => (Action::Copy, plain()),
            },
            None if !tensor.is_plain() => (Action::Decode, plain()),
            None if shared.contains_key(&tensor.name) => match shared.remove(&tensor.name) {
                Some(Shared::But(rows)) => {
                    let outputs = BaseTensors::stored_rows(&tensor.name, tensor.dtype, &tensor.shape, rows.len());
                    (Action::Rows(rows), outputs)
                }
                _ => (Action::Same, Vec::new()),
            },
            None => (Action::Copy, plain()),
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
    let files = shards::place(&mut units, specs, recipe.artifact.shard_size)?;
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

/// Whether a layout is our own, which no runtime reads.
fn is_own(layout: LayoutName) -> bool {
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
