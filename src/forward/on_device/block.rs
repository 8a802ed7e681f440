//! One block on the device, stage by stage.

use std::ops::Deref;

use super::{DeviceLinears, DeviceState, Trouble, state::down};
use crate::{
    compute::{
        ComputeError, Device,
        kernels::{Angles, DeviceMatrix, DeviceNorm, Gate, QueryKeyValue, Scores, add_branch, attend},
    },
    forward::{Block, ForwardError, Kind, NormKind, State, kernels::Norm, spec::After},
};

/// A block with its small weights on the device.
#[derive(Debug)]
pub struct DeviceBlock<'b> {
    block: &'b Block<'b>,
    attention_norm: Option<DeviceNorm>,
    after_attention: Option<DeviceNorm>,
    mlp_norm: Option<DeviceNorm>,
    after_mlp: Option<DeviceNorm>,
    head_norms: Option<[DeviceNorm; 2]>,
    sinks: Option<DeviceMatrix>,
    angles: Option<Angles>,
    scores: Scores,
}

/// The input of a stage's linears.
#[derive(Debug)]
pub enum Input<'s> {
    /// A part of the state.
    Held(&'s DeviceMatrix),
    /// Computed from it.
    Made(DeviceMatrix),
}

impl Deref for Input<'_> {
    type Target = DeviceMatrix;

    fn deref(&self) -> &DeviceMatrix {
        match self {
            Self::Held(matrix) => matrix,
            Self::Made(matrix) => matrix,
        }
    }
}

fn norm(device: &Device, norm: &Norm) -> Result<DeviceNorm, ComputeError> {
    let row = |values: &[f32]| match values {
        [] => Ok(None),
        values => DeviceMatrix::upload(device, "norm", values.len(), values).map(Some),
    };
    Ok(DeviceNorm {
        centred: norm.kind == NormKind::Layer,
        weight: row(&norm.weight)?,
        bias: row(&norm.bias)?,
        epsilon: norm.epsilon,
    })
}

/// `x` normed, as a matrix of its own.
fn normed(device: &Device, norm: &DeviceNorm, x: &DeviceMatrix) -> Result<DeviceMatrix, ComputeError> {
    let out = DeviceMatrix::zeros(device, "normed", x.rows, x.columns)?;
    let mut batch = device.batch();
    norm.add(device, &mut batch, &x.view(), 1, &out.view())?;
    batch.submit()?;
    Ok(out)
}

impl<'b> DeviceBlock<'b> {
    /// Brings the small weights of a block to the device.
    ///
    /// # Errors
    /// As for [`Device::upload`].
    pub fn new(device: &Device, block: &'b Block<'b>) -> Result<Self, ComputeError> {
        let optional = |weights: &Option<Norm>| weights.as_ref().map(|weights| norm(device, weights)).transpose();
        let angles = block.rotation.as_ref().map(|rotation| {
            Angles::upload(device, rotation.half, rotation.interleaved, &rotation.cosines, &rotation.sines)
        });
        let sinks = match &block.sinks[..] {
            [] => None,
            sinks => Some(DeviceMatrix::upload(device, "sinks", sinks.len(), sinks)?),
        };
        Ok(Self {
            block,
            attention_norm: optional(&block.attention_norm)?,
            after_attention: optional(&block.after_attention)?,
            mlp_norm: optional(&block.mlp_norm)?,
            after_mlp: optional(&block.after_mlp)?,
            head_norms: match &block.head_norms {
                Some([query, key]) => Some([norm(device, query)?, norm(device, key)?]),
                None => None,
            },
            sinks,
            angles: angles.transpose()?,
            scores: Scores::default(),
        })
    }

    /// The block itself.
    #[must_use]
    pub fn block(&self) -> &'b Block<'b> {
        self.block
    }

    /// Whether all of a stage runs on the device, so that the state need not come down.
    #[must_use]
    pub fn has_kernels_for(kind: Kind) -> bool {
        matches!(kind, Kind::Attention | Kind::AttentionOutput | Kind::Mlp | Kind::MlpOutput)
    }

    /// The input of a stage's linears, `[tokens, input]`, as [`Block::input`] gives it. Queues what has to be computed. Not
    /// for the router and the experts, which have none.
    ///
    /// # Errors
    /// As for [`crate::compute::Batch::add`] and [`Device::allocate`].
    pub fn input<'s>(&self, device: &Device, stage: usize, state: &'s DeviceState) -> Result<Input<'s>, ComputeError> {
        let of_hidden = |norm: &Option<DeviceNorm>| match norm {
            Some(norm) => normed(device, norm, &state.hidden).map(Input::Made),
            None => Ok(Input::Held(&state.hidden)),
        };
        match self.block.spec.stages[stage].kind {
            Kind::Attention | Kind::LatentInput | Kind::LatentCache => of_hidden(&self.attention_norm),
            Kind::Mlp => of_hidden(&self.mlp_norm),
            Kind::AttentionOutput | Kind::LatentQuery | Kind::MlpOutput | Kind::SharedExpert => {
                Ok(Input::Held(&state.carried[0]))
            }
            Kind::LatentKeyValue => Ok(Input::Held(&state.carried[1])),
            Kind::SharedExpertOutput => Ok(Input::Held(&state.carried[3])),
            Kind::Router | Kind::Experts => Ok(Input::Held(&state.hidden)),
        }
    }

    /// One stage from beginning to end, as [`Block::apply`] does it. Waits only where the state comes down.
    ///
    /// # Errors
    /// [`Trouble::Device`] when the device fails; [`Trouble::Model`] as [`Block::finish`], for stages without kernels.
    pub fn apply(
        &mut self,
        device: &Device,
        stage: usize,
        state: &mut DeviceState,
        linears: &DeviceLinears<'_>,
    ) -> Result<(), Trouble> {
        let kind = self.block.spec.stages[stage].kind;
        let y = if linears.is_empty() {
            None
        } else {
            let x = self.input(device, stage, state)?;
            Some(linears.apply(device, &x)?)
        };
        match (kind, y) {
            (Kind::Attention, Some(y)) => {
                let mixed = self.attend(device, &y, state.length)?;
                state.carried = vec![mixed];
            }
            (Kind::Mlp, Some(y)) => {
                let hidden = self.activate(device, &y)?;
                state.carried = vec![hidden];
            }
            (Kind::AttentionOutput | Kind::MlpOutput, Some(y)) => {
                let (norm, after) = match kind {
                    Kind::AttentionOutput => (&self.after_attention, &self.block.spec.after_attention),
                    _ => (&self.after_mlp, &self.block.spec.after_mlp),
                };
                state.carried.clear();
                residual(device, &mut state.hidden, y, norm.as_ref(), matches!(after, After::Sum(_)))?;
            }
            (_, y) => {
                let mut here = state.download(device)?;
                let y = y.map(|y| down(device, &y)).transpose()?.unwrap_or_default();
                self.block.finish(stage, &mut here, y)?;
                *state = DeviceState::upload(device, &here)?;
            }
        }
        Ok(())
    }

    /// Brings a state down behind a stage and sees that it is finite.
    ///
    /// # Errors
    /// As for [`Device::read`]; [`ForwardError::Overflow`].
    pub fn download(&self, device: &Device, stage: usize, state: &DeviceState) -> Result<State, Trouble> {
        let here = state.download(device)?;
        let kinds = self.block.spec.stages[..=stage].iter().rev().map(|stage| stage.kind);
        let mut what =
            kinds.filter(|kind| matches!(kind, Kind::AttentionOutput | Kind::MlpOutput)).map(|kind| match kind {
                Kind::AttentionOutput => "attention",
                _ => "mlp",
            });
        // The branch that was added last; an earlier one of the same visit may be at fault.
        match what.next() {
            Some(what) if !here.hidden.is_finite() => {
                Err(ForwardError::Overflow { block: self.block.spec.index, what }.into())
            }
            _ => Ok(here),
        }
    }

    fn attend(&mut self, device: &Device, y: &DeviceMatrix, length: usize) -> Result<DeviceMatrix, ComputeError> {
        let attention = &self.block.spec.attention;
        let (tokens, query) = (y.rows, attention.heads * attention.key_width);
        let key = attention.key_value_heads * attention.key_width;
        let value = attention.key_value_heads * attention.value_width;
        let mut batch = device.batch();
        let mut made = Vec::new();
        if let Some(norms) = &self.head_norms {
            let sides = [(0..query, attention.heads), (query..query + key, attention.key_value_heads)];
            for (norm, (columns, heads)) in norms.iter().zip(sides) {
                let out = DeviceMatrix::zeros(device, "heads", tokens, columns.len())?;
                norm.add(device, &mut batch, &y.part(0..tokens, columns), heads, &out.view())?;
                made.push(out);
            }
        }
        let (queries, keys) = match &made[..] {
            [queries, keys] => (queries.view(), keys.view()),
            _ => (y.part(0..tokens, 0..query), y.part(0..tokens, query..query + key)),
        };
        if let Some(angles) = &self.angles {
            angles.rotate(device, &mut batch, &queries, attention.heads)?;
            angles.rotate(device, &mut batch, &keys, attention.key_value_heads)?;
        }
        batch.submit()?;
        let out = DeviceMatrix::zeros(device, "mixed", tokens, attention.heads * attention.value_width)?;
        let values = y.part(0..tokens, query + key..query + key + value);
        let inputs = QueryKeyValue { query: queries, key: keys, value: values };
        attend(device, attention, &inputs, length, self.sinks.as_ref(), &mut self.scores, &out.view())?;
        Ok(out)
    }

    fn activate(&self, device: &Device, y: &DeviceMatrix) -> Result<DeviceMatrix, ComputeError> {
        let activation = self.block.spec.activation;
        let (gate, width) = if self.block.spec.gated {
            (Gate::Halves(activation), y.columns / 2)
        } else {
            (Gate::Plain(activation), y.columns)
        };
        let out = DeviceMatrix::zeros(device, "activated", y.rows, width)?;
        let mut batch = device.batch();
        gate.add(device, &mut batch, &y.view(), &out.view())?;
        batch.submit()?;
        Ok(out)
    }
}

/// Adds a branch to the residual stream, with the norm that stands behind it or behind the sum.
fn residual(
    device: &Device,
    hidden: &mut DeviceMatrix,
    y: DeviceMatrix,
    norm: Option<&DeviceNorm>,
    of_sum: bool,
) -> Result<(), ComputeError> {
    let branch = match norm {
        Some(norm) if !of_sum => normed(device, norm, &y)?,
        _ => y,
    };
    let mut batch = device.batch();
    add_branch(device, &mut batch, &branch.view(), &hidden.view())?;
    batch.submit()?;
    if let Some(norm) = norm.filter(|_| of_sum) {
        *hidden = normed(device, norm, hidden)?;
    }
    Ok(())
}
