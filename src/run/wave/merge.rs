//! Merged tensors: the base and the changes of several models, masked and summed.

use super::{Context, Piece, Stripe, encoding_error};
use crate::{
    Result,
    checkpoint::encode_from_f32,
    codec::{CodecError, RowSource},
    plan::{Merge, Unit},
    run::RunError,
};

/// The same tensor of the base and of every model, rows as output features.
pub(super) struct Sources<'a> {
    base: Box<dyn RowSource + 'a>,
    models: Vec<Box<dyn RowSource + 'a>>,
}

impl<'a> Sources<'a> {
    pub(super) fn open(context: &Context<'a>, unit: &Unit, merge: &Merge) -> Result<Self> {
        let message = || "it is to be merged, and there is no base".to_owned();
        let base = context.source.base();
        let base = base.ok_or_else(|| RunError::Defect { tensor: unit.name.clone(), message: message() })?;
        let models = std::iter::once(context.source).chain(context.source.merged());
        let rows = models.map(|model| model.rows(&unit.name, merge.transposed));
        Ok(Self {
            base: base.rows(&unit.name, merge.transposed)?,
            models: rows.collect::<std::result::Result<_, _>>()?,
        })
    }
}

/// base + scale · Σ mask ∘ (model − base), summed in F32 in the order of the models.
pub(super) fn merge(
    context: &Context<'_>,
    unit: &Unit,
    merge: &Merge,
    sources: &Sources<'_>,
    first_row: usize,
    rows: usize,
) -> Result<Stripe> {
    let failed = |error| encoding_error(context, unit, error);
    let Merge { columns, mask, scale, .. } = merge;
    let read = |source: &dyn RowSource| {
        let mut values = vec![0.0; rows * columns];
        source.read_rows(first_row, &mut values)?;
        source.release_rows(first_row..first_row + rows);
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => {
                let (row, column) = (first_row + at / columns, at % columns);
                Err(CodecError::NonFinite { row, column, value: values[at] })
            }
            None => Ok(values),
        }
    };
    let base = read(sources.base.as_ref()).map_err(|error| other(unit, "the base", &error))?;
    let mut sum = vec![0.0; base.len()];
    for (index, source) in sources.models.iter().enumerate() {
        let mut change = read(source.as_ref()).map_err(|error| match index {
            0 => failed(error),
            _ => other(unit, &format!("model {}", index + 1), &error),
        })?;
        for (value, base) in change.iter_mut().zip(&base) {
            *value -= base;
        }
        match mask {
            None => sum.iter_mut().zip(&change).for_each(|(sum, change)| *sum += change),
            Some(mask) => mask.places(&change, *columns).into_iter().for_each(|place| sum[place] += change[place]),
        }
    }
    let mut merged = base;
    for (value, sum) in merged.iter_mut().zip(&sum) {
        *value += scale * sum;
    }
    if merge.transposed {
        merged = crate::layout::transpose(&merged, rows, *columns);
    }
    let dtype = unit.outputs[0].spec.dtype;
    let mut bytes = Vec::new();
    let lost = encode_from_f32(dtype, &merged, &mut bytes);
    if lost > 0 || merged.iter().any(|value| !value.is_finite()) {
        let problem = format!("the merged values are too large for {dtype:?}");
        return Err(failed(CodecError::Stored { what: "weights", problem }));
    }
    let offset = (first_row * columns * crate::checkpoint::bits_of(dtype) / 8) as u64;
    let run = bytes.len();
    let pieces = vec![Piece { tensor: 0, offset, run, stride: run as u64, bytes }];
    Ok(Stripe { pieces, ..Stripe::default() })
}

/// An error in another checkpoint than the source.
fn other(unit: &Unit, who: &str, error: &CodecError) -> crate::Error {
    let problem = format!("as {who} has them: {error}");
    RunError::Codec { tensor: unit.name.clone(), source: CodecError::Stored { what: "weights", problem } }.into()
}
