//! What becomes of some rows: codes packed and measured, or plain values.

use std::collections::BTreeMap;

use super::{
    super::{RunError, device::Encoded},
    Context, refuse_or_keep,
};
use crate::{
    Result,
    checkpoint::{bits_of, encode_from_f32},
    codec::{MatrixParameters, RowSource},
    evaluate::{ErrorSums, measure},
    layout::{Activations, Piece},
    passes::Deviations,
    plan::{Action, Encode, Unit},
    solve::{BORROWED, InputRange},
};

/// What became of some rows.
#[derive(Default)]
pub(super) struct Stripe {
    pub(super) pieces: Vec<Piece>,
    pub(super) sums: ErrorSums,
    pub(super) deviations: BTreeMap<&'static str, u64>,
    pub(super) on_device: bool,
}

/// Measures and packs what a stripe became.
pub(super) fn finish_stripe(
    context: &Context<'_>,
    unit: &Unit,
    encode: &Encode,
    exact: &dyn RowSource,
    parameters: &MatrixParameters,
    Encoded { stripe: mut coded, on_device }: Encoded,
) -> Result<Stripe> {
    refuse_denied(context, unit, &coded.deviations)?;
    let sums = measure(exact, &coded.rows, encode.matrix.scalar(), parameters)
        .map_err(|source| RunError::Codec { tensor: unit.name.clone(), source })?;
    let mut pieces = context.layout.pack(&encode.matrix, &coded.rows);
    if coded.rows.first_row == 0 {
        pieces.extend(context.layout.pack_parameters(&encode.matrix, parameters));
        if encode.choice.activations == Activations::Static {
            let range = input_range(context, unit)?;
            pieces.extend(context.layout.pack_input_scale(&encode.matrix, range.scale));
            if range.borrowed {
                *coded.deviations.entry(BORROWED).or_default() += 1;
            }
        }
    }
    Ok(Stripe { pieces, sums, deviations: coded.deviations, on_device })
}

pub(super) fn refuse_denied(context: &Context<'_>, unit: &Unit, deviations: &Deviations) -> Result<()> {
    match deviations.iter().next() {
        Some((kind, count)) if context.deny_fallbacks => {
            let (tensor, kind, count) = (unit.name.clone(), (*kind).to_owned(), *count);
            Err(RunError::FallbackDenied { tensor, kind, count }.into())
        }
        _ => Ok(()),
    }
}

pub(super) fn input_range<'a>(context: &Context<'a>, unit: &Unit) -> Result<&'a InputRange> {
    let found = context.found.and_then(|found| found.solutions.inputs.get(&unit.name));
    let message = || "the range of its input was not found in calibration".to_owned();
    Ok(found.ok_or_else(|| RunError::Defect { tensor: unit.name.clone(), message: message() })?)
}

/// Codes of some rows as the source has them.
pub(super) fn carry_stripe(context: &Context<'_>, unit: &Unit, first_row: usize, rows: usize) -> Result<Stripe> {
    let Action::Carry(matrix) = &unit.action else { unreachable!("begun with codes") };
    let coded = context.source.coded_rows(&unit.name, first_row, rows)?;
    Ok(Stripe { pieces: context.layout.pack(matrix, &coded), ..Stripe::default() })
}

pub(super) fn decode_stripe(
    context: &Context<'_>,
    unit: &Unit,
    source: &dyn RowSource,
    first_row: usize,
    rows: usize,
) -> Result<Stripe> {
    let columns = source.columns();
    let mut values = vec![0.0; rows * columns];
    source.read_rows(first_row, &mut values).map_err(|source| RunError::Codec { tensor: unit.name.clone(), source })?;
    if matches!(unit.action, Action::Cast) && values.iter().any(|value| !value.is_finite()) {
        refuse_or_keep(context, unit)?;
    }
    let dtype = unit.outputs[0].spec.dtype;
    let mut bytes = Vec::new();
    encode_from_f32(dtype, &values, &mut bytes);
    let offset = (first_row * columns * bits_of(dtype) / 8) as u64;
    let run = bytes.len();
    let pieces = vec![Piece { tensor: 0, offset, run, stride: run as u64, bytes }];
    Ok(Stripe { pieces, ..Stripe::default() })
}

/// Some of the rows that the base does not have.
pub(super) fn changed_rows(
    context: &Context<'_>,
    unit: &Unit,
    source: &dyn RowSource,
    first: usize,
    count: usize,
) -> Result<Stripe> {
    let Action::Rows(rows) = &unit.action else { unreachable!("begun with rows") };
    let rows = &rows[first..first + count];
    let columns = source.columns();
    let mut values = vec![0.0; count * columns];
    for (&row, values) in rows.iter().zip(values.chunks_exact_mut(columns.max(1))) {
        let read = source.read_rows(row as usize, values);
        read.map_err(|source| RunError::Codec { tensor: unit.name.clone(), source })?;
    }
    if values.iter().any(|value| !value.is_finite()) {
        refuse_or_keep(context, unit)?;
    }
    let mut bytes = Vec::new();
    encode_from_f32(unit.outputs[1].spec.dtype, &values, &mut bytes);
    let row_bytes = bytes.len() / count.max(1);
    let indices: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
    let piece = |tensor, offset: usize, bytes: Vec<u8>| {
        let run = bytes.len();
        Piece { tensor, offset: offset as u64, run, stride: run as u64, bytes }
    };
    let pieces = vec![piece(0, first * 8, indices), piece(1, first * row_bytes, bytes)];
    Ok(Stripe { pieces, ..Stripe::default() })
}
