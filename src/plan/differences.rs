//! The forms of differences that follow from the weights: planes within an error, low rank instead of signs.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{Inputs, delta};
use crate::{
    Error, Result,
    codec::CodecError,
    forward,
    layout::LogicalTensor,
    manifest::Fallback,
    passes::{Choice, Matrix, Settings, bitdelta::Chosen},
    run::RunError,
};

/// A matrix whose difference is to be stored.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) tensor: &'a LogicalTensor,
    pub(super) matrix: &'a Matrix,
    pub(super) transposed: bool,
    pub(super) settings: &'a Settings,
}

/// The choices of those that ask for it, by their place in the list. Matrices are read one by one on each thread.
pub(super) fn choose<'a>(
    inputs: Inputs<'_>,
    wanted: impl Iterator<Item = Wanted<'a>>,
    fallbacks: &mut Vec<Fallback>,
) -> Result<BTreeMap<usize, Choice>> {
    let asked: Vec<(usize, Wanted<'a>)> = wanted
        .enumerate()
        .filter(
            |(_, wanted)| matches!(wanted.settings, Settings::BitDelta(settings) if settings.target.needs_weights()),
        )
        // The layout names what stands in the way of a difference.
        .filter(|(_, wanted)| delta::obstacle(inputs.source.base(), wanted.tensor).is_none())
        .collect();
    let chosen: Vec<Result<(usize, Choice, Option<Fallback>)>> = asked
        .into_par_iter()
        .filter_map(|(index, wanted)| {
            Some(one(inputs, wanted).transpose()?.map(|(choice, missed)| (index, choice, missed)))
        })
        .collect();
    let mut choices = BTreeMap::new();
    for result in chosen {
        let (index, choice, missed) = result?;
        choices.insert(index, choice);
        fallbacks.extend(missed);
    }
    Ok(choices)
}

fn one(inputs: Inputs<'_>, wanted: Wanted<'_>) -> Result<Option<(Choice, Option<Fallback>)>> {
    let (Settings::BitDelta(settings), Some(base)) = (wanted.settings, inputs.source.base()) else { return Ok(None) };
    let name = &wanted.tensor.name;
    let (after, before) = (inputs.source.rows(name, wanted.transposed)?, base.rows(name, wanted.transposed)?);
    let (stack, columns) = (wanted.matrix.experts.max(1), wanted.matrix.columns);
    let rows = wanted.matrix.rows / stack;
    let failed = |source: CodecError| Error::from(RunError::Codec { tensor: name.clone(), source });
    let difference = |index: usize| -> Result<forward::Matrix> {
        let mut difference = forward::Matrix::zeros(rows, columns);
        after.read_rows(index * rows, &mut difference.values).map_err(failed)?;
        let mut values = vec![0.0; rows * columns];
        before.read_rows(index * rows, &mut values).map_err(failed)?;
        for (value, before) in difference.values.iter_mut().zip(&values) {
            *value -= before;
        }
        after.release_rows(index * rows..(index + 1) * rows);
        before.release_rows(index * rows..(index + 1) * rows);
        Ok(difference)
    };
    // Weights that are not finite are found, and named, when they are encoded.
    for index in 0..stack {
        if difference(index)?.values.iter().any(|value| !value.is_finite()) {
            return Ok(None);
        }
    }
    let Chosen { form, error } = settings.target.choose(settings.scale, settings.planes, stack, difference)?;
    let most = settings.target.max_relative_error.filter(|most| error > *most);
    let missed = most.map(|most| Fallback {
        kind: "error-missed".into(),
        tensor: name.clone(),
        count: 1,
        message: format!(
            "`{name}`: the relative error of its difference is {error:.4} with {}, not {most}",
            form.name()
        ),
    });
    Ok(Some((Choice { codec: form.into(), ..settings.choose() }, missed)))
}
