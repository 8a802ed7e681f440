//! The stage as its callers see it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Job, Outcome, Report, Subject, TrainError, train};
use crate::{
    forward::{BlockSpec, Model},
    passes::bitdelta::Signs,
    reverse::{
        AdamWSettings, Decay, Loss, PerRowScale, Schedule, Training, Weighted,
        tests::models::{Memory, Noise, VOCABULARY, model},
    },
};

const STEPS: u64 = 12;

/// A student whose linears have signs too many, each with the scale 0.1 where none would be right.
fn subjects(model: &Model) -> Vec<Subject<'static>> {
    let subject = |linear: &crate::forward::LinearSpec| {
        let noise: Vec<f32> =
            Noise::new(&linear.weight).values(linear.weights(), 1.0).iter().map(|value| *value as f32).collect();
        let planes = vec![Signs::of(linear.rows, linear.columns, &noise)];
        let parametrization = Box::new(PerRowScale { planes });
        Subject { tensor: linear.weight.clone(), parametrization, start: vec![0.1; linear.rows] }
    };
    model.blocks.iter().flat_map(BlockSpec::linears).map(subject).collect()
}

/// Trains in `folder`; asked to stop behind step `stop`.
fn run(
    (model, weights): (&Model, &Memory),
    folder: &std::path::Path,
    identity: &str,
    stop: Option<u64>,
) -> (Result<Outcome, TrainError>, u64) {
    let mut noise = Noise::new("tokens");
    let mut token = || noise.below(VOCABULARY) as u32;
    let sequences: Vec<Vec<u32>> = (0..9).map(|_| (0..8).map(|_| token()).collect()).collect();
    let (flag, steps) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    let schedule = Schedule { peak: 0.01, last: 0.0, warmup: 0, steps: STEPS, decay: Decay::Cosine };
    let weighted = Weighted { model, source: weights };
    let outcome = train(Job {
        student: weighted,
        teacher: Some(weighted),
        bases: weights,
        subjects: subjects(model),
        loss: Loss::Divergence,
        training: Training { optimizer: AdamWSettings::default(), schedule, batch: 3, shuffle: Some(5) },
        sequences: &sequences,
        folder: folder.to_owned(),
        identity: identity.to_owned(),
        stop: &flag,
        progress: &|step, of, loss| {
            assert!(step <= of && of == STEPS && loss > 0.0);
            steps.fetch_add(1, Ordering::SeqCst);
            flag.store(stop == Some(step), Ordering::SeqCst);
        },
    });
    (outcome, steps.into_inner())
}

#[test]
fn a_stage_that_is_stopped_goes_on_where_it_was_and_only_there() {
    let (model, weights) = model("llama");
    let at = (&model, &weights);
    let folder = || tempfile::tempdir().unwrap();
    let (whole, steps) = run(at, folder().path(), "a", None);
    let whole = whole.unwrap();
    assert_eq!((steps, whole.report.steps), (STEPS, STEPS));
    assert!(whole.report.last_loss < 0.8 * whole.report.first_loss, "{:?}", whole.report);
    let stopped = folder();
    let (outcome, _) = run(at, stopped.path(), "a", Some(5));
    assert!(matches!(outcome, Err(TrainError::Stopped { step: 5, steps: STEPS })));
    let file = stopped.path().join("training");
    let saved = std::fs::read(&file).unwrap();
    let (outcome, steps) = run(at, stopped.path(), "a", None);
    assert_eq!((outcome.unwrap(), steps), (whole.clone(), STEPS - 5));
    // Done already.
    let (outcome, steps) = run(at, stopped.path(), "a", None);
    assert_eq!((outcome.unwrap(), steps), (whole.clone(), 0));
    // Of something else, torn, or changed: from the beginning.
    std::fs::write(&file, &saved).unwrap();
    assert_eq!(run(at, stopped.path(), "b", None).1, STEPS);
    let mut changed = saved.clone();
    *changed.last_mut().unwrap() ^= 1;
    for bytes in [&saved[..saved.len() / 2], &changed, b"{}\n", b""] {
        std::fs::write(&file, bytes).unwrap();
        let (outcome, steps) = run(at, stopped.path(), "a", None);
        assert_eq!((outcome.unwrap(), steps), (whole.clone(), STEPS));
    }
}

#[test]
fn a_report_compares_the_first_tenth_with_the_last() {
    let losses: Vec<f64> = (0..30).map(|step| 30.0 - f64::from(step)).collect();
    assert_eq!(Report::of(&losses), Report { steps: 30, first_loss: 29.0, last_loss: 2.0 });
    assert_eq!(Report::of(&[4.0]), Report { steps: 1, first_loss: 4.0, last_loss: 4.0 });
}
