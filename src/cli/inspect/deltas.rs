//! What artifacts of differences save against the models that they stand for.

use std::{collections::BTreeSet, fmt::Write, path::Path};

use serde::Serialize;

use crate::{
    cli::{ByteSize, table::render as table},
    layout::{LayoutName, LogicalTensor},
    manifest::{Manifest, Totals},
};

/// How the tensors of one artifact are stored.
#[derive(Debug, Serialize)]
pub(super) struct Delta {
    /// As signs and scales of the difference.
    pub differences: u64,
    /// Not at all: they are the base's.
    pub same: u64,
    /// As the rows that the base does not have.
    pub rows: u64,
    /// Whole.
    pub whole: u64,
    /// Bytes of the model's tensors less those of the artifact's; negative where the artifact is larger.
    pub saved_bytes: Option<i64>,
}

impl Delta {
    pub(super) fn new(tensors: &[LogicalTensor], totals: Option<&Totals>) -> Self {
        let count = |format: &str| tensors.iter().filter(|tensor| tensor.format == format).count() as u64;
        Self {
            differences: count("delta"),
            same: count("same"),
            rows: count("rows"),
            whole: tensors.iter().filter(|tensor| tensor.is_plain()).count() as u64,
            saved_bytes: totals.map(saved_bytes),
        }
    }

    pub(super) fn text(&self) -> String {
        let Self { differences, same, rows, whole, .. } = self;
        format!("{differences} differences, {same} tensors the base's, {rows} the base's but for rows, {whole} whole")
    }

    pub(super) fn saved_text(&self) -> Option<String> {
        self.saved_bytes.map(saved_text)
    }
}

fn saved_bytes(totals: &Totals) -> i64 {
    totals.source_bytes.cast_signed().saturating_sub(totals.artifact_bytes.cast_signed())
}

fn saved_text(bytes: i64) -> String {
    let size = ByteSize(bytes.unsigned_abs());
    if bytes < 0 {
        format!("nothing: {size} more than the whole model")
    } else {
        format!("{size}, with the base there")
    }
}

/// A folder of artifacts of differences.
#[derive(Debug, Serialize)]
pub(super) struct Folder {
    schema: &'static str,
    path: String,
    /// How many bases they are from.
    bases: usize,
    deltas: Vec<Row>,
    saved_bytes: i64,
}

#[derive(Debug, Serialize)]
struct Row {
    path: String,
    source_bytes: u64,
    artifact_bytes: u64,
    saved_bytes: i64,
}

impl Folder {
    /// The artifacts in the folders of `path`; none where `path` is something else.
    pub(super) fn open(path: &Path) -> Option<Self> {
        if path.join("config.json").exists() {
            return None;
        }
        let mut folders: Vec<_> = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path()).collect();
        folders.sort();
        let found = folders.into_iter().filter_map(|folder| Some((Manifest::read(&folder).ok()?, folder)));
        let found: Vec<_> = found.filter(|(manifest, _)| manifest.layout == LayoutName::Delta).collect();
        let base = |manifest: &Manifest| {
            manifest.base.iter().map(|tensor| (tensor.name.clone(), tensor.hash.to_string())).collect::<Vec<_>>()
        };
        let bases: BTreeSet<_> = found.iter().map(|(manifest, _)| base(manifest)).collect();
        let row = |(manifest, folder): &(Manifest, std::path::PathBuf)| Row {
            path: folder.display().to_string(),
            source_bytes: manifest.totals.source_bytes,
            artifact_bytes: manifest.totals.artifact_bytes,
            saved_bytes: saved_bytes(&manifest.totals),
        };
        let deltas: Vec<Row> = found.iter().map(row).collect();
        let saved_bytes = deltas.iter().fold(0_i64, |sum, row| sum.saturating_add(row.saved_bytes));
        let (schema, path) = ("bantam.inspect/1", path.display().to_string());
        (!deltas.is_empty()).then_some(Self { schema, path, bases: bases.len(), deltas, saved_bytes })
    }

    pub(super) fn render(&self) -> String {
        let row = |row: &Row| {
            let sizes = [row.source_bytes, row.artifact_bytes].map(|bytes| ByteSize(bytes).to_string());
            let [source, artifact] = sizes;
            vec![row.path.clone(), source, artifact, saved_text(row.saved_bytes)]
        };
        let rows = self.deltas.iter().map(row).collect();
        let mut text = table(&["delta", "model", "stored", "saved"], 1, rows);
        let bases = if self.bases == 1 { "one base".to_owned() } else { format!("{} bases", self.bases) };
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{} deltas over {bases}: saved {}", self.deltas.len(), saved_text(self.saved_bytes));
        text
    }
}
