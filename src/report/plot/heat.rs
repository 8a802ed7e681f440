//! The error of every layer and role, as colours: a row for each role, a column for each layer.

use plotters::{
    element::Rectangle,
    style::{
        ShapeStyle,
        text_anchor::{HPos, VPos},
    },
};

use super::{
    Entry, Plot,
    axis::{ends, whole_ticks},
    canvas::{HEAT_STEPS, Ink, Label, WIDTH, draw, letters},
    of_artifact,
};
use crate::report::{Artifact, LayerError, Report, ReportError, tables::changed_roles, text};

/// Height of a row.
const ROW: i32 = 50;

/// Width of a letter, at most.
const LETTER: f64 = 14.6;

/// Width from which on a cell shows its figure.
const WIDE_CELL: f64 = 74.0;

/// Largest error over the smallest from which on steps are factors, not differences.
const LOGARITHMIC_FROM: f64 = 3.0;

/// Least ratio of the largest step to the smallest: differences below it are noise, and get one colour.
const LEAST_RATIO: f64 = 1.1;

/// The errors at which colours change.
struct Steps {
    /// One more than there are colours, rising.
    edges: Vec<f64>,
}

impl Steps {
    /// Steps for errors that are neither zero nor infinite.
    fn of(errors: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = ends(errors.filter(|error| *error > 0.0 && error.is_finite()))?;
        let widening = (LEAST_RATIO / (high / low)).max(1.0).sqrt();
        let (low, high) = (low / widening, high * widening);
        let edge = |step: usize| {
            let share = step as f64 / HEAT_STEPS as f64;
            if high / low > LOGARITHMIC_FROM { low * (high / low).powf(share) } else { low + (high - low) * share }
        };
        Some(Self { edges: (0..=HEAT_STEPS).map(edge).collect() })
    }

    fn step(&self, error: f64) -> usize {
        let above = self.edges[1..HEAT_STEPS].iter().filter(|edge| error >= **edge).count();
        above.min(HEAT_STEPS - 1)
    }

    fn legend(&self) -> Vec<Entry> {
        let range = |(step, edges): (usize, &[f64])| {
            let (low, high) = (text::relative(edges[0]), text::relative(edges[1]));
            let low = low.trim_end_matches(" %");
            Entry::new(Ink::Heat(step), "patch", format!("{low} to {high}"))
        };
        self.edges.windows(2).enumerate().map(range).collect()
    }
}

pub(super) fn maps(report: &Report) -> Result<Vec<Plot>, ReportError> {
    let errors = report.artifacts().flat_map(|artifact| &artifact.layers).map(|error| error.relative_error);
    let Some(steps) = Steps::of(errors) else { return Ok(Vec::new()) };
    let drawn = report.artifacts().filter(|artifact| !artifact.layers.is_empty());
    drawn.map(|artifact| map(report, artifact, &steps)).collect()
}

fn map(report: &Report, artifact: &Artifact, steps: &Steps) -> Result<Plot, ReportError> {
    let roles = changed_roles(std::iter::once(artifact));
    let layers = artifact.layers.iter().map(|error| error.layer + 1).max().unwrap_or(0).max(artifact.blocks);
    let longest = roles.iter().map(|role| role.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * LETTER) as i32 + 22;
    let top = 6;
    let bottom = top + ROW * roles.len() as i32;
    let cell = (WIDTH as f64 - 12.0 - left as f64) / layers.max(1) as f64;
    let edge = |layer: usize| left + (cell * layer as f64).round() as i32;
    let gap = if cell > 12.0 { 2 } else { 0 };
    let row_of = |role: &str| roles.iter().position(|other| other == role).unwrap_or(0) as i32;
    let says: Vec<String> = artifact
        .layers
        .iter()
        .map(|error| {
            let decibels = text::decibels(error.relative_error, error.snr_db);
            format!("{}, layer {}: {}, {decibels}", error.role, error.layer, text::relative(error.relative_error))
        })
        .collect();
    let title = of_artifact("Relative error by layer", artifact, report);
    let description = format!(
        "Relative error of {} roles in {layers} layers; darker or brighter cells are further from the source.",
        roles.len()
    );
    let label = Label { plot: "heat map", title: &title, description: &description };
    let svg = draw(&label, (WIDTH, (bottom + 78) as u32), &says, |area| {
        for (index, role) in roles.iter().enumerate() {
            let middle = top + ROW * index as i32 + ROW / 2;
            area.draw_text(role, &letters(Ink::Text, HPos::Right, VPos::Center), (left - 12, middle))?;
        }
        for error in &artifact.layers {
            let upper = top + ROW * row_of(&error.role);
            let corners = [(edge(error.layer), upper), (edge(error.layer + 1) - gap, upper + ROW - 2)];
            area.draw(&Rectangle::new(corners, ShapeStyle::from(Ink::Heat(step(steps, error)).colour()).filled()))?;
        }
        for error in artifact.layers.iter().filter(|_| cell >= WIDE_CELL) {
            let ink = Ink::HeatText(step(steps, error));
            let at = (edge(error.layer) + (cell / 2.0) as i32, top + ROW * row_of(&error.role) + ROW / 2);
            let shown = text::relative(error.relative_error);
            let shown = shown.trim_end_matches(" %");
            area.draw_text(shown, &letters(ink, HPos::Center, VPos::Center), at)?;
        }
        for layer in whole_ticks(layers, 10) {
            let at = (edge(layer as usize) + (cell / 2.0) as i32, bottom + 8);
            area.draw_text(&format!("{layer:.0}"), &letters(Ink::Muted, HPos::Center, VPos::Top), at)?;
        }
        let middle = (left + WIDTH as i32 - 12) / 2;
        area.draw_text("layer", &letters(Ink::Muted, HPos::Center, VPos::Top), (middle, bottom + 42))
    })?;
    let outside = artifact.tensors.iter().filter(|row| row.layer.is_none() && row.relative_error.is_some()).count();
    let note = match outside {
        0 => String::new(),
        1 => "One changed tensor lies outside of the layers.".to_owned(),
        count => format!("{count} changed tensors lie outside of the layers."),
    };
    Ok(Plot { heading: title, svg, legend: steps.legend(), note })
}

/// The colour of a cell; infinite errors are as far as can be.
fn step(steps: &Steps, error: &LayerError) -> usize {
    steps.step(error.relative_error)
}

#[cfg(test)]
mod tests {
    use super::{HEAT_STEPS, Steps};

    #[test]
    fn colours_cover_all_errors() {
        let steps = Steps::of([0.001, 0.1, 0.0, f64::INFINITY].into_iter()).unwrap();
        assert_eq!((steps.step(0.0), steps.step(0.001), steps.step(0.011)), (0, 0, 4));
        assert_eq!((steps.step(0.1), steps.step(f64::INFINITY)), (HEAT_STEPS - 1, HEAT_STEPS - 1));
        assert_eq!(steps.legend().len(), HEAT_STEPS);
        assert!(Steps::of([0.0].into_iter()).is_none());
    }

    #[test]
    fn equal_errors_get_a_colour_from_the_middle() {
        let steps = Steps::of([0.11, 0.11].into_iter()).unwrap();
        assert!((3..=4).contains(&steps.step(0.11)), "{}", steps.step(0.11));
    }
}
