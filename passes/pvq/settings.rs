//! What a recipe may say about `pvq`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::Table;

use super::SolveOptions;
use crate::{
    codec::{Pyramid, Rotations, Whole, pyramid::choices},
    layout::Activations,
    passes::{Choice, Kind, Matrix, PassInfo, SettingError, Settings as AnySettings, setting::Setting},
};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "pvq",
    kind: Kind::Encoding,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse: |table| Settings::parse(table).map(AnySettings::Pvq),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &[
    "asymmetric",
    "bits",
    "block_size",
    "calibrated",
    "damping",
    "dimension",
    "gain_bits",
    "order",
    "pulses",
    "rotate",
    "rounds",
    "sweeps",
];

/// Bits per weight where a recipe says nothing.
const DEFAULT_BITS: f64 = 4.25;

/// Settings of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Bits per weight that are not exceeded, everything counted; none where the pulses are given.
    pub bits: Option<f64>,
    /// Rows of a vector; none to choose.
    pub dimension: Option<usize>,
    /// Sum of a point's magnitudes; none to choose.
    pub pulses: Option<u32>,
    /// Bits of a gain; none to choose.
    pub gain_bits: Option<u8>,
    /// Whether inputs and outputs are rotated.
    pub rotate: bool,
    /// Whether codes are found under second moments of the input.
    pub calibrated: bool,
    /// How codes are found.
    pub solve: SolveOptions,
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("asymmetric", &(self.solve.drift_share > 0.0))?;
        if let Some(bits) = self.bits {
            map.serialize_entry("bits", &bits)?;
        }
        map.serialize_entry("block_size", &self.solve.block_size)?;
        map.serialize_entry("calibrated", &self.calibrated)?;
        map.serialize_entry("damping", &self.solve.damping)?;
        if let Some(dimension) = self.dimension {
            map.serialize_entry("dimension", &dimension)?;
        }
        if let Some(gain_bits) = self.gain_bits {
            map.serialize_entry("gain_bits", &gain_bits)?;
        }
        map.serialize_entry("order", self.solve.order.name())?;
        if let Some(pulses) = self.pulses {
            map.serialize_entry("pulses", &pulses)?;
        }
        map.serialize_entry("rotate", &self.rotate)?;
        map.serialize_entry("rounds", &self.solve.rounds)?;
        map.serialize_entry("sweeps", &self.solve.sweeps)?;
        map.end()
    }
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key, what was expected and what was there.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        let solve = SolveOptions::default();
        let mut settings =
            Self { bits: None, dimension: None, pulses: None, gain_bits: None, rotate: true, calibrated: true, solve };
        for (key, value) in table {
            settings.take(&Setting { key, value })?;
        }
        match (settings.bits, settings.pulses) {
            (Some(_), Some(_)) => {
                return Err(SettingError::new("pulses", "`bits` chooses the pulses; give one of the two"));
            }
            (None, None) => settings.bits = Some(DEFAULT_BITS),
            (None, Some(_)) if settings.dimension.is_none() || settings.gain_bits.is_none() => {
                return Err(SettingError::new("pulses", "needs `dimension` and `gain_bits` beside it"));
            }
            _ => {}
        }
        Ok(settings)
    }

    fn take(&mut self, setting: &Setting<'_>) -> Result<(), SettingError> {
        let solve = &mut self.solve;
        match setting.key {
            "asymmetric" => solve.drift_share = if setting.switch()? { solve.drift_share } else { 0.0 },
            "rotate" => self.rotate = setting.switch()?,
            "calibrated" => self.calibrated = setting.switch()?,
            "bits" => self.bits = Some(setting.bits()?),
            "dimension" => self.dimension = Some(setting.whole(2, 128)?),
            "pulses" => self.pulses = Some(setting.whole(1, 4095)? as u32),
            "gain_bits" => self.gain_bits = Some(setting.whole(1, 8)? as u8),
            "block_size" => solve.block_size = setting.whole(1, 65536)?,
            "rounds" => solve.rounds = setting.whole(0, 20)?,
            "sweeps" => solve.sweeps = setting.whole(1, 8)?,
            "damping" => solve.damping = setting.positive(10.0)?,
            "order" => solve.order = setting.order()?,
            key => return Err(SettingError::unknown(key, "pvq", KEYS)),
        }
        Ok(())
    }

    /// The format of one matrix: what is given, or what is expected to lose least within the bits.
    ///
    /// # Errors
    /// [`SettingError`] when nothing fits.
    pub fn choose(&self, matrix: &Matrix) -> Result<Choice, SettingError> {
        let rows = matrix.rows / matrix.experts.max(1);
        let pyramid = match (self.dimension, self.pulses, self.gain_bits, self.bits) {
            (Some(dimension), Some(pulses), Some(gain_bits), None) => {
                let pyramid = Pyramid { dimension, pulses, gain_bits };
                pyramid
                    .validate(rows, matrix.columns)
                    .map_err(|error| SettingError::new("pulses", error.to_string()))?;
                pyramid
            }
            (dimension, _, gain_bits, bits) => {
                let bits = bits.unwrap_or(DEFAULT_BITS);
                let wanted = |(pyramid, _): &(Pyramid, f64)| {
                    dimension.is_none_or(|dimension| pyramid.dimension == dimension)
                        && gain_bits.is_none_or(|gain_bits| pyramid.gain_bits == gain_bits)
                };
                let found = choices(rows, matrix.columns, bits).into_iter().find(wanted);
                let message = || format!("nothing stores a matrix of {rows} × {} in so few bits", matrix.columns);
                found.map(|(pyramid, _)| pyramid).ok_or_else(|| SettingError::new("bits", message()))?
            }
        };
        let rotations = self.rotate.then_some(Rotations { seed: matrix.seed, inputs: true, outputs: true });
        Ok(Choice {
            codec: Whole::Pyramid(pyramid).into(),
            rotations,
            codebook_of: None,
            mask: None,
            activations: Activations::None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingError> {
        Settings::parse(&text.parse().unwrap())
    }

    #[test]
    fn settings_are_typed_and_contradictions_named() {
        let given = parse("dimension = 16\npulses = 58\ngain_bits = 4\nrotate = false\ncalibrated = false").unwrap();
        assert_eq!((given.dimension, given.pulses, given.gain_bits, given.bits), (Some(16), Some(58), Some(4), None));
        assert!(!given.rotate && !given.calibrated);
        assert_eq!(parse("").unwrap().bits, Some(DEFAULT_BITS));
        assert_eq!(parse("bits = 3.25\ndimension = 8").unwrap().dimension, Some(8));
        for (text, key) in [
            ("bits = 0", "bits"),
            ("bits = 3\npulses = 12", "pulses"),
            ("pulses = 12", "pulses"),
            ("dimension = 1", "dimension"),
            ("gain_bits = 9", "gain_bits"),
            ("rotate = 1", "rotate"),
            ("pulse = 3", "pulse"),
            ("order = \"up\"", "order"),
        ] {
            assert_eq!(parse(text).unwrap_err().key, key, "{text}");
        }
    }
}
