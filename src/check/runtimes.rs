//! Which runtimes load which layouts and number formats, from their documentation and sources: `docs/ci.md` has the table.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    codec::{Codec, Element, Granularity, ZeroPoint},
    layout::{Activations, LayoutName, MatrixSpec},
    manifest::{Manifest, OutputTensor},
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

/// Groups of packed integers that they take, besides whole rows.
const VLLM_GROUPS: [usize; 3] = [32, 64, 128];

/// Projections that vLLM joins to one matrix when it loads, which therefore need one scheme.
const VLLM_JOINED: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];

/// Rows and columns that its fast kernels for packed integers divide a matrix into; the others compute in F16 only.
const VLLM_TILE: (usize, usize) = (64, 128);

impl Runtime {
    fn name(self) -> &'static str {
        match self {
            Self::Transformers => "transformers",
            Self::Vllm => "vllm",
        }
    }

    /// What stands in the way of loading the artifact of this manifest and `config.json`.
    #[must_use]
    pub fn findings(self, manifest: &Manifest, config: Option<&Value>) -> Vec<Finding> {
        let layout = manifest.layout;
        if !self.layouts().contains(&layout) {
            let names: Vec<&str> = self.layouts().iter().map(|layout| layout.as_str()).collect();
            let message = format!("{} does not load this layout", self.name());
            return vec![Finding::of_all("runtime", message).with(layout.as_str(), names.join(" or "))];
        }
        let matrices = manifest.tensors.iter().filter_map(|tensor| tensor.matrix.as_ref());
        let mut findings: Vec<Finding> = matrices
            .filter_map(|matrix| {
                let limit = self.refuses(layout, matrix)?;
                let message =
                    format!("{} does not load this number format in layout `{}`", self.name(), layout.as_str());
                Some(Finding::new("runtime", &matrix.name, message).with(matrix.codec.name(), limit))
            })
            .collect();
        if self == Self::Vllm {
            findings.extend(joined(manifest));
            findings.extend(half_only(manifest, config));
            findings.extend(tokenizer(manifest));
        }
        findings
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
        let codec = matrix.codec.scalar()?;
        let integers = matches!(codec.element, Element::Integer { .. });
        if self != Self::Vllm || layout != LayoutName::CompressedTensors || !integers {
            return None;
        }
        if !VLLM_PACKED_BITS.contains(&codec.codec_bits()) {
            return Some("integers of 4 or 8 bits".to_owned());
        }
        match codec.granularity {
            Granularity::Group(size) if matrix.activations == Activations::None && !VLLM_GROUPS.contains(&size) => {
                Some("groups of 32, 64 or 128, or whole rows".to_owned())
            }
            _ => None,
        }
    }
}

/// vLLM joins query, key and value, and gate and up, and refuses parts of different schemes.
fn joined(manifest: &Manifest) -> Vec<Finding> {
    let scheme = |tensor: &OutputTensor| {
        let activations = tensor.matrix.as_ref().map_or(Activations::None, |matrix| matrix.activations);
        match activations {
            Activations::None => tensor.codec.clone(),
            Activations::Dynamic => format!("{} with dynamic inputs", tensor.codec),
            Activations::Static => format!("{} with static inputs", tensor.codec),
        }
    };
    let mut findings = Vec::new();
    for tensor in &manifest.tensors {
        for parts in VLLM_JOINED {
            let first = format!("{}.weight", parts[0]);
            let Some(prefix) = tensor.name.strip_suffix(&first).filter(|prefix| prefix.ends_with('.')) else {
                continue;
            };
            let others = parts[1..].iter().filter_map(|part| manifest.tensor(&format!("{prefix}{part}.weight")));
            findings.extend(others.filter(|other| scheme(other) != scheme(tensor)).map(|other| {
                let message = format!("vllm joins it with {}, which has another scheme", parts[0]);
                Finding::new("runtime", &other.name, message).with(scheme(other), scheme(tensor))
            }));
        }
    }
    findings
}

/// vLLM's kernels for GPTQ and AWQ that take every shape and width compute in F16 only; its fast ones take BF16 too.
fn half_only(manifest: &Manifest, config: Option<&Value>) -> Vec<Finding> {
    let layout = manifest.layout;
    let dtype = config.and_then(|config| config.get("dtype").or_else(|| config.get("torch_dtype"))?.as_str());
    if !matches!(layout, LayoutName::Gptq | LayoutName::Awq) || dtype != Some("bfloat16") {
        return Vec::new();
    }
    let matrices = manifest.tensors.iter().filter_map(|tensor| tensor.matrix.as_ref());
    let slow = matrices.filter(|matrix| matrix.codec.scalar().is_some_and(|codec| !is_fast(layout, matrix, codec)));
    let message = "vllm computes with it in float16 only, and config.json says bfloat16";
    slow.map(|matrix| Finding::new("runtime", &matrix.name, message.into()).with("bfloat16", "float16")).collect()
}

fn is_fast(layout: LayoutName, matrix: &MatrixSpec, codec: &Codec) -> bool {
    let format = match layout {
        LayoutName::Awq => codec.codec_bits() == 4,
        _ => VLLM_PACKED_BITS.contains(&codec.codec_bits()) && codec.zero == ZeroPoint::None,
    };
    let group = match codec.granularity {
        Granularity::Group(size) => VLLM_GROUPS.contains(&size),
        _ => true,
    };
    let shape = matrix.expert_rows().is_multiple_of(VLLM_TILE.0) && matrix.columns.is_multiple_of(VLLM_TILE.1);
    format && group && shape
}

fn tokenizer(manifest: &Manifest) -> Option<Finding> {
    const FILES: [&str; 4] = ["tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"];
    let found = manifest.files.iter().any(|file| FILES.contains(&file.name.as_str()));
    let message = "vllm reads the tokenizer beside the model, and there is none".to_owned();
    (!found).then(|| Finding::of_all("runtime", message).with("no tokenizer", "tokenizer.json"))
}
