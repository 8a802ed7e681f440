//! n:m sparsity of a model's tensors.

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    checkpoint::is_float,
    cli::grouped,
    evaluate::Sparsity,
    layout::{LogicalCheckpoint, LogicalTensor},
    model::ModelMap,
};

/// Tensors of one pattern.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    keep: usize,
    of: usize,
    tensors: u64,
    parameters: u64,
    /// Share of their weights that are zero.
    zeros: f64,
}

/// The pattern of each tensor: as its stored mask says, or, of matrices that are stored as they are, from their zeros. A
/// few rows of those are read, and all where those rows have a pattern. Codes are not decoded for it.
pub(super) fn patterns(logical: &LogicalCheckpoint, map: &ModelMap) -> Vec<Option<Sparsity>> {
    logical.tensors().par_iter().map(|tensor| pattern(logical, map, tensor)).collect()
}

fn pattern(logical: &LogicalCheckpoint, map: &ModelMap, tensor: &LogicalTensor) -> Option<Sparsity> {
    let view = map.tensor(&tensor.name).and_then(|mapped| mapped.matrix.as_ref());
    let transposed = view.is_some_and(|view| view.transposed);
    let columns = view.map_or_else(|| tensor.shape.last().copied().unwrap_or(0), |view| view.columns);
    if let Some(stored) = logical.stored_pattern(&tensor.name) {
        return Some(Sparsity::of_pattern(stored, columns));
    }
    if !tensor.is_plain() || !is_float(tensor.dtype) || tensor.shape.len() < 2 {
        return None;
    }
    // What cannot be read is told by other commands.
    Sparsity::find(logical.rows(&tensor.name, transposed).ok()?.as_ref()).ok().flatten()
}

/// Sums by pattern.
pub(super) fn sums<'a>(tensors: impl Iterator<Item = (u64, &'a Sparsity)>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (parameters, Sparsity { keep, of, zeros }) in tensors {
        let at = rows.iter().position(|row| (row.keep, row.of) == (*keep, *of)).unwrap_or_else(|| {
            rows.push(Row { keep: *keep, of: *of, tensors: 0, parameters: 0, zeros: 0.0 });
            rows.len() - 1
        });
        let row = &mut rows[at];
        let zero_weights = row.zeros * row.parameters as f64 + zeros * parameters as f64;
        row.tensors += 1;
        row.parameters += parameters;
        row.zeros = zero_weights / row.parameters.max(1) as f64;
    }
    rows.sort_by_key(|row| (row.of, row.keep));
    rows
}

/// The patterns in a line.
pub(super) fn text(rows: &[Row]) -> String {
    let texts = rows.iter().map(|Row { keep, of, tensors, parameters, zeros }| {
        let share = 100.0 * zeros;
        format!("{keep}:{of} in {tensors} tensors, {} weights, {share:.2} % of them zero", grouped(*parameters))
    });
    texts.collect::<Vec<_>>().join("; ")
}
