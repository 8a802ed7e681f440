//! Static scales of inputs: the largest magnitude that a linear's input has in the calibration text decides one scale
//! for good.

use serde::{Deserialize, Serialize};

use super::{Moments, SolveFailure, driver::Worker, record::Line};
use crate::{
    Result,
    codec::Element,
    forward::{ExpertsSpec, InputFormat, LinearSpec},
    layout::Activations,
    plan::Encode,
};

/// Name of the deviation that [`InputRange::borrowed`] counts.
pub const BORROWED: &str = "borrowed-input-scale";

/// What was found of a linear's input, and the scale that follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputRange {
    /// Calibration tokens that the linear saw.
    pub tokens: u64,
    /// The magnitude that decided the scale.
    pub largest: f32,
    /// The scale as stored: an input of this much has code 1.
    pub scale: f32,
    /// Whether `largest` is that of other experts: this one saw no token, or nothing but zeros.
    pub borrowed: bool,
}

/// How the runtime will round the input of an encoded linear. A static scale is still open: see
/// [`InputFormat::for_largest`].
#[must_use]
pub fn input_format(encode: &Encode) -> InputFormat {
    let Some(codec) = encode.choice.codec.scalar() else { return InputFormat::Exact };
    match (encode.choice.activations, codec.element) {
        (Activations::Dynamic, Element::Integer { .. }) => InputFormat::Int8PerToken,
        (Activations::Dynamic, Element::Fp8E4M3) => InputFormat::Fp8PerToken,
        (Activations::Static, Element::Integer { .. }) => InputFormat::Int8Static(1.0),
        (Activations::Static, Element::Fp8E4M3) => InputFormat::Fp8Static(1.0),
        _ => InputFormat::Exact,
    }
}

/// The scale for this largest magnitude as it is stored beside the weights; 1 where the input is 0 throughout, which
/// any scale holds.
fn stored_scale(encode: &Encode, largest: f32) -> f32 {
    match input_format(encode).for_largest(largest) {
        InputFormat::Int8Static(scale) | InputFormat::Fp8Static(scale) if largest > 0.0 => {
            encode.choice.codec.scalar().map_or(scale, |codec| codec.scale.round(scale).value)
        }
        _ => 1.0,
    }
}

impl<'a> Worker<'a> {
    fn static_encode(&self, linear: &LinearSpec) -> Option<&'a Encode> {
        let encode = self.encodes.get(linear.weight.as_str()).copied();
        encode.filter(|encode| encode.choice.activations == Activations::Static)
    }

    /// Whether something has to be known of the input that these linears share.
    pub(super) fn needs_input(&self, linears: &[LinearSpec]) -> bool {
        self.is_solved(linears) || linears.iter().any(|linear| self.static_encode(linear).is_some())
    }

    /// Whether everything of these linears is known from an earlier run.
    pub(super) fn is_known(&self, linears: &[LinearSpec]) -> bool {
        linears.iter().all(|linear| {
            let range =
                self.static_encode(linear).is_none() || self.solutions.inputs.contains_key(linear.weight.as_str());
            let codes = match self.encodes.get(linear.weight.as_str()) {
                Some(encode) if encode.settings.is_solved() => {
                    self.solutions.solved(&linear.weight, linear.expert.unwrap_or(0)).is_some()
                }
                _ => true,
            };
            range && codes
        })
    }

    /// How the input of an encoded linear is rounded, as far as that is known.
    pub(super) fn rounding(&self, encode: &Encode, weight: &str) -> InputFormat {
        match (input_format(encode), self.solutions.inputs.get(weight)) {
            (InputFormat::Int8Static(_), Some(range)) => InputFormat::Int8Static(range.scale),
            (InputFormat::Fp8Static(_), Some(range)) => InputFormat::Fp8Static(range.scale),
            // Nothing flows through a linear whose input was never seen.
            (InputFormat::Int8Static(_) | InputFormat::Fp8Static(_), None) => InputFormat::Exact,
            (format, _) => format,
        }
    }

    /// Keeps the ranges of linears whose shared input was seen.
    pub(super) fn keep_ranges(&mut self, linears: &[LinearSpec], moments: &Moments) -> Result<()> {
        let largest = moments.absmax.iter().copied().fold(0.0, f32::max);
        if largest == 0.0 {
            return Ok(());
        }
        for linear in linears {
            self.keep_range(linear, moments.count, largest, false)?;
        }
        Ok(())
    }

    /// Gives those of `peers` whose input was not seen the largest range of the others.
    fn borrow_ranges(&mut self, peers: &[&LinearSpec]) -> Result<()> {
        let known = |linear: &&LinearSpec| self.solutions.inputs.get(linear.weight.as_str()).map(|range| range.largest);
        let largest = peers.iter().filter_map(known).fold(0.0, f32::max);
        for linear in peers {
            self.keep_range(linear, 0, largest, true)?;
        }
        Ok(())
    }

    /// Linears with no others to borrow from: an input that is 0 throughout.
    pub(super) fn borrow_alone(&mut self, linears: &[LinearSpec]) -> Result<()> {
        linears.iter().try_for_each(|linear| self.borrow_ranges(&[linear]))
    }

    /// The same linear of all experts of a block, for each of an expert's linears.
    pub(super) fn borrow_from_experts(&mut self, experts: &ExpertsSpec) -> Result<()> {
        let count = experts.inputs.iter().map(Vec::len).max().unwrap_or(0);
        for position in 0..count {
            let peers: Vec<&LinearSpec> = experts.inputs.iter().filter_map(|linears| linears.get(position)).collect();
            self.borrow_ranges(&peers)?;
        }
        self.borrow_ranges(&experts.outputs.iter().collect::<Vec<_>>())
    }

    fn keep_range(&mut self, linear: &LinearSpec, tokens: u64, largest: f32, borrowed: bool) -> Result<()> {
        let name = &linear.weight;
        let Some(encode) = self.static_encode(linear).filter(|_| !self.solutions.inputs.contains_key(name)) else {
            return Ok(());
        };
        if borrowed && self.job.deny_fallbacks {
            return Err(SolveFailure::Denied { tensor: name.clone(), kind: BORROWED.to_owned(), count: 1 }.into());
        }
        let range = InputRange { tokens, largest, scale: stored_scale(encode, largest), borrowed };
        Ok(self.solutions.append(Line::Input { name: name.clone(), range })?)
    }
}
