//! A recipe's TOML tables with typed access: every miss becomes a diagnostic, and reading goes on.

use std::ops::Range;

use serde_spanned::Spanned;
use toml::{
    Value,
    de::{DeInteger, DeTable, DeValue},
};

use super::error::{Problem, Source, did_you_mean, shown};

/// Unknown keys beyond this many get no help: they are not shown anyway.
const MAX_HELPED: usize = 1000;

/// Text of a recipe with what was found wrong so far.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) problems: Vec<Problem>,
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

type Entry<'a> = (Range<usize>, &'a Spanned<DeValue<'a>>);

/// The entries of a table in the order of the text.
pub(super) fn entries<'a>(table: &'a DeTable<'a>) -> Vec<(&'a str, Range<usize>, &'a Spanned<DeValue<'a>>)> {
    let mut entries: Vec<_> = table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span(), value)).collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// A value as a message shows it: short, on one line.
pub(super) fn describe(source: &Source, value: &Spanned<DeValue<'_>>) -> String {
    let kind = value.get_ref().type_str();
    let text = source.text(&value.span());
    let plain = text.chars().count() <= 40 && !text.chars().any(char::is_control) && !text.is_empty();
    if plain && !value.get_ref().is_table() && !value.get_ref().is_array() {
        format!("the {kind} `{text}`")
    } else {
        article(kind)
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self { source, problems: Vec::new() }
    }

    pub(super) fn wrong(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.report(Problem::at(span, message));
    }

    pub(super) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Reports every key of a table that is not known.
    pub(super) fn check_keys(&mut self, table: &DeTable<'_>, place: &str, known: &[&str]) {
        for (key, span, _) in entries(table) {
            if !known.contains(&key) {
                self.unknown_key(key, &span, place, known);
            }
        }
    }

    pub(super) fn unknown_key(&mut self, key: &str, span: &Range<usize>, place: &str, known: &[&str]) {
        let mut problem = Problem::at(span, format!("unknown key `{}` in {place}", shown(key)));
        if self.problems.len() < MAX_HELPED {
            let expected = known.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            problem =
                problem.note(format!("expected one of {expected}")).help(did_you_mean(key, known.iter().copied()));
        }
        self.report(problem);
    }

    fn mismatch(&mut self, key: &str, expected: &str, value: &Spanned<DeValue<'_>>) {
        let got = describe(self.source, value);
        self.wrong(&value.span(), format!("`{key}`: expected {expected}, got {got}"));
    }

    fn entry<'t>(table: &'t DeTable<'t>, key: &str) -> Option<Entry<'t>> {
        table.get_key_value(key).map(|(key, value)| (key.span(), value))
    }

    pub(super) fn string(&mut self, table: &DeTable<'_>, key: &str, expected: &str) -> Option<Located<String>> {
        let (_, value) = Self::entry(table, key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.mismatch(key, expected, value);
            return None;
        };
        if text.is_empty() {
            self.wrong(&value.span(), format!("`{key}`: expected {expected}, got an empty string"));
            return None;
        }
        Some(Located { value: text.to_owned(), span: value.span() })
    }

    /// A list of strings; one string stands for a list of one.
    pub(super) fn strings(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        expected: &str,
    ) -> Option<Located<Vec<Located<String>>>> {
        let (_, value) = Self::entry(table, key)?;
        let span = value.span();
        let items: Vec<&Spanned<DeValue<'_>>> = match value.get_ref() {
            DeValue::String(_) => vec![value],
            DeValue::Array(array) => array.iter().collect(),
            _ => {
                self.mismatch(key, expected, value);
                return None;
            }
        };
        let mut strings = Vec::with_capacity(items.len());
        for item in items {
            match item.get_ref().as_str() {
                Some(text) => strings.push(Located { value: text.to_owned(), span: item.span() }),
                None => self.mismatch(key, expected, item),
            }
        }
        Some(Located { value: strings, span })
    }

    pub(super) fn boolean(&mut self, table: &DeTable<'_>, key: &str) -> Option<bool> {
        let (_, value) = Self::entry(table, key)?;
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.mismatch(key, "true or false", value);
        }
        boolean
    }

    /// A whole number from `least`.
    pub(super) fn whole(&mut self, table: &DeTable<'_>, key: &str, least: u64) -> Option<u64> {
        let (_, value) = Self::entry(table, key)?;
        let number = value.get_ref().as_integer().and_then(integer).and_then(|number| u64::try_from(number).ok());
        let number = number.filter(|number| *number >= least);
        if number.is_none() {
            self.mismatch(key, &format!("a whole number from {least}"), value);
        }
        number
    }

    /// A table under a `[header]` or inline.
    pub(super) fn table<'t>(&mut self, table: &'t DeTable<'t>, key: &str) -> Option<Located<&'t DeTable<'t>>> {
        let (_, value) = Self::entry(table, key)?;
        let found = value.get_ref().as_table();
        if found.is_none() {
            self.mismatch(key, &format!("a table, written `[{key}]`"), value);
        }
        Some(Located { value: found?, span: value.span() })
    }

    /// The tables under `[[header]]`s.
    pub(super) fn tables<'t>(
        &mut self,
        table: &'t DeTable<'t>,
        key: &str,
        header: &str,
    ) -> Vec<Located<&'t DeTable<'t>>> {
        let Some((_, value)) = Self::entry(table, key) else { return Vec::new() };
        let expected = format!("a list of tables, each written `[[{header}]]`");
        let Some(array) = value.get_ref().as_array() else {
            let help = value.get_ref().is_table().then(|| format!("write `[[{header}]]`, with two brackets"));
            let got = article(value.get_ref().type_str());
            self.report(Problem::at(&value.span(), format!("`{key}`: expected {expected}, got {got}")).help(help));
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(array.len());
        for item in array {
            match item.get_ref().as_table() {
                Some(found) => tables.push(Located { value: found, span: item.span() }),
                None => self.mismatch(key, &expected, item),
            }
        }
        tables
    }

    /// A value without its places; `path` collects them under dotted keys.
    pub(super) fn plain(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        places: &mut std::collections::BTreeMap<String, Range<usize>>,
    ) -> Option<Value> {
        places.insert(path.to_owned(), value.span());
        Some(match value.get_ref() {
            DeValue::String(text) => Value::String(text.clone().into_owned()),
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Datetime(datetime) => Value::Datetime(*datetime),
            DeValue::Integer(digits) => {
                let Some(number) = integer(digits) else {
                    self.wrong(&value.span(), format!("`{}`: a whole number of more than 64 bits", shown(path)));
                    return None;
                };
                Value::Integer(number)
            }
            DeValue::Float(digits) => match digits.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Value::Float(number),
                _ => {
                    self.wrong(&value.span(), format!("`{}`: not a finite number", shown(path)));
                    return None;
                }
            },
            DeValue::Array(array) => {
                let mut items = Vec::with_capacity(array.len());
                for (index, item) in array.iter().enumerate() {
                    items.push(self.plain(&format!("{path}.{index}"), item, places)?);
                }
                Value::Array(items)
            }
            DeValue::Table(table) => {
                let mut plain = toml::Table::new();
                for (key, _, item) in entries(table) {
                    let item = self.plain(&format!("{path}.{key}"), item, places)?;
                    plain.insert(key.to_owned(), item);
                }
                Value::Table(plain)
            }
        })
    }
}

fn integer(digits: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(digits.as_str(), digits.radix()).ok()
}
