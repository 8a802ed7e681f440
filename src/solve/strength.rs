//! SmoothQuant+: one strength for the whole model, by the whole model's error.

use super::{
    Moments, Wanted,
    driver::Worker,
    fold::folds,
    folding::STRENGTH,
    quantized::Quantized,
    record::Line,
    transforms::{Transformed, Transforms},
};
use crate::{
    Result,
    evaluate::{Evaluated, Windows, evaluate_model},
    forward::{Block, Expert, Kind, Routing, WeightSource},
    passes::{Settings, folding::Consumer, smoothquant, smoothquant_plus},
};

/// Sequences that each strength is tried on: a share of all, at least so many.
const LEAST_SEQUENCES: usize = 8;

impl Worker<'_> {
    /// Finds the strength that `smoothquant_plus` starts from, or takes up what was found: the one of the grid with the
    /// least divergence of the rounded model from the original one (arXiv 2312.03788, §3).
    pub(super) fn find_strength(&mut self) -> Result<()> {
        let rules = &self.job.solve.transforms;
        let Some(rule) = rules.iter().position(|rule| matches!(rule.settings, Settings::SmoothQuantPlus(_))) else {
            return Ok(());
        };
        if self.solutions.found.contains_key(STRENGTH) {
            return Ok(());
        }
        let Settings::SmoothQuantPlus(settings) = rules[rule].settings.clone() else { return Ok(()) };
        let job = self.job;
        let sequences = &job.solve.tokens.sequences;
        let count = (sequences.len() / 4).max(LEAST_SEQUENCES).min(sequences.len());
        let sequences = &sequences[..count];
        let maxima = self.all_maxima(sequences)?;
        let model = &job.solve.model;
        let mut best: Option<(f64, f64)> = None;
        for strength in smoothquant_plus::candidates(settings.step) {
            self.check_stop(0)?;
            (job.progress)(0, model.blocks.len(), &format!("trying strength {strength:.2}"));
            let mut transforms = Transforms::default();
            for (fold, absmax) in &maxima {
                if !rules[rule].takes(fold) {
                    continue;
                }
                let mut weights = Vec::new();
                for linear in &fold.consumers {
                    weights.push(linear.read_weight(job.source)?);
                }
                let identity = |weights: &[f32], _: usize| weights.to_vec();
                let consumers: Vec<Consumer<'_>> = weights
                    .iter()
                    .map(|weights| Consumer {
                        weights: &weights.values,
                        rows: weights.rows,
                        quantize: &identity,
                        group: None,
                        input: crate::forward::InputFormat::Exact,
                    })
                    .collect();
                let columns = smoothquant::column_maxima(&consumers, fold.width);
                let scales = smoothquant::scales(absmax, &columns, fold.sharing(), strength);
                transforms.apply_fold(fold, &scales, job.source, |_| None)?;
            }
            let scaled = Transformed { inner: job.source, transforms: &transforms, clipped: false };
            let rounded = Quantized { inner: &scaled, encodes: &self.encodes };
            let figures = evaluate_model(
                Evaluated { model, source: &rounded },
                Some(Evaluated { model, source: job.source }),
                Windows::all(sequences),
                &job.solve.limits,
                job.device,
                None,
                &|_, _| {},
            )?;
            let loss = figures.comparison.map_or(f64::INFINITY, |comparison| {
                if model.has_head() { comparison.divergence.value } else { comparison.hidden_error }
            });
            if best.is_none_or(|(least, _)| loss < least) {
                best = Some((loss, strength));
            }
        }
        let (_, strength) = best.unwrap_or((0.0, 0.5));
        self.solutions.append(Line::Found { what: STRENGTH.to_owned(), value: strength })?;
        Ok(())
    }

    /// The largest magnitudes at every fold of the model, original weights, in one pass over some sequences.
    fn all_maxima(&self, sequences: &[Vec<u32>]) -> Result<Vec<(super::fold::Fold, Vec<f32>)>> {
        let job = self.job;
        let (model, source): (_, &dyn WeightSource) = (&job.solve.model, job.source);
        let store = model.embed_all(source, sequences, &job.solve.limits, None)?;
        let mut found = Vec::new();
        for spec in &model.blocks {
            let all = folds(spec);
            let block = Block::read(spec, source, store.length())?;
            for (stage, description) in spec.stages.iter().enumerate() {
                let columns =
                    all.iter().find(|fold| fold.stage == stage && fold.expert.is_none()).map(|fold| fold.width);
                let mut moments = columns.map(|columns| Moments::new(columns, 0, Wanted::default()));
                let linears = description
                    .linears
                    .iter()
                    .map(|linear| linear.read(source))
                    .collect::<std::result::Result<Vec<_>, _>>()?;
                let mut of_experts = Vec::new();
                if description.kind == Kind::Experts {
                    let count = spec.experts.as_ref().map_or(0, |experts| experts.outputs.len());
                    for expert in 0..count {
                        let Some(loaded) = Expert::read(spec, expert, source)? else { continue };
                        let mut hidden = Moments::new(loaded.output.weight.columns, 0, Wanted::default());
                        for batch in 0..store.batches() {
                            let mut state = store.read(batch)?;
                            let routing = Routing::of(&state, expert);
                            if !routing.tokens.is_empty() {
                                hidden.add(&loaded.hidden(&routing.gather(&state)), None);
                                loaded.add_to(&mut state, expert);
                                store.write(batch, &state)?;
                            }
                        }
                        of_experts.push((expert, hidden.absmax));
                    }
                }
                for batch in 0..store.batches() {
                    let mut state = store.read(batch)?;
                    if let Some(moments) = &mut moments {
                        let x = if description.kind == Kind::Experts {
                            state.carried[0].clone()
                        } else {
                            block.input(stage, &state)
                        };
                        moments.add(&x, None);
                    }
                    block.apply(stage, &mut state, &linears)?;
                    store.write(batch, &state)?;
                }
                for fold in all.iter().filter(|fold| fold.stage == stage) {
                    let absmax = match fold.expert {
                        None => moments.as_ref().map(|moments| moments.absmax.clone()),
                        Some(expert) => {
                            of_experts.iter().find(|(index, _)| *index == expert).map(|(_, absmax)| absmax.clone())
                        }
                    };
                    found.extend(absmax.map(|absmax| (fold.clone(), absmax)));
                }
            }
        }
        Ok(found)
    }
}
