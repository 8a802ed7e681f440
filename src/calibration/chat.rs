//! Chat templates: from the messages of a conversation to the text that the model reads.
//!
//! The templates are Jinja, written against the environment that `transformers` gives them; this is that environment.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};
use serde::Serialize as _;

use super::TokenError;

/// Instructions that one conversation may take: far above what real ones need, and an end for those that have none.
const FUEL: u64 = 50_000_000;

const NAME: &str = "chat";

/// A model's chat template with its special tokens.
pub(super) struct Chat {
    environment: Environment<'static>,
    special: BTreeMap<String, String>,
    path: PathBuf,
}

impl Chat {
    /// The template of a model's folder: `chat_template.jinja`, or what `tokenizer_config.json` has; `None` where there
    /// is neither.
    pub(super) fn of(folder: &Path) -> Result<Option<Self>, TokenError> {
        let config_path = folder.join("tokenizer_config.json");
        let config = match read_if_there(&config_path)? {
            Some(text) => parse_config(&config_path, &text)?,
            None => serde_json::Map::new(),
        };
        let file = folder.join("chat_template.jinja");
        let (path, source) = match read_if_there(&file)? {
            Some(source) => (file, source),
            None => match from_config(&config_path, &config)? {
                Some(source) => (config_path, source),
                None => return Ok(None),
            },
        };
        Self::new(path, &source, special_tokens(&config)).map(Some)
    }

    /// A template that was read from `path`.
    pub(super) fn new(path: PathBuf, source: &str, special: BTreeMap<String, String>) -> Result<Self, TokenError> {
        let mut environment = environment();
        if let Err(error) = environment.add_template_owned(NAME, without_generation_marks(source)) {
            return Err(TokenError::BadTemplate { template: path, message: describe(&error) });
        }
        Ok(Self { environment, special, path })
    }

    /// Writes out a conversation that stands in a line of `file`.
    pub(super) fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        file: &Path,
        line: usize,
    ) -> Result<String, TokenError> {
        let special = Value::from_pairs(self.special.clone());
        // What transformers passes besides: templates ask `is not none`, which an absent variable is not.
        let context = context! {
            messages,
            tools => tools.cloned().unwrap_or(Value::from(())),
            documents => Value::from(()),
            add_generation_prompt => false,
            ..special
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| TokenError::Template {
            file: file.to_owned(),
            line,
            template: self.path.clone(),
            message: describe(&error),
        })
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, TokenError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenError::Io { file: path.to_owned(), source }),
    }
}

fn parse_config(path: &Path, text: &str) -> Result<serde_json::Map<String, serde_json::Value>, TokenError> {
    serde_json::from_str(text)
        .map_err(|error| TokenError::BadConfig { file: path.to_owned(), message: format!("not as expected: {error}") })
}

/// `chat_template`: one template, or a list of named ones of which the default is taken.
fn from_config(path: &Path, config: &serde_json::Map<String, serde_json::Value>) -> Result<Option<String>, TokenError> {
    use serde_json::Value as Json;
    let wrong = || TokenError::BadConfig {
        file: path.to_owned(),
        message: "`chat_template`: expected a string or a list of {name, template}".into(),
    };
    let templates = match config.get("chat_template") {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(template)) => return Ok(Some(template.clone())),
        Some(Json::Array(list)) => list,
        Some(_) => return Err(wrong()),
    };
    let member = |entry: &Json, key: &str| Some(entry.get(key)?.as_str()?.to_owned());
    let mut named = Vec::with_capacity(templates.len());
    for entry in templates {
        let (Some(name), Some(template)) = (member(entry, "name"), member(entry, "template")) else {
            return Err(wrong());
        };
        named.push((name, template));
    }
    if let [(_, only)] = &named[..] {
        return Ok(Some(only.clone()));
    }
    let names = named.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    match named.into_iter().find(|(name, _)| name == "default") {
        Some((_, template)) => Ok(Some(template)),
        None if names.is_empty() => Ok(None),
        None => Err(TokenError::NoDefaultTemplate { file: path.to_owned(), names }),
    }
}

/// Every `…_token` of the configuration: strings, or objects with the string as `content`.
fn special_tokens(config: &serde_json::Map<String, serde_json::Value>) -> BTreeMap<String, String> {
    let text = |value: &serde_json::Value| Some(value.get("content").unwrap_or(value).as_str()?.to_owned());
    config
        .iter()
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| Some((key.clone(), text(value)?)))
        .collect()
}

/// Jinja as transformers sets it up: blocks leave no lines behind, nothing is escaped, Python's methods and its words
/// for values.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are the default ones"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(python_words);
    environment.set_fuel(Some(FUEL));
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| date(&format));
    environment.add_filter("tojson", to_json);
    environment
}

/// Prints `None`, `True` and `False` as Python does.
fn python_words(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let word = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

/// The `{% generation %}` marks say which text the model wrote, for training; a block that always holds replaces them.
fn without_generation_marks(source: &str) -> String {
    let mark = regex::Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("a constant that is tested");
    let replaced = mark.replace_all(source, |found: &regex::Captures<'_>| {
        let word = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{}{word}{}", &found[1], &found[3])
    });
    replaced.into_owned()
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it, which is what models have read; `indent` as there.
#[expect(clippy::needless_pass_by_value, reason = "filters take their keyword arguments by value")]
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Others (`sort_keys`, `ensure_ascii`) change nothing that templates in use rely on.
    let mut text = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, PythonJson)),
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, pretty))
        }
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from(String::from_utf8_lossy(&text).into_owned()))
}

/// A space behind every comma and colon.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `strftime_now` without a clock, so that the same data gives the same tokens on every day: Friday, 26 July 2024, the
/// date that Llama 3's templates take where there is no clock. Codes that no template uses are left as they stand.
fn date(format: &str) -> String {
    const CODES: [(&str, &str); 14] = [
        ("%Y", "2024"),
        ("%y", "24"),
        ("%m", "07"),
        ("%d", "26"),
        ("%B", "July"),
        ("%b", "Jul"),
        ("%A", "Friday"),
        ("%a", "Fri"),
        ("%j", "208"),
        ("%H", "00"),
        ("%M", "00"),
        ("%S", "00"),
        ("%-d", "26"),
        ("%-m", "7"),
    ];
    CODES.iter().fold(format.to_owned(), |text, (code, value)| text.replace(code, value))
}

/// The message of a template's error with the line of the template, without the name that we gave it.
fn describe(error: &Error) -> String {
    let message = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    match error.line() {
        Some(line) => format!("{message} (line {line} of the template)"),
        None => message,
    }
}

#[cfg(test)]
mod tests;
