//! Signal-to-noise ratio against depth: a line for each role.

use plotters::{
    element::Circle,
    prelude::ChartBuilder,
    series::LineSeries,
    style::{Color, ShapeStyle},
};

use super::{
    Entry, Plot,
    axis::{Axis, ends, label, ticks, whole_ticks, widened},
    canvas::{Ink, Label, WIDTH, draw, letters},
    legend,
};
use crate::report::{Artifact, Report, ReportError};
use plotters::style::text_anchor::{HPos, VPos};

const HEIGHT: u32 = 500;

/// Layers up to which every point is marked.
const MARKED_LAYERS: usize = 40;

/// Smallest range that is shown, in decibels.
const NARROWEST_DB: f64 = 2.0;

struct Line<'a> {
    artifact: &'a Artifact,
    role: &'a str,
    ink: Ink,
    points: Vec<(f64, f64)>,
}

pub(super) fn plot(report: &Report, roles: &[String]) -> Result<Option<Plot>, ReportError> {
    let inks: [fn(usize) -> Ink; 2] = [Ink::Series, Ink::Dashed];
    let lines: Vec<Line<'_>> = report
        .artifacts()
        .zip(inks)
        .flat_map(|(artifact, ink)| {
            roles.iter().enumerate().map(move |(index, role)| Line {
                artifact,
                role,
                ink: ink(index),
                points: points(artifact, role),
            })
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    let all = || lines.iter().flat_map(|line| line.points.iter().copied());
    let Some((low, high)) = ends(all().map(|(_, decibels)| decibels)) else { return Ok(None) };
    let (low, high) = widened(low, high, NARROWEST_DB);
    let layers = report.artifacts().map(|artifact| artifact.blocks).max().unwrap_or(0);
    let layers = layers.max(all().map(|(layer, _)| layer as usize + 1).max().unwrap_or(0));
    let marked = layers <= MARKED_LAYERS;
    let says: Vec<String> = lines
        .iter()
        .filter(|_| marked)
        .flat_map(|line| {
            line.points.iter().map(|(layer, decibels)| {
                let name = if report.against.is_some() { format!("{}: ", line.artifact.name) } else { String::new() };
                format!("{name}{}, layer {layer}: {decibels:.2} dB", line.role)
            })
        })
        .collect();
    let marks = ticks(low, high, 6);
    let widest = marks.iter().map(|mark| label(*mark, &marks).chars().count()).max().unwrap_or(0) as u32;
    let title = "Signal to noise against depth";
    let description = format!(
        "Signal-to-noise ratio of {layers} layers in decibels, a line for each of {} roles; from {low:.1} to {high:.1}.",
        roles.len()
    );
    let svg = draw(&Label { plot: "depth", title, description: &description }, (WIDTH, HEIGHT), &says, |area| {
        let across = Axis::new(-0.5, layers as f64 - 0.5, whole_ticks(layers, 10));
        let mut chart = ChartBuilder::on(area)
            .margin_top(14)
            .margin_left(10)
            .margin_right(16)
            .x_label_area_size(76)
            .y_label_area_size(44 + 15 * widest)
            .build_cartesian_2d(across, Axis::new(low, high, marks.clone()))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(Ink::Grid.colour().stroke_width(2))
            .axis_style(Ink::Grid.colour().stroke_width(2))
            .label_style(letters(Ink::Muted, HPos::Center, VPos::Center))
            .axis_desc_style(letters(Ink::Muted, HPos::Center, VPos::Center))
            .x_label_formatter(&|layer| format!("{layer:.0}"))
            .y_label_formatter(&|decibels| label(*decibels, &marks))
            .x_desc("layer")
            .y_desc("dB")
            .draw()?;
        for line in &lines {
            chart.draw_series(LineSeries::new(
                line.points.iter().copied(),
                line.ink.colour().stroke_width(if marked { 4 } else { 3 }),
            ))?;
        }
        for line in lines.iter().filter(|_| marked) {
            let fill = ShapeStyle::from(filled(line.ink).colour()).filled();
            chart.draw_series(line.points.iter().map(|&point| Circle::new(point, 6, fill)))?;
        }
        Ok(())
    })?;
    let legend: Vec<Entry> = legend(roles, ["line", "dashed"], report);
    let exact = report.artifacts().flat_map(|artifact| &artifact.layers).filter(|error| error.snr_db.is_none()).count();
    let note = if exact > 0 {
        format!("{exact} points that are exact or infinite have no place here.")
    } else {
        String::new()
    };
    Ok(Some(Plot { heading: title.to_owned(), svg, legend, note }))
}

/// The colour of a line's marks, which are never dashed.
fn filled(ink: Ink) -> Ink {
    match ink {
        Ink::Dashed(index) => Ink::Series(index),
        ink => ink,
    }
}

fn points(artifact: &Artifact, role: &str) -> Vec<(f64, f64)> {
    let errors = artifact.layers.iter().filter(|error| error.role == role);
    errors.filter_map(|error| Some((error.layer as f64, error.snr_db?))).collect()
}
