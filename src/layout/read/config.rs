//! What `config.json` says about quantization, as far as reading needs it.

use serde_json::Value;

use super::super::{LayoutError, delta::METHOD, remote_code::MEMBER};
use crate::checkpoint::{Checkpoint, Dtype};

/// The quantization methods that bantam reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// No `quantization_config`: coded tensors are known by their names.
    None,
    CompressedTensors,
    Gptq,
    Awq,
    Fp8,
    Mxfp4,
    Vptq,
    Bantam,
    Delta,
}

/// `quantization_config` and the type that the model computes in.
pub(super) struct QuantizationConfig {
    pub method: Method,
    /// The object; null where there is none.
    pub value: Value,
    /// `dtype` or `torch_dtype` of the config.
    model_type: Option<Dtype>,
}

impl QuantizationConfig {
    /// Reads the checkpoint's.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self, LayoutError> {
        let nothing = Value::Null;
        let config = checkpoint.config().map_or(&nothing, |config| &config.value);
        // A language model inside a multimodal one has its own section.
        let sections = [config, &config["text_config"]];
        let model_type = sections.iter().find_map(|section| {
            let name = section["dtype"].as_str().or_else(|| section["torch_dtype"].as_str())?;
            match name.strip_prefix("torch.").unwrap_or(name) {
                "bfloat16" => Some(Dtype::BF16),
                "float16" | "half" => Some(Dtype::F16),
                "float32" | "float" => Some(Dtype::F32),
                _ => None,
            }
        });
        let keys = ["quantization_config", "compression_config"];
        let value = sections
            .iter()
            .flat_map(|section| keys.iter().map(|key| &section[*key]))
            .find(|value| value.is_object())
            .cloned()
            .unwrap_or_default();
        // Layout `remote-code` has the list in a member of its own.
        let own = sections.iter().map(|section| &section[MEMBER]).find(|value| value["groups"].is_array());
        if let (false, Some(own)) = (value.is_object(), own) {
            return Ok(Self { method: Method::Bantam, value: own.clone(), model_type });
        }
        let method = match (value.is_object(), value["quant_method"].as_str()) {
            (false, _) => Method::None,
            (true, Some("compressed-tensors")) => Method::CompressedTensors,
            (true, Some("gptq")) => Method::Gptq,
            (true, Some("awq")) => Method::Awq,
            (true, Some("fp8")) => Method::Fp8,
            (true, Some("mxfp4")) => Method::Mxfp4,
            (true, Some("vptq")) => Method::Vptq,
            (true, Some("bantam")) => Method::Bantam,
            (true, Some(METHOD)) => Method::Delta,
            // Early compressed-tensors configs name no method.
            (true, None) if value["config_groups"].is_object() || value["sparsity_config"].is_object() => {
                Method::CompressedTensors
            }
            (true, Some(method)) => return Err(LayoutError::UnknownMethod { method: method.to_owned() }),
            (true, None) => {
                return Err(LayoutError::Config {
                    key: "quant_method".to_owned(),
                    message: "is missing; expected the name of the quantization method".to_owned(),
                });
            }
        };
        Ok(Self { method, value, model_type })
    }

    /// The type that a coded matrix decodes to: the model's, else that of its scales, else BF16.
    pub(super) fn decoded_type(&self, scales: Dtype) -> Dtype {
        self.model_type.unwrap_or(match scales {
            Dtype::F16 | Dtype::F32 => scales,
            _ => Dtype::BF16,
        })
    }

    /// The error for a key without which a tensor cannot be read.
    pub(super) fn needed(&self, key: &str, tensor: &str, expected: &str) -> LayoutError {
        let got = match &self.value[key] {
            Value::Null => "is missing".to_owned(),
            value => format!("is {value}"),
        };
        LayoutError::Config { key: key.to_owned(), message: format!("{got}, but tensor `{tensor}` needs {expected}") }
    }
}
