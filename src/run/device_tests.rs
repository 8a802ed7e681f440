//! A device that is lost while calibrating.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{Options, Outcome, Progress, Status, run};
use crate::{
    checkpoint::Checkpoint,
    compute::{DEVICE_FAILED, Device, tests::fixtures},
    layout::LogicalCheckpoint,
    manifest::OutputTensor,
    model::{ModelMap, NamedShape},
    plan::{self, Inputs, Plan},
    recipe::{Overrides, Recipe},
};

/// How much a layer's loss may differ from that of a run without a device, as a share: codes that fall to the other side of
/// a middle. Sums of which a batch is missing, or there twice, differ by far more. Codes that fall so change those of all
/// layers behind, one way or the other: what is lost in the end is compared over all layers.
const TOLERANCE: f64 = 0.03;
const LINEARS: usize = 28;

/// Destroys a device when block `block` comes.
struct Destroyer<'a> {
    device: &'a Device,
    block: usize,
}

impl Progress for Destroyer<'_> {
    fn update(&self, _status: &Status) {}

    fn calibrating(&self, block: usize, _blocks: usize, _what: &str) {
        if block >= self.block {
            self.device.destroy();
        }
    }
}

/// Runs the built-in model through GPTQ.
fn solve(folder: &Path, name: &str, device: Option<&Device>, progress: &dyn Progress) -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recipe = folder.join(format!("{name}.toml"));
    let text = format!(
        "schema = 1\n[calibration]\ntext = [\"{}\"]\nsequences = 40\nsequence_length = 128\n[[pass]]\nuse = \"gptq\"\n\
         bits = 4\ngroup_size = 64\nrefine = false\nsearch_steps = 8\n[artifact]\nlayout = \"compressed-tensors\"\n",
        root.join("fixtures/text/recipe.txt").display()
    );
    std::fs::write(&recipe, text).unwrap();
    let (model, out) = (root.join("fixtures/tiny-llama"), folder.join(name));
    let overrides = Overrides { model: Some(model), base: None, out: Some(out), default_out: None };
    let recipe = Recipe::read_with(&recipe, &overrides).unwrap();
    let source = LogicalCheckpoint::open(Checkpoint::open(&PathBuf::from(&recipe.model)).unwrap()).unwrap();
    let shapes: Vec<NamedShape> = source
        .tensors()
        .iter()
        .map(|tensor| NamedShape { name: tensor.name.clone(), shape: tensor.shape.clone() })
        .collect();
    let map = ModelMap::new(source.checkpoint().config().map(|config| &config.value), &shapes);
    let options = plan::Options { threads: 2, ..plan::Options::default() };
    let plan = Plan::new(Inputs { recipe: &recipe, source: &source, model: &map }, &options).unwrap();
    let stop = AtomicBool::new(false);
    let options = Options { fresh: false, deny_fallbacks: false, device, record_device: true, stop: &stop, progress };
    run(&plan, &source, &options).unwrap()
}

/// The layers of an artifact were solved with the same tokens and as well as those of another.
fn assert_as_good(found: &[OutputTensor], reference: &[OutputTensor]) {
    let solved = |tensor: &OutputTensor| tensor.calibration.clone().map(|solved| (tensor.name.clone(), solved));
    let (found, reference): (Vec<_>, Vec<_>) =
        (found.iter().filter_map(solved).collect(), reference.iter().filter_map(solved).collect());
    assert_eq!((found.len(), reference.len()), (LINEARS, LINEARS));
    let mut logarithms = 0.0;
    for ((name, found), (_, reference)) in found.iter().zip(&reference) {
        assert_eq!(found.tokens, reference.tokens, "{name}");
        let (a, b) = (found.loss_nearest, reference.loss_nearest);
        assert!((a / b - 1.0).abs() < TOLERANCE, "{name}: {a} and {b}");
        logarithms += (found.loss / reference.loss).ln();
    }
    let mean = (logarithms / LINEARS as f64).exp();
    assert!((mean - 1.0).abs() < TOLERANCE, "losses are {mean} times those of a run without a device");
}

#[test]
fn a_device_lost_while_calibrating_costs_no_token() {
    let Some(device) = fixtures::device(None) else { return };
    let folder = tempfile::tempdir().unwrap();
    let reference = solve(folder.path(), "here", None, &super::Silent).manifest;
    let outcome = solve(folder.path(), "lost", Some(&device), &Destroyer { device: &device, block: 2 });
    assert!(outcome.device_failure.is_some());
    assert_as_good(&outcome.manifest.tensors, &reference.tensors);
    let named: Vec<&str> = outcome
        .manifest
        .tensors
        .iter()
        .filter(|tensor| tensor.device.is_some())
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert!(
        named.len() == LINEARS / 2 && named.iter().all(|name| name.contains(".0.") || name.contains(".1.")),
        "{named:?}"
    );
    let failed = outcome.manifest.fallbacks.iter().filter(|fallback| fallback.kind == DEVICE_FAILED);
    let failed: Vec<&str> = failed.map(|fallback| fallback.tensor.as_str()).collect();
    for block in [2, 3] {
        let count = failed.iter().filter(|name| name.contains(&format!(".{block}."))).count();
        assert_eq!(count, LINEARS / 4, "{failed:?}");
    }
}

/// Whenever that is: between two batches of a pass, too.
#[test]
fn a_device_lost_at_any_time_costs_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let reference = solve(folder.path(), "here", None, &super::Silent).manifest;
    for milliseconds in [150, 400, 900, 1700] {
        let Some(device) = fixtures::device(None) else { return };
        let over = AtomicBool::new(false);
        let manifest = std::thread::scope(|scope| {
            scope.spawn(|| {
                // The first bytes on the device are the beginning.
                while device.memory_bytes().0 == 0 && !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(Duration::from_millis(milliseconds));
                device.destroy();
            });
            let outcome = solve(folder.path(), &format!("after-{milliseconds}"), Some(&device), &super::Silent);
            over.store(true, Ordering::SeqCst);
            outcome.manifest
        });
        assert_as_good(&manifest.tensors, &reference.tensors);
    }
}
