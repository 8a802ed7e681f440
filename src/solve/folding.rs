//! Chooses the scales of a block's folds from the original model's activations.

use super::{
    Moments, SolveFailure, TransformRule, Wanted,
    driver::{Pending, Worker},
    fold::{Fold, folds},
    matrices::{input_format, nearest},
    record::Line,
    transforms::{Transformed, Values},
};
use crate::{
    Result,
    codec::{Element, Granularity},
    forward::{Block, BlockSpec, Expert, InputFormat, Kind, Linear, LinearSpec, Matrix, Routing, State},
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
            Settings::Rtn(_) | Settings::Gptq(_) => return false,
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
        let file = format!("transforms-{index}.safetensors");
        if let Some(lists) = self.solutions.transforms.get(&index).and_then(|hash| self.solutions.lists(&file, *hash)) {
            return self.take_transforms(lists);
        }
        self.find_transforms(spec, index)?;
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
        let source = self.job.source;
        let all = folds(spec);
        let block = Block::read(spec, source, self.length())?;
        let mut pending: Option<Pending> = None;
        for (stage, description) in spec.stages.iter().enumerate() {
            self.check_stop(index)?;
            (self.job.progress)(
                index,
                self.job.solve.model.blocks.len(),
                &format!("folds, {}", description.kind.name()),
            );
            let here: Vec<&Fold> = all.iter().filter(|fold| fold.stage == stage && fold.expert.is_none()).collect();
            let columns = here
                .first()
                .map_or_else(|| description.linears.first().map_or(0, |linear| linear.columns), |fold| fold.width);
            let wanted = self.needs(&here, &description.linears);
            let mut moments = wanted.map(|wanted| Moments::new(columns, self.tokens(), wanted));
            self.original_pass(&block, stage, pending.take(), |state| {
                if let Some(moments) = &mut moments {
                    let x = if description.kind == Kind::Experts {
                        state.carried[0].clone()
                    } else {
                        block.input(stage, state)
                    };
                    moments.add(&x, None);
                }
            })?;
            if let Some(mut moments) = moments {
                moments.finish();
                self.choose(&here, &description.linears, moments.statistics())?;
            }
            if description.kind == Kind::Experts {
                self.expert_folds(spec, &all, stage)?;
            }
            let linears = description
                .linears
                .iter()
                .map(|linear| linear.read(source))
                .collect::<std::result::Result<Vec<Linear>, _>>()?;
            pending = Some(Pending { stage, dense: linears, compressed: Vec::new() });
        }
        Ok(())
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
                Settings::Rtn(_) | Settings::Gptq(_) => {}
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
            Settings::Rtn(_) | Settings::Gptq(_) => vec![1.0; fold.channels],
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
            let integer = matches!(encode.choice.codec.element, Element::Integer { .. });
            let by_row = matches!(encode.choice.codec.granularity, Granularity::Group(_) | Granularity::Channel);
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

    /// The folds inside each routed expert.
    fn expert_folds(&mut self, spec: &BlockSpec, all: &[Fold], stage: usize) -> Result<()> {
        let count = spec.experts.as_ref().map_or(0, |experts| experts.outputs.len());
        for expert in 0..count {
            let here: Vec<&Fold> =
                all.iter().filter(|fold| fold.stage == stage && fold.expert == Some(expert)).collect();
            let outputs = spec.experts.as_ref().map(|experts| experts.outputs[expert].clone());
            let linears: Vec<LinearSpec> = outputs.into_iter().collect();
            let Some(wanted) = self.needs(&here, &linears) else { continue };
            let Some(loaded) = Expert::read(spec, expert, self.job.source)? else { continue };
            let columns = linears.first().map_or(0, |linear| linear.columns);
            let mut moments = Moments::new(columns, self.tokens() / count.max(1), wanted);
            for batch in 0..self.batches() {
                let state = self.original().working.read(batch)?;
                let routing = Routing::of(&state, expert);
                if !routing.tokens.is_empty() {
                    moments.add(&loaded.hidden(&routing.gather(&state)), None);
                }
            }
            if moments.count > 0 {
                moments.finish();
                self.choose(&here, &linears, moments.statistics())?;
            }
        }
        Ok(())
    }

    /// One pass of the original model over all states, within the block in hand.
    fn original_pass(
        &mut self,
        block: &Block<'_>,
        stage: usize,
        pending: Option<Pending>,
        mut look: impl FnMut(&State),
    ) -> Result<()> {
        for batch in 0..self.batches() {
            let stream = self.original_mut();
            let mut state = if stage == 0 { stream.current.read(batch)? } else { stream.working.read(batch)? };
            if let Some(pending) = &pending {
                block.apply(pending.stage, &mut state, &pending.dense)?;
            }
            if stage == 0 || pending.is_some() {
                stream.working.write(batch, &state)?;
            }
            look(&state);
        }
        Ok(())
    }
}

fn is_query_or_key(weight: &str) -> bool {
    ["q_proj", "k_proj", "q_b_proj", "query", "key", "c_attn", "qkv_proj"].iter().any(|word| weight.contains(word))
}

/// The columns that share a scale.
fn group(encode: &Encode) -> Option<usize> {
    match encode.choice.codec.granularity {
        Granularity::Group(size) => Some(size),
        _ => None,
    }
}

/// What the codec would give back of some rows; the rows themselves where the linear stays dense.
pub(super) fn quantizer<'a>(
    encode: Option<&'a Encode>,
    columns: usize,
) -> Box<dyn Fn(&[f32], usize) -> Vec<f32> + Sync + 'a> {
    match encode {
        None => Box::new(|weights, _| weights.to_vec()),
        Some(encode) => Box::new(move |weights, rows| {
            let matrix = Matrix { rows, columns, values: weights.to_vec() };
            match nearest(encode, "", &matrix) {
                Ok((.., decoded)) => decoded.values,
                Err(SolveFailure::Codec { .. } | _) => matrix.values,
            }
        }),
    }
}
