//! `format = "q4_k"` and `"q6_k"`: GGUF's super-blocks, which fix all but themselves.

use toml::{Table, Value};

use super::{
    parse::{describe, wrong},
    settings::{Number, Range, Settings, Sharing, ZeroKind},
};
use crate::{
    codec::{CodecError, KQuant, StoredMatrix},
    forward::Matrix,
    layout::Activations,
    passes::{Deviations, SettingError},
};

/// The settings of a k-quant. Keys that say what it fixes are taken, as written settings have them.
///
/// # Errors
/// [`SettingError`] for keys that say something else.
pub fn parse(table: &Table, format: KQuant) -> Result<Settings, SettingError> {
    let part = format.part();
    let symmetric = format == KQuant::Q6K;
    for (key, value) in table {
        let fixed = match key.as_str() {
            "format" => continue,
            "granularity" => Value::from("group"),
            "group_size" => Value::from(part as i64),
            "symmetric" => Value::from(symmetric),
            "range" => Value::from("mse"),
            "activations" => Value::from("none"),
            _ => {
                let message = format!("`format = \"{}\"` has no such setting; leave it out", format.name());
                return Err(wrong(key, message));
            }
        };
        if *value != fixed {
            let (name, fixed, got) = (format.name(), describe(&fixed), describe(value));
            return Err(wrong(key, format!("`format = \"{name}\"` fixes {fixed}; leave it out, got {got}")));
        }
    }
    Ok(Settings {
        number: Number::KQuant { format },
        sharing: Sharing::Group { group_size: part },
        symmetric,
        range: Range::Mse,
        zero: ZeroKind::Auto,
        outliers: None,
        target_bits: None,
        activations: Activations::None,
    })
}

/// A matrix in super-blocks.
///
/// # Errors
/// [`CodecError`] when the weights cannot be encoded.
pub fn encode(format: KQuant, weights: &Matrix) -> Result<(StoredMatrix, Deviations), CodecError> {
    let (stored, clamped) = format.encode(weights.rows, weights.columns, &weights.values)?;
    Ok((stored, [("scale-clamped", clamped)].into_iter().filter(|(_, count)| *count > 0).collect()))
}
