//! The page about a model.

use std::fmt::Write;

use super::{Report, sparse};
use crate::cli::{
    ByteSize, Output, Style, grouped,
    table::{render as table, wrapped},
};

/// Fallbacks that are listed one by one.
const LISTED_FALLBACKS: usize = 10;

pub(super) fn render(report: &Report, output: &Output) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let mut line = |text: String| {
        let _ = writeln!(page, "{text}");
    };
    let unknown = if report.known_architecture { "" } else { " (unknown to bantam)" };
    line(output.paint(Style::Bold, &format!("{}{unknown}", report.architecture)));
    line(String::new());
    line(entry("path", &report.path));
    line(entry("blocks", &report.blocks.to_string()));
    line(entry("parameters", &format!("{} in {} tensors", grouped(report.parameters), report.tensors.len())));
    line(entry("size", &format!("{} in {}", ByteSize(report.bytes), files(report))));
    line(entry("types", &types(report)));
    line(entry("head", if report.tied_embeddings { "tied to the embedding" } else { "its own weights" }));
    if let Some(method) = &report.quantization_method {
        line(entry("method", method));
    }
    if let Some(artifact) = &report.artifact {
        let tool = format!("{} {}, layout {}", artifact.tool.name, artifact.tool.version, artifact.layout.as_str());
        line(entry("written by", &tool));
        let source = artifact.totals.source_bytes;
        let share = 100.0 * artifact.totals.artifact_bytes as f64 / source.max(1) as f64;
        line(entry("source", &format!("{}, this is {share:.1} % of it", ByteSize(source))));
    }
    if let Some(compressed) = &report.compressed {
        let weights = grouped(compressed.parameters);
        let bits = compressed.bits_per_weight;
        line(entry("compressed", &format!("{weights} weights at {bits:.3} bits each, all overhead counted")));
    }
    if let Some(cache) = &report.cache {
        let constant = cache.constant_text().map_or_else(String::new, |text| format!("; {text}"));
        line(entry("cache", &format!("{}{constant}", cache.text())));
    }
    if !report.sparse.is_empty() {
        line(entry("sparse", &sparse::text(&report.sparse)));
    }
    if let Some(delta) = &report.delta {
        line(entry("stored", &delta.text()));
        if let Some(saved) = delta.saved_text() {
            line(entry("saved", &saved));
        }
    }
    line(String::new());
    line(roles(report));
    if let Some(artifact) = report.artifact.as_ref().filter(|artifact| !artifact.fallbacks.is_empty()) {
        line(String::new());
        line(output.paint(Style::Yellow, &format!("{} fallbacks", artifact.fallbacks.len())));
        for fallback in artifact.fallbacks.iter().take(LISTED_FALLBACKS) {
            line(wrapped(&format!("  {}: {}: {}", fallback.tensor, fallback.kind, fallback.message), 4));
        }
        if artifact.fallbacks.len() > LISTED_FALLBACKS {
            line(format!("  and {} more (all of them with --json)", artifact.fallbacks.len() - LISTED_FALLBACKS));
        }
    }
    for note in &report.notes {
        line(String::new());
        line(wrapped(&format!("note: {note}"), 6));
    }
    page
}

const LABEL_WIDTH: usize = 13;

fn entry(label: &str, text: &str) -> String {
    // Protect the label's padding from the wrapping, which joins words with single spaces.
    let wrapped = wrapped(&format!("{} {text}", "x".repeat(LABEL_WIDTH - 1)), LABEL_WIDTH);
    format!("{label:<LABEL_WIDTH$}{}", &wrapped[LABEL_WIDTH..])
}

fn files(report: &Report) -> String {
    match report.files.as_slice() {
        [file] => file.name.clone(),
        files => format!("{} files", files.len()),
    }
}

fn types(report: &Report) -> String {
    let mut types: Vec<_> = report.dtypes.iter().collect();
    types.sort_by_key(|(_, stored)| std::cmp::Reverse(stored.bytes));
    let parts: Vec<String> = types
        .iter()
        .map(|(name, stored)| format!("{name} {}", ByteSize(stored.bytes).to_string().replace(' ', "\u{a0}")))
        .collect();
    parts.join(", ").replace('\u{a0}', " ")
}

fn roles(report: &Report) -> String {
    let rows = report.roles.iter().map(|row| {
        vec![
            row.role.clone(),
            row.codec.clone(),
            row.tensors.to_string(),
            grouped(row.parameters),
            ByteSize(row.bytes).to_string(),
            format!("{:.3}", row.bits_per_weight),
        ]
    });
    table(&["role", "stored as", "tensors", "parameters", "size", "bits/weight"], 2, rows.collect())
}
