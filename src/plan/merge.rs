//! Which tensors are merged, and how: masked where a rule of `breadcrumbs` takes them, whole where none does.

use std::collections::BTreeMap;

use super::{Inputs, PlanError};
use crate::{
    checkpoint::is_float,
    layout::{LayoutName, LogicalTensor},
    manifest::Fallback,
    model::matrix_by_shape,
    passes::{Settings, breadcrumbs},
    recipe::Assignment,
};

/// How one tensor is merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Merge {
    /// Which changes are left out; none: no change is.
    pub mask: Option<breadcrumbs::Settings>,
    /// What the sum of the changes is multiplied by.
    pub scale: f32,
    /// Rows of one matrix, as output features.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Matrices in a stack.
    pub stack: usize,
    /// Whether the tensor is stored `[columns, rows]`.
    pub transposed: bool,
}

impl Merge {
    /// Whether it takes a whole matrix at a time: its weights are ranked together, or it is turned.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.transposed || self.mask.is_some_and(|mask| mask.ranking == crate::codec::Share::Matrix)
    }
}

/// What becomes of every tensor, by name; none where the recipe merges nothing.
pub(super) fn merges(
    inputs: Inputs<'_>,
    target: LayoutName,
    assignments: &[Assignment],
    fallbacks: &mut Vec<Fallback>,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, Merge>, PlanError> {
    let mut merges = BTreeMap::new();
    let rule = inputs.recipe.passes.iter().find(|rule| rule.pass == breadcrumbs::INFO.name);
    let (Some(rule), LayoutName::Dense) = (rule, target) else { return Ok(merges) };
    let of_rule = rule.settings().map_err(|error| PlanError::setting(&rule.pass, rule.line, "", error))?;
    let Settings::Breadcrumbs(of_rule) = of_rule else { return Ok(merges) };
    let masks: BTreeMap<&str, breadcrumbs::Settings> = assignments
        .iter()
        .filter_map(|assignment| match assignment.settings {
            Settings::Breadcrumbs(settings) => Some((assignment.tensor.as_str(), settings)),
            _ => None,
        })
        .collect();
    let (mut masked, mut whole) = (0, 0);
    for tensor in inputs.source.tensors() {
        let weights: usize = tensor.shape.iter().product();
        if !is_float(tensor.dtype) || weights == 0 {
            continue;
        }
        if let Some(obstacle) = obstacle(inputs, tensor) {
            fallbacks.push(Fallback {
                kind: "not-merged".into(),
                tensor: tensor.name.clone(),
                count: 1,
                message: format!("`{}` is the first model's alone: {obstacle}", tensor.name),
            });
            continue;
        }
        let merge = if let Some(mask) = masks.get(tensor.name.as_str()) {
            masked += 1;
            of_matrix(inputs, tensor, *mask)?
        } else {
            whole += 1;
            let columns = tensor.shape.last().copied().unwrap_or(1);
            let (rows, scale) = (weights / columns, of_rule.scale);
            Merge { mask: None, scale, rows, columns, stack: 1, transposed: false }
        };
        merges.insert(tensor.name.clone(), merge);
    }
    let models = match inputs.source.merged().len() {
        0 => "one model".to_owned(),
        others => format!("{} models", 1 + others),
    };
    notes.push(format!(
        "{masked} tensors of {models} are merged with their changes masked, {whole} with all of them (norms, biases, \
         and what the rules leave out)"
    ));
    Ok(merges)
}

fn of_matrix(inputs: Inputs<'_>, tensor: &LogicalTensor, mask: breadcrumbs::Settings) -> Result<Merge, PlanError> {
    let mapped = inputs.model.tensor(&tensor.name).and_then(|mapped| mapped.matrix.clone());
    let view = mapped.unwrap_or_else(|| {
        let columns = tensor.shape.last().copied().unwrap_or(1);
        matrix_by_shape(&[tensor.shape.iter().product::<usize>() / columns.max(1), columns])
    });
    let among = match mask.ranking {
        crate::codec::Share::Row => view.columns,
        crate::codec::Share::Matrix => view.rows.saturating_mul(view.columns),
    };
    if u32::try_from(among).is_err() {
        let rule = inputs.recipe.passes.iter().find(|rule| rule.pass == breadcrumbs::INFO.name);
        let message = format!("{among} weights are too many to be ranked together");
        let error = crate::passes::SettingError { key: "ranking".into(), message };
        let line = rule.map_or(0, |rule| rule.line);
        return Err(PlanError::setting(breadcrumbs::INFO.name, line, &tensor.name, error));
    }
    Ok(Merge {
        mask: Some(mask),
        scale: mask.scale,
        rows: view.rows,
        columns: view.columns,
        stack: view.experts.unwrap_or(1),
        transposed: view.transposed,
    })
}

/// Why a tensor cannot be merged, if so: one of the models or the base has no such tensor, or not in this shape.
fn obstacle(inputs: Inputs<'_>, tensor: &LogicalTensor) -> Option<String> {
    let base = inputs.source.base().map(|base| ("the base".to_owned(), base));
    let others = inputs.source.merged().iter().zip(2..).map(|(model, number)| (format!("model {number}"), model));
    base.into_iter().chain(others).find_map(|(who, model)| match model.tensor(&tensor.name) {
        None => Some(format!("{who} has no such tensor")),
        Some(found) if found.shape != tensor.shape => {
            Some(format!("its shape is {:?}, and {:?} in {who}", tensor.shape, found.shape))
        }
        Some(found) => (!is_float(found.dtype)).then(|| format!("it is {:?} in {who}", found.dtype)),
    })
}
