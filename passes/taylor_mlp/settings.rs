//! What a recipe may say about `taylor_mlp`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::Table;

use crate::{
    checkpoint::Dtype,
    codec::taylor::{Basis, HIGHEST_ORDER, Smooth, Taylor},
    passes::{
        Kind, PassInfo, SettingError, Settings as AnySettings,
        setting::{Setting, known_keys},
    },
};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "taylor_mlp",
    kind: Kind::Encoding,
    keys: KEYS,
    default_select: &["mlp.down"],
    default_skip: &[],
    parse: |table| Settings::parse(table).map(AnySettings::TaylorMlp),
};

/// All keys, sorted.
pub const KEYS: &[&str] =
    &["basis", "deviations", "hardened", "margin", "order", "perturb", "point", "terms_dtype", "units"];

/// Where a power series stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Middle {
    /// Half way between least and largest.
    Range,
    /// At the mean.
    Mean,
}

/// Settings of `taylor_mlp`, every default filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// What the polynomials are.
    pub basis: Basis,
    /// The standard deviations around the mean that a range ends at, if not at the least and the largest.
    pub deviations: Option<f64>,
    /// Whether what can be withheld is.
    pub hardened: bool,
    /// What a range is widened by on each side, as a share of its width.
    pub margin: f64,
    /// The highest power.
    pub order: usize,
    /// Whether rows of the gate are negated by chance.
    pub perturb: bool,
    /// Where power series stand.
    pub point: Middle,
    /// Type of stored terms.
    pub terms: Dtype,
    /// Share of the hidden units that are expanded.
    pub units: f64,
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("basis", &self.basis)?;
        if let Some(deviations) = self.deviations {
            map.serialize_entry("deviations", &deviations)?;
        }
        map.serialize_entry("hardened", &self.hardened)?;
        map.serialize_entry("margin", &self.margin)?;
        map.serialize_entry("order", &self.order)?;
        map.serialize_entry("perturb", &self.perturb)?;
        map.serialize_entry("point", if self.point == Middle::Range { "middle" } else { "mean" })?;
        map.serialize_entry("terms_dtype", &format!("{:?}", self.terms).to_lowercase())?;
        map.serialize_entry("units", &self.units)?;
        map.end()
    }
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        known_keys(table, "taylor_mlp", KEYS)?;
        let mut settings = Self {
            basis: Basis::Taylor,
            deviations: None,
            hardened: false,
            margin: 0.1,
            order: 8,
            perturb: true,
            point: Middle::Range,
            terms: Dtype::F32,
            units: 0.5,
        };
        for (key, value) in table {
            let setting = Setting { key, value };
            let word = value.as_str();
            match key.as_str() {
                "basis" => {
                    let basis = word.and_then(Basis::by_name);
                    settings.basis = basis.ok_or_else(|| setting.wrong("\"taylor\" or \"chebyshev\""))?;
                }
                "deviations" => settings.deviations = Some(setting.positive(100.0)?),
                "hardened" => settings.hardened = setting.switch()?,
                "margin" => {
                    settings.margin =
                        setting.number("a number from 0.0 to 10.0", |margin| (0.0..=10.0).contains(&margin))?;
                }
                "order" => settings.order = setting.whole(1, HIGHEST_ORDER as u32)?,
                "perturb" => settings.perturb = setting.switch()?,
                "point" => {
                    settings.point = match word {
                        Some("middle") => Middle::Range,
                        Some("mean") => Middle::Mean,
                        _ => return Err(setting.wrong("\"middle\" or \"mean\"")),
                    }
                }
                "terms_dtype" => {
                    settings.terms = match word {
                        Some("f32") => Dtype::F32,
                        Some("f16") => Dtype::F16,
                        Some("bf16") => Dtype::BF16,
                        _ => return Err(setting.wrong("\"f32\", \"f16\" or \"bf16\"")),
                    }
                }
                _ => settings.units = setting.positive(1.0)?,
            }
        }
        if settings.basis == Basis::Chebyshev && table.contains_key("point") {
            let message = "goes with `basis = \"taylor\"`: Chebyshev's points are those of the whole range";
            return Err(SettingError::new("point", message));
        }
        if settings.deviations.is_some() {
            if table.contains_key("margin") {
                let message = "widens the range from the least to the largest: leave it out beside `deviations`";
                return Err(SettingError::new("margin", message));
            }
            settings.margin = 0.0;
        }
        Ok(settings)
    }

    /// The format of a down-projection with so many columns; sizes follow from it.
    #[must_use]
    pub fn format(&self, columns: usize, activation: Smooth, gated: bool, dense: Dtype) -> Taylor {
        let units = ((self.units * columns as f64).round() as usize).clamp(1, columns.max(1));
        Taylor {
            basis: self.basis,
            order: self.order,
            units,
            activation,
            gated,
            terms: self.terms,
            plain: match dense {
                Dtype::F16 | Dtype::BF16 => dense,
                _ => Dtype::F32,
            },
            perturbed: self.perturb || self.hardened,
            hardened: self.hardened,
        }
    }
}
