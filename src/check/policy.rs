//! A policy: what an artifact must be, as TOML.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use crate::{
    checkpoint::is_hub_id,
    codec::sparse::Pattern,
    layout::LayoutName,
    manifest::ContentHash,
    recipe::{Selector, parse_bytes},
    remote::is_remote,
};

/// The schema this version reads.
const SCHEMA: u64 = 1;

/// No policy is larger.
const MAX_BYTES: u64 = 1 << 20;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read from disk.
    #[error("cannot read the policy `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is larger than any policy.
    #[error("`{}` has {bytes} bytes, more than the {MAX_BYTES} that a policy may have; is it a policy?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// It is not TOML, or a key is unknown or has a wrong value.
    #[error("`{}`: {message}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, column, the line with a mark, what was expected.
        message: String,
    },
}

/// All of a policy.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(deserialize_with = "schema")]
    #[schemars(range(min = 1, max = 1))]
    #[expect(dead_code, reason = "read for its check alone")]
    schema: u64,
    /// Limits of the whole artifact.
    #[serde(default)]
    pub limits: Limits,
    /// Limits of what selectors take, each a group of its own.
    #[serde(default)]
    pub limit: Vec<GroupLimits>,
    /// What perplexity and divergence are measured on.
    pub evaluation: Option<Evaluation>,
    /// What must hold.
    #[serde(default)]
    pub require: Required,
    /// What must not be there.
    #[serde(default)]
    pub forbid: Forbidden,
    /// Where the artifact must come from.
    #[serde(default)]
    pub provenance: Provenance,
    /// An artifact that this one must be no worse than.
    pub baseline: Option<Baseline>,
}

/// Limits of errors and sizes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest stored bits per weight of the compressed tensors.
    pub bits_per_weight: Option<f64>,
    /// Largest length of all files in bytes.
    pub artifact_bytes: Option<Size>,
    /// Smallest signal-to-noise ratio of any tensor, decibels.
    pub min_snr_db: Option<f64>,
    /// Largest relative error of any tensor.
    pub max_relative_error: Option<f64>,
    /// Smallest signal-to-noise ratio of all tensors together, decibels.
    pub min_mean_snr_db: Option<f64>,
    /// Largest relative error of all tensors together: root of the mean square over weights.
    pub max_mean_relative_error: Option<f64>,
    /// Largest perplexity.
    pub max_perplexity: Option<f64>,
    /// Largest perplexity above the reference's, absolute.
    pub max_perplexity_increase: Option<f64>,
    /// Largest mean KL divergence from the reference, nats per token.
    pub max_mean_kl_divergence: Option<f64>,
    /// Largest 99th percentile of it.
    pub max_p99_kl_divergence: Option<f64>,
    /// Smallest share of tokens whose most likely successor is the reference's.
    pub min_top1_agreement: Option<f64>,
}

impl Limits {
    /// Whether a limit is about predictions.
    #[must_use]
    pub fn evaluates(&self) -> bool {
        self.max_perplexity.is_some() || self.compares()
    }

    /// Whether a limit is about predictions beside a reference's.
    #[must_use]
    pub fn compares(&self) -> bool {
        [self.max_perplexity_increase, self.max_mean_kl_divergence, self.max_p99_kl_divergence, self.min_top1_agreement]
            .iter()
            .any(Option::is_some)
    }
}

/// Limits of some tensors.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupLimits {
    /// Roles, globs, regular expressions or names, as in recipes.
    pub select: Vec<Choice>,
    /// What is left out of them.
    #[serde(default)]
    pub skip: Vec<Choice>,
    /// Largest stored bits per weight of all of them.
    pub bits_per_weight: Option<f64>,
    /// Largest length of all of them in bytes.
    pub bytes: Option<Size>,
    /// Smallest signal-to-noise ratio of any, decibels.
    pub min_snr_db: Option<f64>,
    /// Largest relative error of any.
    pub max_relative_error: Option<f64>,
    /// Smallest signal-to-noise ratio of all together, decibels.
    pub min_mean_snr_db: Option<f64>,
    /// Largest relative error of all together.
    pub max_mean_relative_error: Option<f64>,
}

/// What predictions are measured on.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The texts, relative to the policy.
    pub text: Vec<PathBuf>,
    /// Tokens of a window.
    pub context: Option<usize>,
    /// The model that the artifact is compared with, relative to the policy.
    pub reference: Option<PathBuf>,
}

/// What must hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Required {
    /// Which fallbacks there may be.
    pub fallbacks: Option<Fallbacks>,
    /// By selector, globs over the short names of number formats, one of which every selected tensor must have.
    #[serde(default)]
    pub codecs: ByChoice<Globs>,
    /// By selector, how many of how many weights may be other than zero.
    #[serde(default)]
    pub sparsity: ByChoice<Ratio>,
    /// No weight may be infinite or not a number.
    #[serde(default)]
    pub finite: bool,
    /// One of these layouts.
    pub layouts: Option<Vec<LayoutName>>,
    /// Each of these must load it, by the rules of `docs/ci.md`.
    #[serde(default)]
    pub runtimes: Vec<super::runtimes::Runtime>,
    /// Sampled tensors must come out byte for byte when the recipe is run again.
    #[serde(default)]
    pub reproduce: bool,
}

/// What must not be there.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Forbidden {
    /// By selector, globs over the short names of number formats that no selected tensor may have.
    #[serde(default)]
    pub codecs: ByChoice<Globs>,
}

/// Where the artifact must come from.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Versions of bantam that may have written it: `">=0.1, <0.3"`.
    #[schemars(with = "Option<String>")]
    pub tool_version: Option<semver::VersionReq>,
    /// Hash of the recipe as resolved, as a finding states it.
    #[schemars(with = "Option<String>")]
    pub recipe_hash: Option<ContentHash>,
    /// Hash over the names and hashes of all input tensors, as a finding states it.
    #[schemars(with = "Option<String>")]
    pub inputs_hash: Option<ContentHash>,
    /// The checkpoint it must be made of, relative to the policy.
    pub source: Option<PathBuf>,
    /// The base that its differences must be from, relative to the policy.
    pub base: Option<PathBuf>,
    /// The recipe it must be made by, relative to the policy.
    pub recipe: Option<PathBuf>,
}

/// An earlier artifact.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Its folder, relative to the policy.
    pub artifact: PathBuf,
    /// By how much of the baseline's length the files may be longer.
    #[serde(default)]
    pub max_size_increase: f64,
    /// By how much of the baseline's relative error any tensor's may be larger.
    #[serde(default)]
    pub max_error_increase: f64,
}

/// One text or several.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum WrittenTexts {
    One(String),
    Several(Vec<String>),
}

/// A number of bytes as written.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum WrittenSize {
    Bytes(u64),
    Text(String),
}

/// Allowed fallbacks.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "WrittenTexts")]
pub struct Fallbacks(
    /// The kinds that may be there.
    pub Vec<String>,
);

impl<'de> Deserialize<'de> for Fallbacks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match WrittenTexts::deserialize(deserializer) {
            Ok(WrittenTexts::One(word)) if word == "none" => Ok(Self(Vec::new())),
            Ok(WrittenTexts::Several(kinds)) => Ok(Self(kinds)),
            _ => Err(de::Error::custom("expected \"none\" or a list of the kinds that are allowed")),
        }
    }
}

/// A number of bytes: `"3GB"` or `3000000000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "WrittenSize")]
pub struct Size(
    /// Bytes.
    pub u64,
);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match WrittenSize::deserialize(deserializer) {
            Ok(WrittenSize::Bytes(bytes)) => Ok(Self(bytes)),
            Ok(WrittenSize::Text(text)) => parse_bytes(&text).map(Self).map_err(de::Error::custom),
            Err(_) => Err(de::Error::custom("expected a size such as \"3GB\", or a number of bytes")),
        }
    }
}

/// A selector that was read and can be compared by its text.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(with = "String")]
pub struct Choice(
    /// As recipes have it.
    pub Selector,
);

impl Choice {
    fn parse(text: &str) -> Result<Self, String> {
        Selector::parse(text).map(Self).map_err(|error| format!("{text:?}: {error}"))
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Something for each of several selectors, by their texts.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(with = "BTreeMap<String, T>")]
pub struct ByChoice<T>(
    /// Selector and what is said of it.
    pub Vec<(Choice, T)>,
);

impl<T> Default for ByChoice<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByChoice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = BTreeMap::<String, T>::deserialize(deserializer)?;
        let parsed =
            written.into_iter().map(|(text, said)| Ok((Choice::parse(&text).map_err(de::Error::custom)?, said)));
        parsed.collect::<Result<_, _>>().map(Self)
    }
}

/// One glob or several.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(with = "WrittenTexts")]
pub struct Globs {
    written: Vec<String>,
    set: globset::GlobSet,
}

impl Globs {
    /// Whether one of them matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.set.is_match(name)
    }

    /// As they were written, in one line.
    #[must_use]
    pub fn text(&self) -> String {
        self.written.join(" or ")
    }
}

impl<'de> Deserialize<'de> for Globs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = match WrittenTexts::deserialize(deserializer) {
            Ok(WrittenTexts::One(one)) => vec![one],
            Ok(WrittenTexts::Several(several)) if !several.is_empty() => several,
            _ => return Err(de::Error::custom("expected a number format such as \"int4-g128\", or a list of them")),
        };
        let mut set = globset::GlobSetBuilder::new();
        for text in &written {
            set.add(globset::Glob::new(text).map_err(|error| de::Error::custom(error.to_string()))?);
        }
        let set = set.build().map_err(|error| de::Error::custom(error.to_string()))?;
        Ok(Self { written, set })
    }
}

/// `"2:4"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Ratio(
    /// The pattern.
    pub Pattern,
);

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let pattern = text.split_once(':').and_then(|(keep, of)| {
            let pattern = Pattern { keep: keep.parse().ok()?, of: of.parse().ok()? };
            pattern.validate().is_ok().then_some(pattern)
        });
        pattern.map(Self).ok_or_else(|| de::Error::custom(format!("expected a pattern such as \"2:4\", got {text:?}")))
    }
}

fn schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        SCHEMA => Ok(SCHEMA),
        other => Err(de::Error::custom(format!("schema {other}, this version reads {SCHEMA}"))),
    }
}

impl Policy {
    /// Reads a policy; its paths become relative to the working folder.
    ///
    /// # Errors
    /// [`PolicyError`] with line, column and what was expected; an unknown key is an error.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let unreadable = |source| PolicyError::Read { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > MAX_BYTES {
            return Err(PolicyError::TooLarge { path: path.to_owned(), bytes });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut policy = Self::parse(&text, path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = |path: &mut PathBuf| {
            // An id of the hub or a URL is no path.
            if !is_hub_id(path) && !is_remote(path) {
                *path = folder.join(&*path);
            }
        };
        if let Some(evaluation) = &mut policy.evaluation {
            evaluation.text.iter_mut().chain(&mut evaluation.reference).for_each(beside);
        }
        let Provenance { source, base, recipe, .. } = &mut policy.provenance;
        source.iter_mut().chain(base).chain(recipe).for_each(beside);
        policy.baseline.iter_mut().for_each(|baseline| beside(&mut baseline.artifact));
        Ok(policy)
    }

    /// The JSON schema of policies.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).into()
    }

    /// Reads a policy's text; `path` is for messages.
    ///
    /// # Errors
    /// As [`Policy::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, PolicyError> {
        let wrong = |message: String| PolicyError::Wrong { path: path.to_owned(), message };
        let policy: Self = toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        policy.consistent().map_err(wrong)?;
        Ok(policy)
    }

    /// What goes together.
    fn consistent(&self) -> Result<(), String> {
        let evaluation = self.evaluation.as_ref();
        if self.limits.evaluates() && evaluation.is_none_or(|evaluation| evaluation.text.is_empty()) {
            return Err("a limit of perplexity or divergence needs [evaluation] with `text = [\"file.txt\"]`".into());
        }
        if self.limits.compares() && evaluation.is_none_or(|evaluation| evaluation.reference.is_none()) {
            return Err("a limit beside a reference needs `reference = \"DIR\"` under [evaluation]".into());
        }
        if self.require.reproduce && self.provenance.recipe.is_none() {
            return Err("`reproduce = true` needs `recipe = \"FILE\"` under [provenance]".into());
        }
        if let Some(group) = self.limit.iter().find(|group| group.is_empty()) {
            let select: Vec<&str> = group.select.iter().map(Choice::as_str).collect();
            return Err(format!("the [[limit]] of {select:?} limits nothing"));
        }
        Ok(())
    }
}

impl GroupLimits {
    fn is_empty(&self) -> bool {
        let limits = [
            self.bits_per_weight,
            self.min_snr_db,
            self.max_relative_error,
            self.min_mean_snr_db,
            self.max_mean_relative_error,
        ];
        self.select.is_empty() || self.bytes.is_none() && limits.iter().all(Option::is_none)
    }
}
