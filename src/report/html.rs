//! The HTML form: one file that needs nothing else, no network and no script.

use minijinja::{AutoEscape, Environment, Value, context, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;

use super::{
    Artifact, Report, ReportError,
    markdown::comparison_text,
    plot::{self, Plot},
    tables::{self, Table},
    text,
};

const TEMPLATE: &str = include_str!("report.html.j2");
const STYLE: &str = include_str!("report.css");

/// All that the template shows.
#[derive(Debug, Serialize)]
struct Page<'a> {
    title: String,
    subtitle: String,
    tool: String,
    tiles: Vec<Tile>,
    summary: Table,
    comparison: Option<String>,
    sizes: Vec<Sizes>,
    heat_maps: Vec<Plot>,
    plots: Vec<Plot>,
    worst: Option<Table>,
    changes: Option<Table>,
    histograms: Vec<Plot>,
    histogram_notes: &'a [String],
    perplexity: Option<Table>,
    fallbacks: Vec<Named<Option<Table>>>,
    recipes: Vec<Named<String>>,
}

/// A figure that stands out.
#[derive(Debug, Serialize)]
struct Tile {
    value: String,
    what: &'static str,
    against: Option<String>,
}

/// Something of one artifact; named where there are two.
#[derive(Debug, Serialize)]
struct Named<T> {
    name: Option<String>,
    body: T,
}

/// Sizes by role, with the lengths of their bars in percent of the longest.
#[derive(Debug, Serialize)]
struct Sizes {
    name: Option<String>,
    table: Table,
    bars: Vec<[String; 2]>,
}

/// The report as one HTML file.
///
/// # Errors
/// [`ReportError`] when a plot or the page cannot be written.
pub fn html(report: &Report) -> Result<String, ReportError> {
    let artifact = &report.artifact;
    let page = Page {
        title: artifact.name.clone(),
        subtitle: subtitle(report),
        tool: format!("{} {}", report.tool.name, report.tool.version),
        tiles: tiles(report),
        summary: tables::summary(report),
        comparison: report.comparison.as_ref().map(comparison_text),
        sizes: report.artifacts().map(|artifact| sizes(artifact, report)).collect(),
        heat_maps: plot::heat_maps(report)?,
        plots: plot::lines_and_points(report)?,
        worst: tables::worst(artifact),
        changes: tables::changes(report),
        histograms: plot::histograms(report)?,
        histogram_notes: &report.histograms.notes,
        perplexity: tables::evaluations(report),
        fallbacks: report.artifacts().map(|a| Named { name: named(a, report), body: tables::fallbacks(a) }).collect(),
        recipes: report.artifacts().map(|a| Named { name: named(a, report), body: text::recipe(&a.recipe) }).collect(),
    };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|source| ReportError::Page { source })?;
    environment.set_syntax(syntax);
    let rendered = environment.add_template("report.html", TEMPLATE).and_then(|()| {
        let page = Value::from(Serde(&page));
        environment.get_template("report.html")?.render(context! { page, style => STYLE })
    });
    let mut text = rendered.map_err(|source| ReportError::Page { source })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn named(artifact: &Artifact, report: &Report) -> Option<String> {
    report.against.is_some().then(|| artifact.name.clone())
}

fn subtitle(report: &Report) -> String {
    let artifact = &report.artifact;
    let made_of = artifact.model.as_ref().map_or_else(String::new, |model| format!("made of {model}, "));
    let against = report.against.as_ref().map_or_else(String::new, |other| format!(", beside {}", other.name));
    format!("{made_of}{}, layout {}{against}", artifact.architecture, artifact.layout.as_str())
}

fn tiles(report: &Report) -> Vec<Tile> {
    type Shown = fn(&Artifact) -> Option<String>;
    let all: [(&'static str, Shown); 6] = [
        ("all tensors before", |a| Some(text::bytes(a.totals.source_bytes))),
        ("all tensors after", |a| Some(text::bytes(a.totals.artifact_bytes))),
        ("compression ratio", |a| Some(format!("{:.2}", a.size_ratio?))),
        ("bits per weight, where compressed", |a| a.totals.bits_per_weight.map(text::bits)),
        ("mean relative error", |a| a.mean_relative_error.map(text::relative)),
        ("fallbacks", |a| Some(a.fallbacks.len().to_string())),
    ];
    let tile = |(what, shown): (&'static str, Shown)| {
        let against = report.against.as_ref().map(|other| shown(other).unwrap_or_else(|| text::NONE.to_owned()));
        Some(Tile { value: shown(&report.artifact)?, what, against })
    };
    all.into_iter().filter_map(tile).collect()
}

fn sizes(artifact: &Artifact, report: &Report) -> Sizes {
    let longest = artifact.roles.iter().map(|role| role.source_bytes.max(role.bytes)).max().unwrap_or(0).max(1) as f64;
    let width = |bytes: u64| format!("{:.2}", 100.0 * bytes as f64 / longest);
    Sizes {
        name: named(artifact, report),
        table: tables::roles(artifact),
        bars: artifact.roles.iter().map(|role| [width(role.source_bytes), width(role.bytes)]).collect(),
    }
}
