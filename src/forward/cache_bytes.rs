//! What a runtime keeps of earlier tokens: keys and values, or latents of them.

use serde::Serialize;

use super::Model;
use crate::layout::{CachePolicy, LayerRanks};

/// Bytes of a model's cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CacheBytes {
    /// Of each token, keys and values as they are.
    pub kv_bytes_per_token_before: u64,
    /// Of each token in the long run, scales of quantized latents counted.
    pub kv_bytes_per_token: f64,
    /// Of the window of exact keys and values, whatever the length of the text.
    pub kv_window_bytes: u64,
    /// The most that latents of tokens which are not quantized yet take beyond that, whatever the length of the text.
    pub kv_pending_bytes: u64,
}

impl CacheBytes {
    /// Of a model whose keys and values have so many bytes each. None where it caches latents of its own, or nothing.
    #[must_use]
    pub fn of(model: &Model, element_bytes: u64, policy: Option<&CachePolicy>) -> Option<Self> {
        if !model.causal || model.blocks.iter().any(|block| block.latent.is_some()) {
            return None;
        }
        let none = LayerRanks::default();
        let mut bytes =
            Self { kv_bytes_per_token_before: 0, kv_bytes_per_token: 0.0, kv_window_bytes: 0, kv_pending_bytes: 0 };
        for block in &model.blocks {
            let attention = &block.attention;
            let ranks = policy.and_then(|policy| policy.layers.get(block.index)).unwrap_or(&none);
            let parts =
                [(&ranks.key_ranks, attention.key_width, true), (&ranks.value_ranks, attention.value_width, false)];
            for (ranks, width, is_key) in parts {
                let whole = (attention.key_value_heads * width) as u64 * element_bytes;
                bytes.kv_bytes_per_token_before += whole;
                let (latent, Some(policy)) = (ranks.iter().sum::<usize>() as u64, policy.filter(|_| !ranks.is_empty()))
                else {
                    bytes.kv_bytes_per_token += whole as f64;
                    continue;
                };
                bytes.kv_window_bytes += whole * policy.window as u64;
                let Some(bits) = policy.cache_bits else {
                    bytes.kv_bytes_per_token += (latent * element_bytes) as f64;
                    continue;
                };
                let group = policy.cache_group as u64;
                let codes = latent as f64 * f64::from(bits) / 8.0;
                // A scale and a smallest value: for each channel of a block of keys, for each token and group of values.
                let scales = if is_key { latent as f64 / group as f64 } else { ranks.len() as f64 };
                let scales = scales * 2.0 * element_bytes as f64;
                bytes.kv_bytes_per_token += codes + scales;
                bytes.kv_pending_bytes += latent * element_bytes * (policy.window as u64 + group - 1);
            }
        }
        Some(bytes)
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { kv_bytes_per_token_before: before, kv_bytes_per_token: after, .. } = self;
        if *after >= *before as f64 {
            return format!("{before} bytes per token");
        }
        let share = 100.0 * after / (*before).max(1) as f64;
        format!("{before} → {after} bytes per token ({share:.1} %)")
    }

    /// What it takes beside, whatever the length of the text; none where that is nothing.
    #[must_use]
    pub fn constant_text(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.kv_window_bytes > 0 {
            parts.push(format!("{} bytes of exact keys and values", self.kv_window_bytes));
        }
        if self.kv_pending_bytes > 0 {
            parts.push(format!("up to {} of latents not quantized yet", self.kv_pending_bytes));
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}
