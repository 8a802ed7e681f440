//! `bantam init`: a commented recipe that fits a model and this machine.

use std::{fmt::Write as _, io::Write as _, path::Path};

use super::{CliError, InitArguments, Output, job, plan_text::bytes_text};
use crate::{
    ExitCode,
    checkpoint::is_hub_id,
    layout::LogicalCheckpoint,
    model::ModelMap,
    plan::{Inputs, Options, Plan},
    platform,
    recipe::{Overrides, Recipe},
    remote::is_remote,
};

/// Where the recipe is written without `--out`.
const DEFAULT_OUT: &str = "recipe.toml";

/// Formats in the order of preference; taken is the first that leaves the fewest tensors dense.
const CANDIDATES: [Candidate; 4] = [
    Candidate { rule: "use = \"int4\"", says: "4-bit weights in groups of 128" },
    Candidate {
        rule: "use = \"int4\"\ngroup_size = 64",
        says: "4-bit weights in groups of 64, since 128 does not divide all rows",
    },
    Candidate {
        rule: "use = \"int4\"\ngroup_size = 32",
        says: "4-bit weights in groups of 32, since 64 does not divide all rows",
    },
    Candidate { rule: "use = \"int8\"", says: "8-bit weights, one scale a row, since no groups divide all rows" },
];

struct Candidate {
    rule: &'static str,
    says: &'static str,
}

/// Executes the command.
///
/// # Errors
/// When the model is invalid, no candidate fits it, or the file is there or cannot be written.
pub fn execute(arguments: &InitArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let source = job::open_model(&arguments.model, None)?;
    let map = ModelMap::of(&source);
    let out = arguments.out.clone().unwrap_or_else(|| DEFAULT_OUT.into());
    let model = if is_hub_id(&arguments.model) || is_remote(&arguments.model) {
        arguments.model.clone()
    } else {
        std::path::absolute(&arguments.model)?
    };
    let mut best: Option<(usize, &Candidate, Plan)> = None;
    let mut refused = None;
    for candidate in &CANDIDATES {
        let text = recipe(&model, &map, candidate, None);
        let parsed = Recipe::parse_with(&text, &out, &Overrides::default())?;
        let inputs = Inputs { recipe: &parsed, source: &source, model: &map };
        match Plan::new(inputs, &Options { threads: job::threads(None), ..Options::default() }) {
            Ok(plan) if best.as_ref().is_none_or(|(fallbacks, ..)| plan.fallbacks.len() < *fallbacks) => {
                best = Some((plan.fallbacks.len(), candidate, plan));
            }
            Ok(_) => {}
            Err(error) => refused = Some(error),
        }
    }
    let Some((_, candidate, plan)) = best else {
        return Err(refused.map_or_else(
            || CliError::Usage { message: "no recipe fits this model".into(), hint: None }.into(),
            anyhow::Error::from,
        ));
    };
    let text = recipe(&model, &map, candidate, Some((&plan, &source)));
    write_new(&out, &text)?;
    let name = out.display();
    output.result(&format!(
        "wrote {name}: {}, {} → {}\nnext: bantam plan {name}, then bantam run {name}",
        candidate.says,
        bytes_text(plan.source_bytes),
        bytes_text(plan.artifact_bytes())
    ))?;
    Ok(ExitCode::Done)
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, text: &str) -> Result<(), CliError> {
    let written = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    written.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => CliError::Usage {
            message: format!("`{}` is there already", path.display()),
            hint: Some("give another file with --out".into()),
        },
        _ => CliError::Environment { message: format!("cannot write `{}`: {source}", path.display()), hint: None },
    })
}

/// The recipe's text; with the plan also what it comes to.
fn recipe(model: &Path, map: &ModelMap, candidate: &Candidate, planned: Option<(&Plan, &LogicalCheckpoint)>) -> String {
    let name = model.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    // Writing to a String cannot fail. JSON's quotes and escapes are TOML's too.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = String::new();
    let _ = writeln!(text, "# {}: {} blocks.", map.architecture, map.blocks);
    if let Some((plan, source)) = planned {
        let weights: u64 = plan.units.iter().map(|unit| unit.weights).sum();
        let _ = writeln!(
            text,
            "# {} weights, {} as stored, {} as this recipe writes them.",
            super::grouped(weights),
            bytes_text(plan.source_bytes),
            bytes_text(plan.artifact_bytes())
        );
        let _ = writeln!(
            text,
            "# The run takes {} of memory with {} threads, at least {}; this machine has {}.",
            bytes_text(plan.memory.peak_bytes),
            plan.memory.threads,
            bytes_text(plan.memory.smallest_bytes),
            platform::total_memory_bytes().map_or_else(|| "an unknown amount".into(), bytes_text),
        );
        if source.tensors().iter().any(|tensor| !tensor.is_plain()) {
            let _ = writeln!(text, "# The model is compressed already: its weights are decoded and encoded again.");
        }
    }
    let _ = writeln!(text, "schema = 1\nmodel = {}\n", quoted(&model.to_string_lossy()));
    let _ = writeln!(text, "# {}; the head and the embeddings stay as they are.", candidate.says);
    let _ = writeln!(text, "[[pass]]\n{}\n", candidate.rule);
    if let Some((plan, _)) = planned {
        for fallback in &plan.fallbacks {
            let _ = writeln!(text, "# {}", fallback.message);
        }
        let _ = writeln!(
            text,
            "# Closer to the original, with a text like those that the model will see, instead of the pass above:\n\
             # [[pass]]\n# use = \"gptq\"\n# bits = 4\n#\n\
             # [calibration]\n# text = [\"calibration.txt\"]\n# sequences = 128\n# sequence_length = 2048\n"
        );
    }
    let _ =
        writeln!(text, "[artifact]\nout = {}\nlayout = \"compressed-tensors\"", quoted(&format!("{name}-compressed")));
    text
}
