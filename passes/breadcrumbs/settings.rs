//! What a recipe may say about `breadcrumbs`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::{Table, Value};

use crate::{
    checkpoint::Dtype,
    codec::{CodecError, Crumbs, Share, StoredMatrix, Whole},
    forward::Matrix as Dense,
    layout::Activations,
    passes::{Choice, Kind, Matrix, PassInfo, SettingError, Settings as AnySettings},
};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "breadcrumbs",
    kind: Kind::Encoding,
    keys: KEYS,
    default_select: &["linear", "embedding"],
    default_skip: &[],
    parse: |table| Settings::parse(table).map(AnySettings::Breadcrumbs),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &["density", "outliers", "ranking", "scale", "values"];

/// Settings of `breadcrumbs`, every default filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Share of a difference that is kept.
    pub density: f64,
    /// Share of it that is left out for being largest.
    pub outliers: f64,
    /// What magnitudes are ranked among: a row's, or a matrix's.
    pub ranking: Share,
    /// What the kept part is multiplied by.
    pub scale: f32,
    /// Type of stored values; the weights' where none is given.
    pub values: Option<Dtype>,
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("density", &self.density)?;
        map.serialize_entry("outliers", &self.outliers)?;
        map.serialize_entry("ranking", if self.ranking == Share::Row { "row" } else { "tensor" })?;
        map.serialize_entry("scale", &self.scale)?;
        if let Some(values) = self.values {
            map.serialize_entry("values", &format!("{values:?}").to_lowercase())?;
        }
        map.end()
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::Integer(number) => Some(*number as f64),
        _ => None,
    }
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        let mut settings = Self { density: 0.15, outliers: 0.006, ranking: Share::Row, scale: 1.0, values: None };
        for (key, value) in table {
            let wrong = |expected: &str| {
                let message = format!("expected {expected}, got {value}");
                Err(SettingError { key: key.clone(), message })
            };
            match (key.as_str(), number(value), value.as_str()) {
                ("density", Some(share), _) if share > 0.0 && share <= 1.0 => settings.density = share,
                ("density", ..) => return wrong("a share above 0, at most 1"),
                ("outliers", Some(share), _) if (0.0..1.0).contains(&share) => settings.outliers = share,
                ("outliers", ..) => return wrong("a share from 0, below 1"),
                ("scale", Some(scale), _) if (scale as f32).is_finite() && scale as f32 != 0.0 => {
                    settings.scale = scale as f32;
                }
                ("scale", ..) => return wrong("a number other than 0"),
                ("ranking", _, Some("row")) => settings.ranking = Share::Row,
                ("ranking", _, Some("tensor")) => settings.ranking = Share::Matrix,
                ("ranking", ..) => return wrong("\"row\" or \"tensor\""),
                ("values", _, Some("f16")) => settings.values = Some(Dtype::F16),
                ("values", _, Some("bf16")) => settings.values = Some(Dtype::BF16),
                ("values", _, Some("f32")) => settings.values = Some(Dtype::F32),
                ("values", ..) => return wrong("\"f16\", \"bf16\" or \"f32\""),
                _ => {
                    let message = format!("`breadcrumbs` has no such setting; it has {}", KEYS.join(", "));
                    return Err(SettingError { key: key.clone(), message });
                }
            }
        }
        if settings.density + settings.outliers > 1.0 {
            let message =
                format!("{} kept and {} left out as outliers are more than all", settings.density, settings.outliers);
            let key = if table.contains_key("density") { "density" } else { "outliers" };
            return Err(SettingError { key: key.into(), message });
        }
        Ok(settings)
    }

    /// The format of a sparse difference: sizes follow from the shape.
    ///
    /// # Errors
    /// [`SettingError`] for a matrix of which more weights are ranked together than places can be told apart.
    pub fn choose(&self, matrix: &Matrix) -> Result<Choice, SettingError> {
        let rows = matrix.rows / matrix.experts.max(1);
        let among = match self.ranking {
            Share::Row => matrix.columns,
            Share::Matrix => rows.saturating_mul(matrix.columns),
        };
        if u32::try_from(among).is_err() {
            let message = format!("{among} weights are too many to be ranked together");
            return Err(SettingError { key: "ranking".into(), message });
        }
        let dtype = self.values.unwrap_or(match matrix.dense_dtype {
            Dtype::F16 => Dtype::F16,
            Dtype::F32 | Dtype::F64 => Dtype::F32,
            _ => Dtype::BF16,
        });
        let (_, kept) = self.counts(among);
        Ok(Choice {
            codec: Whole::Crumbs(Crumbs::smallest(kept, self.ranking, dtype, rows, matrix.columns)).into(),
            rotations: None,
            codebook_of: None,
            mask: None,
            activations: Activations::None,
        })
    }

    /// A difference `[output, input]`, masked and scaled, as the tensors of [`Crumbs::tensors`].
    ///
    /// # Errors
    /// [`CodecError`] when the format is of another number of values, or a value is too large for its type.
    pub fn encode(&self, crumbs: &Crumbs, difference: &Dense) -> Result<StoredMatrix, CodecError> {
        let places = self.places(&difference.values, difference.columns);
        let scaled: Vec<f32> = difference.values.iter().map(|value| self.scale * value).collect();
        crumbs.encode(difference.rows, difference.columns, &scaled, &places)
    }
}
