//! Why a layout cannot hold a matrix, and the checks that several layouts share.

use super::{Activations, MatrixSpec};
use crate::codec::{Granularity, Whole};

/// Why a layout cannot hold a matrix in a codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// This one matrix's shape does not fit (group size, word size): the plan keeps it dense as a named fallback.
    Shape(String),
    /// The layout has no such format at all: the plan stops.
    Format(String),
}

/// Refuses what no layout made for a runtime takes: stacked experts, transposed matrices, outliers.
pub(super) fn plain_matrix(layout: &str, matrix: &MatrixSpec) -> Result<(), Refusal> {
    let refuse = |what: &str| {
        Err(Refusal::Format(format!(
            "layout `{layout}` {what}, but `{}` is such a matrix; use layout `bantam` or leave it dense",
            matrix.name
        )))
    };
    if matrix.experts.is_some() {
        return refuse("has one module per expert and no stacked (3-D) experts");
    }
    if matrix.transposed {
        return refuse("has no matrices stored as [input, output]");
    }
    if let Some(Whole::Sparse(_)) = matrix.codec.whole() {
        return Err(Refusal::Format(format!(
            "layout `{layout}` has no masked weights without codes, but `{}` is such a matrix; use layout `dense` or \
             `bantam`, or encode it",
            matrix.name
        )));
    }
    if let Some(Whole::KQuant(_)) = matrix.codec.whole() {
        return refuse("has no blocks as GGUF files have them");
    }
    if matrix.codec.whole().is_some() {
        return refuse("has a code for each weight and no codes of whole vectors");
    }
    if matrix.rotations.is_some() {
        return refuse("cannot say that a matrix is stored rotated");
    }
    if matrix.scalar().outliers.is_some() {
        return refuse("has no weights kept exact beside the codes");
    }
    Ok(())
}

/// Refuses a group size that does not divide the columns; gives the number of groups of a row (1 for a whole row).
pub(super) fn dividing_groups(layout: &str, matrix: &MatrixSpec) -> Result<usize, Refusal> {
    match matrix.scalar().granularity {
        Granularity::Channel | Granularity::Tensor => Ok(1),
        Granularity::Group(size) if size > 0 && matrix.columns > 0 && matrix.columns.is_multiple_of(size) => {
            Ok(matrix.columns / size)
        }
        Granularity::Group(size) => Err(Refusal::Shape(format!(
            "`{}` has {} columns, which groups of {size} do not divide, as layout `{layout}` needs",
            matrix.name, matrix.columns
        ))),
        Granularity::Block { rows, columns } => Err(Refusal::Format(format!(
            "layout `{layout}` has no {rows}×{columns} blocks in this number format (`{}`)",
            matrix.name
        ))),
    }
}

/// Refuses rows or columns that are no multiple of `unit`.
pub(super) fn whole_words(
    layout: &str,
    matrix: &MatrixSpec,
    axis: &str,
    length: usize,
    unit: usize,
) -> Result<(), Refusal> {
    if length > 0 && length.is_multiple_of(unit) {
        return Ok(());
    }
    Err(Refusal::Shape(format!("`{}` has {length} {axis}; layout `{layout}` needs a multiple of {unit}", matrix.name)))
}

/// Refuses quantized activations.
pub(super) fn without_activations(layout: &str, matrix: &MatrixSpec) -> Result<(), Refusal> {
    match matrix.activations {
        Activations::None => Ok(()),
        Activations::Dynamic | Activations::Static => Err(Refusal::Format(format!(
            "layout `{layout}` cannot say that activations are quantized (`{}`); use layout `compressed-tensors`",
            matrix.name
        ))),
    }
}

/// Refuses static scales of activations, which need a tensor of their own.
pub(super) fn without_input_scale(layout: &str, matrix: &MatrixSpec) -> Result<(), Refusal> {
    match matrix.activations {
        Activations::None | Activations::Dynamic => Ok(()),
        Activations::Static => Err(Refusal::Format(format!(
            "layout `{layout}` has no place for the input's scale that activations \"static\" need (`{}`); use layout \
             `compressed-tensors`, or activations \"dynamic\"",
            matrix.name
        ))),
    }
}

/// Refuses matrices in different codecs, for layouts whose configuration has one for all.
pub(super) fn one_format(layout: &str, matrices: &[MatrixSpec]) -> Result<(), Refusal> {
    let Some(first) = matrices.first() else { return Ok(()) };
    match matrices.iter().find(|matrix| matrix.codec != first.codec) {
        None => Ok(()),
        Some(other) => Err(Refusal::Format(format!(
            "layout `{layout}` has one number format for all matrices, but `{}` and `{}` differ; use layout \
             `compressed-tensors` or `bantam`",
            first.name, other.name
        ))),
    }
}
