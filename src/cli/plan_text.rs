//! The plan as a page for people: what is read, what is written, what it costs, what to know.

use std::{collections::BTreeMap, fmt::Write as _};

use super::ByteSize;
use crate::plan::{Action, Plan};

/// A byte count for people.
pub(super) fn bytes_text(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Tensors of one role with one fate.
#[derive(Default)]
struct Row {
    tensors: u64,
    weights: u64,
    source_bytes: u64,
    bytes: u64,
}

/// Renders the plan in at most 80 columns.
#[must_use]
pub fn plan_text(plan: &Plan) -> String {
    let mut text = String::new();
    let free = crate::platform::free_disk_bytes(crate::plan::existing_parent(&plan.out)).ok();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} · {} → {}", plan.architecture, plan.model.display(), plan.out.display());
    let _ = writeln!(text, "layout {}, {} files", plan.layout.as_str(), plan.files.len() + plan.small_files.len());
    text.push('\n');
    let _ = writeln!(
        text,
        "{:<26}{:<18}{:>7}{:>11}{:>11}{:>7}",
        "role", "becomes", "tensors", "bytes in", "bytes out", "bpw"
    );
    for ((role, fate), row) in rows(plan) {
        let bits = row.bytes as f64 * 8.0 / (row.weights.max(1)) as f64;
        let _ = writeln!(
            text,
            "{:<26}{:<18}{:>7}{:>11}{:>11}{bits:>7.3}",
            shortened(&role, 25),
            shortened(&fate, 17),
            row.tensors,
            bytes_text(row.source_bytes),
            bytes_text(row.bytes)
        );
    }
    text.push('\n');
    let saved = 100.0 * (1.0 - plan.artifact_bytes() as f64 / plan.source_bytes.max(1) as f64);
    let _ = writeln!(
        text,
        "weights        {} → {} ({} bytes, {saved:.1} % less)",
        bytes_text(plan.source_bytes),
        bytes_text(plan.artifact_bytes()),
        plan.artifact_bytes()
    );
    let _ = writeln!(text, "encoded        {:.4} bits per weight, everything counted", plan.bits_per_weight());
    if let Some(cache) = &plan.cache {
        let _ = writeln!(text, "cache          {}", cache.text());
        if let Some(constant) = cache.constant_text() {
            let _ = writeln!(text, "               {constant}");
        }
    }
    let _ = writeln!(
        text,
        "memory         {} at most with {} threads (smallest budget {})",
        bytes_text(plan.memory.peak_bytes),
        plan.memory.threads,
        bytes_text(plan.memory.smallest_bytes)
    );
    let _ = writeln!(
        text,
        "disk           {} + {} scratch{}",
        bytes_text(plan.all_bytes()),
        bytes_text(plan.memory.scratch_disk_bytes),
        free.map_or_else(String::new, |free| format!(", {} free", bytes_text(free)))
    );
    shards(plan, &mut text);
    notes(plan, &mut text);
    text
}

fn rows(plan: &Plan) -> BTreeMap<(String, String), Row> {
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    for unit in &plan.units {
        let fate = match &unit.action {
            Action::Copy => format!("{} as is", unit.codec_name()),
            Action::Same => "the base's".to_owned(),
            Action::Rows(_) => "the base's but for rows".to_owned(),
            Action::Decode => format!("{} decoded", unit.codec_name()),
            Action::Cast => format!("{} as the layout has it", unit.codec_name()),
            Action::Transform => format!("{} scaled", unit.codec_name()),
            Action::Merge(merge) if merge.mask.is_some() => format!("{} merged, masked", unit.codec_name()),
            Action::Merge(_) => format!("{} merged", unit.codec_name()),
            Action::Encode(encode) if encode.choice.mask.is_some() => {
                format!("{} {}", encode.mask_name().unwrap_or_default(), unit.codec_name())
            }
            Action::Encode(_) => unit.codec_name(),
        };
        let row = rows.entry((without_index(&unit.role), fate)).or_default();
        row.tensors += 1;
        row.weights += unit.weights;
        row.source_bytes += unit.source_bytes;
        row.bytes += unit.bytes();
    }
    rows
}

/// `expert.17.gate` and `expert.4.gate` are one row.
fn without_index(role: &str) -> String {
    let parts: Vec<&str> = role.split('.').filter(|part| part.parse::<u64>().is_err()).collect();
    parts.join(".")
}

fn shards(plan: &Plan, text: &mut String) {
    if plan.files.len() > 1 {
        text.push('\n');
        for file in &plan.files {
            let _ = writeln!(text, "  {:<40}{:>12}", file.name, bytes_text(file.bytes));
        }
    }
}

fn notes(plan: &Plan, text: &mut String) {
    const SHOWN: usize = 10;
    if !plan.fallbacks.is_empty() {
        let _ = writeln!(text, "\n{} fallbacks (`--deny fallback` refuses them):", plan.fallbacks.len());
        for fallback in plan.fallbacks.iter().take(SHOWN) {
            let _ = writeln!(text, "  {}: {}", fallback.kind, fallback.message);
        }
        if plan.fallbacks.len() > SHOWN {
            let _ = writeln!(text, "  … and {} more (see --json)", plan.fallbacks.len() - SHOWN);
        }
    }
    for note in &plan.notes {
        let _ = writeln!(text, "note: {note}");
    }
}

fn shortened(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        text.to_owned()
    } else {
        text.chars().take(columns - 1).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::without_index;

    #[test]
    fn experts_share_a_row() {
        assert_eq!(without_index("expert.17.gate"), "expert.gate");
        assert_eq!(without_index("mlp.down"), "mlp.down");
    }
}
