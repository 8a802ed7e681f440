//! What can be wrong with a recipe, shown as a compiler shows it.

use std::{
    fmt::{self, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Characters of a source line that are shown around a mark; recipes may hold very long lines.
const SHOWN_WIDTH: usize = 110;
/// Errors that are shown; the rest is counted.
const MAX_SHOWN: usize = 20;
/// Longest word that a message quotes, in characters.
const MAX_QUOTED: usize = 80;

/// Every way in which a recipe can be wrong. Displays like a compiler: message, `--> file:line:column`, the line, a caret.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe `{}`: {source}", path.display())]
    Read {
        /// The recipe.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than any recipe.
    #[error("`{}` has {bytes} bytes, more than the {limit} that a recipe may have; is it a recipe?", path.display())]
    TooLarge {
        /// The recipe.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The file is no text.
    #[error("`{}` is not UTF-8 text: byte {offset} is wrong; is it a recipe?", path.display())]
    NotText {
        /// The recipe.
        path: PathBuf,
        /// Offset of the first wrong byte.
        offset: usize,
    },
    /// The text is wrong in one or more places.
    #[error("{}", render(diagnostics, *omitted))]
    Wrong {
        /// The places, at least one, in the order of the text.
        diagnostics: Vec<Diagnostic>,
        /// How many more there are.
        omitted: usize,
    },
}

/// One thing that is wrong in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// Where.
    pub place: Place,
    /// What was expected instead, or what the model has.
    pub notes: Vec<String>,
    /// What to do.
    pub help: Option<String>,
}

/// A place in a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The recipe, as it was named.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line without its end, shortened around the mark, control characters replaced; none for the whole file.
    pub source_line: Option<String>,
    /// Characters of `source_line` before the mark.
    pub mark_start: usize,
    /// Characters that are marked.
    pub mark_width: usize,
}

impl RecipeError {
    /// What to do about it, where the message does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("`bantam init MODEL` writes a recipe that fits a model".into())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { path, line, column, source_line, mark_start, mark_width } = &self.place;
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        write!(formatter, "{}\n{margin}--> {}:{line}:{column}", self.message, path.display())?;
        if let Some(source_line) = source_line {
            let mark = "^".repeat(*mark_width);
            let indent = " ".repeat(*mark_start);
            write!(formatter, "\n{margin} |\n{number} | {source_line}\n{margin} | {indent}{mark}")?;
        }
        for note in &self.notes {
            write!(formatter, "\n{margin} = {note}")?;
        }
        if let Some(help) = &self.help {
            write!(formatter, "\n{margin} = help: {help}")?;
        }
        Ok(())
    }
}

fn render(diagnostics: &[Diagnostic], omitted: usize) -> String {
    let mut text = String::new();
    for (index, diagnostic) in diagnostics.iter().enumerate() {
        let lead = if index == 0 { "" } else { "\n\nerror: " };
        let _ = write!(text, "{lead}{diagnostic}");
    }
    if omitted > 0 {
        let _ = write!(text, "\n\n… and {omitted} more");
    }
    text
}

/// A diagnostic before its place is worked out: cheap, because a hostile recipe may have a hundred thousand.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) message: String,
    /// Bytes to mark; none for the recipe as a whole.
    pub(super) span: Option<Range<usize>>,
    pub(super) notes: Vec<String>,
    pub(super) help: Option<String>,
}

impl Problem {
    pub(super) fn at(span: &Range<usize>, message: impl Into<String>) -> Self {
        Self { message: message.into(), span: Some(span.clone()), notes: Vec::new(), help: None }
    }

    /// About the file as a whole.
    pub(super) fn of_all(message: impl Into<String>) -> Self {
        Self { message: message.into(), span: None, notes: Vec::new(), help: None }
    }

    /// Adds what was expected, or what there is.
    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Adds what to do, if anything, unless something better is there already.
    pub(super) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = self.help.or(help.into());
        self
    }
}

/// The text of a recipe, for showing places in it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    path: PathBuf,
    text: Arc<str>,
    line_starts: Arc<[usize]>,
}

impl Source {
    pub(super) fn new(path: &Path, text: &str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Self { path: path.to_owned(), text: text.into(), line_starts }
    }

    pub(super) fn text(&self, span: &Range<usize>) -> &str {
        self.text.get(span.clone()).unwrap_or("")
    }

    /// Line of a byte offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// All problems as one error, in the order of the text; only the first ones are shown.
    pub(super) fn error(&self, mut problems: Vec<Problem>) -> RecipeError {
        problems.sort_by_key(|problem| problem.span.as_ref().map(|span| span.start));
        problems.dedup_by(|a, b| a.message == b.message && a.span == b.span);
        let omitted = problems.len().saturating_sub(MAX_SHOWN);
        problems.truncate(MAX_SHOWN);
        let shown = |problem: Problem| Diagnostic {
            place: problem.span.map_or_else(|| self.beginning(), |span| self.place(&span)),
            message: problem.message,
            notes: problem.notes,
            help: problem.help,
        };
        RecipeError::Wrong { diagnostics: problems.into_iter().map(shown).collect(), omitted }
    }

    fn beginning(&self) -> Place {
        Place { path: self.path.clone(), line: 1, column: 1, source_line: None, mark_start: 0, mark_width: 0 }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let text = &*self.text;
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let line = text[line_start..line_end].trim_end_matches('\r');
        let before = text[line_start..start].chars().count();
        let marked = text[start..end.min(line_end)].trim_end().chars().count().max(1);
        let (source_line, mark_start, mark_width) = shorten(line, before, marked);
        Place {
            path: self.path.clone(),
            line: self.line(start),
            column: before + 1,
            source_line: Some(source_line),
            mark_start,
            mark_width,
        }
    }
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The part of a line around a mark that fits the shown width, with nothing in it that a terminal would obey.
fn shorten(line: &str, before: usize, marked: usize) -> (String, usize, usize) {
    let length = line.chars().count();
    if length <= SHOWN_WIDTH {
        return (line.chars().map(harmless).collect(), before, marked);
    }
    let width = marked.min(SHOWN_WIDTH / 2);
    let first = before.saturating_sub((SHOWN_WIDTH - width) / 2).min(length - SHOWN_WIDTH);
    let shown: String = line.chars().skip(first).take(SHOWN_WIDTH).map(harmless).collect();
    let lead = if first > 0 { "…" } else { "" };
    let tail = if first + SHOWN_WIDTH < length { "…" } else { "" };
    (format!("{lead}{shown}{tail}"), before - first + lead.chars().count(), width)
}

/// A word of the recipe for a message: on one line, not longer than a line, nothing in it that a terminal would obey.
pub(super) fn shown(word: &str) -> String {
    clipped(word, MAX_QUOTED)
}

/// A message of somebody else's that may quote the recipe.
pub(super) fn clipped(text: &str, limit: usize) -> String {
    let mut characters = text.chars().map(harmless);
    let start: String = characters.by_ref().take(limit).collect();
    let more = if characters.next().is_some() { "…" } else { "" };
    format!("{start}{more}")
}

fn harmless(character: char) -> char {
    match character {
        '\t' => ' ',
        _ if character.is_control() => char::REPLACEMENT_CHARACTER,
        _ => character,
    }
}

/// The name nearest to what was written, if one is near enough to be meant.
pub(super) fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if written.len() > MAX_QUOTED {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let written = plain(written);
    let allowed = (written.chars().count() / 3).max(1);
    names
        .into_iter()
        .map(|name| {
            let candidate = plain(name);
            let begins = written.len() >= 3 && candidate.starts_with(&written);
            let distance = if begins { 1 } else { strsim::damerau_levenshtein(&written, &candidate) };
            (distance, name)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The nearest name as a help line.
pub(super) fn did_you_mean<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(written, names).map(|name| format!("did you mean `{name}`?"))
}
