//! From what `plotters` draws to what a page can hold: colours by name, a description, and what each mark says.
//!
//! `plotters` knows colours only as numbers, so a plot is drawn in numbers that no plot would use, one for each variable of
//! the style sheet, which are replaced in the finished markup. Coordinates are whole numbers: plots are drawn twice as large
//! as they are shown.

use std::fmt::Write;

use minijinja::HtmlEscape;
use plotters::{
    coord::Shift,
    prelude::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea, RGBColor, SVGBackend},
    style::{
        IntoFont, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::report::ReportError;

/// Width of a plot that is shown beside another one, in its own units.
pub(super) const WIDTH: u32 = 840;

/// Width of a plot that is shown beside two others.
pub(super) const NARROW: u32 = 560;

/// Height of a letter, in the same units; `plotters` writes it 1.24 times smaller.
const FONT: f64 = 30.0;

/// Colours of series and of heat, before they repeat.
const SERIES: usize = 10;

/// Steps of a heat map's colours.
pub(super) const HEAT_STEPS: usize = 8;

/// What is drawn on.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Why it cannot be drawn on.
pub(super) type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// A colour of the style sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Letters.
    Text,
    /// Letters that matter less.
    Muted,
    /// Lines behind the data.
    Grid,
    /// The weights before.
    Before,
    /// One of several series.
    Series(usize),
    /// The same, dashed.
    Dashed(usize),
    /// A step of a heat map.
    Heat(usize),
    /// Letters on it.
    HeatText(usize),
}

impl Ink {
    fn all() -> impl Iterator<Item = Self> {
        let series = (0..SERIES).flat_map(|index| [Self::Series(index), Self::Dashed(index)]);
        let heat = (0..HEAT_STEPS).flat_map(|step| [Self::Heat(step), Self::HeatText(step)]);
        [Self::Text, Self::Muted, Self::Grid, Self::Before].into_iter().chain(series).chain(heat)
    }

    /// The number that stands for it while drawing.
    pub(super) fn colour(self) -> RGBColor {
        let number = match self {
            Self::Text => 0,
            Self::Muted => 1,
            Self::Grid => 2,
            Self::Before => 3,
            Self::Series(index) => 0x10 + index % SERIES,
            Self::Dashed(index) => 0x20 + index % SERIES,
            Self::Heat(step) => 0x30 + step,
            Self::HeatText(step) => 0x40 + step,
        };
        RGBColor(1, 2, number as u8)
    }

    /// The variable that the style sheet sets.
    pub(super) fn variable(self) -> String {
        match self {
            Self::Text => "--text".to_owned(),
            Self::Muted => "--muted".to_owned(),
            Self::Grid => "--grid".to_owned(),
            Self::Before => "--before".to_owned(),
            Self::Series(index) | Self::Dashed(index) => format!("--series-{}", index % SERIES),
            Self::Heat(step) => format!("--heat-{step}"),
            Self::HeatText(step) => format!("--heat-text-{step}"),
        }
    }
}

/// Letters of a colour, with the point they stand at.
pub(super) fn letters(ink: Ink, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    ("sans-serif", FONT).into_font().color(&ink.colour()).pos(Pos::new(horizontal, vertical))
}

/// What a plot is called and says to those who do not see it.
pub(super) struct Label<'a> {
    /// Its name, for errors.
    pub(super) plot: &'static str,
    /// A heading.
    pub(super) title: &'a str,
    /// A sentence.
    pub(super) description: &'a str,
}

/// Draws a plot. Every rectangle and circle gets one of `says`, in the order of drawing, which browsers show on hovering.
pub(super) fn draw(
    label: &Label<'_>,
    (width, height): (u32, u32),
    says: &[String],
    paint: impl FnOnce(&Area<'_>) -> Result<(), DrawError>,
) -> Result<String, ReportError> {
    let failed = |message: String| ReportError::Draw { plot: label.plot, message };
    let mut drawn = String::new();
    {
        let area = SVGBackend::with_string(&mut drawn, (width, height)).into_drawing_area();
        paint(&area).and_then(|()| area.present()).map_err(|error| failed(error.to_string()))?;
    }
    let body = drawn.split_once(">\n").map(|(_, body)| body).ok_or_else(|| failed("nothing was drawn".to_owned()))?;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n<desc>{}</desc>\n",
        HtmlEscape(label.title),
        HtmlEscape(label.description)
    );
    let mut says = says.iter();
    for line in body.lines() {
        let tag = ["rect", "circle"].into_iter().find(|tag| line.strip_prefix('<').is_some_and(|l| l.starts_with(tag)));
        let Some((tag, start)) = tag.zip(line.strip_suffix("/>")) else {
            svg.push_str(line);
            svg.push('\n');
            continue;
        };
        let said = says.next().ok_or_else(|| failed("a mark says nothing".to_owned()))?;
        // Writing to a String cannot fail.
        let _ = writeln!(svg, "{start}><title>{}</title></{tag}>", HtmlEscape(said));
    }
    if says.next().is_some() {
        return Err(failed("a mark is missing".to_owned()));
    }
    Ok(coloured(svg))
}

/// Puts variables in the place of numbers, and leaves out what the style sheet says.
fn coloured(mut svg: String) -> String {
    for ink in Ink::all() {
        let RGBColor(red, green, blue) = ink.colour();
        let dashes = if matches!(ink, Ink::Dashed(_)) { "\" stroke-dasharray=\"10 8" } else { "" };
        let variable = format!("\"var({}){dashes}\"", ink.variable());
        svg = svg.replace(&format!("\"#{red:02X}{green:02X}{blue:02X}\""), &variable);
    }
    let size = format!(" font-size=\"{}\"", FONT / 1.24);
    for needless in [" opacity=\"1\"", " stroke=\"none\"", " font-family=\"sans-serif\"", size.as_str()] {
        svg = svg.replace(needless, "");
    }
    svg
}

#[cfg(test)]
mod tests {
    use plotters::{
        prelude::Rectangle,
        style::text_anchor::{HPos, VPos},
    };

    use super::{DrawError, HEAT_STEPS, Ink, Label, SERIES, draw, letters};

    const LABEL: Label<'_> = Label { plot: "test", title: "a <b>", description: "says \"this\"" };

    fn one_mark(says: &[String]) -> Result<String, crate::report::ReportError> {
        draw(&LABEL, (840, 100), says, |area| -> Result<(), DrawError> {
            area.draw(&Rectangle::new(
                [(1, 2), (3, 4)],
                plotters::style::ShapeStyle::from(Ink::Heat(3).colour()).filled(),
            ))?;
            area.draw_text("</svg>", &letters(Ink::Text, HPos::Left, VPos::Top), (5, 6))
        })
    }

    #[test]
    fn colours_become_variables_and_text_is_escaped() {
        let svg = one_mark(&["<script>".to_owned()]).unwrap();
        assert!(svg.starts_with("<svg viewBox=\"0 0 840 100\" role=\"img\" aria-label=\"a &lt;b&gt;\">"), "{svg}");
        assert!(svg.contains("fill=\"var(--heat-3)\"><title>&lt;script&gt;</title></rect>"), "{svg}");
        assert!(svg.contains("fill=\"var(--text)\"") && svg.contains("&lt;/svg&gt;"), "{svg}");
        assert!(!svg.contains('#') && !svg.contains("font-") && svg.trim_end().ends_with("</svg>"), "{svg}");
    }

    #[test]
    fn marks_and_what_they_say_must_fit() {
        assert!(one_mark(&[]).is_err());
        assert!(one_mark(&["a".to_owned(), "b".to_owned()]).is_err());
    }

    #[test]
    fn every_colour_has_a_number_of_its_own() {
        let numbers: std::collections::BTreeSet<u8> = Ink::all().map(|ink| ink.colour().2).collect();
        assert_eq!(numbers.len(), 4 + 2 * SERIES + 2 * HEAT_STEPS);
    }
}
