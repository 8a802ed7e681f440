//! Whole models: gradients of trained parameters against differences, and trainings.

use std::ops::ControlFlow;

use super::{
    differences::check,
    models::{Memory, Noise, VOCABULARY, model},
};
use crate::{
    forward::{Limits, Model},
    passes::bitdelta::{self, Share, Signs},
    reverse::{
        AdamWSettings, Budget, Decay, InUnits, Loss, MaskLogits, MaskedWeights, Moment, Objective, Parametrization,
        PerMatrixScale, PerRowScale, Real, ReverseError, Schedule, Sharpness, Trained, Training, TrainingState,
        Weighted,
    },
};

const LENGTH: usize = 8;
/// Neither saturated nor flat at these sizes.
const SOFT: Sharpness = Sharpness { scale: [1.0, 2.0], temperature: [2.0, 0.5], noise: 1.0, regularisation: 0.02 };

fn sequences(count: usize) -> Vec<Vec<u32>> {
    let mut noise = Noise::new("tokens");
    let mut token = || noise.below(VOCABULARY) as u32;
    (0..count).map(|_| (0..LENGTH).map(|_| token()).collect()).collect()
}

/// Batches of two sequences, classes in several pieces.
fn budget() -> Budget {
    let limits = Limits { batch_tokens: 2 * LENGTH, ..Limits::default() };
    Budget { limits, class_bytes: 6000, folder: Some(std::env::temp_dir()) }
}

/// A base and what became of it: every linear of every block has moved by something its own.
fn fine_tuned(kind: &str) -> (Model, Memory, Memory) {
    let (model, base) = model(kind);
    let mut tuned = base.clone();
    for linear in model.blocks.iter().flat_map(crate::forward::BlockSpec::linears) {
        let mut noise = Noise::new(&format!("{} tuned", linear.weight));
        for value in &mut tuned.0.get_mut(&linear.weight).unwrap().1 {
            let step = noise.next();
            *value += (0.25 * step * step * step) as f32;
        }
    }
    (model, base, tuned)
}

fn difference(linear: &crate::forward::LinearSpec, base: &Memory, tuned: &Memory) -> crate::forward::Matrix {
    let mut difference = linear.read_weight(tuned).unwrap();
    for (value, base) in difference.values.iter_mut().zip(linear.read_weight(base).unwrap().values) {
        *value -= base;
    }
    difference
}

#[test]
fn gradients_of_every_parametrization_agree_with_differences() {
    for (kind, loss) in [("llama", Loss::Divergence), ("gemma2", Loss::SquaredError), ("gpt2", Loss::NextToken)] {
        let (model, base, tuned) = fine_tuned(kind);
        let mut noise = Noise::new(kind);
        let mut trained: Vec<Trained<'_, f64>> = Vec::new();
        let mut parameters = Vec::new();
        for (at, linear) in model.blocks.iter().flat_map(crate::forward::BlockSpec::linears).enumerate() {
            let (rows, columns) = (linear.rows, linear.columns);
            let signs = |noise: &mut Noise| {
                let values: Vec<f32> =
                    noise.values(rows * columns, 1.0).into_iter().map(|value| value as f32).collect();
                Signs::of(rows, columns, &values)
            };
            let planes = vec![signs(&mut noise), signs(&mut noise)];
            let masks = || MaskLogits::new(rows, columns, &linear.weight, 3, SOFT).unwrap();
            let parametrization: Box<dyn Parametrization<f64>> = match at % 4 {
                0 => Box::new(InUnits { inner: PerMatrixScale { planes }, unit: 0.4 }),
                1 => Box::new(PerRowScale { planes }),
                2 => Box::new(masks()),
                _ if at % 8 == 3 => Box::new(MaskedWeights::new(masks(), 0.25)),
                _ => continue,
            };
            let scale = if at % 4 >= 2 { 1.0 } else { 0.1 };
            parameters.push(noise.values(parametrization.parameters(), scale));
            trained.push(Trained { tensor: linear.weight.clone(), parametrization });
        }
        assert!(trained.len() >= 6);
        let student = Weighted { model: &model, source: &tuned };
        let teacher = Weighted { model: &model, source: &tuned };
        let objective = Objective::new(student, Some(teacher), &base, trained, loss, budget()).unwrap();
        let (sequences, moment) = (sequences(3), Moment { step: 2, steps: 9 });
        let (_, gradients) = objective.gradient(&sequences, &parameters, moment).unwrap();
        for (at, gradient) in gradients.iter().enumerate() {
            let start = parameters[at].clone();
            check(&format!("{kind} {}", objective.trained()[at].tensor), gradient, |steps| {
                parameters[at] = start.iter().zip(steps).map(|(value, step)| value + step).collect();
                objective.gradient(&sequences, &parameters, moment).unwrap().0
            });
            parameters[at] = start;
        }
    }
}

/// All linears as one plane of signs with a scale per matrix, and the scales that BitDelta begins with.
fn scales<'a, T: Real>(model: &Model, base: &Memory, tuned: &Memory) -> (Vec<Trained<'a, T>>, Vec<Vec<f32>>) {
    model
        .blocks
        .iter()
        .flat_map(crate::forward::BlockSpec::linears)
        .map(|linear| {
            let planes = bitdelta::decompose(difference(linear, base, tuned), 1, Share::Matrix, None);
            let scales = planes.iter().map(|plane| plane.scales[0]).collect();
            let planes = planes.into_iter().map(|plane| plane.signs).collect();
            let parametrization = Box::new(PerMatrixScale { planes });
            (Trained { tensor: linear.weight.clone(), parametrization: parametrization as Box<_> }, scales)
        })
        .unzip()
}

fn training(steps: u64, peak: f64) -> Training {
    Training {
        optimizer: AdamWSettings { weight_decay: 0.0, ..AdamWSettings::default() },
        schedule: Schedule { peak, last: 0.0, warmup: 2, steps, decay: Decay::Cosine },
        batch: 3,
        shuffle: Some(11),
    }
}

fn start(trained: &[Trained<'_, f32>], parameters: Vec<Vec<f32>>) -> TrainingState {
    TrainingState::new(trained.iter().map(|trained| trained.tensor.clone()).collect(), parameters)
}

#[test]
fn distilled_scales_predict_the_teacher_better() {
    for (kind, loss) in [("llama", Loss::Divergence), ("opt", Loss::SquaredError)] {
        let (model, base, tuned) = fine_tuned(kind);
        let (trained, parameters) = scales(&model, &base, &tuned);
        let mut state = start(&trained, parameters);
        let weighted = Weighted { model: &model, source: &tuned };
        let objective = Objective::new(weighted, Some(weighted), &base, trained, loss, budget()).unwrap();
        let sequences = sequences(12);
        let whole =
            |state: &TrainingState| objective.gradient(&sequences, &state.parameters, Moment::default()).unwrap().0;
        let before = whole(&state);
        let mut steps = 0;
        training(40, 0.01)
            .run(&objective, &mut state, &sequences, &mut |report, state| {
                assert_eq!((report.step, state.step()), (steps, steps + 1));
                steps += 1;
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        let after = whole(&state);
        assert_eq!(steps, 40);
        // A few scales cannot do more about a difference of thousands of weights.
        assert!(after < 0.97 * before, "{kind}: {before} before, {after} after");
    }
}

#[test]
fn training_finds_the_scales_that_made_the_teacher() {
    let (model, base) = model("qwen3");
    let mut tuned = base.clone();
    let (mut trained, mut parameters): (Vec<Trained<'_, f32>>, Vec<Vec<f32>>) = (Vec::new(), Vec::new());
    for (at, linear) in model.blocks.iter().flat_map(crate::forward::BlockSpec::linears).enumerate() {
        let noise = Noise::new(&linear.weight).values(linear.weights(), 1.0);
        let signs =
            Signs::of(linear.rows, linear.columns, &noise.iter().map(|value| *value as f32).collect::<Vec<_>>());
        for (value, noise) in tuned.0.get_mut(&linear.weight).unwrap().1.iter_mut().zip(noise) {
            *value += if noise >= 0.0 { 0.1 } else { -0.1 };
        }
        // Too small and too large in turn, one set of scales for all and one for each row.
        let parametrization: Box<dyn Parametrization<f32>> = match at % 2 {
            0 => Box::new(PerMatrixScale { planes: vec![signs] }),
            _ => Box::new(PerRowScale { planes: vec![signs] }),
        };
        parameters.push(vec![if at % 3 == 0 { 0.15 } else { 0.06 }; parametrization.parameters()]);
        trained.push(Trained { tensor: linear.weight.clone(), parametrization });
    }
    let mut state = start(&trained, parameters);
    let weighted = Weighted { model: &model, source: &tuned };
    let objective = Objective::new(weighted, Some(weighted), &base, trained, Loss::Divergence, budget()).unwrap();
    let (mut losses, sequences) = (Vec::new(), sequences(12));
    training(150, 0.01)
        .run(&objective, &mut state, &sequences, &mut |report, _| {
            losses.push(report.loss);
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    assert!(losses[149] < 0.01 * losses[0], "{} first, {} last", losses[0], losses[149]);
    let scales = state.parameters.concat();
    let error = scales.iter().map(|scale| f64::from(scale - 0.1).powi(2)).sum::<f64>() / scales.len() as f64;
    assert!(error.sqrt() < 0.01, "{}", error.sqrt());
}

#[test]
fn a_training_that_is_stopped_goes_on_to_the_same_bytes() {
    let (model, base, tuned) = fine_tuned("qwen2");
    let weighted = Weighted { model: &model, source: &tuned };
    let sequences = sequences(7);
    let run = |threads: usize, stop: Option<u64>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (trained, parameters) = scales(&model, &base, &tuned);
            let mut state = start(&trained, parameters);
            let counts: Vec<usize> = state.parameters.iter().map(Vec::len).collect();
            let objective =
                Objective::new(weighted, Some(weighted), &base, trained, Loss::Divergence, budget()).unwrap();
            if let Some(stop) = stop {
                let mut saved = Vec::new();
                training(6, 0.01)
                    .run(&objective, &mut state, &sequences, &mut |report, state| {
                        saved = state.to_bytes()?;
                        Ok(if report.step + 1 == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                    })
                    .unwrap();
                assert_eq!(state.step(), stop);
                state = TrainingState::from_bytes(&saved, &state.names, &counts).unwrap();
            }
            let go_on = &mut |_: &_, _: &_| Ok(ControlFlow::Continue(()));
            training(6, 0.01).run(&objective, &mut state, &sequences, go_on).unwrap();
            assert_eq!(state.step(), 6);
            state.to_bytes().unwrap()
        })
    };
    let whole = run(2, None);
    assert!(whole == run(1, Some(1)) && whole == run(3, Some(4)));
}

#[test]
fn masks_are_learned() {
    let (model, base, _) = fine_tuned("llama");
    let weighted = Weighted { model: &model, source: &base };
    let sharpness = Sharpness { scale: [20.0, 100.0], temperature: [2.0, 0.05], noise: 1.0, regularisation: 0.0 };
    let (mut trained, mut parameters): (Vec<Trained<'_, f32>>, Vec<Vec<f32>>) = (Vec::new(), Vec::new());
    for linear in model.blocks.iter().flat_map(crate::forward::BlockSpec::linears) {
        let masks = MaskLogits::new(linear.rows, linear.columns, &linear.weight, 5, sharpness).unwrap();
        parameters.push(masks.initial(None, 3.0));
        trained.push(Trained { tensor: linear.weight.clone(), parametrization: Box::new(masks) });
    }
    let mut state = start(&trained, parameters);
    let objective = Objective::new(weighted, Some(weighted), &base, trained, Loss::Divergence, budget()).unwrap();
    let sequences = sequences(12);
    // The loss of the hard masks.
    let hard = |state: &TrainingState| {
        let mut masked = base.clone();
        for (name, logits) in state.names.iter().zip(&state.parameters) {
            let weights = &mut masked.0.get_mut(name).unwrap().1;
            let mask = MaskLogits::mask(logits);
            assert!(mask.chunks(4).all(|quad| quad.iter().filter(|keep| **keep).count() == 2));
            assert_eq!(mask.len(), weights.len());
            weights.iter_mut().zip(mask).for_each(|(weight, keep)| *weight *= f32::from(u8::from(keep)));
        }
        let student = Weighted { model: &model, source: &masked };
        let nothing: Vec<Trained<'_, f32>> = Vec::new();
        let objective = Objective::new(student, Some(weighted), &base, nothing, Loss::Divergence, budget()).unwrap();
        objective.gradient(&sequences, &[], Moment::default()).unwrap().0
    };
    let before = hard(&state);
    let go_on = &mut |_: &_, _: &_| Ok(ControlFlow::Continue(()));
    training(120, 0.02).run(&objective, &mut state, &sequences, go_on).unwrap();
    let after = hard(&state);
    assert!(after < 0.6 * before, "{before} before, {after} after");
}

#[test]
fn a_prior_is_the_first_choice() {
    let masks = MaskLogits::new(30, 40, "weight", 1, Sharpness::default()).unwrap();
    let quads = [[true, false, false, true], [false, true, true, false], [false, false, true, true]];
    let prior: Vec<bool> = (0..300).flat_map(|quad| quads[quad * 7 % 3]).collect();
    let agree = |logits: &[f32]| {
        let mask = MaskLogits::mask(logits);
        mask.chunks(4).zip(prior.chunks(4)).filter(|(mask, prior)| mask == prior).count()
    };
    // Three deviations ahead of those that share one weight, the largest of six is nearly always the prior's.
    assert!(agree(&masks.initial(Some(&prior), 3.0)) > 270);
    assert!(agree(&masks.initial(None, 3.0)) < 100);
    assert_eq!(masks.initial(None, 3.0), masks.initial(None, 3.0));
    assert!(MaskLogits::new(3, 6, "weight", 1, Sharpness::default()).is_none());
}

#[test]
fn every_sequence_comes_once_per_epoch() {
    let training = training(9, 0.1);
    let epoch = |epoch: u64| -> Vec<usize> { (0..3).flat_map(|at| training.sequences_of(epoch * 3 + at, 8)).collect() };
    for at in 0..4 {
        let mut seen = epoch(at);
        assert_ne!(seen, epoch(at + 1));
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..8));
    }
    assert_eq!(Training::steps_of(4, 8, 3), 12);
    assert_eq!(Training { shuffle: None, ..training }.sequences_of(5, 8), [6, 7]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (model, base, tuned) = fine_tuned("llama");
    let weighted = Weighted { model: &model, source: &tuned };
    let make = |tensor: &str, rows: usize| {
        let planes = vec![Signs::of(rows, 16, &vec![1.0; rows * 16])];
        let trained =
            vec![Trained { tensor: tensor.to_owned(), parametrization: Box::new(PerMatrixScale { planes }) as Box<_> }];
        Objective::<f32>::new(weighted, Some(weighted), &base, trained, Loss::Divergence, budget())
    };
    assert!(matches!(make("model.layers.7.mlp.up_proj.weight", 24), Err(ReverseError::Unknown { .. })));
    let up = "model.layers.1.mlp.up_proj.weight";
    assert!(matches!(make(up, 23), Err(ReverseError::Shape { expected: 24, found: 23, .. })));
    let objective = make(up, 24).unwrap();
    let error = Objective::<f32>::new(weighted, None, &base, Vec::new(), Loss::SquaredError, budget()).err();
    assert!(matches!(error, Some(ReverseError::NoTeacher)));
    let moment = Moment::default();
    let short = vec![vec![1, 2, 3], vec![1, 2]];
    assert!(matches!(objective.gradient(&short, &[vec![0.1]], moment), Err(ReverseError::Sequences { .. })));
    let outside = vec![vec![VOCABULARY as u32]];
    assert!(matches!(objective.gradient(&outside, &[vec![0.1]], moment), Err(ReverseError::Sequences { .. })));
    assert!(matches!(objective.gradient(&sequences(1), &[vec![0.1; 2]], moment), Err(ReverseError::Shape { .. })));

    let state = TrainingState::new(vec![up.to_owned()], vec![vec![0.1]]);
    let bytes = state.to_bytes().unwrap();
    let names = [up.to_owned()];
    assert_eq!(TrainingState::from_bytes(&bytes, &names, &[1]).unwrap(), state);
    for (bytes, names, counts) in [
        (&bytes[..bytes.len() - 1], &names[..], [1]),
        (&bytes[..], &["other".to_owned()][..], [1]),
        (&bytes[..], &names[..], [2]),
    ] {
        assert!(matches!(TrainingState::from_bytes(bytes, names, &counts), Err(ReverseError::Saved { .. })));
    }
}
