//! Tables that fit 80 columns.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Width of everything that is printed.
pub const WIDTH: usize = 80;

/// Renders rows under headings without borders. The first `left` columns are aligned left, the others, numbers, right.
/// Names too long for their column are broken at dots.
#[must_use]
pub fn render(headings: &[&str], left: usize, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH as u16);
    table.set_header(headings.to_vec());
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((u16::from(index > 0), 1));
        if index == 0 {
            column.set_delimiter('.');
        }
        if index >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Breaks text at spaces into lines of at most [`WIDTH`] columns; lines after the first are indented.
#[must_use]
pub fn wrapped(text: &str, indentation: usize) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > indentation && column + 1 + length > WIDTH {
            lines.push('\n');
            lines.push_str(&" ".repeat(indentation));
            column = indentation;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

/// A number of decibels as shown: `∞` of an exact tensor.
#[must_use]
pub fn decibels(relative: f64, snr_db: Option<f64>) -> String {
    match snr_db {
        Some(snr_db) => format!("{snr_db:.2}"),
        None if relative == 0.0 => "exact".into(),
        None => "−∞".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::{WIDTH, render, wrapped};

    #[test]
    fn long_names_are_broken_and_no_line_is_too_wide() {
        let name = "language_model.model.layers.10.mlp.shared_experts.gate_up_projection_with_a_long_name.weight";
        let row = |name: &str| vec![name.to_owned(), "int4-g128-asym".into(), "123 456 789".into(), "18.25".into()];
        let text = render(&["tensor", "codec", "parameters", "SNR"], 2, vec![row(name), row("a")]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let joined: String = text.lines().skip(1).map(|line| line.split("  ").next().unwrap_or_default()).collect();
        assert!(joined.replace(' ', "").starts_with(&name[..20]), "{text}");
        assert!(text.lines().any(|line| line.starts_with("a ") && line.ends_with("18.25")), "{text}");
    }

    #[test]
    fn text_is_wrapped_with_an_indentation() {
        let text = wrapped(&"word ".repeat(40), 4);
        assert!(text.lines().all(|line| line.len() <= WIDTH));
        assert!(text.lines().skip(1).all(|line| line.starts_with("    word")));
        assert_eq!(text.split_whitespace().count(), 40);
    }
}
