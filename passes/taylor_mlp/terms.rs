//! The terms of a matrix.

use rayon::prelude::*;

use super::{Selection, hardened::merged};
use crate::{
    checkpoint::{bits_of, encode_from_f32},
    codec::{CodecError, StoredMatrix, taylor::Taylor},
    forward::Matrix,
};

/// The tensors of [`Taylor::tensors`] for weights `[rows, columns]`: `Θ_n[:, j] = W[:, j] p_n`, in F64 and rounded once. `up`
/// are the up-projection's rows of the expanded units as stored, which hardened terms of power zero are summed up with.
///
/// # Errors
/// [`CodecError`] for a selection of another number of units, and a term that is too large for its type.
pub fn encode(
    format: &Taylor,
    selection: &Selection,
    weights: &Matrix,
    up: Option<&Matrix>,
) -> Result<StoredMatrix, CodecError> {
    format.validate(weights.rows, weights.columns)?;
    if selection.units.len() != format.units {
        return Err(CodecError::Length { what: "expanded units", expected: format.units, got: selection.units.len() });
    }
    let polynomials: Vec<Vec<f64>> = (0..format.units)
        .map(|at| format.coefficients(selection.points.z0[at], selection.points.h[at], selection.gate[at]))
        .collect();
    let rows = weights.rows;
    let line_bytes = format.units * bits_of(format.terms) / 8;
    let mut terms = vec![0_u8; format.powers().count() * rows * line_bytes];
    terms.par_chunks_mut(line_bytes.max(1)).enumerate().try_for_each(|(place, out)| {
        let (power, row) = (format.powers().start() + place / rows.max(1), place % rows.max(1));
        let weights = weights.row(row);
        let of_unit = |(unit, polynomial): (&usize, &Vec<f64>)| (f64::from(weights[*unit]) * polynomial[power]) as f32;
        let line: Vec<f32> = selection.units.iter().zip(&polynomials).map(of_unit).collect();
        let mut bytes = Vec::with_capacity(out.len());
        encode_from_f32(format.terms, &line, &mut bytes);
        out.copy_from_slice(&bytes);
        match crate::checkpoint::scan_non_finite(format.terms, out) {
            Some(found) => {
                let problem = format!("term {power} of row {row}, unit {} is too large", found.first_index);
                Err(CodecError::Stored { what: "terms", problem })
            }
            None => Ok(()),
        }
    })?;
    let indices = selection.units.iter().flat_map(|unit| (*unit as i32).to_le_bytes()).collect();
    let mut stored = vec![terms, selection.points.to_bytes(), indices];
    if format.hardened {
        let zeroth: Vec<f64> = polynomials.iter().map(|polynomial| polynomial[0]).collect();
        let mut columns = Matrix::zeros(rows, format.units);
        for row in 0..rows {
            let line = columns.row_mut(row).iter_mut().zip(&selection.units);
            line.for_each(|(value, unit)| *value = weights.row(row)[*unit]);
        }
        stored.push(merged(&columns, &zeroth, up).values.iter().flat_map(|value| value.to_le_bytes()).collect());
    }
    if format.units < weights.columns {
        let mut expanded = selection.units.iter().copied().peekable();
        let others: Vec<usize> = (0..weights.columns).filter(|unit| expanded.next_if_eq(unit).is_none()).collect();
        let mut plain = Vec::with_capacity(rows * others.len() * bits_of(format.plain) / 8);
        let mut line = vec![0.0; others.len()];
        for row in 0..rows {
            let weights = weights.row(row);
            line.iter_mut().zip(&others).for_each(|(value, unit)| *value = weights[*unit]);
            encode_from_f32(format.plain, &line, &mut plain);
        }
        stored.push(plain);
    }
    Ok(stored)
}
