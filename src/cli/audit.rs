//! `bantam audit`: what an artifact of pass `taylor_mlp` gives away.

use std::fmt::Write;

use serde::Serialize;

use super::{AuditArguments, Output, Style, meter::Meter, table::render as table};
use crate::{
    ExitCode,
    audit::{Audit, Spread, audit},
    checkpoint::Checkpoint,
};

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    #[serde(flatten)]
    audit: Audit,
}

/// Executes the command.
///
/// # Errors
/// When the artifact has nothing to audit, or an input is invalid.
pub fn execute(arguments: &AuditArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let artifact = Checkpoint::open(&arguments.artifact)?;
    let source = arguments.source.as_ref().map(|path| Checkpoint::open(path)).transpose()?;
    let meter = Meter::new(output, "recovering");
    let audit = audit(&artifact, source.as_ref(), &|done, total| meter.bytes(done, total))?;
    meter.finish();
    if output.json() {
        output.json_result(&Report { schema: "bantam.audit/1", audit })?;
    } else {
        output.result(&render(&audit, output))?;
    }
    Ok(ExitCode::Done)
}

fn render(audit: &Audit, output: &Output) -> String {
    let judged = if audit.against_source { "error" } else { "left over" };
    let figure = |spread: Spread| [spread.largest, spread.median].map(|value| format!("{value:.1e}"));
    let rows = audit.layers.iter().flat_map(|layer| {
        layer.attacks.iter().map(move |attack| {
            let [largest, median] = figure(attack.error.unwrap_or(attack.inconsistency));
            let recovered = format!("{} of {}", attack.recovered, layer.protected);
            vec![layer.name.clone(), attack.attack.to_owned(), recovered, largest, median]
        })
    });
    let headings = ["layer", "attack", "recovered", &format!("largest {judged}"), "median"];
    let mut text = table(&headings, 2, rows.collect());
    text.push_str("\n\n");
    let share = format!("{:.2} %", 100.0 * audit.recovered_share);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} of the protected columns are recovered: {} of {}",
        output.paint(Style::Red, &share),
        audit.recovered,
        audit.protected
    );
    let hardened: Vec<_> = audit.layers.iter().filter_map(|layer| layer.withheld.as_ref()).collect();
    if hardened.is_empty() {
        return text;
    }
    text.push_str("each up to a factor whose inverse the up projection has: the model computes the same\n");
    let total = |pick: fn(&crate::audit::Withheld) -> Option<usize>| -> Option<usize> {
        hardened.iter().map(|withheld| pick(withheld)).sum()
    };
    if let Some(count) = total(|withheld| withheld.guessed_magnitudes) {
        let _ = writeln!(text, "factors whose magnitude is guessed right: {count}");
    }
    if let (Some(as_they_are), Some(negative)) =
        (total(|withheld| withheld.as_they_are), total(|withheld| withheld.negative))
    {
        let _ = writeln!(text, "factors below zero: {negative}; columns where and as they were: {as_they_are}");
    }
    text
}
