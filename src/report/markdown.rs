//! The Markdown form: tables as code hosts show them.

use std::fmt::Write;

use super::{
    Artifact, Report,
    tables::{self, Kind, Table},
    text,
};

/// The report as Markdown.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let artifact = &report.artifact;
    let mut page = format!("# {}\n", escaped(&artifact.name));
    section(&mut page, "Summary", Some(tables::summary(report)), "");
    if let Some(comparison) = &report.comparison {
        page.push('\n');
        page.push_str(&comparison_text(comparison));
        page.push('\n');
    }
    for artifact in report.artifacts() {
        section(&mut page, &heading("Size by role", artifact, report), Some(tables::roles(artifact)), "");
    }
    for artifact in report.artifacts() {
        let title = heading("Relative error by layer", artifact, report);
        section(&mut page, &title, tables::layers(artifact), "No tensor of a layer was changed.");
    }
    section(&mut page, "Furthest from their source", tables::worst(artifact), "No tensor was changed.");
    if report.comparison.is_some() {
        section(&mut page, "Largest changes", tables::changes(report), "No tensor differs in size or error.");
    }
    section(&mut page, "Perplexity", tables::evaluations(report), "Not measured.");
    for artifact in report.artifacts() {
        let title = heading("Fallbacks", artifact, report);
        section(&mut page, &title, tables::fallbacks(artifact), "None: everything was done as asked for.");
    }
    for artifact in report.artifacts() {
        let _ = write!(page, "\n## {}\n\n{}", heading("Recipe", artifact, report), recipe(artifact));
    }
    page
}

/// A heading that says which artifact it is about, where there are two.
fn heading(what: &str, artifact: &Artifact, report: &Report) -> String {
    if report.against.is_some() { format!("{what}: {}", escaped(&artifact.name)) } else { what.to_owned() }
}

/// In what two artifacts differ, in a sentence or two.
pub(super) fn comparison_text(comparison: &super::Comparison) -> String {
    let source = if comparison.same_source {
        "Both were made of the same tensors, by their hashes."
    } else {
        "They were not made of the same tensors."
    };
    let mut text = format!(
        "{source} Of {} tensors that both have, {} differ in size or error.",
        comparison.common, comparison.changed
    );
    if comparison.only_here + comparison.only_there > 0 {
        let _ = write!(
            text,
            " {} are only in this artifact, {} only in the other.",
            comparison.only_here, comparison.only_there
        );
    }
    text
}

/// A heading with a table, or with a sentence where there is none.
pub(super) fn section(page: &mut String, heading: &str, table: Option<Table>, otherwise: &str) {
    let body = table.map_or_else(|| format!("{otherwise}\n"), |table| table_text(&table));
    // Writing to a String cannot fail.
    let _ = write!(page, "\n## {heading}\n\n{body}");
}

/// The recipe as a block of code.
pub(super) fn recipe(artifact: &Artifact) -> String {
    let recipe = text::recipe(&artifact.recipe);
    let longest = recipe.split(|character| character != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(3.max(longest + 1));
    format!("{fence}toml\n{}\n{fence}\n", recipe.trim_end())
}

/// A table as code hosts read it.
pub(super) fn table_text(table: &Table) -> String {
    let mut text = String::new();
    let mut line = |cells: Vec<String>| {
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    };
    line(table.columns.iter().map(|column| escaped(&column.heading)).collect());
    let rule = |kind: Kind| if kind == Kind::Number { "--:" } else { "---" }.to_owned();
    line(table.columns.iter().map(|column| rule(column.kind)).collect());
    for row in &table.rows {
        let cell = |(cell, column): (&String, &tables::Column)| match column.kind {
            Kind::Name => code(cell),
            Kind::Text | Kind::Prose | Kind::Number => escaped(cell),
        };
        line(row.iter().zip(&table.columns).map(cell).collect());
    }
    text
}

/// Text in which nothing has a meaning in Markdown or HTML, on one line.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '!' => escaped.extend(['\\', character]),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

/// A name as code within a table's cell.
fn code(name: &str) -> String {
    let plain = |character: char| !character.is_control() && !"`|\\<>&".contains(character);
    if !name.is_empty() && name.chars().all(plain) { format!("`{name}`") } else { escaped(name) }
}

#[cfg(test)]
mod tests {
    use super::{code, escaped};

    #[test]
    fn names_cannot_leave_their_cell() {
        assert_eq!(code("model.layers.0.q_proj.weight"), "`model.layers.0.q_proj.weight`");
        assert_eq!(code("a`|\n<script>"), "a\\`\\| &lt;script&gt;");
        assert_eq!(escaped("[x](y) *z*"), "\\[x\\](y) \\*z\\*");
    }
}
