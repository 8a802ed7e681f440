//! What a recipe may say about `bitdelta`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::{Table, Value};

use super::{Plane, Share, SolveOptions, decompose};
use crate::{
    codec::{Delta, StoredMatrix, Whole, delta::MAX_PLANES},
    forward::Matrix as Dense,
    layout::Activations,
    passes::{Choice, Factoring, Kind, PassInfo, SettingError, Settings as AnySettings, TrainingSettings, gptq::Order},
    reverse::{AdamWSettings, Decay, Loss, Schedule, Training},
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
pub const KEYS: &[&str] = &[
    "asymmetric",
    "batch",
    "calibrated",
    "damping",
    "distill_steps",
    "learning_rate",
    "loss",
    "planes",
    "rounds",
    "scale",
];

/// Settings of `bitdelta`, every default filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Signs of each weight.
    pub planes: usize,
    /// What a scale is of.
    pub scale: Share,
    /// Whether signs and scales are found under second moments of the input.
    pub calibrated: bool,
    /// How they are.
    pub solve: SolveOptions,
    /// How the scales are trained behind that.
    pub distill: Distill,
}

/// How scales are trained until the model's logits are those of the fine-tune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distill {
    /// Steps; 0 for none.
    pub steps: u64,
    /// Sequences of a step.
    pub batch: usize,
    /// The highest learning rate, as a share of a matrix's mean scale.
    pub learning_rate: f64,
    /// What is made small: [`Loss::Divergence`] or [`Loss::SquaredError`].
    pub loss: Loss,
}

impl Default for Distill {
    fn default() -> Self {
        Self { steps: 0, batch: 4, learning_rate: 0.02, loss: Loss::Divergence }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let (solve, distill) = (SolveOptions::default(), Distill::default());
        Self { planes: 1, scale: Share::Row, calibrated: false, solve, distill }
    }
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("asymmetric", &(self.solve.drift_share > 0.0))?;
        map.serialize_entry("batch", &self.distill.batch)?;
        map.serialize_entry("calibrated", &self.calibrated)?;
        map.serialize_entry("damping", &self.solve.damping)?;
        map.serialize_entry("distill_steps", &self.distill.steps)?;
        map.serialize_entry("learning_rate", &self.distill.learning_rate)?;
        let squares = self.distill.loss == Loss::SquaredError;
        map.serialize_entry("loss", if squares { "squared-error" } else { "divergence" })?;
        map.serialize_entry("planes", &self.planes)?;
        map.serialize_entry("rounds", &self.solve.rounds)?;
        map.serialize_entry("scale", &self.scale)?;
        map.end()
    }
}

fn refused(key: &str, message: String) -> SettingError {
    SettingError { key: key.to_owned(), message }
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        let mut settings = Self::default();
        for (key, value) in table {
            let wrong = |expected: &str| refused(key, format!("expected {expected}, got {value}"));
            let whole = |low: i64, high: i64| match value {
                Value::Integer(number) if (low..=high).contains(number) => Ok(*number as usize),
                _ => Err(wrong(&format!("a whole number from {low} to {high}"))),
            };
            let number = |most: f64| match value {
                Value::Float(number) if *number > 0.0 && *number <= most => Ok(*number),
                Value::Integer(number) if *number > 0 && *number as f64 <= most => Ok(*number as f64),
                _ => Err(wrong(&format!("a number above 0.0, at most {most:.1}"))),
            };
            let flag = || value.as_bool().ok_or_else(|| wrong("true or false"));
            let (solve, distill) = (&mut settings.solve, &mut settings.distill);
            match (key.as_str(), value.as_str()) {
                ("planes", _) => settings.planes = whole(1, MAX_PLANES as i64)?,
                ("scale", Some("matrix")) => settings.scale = Share::Matrix,
                ("scale", Some("row")) => settings.scale = Share::Row,
                ("scale", _) => return Err(wrong("\"matrix\" or \"row\"")),
                ("calibrated", _) => settings.calibrated = flag()?,
                ("asymmetric", _) => solve.drift_share = if flag()? { solve.drift_share } else { 0.0 },
                ("damping", _) => solve.damping = number(10.0)?,
                ("rounds", _) => solve.rounds = whole(0, 100)?,
                ("distill_steps", _) => distill.steps = whole(0, 1_000_000)? as u64,
                ("batch", _) => distill.batch = whole(1, 4096)?,
                ("learning_rate", _) => distill.learning_rate = number(1.0)?,
                ("loss", Some("divergence")) => distill.loss = Loss::Divergence,
                ("loss", Some("squared-error")) => distill.loss = Loss::SquaredError,
                ("loss", _) => return Err(wrong("\"divergence\" or \"squared-error\"")),
                _ => return Err(refused(key, format!("`bitdelta` has no such setting; it has {}", KEYS.join(", ")))),
            }
        }
        Ok(settings)
    }

    /// The format; every matrix can be stored so.
    #[must_use]
    pub fn choose(&self) -> Choice {
        Choice {
            codec: Whole::Delta(self.delta()).into(),
            rotations: None,
            codebook_of: None,
            mask: None,
            activations: Activations::None,
        }
    }

    /// The format.
    #[must_use]
    pub fn delta(&self) -> Delta {
        Delta { planes: self.planes, share: self.scale }
    }

    /// How second moments are factored, where they are needed.
    #[must_use]
    pub fn factoring(&self) -> Option<Factoring> {
        let SolveOptions { damping, drift_share, .. } = self.solve;
        self.calibrated.then_some(Factoring { damping, order: Order::None, drift_share, group: None })
    }

    /// How scales are trained, if they are.
    #[must_use]
    pub fn training(&self) -> Option<TrainingSettings> {
        let Distill { steps, batch, learning_rate, loss } = self.distill;
        let schedule =
            Schedule { peak: learning_rate, last: 0.0, warmup: (steps / 20).min(100), steps, decay: Decay::Cosine };
        let optimizer = AdamWSettings { weight_decay: 0.0, ..AdamWSettings::default() };
        (steps > 0)
            .then_some(TrainingSettings { training: Training { optimizer, schedule, batch, shuffle: None }, loss })
    }

    /// A difference `[output, input]` as the tensors of [`Delta::tensors`], without knowing the input.
    #[must_use]
    pub fn encode(&self, difference: &Dense) -> StoredMatrix {
        pack(&decompose(difference.clone(), self.planes, self.scale, None))
    }
}

/// Planes of one shape as the tensors of [`Delta::tensors`].
#[must_use]
pub fn pack(planes: &[Plane]) -> StoredMatrix {
    let columns = planes.first().map_or(0, |plane| plane.signs.columns());
    let (row_bytes, words) = (columns.div_ceil(8), columns.div_ceil(32).max(1));
    let signs = planes.iter().flat_map(|plane| plane.signs.words().chunks_exact(words));
    let signs = signs.flat_map(|row| row.iter().flat_map(|word| word.to_le_bytes()).take(row_bytes)).collect();
    let scales = planes.iter().flat_map(|plane| &plane.scales).flat_map(|scale| scale.to_le_bytes()).collect();
    vec![signs, scales]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingError> {
        Settings::parse(&text.parse().unwrap())
    }

    #[test]
    fn settings_are_typed_and_complete() {
        assert_eq!(parse(""), Ok(Settings::default()));
        let expected = Settings { planes: 3, scale: Share::Matrix, ..Settings::default() };
        assert_eq!(parse("planes = 3\nscale = \"matrix\""), Ok(expected));
        let solved = parse("calibrated = true\nasymmetric = false\ndamping = 0.5\nrounds = 0").unwrap();
        assert_eq!(solved.factoring().map(|it| (it.damping, it.drift_share)), Some((0.5, 0.0)));
        assert_eq!((solved.solve.rounds, solved.training()), (0, None));
        let trained = parse("distill_steps = 40\nbatch = 2\nlearning_rate = 0.5\nloss = \"squared-error\"").unwrap();
        let TrainingSettings { training, loss } = trained.training().unwrap();
        assert_eq!((training.batch, training.schedule.peak, training.schedule.steps), (2, 0.5, 40));
        assert!(loss == Loss::SquaredError && trained.factoring().is_none());
        for (text, key) in [
            ("planes = 0", "planes"),
            ("planes = 9", "planes"),
            ("planes = \"two\"", "planes"),
            ("scale = \"column\"", "scale"),
            ("scales = \"row\"", "scales"),
            ("calibrated = 1", "calibrated"),
            ("damping = 0", "damping"),
            ("distill_steps = -1", "distill_steps"),
            ("learning_rate = 2.0", "learning_rate"),
            ("loss = \"next-token\"", "loss"),
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
            let settings = Settings { planes: 3, scale, ..Settings::default() };
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
