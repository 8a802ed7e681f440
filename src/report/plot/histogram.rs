//! The weights of one tensor before and after.

use plotters::{
    prelude::ChartBuilder,
    series::{AreaSeries, LineSeries},
    style::{
        Color,
        text_anchor::{HPos, VPos},
    },
};

use super::{
    Entry, Plot,
    axis::{Axis, label, ticks},
    canvas::{Ink, Label, NARROW, draw, letters},
};
use crate::report::{ReportError, TensorHistogram, text};

const HEIGHT: u32 = 320;

/// How many times the tallest bin of before a bin of after may be tall: few codes make few tall bins.
const TALLEST: f64 = 3.0;

pub(super) fn plot(tensor: &TensorHistogram, here: &str, there: Option<&str>) -> Result<Plot, ReportError> {
    let tallest = |counts: &[u64]| counts.iter().copied().max().unwrap_or(0) as f64;
    let against = tensor.against.as_deref().unwrap_or_default();
    let all = tallest(&tensor.before).max(tallest(&tensor.after)).max(tallest(against)).max(1.0);
    let top = all.min(TALLEST * tallest(&tensor.before).max(1.0));
    // A tensor of one value has no width.
    let (low, high) =
        if tensor.high > tensor.low { (tensor.low, tensor.high) } else { (tensor.low - 1.0, tensor.low + 1.0) };
    let steps = |counts: &[u64]| -> Vec<(f64, f64)> {
        let width = (high - low) / counts.len().max(1) as f64;
        let edges = |(bin, &count): (usize, &u64)| {
            [bin, bin + 1].map(|edge| (low + width * edge as f64, (count as f64).min(top)))
        };
        counts.iter().enumerate().flat_map(edges).collect()
    };
    let description = format!(
        "Weights of {} from {} to {}, before and after; their standard deviation is {}.",
        tensor.name,
        text::figure(low),
        text::figure(high),
        text::figure(tensor.standard_deviation)
    );
    let marks = ticks(low, high, 5);
    let called = Label { plot: "histogram", title: &tensor.name, description: &description };
    let svg = draw(&called, (NARROW, HEIGHT), &[], |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_top(10)
            .margin_left(24)
            .margin_right(24)
            .x_label_area_size(48)
            .build_cartesian_2d(Axis::new(low, high, marks.clone()), Axis::new(0.0, top * 1.04, Vec::new()))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .disable_y_axis()
            .axis_style(Ink::Grid.colour().stroke_width(2))
            .label_style(letters(Ink::Muted, HPos::Center, VPos::Center))
            .x_label_formatter(&|weight| label(*weight, &marks))
            .draw()?;
        chart.draw_series(AreaSeries::new(steps(&tensor.before), 0.0, Ink::Before.colour()))?;
        chart.draw_series(LineSeries::new(steps(&tensor.after), Ink::Series(0).colour().stroke_width(3)))?;
        if tensor.against.is_some() {
            chart.draw_series(LineSeries::new(steps(against), Ink::Dashed(1).colour().stroke_width(3)))?;
        }
        Ok(())
    })?;
    let mut legend = vec![Entry::new(Ink::Before, "patch", "before"), Entry::new(Ink::Series(0), "line", here)];
    if let Some((there, _)) = there.zip(tensor.against.as_ref()) {
        legend.push(Entry::new(Ink::Dashed(1), "dashed", there));
    }
    let mut notes = vec![format!("{}, {}.", tensor.why, tensor.codec)];
    if tensor.folded {
        notes.push("Scales were folded into it: it differs by more than rounding.".to_owned());
    }
    if all > top {
        notes.push(format!("Bins taller than {TALLEST} times the tallest before are cut off."));
    }
    Ok(Plot { heading: tensor.name.clone(), svg, legend, note: notes.join(" ") })
}
