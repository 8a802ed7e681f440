//! Statistics of chosen tensors, with a small histogram.

use std::fmt::Write;

use serde::Serialize;

use super::usage;
use crate::{
    checkpoint::{Dtype, is_float},
    cli::{CliError, Output, Style, grouped},
    evaluate::{Histogram, OUTLIER_SIGMAS, Sparsity, Statistics},
    layout::LogicalCheckpoint,
    model::ModelMap,
    recipe::Selector,
};

/// One chosen tensor; integers have no statistics.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    name: String,
    role: String,
    codec: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
    statistics: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sparsity: Option<Sparsity>,
}

/// Of each tensor of the map, whether any of the selectors matches it.
pub(in crate::cli) fn chosen(selectors: &[String], map: &ModelMap) -> Result<Vec<bool>, CliError> {
    let mut chosen = vec![false; map.tensors.len()];
    for text in selectors {
        let selector = Selector::parse(text).map_err(|error| usage(format!("--tensor `{text}`: {error}")))?;
        let mut matched = false;
        for (chosen, tensor) in chosen.iter_mut().zip(&map.tensors) {
            if selector.matches(tensor) {
                (*chosen, matched) = (true, true);
            }
        }
        if !matched {
            return Err(nothing_matches(text, map));
        }
    }
    Ok(chosen)
}

/// Reads the tensors that any of the selectors matches.
pub(super) fn gather(
    selectors: &[String],
    logical: &LogicalCheckpoint,
    map: &ModelMap,
) -> Result<Vec<Row>, anyhow::Error> {
    let chosen = chosen(selectors, map)?;
    let mut rows = Vec::new();
    for (mapped, _) in map.tensors.iter().zip(chosen).filter(|(_, chosen)| *chosen) {
        let Some(tensor) = logical.tensor(&mapped.name) else { continue };
        let (statistics, sparsity) = if is_float(tensor.dtype) {
            let source = logical.rows(&tensor.name, false)?;
            let transposed = mapped.matrix.as_ref().is_some_and(|matrix| matrix.transposed);
            let sparsity = Sparsity::find(logical.rows(&tensor.name, transposed)?.as_ref())?;
            (Some(Statistics::of(source.as_ref())?), sparsity)
        } else {
            (None, None)
        };
        rows.push(Row {
            name: tensor.name.clone(),
            role: mapped.role.to_string(),
            codec: tensor.describe(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes: tensor.stored_bytes,
            statistics,
            sparsity,
        });
    }
    Ok(rows)
}

fn nothing_matches(text: &str, map: &ModelMap) -> CliError {
    let mut error = usage(format!("--tensor `{text}` matches no tensor"));
    let nearest = map
        .tensors
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(text, &a.name).total_cmp(&strsim::jaro_winkler(text, &b.name)));
    if let (CliError::Usage { hint, .. }, Some(nearest)) = (&mut error, nearest) {
        *hint = Some(format!("the nearest name is `{}`", nearest.name));
    }
    error
}

pub(super) fn render(rows: &[Row], output: &Output) -> String {
    let texts: Vec<String> = rows.iter().map(|row| render_row(row, output)).collect();
    texts.join("\n")
}

fn render_row(row: &Row, output: &Output) -> String {
    let mut text = String::new();
    let shape: Vec<String> = row.shape.iter().map(usize::to_string).collect();
    let shape = if shape.is_empty() { "scalar".into() } else { shape.join(" × ") };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", output.paint(Style::Bold, &row.name));
    let decoded = if row.codec == format!("{:?}", row.dtype).to_lowercase() {
        String::new()
    } else {
        format!(", decodes to {:?}", row.dtype)
    };
    let _ = writeln!(text, "{}, {shape}, {}{decoded}", row.role, row.codec);
    if let Some(Sparsity { keep, of, zeros }) = &row.sparsity {
        let _ = writeln!(text, "{keep}:{of} sparse, {:.2} % of the weights are zero", 100.0 * zeros);
    }
    let Some(statistics) = &row.statistics else {
        let _ = writeln!(text, "no statistics: the values are not floats");
        return text;
    };
    let entry = |text: &mut String, fields: [(&str, String); 3]| {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name:<10}{value:<15}")).collect();
        let _ = writeln!(text, "  {}", fields.concat().trim_end());
    };
    let figure = |value: f64| format!("{value:.5e}");
    let share = |value: f64| format!("{:.4} %", 100.0 * value);
    let s = statistics;
    entry(&mut text, [("min", figure(s.min)), ("mean", figure(s.mean)), ("zeros", share(s.zeros))]);
    let beyond = format!("> {OUTLIER_SIGMAS} σ");
    entry(&mut text, [("max", figure(s.max)), ("std", figure(s.std)), (&beyond, share(s.outliers))]);
    let kurtosis = format!("{:.2}", s.kurtosis);
    entry(&mut text, [("absmax", figure(s.absmax)), ("kurtosis", kurtosis), ("nan, inf", grouped(s.non_finite))]);
    text.push_str(&histogram(&s.histogram));
    text
}

/// Lines of a histogram.
const HEIGHT: usize = 4;

/// Eighths of a line, from none to full.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws the counts as columns of blocks, the tallest [`HEIGHT`] lines high; what is not empty shows at least one eighth.
fn histogram(histogram: &Histogram) -> String {
    let largest = histogram.counts.iter().copied().max().unwrap_or(0);
    if largest == 0 {
        return String::new();
    }
    let eighths: Vec<usize> = histogram
        .counts
        .iter()
        .map(|&count| {
            let height = (count as f64 / largest as f64 * (8 * HEIGHT) as f64).round() as usize;
            height.max(usize::from(count > 0))
        })
        .collect();
    let mut text = String::new();
    for line in (0..HEIGHT).rev() {
        let blocks: String = eighths.iter().map(|&height| EIGHTHS[height.saturating_sub(8 * line).min(8)]).collect();
        let _ = writeln!(text, "  {}", blocks.trim_end());
    }
    let (low, high) = (format!("{:.3e}", histogram.low), format!("{:.3e}", histogram.high));
    let _ = writeln!(text, "  {low}{high:>width$}", width = histogram.counts.len().saturating_sub(low.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::histogram;
    use crate::evaluate::Histogram;

    #[test]
    fn a_histogram_is_as_tall_as_its_counts_say() {
        let mut counts = vec![0; 64];
        (counts[0], counts[1], counts[63]) = (32, 8, 1);
        let text = histogram(&Histogram { low: -1.0, high: 1.0, counts });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "  █");
        assert_eq!(lines[3].trim_start().chars().next(), Some('█'));
        assert_eq!(lines[3].chars().filter(|&c| c != ' ').collect::<String>(), "██▁");
        assert!(lines[4].starts_with("  -1.000e0") && lines[4].ends_with("1.000e0"));
        assert_eq!(lines[4].chars().count(), 66);
    }

    #[test]
    fn an_empty_histogram_is_no_text() {
        assert_eq!(histogram(&Histogram { low: 0.0, high: 0.0, counts: vec![0; 64] }), "");
    }
}
