//! What a recipe may say about `bitdelta`.

use serde::Serialize;
use toml::{Table, Value};

use super::{Share, Target, decompose};
use crate::{
    codec::{Delta, StoredMatrix, Whole, delta::MAX_PLANES},
    forward::Matrix as Dense,
    layout::Activations,
    passes::{Choice, Kind, PassInfo, SettingError, Settings as AnySettings},
};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "bitdelta",
    kind: Kind::Encoding,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse: |table| Settings::parse(table).map(AnySettings::BitDelta),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &["low_rank", "max_relative_error", "planes", "scale"];

/// Settings of `bitdelta`, every default filled in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Settings {
    /// Signs of each weight.
    pub planes: usize,
    /// What a scale is of.
    pub scale: Share,
    /// What else decides the form.
    #[serde(flatten)]
    pub target: Target,
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        let mut settings = Self { planes: 1, scale: Share::Row, target: Target::default() };
        for (key, value) in table {
            if let Some(taken) = settings.target.take(key, value) {
                taken?;
                continue;
            }
            let message = match (key.as_str(), value) {
                ("planes", Value::Integer(planes)) if (1..=MAX_PLANES as i64).contains(planes) => {
                    settings.planes = *planes as usize;
                    continue;
                }
                ("scale", Value::String(word)) if word == "matrix" => {
                    settings.scale = Share::Matrix;
                    continue;
                }
                ("scale", Value::String(word)) if word == "row" => {
                    settings.scale = Share::Row;
                    continue;
                }
                ("planes", _) => format!("expected a whole number from 1 to {MAX_PLANES}, got {value}"),
                ("scale", _) => format!("expected \"matrix\" or \"row\", got {value}"),
                _ => format!("`bitdelta` has no such setting; it has {}", KEYS.join(", ")),
            };
            return Err(SettingError { key: key.clone(), message });
        }
        if settings.target.max_relative_error.is_some() && table.contains_key("planes") {
            let message = "`max_relative_error` chooses the planes; leave one of them out".to_owned();
            return Err(SettingError { key: "planes".to_owned(), message });
        }
        Ok(settings)
    }

    /// The format; every matrix can be stored so.
    #[must_use]
    pub fn choose(&self) -> Choice {
        let delta = Delta { planes: self.planes, share: self.scale };
        Choice {
            codec: Whole::Delta(delta).into(),
            rotations: None,
            codebook_of: None,
            mask: None,
            activations: Activations::None,
        }
    }

    /// A difference `[output, input]` as the tensors of [`Delta::tensors`].
    #[must_use]
    pub fn encode(&self, difference: &Dense) -> StoredMatrix {
        self.encode_planes(difference, self.planes)
    }

    /// The same with so many planes.
    #[must_use]
    pub fn encode_planes(&self, difference: &Dense, planes: usize) -> StoredMatrix {
        let row_bytes = difference.columns.div_ceil(8);
        let planes = decompose(difference.clone(), planes, self.scale, None);
        let words = difference.columns.div_ceil(32).max(1);
        let signs = planes.iter().flat_map(|plane| plane.signs.words().chunks_exact(words));
        let signs = signs.flat_map(|row| row.iter().flat_map(|word| word.to_le_bytes()).take(row_bytes)).collect();
        let scales = planes.iter().flat_map(|plane| &plane.scales).flat_map(|scale| scale.to_le_bytes()).collect();
        vec![signs, scales]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingError> {
        Settings::parse(&text.parse().unwrap())
    }

    #[test]
    fn settings_are_typed_and_complete() {
        assert_eq!(parse(""), Ok(Settings { planes: 1, scale: Share::Row, target: Target::default() }));
        assert_eq!(
            parse("planes = 3\nscale = \"matrix\""),
            Ok(Settings { planes: 3, scale: Share::Matrix, target: Target::default() })
        );
        for (text, key) in [
            ("planes = 0", "planes"),
            ("planes = 9", "planes"),
            ("planes = \"two\"", "planes"),
            ("scale = \"column\"", "scale"),
            ("scales = \"row\"", "scales"),
            ("max_relative_error = 1.5", "max_relative_error"),
            ("max_relative_error = 0.5\nplanes = 2", "planes"),
            ("low_rank = 3", "low_rank"),
        ] {
            assert_eq!(parse(text).unwrap_err().key, key, "{text}");
        }
    }

    #[test]
    fn what_is_stored_decodes_to_the_planes() {
        let (rows, columns) = (5, 43);
        let values = (0..rows * columns).map(|i| ((i * 29 + 7) % 31) as f32 / 8.0 - 2.0).collect();
        let difference = Dense { rows, columns, values };
        for scale in [Share::Matrix, Share::Row] {
            let settings = Settings { planes: 3, scale, target: Target::default() };
            let stored = settings.encode(&difference);
            let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
            let decoded = Delta { planes: 3, share: scale }.decode(rows, columns, &stored).unwrap();
            let planes = decompose(difference.clone(), 3, scale, None);
            for (index, value) in decoded.iter().enumerate() {
                let (row, column) = (index / columns, index % columns);
                let terms = planes.iter().map(|plane| {
                    if plane.signs.is_positive(row, column) { plane.scale(row) } else { -plane.scale(row) }
                });
                assert_eq!(*value, terms.fold(0.0, |sum, term| sum + term));
            }
        }
    }
}
