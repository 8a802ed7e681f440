//! Chooses the scales of a block's folds from the original model's activations.

use std::collections::BTreeSet;

use super::{
    Moments, SolveFailure, TransformRule, Wanted,
    driver::Worker,
    fold::{Fold, folds},
    gather::{Input, inputs},
    inputs::input_format,
    matrices::nearest,
    record::{Line, Note, Step, transforms_file},
    statistics::Key,
    transforms::{Transformed, Values},
};
use crate::{
    Result,
    codec::{Element, Granularity},
    forward::{BlockSpec, InputFormat, Kind, LinearSpec, Matrix},
    passes::{
        Settings, awq,
        folding::{Consumer, FoldStatistics, OwnedStatistics, rescale_statistics},
        smoothquant, smoothquant_plus,
    },
    plan::Encode,
};

/// Key of the strength that a search over the whole model found.
pub(super) const STRENGTH: &str = "strength";

impl Moments {
    /// The figures that choosing scales needs.
    pub(super) fn statistics(&self) -> OwnedStatistics {
        OwnedStatistics {
            absmax: self.absmax.clone(),
            mean_abs: self.mean_abs(),
            hessian: (!self.hessian.is_empty()).then(|| self.hessian.clone()),
            sample: (self.sample.rows > 0).then(|| self.sample.clone()),
        }
    }
}

impl TransformRule {
    /// Whether this rule may scale a fold: it takes the kind, and selects every linear that reads it.
    #[must_use]
    pub fn takes(&self, fold: &Fold) -> bool {
        let kinds = match &self.settings {
            Settings::SmoothQuant(settings) => &settings.folds,
            Settings::SmoothQuantPlus(settings) => &settings.folds,
            Settings::Awq(settings) => &settings.folds,
            _ => return false,
        };
        kinds.contains(&fold.kind) && fold.consumers.iter().all(|linear| self.linears.contains(&linear.weight))
    }
}

impl Worker<'_> {
    fn wanted(&self, rule: usize, fold: &Fold) -> bool {
        self.job.solve.transforms[rule].takes(fold)
    }

    /// Finds the scales of a block's folds, or takes up what was found.
    pub(super) fn transform(&mut self, spec: &BlockSpec, index: usize) -> Result<()> {
        if self.job.solve.transforms.is_empty() {
            return Ok(());
        }
        let file = transforms_file(index);
        if let Some(lists) = self.solutions.transforms.get(&index).and_then(|hash| self.solutions.lists(&file, *hash)) {
            return self.take_transforms(lists);
        }
        let before: BTreeSet<String> = self.transforms.tensors.keys().cloned().collect();
        self.find_transforms(spec, index)?;
        let note = (0..spec.stages.len()).fold(Note::default(), |all, stage| all.and(&self.noted(stage)));
        let new: Vec<String> = self.transforms.tensors.keys().filter(|name| !before.contains(*name)).cloned().collect();
        for name in new {
            self.solutions.note(&name, Step::Scales, &note)?;
        }
        let lists: Vec<(String, Vec<f64>)> = self
            .transforms
            .to_tensors()
            .into_iter()
            .map(|(name, values)| match values {
                Values::F64(values) => (format!("f64:{name}"), values),
                Values::F32(values) => (format!("f32:{name}"), values.into_iter().map(f64::from).collect()),
            })
            .collect();
        let hash = self.solutions.keep_lists(&file, &lists)?;
        self.solutions.append(Line::Transforms { block: index, hash })?;
        Ok(())
    }

    fn take_transforms(&mut self, lists: Vec<(String, Vec<f64>)>) -> Result<()> {
        let values = lists.into_iter().filter_map(|(name, values)| {
            let (kind, name) = name.split_once(':')?;
            let values = match kind {
                "f32" => Values::F32(values.into_iter().map(|value| value as f32).collect()),
                _ => Values::F64(values),
            };
            Some((name.to_owned(), values))
        });
        self.transforms = super::transforms::Transforms::from_tensors(values)?;
        Ok(())
    }

    fn find_transforms(&mut self, spec: &BlockSpec, index: usize) -> Result<()> {
        let all = folds(spec);
        for (stage, description) in spec.stages.iter().enumerate() {
            let here: Vec<&Fold> = all.iter().filter(|fold| fold.stage == stage && fold.expert.is_none()).collect();
            let key = Key { block: index, stage, expert: None };
            if self.needs(&here, &description.linears).is_some()
                && let Some(moments) = self.statistics(key)
            {
                self.choose(&here, &description.linears, moments.statistics())?;
            }
            let Some(experts) = spec.experts.as_ref().filter(|_| description.kind == Kind::Experts) else { continue };
            for (expert, (inputs, output)) in experts.inputs.iter().zip(&experts.outputs).enumerate() {
                let key = |hidden| Key { expert: Some((expert, hidden)), ..key };
                if self.needs(&[], inputs).is_some()
                    && let Some(mut moments) = self.statistics(key(false)).filter(|moments| moments.count > 0)
                {
                    // The fold in front has been chosen for all experts together.
                    if let Some(scales) = inputs.first().and_then(|linear| self.transforms.columns(linear)) {
                        moments.divide(scales);
                    }
                    self.choose(&[], inputs, moments.statistics())?;
                }
                let here: Vec<&Fold> =
                    all.iter().filter(|fold| fold.stage == stage && fold.expert == Some(expert)).collect();
                let linears = std::slice::from_ref(output);
                if self.needs(&here, linears).is_some()
                    && let Some(moments) = self.statistics(key(true)).filter(|moments| moments.count > 0)
                {
                    self.choose(&here, linears, moments.statistics())?;
                }
            }
        }
        Ok(())
    }

    /// What the transforms need of a block's inputs.
    pub(super) fn fold_inputs(&self, spec: &BlockSpec) -> Vec<Input> {
        let all = folds(spec);
        inputs(spec, self.tokens(), &|stage, expert, linears| {
            // Only the hidden activations of experts have folds of their own.
            let here: Vec<&Fold> = all.iter().filter(|fold| fold.stage == stage && fold.expert == expert).collect();
            let own = here.iter().all(|fold| fold.consumers.iter().all(|linear| linears.contains(linear)));
            self.needs(if own { &here } else { &[] }, linears)
        })
    }

    /// What has to be gathered for these folds and linears; nothing where no rule wants them.
    fn needs(&self, folds: &[&Fold], linears: &[LinearSpec]) -> Option<Wanted> {
        let rules = &self.job.solve.transforms;
        let mut wanted = Wanted::default();
        let mut any = false;
        for (index, rule) in rules.iter().enumerate() {
            let used = folds.iter().any(|fold| self.wanted(index, fold));
            let clips = matches!(&rule.settings, Settings::Awq(settings) if settings.clip)
                && linears.iter().any(|linear| rule.linears.contains(&linear.weight));
            any |= used || clips;
            match &rule.settings {
                Settings::Awq(_) => wanted.hessian |= used || clips,
                Settings::SmoothQuantPlus(settings) => wanted.hessian |= used && settings.refine,
                Settings::SmoothQuant(settings) => {
                    wanted.sample |= used && settings.strength == smoothquant::Strength::Search;
                }
                _ => {}
            }
        }
        any.then_some(wanted)
    }

    /// Runs every rule over the folds at one input; statistics follow each fold exactly.
    fn choose(&mut self, folds: &[&Fold], linears: &[LinearSpec], mut statistics: OwnedStatistics) -> Result<()> {
        for rule in 0..self.job.solve.transforms.len() {
            let settings = self.job.solve.transforms[rule].settings.clone();
            let taken: Vec<&Fold> = folds.iter().copied().filter(|fold| self.wanted(rule, fold)).collect();
            for fold in taken {
                let scales = self.scales(fold, &settings, &statistics.view())?;
                let job = self.job;
                let used = self.transforms.apply_fold(fold, &scales, job.source, |name| {
                    let unit = job.plan.units.iter().find(|unit| unit.name == name)?;
                    unit.outputs.first().map(|output| output.spec.dtype)
                })?;
                statistics = rescale_statistics(&statistics.view(), &fold.sharing().spread(&used));
            }
            if let Settings::Awq(settings) = &settings
                && settings.clip
            {
                self.clip(rule, linears, &statistics.view())?;
            }
        }
        Ok(())
    }

    /// Reads the consumers as they are now and chooses.
    fn scales(&self, fold: &Fold, settings: &Settings, statistics: &FoldStatistics<'_>) -> Result<Vec<f64>> {
        let weights = self.read_now(&fold.consumers)?;
        let encodes: Vec<Option<&Encode>> =
            fold.consumers.iter().map(|linear| self.encodes.get(linear.weight.as_str()).copied()).collect();
        let quantizers: Vec<_> = encodes.iter().map(|encode| quantizer(*encode, fold.width)).collect();
        let consumers: Vec<Consumer<'_>> = weights
            .iter()
            .zip(&encodes)
            .zip(&quantizers)
            .map(|((weights, encode), quantize)| Consumer {
                weights: &weights.values,
                rows: weights.rows,
                quantize: quantize.as_ref(),
                group: encode.and_then(group),
                input: encode.map_or(InputFormat::Exact, input_format),
            })
            .collect();
        let sharing = fold.sharing();
        Ok(match settings {
            Settings::SmoothQuant(settings) => match settings.strength {
                smoothquant::Strength::Given(strength) => {
                    smoothquant::fold_scales(statistics, &consumers, sharing, strength)
                }
                smoothquant::Strength::Search => smoothquant::search(statistics, &consumers, sharing).scales,
            },
            Settings::SmoothQuantPlus(settings) => {
                let strength = self.solutions.found.get(STRENGTH).copied().unwrap_or(0.5);
                if settings.refine {
                    smoothquant_plus::refine(statistics, &consumers, sharing, strength, settings.step).scales
                } else {
                    smoothquant_plus::scales(statistics, &consumers, sharing, strength)
                }
            }
            Settings::Awq(settings) => awq::scales(statistics, &consumers, sharing, settings.grid).scales,
            _ => vec![1.0; fold.channels],
        })
    }

    fn read_now(&self, linears: &[LinearSpec]) -> Result<Vec<Matrix>> {
        let now = Transformed { inner: self.job.source, transforms: &self.transforms, clipped: false };
        Ok(linears.iter().map(|linear| linear.read_weight(&now)).collect::<std::result::Result<_, _>>()?)
    }

    /// Clips the groups of integer codes, but not of queries and keys, whose products amplify what is lost.
    fn clip(&mut self, rule: usize, linears: &[LinearSpec], statistics: &FoldStatistics<'_>) -> Result<()> {
        for linear in linears {
            if !self.job.solve.transforms[rule].linears.contains(&linear.weight) || is_query_or_key(&linear.weight) {
                continue;
            }
            let Some(encode) = self.encodes.get(linear.weight.as_str()).copied() else { continue };
            let Some(codec) = encode.choice.codec.scalar() else { continue };
            let integer = matches!(codec.element, Element::Integer { .. });
            let by_row = matches!(codec.granularity, Granularity::Group(_) | Granularity::Channel);
            // GPTQ chooses its scales itself.
            if !integer || !by_row || !matches!(encode.settings, Settings::Rtn(_)) {
                continue;
            }
            let weights = self.read_now(std::slice::from_ref(linear))?.remove(0);
            let quantize = quantizer(Some(encode), linear.columns);
            let consumer = Consumer {
                weights: &weights.values,
                rows: weights.rows,
                quantize: quantize.as_ref(),
                group: group(encode),
                input: InputFormat::Exact,
            };
            if let Some(limits) = awq::clip(statistics, &consumer) {
                let width = group(encode).unwrap_or(linear.columns);
                self.transforms.set_clip(linear, width, limits)?;
            }
        }
        Ok(())
    }
}

fn is_query_or_key(weight: &str) -> bool {
    ["q_proj", "k_proj", "q_b_proj", "query", "key", "c_attn", "qkv_proj"].iter().any(|word| weight.contains(word))
}

/// The columns that share a scale.
fn group(encode: &Encode) -> Option<usize> {
    match encode.choice.codec.scalar()?.granularity {
        Granularity::Group(size) => Some(size),
        _ => None,
    }
}

/// From weights and their number of rows to what would be stored.
type Quantize<'a> = dyn Fn(&[f32], usize) -> Vec<f32> + Sync + 'a;

/// What the codec would give back of some rows; the rows themselves where the linear stays dense.
pub(super) fn quantizer(encode: Option<&Encode>, columns: usize) -> Box<Quantize<'_>> {
    match encode {
        None => Box::new(|weights, _| weights.to_vec()),
        Some(encode) => Box::new(move |weights, rows| {
            let matrix = Matrix { rows, columns, values: weights.to_vec() };
            match nearest(encode, "", &matrix) {
                Ok(stored) => stored.decoded.values,
                Err(SolveFailure::Codec { .. } | _) => matrix.values,
            }
        }),
    }
}
