//! How a runtime rounds the input of a coded linear: what `quantization_config` says of activations.

use serde_json::Value;

use super::{LogicalCheckpoint, config::QuantizationConfig};
use crate::forward::InputFormat;

impl LogicalCheckpoint {
    /// How the input of the linear with this weight is rounded at run time. Formats of activations that no forward pass
    /// here computes (groups) count as exact.
    #[must_use]
    pub fn input_format(&self, weight: &str) -> InputFormat {
        let coded = self.tensor(weight).is_some_and(|tensor| tensor.codec.is_some());
        let config = QuantizationConfig::of(&self.checkpoint);
        let (true, Ok(config)) = (coded, config) else { return InputFormat::Exact };
        let module = weight.strip_suffix(".weight").unwrap_or(weight);
        let Some(groups) = config.value["config_groups"].as_object() else { return InputFormat::Exact };
        let with = |test: &dyn Fn(&str) -> bool| {
            groups.values().find(|group| {
                group["targets"].as_array().is_some_and(|list| list.iter().filter_map(Value::as_str).any(test))
            })
        };
        let named = |target: &str| {
            target == module
                || target
                    .strip_prefix("re:")
                    .is_some_and(|pattern| regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(module)))
        };
        let group = with(&named).or_else(|| with(&|target| target == "Linear"));
        let arguments = group.map_or(&Value::Null, |group| &group["input_activations"]);
        let eight = arguments["num_bits"].as_u64() == Some(8);
        let float = arguments["type"].as_str() == Some("float");
        let static_scale = || {
            let entry = self.checkpoint.tensor(&format!("{module}.input_scale"))?;
            let mut scale = [0.0];
            if entry.shape.iter().product::<usize>() != 1 || !crate::checkpoint::is_float(entry.dtype) {
                return None;
            }
            crate::checkpoint::decode_to_f32(entry.dtype, &self.checkpoint.bytes(entry), &mut scale);
            Some(scale[0])
        };
        match (eight, float, arguments["strategy"].as_str(), arguments["dynamic"].as_bool()) {
            (true, false, Some("token"), Some(true)) => InputFormat::Int8PerToken,
            (true, true, Some("token"), Some(true)) => InputFormat::Fp8PerToken,
            (true, false, Some("tensor"), Some(false)) => {
                static_scale().map_or(InputFormat::Exact, InputFormat::Int8Static)
            }
            (true, true, Some("tensor"), Some(false)) => {
                static_scale().map_or(InputFormat::Exact, InputFormat::Fp8Static)
            }
            _ => InputFormat::Exact,
        }
    }
}
