//! From the keys of a recipe to [`Settings`]: types, ranges, and which keys exclude each other.

use toml::{Table, Value};

use super::k_quant;
use super::settings::{FloatFormat, Number, OutlierRule, Range, Settings, Sharing, ZeroKind};
use crate::{
    codec::KQuant,
    layout::{Activations, STRIPE_ALIGNMENT},
    passes::SettingError,
};

/// All keys, sorted.
pub const KEYS: &[&str] = &[
    "activations",
    "bits",
    "block",
    "block_columns",
    "block_rows",
    "format",
    "granularity",
    "group_size",
    "outlier_sigma",
    "outliers",
    "range",
    "symmetric",
    "target_bits",
    "zero",
];

/// The values of `format`.
pub const FORMATS: &[&str] = &["fp8", "mxfp4", "mxfp8", "nvfp4", "q4_k", "q6_k"];

/// Default side of a block, the one that runtimes support.
const BLOCK: usize = 128;
/// Default group size of integers.
const GROUP: usize = 128;
/// Group size that the MX formats fix.
const MX_GROUP: usize = 32;
/// Group size that NVFP4 fixes.
const NVFP4_GROUP: usize = 16;
/// Largest share of outliers; more would be stored in fewer bits dense.
const MAX_OUTLIERS: f64 = 0.5;

pub(super) fn wrong(key: &str, message: impl Into<String>) -> SettingError {
    SettingError { key: key.to_owned(), message: message.into() }
}

pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Table(_) => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// Reads typed values out of the merged settings of a rule.
struct Reader<'a>(&'a Table);

impl Reader<'_> {
    fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn integer(&self, key: &str, from: i64, to: i64) -> Result<Option<usize>, SettingError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Integer(value)) if (from..=to).contains(value) => Ok(Some(*value as usize)),
            Some(value) => {
                Err(wrong(key, format!("expected a whole number from {from} to {to}, got {}", describe(value))))
            }
        }
    }

    fn number(&self, key: &str, what: &str, good: impl Fn(f64) -> bool) -> Result<Option<f64>, SettingError> {
        let value = match self.0.get(key) {
            None => return Ok(None),
            Some(Value::Integer(value)) => Some(*value as f64),
            Some(Value::Float(value)) => Some(*value),
            Some(_) => None,
        };
        match value {
            Some(value) if value.is_finite() && good(value) => Ok(Some(value)),
            _ => Err(wrong(key, format!("expected {what}, got {}", describe(&self.0[key])))),
        }
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, SettingError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(*value)),
            Some(value) => Err(wrong(key, format!("expected true or false, got {}", describe(value)))),
        }
    }

    fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, SettingError> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        if let Some((_, meaning)) = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text)) {
            return Ok(Some(*meaning));
        }
        let known: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        Err(wrong(key, format!("expected {}, got {}", known.join(" or "), describe(value))))
    }
}

impl Settings {
    /// Types and checks the keys of a rule (its own keys only: no `use`, `select`, `skip`).
    ///
    /// # Errors
    /// [`SettingError`] naming the key, what was expected and what was there.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(wrong(key, format!("`rtn` has no such setting; it has {}", KEYS.join(", "))));
        }
        let reader = Reader(table);
        let number = parse_number(&reader)?;
        if let Number::KQuant { format } = number {
            return k_quant::parse(table, format);
        }
        let target_bits =
            reader.number("target_bits", "a number of bits above 0, at most 64", |bits| bits > 0.0 && bits <= 64.0)?;
        let outliers = parse_outliers(&reader)?;
        if outliers == Some(OutlierRule::Auto) && target_bits.is_none() {
            return Err(wrong("outliers", "\"auto\" fills up to a bits-per-weight target; set `target_bits` too"));
        }
        let chosen = target_bits.is_some() && outliers != Some(OutlierRule::Auto);
        let sharing = if chosen { parse_chosen(&reader, number)? } else { parse_sharing(&reader, number)? };
        let default_range = if outliers.is_some() { Range::Mse } else { Range::Minmax };
        let range = reader
            .word("range", &[("minmax", Range::Minmax), ("mse", Range::Mse), ("hqq", Range::Hqq)])?
            .unwrap_or(default_range);
        let symmetric = parse_symmetric(&reader, number, range)?;
        let zero = reader.word(
            "zero",
            &[
                ("auto", ZeroKind::Auto),
                ("integer", ZeroKind::Integer),
                ("float", ZeroKind::Float),
                ("minimum", ZeroKind::Minimum),
            ],
        )?;
        if zero == Some(ZeroKind::Minimum) {
            if symmetric {
                return Err(wrong("zero", "symmetric codes have no minimum; set `symmetric = false`"));
            }
            if range == Range::Hqq {
                return Err(wrong(
                    "zero",
                    "`range = \"hqq\"` finds zero points; expected \"auto\", \"integer\" or \"float\"",
                ));
            }
        }
        if range == Range::Hqq {
            if matches!(number, Number::Float { .. }) {
                return Err(wrong("range", "\"hqq\" moves zero points, which float formats do not have; use \"mse\""));
            }
            if matches!(sharing, Sharing::Tensor | Sharing::Block { .. }) {
                return Err(wrong(
                    "range",
                    "\"hqq\" works on groups and channels; use `granularity` \"group\" or \"channel\"",
                ));
            }
        } else if zero == Some(ZeroKind::Float) {
            return Err(wrong("zero", "only `range = \"hqq\"` gives zero points that are not whole"));
        }
        let activations = reader.word(
            "activations",
            &[("none", Activations::None), ("dynamic", Activations::Dynamic), ("static", Activations::Static)],
        )?;
        Ok(Self {
            number,
            sharing,
            symmetric,
            range,
            zero: zero.unwrap_or(ZeroKind::Auto),
            outliers,
            target_bits,
            activations: activations.unwrap_or(Activations::None),
        })
    }
}

fn parse_number(reader: &Reader) -> Result<Number, SettingError> {
    let bits = reader.integer("bits", 2, 8)?;
    let float = |format| Number::Float { format };
    let format = reader.word(
        "format",
        &[
            ("fp8", float(FloatFormat::Fp8)),
            ("mxfp4", float(FloatFormat::Mxfp4)),
            ("mxfp8", float(FloatFormat::Mxfp8)),
            ("nvfp4", float(FloatFormat::Nvfp4)),
            ("q4_k", Number::KQuant { format: KQuant::Q4K }),
            ("q6_k", Number::KQuant { format: KQuant::Q6K }),
        ],
    )?;
    match (bits, format) {
        (Some(_), Some(_)) => Err(wrong(
            "format",
            "`bits` and `format` exclude each other: `bits` means integers; leave one out (an override cannot take a key away: \
             use a rule of its own)",
        )),
        (None, Some(number)) => Ok(number),
        (bits, None) => Ok(Number::Integer { bits: bits.unwrap_or(4) as u8 }),
    }
}

fn parse_symmetric(reader: &Reader, number: Number, range: Range) -> Result<bool, SettingError> {
    let given = reader.boolean("symmetric")?;
    match (number, given) {
        (Number::Float { .. }, Some(false)) => {
            Err(wrong("symmetric", "float formats have no zero points; expected true or nothing"))
        }
        (Number::Integer { .. }, Some(true)) if range == Range::Hqq => {
            Err(wrong("symmetric", "`range = \"hqq\"` finds zero points; expected false or nothing"))
        }
        (_, Some(symmetric)) => Ok(symmetric),
        (_, None) => Ok(range != Range::Hqq),
    }
}

fn parse_outliers(reader: &Reader) -> Result<Option<OutlierRule>, SettingError> {
    let sigma = reader.number("outlier_sigma", "a number of standard deviations above 0", |sigma| sigma > 0.0)?;
    let outliers = if reader.0.get("outliers").and_then(Value::as_str) == Some("auto") {
        Some(OutlierRule::Auto)
    } else {
        let what = "a share from 0 to 0.5, or \"auto\"";
        reader.number("outliers", what, |share| (0.0..=MAX_OUTLIERS).contains(&share))?.map(OutlierRule::Share)
    };
    match (outliers, sigma) {
        (Some(_), Some(_)) => {
            Err(wrong("outlier_sigma", "`outliers` and `outlier_sigma` exclude each other; leave one out"))
        }
        (Some(OutlierRule::Share(0.0)), None) => Ok(None),
        (outliers, sigma) => Ok(outliers.or(sigma.map(OutlierRule::Sigma))),
    }
}

/// Where a bits-per-weight target chooses the granularity, the recipe must not.
fn parse_chosen(reader: &Reader, number: Number) -> Result<Sharing, SettingError> {
    if matches!(number, Number::Float { .. }) {
        return Err(wrong(
            "target_bits",
            "a target chooses the granularity of integers; with `format` it needs `outliers = \"auto\"`",
        ));
    }
    for key in ["granularity", "group_size", "block", "block_rows", "block_columns"] {
        if reader.has(key) {
            return Err(wrong(
                key,
                "`target_bits` chooses the granularity per matrix; leave this out (or let `outliers = \"auto\"` use the target)",
            ));
        }
    }
    Ok(Sharing::Chosen)
}

fn parse_block(reader: &Reader) -> Result<Option<(usize, usize)>, SettingError> {
    let limit = i64::from(u32::MAX);
    let (key, rows, columns) = if let Some(value) = reader.0.get("block") {
        if reader.has("block_rows") || reader.has("block_columns") {
            return Err(wrong("block", "`block` and `block_rows`/`block_columns` exclude each other; leave one out"));
        }
        let sides: Option<Vec<i64>> =
            value.as_array().and_then(|array| array.iter().map(Value::as_integer).collect::<Option<_>>());
        match sides.as_deref() {
            Some(&[rows, columns]) if (1..=limit).contains(&rows) && (1..=limit).contains(&columns) => {
                ("block", rows as usize, columns as usize)
            }
            _ => {
                return Err(wrong(
                    "block",
                    format!("expected [rows, columns], as in [128, 128], got {}", describe(value)),
                ));
            }
        }
    } else {
        let (rows, columns) = (reader.integer("block_rows", 1, limit)?, reader.integer("block_columns", 1, limit)?);
        if rows.is_none() && columns.is_none() {
            return Ok(None);
        }
        ("block_rows", rows.unwrap_or(BLOCK), columns.unwrap_or(BLOCK))
    };
    if STRIPE_ALIGNMENT.is_multiple_of(rows) {
        Ok(Some((rows, columns)))
    } else {
        Err(wrong(key, format!("the rows of a block must divide {STRIPE_ALIGNMENT}, got {rows}")))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Group,
    Channel,
    Tensor,
    Block,
}

fn parse_sharing(reader: &Reader, number: Number) -> Result<Sharing, SettingError> {
    let group_size = reader.integer("group_size", 0, i64::from(u32::MAX))?;
    let block = parse_block(reader)?;
    let words = [("group", Name::Group), ("channel", Name::Channel), ("tensor", Name::Tensor), ("block", Name::Block)];
    let name = reader.word("granularity", &words)?;

    let fixed = match number {
        Number::Float { format: FloatFormat::Mxfp4 | FloatFormat::Mxfp8 } => Some(MX_GROUP),
        Number::Float { format: FloatFormat::Nvfp4 } => Some(NVFP4_GROUP),
        _ => None,
    };
    if let Some(fixed) = fixed {
        if name.is_some_and(|name| name != Name::Group) || block.is_some() {
            let key = if block.is_some() { "block" } else { "granularity" };
            return Err(wrong(key, format!("this format fixes groups of {fixed}; expected \"group\" or nothing")));
        }
        if group_size.is_some_and(|size| size != fixed) {
            return Err(wrong("group_size", format!("this format fixes groups of {fixed}; leave it out")));
        }
        return Ok(Sharing::Group { group_size: fixed });
    }

    let name = name.unwrap_or(match (group_size, block, number) {
        (None, Some(_), _) => Name::Block,
        (Some(0), ..) | (None, None, Number::Float { .. }) => Name::Channel,
        _ => Name::Group,
    });
    if block.is_some() && name != Name::Block {
        return Err(wrong("block", "a block size needs `granularity = \"block\"`"));
    }
    if name != Name::Group && group_size.is_some_and(|size| size != 0) {
        return Err(wrong("group_size", "a group size needs `granularity = \"group\"`; leave one of them out"));
    }
    match (name, group_size) {
        (Name::Group, Some(0)) => {
            Err(wrong("group_size", "0 means whole rows, which is `granularity = \"channel\"`; expected 1 or more"))
        }
        (Name::Group, size) => Ok(Sharing::Group { group_size: size.unwrap_or(GROUP) }),
        (Name::Channel, _) => Ok(Sharing::Channel),
        (Name::Tensor, _) => Ok(Sharing::Tensor),
        (Name::Block, _) => {
            let (block_rows, block_columns) = block.unwrap_or((BLOCK, BLOCK));
            Ok(Sharing::Block { block_rows, block_columns })
        }
    }
}
