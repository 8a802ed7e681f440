//! Which rule applies to which tensor of a model, with which settings.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

use super::{
    Assignment, Recipe, RecipeError,
    document::Located,
    error::{Problem, nearest},
    rule::{Choices, PassRule, setting_problem},
    selector::{Selector, role_path, role_words},
};
use crate::{
    model::{MappedTensor, ModelMap, Role},
    passes::{Kind, Settings},
};

/// Names of tensors or roles that a message lists.
const LISTED: usize = 12;

impl Recipe {
    /// Which rule applies to which tensor with which settings, by rule and then in map order. An encoding that a later
    /// rule gives to the same tensor replaces the earlier one.
    ///
    /// # Errors
    /// [`RecipeError`] for a selector that matches nothing (unless the rule says `optional = true`), for a word that is
    /// neither role nor name, for settings that contradict each other under several overrides, and for a transform of a
    /// tensor that an earlier rule encodes.
    pub fn assign(&self, model: &ModelMap) -> Result<Vec<Assignment>, RecipeError> {
        let mut problems = Vec::new();
        // Per tensor of the map: the rule that encodes it so far.
        let mut encoded_by: Vec<Option<usize>> = vec![None; model.tensors.len()];
        let mut assigned: Vec<(usize, usize, Settings)> = Vec::new();
        for (index, rule) in self.passes.iter().enumerate() {
            let taken = Self::taken(rule, model, &mut problems);
            let settings = self.settings(rule, &taken, model, &mut problems);
            let mut late = Vec::new();
            for (tensor, settings) in taken.into_iter().zip(settings) {
                match (rule.kind, encoded_by[tensor]) {
                    (Kind::Transform, Some(earlier)) => late.push((tensor, earlier)),
                    (Kind::Transform, None) => {}
                    (Kind::Encoding, _) => encoded_by[tensor] = Some(index),
                }
                assigned.extend(settings.map(|settings| (index, tensor, settings)));
            }
            problems.extend(self.transform_after_encoding(rule, &late, model));
        }
        if !problems.is_empty() {
            return Err(self.source.error(problems));
        }
        let last =
            |rule: usize, tensor: usize| self.passes[rule].kind == Kind::Transform || encoded_by[tensor] == Some(rule);
        let assignments = assigned
            .into_iter()
            .filter(|&(rule, tensor, _)| last(rule, tensor))
            .map(|(rule, tensor, settings)| Assignment { rule, tensor: model.tensors[tensor].name.clone(), settings });
        Ok(assignments.collect())
    }

    /// Indices of the tensors that a rule takes, in map order.
    fn taken(rule: &PassRule, model: &ModelMap, problems: &mut Vec<Problem>) -> Vec<usize> {
        let before = problems.len();
        Self::check_names(&rule.choices, model, problems);
        let mut selected: usize = 0;
        let mut skipped: usize = 0;
        let mut taken = Vec::new();
        for (index, tensor) in model.tensors.iter().enumerate() {
            let Some(meant) = rule.selects(tensor) else { continue };
            selected += 1;
            if rule.skips(tensor) {
                skipped += 1;
            } else if is_taken(tensor, meant) {
                taken.push(index);
            }
        }
        if taken.is_empty() && !rule.choices.optional && problems.len() == before {
            let problem = if selected == 0 {
                let message = format!("this rule of pass `{}` selects nothing in the model", rule.pass);
                let problem = Problem::at(&rule.choices.span, message).note(present(model));
                problem.help(fusion_help(&rule.choices.select, model))
            } else if skipped == selected {
                let skips: Vec<String> =
                    rule.choices.skip.iter().map(|skip| format!("{:?}", skip.value.as_str())).collect();
                let message = format!("this rule of pass `{}` skips all {selected} tensors that it selects", rule.pass);
                Problem::at(&rule.choices.span, message).note(format!("it skips {}", skips.join(", ")))
            } else {
                let message = format!("this rule of pass `{}` selects no matrix", rule.pass);
                let found = model.tensors.iter().find(|tensor| rule.selects(tensor).is_some() && !rule.skips(tensor));
                let example = found.map_or_else(String::new, |tensor| {
                    format!(", such as `{}` ({})", tensor.name, role_path(&tensor.role))
                });
                let note = format!("it selects {} tensors that are no matrices{example}", selected - skipped);
                Problem::at(&rule.choices.span, message).note(note)
            };
            problems.push(problem.help(optional_help(&rule.choices, selected)));
        }
        taken
    }

    /// The settings of each taken tensor; none where they are wrong.
    fn settings(
        &self,
        rule: &PassRule,
        taken: &[usize],
        model: &ModelMap,
        problems: &mut Vec<Problem>,
    ) -> Vec<Option<Settings>> {
        let mut used = vec![false; rule.overrides.len()];
        let mut known: HashMap<Vec<usize>, Option<Settings>> = HashMap::new();
        let mut settings = Vec::with_capacity(taken.len());
        for &index in taken {
            let tensor = &model.tensors[index];
            let applying: Vec<usize> =
                (0..rule.overrides.len()).filter(|&part| rule.overrides[part].choices.apply(tensor)).collect();
            for &part in &applying {
                used[part] = true;
            }
            let typed = known.entry(applying).or_insert_with_key(|applying| {
                (rule.parse)(&rule.merged(applying))
                    .map_err(|error| problems.push(setting_problem(&self.source, rule, applying, &error)))
                    .ok()
            });
            settings.push(typed.clone());
        }
        for (part, used) in rule.overrides.iter().zip(used) {
            let before = problems.len();
            Self::check_names(&part.choices, model, problems);
            if !used && !part.choices.optional && !taken.is_empty() && problems.len() == before {
                let message = "this override selects nothing of what its rule takes";
                let roles = roles(taken.iter().map(|&index| &model.tensors[index]));
                let problem = Problem::at(&part.choices.span, message).note(format!("the rule takes {roles}"));
                let problem = problem.help(fusion_help(&part.choices.select, model));
                problems.push(problem.help("write `optional = true` in the override if that is fine".to_owned()));
            }
        }
        settings
    }

    /// Reports words that are neither role nor name.
    fn check_names(choices: &Choices, model: &ModelMap, problems: &mut Vec<Problem>) {
        if choices.optional {
            return;
        }
        for Located { value: selector, span } in choices.select.iter().chain(&choices.skip) {
            let known = !selector.is_name()
                || model.head_module.as_deref() == Some(selector.as_str())
                || model.tensors.iter().any(|tensor| selector.matches(tensor));
            if !known {
                let word = selector.as_str();
                let problem = Problem::at(
                    span,
                    format!("{word:?} is neither a role nor the name of a tensor or module in the model"),
                )
                .note(present(model))
                .help(name_help(word, model));
                problems.push(problem);
            }
        }
    }

    fn transform_after_encoding(&self, rule: &PassRule, late: &[(usize, usize)], model: &ModelMap) -> Option<Problem> {
        let &(tensor, earlier) = late.first()?;
        let encoding = &self.passes[earlier];
        let name = &model.tensors[tensor].name;
        let message = format!(
            "`{}` on line {} transforms what `{}` on line {} has encoded",
            rule.pass, rule.line, encoding.pass, encoding.line
        );
        let more = if late.len() > 1 { format!(" and {} more", late.len() - 1) } else { String::new() };
        let problem = Problem::at(&rule.use_span, message).note(format!("both take `{name}`{more}"));
        Some(problem.help("an encoding comes last for a tensor: write the transform before it".to_owned()))
    }
}

impl PassRule {
    /// Whether `select` takes a tensor, and if so, how it was meant.
    fn selects(&self, tensor: &MappedTensor) -> Option<Meant> {
        let matching = self.choices.select.iter().filter(|selector| selector.value.matches(tensor));
        matching.map(|selector| Meant::by(&selector.value, tensor)).max()
    }

    /// Whether `skip` takes it away. The pass's own default does not take away what `select` asks for by the same role
    /// or by name.
    fn skips(&self, tensor: &MappedTensor) -> bool {
        let asked = |skip: &Selector| {
            self.skip_is_default
                && self.choices.select.iter().any(|select| {
                    (select.value.names_role(skip) || select.value.is_name()) && select.value.matches(tensor)
                })
        };
        self.choices.skip.iter().any(|skip| skip.value.matches(tensor) && !asked(&skip.value))
    }
}

impl Choices {
    /// Whether an override applies to a tensor of its rule.
    fn apply(&self, tensor: &MappedTensor) -> bool {
        let selected = self.select.is_empty() || self.select.iter().any(|selector| selector.value.matches(tensor));
        selected && !self.skip.iter().any(|selector| selector.value.matches(tensor))
    }
}

/// How a selector meant a tensor, the least particular first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meant {
    Role,
    Pattern,
    ItsName,
}

impl Meant {
    fn by(selector: &Selector, tensor: &MappedTensor) -> Self {
        if selector.is_role() {
            Self::Role
        } else if selector.as_str() == tensor.name {
            Self::ItsName
        } else {
            Self::Pattern
        }
    }
}

/// Whether a pass can take a selected tensor: matrices, embeddings, and outside of the language model what is called by
/// its name or looks like the weight of a linear. So a glob over a block leaves its norms and biases alone.
fn is_taken(tensor: &MappedTensor, meant: Meant) -> bool {
    match (&tensor.role, meant) {
        _ if tensor.matrix.is_some() => true,
        (Role::Embedding | Role::OtherEmbedding(_), _) | (Role::Other, Meant::ItsName) => true,
        (Role::Other, Meant::Pattern) => {
            let other = |word: &str| word.contains("norm") || word.contains("embed") || word.starts_with("ln_");
            tensor.name.ends_with(".weight") && !tensor.name.to_lowercase().split('.').any(other)
        }
        _ => false,
    }
}

fn optional_help(choices: &Choices, selected: usize) -> Option<String> {
    (selected == 0 && !choices.optional).then(|| "write `optional = true` in the rule if that is fine".to_owned())
}

/// The roles of some tensors with their numbers.
fn roles<'a>(tensors: impl Iterator<Item = &'a MappedTensor>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in tensors {
        *counts.entry(role_path(&tensor.role)).or_default() += 1;
    }
    if counts.is_empty() {
        return "nothing".to_owned();
    }
    let mut text = String::new();
    for (index, (role, count)) in counts.iter().take(LISTED).enumerate() {
        let lead = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{lead}{role} ({count})");
    }
    if counts.len() > LISTED {
        text.push_str(", …");
    }
    text
}

fn present(model: &ModelMap) -> String {
    format!("the model has {}", roles(model.tensors.iter()))
}

/// What may have been meant by a word that is neither role nor name.
fn name_help(word: &str, model: &ModelMap) -> Option<String> {
    let words = role_words();
    let modules = model.tensors.iter().map(|tensor| tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name));
    if modules.clone().any(|module| module.ends_with(&format!(".{word}"))) {
        return Some(format!("did you mean `*.{word}`, all modules of that name?"));
    }
    let names = words.iter().map(String::as_str).chain(modules);
    nearest(word, names).map(|name| format!("did you mean `{name}`?"))
}

/// Where a rule asks for a part of a fused projection, or for the whole of an unfused one.
fn fusion_help(select: &[Located<Selector>], model: &ModelMap) -> Option<String> {
    let has = |path: &str| model.tensors.iter().any(|tensor| role_path(&tensor.role) == path);
    for selector in select {
        let path = selector.value.as_str();
        let (group, part) = path.rsplit_once('.')?;
        let role = group.rsplit('.').find(|word| word.parse::<usize>().is_err()).unwrap_or(group);
        let fused = match part {
            "query" | "key" | "value" => format!("{role}.qkv"),
            "gate" | "up" => format!("{role}.gate_up"),
            _ => String::new(),
        };
        if has(&fused) {
            return Some(format!("the model stores this fused with others: select `{fused}`"));
        }
        let parts: &[&str] = match part {
            "qkv" => &["query", "key", "value"],
            "gate_up" => &["gate", "up"],
            _ => &[],
        };
        if parts.iter().any(|part| has(&format!("{role}.{part}"))) {
            let names: Vec<String> = parts.iter().map(|part| format!("\"{role}.{part}\"")).collect();
            return Some(format!("the model does not fuse these: select [{}]", names.join(", ")));
        }
    }
    None
}
