//! Down-projections that are stored as terms of polynomials: what the model says of their activations, and what they cost.

use std::collections::BTreeMap;

use super::{Encode, Inputs, PlanError};
use crate::{
    Result,
    codec::{
        Whole,
        taylor::{Smooth, Taylor, gate_of},
    },
    forward::{Activation, BlockSpec, Kind, Model},
    layout::Activations,
    passes::{Choice, Matrix, SettingError, Settings, taylor_mlp},
};

/// A matrix that a rule wants to be expanded.
pub(super) struct Wanted<'a> {
    pub settings: &'a Settings,
    pub matrix: &'a Matrix,
    /// The rule's pass and line.
    pub rule: (&'a str, usize),
    /// Whether another pass rotates or masks it.
    pub changed: bool,
}

/// What is to be expanded of an encoding.
pub(crate) fn format_of(encode: &Encode) -> Option<(&taylor_mlp::Settings, &Taylor)> {
    match (&encode.settings, encode.choice.codec.whole()) {
        (Settings::TaylorMlp(settings), Some(Whole::Taylor(format))) => Some((settings, format)),
        _ => None,
    }
}

/// The formats of all such matrices, by their place among `wanted`.
pub(super) fn choose<'a>(
    inputs: Inputs<'_>,
    wanted: impl Iterator<Item = Wanted<'a>>,
) -> Result<BTreeMap<usize, Choice>> {
    let mut choices = BTreeMap::new();
    let mut model: Option<Model> = None;
    for (index, Wanted { settings, matrix, rule: (pass, line), changed }) in wanted.enumerate() {
        let Settings::TaylorMlp(settings) = settings else { continue };
        let model = match &mut model {
            Some(model) => model,
            None => model
                .insert(Model::new(inputs.source.checkpoint().config().map(|config| &config.value), inputs.source)?),
        };
        let refuse =
            |key: &str, message: &str| PlanError::setting(pass, line, &matrix.name, SettingError::new(key, message));
        if changed {
            return Err(
                refuse("use", "cannot be rotated or masked: its terms are those of the weights themselves").into()
            );
        }
        let Some(block) = model.blocks.iter().find(|block| is_down(block, &matrix.name)) else {
            let message = "is no down-projection of a dense MLP; those of experts are not expanded";
            return Err(refuse("select", message).into());
        };
        let activation = match block.activation {
            Activation::Silu => Smooth::Silu,
            Activation::Gelu => Smooth::Gelu,
            Activation::GeluTanh => Smooth::GeluTanh,
            Activation::GeluQuick => Smooth::GeluQuick,
            Activation::Relu => {
                return Err(refuse("use", "has a ReLU before it, whose corner no polynomial follows").into());
            }
        };
        let gate = gate(block).map(|linear| linear.weight.clone());
        if settings.perturb && (gate.is_none() || gate_of(&matrix.name) != gate) {
            let message = "expected false: this model's gates go by names that readers do not know";
            return Err(refuse("perturb", message).into());
        }
        if settings.hardened {
            let up = up(block);
            let problem = match (block.gated, up) {
                (true, None) => Some("expected false where gate and up are one matrix"),
                (true, Some(up)) if up.bias.is_some() => Some("expected false where the up-projection has a bias"),
                (true, Some(up)) if up.columns != matrix.rows => {
                    Some("expected false where the MLP's inputs and outputs differ in number")
                }
                _ if gate.is_none() || gate_of(&matrix.name) != gate => {
                    Some("expected false: this model's gates go by names that readers do not know")
                }
                _ => None,
            };
            if let Some(message) = problem {
                return Err(refuse("hardened", message).into());
            }
        }
        let format = settings.format(matrix.columns, activation, block.gated, matrix.dense_dtype);
        let choice = Choice {
            codec: Whole::Taylor(format).into(),
            rotations: None,
            codebook_of: None,
            mask: None,
            activations: Activations::None,
        };
        choices.insert(index, choice);
    }
    Ok(choices)
}

fn is_down(block: &BlockSpec, name: &str) -> bool {
    let mut stages = block.stages.iter().filter(|stage| stage.kind == Kind::MlpOutput);
    stages.any(|stage| stage.linears.first().is_some_and(|linear| linear.weight == name))
}

/// The linear whose outputs the activation takes: the gate, or the only up-projection.
pub(crate) fn gate(block: &BlockSpec) -> Option<&crate::forward::LinearSpec> {
    block.stages.iter().find(|stage| stage.kind == Kind::Mlp)?.linears.first()
}

/// The linear whose outputs the activation is multiplied by, where it is one of its own.
pub(crate) fn up(block: &BlockSpec) -> Option<&crate::forward::LinearSpec> {
    block.stages.iter().find(|stage| stage.kind == Kind::Mlp)?.linears.get(1)
}

/// The tensors whose rows may be scaled: gates and their biases, and ups.
///
/// # Errors
/// [`PlanError::Setting`] for a gate that is encoded too.
pub(super) fn touched(
    inputs: Inputs<'_>,
    model: &Model,
    encodes: &BTreeMap<&str, Encode>,
    touched: &mut BTreeMap<String, Vec<String>>,
) -> std::result::Result<(), PlanError> {
    for block in &model.blocks {
        let down = encodes.iter().find(|(name, encode)| format_of(encode).is_some() && is_down(block, name));
        let (Some((down, encode)), Some(gate)) = (down, gate(block)) else { continue };
        if !format_of(encode).is_some_and(|(_, format)| format.perturbed) {
            continue;
        }
        if encodes.contains_key(gate.weight.as_str()) {
            let line = inputs.recipe.passes.iter().find(|rule| rule.pass == encode.pass).map_or(0, |rule| rule.line);
            let message = format!("expected false where `{}` is encoded too: codes have no signs of rows", gate.weight);
            return Err(PlanError::setting(&encode.pass, line, down, SettingError::new("perturb", message)));
        }
        let up = up(block).filter(|_| format_of(encode).is_some_and(|(_, format)| format.hardened));
        let up = up.map(|up| up.weight.clone());
        if let Some(up) = up.as_ref().filter(|up| encodes.contains_key(up.as_str())) {
            let line = inputs.recipe.passes.iter().find(|rule| rule.pass == encode.pass).map_or(0, |rule| rule.line);
            let message = format!("expected false where `{up}` is encoded too: codes have no factors of rows");
            return Err(PlanError::setting(&encode.pass, line, down, SettingError::new("hardened", message)));
        }
        for name in [Some(gate.weight.clone()), gate.bias.clone(), up].into_iter().flatten() {
            touched.entry(name).or_default().push(encode.pass.clone());
        }
    }
    Ok(())
}

/// What expanded MLPs cost, in a sentence: multiply-adds of a token in linears, against the source's. Attention's scores, norms
/// and activations are not counted.
pub(super) fn note(model: &Model, encodes: &BTreeMap<&str, Encode>) -> Option<String> {
    let (mut mlp, mut mlp_after, mut others) = (0_u128, 0_u128, 0_u128);
    for block in &model.blocks {
        let down = encodes.iter().find(|(name, encode)| format_of(encode).is_some() && is_down(block, name));
        let all: u128 = match &block.experts {
            Some(experts) => {
                let one = experts.inputs.first().into_iter().flatten().chain(experts.outputs.first());
                let routed: u128 = one.map(|linear| linear.weights() as u128).sum();
                let stages = block.stages.iter().flat_map(|stage| &stage.linears);
                routed * experts.top as u128 + stages.map(|linear| linear.weights() as u128).sum::<u128>()
            }
            None => block.linears().map(|linear| linear.weights() as u128).sum(),
        };
        let Some((_, format)) = down.and_then(|(_, encode)| format_of(encode)) else {
            others += all;
            continue;
        };
        let of_mlp = block.stages.iter().filter(|stage| matches!(stage.kind, Kind::Mlp | Kind::MlpOutput));
        let of_mlp: u128 = of_mlp.flat_map(|stage| &stage.linears).map(|linear| linear.weights() as u128).sum();
        mlp += of_mlp;
        // Each expanded unit's column is met once for each power.
        mlp_after += of_mlp + (format.order * format.units * model.hidden) as u128;
        others += all - of_mlp;
    }
    others += model.head.as_ref().map_or(0, |head| head.weights() as u128);
    let factor = |after: u128, before: u128| after as f64 / before.max(1) as f64;
    (mlp > 0).then(|| {
        format!(
            "pass `taylor_mlp` makes the model slower and its weights less handy; it does not protect them, for the \
             terms give them back (`bantam decode`). Multiply-adds of a token: MLPs × {:.2}, all linears × {:.2}",
            factor(mlp_after, mlp),
            factor(mlp_after + others, mlp + others)
        )
    })
}
