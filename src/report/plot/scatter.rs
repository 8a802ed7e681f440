//! Bits per weight against error: a point for each tensor that was changed.

use std::collections::BTreeMap;

use plotters::{
    element::Circle,
    prelude::ChartBuilder,
    style::{
        Color, ShapeStyle,
        text_anchor::{HPos, VPos},
    },
};

use super::{
    Plot,
    axis::{Axis, decade_ticks, ends, label, ticks, widened},
    canvas::{Ink, Label, WIDTH, draw, letters},
    legend,
};
use crate::report::{Artifact, Report, ReportError, TensorRow, text};

const HEIGHT: u32 = 500;

/// Tensors above which a point stands for all those of a layer and role.
const MOST_POINTS: usize = 1500;

/// Largest error over the smallest from which on the axis is one of logarithms.
const LOGARITHMIC_FROM: f64 = 4.0;

/// Smallest range of bits that is shown.
const NARROWEST_BITS: f64 = 1.0;

struct Point {
    name: String,
    role: String,
    bits: f64,
    error: f64,
}

pub(super) fn plot(report: &Report, roles: &[String]) -> Result<Option<Plot>, ReportError> {
    let mut all_roles = roles.to_vec();
    let sets: Vec<Vec<Point>> = report.artifacts().map(points).collect();
    for point in sets.iter().flatten() {
        if !all_roles.contains(&point.role) {
            all_roles.push(point.role.clone());
        }
    }
    let all = || sets.iter().flatten();
    let Some((least, most)) = ends(all().map(|point| point.error)) else { return Ok(None) };
    let Some((fewest_bits, most_bits)) = ends(all().map(|point| point.bits)) else { return Ok(None) };
    let (left, right) = widened(fewest_bits, most_bits, NARROWEST_BITS);
    let logarithmic = most / least > LOGARITHMIC_FROM;
    let place = |error: f64| if logarithmic { error.log10() } else { error };
    let error = |place: f64| if logarithmic { 10_f64.powf(place) } else { place };
    let (bottom, top) = widened(place(least), place(most), if logarithmic { 0.5 } else { least * 0.2 });
    let (marks, shown) = if logarithmic {
        let ticks = decade_ticks(error(bottom), error(top));
        let shown: Vec<String> = ticks.iter().map(|&error| written(error, &text::figure(100.0 * error))).collect();
        (ticks.into_iter().map(place).collect(), shown)
    } else {
        let ticks = ticks(bottom, top, 6);
        let percent: Vec<f64> = ticks.iter().map(|error| 100.0 * error).collect();
        let shown = ticks.iter().map(|error| written(*error, &label(100.0 * error, &percent))).collect();
        (ticks, shown)
    };
    let bit_marks = ticks(left, right, 7);
    let widest = shown.iter().map(|label| label.chars().count()).max().unwrap_or(0) as u32;
    let says: Vec<String> = all()
        .map(|point| format!("{}: {} bits, {}", point.name, text::bits(point.bits), text::relative(point.error)))
        .collect();
    let title = "Bits per weight against error";
    let description = format!(
        "{} points; from {} to {} bits per weight, relative errors from {} to {}.",
        says.len(),
        text::bits(fewest_bits),
        text::bits(most_bits),
        text::relative(least),
        text::relative(most)
    );
    let svg = draw(&Label { plot: "scatter", title, description: &description }, (WIDTH, HEIGHT), &says, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_top(14)
            .margin_left(10)
            .margin_right(16)
            .x_label_area_size(76)
            .y_label_area_size(44 + 15 * widest)
            .build_cartesian_2d(Axis::new(left, right, bit_marks.clone()), Axis::new(bottom, top, marks.clone()))?;
        chart
            .configure_mesh()
            .bold_line_style(Ink::Grid.colour().stroke_width(2))
            .axis_style(Ink::Grid.colour().stroke_width(2))
            .label_style(letters(Ink::Muted, HPos::Center, VPos::Center))
            .axis_desc_style(letters(Ink::Muted, HPos::Center, VPos::Center))
            .x_label_formatter(&|bits| label(*bits, &bit_marks))
            .y_label_formatter(&|place| {
                let index = marks.iter().position(|mark| mark == place);
                index.map_or_else(String::new, |index| shown[index].clone())
            })
            .x_desc("bits per weight")
            .y_desc("relative error")
            .draw()?;
        for (index, set) in sets.iter().enumerate() {
            let mark = |point: &Point| {
                let series = all_roles.iter().position(|role| *role == point.role).unwrap_or(0);
                let colour = Ink::Series(series).colour();
                let style =
                    if index == 0 { ShapeStyle::from(colour.mix(0.8)).filled() } else { colour.stroke_width(3) };
                Circle::new((point.bits, place(point.error)), 8, style)
            };
            chart.draw_series(set.iter().map(mark))?;
        }
        Ok(())
    })?;
    Ok(Some(Plot {
        heading: title.to_owned(),
        svg,
        legend: legend(&all_roles, ["disc", "ring"], report),
        note: note(report),
    }))
}

/// A mark of the error's axis: as percent, or as it is where it is tiny.
fn written(error: f64, percent: &str) -> String {
    if error < text::TINY { format!("{error:.1e}") } else { format!("{percent} %") }
}

fn note(report: &Report) -> String {
    let mut notes = Vec::new();
    if report.artifacts().any(|artifact| changed(artifact).count() > MOST_POINTS) {
        notes.push("A point stands for all tensors of a layer and role.".to_owned());
    }
    let rows = || report.artifacts().flat_map(|artifact| &artifact.tensors).filter_map(|row| row.relative_error);
    let off = rows().filter(|error| *error == 0.0 || !error.is_finite()).count();
    if off > 0 {
        notes.push(format!("{off} tensors with an error of zero or infinity have no place here."));
    }
    notes.join(" ")
}

fn changed(artifact: &Artifact) -> impl Iterator<Item = (&TensorRow, f64)> {
    let rows = artifact.tensors.iter().filter_map(|row| Some((row, row.relative_error?)));
    rows.filter(|(_, error)| *error > 0.0 && error.is_finite())
}

fn points(artifact: &Artifact) -> Vec<Point> {
    if changed(artifact).count() <= MOST_POINTS {
        let point = |(row, error): (&TensorRow, f64)| Point {
            name: row.name.clone(),
            role: row.role.clone(),
            bits: row.bits_per_weight,
            error,
        };
        return changed(artifact).map(point).collect();
    }
    let mut groups: BTreeMap<(&str, Option<usize>), (f64, f64, f64)> = BTreeMap::new();
    for (row, error) in changed(artifact) {
        let (weights, bits, squares) = groups.entry((&row.role, row.layer)).or_default();
        *weights += row.weights as f64;
        *bits += row.bytes as f64 * 8.0;
        *squares += error * error * row.weights as f64;
    }
    let point = |((role, layer), (weights, bits, squares)): ((&str, Option<usize>), (f64, f64, f64))| Point {
        name: layer.map_or_else(|| role.to_owned(), |layer| format!("{role}, layer {layer}")),
        role: role.to_owned(),
        bits: bits / weights,
        error: (squares / weights).sqrt(),
    };
    groups.into_iter().map(point).collect()
}
