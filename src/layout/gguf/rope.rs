//! Scaled rotary positions, as far as GGUF can say how.

use serde_json::Value as Json;

use crate::checkpoint::gguf::Value;

/// The tensor of the factors that Llama 3.1's frequencies are divided by.
pub(crate) const FACTORS: &str = "rope_freqs.weight";

/// How frequencies differ from their base.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scaling {
    None,
    Linear { factor: f64 },
    Yarn { factor: f64, original: u64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
}

/// Rotary positions of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rope {
    pub base: f64,
    pub scaling: Scaling,
}

impl Rope {
    /// From `rope_parameters`, or `rope_theta` and `rope_scaling`.
    pub(super) fn of(config: &Json) -> Result<Self, String> {
        let parameters = [&config["rope_parameters"], &config["rope_scaling"]].into_iter().find(|found| found.is_object());
        let nothing = Json::Null;
        let parameters = parameters.unwrap_or(&nothing);
        let number = |value: &Json, key: &str| value[key].as_f64().filter(|number| number.is_finite() && *number > 0.0);
        let base = number(parameters, "rope_theta").or_else(|| number(config, "rope_theta")).unwrap_or(10000.0);
        let part = [parameters, config].iter().find_map(|section| section["partial_rotary_factor"].as_f64());
        if part.is_some_and(|part| part != 1.0) {
            return Err("`partial_rotary_factor` is not 1, which layout `gguf` does not write".to_owned());
        }
        let word = parameters["rope_type"].as_str().or_else(|| parameters["type"].as_str()).unwrap_or("default");
        let needed = |key: &str| {
            number(parameters, key).ok_or_else(|| format!("rotary positions `{word}` need `{key}` above 0"))
        };
        let original = || match number(parameters, "original_max_position_embeddings") {
            Some(original) => Ok(original),
            None => number(config, "max_position_embeddings")
                .ok_or_else(|| format!("rotary positions `{word}` need `original_max_position_embeddings`")),
        };
        let scaling = match word {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: needed("factor")? },
            "yarn" => {
                let own = ["beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"];
                let standard = |key: &str| match (key, parameters[key].as_f64()) {
                    (_, None) | ("beta_fast", Some(32.0)) | ("beta_slow", Some(1.0)) => true,
                    _ => false,
                };
                if let Some(key) = own.into_iter().find(|key| !standard(key)) {
                    return Err(format!("rotary positions `yarn` with `{key}` are not written in layout `gguf`"));
                }
                Scaling::Yarn { factor: needed("factor")?, original: original()? as u64 }
            }
            "llama3" => Scaling::Llama3 {
                factor: needed("factor")?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                original: original()?,
            },
            other => return Err(format!("layout `gguf` cannot say that rotary positions are scaled as `{other}`")),
        };
        Ok(Self { base, scaling })
    }

    /// Its key-values.
    pub(super) fn entries(&self) -> Vec<(&'static str, Value)> {
        let text = |text: &str| Value::Text(text.to_owned());
        let mut entries = vec![("rope.freq_base", Value::Float(self.base))];
        match self.scaling {
            // The factors of Llama 3.1 are a tensor.
            Scaling::None | Scaling::Llama3 { .. } => {}
            Scaling::Linear { factor } => {
                entries.push(("rope.scaling.type", text("linear")));
                entries.push(("rope.scaling.factor", Value::Float(factor)));
            }
            Scaling::Yarn { factor, original } => {
                entries.push(("rope.scaling.type", text("yarn")));
                entries.push(("rope.scaling.factor", Value::Float(factor)));
                entries.push(("rope.scaling.original_context_length", Value::Unsigned(original)));
            }
        }
        entries
    }

    /// What each frequency is divided by, where that differs among them: Llama 3.1's rule, as its configuration in
    /// transformers defines it. Long waves are divided by the factor, short ones are kept, between them it goes smoothly.
    pub(super) fn factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        let Scaling::Llama3 { factor, low, high, original } = self.scaling else { return None };
        let of = |index: usize| {
            let wave = 2.0 * std::f64::consts::PI * self.base.powf(2.0 * index as f64 / head_dim as f64);
            if wave < original / high {
                1.0
            } else if wave > original / low {
                factor
            } else {
                let smooth = (original / wave - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Some((0..head_dim / 2).map(|index| of(index) as f32).collect())
    }
}
