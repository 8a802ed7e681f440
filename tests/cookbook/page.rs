//! A page as what it does: files that it shows, commands that it gives, and what they print.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// What stands for any text in a line, or alone for any lines.
const ANYTHING: &str = "…";

/// A part of a page under a heading of the second rank.
#[derive(Debug, PartialEq)]
pub struct Section {
    pub title: String,
    pub steps: Vec<Step>,
}

#[derive(Debug, PartialEq)]
pub enum Step {
    /// A block of TOML that begins with a comment of its file's name.
    File { name: String, text: String },
    /// A line after `$ ` in a console block, and the lines below it.
    Command { line: String, shown: Vec<String> },
}

/// The sections of a page that have steps.
pub fn sections(page: &str) -> Vec<Section> {
    let mut sections = vec![Section { title: String::new(), steps: Vec::new() }];
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            sections.push(Section { title: title.to_owned(), steps: Vec::new() });
        }
        let Some(kind) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let Some(section) = sections.last_mut() else { continue };
        match kind {
            "toml" => {
                let name = block.first().and_then(|first| first.strip_prefix("# "));
                let name = name.filter(|name| Path::new(name).extension().is_some_and(|end| end == "toml"));
                let name = name.filter(|name| !name.contains([' ', '/']));
                let name = name.unwrap_or_else(|| panic!("a file without a name in {:?}", section.title)).to_owned();
                section.steps.push(Step::File { name, text: block.join("\n") });
            }
            "console" => section.steps.extend(commands(&block)),
            _ => {}
        }
    }
    sections.retain(|section| !section.steps.is_empty());
    sections
}

fn commands(block: &[&str]) -> Vec<Step> {
    let mut steps = Vec::new();
    for line in block {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(line), _) => steps.push(Step::Command { line: line.to_owned(), shown: Vec::new() }),
            (None, Some(Step::Command { shown, .. })) => shown.push((*line).to_owned()),
            (None, _) => panic!("a console block begins with {line:?} and not with a command"),
        }
    }
    steps
}

impl Section {
    /// Writes the files and runs the commands in `folder`, `bantam` being the binary of that folder. What a command prints
    /// has to be what is shown, and its exit code 0 unless `echo $?` shows another one.
    pub fn run(&self, folder: &Path, binaries: &Path) {
        let path = std::env::join_paths(
            std::iter::once(binaries.to_owned()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        let path = path.unwrap();
        for (index, step) in self.steps.iter().enumerate() {
            let (line, shown) = match step {
                Step::File { name, text } => {
                    std::fs::write(folder.join(name), text).unwrap();
                    continue;
                }
                Step::Command { line, .. } if line == "echo $?" => continue,
                Step::Command { line, shown } => (line, shown),
            };
            let output = Command::new("sh")
                .args(["-c", line])
                .current_dir(folder)
                .env("PATH", &path)
                .env("NO_COLOR", "1")
                .env("LC_ALL", "C.UTF-8")
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let place = format!("{:?}: {line}", self.title);
            let errors = String::from_utf8_lossy(&output.stderr);
            let code = match self.steps.get(index + 1) {
                Some(Step::Command { line, shown }) if line == "echo $?" => shown.join("").parse().unwrap(),
                _ => 0,
            };
            assert_eq!(output.status.code(), Some(code), "{place}\n{errors}");
            let text = String::from_utf8(output.stdout).unwrap();
            let printed: Vec<&str> = text.lines().map(str::trim_end).collect();
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            assert!(lines_match(&shown, &printed), "{place}\nshown:\n{}\nprinted:\n{text}", shown.join("\n"));
        }
    }
}

/// Whether these lines were printed.
pub fn lines_match(shown: &[&str], printed: &[&str]) -> bool {
    match (shown, printed) {
        ([], printed) => printed.is_empty(),
        ([ANYTHING, rest @ ..], _) => (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..])),
        ([line, shown @ ..], [first, printed @ ..]) => line_matches(line, first) && lines_match(shown, printed),
        (_, []) => false,
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    let mut parts = shown.split(ANYTHING);
    let Some(mut rest) = parts.next().and_then(|first| printed.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}
