//! Rotary position embeddings: frequencies of every variant that configs name, and the rotation.
//!
//! Sources: RoFormer (arXiv 2104.09864); linear and dynamic NTK scaling, Llama-3's and YaRN (arXiv 2309.00071), LongRoPE
//! (arXiv 2402.13753), each in the form that transformers' configs parametrise.

use std::f64::consts::PI;

use serde_json::Value;

use super::{ForwardError, config::Config};

/// One rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Channels of a head that are rotated, an even number.
    pub dimensions: usize,
    /// Whether channels 2i and 2i+1 rotate together (DeepSeek), instead of i and i + dimensions/2.
    pub interleaved: bool,
    base: f64,
    scaling: Scaling,
}

#[derive(Debug, Clone, PartialEq)]
enum Scaling {
    None,
    Linear { factor: f64 },
    Dynamic { factor: f64, positions: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
    Yarn { factor: f64, fast: f64, slow: f64, original: f64, truncate: bool, amplitude: f64 },
    Long { short: Vec<f64>, long: Vec<f64>, original: usize, amplitude: f64 },
}

/// Cosines and sines of all positions: `[length, dimensions / 2]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    pub(crate) half: usize,
    pub(crate) interleaved: bool,
    pub(crate) cosines: Vec<f32>,
    pub(crate) sines: Vec<f32>,
}

/// YaRN's growth of the attention's temperature, §3.4.
#[must_use]
pub fn yarn_scale(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

impl Rope {
    /// Reads the parameters for one kind of layer (`full_attention`, `sliding_attention`), where a config tells them
    /// apart. `head` is the number of a head's channels that can be rotated.
    pub fn read(config: &Config<'_>, layer: &str, head: usize, default_base: f64) -> Result<Self, ForwardError> {
        let nothing = Value::Null;
        let parameters = config.value("rope_parameters").or_else(|| config.value("rope_scaling")).unwrap_or(&nothing);
        let nested = parameters.get(layer).filter(|nested| nested.is_object());
        let parameters = nested.unwrap_or(parameters);
        let number = |key: &str| parameters[key].as_f64();
        let local = nested.is_none() && layer == "sliding_attention";
        let local_base = if local { config.number("rope_local_base_freq")? } else { None };
        let base = match (local_base, number("rope_theta")) {
            (Some(base), _) | (None, Some(base)) => base,
            (None, None) => config.number("rope_theta")?.unwrap_or(default_base),
        };
        let partial = match number("partial_rotary_factor") {
            Some(partial) => partial,
            None => config.number("partial_rotary_factor")?.unwrap_or(1.0),
        };
        let dimensions = (head as f64 * partial) as usize;
        if dimensions == 0 || !dimensions.is_multiple_of(2) {
            return Err(ForwardError::config(
                "partial_rotary_factor",
                format!("leaves {dimensions} channels to rotate"),
            ));
        }
        let kind = parameters["rope_type"].as_str().or_else(|| parameters["type"].as_str()).unwrap_or("default");
        let positions = config.number("max_position_embeddings")?.unwrap_or(2048.0);
        let needed = |key: &str| {
            number(key).ok_or_else(|| ForwardError::config(&format!("rope_parameters.{key}"), "is missing"))
        };
        let original = || -> Result<f64, ForwardError> {
            let outside = config.number("original_max_position_embeddings")?;
            Ok(outside.or_else(|| number("original_max_position_embeddings")).unwrap_or(positions))
        };
        let scaling = match kind {
            // The local layers of older Gemma 3 configs are not scaled.
            _ if local_base.is_some() => Scaling::None,
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: needed("factor")? },
            "dynamic" => Scaling::Dynamic { factor: needed("factor")?, positions },
            "llama3" => Scaling::Llama3 {
                factor: needed("factor")?,
                low: needed("low_freq_factor")?,
                high: needed("high_freq_factor")?,
                original: original()?,
            },
            "yarn" => {
                let original = original()?;
                let factor = number("factor").unwrap_or(positions / original);
                let amplitude = match (number("attention_factor"), number("mscale"), number("mscale_all_dim")) {
                    (Some(amplitude), _, _) => amplitude,
                    (None, Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => {
                        yarn_scale(factor, scale) / yarn_scale(factor, all)
                    }
                    _ => yarn_scale(factor, 1.0),
                };
                Scaling::Yarn {
                    factor,
                    fast: number("beta_fast").unwrap_or(32.0),
                    slow: number("beta_slow").unwrap_or(1.0),
                    original,
                    truncate: parameters["truncate"].as_bool().unwrap_or(true),
                    amplitude,
                }
            }
            "longrope" | "su" => {
                let list = |key: &str| -> Result<Vec<f64>, ForwardError> {
                    let list: Option<Vec<f64>> =
                        parameters[key].as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
                    list.filter(|list| list.len() == dimensions / 2).ok_or_else(|| {
                        ForwardError::config(
                            &format!("rope_parameters.{key}"),
                            format!("is not a list of {} numbers", dimensions / 2),
                        )
                    })
                };
                let original = original()?;
                let factor = number("factor").unwrap_or(positions / original);
                let amplitude = number("attention_factor").unwrap_or(if factor <= 1.0 {
                    1.0
                } else {
                    (1.0 + factor.ln() / original.ln()).sqrt()
                });
                let (short, long) = (list("short_factor")?, list("long_factor")?);
                Scaling::Long { short, long, original: original as usize, amplitude }
            }
            other => {
                return Err(ForwardError::config(
                    "rope_parameters.rope_type",
                    format!("is \"{other}\", expected default, linear, dynamic, llama3, yarn or longrope"),
                ));
            }
        };
        Ok(Self { dimensions, interleaved: false, base, scaling })
    }

    /// Radians per position of each pair, for sequences of `length` tokens, and what cosines and sines are multiplied by.
    fn frequencies(&self, length: usize) -> (Vec<f64>, f64) {
        let dimensions = self.dimensions as f64;
        let plain = |base: f64| -> Vec<f64> {
            (0..self.dimensions).step_by(2).map(|index| 1.0 / base.powf(index as f64 / dimensions)).collect()
        };
        match &self.scaling {
            Scaling::None => (plain(self.base), 1.0),
            Scaling::Linear { factor } => (plain(self.base).into_iter().map(|f| f / factor).collect(), 1.0),
            Scaling::Dynamic { factor, positions } => {
                let length = (length as f64).max(*positions);
                let growth = (factor * length / positions - (factor - 1.0)).powf(dimensions / (dimensions - 2.0));
                (plain(self.base * growth), 1.0)
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let scaled = |frequency: f64| {
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength < original / high {
                        frequency
                    } else if wavelength > original / low {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                (plain(self.base).into_iter().map(scaled).collect(), 1.0)
            }
            Scaling::Yarn { factor, fast, slow, original, truncate, amplitude } => {
                let dimension =
                    |rotations: f64| dimensions * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.base.ln());
                let (mut low, mut high) = (dimension(*fast), dimension(*slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dimensions - 1.0));
                if low == high {
                    high += 0.001;
                }
                let mixed = |(index, frequency): (usize, f64)| {
                    let ramp = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * ramp + frequency * (1.0 - ramp)
                };
                (plain(self.base).into_iter().enumerate().map(mixed).collect(), *amplitude)
            }
            Scaling::Long { short, long, original, amplitude } => {
                let factors = if length > *original { long } else { short };
                let frequencies = plain(self.base).into_iter().zip(factors).map(|(f, factor)| f / factor).collect();
                (frequencies, *amplitude)
            }
        }
    }

    /// The rotation of positions 0 to `length` − 1.
    #[must_use]
    pub fn rotation(&self, length: usize) -> Rotation {
        let (frequencies, amplitude) = self.frequencies(length);
        let half = frequencies.len();
        let (mut cosines, mut sines) = (Vec::with_capacity(length * half), Vec::with_capacity(length * half));
        for position in 0..length {
            for frequency in &frequencies {
                // Frequencies are F32 in every runtime; the angle is then better exact than rounded.
                let angle = f64::from(position as f32 * *frequency as f32);
                cosines.push((angle.cos() * amplitude) as f32);
                sines.push((angle.sin() * amplitude) as f32);
            }
        }
        Rotation { half, interleaved: self.interleaved, cosines, sines }
    }
}

impl Rotation {
    /// Rotates one head at a position in place; channels past the rotated ones stay.
    pub fn apply(&self, position: usize, head: &mut [f32]) {
        let cosines = &self.cosines[position * self.half..][..self.half];
        let sines = &self.sines[position * self.half..][..self.half];
        if self.interleaved {
            for ((pair, cosine), sine) in head.chunks_exact_mut(2).zip(cosines).zip(sines) {
                let (first, second) = (pair[0], pair[1]);
                pair[0] = first * cosine - second * sine;
                pair[1] = second * cosine + first * sine;
            }
            return;
        }
        let (first, rest) = head.split_at_mut(self.half);
        for (((first, second), cosine), sine) in first.iter_mut().zip(rest).zip(cosines).zip(sines) {
            let (one, two) = (*first, *second);
            *first = one * cosine - two * sine;
            *second = two * cosine + one * sine;
        }
    }
}
