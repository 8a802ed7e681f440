//! The tables of a report, as HTML, Markdown and model cards show them.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Artifact, Report, text};
use crate::cli::grouped;

/// Rows of the table of tensors that are furthest from their source.
const WORST: usize = 10;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Names from the artifact or the recipe, set as code.
    Name,
    /// Words.
    Text,
    /// Sentences, which may be broken into lines.
    Prose,
    /// Figures, aligned right.
    Number,
}

/// A heading with what stands below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Column {
    pub(super) heading: String,
    pub(super) kind: Kind,
}

/// A table: its cells are plain text, escaped by whoever writes them out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Table {
    pub(super) label: &'static str,
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    fn new(label: &'static str, columns: Vec<(&str, Kind)>, rows: Vec<Vec<String>>) -> Self {
        let column = |(heading, kind): (&str, Kind)| Column { heading: heading.to_owned(), kind };
        Self { label, columns: columns.into_iter().map(column).collect(), rows }
    }
}

/// The facts, a column for each artifact.
pub(super) fn summary(report: &Report) -> Table {
    let artifacts: Vec<&Artifact> = report.artifacts().collect();
    let row = |what: &str, of: &dyn Fn(&Artifact) -> String| {
        std::iter::once(what.to_owned()).chain(artifacts.iter().map(|artifact| of(artifact))).collect::<Vec<_>>()
    };
    let or_none = |figure: Option<String>| figure.unwrap_or_else(|| text::NONE.to_owned());
    let rows = vec![
        row("made of", &|a| or_none(a.model.clone())),
        row("architecture", &|a| format!("{}, {} layers", a.architecture, a.blocks)),
        row("weights", &|a| grouped(a.totals.weights)),
        row("layout", &|a| a.layout.as_str().to_owned()),
        row("tensors", &|a| {
            format!("{}, {} compressed", grouped(a.totals.tensors), grouped(a.totals.compressed_tensors))
        }),
        row("size of all tensors before", &|a| text::bytes(a.totals.source_bytes)),
        row("size of all tensors after", &|a| text::bytes(a.totals.artifact_bytes)),
        row("ratio", &|a| or_none(a.size_ratio.map(|ratio| format!("{ratio:.2}")))),
        row("bits per weight, compressed tensors", &|a| or_none(a.totals.bits_per_weight.map(text::bits))),
        row("mean relative error", &|a| or_none(a.mean_relative_error.map(text::relative))),
        row("mean signal to noise", &|a| {
            or_none(a.mean_relative_error.map(|error| text::decibels(error, a.mean_snr_db)))
        }),
        row("fallbacks", &|a| a.fallbacks.len().to_string()),
        row("written by", &|a| format!("{} {}", a.tool.name, a.tool.version)),
    ];
    let mut columns = vec![("", Kind::Text)];
    columns.extend(artifacts.iter().map(|artifact| (artifact.name.as_str(), Kind::Text)));
    Table::new("Summary", columns, rows)
}

/// Sizes by role.
pub(super) fn roles(artifact: &Artifact) -> Table {
    let rows = artifact.roles.iter().map(|role| {
        vec![
            role.role.clone(),
            role.codecs.join(", "),
            grouped(role.tensors),
            text::bytes(role.source_bytes),
            text::bytes(role.bytes),
            text::bits(role.bits_per_weight),
        ]
    });
    let columns = vec![
        ("role", Kind::Name),
        ("stored as", Kind::Text),
        ("tensors", Kind::Number),
        ("before", Kind::Number),
        ("after", Kind::Number),
        ("bits per weight", Kind::Number),
    ];
    Table::new("Size by role", columns, rows.collect())
}

/// Relative error, a row for each layer and a column for each role.
pub(super) fn layers(artifact: &Artifact) -> Option<Table> {
    let roles = changed_roles(std::iter::once(artifact));
    let layers: BTreeSet<usize> = artifact.layers.iter().map(|error| error.layer).collect();
    let rows = layers.into_iter().map(|layer| {
        let cell = |role: &String| {
            let error = artifact.layers.iter().find(|error| error.layer == layer && &error.role == role);
            error.map_or_else(|| text::NONE.to_owned(), |error| text::relative(error.relative_error))
        };
        std::iter::once(layer.to_string()).chain(roles.iter().map(cell)).collect()
    });
    let mut columns = vec![("layer", Kind::Number)];
    columns.extend(roles.iter().map(|role| (role.as_str(), Kind::Number)));
    (!roles.is_empty()).then(|| Table::new("Relative error by layer", columns, rows.collect()))
}

/// Roles that are changed in any layer, in the order of roles.
pub(super) fn changed_roles<'a>(artifacts: impl Iterator<Item = &'a Artifact>) -> Vec<String> {
    let mut roles: Vec<String> = Vec::new();
    for artifact in artifacts {
        let changed = |role: &&String| artifact.layers.iter().any(|error| &error.role == *role);
        for role in artifact.roles.iter().map(|size| &size.role).filter(changed) {
            if !roles.contains(role) {
                roles.push(role.clone());
            }
        }
    }
    roles
}

/// The tensors furthest from their source.
pub(super) fn worst(artifact: &Artifact) -> Option<Table> {
    let rows: Vec<Vec<String>> = artifact
        .worst_first()
        .into_iter()
        .take(WORST)
        .map(|row| {
            let relative = row.relative_error.unwrap_or(0.0);
            vec![
                row.name.clone(),
                row.codec.clone(),
                text::bits(row.bits_per_weight),
                text::relative(relative),
                text::decibels(relative, row.snr_db),
                text::figure(row.max_abs.unwrap_or(0.0)),
            ]
        })
        .collect();
    let columns = vec![
        ("tensor", Kind::Name),
        ("stored as", Kind::Text),
        ("bits per weight", Kind::Number),
        ("relative error", Kind::Number),
        ("signal to noise", Kind::Number),
        ("largest difference", Kind::Number),
    ];
    (!rows.is_empty()).then(|| Table::new("Furthest from their source", columns, rows))
}

/// The largest changes from the artifact beside it.
pub(super) fn changes(report: &Report) -> Option<Table> {
    let (comparison, against) = report.comparison.as_ref().zip(report.against.as_ref())?;
    let rows: Vec<Vec<String>> = comparison
        .largest
        .iter()
        .map(|change| {
            vec![
                change.name.clone(),
                format!("{} → {}", change.codec_against, change.codec),
                format!("{} → {}", text::bytes(change.bytes_against), text::bytes(change.bytes)),
                text::relative(change.relative_error_against),
                text::relative(change.relative_error),
                match (change.snr_db_against, change.snr_db) {
                    (Some(before), Some(after)) => format!("{:+.2} dB", after - before),
                    _ => text::NONE.to_owned(),
                },
            ]
        })
        .collect();
    let (there, here) = (format!("error, {}", against.name), format!("error, {}", report.artifact.name));
    let columns = vec![
        ("tensor", Kind::Name),
        ("stored as", Kind::Text),
        ("size", Kind::Number),
        (there.as_str(), Kind::Number),
        (here.as_str(), Kind::Number),
        ("signal to noise", Kind::Number),
    ];
    (!rows.is_empty()).then(|| Table::new("Largest changes", columns, rows))
}

/// What was evaluated.
pub(super) fn evaluations(report: &Report) -> Option<Table> {
    let all = &report.evaluations;
    let compared = all.iter().any(|row| row.hidden_relative_error.is_some() || row.mean_kl_divergence.is_some());
    let rows = all.iter().map(|row| {
        let mut cells = vec![row.name.clone(), text::with_error(row.perplexity, row.perplexity_standard_error, 4)];
        if compared {
            let share = |value: Option<f64>| value.map_or_else(|| text::NONE.to_owned(), text::percent);
            cells.extend([
                text::with_error(row.mean_kl_divergence, row.mean_kl_divergence_standard_error, 5),
                text::with_error(row.p99_kl_divergence, None, 4),
                share(row.top1_agreement),
            ]);
        }
        cells.extend([grouped(row.tokens), format!("{} × {}", grouped(row.windows), row.context), row.text.join(", ")]);
        cells
    });
    let mut columns = vec![("model", Kind::Name), ("perplexity", Kind::Number)];
    if compared {
        columns.extend([
            ("KL divergence, nats", Kind::Number),
            ("99th percentile", Kind::Number),
            ("top-1 agreement", Kind::Number),
        ]);
    }
    columns.extend([("tokens", Kind::Number), ("windows", Kind::Number), ("text", Kind::Text)]);
    (!all.is_empty()).then(|| Table::new("Perplexity", columns, rows.collect()))
}

/// What was done differently than asked for.
pub(super) fn fallbacks(artifact: &Artifact) -> Option<Table> {
    let rows: Vec<Vec<String>> = artifact
        .fallbacks
        .iter()
        .map(|fallback| {
            vec![fallback.kind.clone(), fallback.tensor.clone(), grouped(fallback.count), fallback.message.clone()]
        })
        .collect();
    let columns =
        vec![("what", Kind::Name), ("tensor", Kind::Name), ("times", Kind::Number), ("in a sentence", Kind::Prose)];
    (!rows.is_empty()).then(|| Table::new("Fallbacks", columns, rows))
}
