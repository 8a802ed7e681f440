//! `bantam run`: compresses a checkpoint.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    CliError, Denied, Device, Output, RunArguments,
    job::{self, Job},
    meter::Meter,
    plan_text::bytes_text,
    progress::Reporter,
};
use crate::{
    ExitCode, compute,
    plan::{Action, Plan},
    remote::{Standing, Target, Uploaded},
    run::{self, Outcome},
};

/// Executes the command.
///
/// # Errors
/// Whatever stops the run.
pub fn execute(arguments: &RunArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let asked = match arguments.device {
        Device::Auto => None,
        asked => job::open_device(asked, arguments.max_device_memory, output)?,
    };
    let planned = |device: Option<&compute::Device>| {
        job::plan(&Job {
            recipe: &arguments.recipe,
            model: arguments.model.as_ref(),
            base: arguments.base.as_ref(),
            out: arguments.out.as_ref(),
            default_out: None,
            threads: arguments.threads,
            max_memory: arguments.max_memory,
            device: device.map(|device| device.adapter().kind),
            deny: &arguments.deny,
            gathers_statistics: false,
        })
    };
    let (mut source, mut plan) = planned(asked.as_ref())?;
    let mut chosen = None;
    if arguments.device == Device::Auto {
        let open = || job::device_choice(arguments.max_device_memory).and_then(|choice| compute::Device::open(&choice));
        let run::Chosen { device, reason } = run::choose(&plan, &source, open);
        output.detail(&reason);
        // With a device's memory in the plan: where that is too much for the budget, the processor does it.
        if let Some(device) = device
            && let Ok(again) = planned(Some(&device))
        {
            (source, plan) = again;
            chosen = Some((device, reason));
        }
    }
    let device = asked.as_ref().or(chosen.as_ref().map(|(device, _)| device));
    for note in &plan.notes {
        output.warning(note);
    }
    for fallback in &plan.fallbacks {
        output.warning(&fallback.message);
    }
    let out = plan.out.clone();
    let target = Target::open(&out)?;
    if let Some(target) = &target {
        if let Standing::Artifact(folder) = target.standing()?
            && run::standing(&plan, &source, folder.path(), arguments.fresh)?.is_some()
        {
            output.result(&format!("{} is complete already: nothing to do", out.display()))?;
            return Ok(ExitCode::Done);
        }
        target.local().clone_into(&mut plan.out);
    }
    let stop = stop_flag()?;
    let reporter = Reporter::new(output, plan.units.len());
    let outcome = run::run(
        &plan,
        &source,
        &run::Options {
            fresh: arguments.fresh,
            deny_fallbacks: arguments.deny.contains(&Denied::Fallback),
            device,
            record_device: asked.is_some(),
            stop: &stop,
            progress: &reporter,
        },
    );
    reporter.finish();
    let outcome = outcome?;
    if let Some(failure) = &outcome.device_failure {
        output.warning(&format!("{failure}; what it failed at was computed on the processor"));
    }
    let mut uploaded = None;
    if let Some(target) = &target {
        let meter = Meter::new(output, "uploading");
        let done = target.upload(arguments.fresh, &|done, total| meter.bytes(done, total));
        meter.finish();
        uploaded = Some(done?);
        plan.out = out;
    }
    if output.json() {
        output.json_event(&outcome.manifest)?;
    } else {
        let mut text = summary(&plan, &outcome, uploaded.is_some());
        if let Some(Uploaded { written, kept, bytes }) = uploaded {
            // Writing to a String cannot fail.
            let _ = write!(text, "\nuploaded {written} files, {}", bytes_text(bytes));
            if kept > 0 {
                let _ = write!(text, "; {kept} were there from an earlier run");
            }
        }
        if let Some((_, reason)) = &chosen {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{reason}");
        }
        output.result(&text)?;
    }
    Ok(ExitCode::Done)
}

/// Set by the first interrupt; the second one ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(ExitCode::Interrupted as i32);
        }
        eprintln!("stopping after the tensors in hand; again to stop at once");
    })
    .map_err(|error| CliError::Environment { message: format!("cannot listen for Ctrl-C: {error}"), hint: None })?;
    Ok(stop)
}

fn summary(plan: &Plan, outcome: &Outcome, uploaded: bool) -> String {
    let totals = &outcome.manifest.totals;
    if outcome.was_complete && !uploaded {
        return format!("{} is complete already: nothing to do", plan.out.display());
    }
    // Writing to a String cannot fail.
    let mut text = format!(
        "{}: {} → {}, {} of {} tensors encoded",
        plan.out.display(),
        bytes_text(plan.source_bytes),
        bytes_text(plan.artifact_bytes()),
        totals.compressed_tensors,
        totals.tensors
    );
    let merged = plan.units.iter().filter(|unit| matches!(unit.action, Action::Merge(_))).count();
    if merged > 0 {
        let _ = write!(text, ", {merged} merged");
    }
    if let Some(bits) = totals.bits_per_weight {
        let _ = write!(text, " at {bits:.4} bits per weight");
    }
    let worst = outcome
        .manifest
        .tensors
        .iter()
        .filter_map(|tensor| Some((tensor.error?.snr_db?, &tensor.name)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((snr, name)) = worst {
        let _ = write!(text, "\nworst tensor {name}: {snr:.2} dB signal to noise");
    }
    let devices: Vec<&str> = outcome.manifest.tensors.iter().filter_map(|tensor| tensor.device.as_deref()).collect();
    if let Some(name) = devices.first() {
        let _ = write!(text, "\n{} of them on {name}", devices.len());
    }
    if outcome.resumed > 0 {
        let _ = write!(text, "\n{} tensors were taken over from the interrupted run", outcome.resumed);
    }
    for fallback in outcome.manifest.fallbacks.iter().take(10) {
        let _ = write!(text, "\nfallback {}: {}", fallback.kind, fallback.message);
    }
    text
}
