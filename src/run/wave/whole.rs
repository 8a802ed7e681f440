//! Matrices that are encoded as a whole, because their codes or their rotations mix rows.

use super::{Context, Stripe, encoding_error, refuse_denied, streamed};
use crate::{
    Result,
    checkpoint::{decode_to_f32, encode_from_f32},
    codec::{CodecError, CodedMatrix, RowSource, Taylor, Whole},
    evaluate::ErrorSums,
    forward::{BlockSpec, Matrix},
    passes::{
        Deviations,
        taylor_mlp::{self, Selection},
    },
    plan::{Encode, Unit},
    run::RunError,
    solve::{SolveFailure, Stored, decoded, nearest},
};

/// Encodes the expert whose rows start at `first_row` (the whole matrix where there are no experts).
pub(super) fn encode(
    context: &Context<'_>,
    unit: &Unit,
    encode: &Encode,
    source: &dyn RowSource,
    exact: &dyn RowSource,
    solved: &[(CodedMatrix, Deviations)],
    first_row: usize,
) -> Result<Stripe> {
    let (rows, columns) = (encode.matrix.expert_rows(), encode.matrix.columns);
    let expert = first_row / rows.max(1);
    let failed = |error| encoding_error(context, unit, error);
    if solved.is_empty()
        && let Some(stripe) = streamed::encode(context, unit, encode, source, first_row)?
    {
        return Ok(stripe);
    }
    let base = base_weights(context, unit, encode, first_row)?;
    let mut stored = if let Some((coded, deviations)) = solved.get(expert) {
        let decoded = decoded(encode, coded, rows, columns).map_err(failed)?;
        Stored { coded: coded.clone(), deviations: deviations.clone(), decoded }
    } else {
        let mut weights = Matrix { rows, columns, values: vec![0.0; rows * columns] };
        source.read_rows(first_row, &mut weights.values).map_err(failed)?;
        require_finite(&weights, first_row).map_err(failed)?;
        if let Some(base) = &base {
            for (weight, base) in weights.values.iter_mut().zip(&base.values) {
                *weight -= base;
            }
            // Weights of a base are as hostile as others.
            require_finite(&weights, first_row).map_err(|_| {
                let message = format!("the difference from the base's `{}` is not finite", unit.name);
                failed(CodecError::Stored { what: "weights", problem: message })
            })?;
        }
        let selection = context.found.and_then(|found| found.selections.get(&unit.name));
        let stored = match (encode.choice.codec.whole(), selection) {
            (Some(Whole::Taylor(format)), Some(selection)) => {
                let up = up_rows(context, unit, format, selection)?;
                expanded(encode, format, selection, &weights, up.as_ref())
            }
            _ => nearest(encode, &unit.name, &weights),
        };
        stored.map_err(|failure| match failure {
            SolveFailure::Codec { source, .. } => failed(source),
            other => other.into(),
        })?
    };
    if let Some(mut base) = base {
        // As a reader adds them.
        base.add(&stored.decoded);
        stored.decoded = base;
    }
    refuse_denied(context, unit, &stored.deviations)?;
    if context.layout.reads_back(&encode.matrix).is_none() {
        // A reader finds the weights themselves, in their own type.
        let mut bytes = Vec::new();
        encode_from_f32(encode.matrix.dense_dtype, &stored.decoded.values, &mut bytes);
        decode_to_f32(encode.matrix.dense_dtype, &bytes, &mut stored.decoded.values);
    }
    let sums = measure(exact, first_row, &stored.decoded)
        .map_err(|source| RunError::Codec { tensor: unit.name.clone(), source })?;
    let pieces = match stored.coded {
        CodedMatrix::Whole(stored) => context.layout.pack_whole(&encode.matrix, expert, stored),
        CodedMatrix::Scalar { rows: mut coded, parameters } => {
            coded.first_row = first_row;
            let mut pieces = context.layout.pack(&encode.matrix, &coded);
            if first_row == 0 {
                pieces.extend(context.layout.pack_parameters(&encode.matrix, &parameters));
            }
            pieces
        }
    };
    Ok(Stripe { pieces, sums, deviations: stored.deviations, on_device: false })
}

/// The up-projection's rows of the expanded units as they are stored, where terms are summed up with them.
fn up_rows(context: &Context<'_>, unit: &Unit, format: &Taylor, selection: &Selection) -> Result<Option<Matrix>> {
    let blocks = context.plan.solve.iter().flat_map(|solve| &solve.model.blocks);
    let of_unit = |block: &&BlockSpec| block.linears().any(|linear| linear.weight == unit.name);
    let up = blocks.filter(of_unit).find_map(crate::plan::expanded_up).filter(|_| format.hardened && format.gated);
    let Some(up) = up else { return Ok(None) };
    let source = context.source.rows(&up.weight, up.transposed)?;
    let mut rows = Matrix::zeros(selection.units.len(), up.columns);
    for (at, unit) in selection.units.iter().enumerate() {
        let row = rows.row_mut(at);
        let read = source.read_rows(*unit, row);
        read.map_err(|source| RunError::Codec { tensor: up.weight.clone(), source })?;
        for value in row {
            *value *= selection.up[at];
        }
    }
    source.release_rows(0..up.rows);
    Ok(Some(rows))
}

/// The matrix as terms of polynomials.
fn expanded(
    encode: &Encode,
    format: &Taylor,
    selection: &Selection,
    weights: &Matrix,
    up: Option<&Matrix>,
) -> std::result::Result<Stored, SolveFailure> {
    let failed = |source| SolveFailure::Codec { tensor: encode.matrix.name.clone(), source };
    let coded = CodedMatrix::Whole(taylor_mlp::encode(format, selection, weights, up).map_err(failed)?);
    let decoded = decoded(encode, &coded, weights.rows, weights.columns).map_err(failed)?;
    Ok(Stored { coded, deviations: Deviations::new(), decoded })
}

/// The rows of the base's matrix, where a difference from it is stored.
pub(super) fn base_rows<'a>(
    context: &Context<'a>,
    unit: &Unit,
    encode: &Encode,
) -> Result<Option<Box<dyn RowSource + 'a>>> {
    match (encode.matrix.codec.whole(), context.source.base()) {
        (Some(whole), Some(base)) if whole.is_difference() => {
            Ok(Some(base.rows(&unit.name, encode.matrix.transposed)?))
        }
        _ => Ok(None),
    }
}

/// The base's matrix, where a difference from it is stored.
fn base_weights(context: &Context<'_>, unit: &Unit, encode: &Encode, first_row: usize) -> Result<Option<Matrix>> {
    let Some(rows) = base_rows(context, unit, encode)? else { return Ok(None) };
    let mut weights = Matrix::zeros(encode.matrix.expert_rows(), encode.matrix.columns);
    let read = rows.read_rows(first_row, &mut weights.values);
    read.map_err(|source| RunError::Codec { tensor: unit.name.clone(), source })?;
    rows.release_rows(first_row..first_row + weights.rows);
    Ok(Some(weights))
}

fn require_finite(weights: &Matrix, first_row: usize) -> std::result::Result<(), CodecError> {
    match weights.values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (row, column) = (first_row + at / weights.columns, at % weights.columns);
            Err(CodecError::NonFinite { row, column, value: weights.values[at] })
        }
    }
}

/// Compares with the source row by row, as a reader of the artifact would.
fn measure(exact: &dyn RowSource, first_row: usize, decoded: &Matrix) -> std::result::Result<ErrorSums, CodecError> {
    let mut sums = ErrorSums::default();
    let at_once = exact.rows_at_once().clamp(1, decoded.rows.max(1));
    let mut weights = vec![0.0; at_once * decoded.columns];
    for first in (0..decoded.rows).step_by(at_once) {
        let count = at_once.min(decoded.rows - first);
        let weights = &mut weights[..count * decoded.columns];
        exact.read_rows(first_row + first, weights)?;
        for (offset, weights) in weights.chunks_exact(decoded.columns.max(1)).enumerate() {
            sums.accumulate_row(weights, decoded.row(first + offset));
        }
    }
    Ok(sums)
}
