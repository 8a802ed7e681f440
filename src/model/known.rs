//! Maps a model of a known family: finds where its language model lies, then looks every name up in the family's table.

use std::collections::{HashMap, HashSet};

use super::{
    Input, MappedTensor, MatrixView, ModelMap, NamedShape, Role,
    config::ConfigView,
    families::{FAMILIES, Family, Group, Link, NormPlace, PREDICTION_MODULE, Rule, family_of},
    fused,
    names::{Ending, RuleIndex, split_block},
};

/// Where a language model can lie inside another.
const PREFIXES: &[&str] =
    &["", "language_model.", "model.language_model.", "llm.", "text_model.", "model.text_model.", "thinker."];

/// A language model that was found: its family and the words before its names.
#[derive(Debug)]
pub(super) struct Language {
    family: &'static Family,
    prefix: &'static str,
    /// Before everything beside the blocks.
    trunk: String,
    /// Before a block's index.
    block: String,
    /// Whether it was recognised by names alone.
    by_names: bool,
}

/// What a search for the language model gave.
#[derive(Debug)]
pub(super) enum Found {
    /// It is here.
    Language(Language),
    /// The config names a family that bantam knows, but the tensors have other names.
    OtherNames(&'static Family),
    /// No family that bantam knows.
    Nothing,
}

/// Finds the language model: by what the config calls it, or without that by its tensor names.
pub(super) fn find(config: &ConfigView<'_>, tensors: &[NamedShape]) -> Found {
    let identities = config.identities();
    if identities.is_empty() {
        let fitting = FAMILIES.iter().filter(|family| !family.signature.is_empty()).find_map(|family| {
            let language = locate(family, tensors, true)?;
            fits(&language, tensors).then_some(language)
        });
        return fitting.map_or(Found::Nothing, Found::Language);
    }
    match identities.iter().find_map(|identity| family_of(identity)) {
        Some(family) => locate(family, tensors, false).map_or(Found::OtherNames(family), Found::Language),
        None => Found::Nothing,
    }
}

/// Finds the prefix under which some block has a module of the family.
fn locate(family: &'static Family, tensors: &[NamedShape], by_names: bool) -> Option<Language> {
    let rules = RuleIndex::new(family.block);
    let mut key = String::new();
    PREFIXES.iter().find_map(|prefix| {
        family.trunks.iter().find_map(|(base, words)| {
            let trunk = format!("{prefix}{base}");
            let block = format!("{trunk}{words}");
            let mut rests = tensors.iter().filter_map(|tensor| split_block(tensor.name.strip_prefix(&block)?));
            let here = rests.any(|(_, rest)| rules.find(rest, &mut key).is_some());
            here.then_some(Language { family, prefix, trunk, block, by_names })
        })
    })
}

/// Whether the blocks have nothing but the family's modules, and among them those that tell it from others.
fn fits(language: &Language, tensors: &[NamedShape]) -> bool {
    let family = language.family;
    let rules = RuleIndex::new(family.block);
    let mut key = String::new();
    let mut seen = HashSet::new();
    for tensor in tensors {
        let Some((_, rest)) = tensor.name.strip_prefix(&language.block).and_then(split_block) else { continue };
        let Some((rule, _, ending)) = rules.find(rest, &mut key) else { return false };
        if ending == Ending::Weight {
            let wide = matches!(tensor.shape[..], [rows, columns] if rows < columns);
            if family.wide == Some(rule.pattern) && !wide {
                return false;
            }
            seen.insert(rule.pattern);
        }
    }
    family.signature.iter().all(|pattern| seen.contains(pattern))
}

/// Maps every tensor of a model whose language model was found.
pub(super) fn map(config: &mut ConfigView<'_>, language: &Language, tensors: &[NamedShape]) -> ModelMap {
    let family = language.family;
    let head = Head::find(config, language, tensors);
    let norms_feed = norms_feed(config, language, tensors);
    let places = Places::new(language);
    let mut links = Links::default();
    let mut seen = Seen::default();
    let mut key = String::new();
    let mut mapped = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let (block, found) = places.find(&tensor.name, &mut key);
        let mut entry = MappedTensor { name: tensor.name.clone(), role: Role::Other, block, matrix: None, input: None };
        if let Some((rule, index, ending)) = found {
            seen.block(block, rule);
            entry.role = match (ending, &rule.role) {
                (Ending::Weight, role) => role.of_expert(index),
                (Ending::Bias, role @ (Role::Norm | Role::Router)) => role.clone(),
                (Ending::Bias, _) => Role::Other,
            };
            let unused_head = block.is_none() && entry.role == Role::Head && head.tied;
            if ending == Ending::Weight && !unused_head {
                match rule.link {
                    Link::Feeds(group) if norms_feed => links.norm((block, group, None), &entry.name),
                    Link::Feeds(_) | Link::None => {}
                    Link::AlsoReads(group) => links.other((block, group, None), &entry.name),
                    Link::Reads(group) => match view(rule, index, &tensor.shape, config) {
                        Some(matrix) => {
                            let expert = if group == Group::ExpertDown { index } else { None };
                            entry.matrix = Some(matrix);
                            entry.input = Some(links.linear((block, group, expert), &entry.name));
                        }
                        None => seen.odd_shapes.push(tensor),
                    },
                }
            }
        } else if block.is_some() && tensor.shape.len() == 2 && tensor.name.ends_with(".weight") {
            seen.strangers.push(tensor);
        }
        mapped.push(entry);
    }
    let inputs = links.finish();
    let mut notes = seen.notes();
    if language.by_names {
        notes.push(format!("no architecture in a config.json: recognised as {} by its tensor names", family.name));
    }
    notes.extend(head.note.clone());
    let blocks = seen.count_blocks(config, &mut notes);
    notes.splice(0..0, std::mem::take(&mut config.notes));
    ModelMap {
        architecture: config.architecture(),
        known: true,
        prefix: language.prefix.to_owned(),
        blocks,
        tied_embeddings: head.tied,
        head_module: head.module,
        tensors: mapped,
        inputs,
        notes,
    }
}

/// Whether what a norm feeds is read by linears alone, or by the residual stream too.
fn norms_feed(config: &mut ConfigView<'_>, language: &Language, tensors: &[NamedShape]) -> bool {
    match language.family.norms {
        NormPlace::Before => true,
        NormPlace::Told { key, last_norm } => config.flag(key).unwrap_or_else(|| {
            let weight = format!("{}{last_norm}.weight", language.trunk);
            tensors.iter().any(|tensor| tensor.name == weight)
        }),
    }
}

/// How a linear's tensor is a matrix; `None` when its shape is none.
fn view(rule: &Rule, index: Option<usize>, shape: &[usize], config: &mut ConfigView<'_>) -> Option<MatrixView> {
    let stacked = matches!(rule.role, Role::Expert(..)) && index.is_none();
    let (experts, first, second) = match *shape {
        [experts, first, second] if stacked => (Some(experts), first, second),
        [first, second] if !stacked => (None, first, second),
        _ => return None,
    };
    if shape.contains(&0) {
        return None;
    }
    let (rows, columns) = if rule.transposed { (second, first) } else { (first, second) };
    let mut matrix = MatrixView { experts, rows, columns, transposed: rule.transposed, fused: Vec::new() };
    matrix.fused = fused::parts(rule.fused, &matrix, config);
    Some(matrix)
}

/// The places where a family's names stand, each with its rules.
struct Places<'a> {
    language: &'a Language,
    block: RuleIndex,
    trunk: RuleIndex,
    root: RuleIndex,
}

type FoundRule = (&'static Rule, Option<usize>, Ending);

impl<'a> Places<'a> {
    fn new(language: &'a Language) -> Self {
        let family = language.family;
        Self {
            language,
            block: RuleIndex::new(family.block),
            trunk: RuleIndex::new(&[family.trunk]),
            root: RuleIndex::new(&[family.root]),
        }
    }

    /// The block of a tensor, and its rule.
    fn find(&self, name: &str, key: &mut String) -> (Option<usize>, Option<FoundRule>) {
        if let Some((block, rest)) = name.strip_prefix(&self.language.block).and_then(split_block) {
            return (Some(block), self.block.find(rest, key));
        }
        let mut at = |prefix: &str, rules: &RuleIndex| rules.find(name.strip_prefix(prefix)?, key);
        let beside = at(&self.language.trunk, &self.trunk).or_else(|| at(self.language.prefix, &self.root));
        (None, beside.or_else(|| at("", &self.root)))
    }
}

/// The output projection: its name, and whether the embedding stands for it.
struct Head {
    module: Option<String>,
    tied: bool,
    note: Option<String>,
}

impl Head {
    fn find(config: &mut ConfigView<'_>, language: &Language, tensors: &[NamedShape]) -> Self {
        let family = language.family;
        let module = family.root.first().map_or("lm_head", |rule| rule.pattern);
        let candidates = [format!("{}{module}", language.prefix), module.to_owned()];
        let stored = candidates.into_iter().find(|candidate| {
            tensors.iter().any(|tensor| tensor.name.strip_suffix(".weight") == Some(candidate.as_str()))
        });
        let says = config.tied();
        let expected = has_head(&config.architecture());
        let tied = expected != Some(false)
            && says.unwrap_or(if config.is_present() { family.tied_by_default } else { stored.is_none() });
        let note = match (&stored, tied) {
            (Some(stored), true) => Some(format!(
                "`{stored}.weight` is stored though the config ties the head to the embedding: left as it is, runtimes \
                 may read either"
            )),
            (None, false) if expected == Some(true) => {
                Some(format!("there is no `{module}.weight`, and the config does not tie it to the embedding"))
            }
            _ => None,
        };
        let module = if expected == Some(false) { stored } else { Some(stored.unwrap_or_else(|| module.to_owned())) };
        Self { module, tied, note }
    }
}

/// Whether models of this class end in a projection to the vocabulary; `None` when the name does not say.
fn has_head(class: &str) -> Option<bool> {
    const WITH: &[&str] = &["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining"];
    if WITH.iter().any(|ending| class.ends_with(ending)) {
        return Some(true);
    }
    (class.ends_with("Model") || class.contains("For")).then_some(false)
}

/// Block, activation, and expert where each has its own.
type Place = (Option<usize>, Group, Option<usize>);

/// Who reads which activation, gathered in the order of the tensors.
#[derive(Default)]
struct Links {
    inputs: Vec<Input>,
    places: HashMap<Place, usize>,
    norms: Vec<(Place, String)>,
    others: Vec<(Place, String)>,
}

impl Links {
    fn linear(&mut self, place: Place, name: &str) -> usize {
        let index = *self.places.entry(place).or_insert_with(|| {
            self.inputs.push(Input { norm: None, linears: Vec::new(), others: Vec::new() });
            self.inputs.len() - 1
        });
        self.inputs[index].linears.push(name.to_owned());
        index
    }

    fn norm(&mut self, place: Place, name: &str) {
        self.norms.push((place, name.to_owned()));
    }

    fn other(&mut self, place: Place, name: &str) {
        self.others.push((place, name.to_owned()));
    }

    fn finish(mut self) -> Vec<Input> {
        for ((block, group, expert), name) in self.norms {
            // Where a projection stands between the last norm and the head, the norm feeds that and not the head.
            let projected = (block, Group::ProjectOut, expert);
            let place = if group == Group::Head && self.places.contains_key(&projected) {
                projected
            } else {
                (block, group, expert)
            };
            if let Some(index) = self.places.get(&place) {
                self.inputs[*index].norm = Some(name);
            }
        }
        for (place, name) in self.others {
            if let Some(index) = self.places.get(&place) {
                self.inputs[*index].others.push(name);
            }
        }
        self.inputs
    }
}

/// What the names showed on the way.
#[derive(Default)]
struct Seen<'a> {
    /// Blocks that have a module of the family, counted by the largest index.
    blocks: usize,
    /// First block that is a multi-token-prediction layer.
    prediction: Option<usize>,
    /// Matrices in blocks that the family's table does not have.
    strangers: Vec<&'a NamedShape>,
    /// Linears whose shape is no matrix.
    odd_shapes: Vec<&'a NamedShape>,
}

impl Seen<'_> {
    fn block(&mut self, block: Option<usize>, rule: &Rule) {
        let Some(block) = block else { return };
        self.blocks = self.blocks.max(block + 1);
        if rule.pattern == PREDICTION_MODULE {
            self.prediction = Some(self.prediction.map_or(block, |first| first.min(block)));
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(first) = self.strangers.first() {
            notes.push(format!(
                "{} in the blocks have names that this architecture does not use and are left as they are, the first \
                 `{}`",
                matrices(self.strangers.len()),
                first.name
            ));
        }
        if let Some(first) = self.odd_shapes.first() {
            notes.push(format!(
                "{} named like linears have shapes that are no matrix and are left as they are, the first `{}` {:?}",
                tensors(self.odd_shapes.len()),
                first.name,
                first.shape
            ));
        }
        notes
    }

    fn count_blocks(&self, config: &mut ConfigView<'_>, notes: &mut Vec<String>) -> usize {
        let blocks = self.prediction.unwrap_or(self.blocks);
        if blocks < self.blocks {
            let extra = self.blocks - blocks;
            notes.push(format!(
                "{extra} multi-token-prediction layer{} behind the {blocks} blocks",
                if extra == 1 { "" } else { "s" }
            ));
        }
        if let Some(said) = config.count(&["num_hidden_layers", "n_layer"])
            && said != blocks
        {
            notes.push(format!("config.json says {said} blocks, the tensors name {blocks}: {blocks} are mapped"));
        }
        blocks
    }
}

/// `1 matrix`, `2 matrices`.
pub(super) fn matrices(count: usize) -> String {
    if count == 1 { "1 matrix".to_owned() } else { format!("{count} matrices") }
}

fn tensors(count: usize) -> String {
    if count == 1 { "1 tensor".to_owned() } else { format!("{count} tensors") }
}
