//! The journal: which units are done. One JSON line each, behind a first line that names the plan.
//!
//! A record is written after its unit's bytes, but neither is synced then: on resume every recorded unit is read back
//! and hashed, so a record whose bytes did not survive (a power cut) only means that its unit is done again.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::RunError;
use crate::{evaluate::ErrorFigures, manifest::ContentHash};

const SCHEMA: &str = "bantam.journal/1";

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    schema: String,
    /// The plan's digest.
    plan: String,
    /// Names, sizes and times of the source's files.
    source: String,
}

impl Head {
    pub(super) fn new(plan: &str, source: &str) -> Self {
        Self { schema: SCHEMA.into(), plan: plan.into(), source: source.into() }
    }
}

/// One unit, done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Index into the plan's units.
    pub(super) unit: usize,
    /// BLAKE3 of each source part.
    pub(super) inputs: Vec<ContentHash>,
    /// BLAKE3 of each stored tensor.
    pub(super) outputs: Vec<ContentHash>,
    /// Error figures, for units that change weights.
    pub(super) error: Option<ErrorFigures>,
    /// What deviated, by name.
    pub(super) deviations: BTreeMap<String, u64>,
    /// The device that computed it, or some of it; none for the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<String>,
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

/// What an existing journal says.
pub(super) enum Found {
    /// There is none, or it has no readable first line, or another plan began and finished nothing.
    Nothing,
    /// It belongs to another plan.
    Other,
    /// These units are recorded.
    Records(Vec<Record>),
}

/// Reads the journal at `path`. A torn last line, left by a kill, is passed over.
pub(super) fn read(path: &Path, head: &Head) -> Result<Found, RunError> {
    let mut text = String::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_string(&mut text).map_err(RunError::io("read", path))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(RunError::io("open", path)(error)),
    };
    let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let Some(first) = lines.next() else { return Ok(Found::Nothing) };
    let same_plan = serde_json::from_str::<Head>(first).is_ok_and(|found| found == *head);
    let records: Vec<Record> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok(match (same_plan, records.is_empty()) {
        (true, _) => Found::Records(records),
        // Another plan that got nowhere: nothing is lost by starting over.
        (false, true) => Found::Nothing,
        (false, false) => Found::Other,
    })
}

impl Journal {
    /// Starts a journal with these records, replacing what was there in one step.
    pub(super) fn start(path: &Path, head: &Head, records: &[Record]) -> Result<Self, RunError> {
        let mut text = line(head);
        for record in records {
            text.push_str(&line(record));
        }
        let next = path.with_extension("next");
        std::fs::write(&next, text).map_err(RunError::io("write", &next))?;
        std::fs::rename(&next, path).map_err(RunError::io("rename", path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(RunError::io("open", path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds records in one write.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), RunError> {
        let text: String = records.iter().map(line).collect();
        self.file.write_all(text.as_bytes()).map_err(RunError::io("write", &self.path))
    }
}

fn line(value: &impl Serialize) -> String {
    // Plain data without maps of foreign keys: serialization cannot fail.
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::{ContentHash, Found, Head, Journal, Record, read};

    fn record(unit: usize) -> Record {
        let error = Some(crate::evaluate::ErrorFigures {
            relative: 0.1,
            snr_db: None,
            max_abs: 1e-300,
            cosine: 0.999_999_999_999_999_9,
        });
        Record {
            unit,
            inputs: vec![ContentHash::of(b"a")],
            outputs: vec![ContentHash::of(b"b")],
            error,
            deviations: [("x".to_owned(), 3)].into(),
            device: (unit == 5).then(|| "a card".to_owned()),
        }
    }

    fn records(found: Found) -> Vec<Record> {
        match found {
            Found::Records(records) => records,
            Found::Nothing | Found::Other => panic!("records expected"),
        }
    }

    #[test]
    fn records_survive_and_a_torn_line_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let head = Head::new("plan", "source");
        assert!(matches!(read(&path, &head).unwrap(), Found::Nothing));
        let mut journal = Journal::start(&path, &head, &[record(4)]).unwrap();
        journal.append(&[record(5), record(6)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(records(read(&path, &head).unwrap()), [record(4), record(5), record(6)]);
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            match read(&path, &head).unwrap() {
                Found::Nothing => assert!(!whole[..cut].contains(&b'\n')),
                Found::Records(found) => {
                    assert!(found.len() < 3 && found.iter().zip(4..).all(|(r, n)| *r == record(n)));
                }
                Found::Other => panic!("a torn journal is not another run's"),
            }
        }
    }

    #[test]
    fn another_plan_or_source_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        Journal::start(&path, &Head::new("plan", "source"), &[record(0)]).unwrap();
        for other in [Head::new("plan2", "source"), Head::new("plan", "source2")] {
            assert!(matches!(read(&path, &other).unwrap(), Found::Other));
        }
        Journal::start(&path, &Head::new("plan", "source"), &[]).unwrap();
        assert!(matches!(read(&path, &Head::new("plan2", "source")).unwrap(), Found::Nothing));
    }
}
