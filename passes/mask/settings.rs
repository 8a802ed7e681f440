//! What a recipe may say about `mask_2_4`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::{Table, Value};

use std::sync::OnceLock;

use super::{Criterion, Given, Learning, Mask, MaskOptions, Pattern, Selection, learned, magnitude};
use crate::{
    codec::{CodecError, Whole, sparse::Sparse},
    layout::Activations,
    passes::{
        Choice, Factoring, Kind, Matrix, PassInfo, SettingError, Settings as AnySettings, TrainingSettings, gptq::Order,
    },
};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "mask_2_4",
    kind: Kind::Transform,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse,
};

/// All keys, sorted.
pub const KEYS: &[&str] = &[
    "asymmetric",
    "batch",
    "block_size",
    "criterion",
    "damping",
    "keep",
    "learning_rate",
    "logit_scale",
    "loss",
    "masks",
    "noise",
    "of",
    "prior",
    "prior_strength",
    "refit",
    "refit_steps",
    "regularisation",
    "search_rounds",
    "steps",
    "temperature",
    "tolerance",
    "weight_rate",
];

/// The words for criteria.
const CRITERIA: [(&str, Criterion); 5] = [
    ("sparsegpt", Criterion::SparseGpt),
    ("search", Criterion::Search),
    ("wanda", Criterion::Wanda),
    ("magnitude", Criterion::Magnitude),
    ("file", Criterion::File),
];

/// The word for masks that are trained.
const LEARNED: &str = "learned";

/// Settings of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How masks and weights are found.
    pub solve: MaskOptions,
    /// The file of masks, as the recipe has it, where that is the criterion.
    pub masks: Option<String>,
    /// This matrix' mask in it, once it was opened.
    pub given: Option<Given>,
    /// How the mask that [`Settings::solve`] finds is trained, where it is.
    pub learning: Option<Learning>,
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let solve = &self.solve;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("asymmetric", &(solve.drift_share > 0.0))?;
        map.serialize_entry("block_size", &solve.block_size)?;
        let word = CRITERIA.iter().find(|(_, criterion)| *criterion == solve.criterion).map(|(word, _)| *word);
        match &self.learning {
            Some(learning) => {
                map.serialize_entry("criterion", LEARNED)?;
                map.serialize_entry("prior", &word)?;
                learning.serialize_into::<S>(&mut map)?;
            }
            None => map.serialize_entry("criterion", &word)?,
        }
        map.serialize_entry("damping", &solve.damping)?;
        map.serialize_entry("keep", &solve.pattern.keep)?;
        if let Some(masks) = &self.masks {
            map.serialize_entry("masks", masks)?;
        }
        map.serialize_entry("of", &solve.pattern.of)?;
        map.serialize_entry("refit", &solve.refit)?;
        map.serialize_entry("refit_steps", &solve.refit_steps)?;
        map.serialize_entry("search_rounds", &solve.search_rounds)?;
        map.serialize_entry("tolerance", &solve.tolerance)?;
        map.end()
    }
}

fn parse(table: &Table) -> Result<AnySettings, SettingError> {
    Settings::parse(table).map(AnySettings::Mask)
}

fn refused(key: &str, message: impl Into<String>) -> SettingError {
    SettingError { key: key.to_owned(), message: message.into() }
}

impl Settings {
    /// Types and checks the keys of a rule. The criterion is `sparsegpt` where none is named, or `file` where there is one.
    /// By default weights are refitted, except with criteria that leave weights as they are: magnitude, Wanda and masks
    /// from a file.
    ///
    /// # Errors
    /// [`SettingError`] naming the key, what was expected and what was there.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(refused(key, format!("`mask_2_4` has no such setting; it has {}", KEYS.join(", "))));
        }
        let mut solve = MaskOptions::default();
        let mut masks = None;
        let mut learning = (table.get("criterion").and_then(Value::as_str) == Some(LEARNED)).then(Learning::default);
        if let Some(key) = table.keys().find(|key| learning.is_none() && learned::KEYS.contains(&key.as_str())) {
            return Err(refused(key, "goes with `criterion = \"learned\"` only"));
        }
        if learning.is_some() {
            solve.criterion = match table.get("prior").map(|prior| (prior, prior.as_str())) {
                None | Some((_, Some("search"))) => Criterion::Search,
                Some((_, Some("sparsegpt"))) => Criterion::SparseGpt,
                Some((prior, _)) => {
                    return Err(refused("prior", format!("expected \"search\" or \"sparsegpt\", got {prior}")));
                }
            };
        } else if let Some(value) = table.get("criterion") {
            let known = value.as_str().and_then(|word| CRITERIA.iter().find(|(known, _)| *known == word));
            let words = CRITERIA.map(|(word, _)| format!("\"{word}\"")).join(", ") + ", \"learned\"";
            let (_, criterion) =
                known.ok_or_else(|| refused("criterion", format!("expected one of {words}, got {value}")))?;
            solve.criterion = *criterion;
        } else if table.contains_key("masks") {
            solve.criterion = Criterion::File;
        }
        if (solve.criterion == Criterion::File) != table.contains_key("masks") {
            let message = "`masks = \"FILE.npz\"` and `criterion = \"file\"` go together";
            let key = if table.contains_key("masks") { "masks" } else { "criterion" };
            return Err(refused(key, message));
        }
        solve.refit = !matches!(solve.criterion, Criterion::Magnitude | Criterion::Wanda | Criterion::File);
        for (key, value) in table.iter().filter(|(key, _)| !["criterion", "prior"].contains(&key.as_str())) {
            let wrong = |expected: &str| refused(key, format!("expected {expected}, got {value}"));
            let whole = |low: i64, high: i64| match value {
                Value::Integer(number) if (low..=high).contains(number) => Ok(*number as usize),
                _ => Err(wrong(&format!("a whole number from {low} to {high}"))),
            };
            let flag = || value.as_bool().ok_or_else(|| wrong("true or false"));
            let number = |most: f64| match value {
                Value::Float(number) if *number > 0.0 && *number <= most => Ok(*number),
                Value::Integer(number) if *number > 0 && *number as f64 <= most => Ok(*number as f64),
                _ => Err(wrong(&format!("a number above 0.0, at most {most:.1}"))),
            };
            if let Some(learning) = learning.as_mut().filter(|_| learned::KEYS.contains(&key.as_str())) {
                learning.set(key, value).map_err(wrong)?;
                continue;
            }
            match key.as_str() {
                "asymmetric" => solve.drift_share = if flag()? { solve.drift_share } else { 0.0 },
                "refit" => solve.refit = flag()?,
                "masks" => masks = Some(value.as_str().ok_or_else(|| wrong("a file's name"))?.to_owned()),
                "keep" => solve.pattern.keep = whole(1, 7)?,
                "of" => solve.pattern.of = whole(2, 8)?,
                "block_size" => solve.block_size = whole(1, 65536)?,
                "refit_steps" => solve.refit_steps = whole(1, 10000)?,
                "search_rounds" => solve.search_rounds = whole(1, 1000)?,
                "damping" => solve.damping = number(10.0)?,
                _ => solve.tolerance = number(1.0)?,
            }
        }
        let Pattern { keep, of } = solve.pattern;
        if keep >= of {
            return Err(refused("keep", format!("expected fewer than `of = {of}`, got {keep}")));
        }
        if learning.is_some() && solve.pattern != Pattern::TWO_OF_FOUR {
            return Err(refused(if keep == 2 { "of" } else { "keep" }, "learned masks keep 2 of 4"));
        }
        Ok(Self { solve, masks, given: None, learning })
    }

    /// Whether masks or weights follow from what flows through the model.
    #[must_use]
    pub fn needs_calibration(&self) -> bool {
        self.solve.changes_weights() || self.solve.criterion == Criterion::Wanda
    }

    /// How masks and weights are trained, if they are.
    #[must_use]
    pub fn training(&self) -> Option<TrainingSettings> {
        self.learning.as_ref().map(Learning::training)
    }

    /// How second moments are factored, where they are needed.
    #[must_use]
    pub fn factoring(&self) -> Option<Factoring> {
        let MaskOptions { damping, drift_share, pattern, .. } = self.solve;
        let drift_share = if self.solve.changes_weights() { drift_share } else { 0.0 };
        let order = Order::Activation;
        self.needs_calibration().then_some(Factoring { damping, order, drift_share, group: Some(pattern.of) })
    }

    /// The mask of a matrix of whose input nothing is known: that from the file, or the largest magnitudes.
    ///
    /// # Errors
    /// [`CodecError`] for weights that are not finite, or a mask that is no such mask.
    pub fn unseen(&self, weights: &[f32], rows: usize, columns: usize) -> Result<Mask, CodecError> {
        match &self.given {
            Some(given) => given.mask(rows, columns, self.solve.pattern),
            None => magnitude(weights, rows, columns, self.solve.pattern),
        }
    }

    /// The same, row by row.
    #[must_use]
    pub fn selection(&self) -> Selection {
        let pattern = self.solve.pattern;
        match &self.given {
            Some(given) => Selection::Given { given: given.clone(), pattern, mask: OnceLock::new() },
            None => Selection::Largest(pattern),
        }
    }

    /// The format of one matrix that stays as it is but for the weights left out.
    ///
    /// # Errors
    /// [`SettingError`] when the matrix cannot be stored so.
    pub fn choose(&self, matrix: &Matrix) -> Result<Choice, SettingError> {
        let Pattern { keep, of } = self.solve.pattern;
        if self.learning.is_some() && !matrix.columns.is_multiple_of(of) {
            let message =
                format!("learned masks need columns in whole groups of {of}, and there are {}", matrix.columns);
            return Err(refused("criterion", message));
        }
        let sparse = Sparse { keep, of, dtype: matrix.scale.into() };
        sparse.validate(matrix.rows, matrix.columns).map_err(|error| refused("of", error.to_string()))?;
        let codec = Whole::Sparse(sparse).into();
        Ok(Choice { codec, rotations: None, codebook_of: None, mask: None, activations: Activations::None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reverse::Loss;

    fn parse(text: &str) -> Result<Settings, SettingError> {
        Settings::parse(&text.parse().unwrap())
    }

    #[test]
    fn learning_is_typed() {
        let settings = parse(
            "criterion = \"learned\"\nprior = \"sparsegpt\"\nsteps = 9\nbatch = 3\nlearning_rate = 0.5\nnoise = 1\n\
             temperature = [4.0, 0.05]\nlogit_scale = [1, 2]\nloss = \"next-token\"\nweight_rate = 0.0\ndamping = 0.5",
        )
        .unwrap();
        assert_eq!(
            (settings.solve.criterion, settings.solve.damping, settings.solve.refit),
            (Criterion::SparseGpt, 0.5, true)
        );
        let learning = settings.learning.unwrap();
        let (sharpness, training) = (learning.sharpness, settings.training().unwrap());
        assert_eq!((sharpness.noise, sharpness.temperature, sharpness.scale), (1.0, [4.0, 0.05], [1.0, 2.0]));
        assert_eq!((training.loss, training.training.batch, training.training.schedule.steps), (Loss::NextToken, 3, 9));
        assert!(training.training.schedule.peak == 0.5 && learning.weight_rate == 0.0);
        let resolved = serde_json::to_value(parse("criterion = \"learned\"").unwrap()).unwrap();
        assert_eq!((&resolved["criterion"], &resolved["prior"]), (&"learned".into(), &"search".into()));
        assert!(parse("criterion = \"search\"").unwrap().training().is_none());
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (text, key) in [
            ("steps = 9", "steps"),
            ("criterion = \"search\"\nprior = \"search\"", "prior"),
            ("criterion = \"learned\"\nprior = \"wanda\"", "prior"),
            ("criterion = \"learned\"\nsteps = 0", "steps"),
            ("criterion = \"learned\"\ntemperature = [1.0]", "temperature"),
            ("criterion = \"learned\"\ntemperature = [1.0, 0.0]", "temperature"),
            ("criterion = \"learned\"\nloss = \"squared-error\"", "loss"),
            ("criterion = \"learned\"\nkeep = 1", "keep"),
            ("criterion = \"learned\"\nmasks = \"a.npz\"", "masks"),
            ("criterion = \"file\"", "criterion"),
            ("criterion = \"wanda\"\nmasks = \"a.npz\"", "masks"),
            ("masks = 3", "masks"),
        ] {
            assert_eq!(parse(text).unwrap_err().key, key, "{text}");
        }
        let given = parse("masks = \"a.npz\"").unwrap();
        assert_eq!(
            (given.solve.criterion, given.solve.refit, given.needs_calibration()),
            (Criterion::File, false, false)
        );
        assert!(parse("masks = \"a.npz\"\nrefit = true").unwrap().needs_calibration());
    }
}
