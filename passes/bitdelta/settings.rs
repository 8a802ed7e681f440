//! What a recipe may say about `bitdelta`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::Table;

use super::{Plane, Share, SolveOptions, Target, decompose};
use crate::{
    codec::{Delta, StoredMatrix, Whole, delta::MAX_PLANES},
    forward::Matrix as Dense,
    layout::Activations,
    passes::{
        Choice, Factoring, Kind, PassInfo, SettingError, Settings as AnySettings, TrainingSettings, gptq::Order,
        setting::Setting,
    },
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
    "low_rank",
    "max_relative_error",
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
    /// What else decides the form.
    pub target: Target,
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
        Self { planes: 1, scale: Share::Row, target: Target::default(), calibrated: false, solve, distill }
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
        map.serialize_entry("low_rank", &self.target.low_rank)?;
        if let Some(error) = self.target.max_relative_error {
            map.serialize_entry("max_relative_error", &error)?;
        }
        map.serialize_entry("planes", &self.planes)?;
        map.serialize_entry("rounds", &self.solve.rounds)?;
        map.serialize_entry("scale", &self.scale)?;
        map.end()
    }
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key and what was expected.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        let mut settings = Self::default();
        for (key, value) in table {
            settings.take(&Setting { key, value })?;
        }
        if settings.target.max_relative_error.is_some() && table.contains_key("planes") {
            let message = "`max_relative_error` chooses the planes; leave one of them out";
            return Err(SettingError::new("planes", message));
        }
        if settings.target.needs_weights() && (settings.calibrated || settings.distill.steps > 0) {
            let key = if settings.target.low_rank { "low_rank" } else { "max_relative_error" };
            let message = "forms are chosen from the weights alone; leave out `calibrated` and `distill_steps`";
            return Err(SettingError::new(key, message));
        }
        Ok(settings)
    }

    fn take(&mut self, setting: &Setting<'_>) -> Result<(), SettingError> {
        let (solve, distill) = (&mut self.solve, &mut self.distill);
        match (setting.key, setting.value.as_str()) {
            ("planes", _) => self.planes = setting.whole(1, MAX_PLANES as u32)?,
            ("scale", Some("matrix")) => self.scale = Share::Matrix,
            ("scale", Some("row")) => self.scale = Share::Row,
            ("scale", _) => return Err(setting.wrong("\"matrix\" or \"row\"")),
            ("low_rank", _) => self.target.low_rank = setting.switch()?,
            ("max_relative_error", _) => {
                let error = setting.number("a number above 0, below 1", |error| error > 0.0 && error < 1.0)?;
                self.target.max_relative_error = Some(error);
            }
            ("calibrated", _) => self.calibrated = setting.switch()?,
            ("asymmetric", _) => solve.drift_share = if setting.switch()? { solve.drift_share } else { 0.0 },
            ("damping", _) => solve.damping = setting.positive(10.0)?,
            ("rounds", _) => solve.rounds = setting.whole(0, 100)?,
            ("distill_steps", _) => distill.steps = setting.whole(0, 1_000_000)? as u64,
            ("batch", _) => distill.batch = setting.whole(1, 4096)?,
            ("learning_rate", _) => distill.learning_rate = setting.positive(1.0)?,
            ("loss", Some("divergence")) => distill.loss = Loss::Divergence,
            ("loss", Some("squared-error")) => distill.loss = Loss::SquaredError,
            ("loss", _) => return Err(setting.wrong("\"divergence\" or \"squared-error\"")),
            (key, _) => return Err(SettingError::unknown(key, "bitdelta", KEYS)),
        }
        Ok(())
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
        self.encode_planes(difference, self.planes)
    }

    /// The same with so many planes.
    #[must_use]
    pub fn encode_planes(&self, difference: &Dense, planes: usize) -> StoredMatrix {
        pack(&decompose(difference.clone(), planes, self.scale, None))
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
        let chosen = parse("low_rank = true\nmax_relative_error = 0.2").unwrap();
        assert_eq!(chosen.target, Target { max_relative_error: Some(0.2), low_rank: true });
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
            ("max_relative_error = 1.5", "max_relative_error"),
            ("max_relative_error = 0", "max_relative_error"),
            ("max_relative_error = nan", "max_relative_error"),
            ("max_relative_error = 0.5\nplanes = 2", "planes"),
            ("low_rank = 3", "low_rank"),
            ("low_rank = true\ncalibrated = true", "low_rank"),
            ("max_relative_error = 0.2\ndistill_steps = 3", "max_relative_error"),
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
