//! Selectors: which tensors of a model a rule is about. Roles, globs over names, `/regular expressions/`, exact names.

use globset::{GlobBuilder, GlobMatcher};
use regex::{Regex, RegexBuilder};

use crate::model::{MappedTensor, Role};

/// Longest selector in bytes; anything longer is no selector but an accident.
const MAX_BYTES: usize = 1024;
/// Largest compiled regular expression in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

const ATTENTION_PARTS: [&str; 9] =
    ["query", "key", "value", "output", "qkv", "query_a", "query_b", "key_value_a", "key_value_b"];
const MLP_PARTS: [&str; 4] = ["gate", "up", "down", "gate_up"];
const EMBEDDING_PARTS: [&str; 2] = ["position", "type"];

/// One entry of `select` or `skip`, ready to match.
#[derive(Debug, Clone)]
pub struct Selector {
    text: String,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    Role(Pattern),
    Glob(Box<GlobMatcher>),
    Regex(Regex),
    Name,
}

/// `block.N-M`, a role, or both: `block.0-3.mlp.down`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    blocks: Option<(usize, usize)>,
    role: Option<RolePattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RolePattern {
    Linear,
    Head,
    Embedding(Option<String>),
    Norm,
    Router,
    Other,
    Attention(Option<String>),
    Mlp(Option<String>),
    SharedExpert(Option<String>),
    Expert { index: Option<usize>, part: Option<String> },
}

/// Why a selector cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Nothing was written.
    #[error("an empty selector; expected a role, a glob, a /regular expression/ or a name")]
    Empty,
    /// Too much was written.
    #[error("a selector of {bytes} bytes; at most {MAX_BYTES} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not a glob.
    #[error("not a glob: {reason}")]
    Glob {
        /// Why.
        reason: String,
    },
    /// Not a regular expression.
    #[error("not a regular expression: {reason}")]
    Regex {
        /// Why.
        reason: String,
    },
    /// A range of blocks that ends before it begins.
    #[error("blocks {first}-{last} end before they begin; expected block.{last}-{first}")]
    Blocks {
        /// First block.
        first: usize,
        /// Last block.
        last: usize,
    },
}

impl Selector {
    /// Reads a selector. A word that is no role, glob or regular expression is taken as the exact name of a tensor or
    /// module; whether there is one only a model can tell ([`Selector::is_name`]).
    ///
    /// # Errors
    /// [`SelectorError`] when it can select nothing in any model.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.is_empty() {
            return Err(SelectorError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(SelectorError::TooLong { bytes: text.len() });
        }
        let matcher = if let Some(expression) = regex_body(text) {
            let regex = RegexBuilder::new(expression)
                .size_limit(MAX_REGEX_BYTES)
                .build()
                .map_err(|error| SelectorError::Regex { reason: last_line(&error.to_string()) })?;
            Matcher::Regex(regex)
        } else if text.contains(['*', '?', '[', '{']) {
            let glob = GlobBuilder::new(text)
                .literal_separator(false)
                .backslash_escape(true)
                .build()
                .map_err(|error| SelectorError::Glob { reason: error.kind().to_string() })?;
            Matcher::Glob(Box::new(glob.compile_matcher()))
        } else {
            Pattern::parse(text)?.map_or(Matcher::Name, Matcher::Role)
        };
        Ok(Self { text: text.to_owned(), matcher })
    }

    /// The selector as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is meant as the exact name of a tensor or module.
    #[must_use]
    pub fn is_name(&self) -> bool {
        matches!(self.matcher, Matcher::Name)
    }

    /// Whether it selects this tensor. Globs match the tensor's or its module's whole name and `*` crosses dots; regular
    /// expressions match anywhere in the tensor's name; names match the tensor, its module, or a module around it.
    #[must_use]
    pub fn matches(&self, tensor: &MappedTensor) -> bool {
        let name = tensor.name.as_str();
        match &self.matcher {
            Matcher::Role(pattern) => pattern.matches(tensor),
            Matcher::Glob(glob) => {
                glob.is_match(name) || name.strip_suffix(".weight").is_some_and(|module| glob.is_match(module))
            }
            Matcher::Regex(regex) => regex.is_match(name),
            Matcher::Name => name.strip_prefix(&self.text).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
        }
    }

    pub(super) fn is_role(&self) -> bool {
        matches!(self.matcher, Matcher::Role(_))
    }

    /// Whether it names what `other` is about by the same role or a part of it (`attention.key` for `attention`).
    pub(super) fn names_role(&self, other: &Self) -> bool {
        self.is_role()
            && self.text.strip_prefix(&other.text).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Every role that can be selected by a fixed word, for help.
pub(super) fn role_words() -> Vec<String> {
    let mut words: Vec<String> = ["linear", "head", "norm", "router", "other"].map(str::to_owned).into();
    for (role, parts) in [
        ("embedding", &EMBEDDING_PARTS[..]),
        ("attention", &ATTENTION_PARTS[..]),
        ("mlp", &MLP_PARTS),
        ("shared_expert", &MLP_PARTS),
        ("expert", &MLP_PARTS),
    ] {
        words.push(role.to_owned());
        words.extend(parts.iter().map(|part| format!("{role}.{part}")));
    }
    words
}

/// The dotted path by which a recipe selects a role; experts without their index.
pub(super) fn role_path(role: &Role) -> String {
    match role {
        Role::Embedding => "embedding".to_owned(),
        Role::OtherEmbedding(part) => format!("embedding.{part}"),
        Role::Head => "head".to_owned(),
        Role::Norm => "norm".to_owned(),
        Role::Router => "router".to_owned(),
        Role::Attention(part) => format!("attention.{part}"),
        Role::Mlp(part) => format!("mlp.{part}"),
        Role::SharedExpert(part) => format!("shared_expert.{part}"),
        Role::Expert(_, part) => format!("expert.{part}"),
        Role::Linear => "linear".to_owned(),
        Role::Other => "other".to_owned(),
    }
}

impl Pattern {
    /// Reads a role; none when the text is not one.
    fn parse(text: &str) -> Result<Option<Self>, SelectorError> {
        let Some(rest) = text.strip_prefix("block.") else {
            return Ok(RolePattern::parse(text).map(|role| Self { blocks: None, role: Some(role) }));
        };
        let (range, role) = rest.split_once('.').map_or((rest, None), |(range, role)| (range, Some(role)));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Some(first), Some(last)) = (index(first), index(last)) else { return Ok(None) };
        if last < first {
            return Err(SelectorError::Blocks { first, last });
        }
        let pattern = match role {
            None => None,
            Some(role) => match RolePattern::parse(role) {
                None => return Ok(None),
                known => known,
            },
        };
        Ok(Some(Self { blocks: Some((first, last)), role: pattern }))
    }

    fn matches(&self, tensor: &MappedTensor) -> bool {
        let in_blocks =
            self.blocks.is_none_or(|(first, last)| tensor.block.is_some_and(|block| (first..=last).contains(&block)));
        in_blocks && self.role.as_ref().is_none_or(|role| role.matches(tensor))
    }
}

impl RolePattern {
    fn parse(text: &str) -> Option<Self> {
        let (word, part) = text.split_once('.').map_or((text, None), |(word, part)| (word, Some(part)));
        let known = |parts: &[&str]| match part {
            None => Some(None),
            Some(part) => parts.contains(&part).then(|| Some(part.to_owned())),
        };
        match (word, part) {
            ("linear", None) => Some(Self::Linear),
            ("head", None) => Some(Self::Head),
            ("norm", None) => Some(Self::Norm),
            ("router", None) => Some(Self::Router),
            ("other", None) => Some(Self::Other),
            ("embedding", _) => known(&EMBEDDING_PARTS).map(Self::Embedding),
            ("attention", _) => known(&ATTENTION_PARTS).map(Self::Attention),
            ("mlp", _) => known(&MLP_PARTS).map(Self::Mlp),
            ("shared_expert", _) => known(&MLP_PARTS).map(Self::SharedExpert),
            ("expert", Some(rest)) => {
                let (first, part) = rest.split_once('.').map_or((rest, None), |(first, part)| (first, Some(part)));
                match (index(first), part) {
                    (None, None) if MLP_PARTS.contains(&first) => {
                        Some(Self::Expert { index: None, part: Some(first.to_owned()) })
                    }
                    (Some(index), None) => Some(Self::Expert { index: Some(index), part: None }),
                    (Some(index), Some(part)) if MLP_PARTS.contains(&part) => {
                        Some(Self::Expert { index: Some(index), part: Some(part.to_owned()) })
                    }
                    _ => None,
                }
            }
            ("expert", None) => Some(Self::Expert { index: None, part: None }),
            _ => None,
        }
    }

    fn matches(&self, tensor: &MappedTensor) -> bool {
        let is = |wanted: &Option<String>, part: &str| wanted.as_deref().is_none_or(|wanted| wanted == part);
        match (self, &tensor.role) {
            // Routers and what lies outside the language model are matrices too, but nobody means them by "linear".
            (Self::Linear, role) => tensor.matrix.is_some() && !matches!(role, Role::Router | Role::Other),
            (Self::Head, Role::Head)
            | (Self::Embedding(None), Role::Embedding)
            | (Self::Norm, Role::Norm)
            | (Self::Router, Role::Router)
            | (Self::Other, Role::Other) => true,
            (Self::Embedding(wanted), Role::OtherEmbedding(part))
            | (Self::Attention(wanted), Role::Attention(part))
            | (Self::Mlp(wanted), Role::Mlp(part) | Role::SharedExpert(part) | Role::Expert(_, part))
            | (Self::SharedExpert(wanted), Role::SharedExpert(part)) => is(wanted, part),
            (Self::Expert { index, part: wanted }, Role::Expert(actual, part)) => {
                (index.is_none() || index == actual) && is(wanted, part)
            }
            _ => false,
        }
    }
}

/// The expression between slashes.
fn regex_body(text: &str) -> Option<&str> {
    text.strip_prefix('/')?.strip_suffix('/').filter(|body| !body.is_empty())
}

/// A plain number without sign or spaces.
fn index(text: &str) -> Option<usize> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// The regex parser draws several lines; the last one says what is wrong.
fn last_line(text: &str) -> String {
    let line = text.lines().last().unwrap_or(text);
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}
