//! Where the parts of a fused projection lie: from the head counts of the config, or from the shape alone.

use super::{MatrixView, config::ConfigView};

/// How a fused projection's rows are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fused {
    /// One matrix.
    No,
    /// Query, key and value by head counts (Phi-3).
    Heads,
    /// Query, key and value in equal thirds (GPT-2).
    Thirds,
    /// Gate, then up, in equal halves.
    Halves,
    /// Gate and up row by row in turn (gpt-oss): no parts.
    Alternating,
}

/// The parts of `matrix`, or none with a note when they cannot be told.
pub(super) fn parts(fused: Fused, matrix: &MatrixView, config: &mut ConfigView<'_>) -> Vec<(&'static str, usize)> {
    let rows = matrix.rows;
    let (what, found) = match fused {
        Fused::No | Fused::Alternating => return Vec::new(),
        Fused::Heads => ("query, key and value", by_heads(rows, config)),
        Fused::Thirds => ("query, key and value", rows.is_multiple_of(3).then(|| query_key_value(rows / 3, rows / 3))),
        Fused::Halves => ("gate and up", rows.is_multiple_of(2).then(|| vec![("gate", rows / 2), ("up", rows / 2)])),
    };
    found.unwrap_or_else(|| {
        let note = format!(
            "a fused projection of {rows} rows cannot be cut into {what} by the config's numbers: taken as one matrix"
        );
        if !config.notes.contains(&note) {
            config.notes.push(note);
        }
        Vec::new()
    })
}

fn by_heads(rows: usize, config: &mut ConfigView<'_>) -> Option<Vec<(&'static str, usize)>> {
    let heads = config.count(&["num_attention_heads"])?;
    let key_value_heads = config.count(&["num_key_value_heads"]).unwrap_or(heads);
    let head = match config.count(&["head_dim"]) {
        Some(head) => head,
        None => config.count(&["hidden_size"])?.checked_div(heads)?,
    };
    let (query, key) = (heads.checked_mul(head)?, key_value_heads.checked_mul(head)?);
    let all = key.checked_mul(2)?.checked_add(query)?;
    (all == rows && head > 0).then(|| query_key_value(query, key))
}

fn query_key_value(query: usize, key: usize) -> Vec<(&'static str, usize)> {
    vec![("query", query), ("key", key), ("value", key)]
}
