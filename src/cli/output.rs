//! Where output goes: the result to stdout, progress and warnings to stderr.

use std::{
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Serialize;

use super::{CliError, GlobalArguments};

/// How talkative the command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// `-qq`: errors only.
    Silent,
    /// `-q`: errors and warnings.
    Quiet,
    /// Progress too.
    Normal,
    /// `-v`: and what was decided on the way.
    Verbose,
}

/// The command's stdout and stderr, with what the user wants to see of them.
#[derive(Debug)]
pub struct Output {
    json: bool,
    verbosity: Verbosity,
    progress: bool,
    colour: Colour,
    reader_gone: AtomicBool,
}

/// Which of the two streams show colour.
#[derive(Debug, Clone, Copy)]
struct Colour {
    stdout: bool,
    stderr: bool,
}

/// A terminal attribute, applied only where colour is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Headings.
    Bold,
    /// What matters less.
    Dim,
    /// Errors.
    Red,
    /// Warnings.
    Yellow,
    /// What is as it should be.
    Green,
}

impl Style {
    fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "1;31",
            Self::Yellow => "1;33",
            Self::Green => "1;32",
        };
        if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Output {
    /// Derives the output from the arguments, the environment (`NO_COLOR`, `TERM`) and whether a terminal listens.
    #[must_use]
    pub fn new(arguments: &GlobalArguments, json: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = !set("NO_COLOR") && !dumb;
        let verbosity = match (arguments.quiet, arguments.verbose) {
            (0, true) => Verbosity::Verbose,
            (0, false) => Verbosity::Normal,
            (1, _) => Verbosity::Quiet,
            _ => Verbosity::Silent,
        };
        Self {
            json,
            verbosity,
            progress: !arguments.no_progress,
            colour: Colour {
                stdout: colour && io::stdout().is_terminal(),
                stderr: colour && io::stderr().is_terminal(),
            },
            reader_gone: AtomicBool::new(false),
        }
    }

    /// Whether the result is wanted as JSON.
    #[must_use]
    pub fn json(&self) -> bool {
        self.json
    }

    /// How talkative to be.
    #[must_use]
    pub fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    /// Whether a progress bar that redraws itself is wanted: on a terminal, unless `--quiet` or `--no-progress`.
    #[must_use]
    pub fn progress_bar(&self) -> bool {
        self.progress_lines() && io::stderr().is_terminal()
    }

    /// Whether progress is wanted at all: plain lines where [`Output::progress_bar`] says no.
    #[must_use]
    pub fn progress_lines(&self) -> bool {
        self.progress && self.verbosity >= Verbosity::Normal
    }

    /// Paints text for stdout.
    #[must_use]
    pub fn paint(&self, style: Style, text: &str) -> String {
        style.paint(text, self.colour.stdout)
    }

    /// Writes text of the result to stdout, with a line feed at the end. A reader that has gone away (`| head`) is no
    /// failure: what follows is dropped.
    ///
    /// # Errors
    /// [`CliError::Stdout`] when stdout cannot be written for another reason.
    pub fn result(&self, text: &str) -> Result<(), CliError> {
        if self.reader_gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let newline = if text.ends_with('\n') { "" } else { "\n" };
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(newline.as_bytes())) {
            Ok(()) => stdout.flush().or_else(|error| self.forgive(error)),
            Err(error) => self.forgive(error),
        }
    }

    /// Writes one indented JSON object to stdout: the whole result of a command.
    ///
    /// # Errors
    /// [`CliError`] when the value is not JSON or stdout cannot be written.
    pub fn json_result<T: Serialize>(&self, value: &T) -> Result<(), CliError> {
        self.result(&serde_json::to_string_pretty(value).map_err(|source| CliError::Json { source })?)
    }

    /// Writes one JSON object on one line to stdout: one event of several.
    ///
    /// # Errors
    /// [`CliError`] when the value is not JSON or stdout cannot be written.
    pub fn json_event<T: Serialize>(&self, value: &T) -> Result<(), CliError> {
        self.result(&serde_json::to_string(value).map_err(|source| CliError::Json { source })?)
    }

    /// Writes a line of progress to stderr, unless `--quiet`.
    pub fn note(&self, text: &str) {
        if self.verbosity >= Verbosity::Normal {
            to_stderr(text);
        }
    }

    /// Writes a line to stderr with `--verbose` only.
    pub fn detail(&self, text: &str) {
        if self.verbosity >= Verbosity::Verbose {
            to_stderr(&Style::Dim.paint(text, self.colour.stderr));
        }
    }

    /// Writes a warning to stderr, unless `-qq`.
    pub fn warning(&self, text: &str) {
        if self.verbosity >= Verbosity::Quiet {
            to_stderr(&format!("{} {text}", Style::Yellow.paint("warning:", self.colour.stderr)));
        }
    }

    /// Writes an error and, under it, what to do about it.
    pub fn error(&self, message: &str, hint: Option<&str>) {
        to_stderr(&format!("{} {message}", Style::Red.paint("error:", self.colour.stderr)));
        if let Some(hint) = hint {
            to_stderr(&format!("{} {hint}", Style::Green.paint("hint:", self.colour.stderr)));
        }
    }

    fn forgive(&self, error: io::Error) -> Result<(), CliError> {
        if error.kind() == io::ErrorKind::BrokenPipe {
            self.reader_gone.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(CliError::Stdout { source: error })
    }
}

fn to_stderr(text: &str) {
    // Nobody is left to tell that stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
