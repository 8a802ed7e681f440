//! Plots as inline SVG: drawn by `plotters`, coloured by the page's style sheet so that they follow its dark mode.

mod axis;
mod canvas;
mod depth;
mod heat;
mod histogram;
mod scatter;

use serde::Serialize;

use super::{Artifact, Report, ReportError, tables::changed_roles};
use canvas::Ink;

/// A plot with what stands around it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Plot {
    /// What it shows: its heading, or a tensor's name.
    pub(super) heading: String,
    /// The drawing: markup, escaped.
    pub(super) svg: String,
    /// What its colours mean.
    pub(super) legend: Vec<Entry>,
    /// What to know when reading it; may be empty.
    pub(super) note: String,
}

/// One colour of a plot with its meaning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Entry {
    /// A variable of the style sheet.
    pub(super) colour: String,
    /// `patch`, `line`, `dashed` or `ring`.
    pub(super) shape: &'static str,
    /// What it stands for.
    pub(super) label: String,
}

impl Entry {
    fn new(ink: Ink, shape: &'static str, label: impl Into<String>) -> Self {
        Self { colour: ink.variable(), shape, label: label.into() }
    }
}

/// Error of every layer and role, a plot for each artifact, in the same colours.
pub(super) fn heat_maps(report: &Report) -> Result<Vec<Plot>, ReportError> {
    heat::maps(report)
}

/// Signal to noise against depth, and bits per weight against error.
pub(super) fn lines_and_points(report: &Report) -> Result<Vec<Plot>, ReportError> {
    let roles = changed_roles(report.artifacts());
    let plots = [depth::plot(report, &roles)?, scatter::plot(report, &roles)?];
    Ok(plots.into_iter().flatten().collect())
}

/// Weights of the chosen tensors before and after.
pub(super) fn histograms(report: &Report) -> Result<Vec<Plot>, ReportError> {
    let against = report.against.as_ref().map(|artifact| artifact.name.as_str());
    report.histograms.tensors.iter().map(|tensor| histogram::plot(tensor, &report.artifact.name, against)).collect()
}

/// The roles' colours, in the order of roles; what tells two artifacts apart behind them.
fn legend(roles: &[String], shapes: [&'static str; 2], report: &Report) -> Vec<Entry> {
    let role = |(index, role): (usize, &String)| Entry::new(Ink::Series(index), "patch", role.clone());
    let mut entries: Vec<Entry> = roles.iter().enumerate().map(role).collect();
    if report.against.is_some() {
        let artifacts = report.artifacts().zip(shapes);
        entries.extend(artifacts.map(|(artifact, shape)| Entry::new(Ink::Text, shape, artifact.name.clone())));
    }
    entries
}

/// What a plot's heading says where each artifact has one of its own.
fn of_artifact(what: &str, artifact: &Artifact, report: &Report) -> String {
    if report.against.is_some() { format!("{what}: {}", artifact.name) } else { what.to_owned() }
}
