//! Codes decode, and the error figures come out again.

use rayon::prelude::*;

use super::Finding;
use crate::{
    codec::{RowSource, Whole},
    evaluate::{ErrorFigures, compare, map_stripes},
    layout::{LayoutError, LogicalCheckpoint},
    manifest::{Manifest, OutputTensor},
};

/// Largest relative difference of a figure derived again; only the order of additions differs.
const TOLERANCE: f64 = 1e-9;

/// The same for decibels, absolute.
const TOLERANCE_DB: f64 = 1e-6;

/// Every coded tensor decodes, to finite weights.
pub(super) fn read_all(manifest: &Manifest, artifact: &LogicalCheckpoint) -> Vec<Finding> {
    let coded: Vec<_> = manifest.tensors.iter().filter(|tensor| is_coded(tensor, artifact)).collect();
    coded.into_par_iter().filter_map(|tensor| read(tensor, artifact)).collect()
}

fn is_coded(tensor: &OutputTensor, artifact: &LogicalCheckpoint) -> bool {
    artifact.tensor(&tensor.name).is_some_and(|found| !found.is_plain())
}

fn read(tensor: &OutputTensor, artifact: &LogicalCheckpoint) -> Option<Finding> {
    let rows = match artifact.rows(&tensor.name, false) {
        Ok(rows) => rows,
        // Without the base there is no more than the difference, or nothing.
        Err(LayoutError::NeedsBase { .. }) => artifact.difference(&tensor.name)?,
        Err(error) => return Some(Finding::new("codes", &tensor.name, error.to_string())),
    };
    match non_finite(rows.as_ref()) {
        Ok(0) => None,
        Ok(count) => {
            let message = format!("{count} of its weights decode to no finite number");
            Some(Finding::new("codes", &tensor.name, message).with(count, 0))
        }
        Err(error) => Some(Finding::new("codes", &tensor.name, error.to_string())),
    }
}

fn non_finite(rows: &dyn RowSource) -> Result<u64, crate::codec::CodecError> {
    let columns = rows.columns();
    let counts = map_stripes(rows.rows(), columns, |range| {
        let mut values = vec![0.0; range.len() * columns];
        rows.read_rows(range.start, &mut values)?;
        rows.release_rows(range);
        Ok(values.iter().filter(|value| !value.is_finite()).count() as u64)
    })?;
    Ok(counts.into_iter().sum())
}

/// Every tensor that a pass changed is as far from its source as the manifest says.
pub(super) fn compare_with_source(
    manifest: &Manifest,
    source: &LogicalCheckpoint,
    artifact: &LogicalCheckpoint,
) -> Vec<Finding> {
    let measured: Vec<_> =
        manifest.tensors.iter().filter(|tensor| tensor.error.is_some() && !is_transformed(tensor)).collect();
    let findings = measured.into_par_iter().filter_map(|tensor| {
        let stated = tensor.error?;
        if source.tensor(&tensor.name).is_none() || artifact.tensor(&tensor.name).is_none() {
            let message = "cannot be compared: not in both the source and the artifact".into();
            return Some(Finding::new("error", &tensor.name, message));
        }
        match figures(tensor, source, artifact) {
            Ok(derived) => difference(&tensor.name, &stated, &derived),
            Err(message) => Some(Finding::new("codes", &tensor.name, message)),
        }
    });
    findings.collect()
}

/// Whether a transform changed the weights before they were encoded. Its figures are against the changed weights, which
/// neither the source nor the artifact has.
fn is_transformed(tensor: &OutputTensor) -> bool {
    let transform = |pass: &String| {
        crate::passes::REGISTRY
            .iter()
            .any(|info| info.name == pass.as_str() && info.kind == crate::passes::Kind::Transform)
            // Undone when the tensor is read.
            && pass != crate::passes::rotate::INFO.name
            // Measured against the weights before.
            && pass != crate::passes::mask::INFO.name
    };
    // Columns are divided by what rows of the up-projection are multiplied with.
    let hardened = || match tensor.matrix.as_ref().and_then(|matrix| matrix.codec.whole()) {
        Some(Whole::Taylor(format)) => format.hardened && format.gated,
        _ => false,
    };
    tensor.passes.iter().any(transform) || hardened()
}

fn figures(
    tensor: &OutputTensor,
    source: &LogicalCheckpoint,
    artifact: &LogicalCheckpoint,
) -> Result<ErrorFigures, String> {
    // Rows as the run took them, so that sums are over the same blocks.
    let transposed = tensor.matrix.as_ref().is_some_and(|matrix| matrix.transposed);
    let before = source.rows(&tensor.name, transposed).map_err(|error| error.to_string())?;
    let after = artifact.rows(&tensor.name, transposed).map_err(|error| error.to_string())?;
    Ok(compare(before.as_ref(), after.as_ref()).map_err(|error| error.to_string())?.figures())
}

fn difference(name: &str, stated: &ErrorFigures, derived: &ErrorFigures) -> Option<Finding> {
    let close = |a: f64, b: f64| a == b || (a - b).abs() <= TOLERANCE * b.abs();
    let close_db = match (stated.snr_db, derived.snr_db) {
        (Some(a), Some(b)) => (a - b).abs() <= TOLERANCE_DB,
        (None, None) => true,
        _ => false,
    };
    let figures = [
        ("relative", derived.relative, stated.relative, close(derived.relative, stated.relative)),
        ("max_abs", derived.max_abs, stated.max_abs, close(derived.max_abs, stated.max_abs)),
        ("cosine", derived.cosine, stated.cosine, close(derived.cosine, stated.cosine)),
        ("snr_db", derived.snr_db.unwrap_or_default(), stated.snr_db.unwrap_or_default(), close_db),
    ];
    let (figure, value, limit, _) = figures.into_iter().find(|(_, _, _, agrees)| !agrees)?;
    let message = format!("its error figure `{figure}` does not come out again");
    Some(Finding::new("error", name, message).with(value, limit))
}

#[cfg(test)]
mod tests {
    use super::difference;
    use crate::evaluate::ErrorFigures;

    const STATED: ErrorFigures = ErrorFigures { relative: 0.1, snr_db: Some(20.0), max_abs: 0.5, cosine: 0.995 };

    #[test]
    fn the_order_of_additions_may_differ_and_nothing_else() {
        let derived = ErrorFigures { relative: 0.1 + 1e-12, snr_db: Some(20.0 - 1e-9), ..STATED };
        assert_eq!(difference("w", &STATED, &derived), None);
        let derived = ErrorFigures { cosine: 0.9950001, ..STATED };
        let finding = difference("w", &STATED, &derived).unwrap();
        assert_eq!((finding.rule, finding.limit), ("error", Some(0.995.into())));
        let derived = ErrorFigures { snr_db: None, ..STATED };
        assert!(difference("w", &STATED, &derived).unwrap().message.contains("snr_db"));
    }

    #[test]
    fn infinite_figures_agree_with_themselves() {
        let infinite = ErrorFigures { relative: f64::INFINITY, snr_db: None, max_abs: f64::INFINITY, cosine: 0.0 };
        assert_eq!(difference("w", &infinite, &infinite), None);
    }
}
