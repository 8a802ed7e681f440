//! Which runtimes load which layouts and number formats, from their documentation and sources: `docs/ci.md` has the table.

use serde::Deserialize;

use crate::{
    codec::Element,
    layout::{LayoutName, MatrixSpec},
    manifest::Manifest,
    verify::Finding,
};

/// A runtime that a policy can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Hugging Face transformers, with the package that each layout needs.
    Transformers,
    /// vLLM.
    Vllm,
}

/// Bits of the weights that vLLM's kernels for packed integers take.
const VLLM_PACKED_BITS: [u8; 2] = [4, 8];

impl Runtime {
    fn name(self) -> &'static str {
        match self {
            Self::Transformers => "transformers",
            Self::Vllm => "vllm",
        }
    }

    /// What stands in the way of loading the artifact.
    #[must_use]
    pub fn findings(self, manifest: &Manifest) -> Vec<Finding> {
        let layout = manifest.layout;
        if !self.layouts().contains(&layout) {
            let names: Vec<&str> = self.layouts().iter().map(|layout| layout.as_str()).collect();
            let message = format!("{} does not load this layout", self.name());
            return vec![Finding::of_all("runtime", message).with(layout.as_str(), names.join(" or "))];
        }
        let matrices = manifest.tensors.iter().filter_map(|tensor| tensor.matrix.as_ref());
        matrices
            .filter_map(|matrix| {
                let limit = self.refuses(layout, matrix)?;
                let message =
                    format!("{} does not load this number format in layout `{}`", self.name(), layout.as_str());
                Some(Finding::new("runtime", &matrix.name, message).with(matrix.codec.name(), limit))
            })
            .collect()
    }

    fn layouts(self) -> &'static [LayoutName] {
        match self {
            Self::Transformers => &[
                LayoutName::CompressedTensors,
                LayoutName::Gptq,
                LayoutName::GptqV2,
                LayoutName::Awq,
                LayoutName::Vptq,
                LayoutName::RemoteCode,
                LayoutName::Gguf,
                LayoutName::Dense,
            ],
            Self::Vllm => &[LayoutName::CompressedTensors, LayoutName::Gptq, LayoutName::Awq, LayoutName::Dense],
        }
    }

    /// What it would take instead, where it does not take this.
    fn refuses(self, layout: LayoutName, matrix: &MatrixSpec) -> Option<String> {
        match (self, layout, matrix.codec.scalar()) {
            (Self::Vllm, LayoutName::CompressedTensors, Some(codec))
                if matches!(codec.element, Element::Integer { .. }) =>
            {
                let fits = VLLM_PACKED_BITS.contains(&codec.codec_bits());
                (!fits).then(|| "integers of 4 or 8 bits".to_owned())
            }
            _ => None,
        }
    }
}
