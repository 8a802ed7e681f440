//! `bantam diff`: how far two models are from each other, tensor by tensor, worst first.

use std::{cmp::Ordering, fmt::Write};

use rayon::prelude::*;
use serde::Serialize;

use super::{
    DiffArguments, Output, Style,
    table::{decibels, render as table},
};
use crate::{
    ExitCode,
    checkpoint::{Checkpoint, is_float},
    evaluate::{ErrorFigures, compare},
    layout::{LogicalCheckpoint, LogicalTensor},
};

/// The result of the command.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    tensors: Vec<Compared>,
    mismatched: Vec<Mismatched>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    min_snr_db: Option<f64>,
    below: u64,
}

/// A tensor that both have.
#[derive(Debug, Serialize)]
struct Compared {
    name: String,
    codec_a: String,
    codec_b: String,
    #[serde(flatten)]
    figures: ErrorFigures,
}

/// A tensor that both have but that cannot be compared, or whose integers differ.
#[derive(Debug, Serialize)]
struct Mismatched {
    name: String,
    message: String,
}

/// What comparing one tensor gave.
enum Comparison {
    Figures(Compared),
    Mismatch(Mismatched),
}

/// Executes the command.
///
/// # Errors
/// When either input is invalid.
pub fn execute(arguments: &DiffArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let a = LogicalCheckpoint::open(Checkpoint::open(&arguments.a)?)?;
    let b = LogicalCheckpoint::open(Checkpoint::open(&arguments.b)?)?;
    let report = diff(&a, &b, arguments.min_snr)?;
    if output.json() {
        output.json_result(&report)?;
    } else {
        output.result(&render(&report, output))?;
    }
    let structural = !(report.mismatched.is_empty() && report.only_in_a.is_empty() && report.only_in_b.is_empty());
    Ok(if structural || report.below > 0 { ExitCode::Difference } else { ExitCode::Done })
}

fn diff(a: &LogicalCheckpoint, b: &LogicalCheckpoint, min_snr_db: Option<f64>) -> Result<Report, anyhow::Error> {
    let missing = |from: &LogicalCheckpoint, other: &LogicalCheckpoint| -> Vec<String> {
        from.tensors().iter().filter(|t| other.tensor(&t.name).is_none()).map(|t| t.name.clone()).collect()
    };
    let common: Vec<_> = a.tensors().iter().filter_map(|t| Some((t, b.tensor(&t.name)?))).collect();
    let results: Vec<_> = common.into_par_iter().map(|(in_a, in_b)| compare_tensor(a, in_a, b, in_b)).collect();
    let (mut tensors, mut mismatched) = (Vec::new(), Vec::new());
    for result in results {
        match result? {
            Comparison::Figures(compared) => tensors.push(compared),
            Comparison::Mismatch(mismatch) => mismatched.push(mismatch),
        }
    }
    tensors.sort_by(|x, y| worst_first(&x.figures, &y.figures).then_with(|| x.name.cmp(&y.name)));
    let below = min_snr_db.map_or(0, |limit| tensors.iter().filter(|t| is_below(&t.figures, limit)).count() as u64);
    Ok(Report {
        schema: "bantam.diff/1",
        tensors,
        mismatched,
        only_in_a: missing(a, b),
        only_in_b: missing(b, a),
        min_snr_db,
        below,
    })
}

fn compare_tensor(
    a: &LogicalCheckpoint,
    in_a: &LogicalTensor,
    b: &LogicalCheckpoint,
    in_b: &LogicalTensor,
) -> Result<Comparison, anyhow::Error> {
    let mismatch = |message: String| Ok(Comparison::Mismatch(Mismatched { name: in_a.name.clone(), message }));
    let figures = |figures: ErrorFigures| {
        let (codec_a, codec_b) = (in_a.describe(), in_b.describe());
        Ok(Comparison::Figures(Compared { name: in_a.name.clone(), codec_a, codec_b, figures }))
    };
    if in_a.shape != in_b.shape {
        return mismatch(format!("shape {:?} in A, {:?} in B", in_a.shape, in_b.shape));
    }
    let exact = ErrorFigures { relative: 0.0, snr_db: None, max_abs: 0.0, cosine: 1.0 };
    if in_a.is_plain() && in_b.is_plain() && in_a.dtype == in_b.dtype && same_bytes(a, in_a, b, in_b) {
        return figures(exact);
    }
    match (is_float(in_a.dtype), is_float(in_b.dtype)) {
        (true, true) => {}
        (false, false) if in_a.dtype == in_b.dtype => return mismatch("its integers differ".into()),
        _ => return mismatch(format!("{:?} in A, {:?} in B", in_a.dtype, in_b.dtype)),
    }
    let (rows_a, rows_b) = (a.rows(&in_a.name, false)?, b.rows(&in_b.name, false)?);
    figures(compare(rows_a.as_ref(), rows_b.as_ref())?.figures())
}

/// Whether two plain tensors are stored alike; then they are equal even where values are not numbers.
fn same_bytes(a: &LogicalCheckpoint, in_a: &LogicalTensor, b: &LogicalCheckpoint, in_b: &LogicalTensor) -> bool {
    const CHUNK: usize = 4 << 20;
    let entry = |from: &LogicalCheckpoint, tensor: &LogicalTensor| from.checkpoint().tensor(tensor.parts.first()?).cloned();
    let (Some(entry_a), Some(entry_b)) = (entry(a, in_a), entry(b, in_b)) else { return false };
    let (bytes_a, bytes_b) = (a.checkpoint().bytes(&entry_a), b.checkpoint().bytes(&entry_b));
    let chunks = bytes_a.chunks(CHUNK).zip(bytes_b.chunks(CHUNK)).enumerate();
    let mut equal = bytes_a.len() == bytes_b.len();
    for (index, (chunk_a, chunk_b)) in chunks {
        equal = equal && chunk_a == chunk_b;
        let range = index * CHUNK..index * CHUNK + chunk_a.len();
        a.checkpoint().release(&entry_a, range.clone());
        b.checkpoint().release(&entry_b, range);
        if !equal {
            break;
        }
    }
    equal
}

/// Infinite errors, then by rising signal-to-noise ratio, exact tensors last.
fn worst_first(a: &ErrorFigures, b: &ErrorFigures) -> Ordering {
    b.relative.total_cmp(&a.relative)
}

fn is_below(figures: &ErrorFigures, limit: f64) -> bool {
    figures.snr_db.map_or(figures.relative > 0.0, |snr_db| snr_db < limit)
}

/// A relative error as shown: five decimals, or an exponent where they would all be zero.
fn ratio(relative: f64) -> String {
    if relative < 1e-4 { format!("{relative:.1e}") } else { format!("{relative:.5}") }
}

fn render(report: &Report, output: &Output) -> String {
    let mut text = String::new();
    let (exact, changed): (Vec<_>, Vec<_>) = report.tensors.iter().partition(|tensor| tensor.figures.relative == 0.0);
    if !changed.is_empty() {
        let rows = changed.iter().map(|tensor| {
            let figures = &tensor.figures;
            vec![
                tensor.name.clone(),
                decibels(figures.relative, figures.snr_db),
                ratio(figures.relative),
                format!("{:.3e}", figures.max_abs),
                format!("{:.6}", figures.cosine),
            ]
        });
        text.push_str(&table(&["tensor", "SNR dB", "relative", "max abs", "cosine"], 1, rows.collect()));
        text.push_str("\n\n");
    }
    // Writing to a String cannot fail.
    for (names, which) in [(&report.only_in_a, "A"), (&report.only_in_b, "B")] {
        for name in names {
            let _ = writeln!(text, "{} {name}", output.paint(Style::Red, &format!("only in {which}:")));
        }
    }
    for mismatch in &report.mismatched {
        let _ = writeln!(text, "{} {}: {}", output.paint(Style::Red, "differs:"), mismatch.name, mismatch.message);
    }
    let _ = writeln!(text, "{} tensors compared, {} of them equal", report.tensors.len(), exact.len());
    if let Some(limit) = report.min_snr_db {
        let (style, verdict) = match report.below {
            0 => (Style::Green, format!("all reach {limit} dB")),
            below => (Style::Red, format!("{below} below {limit} dB")),
        };
        let _ = writeln!(text, "{}", output.paint(style, &verdict));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{is_below, worst_first};
    use crate::evaluate::ErrorFigures;

    fn figures(relative: f64) -> ErrorFigures {
        let snr_db = (relative > 0.0 && relative.is_finite()).then(|| -20.0 * relative.log10());
        ErrorFigures { relative, snr_db, max_abs: 0.0, cosine: 1.0 }
    }

    #[test]
    fn infinite_errors_come_first_and_exact_tensors_last() {
        let mut list = [figures(0.0), figures(0.01), figures(f64::INFINITY), figures(0.5)];
        list.sort_by(worst_first);
        assert_eq!(list.map(|figures| figures.relative), [f64::INFINITY, 0.5, 0.01, 0.0]);
    }

    #[test]
    fn an_exact_tensor_reaches_every_threshold_and_an_infinite_error_none() {
        assert!(!is_below(&figures(0.0), 300.0));
        assert!(is_below(&figures(f64::INFINITY), -300.0));
        assert!(is_below(&figures(0.1), 20.1) && !is_below(&figures(0.1), 19.9));
    }
}
