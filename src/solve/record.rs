//! What the solver found, on disk in the work folder: one file per matrix, and a journal that says which are complete.
//! The writer takes the codes from there, and a run that was stopped takes up what it had.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Clock, InputRange, SolveFailure};
use crate::{
    checkpoint::{Checkpoint, Dtype, decode_to_f32, header_bytes},
    codec::{
        Codec, CodecError, CodedMatrix, CodedRows, Coding, MatrixParameters, RowSource, StoredMatrix, Whole,
        bits::{pack, packed_bytes, unpack},
    },
    manifest::ContentHash,
    passes::{Deviations, EncodedStripe, MatrixEncoder},
};

/// The journal's first line: what all others belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// `bantam.solve/1`.
    pub schema: String,
    /// The plan's digest.
    pub plan: String,
    /// Identity of the source's files.
    pub source: String,
    /// Hash of the calibration tokens.
    pub tokens: String,
    /// The device that computes beside the processor. What another one found is found again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// What was computed of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// What is known of its input.
    Moments,
    /// Its codes.
    Codes,
    /// Its scales.
    Scales,
    /// The states behind it.
    States,
}

/// Whether a device computed something, and how often it failed at it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The device's name, if it computed any of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Parts of the work that it failed at and the processor did.
    #[serde(default)]
    pub failures: u64,
}

impl Note {
    /// This and that together.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        Self { device: self.device.or_else(|| other.device.clone()), failures: self.failures + other.failures }
    }
}

/// How a matrix was solved, for the manifest. Losses are squared errors of the outputs, summed over
/// output features and averaged over tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Solved {
    /// Calibration tokens that the matrix saw.
    pub tokens: u64,
    /// tr(ΔW H `ΔWᵀ`) / tokens of rounding to nearest.
    pub loss_nearest: f64,
    /// The same after the sweep. Not measured where the target is corrected for what was lost before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_sweep: Option<f64>,
    /// The same in the end.
    pub loss: f64,
    /// Damping really used.
    pub damping: f64,
}

/// A line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A matrix is solved.
    Matrix { name: String, expert: Option<usize>, hash: ContentHash, solved: Solved, deviations: BTreeMap<String, u64> },
    /// The static scale of a linear's input is found.
    Input { name: String, range: InputRange },
    /// The scales of a block's folds are found.
    Transforms { block: usize, hash: ContentHash },
    /// What activations see of the text is found.
    Ranges { hash: ContentHash },
    /// A block is done and the states behind it are on disk.
    Block { block: usize, states: Vec<ContentHash> },
    /// What training made of a matrix.
    Trained { name: String, hash: ContentHash, deviations: BTreeMap<String, u64> },
    /// The training is done, and all that it made is kept.
    Training { report: crate::train::Report },
    /// A number that a search found.
    Found { what: String, value: f64 },
    /// A device computed something of a tensor, or failed at it; stands before the line that says what was found.
    Computed { tensor: String, step: Step, note: Note },
}

/// The file of the scales of a block's folds, and of all blocks before.
pub fn transforms_file(block: usize) -> String {
    format!("transforms-{block}.safetensors")
}

/// A kept matrix: hash of its file, how it was solved, what deviated.
type Kept = (ContentHash, Solved, BTreeMap<String, u64>);

/// The folder of solutions.
#[derive(Debug)]
pub struct Solutions {
    folder: PathBuf,
    journal: Option<File>,
    matrices: BTreeMap<(String, usize), Kept>,
    /// Static scales of inputs, by the name of the linear's weight; stacked experts have none.
    pub inputs: BTreeMap<String, InputRange>,
    /// Blocks whose transforms are found.
    pub transforms: BTreeMap<usize, ContentHash>,
    /// The last block done and the hashes of the states behind it.
    pub last_block: Option<(usize, Vec<ContentHash>)>,
    damaged: bool,
    /// What training made of matrices.
    trained: BTreeMap<String, (ContentHash, BTreeMap<String, u64>)>,
    /// How the training went, once it is done.
    pub training: Option<crate::train::Report>,
    /// What everything here belongs to.
    identity: String,
    /// Where the time goes.
    pub clock: Clock,
    /// The file of what activations see of the text.
    pub ranges: Option<ContentHash>,
    /// Numbers that searches found.
    pub found: BTreeMap<String, f64>,
    /// What devices took part in.
    computed: BTreeMap<(String, Step), Note>,
}

impl Solutions {
    /// Opens the folder, keeping what an earlier run with the same head left there.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn open(folder: &Path, head: &Head) -> Result<Self, SolveFailure> {
        let io = |source| SolveFailure::io(folder, source);
        std::fs::create_dir_all(folder).map_err(io)?;
        let path = folder.join("journal");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let same =
            lines.next().and_then(|line| serde_json::from_str::<Head>(line).ok()).is_some_and(|found| found == *head);
        let mut solutions = Self {
            folder: folder.to_owned(),
            journal: None,
            matrices: BTreeMap::new(),
            inputs: BTreeMap::new(),
            transforms: BTreeMap::new(),
            last_block: None,
            clock: Clock::default(),
            damaged: false,
            trained: BTreeMap::new(),
            training: None,
            identity: serde_json::to_string(head).unwrap_or_default(),
            ranges: None,
            found: BTreeMap::new(),
            computed: BTreeMap::new(),
        };
        let mut kept = vec![serde_json::to_string(head).unwrap_or_default()];
        if same {
            for line in lines {
                let Ok(parsed) = serde_json::from_str::<Line>(line) else { continue };
                // A file that is not what the journal says is found again, and so is all that follows from it.
                if solutions.is_intact(&parsed) {
                    kept.push(line.to_owned());
                    solutions.take(parsed);
                } else {
                    solutions.damaged = true;
                }
            }
            if solutions.damaged {
                solutions.last_block = None;
                solutions.training = None;
                kept.retain(|line| {
                    !matches!(serde_json::from_str(line), Ok(Line::Block { .. } | Line::Training { .. }))
                });
            }
        }
        let next = folder.join("journal.next");
        std::fs::write(&next, kept.join("\n") + "\n").map_err(io)?;
        std::fs::rename(&next, &path).map_err(io)?;
        solutions.journal = Some(OpenOptions::new().append(true).open(&path).map_err(io)?);
        Ok(solutions)
    }

    /// Whether what a line speaks of is on disk as it says.
    fn is_intact(&self, line: &Line) -> bool {
        let same = |path: &Path, hash: &ContentHash| {
            std::fs::read(path).is_ok_and(|bytes| ContentHash::of_in_parallel(&bytes) == *hash)
        };
        match line {
            Line::Matrix { name, expert, hash, .. } => same(&self.path(name, expert.unwrap_or(0)), hash),
            Line::Transforms { block, hash } => same(&self.folder.join(transforms_file(*block)), hash),
            Line::Ranges { hash } => same(&self.folder.join(super::ranges::FILE), hash),
            Line::Trained { name, hash, .. } => same(&self.trained_path(name), hash),
            Line::Block { .. }
            | Line::Found { .. }
            | Line::Input { .. }
            | Line::Computed { .. }
            | Line::Training { .. } => true,
        }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Matrix { name, expert, hash, solved, deviations } => {
                self.matrices.insert((name, expert.unwrap_or(0)), (hash, solved, deviations));
            }
            Line::Input { name, range } => {
                self.inputs.insert(name, range);
            }
            Line::Transforms { block, hash } => {
                self.transforms.insert(block, hash);
            }
            Line::Ranges { hash } => self.ranges = Some(hash),
            Line::Block { block, states } => self.last_block = Some((block, states)),
            Line::Trained { name, hash, deviations } => {
                self.trained.insert(name, (hash, deviations));
            }
            Line::Training { report } => self.training = Some(report),
            Line::Found { what, value } => {
                self.found.insert(what, value);
            }
            Line::Computed { tensor, step, note } => {
                self.computed.insert((tensor, step), note);
            }
        }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn append(&mut self, line: Line) -> Result<(), SolveFailure> {
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        if let Some(file) = &mut self.journal {
            file.write_all(text.as_bytes()).map_err(|source| SolveFailure::io(&self.folder, source))?;
        }
        self.take(line);
        Ok(())
    }

    /// Remembers what a device did for a tensor; nothing where there is nothing to tell.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn note(&mut self, tensor: &str, step: Step, note: &Note) -> Result<(), SolveFailure> {
        if *note == Note::default() {
            return Ok(());
        }
        self.append(Line::Computed { tensor: tensor.to_owned(), step, note: note.clone() })
    }

    /// What devices did for a tensor, all steps together.
    #[must_use]
    pub fn computed(&self, tensor: &str) -> Note {
        let steps = [Step::Moments, Step::Codes, Step::Scales, Step::States].into_iter();
        let notes = steps.filter_map(|step| self.computed.get(&(tensor.to_owned(), step)));
        notes.fold(Note::default(), Note::and)
    }

    /// Where files lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: &str, expert: usize) -> PathBuf {
        // Names can hold anything; hashes cannot.
        let key = blake3::hash(format!("{name}\n{expert}").as_bytes()).to_hex();
        self.folder.join(format!("{}.safetensors", &key[..32]))
    }

    /// What everything here belongs to, as text.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    fn trained_path(&self, name: &str) -> PathBuf {
        let key = blake3::hash(format!("{name}\ntrained").as_bytes()).to_hex();
        self.folder.join(format!("{}.safetensors", &key[..32]))
    }

    /// Keeps what training made of a matrix, beside what was found before.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails, or for codes that are not those of a whole matrix.
    pub fn keep_trained(
        &mut self,
        name: &str,
        coded: &CodedMatrix,
        deviations: &Deviations,
    ) -> Result<(), SolveFailure> {
        let CodedMatrix::Whole(stored) = coded else {
            let source = CodecError::Missing { what: "training for this number format" };
            return Err(SolveFailure::Codec { tensor: name.to_owned(), source });
        };
        let hash = Self::write_whole(&self.trained_path(name), stored)?;
        let deviations = deviations.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        self.append(Line::Trained { name: name.to_owned(), hash, deviations })
    }

    /// What training made of a matrix; none when it was not trained to the end, or the file is not what the journal says.
    pub fn trained(
        &self,
        name: &str,
        coding: &Coding,
        rows: usize,
        columns: usize,
    ) -> Option<(CodedMatrix, Deviations)> {
        let (hash, deviations) = self.training.as_ref().and_then(|_| self.trained.get(name))?;
        let (path, Coding::Whole(whole)) = (self.trained_path(name), coding) else { return None };
        if ContentHash::of_in_parallel(&std::fs::read(&path).ok()?) != *hash {
            return None;
        }
        let coded = Self::read_whole(&Checkpoint::open(&path).ok()?, whole, rows, columns)?;
        Some((coded, deviations.iter().map(|(kind, count)| (intern(kind), *count)).collect()))
    }

    /// Keeps a solved matrix.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn keep(
        &mut self,
        name: &str,
        expert: Option<usize>,
        coding: &Coding,
        coded: &CodedMatrix,
        solved: Solved,
        deviations: &Deviations,
    ) -> Result<(), SolveFailure> {
        let path = self.path(name, expert.unwrap_or(0));
        let hash = match (coded, coding) {
            (CodedMatrix::Scalar { rows, parameters }, Coding::Scalar(codec)) => {
                Self::write_rows(&path, codec, rows, parameters)?
            }
            (CodedMatrix::Scalar { .. }, Coding::Whole(_)) => {
                let source = CodecError::Missing { what: "kind of codes that the format asks for" };
                return Err(SolveFailure::Codec { tensor: name.to_owned(), source });
            }
            (CodedMatrix::Whole(stored), _) => Self::write_whole(&path, stored)?,
        };
        let deviations = deviations.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        self.append(Line::Matrix { name: name.to_owned(), expert, hash, solved, deviations })
    }

    fn write_whole(path: &Path, stored: &StoredMatrix) -> Result<ContentHash, SolveFailure> {
        let names: Vec<String> = (0..stored.len()).map(|index| format!("{index:02}")).collect();
        let tensors: Vec<(&str, Dtype, Vec<usize>, &[u8])> = names
            .iter()
            .zip(stored)
            .map(|(name, bytes)| (name.as_str(), Dtype::U8, vec![bytes.len()], bytes.as_slice()))
            .collect();
        Self::write(path, &tensors)
    }

    fn write_rows(
        path: &Path,
        codec: &Codec,
        coded: &CodedRows,
        parameters: &MatrixParameters,
    ) -> Result<ContentHash, SolveFailure> {
        let bits = codec.element.bits();
        let row_bytes = packed_bytes(coded.columns, bits);
        let mut codes = vec![0; row_bytes * coded.rows];
        for (row, out) in coded.codes.chunks_exact(coded.columns.max(1)).zip(codes.chunks_exact_mut(row_bytes.max(1))) {
            pack(row, bits, out);
        }
        let whole: Vec<f32> = [parameters.tensor_scale, parameters.tensor_zero].into_iter().flatten().collect();
        let tensors: [(&str, Dtype, Vec<usize>, &[u8]); 4] = [
            ("scales", Dtype::F32, vec![coded.scales.len()], bytemuck::cast_slice(&coded.scales)),
            ("whole", Dtype::F32, vec![whole.len()], bytemuck::cast_slice(&whole)),
            ("zeros", Dtype::F32, vec![coded.zeros.len()], bytemuck::cast_slice(&coded.zeros)),
            ("codes", Dtype::U8, vec![coded.rows, row_bytes], &codes),
        ];
        Self::write(path, &tensors)
    }

    fn write(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, &[u8])]) -> Result<ContentHash, SolveFailure> {
        let mut bytes = header_bytes(tensors.iter().map(|(name, dtype, shape, _)| (*name, *dtype, &shape[..])), &[]);
        for (.., data) in tensors {
            bytes.extend_from_slice(data);
        }
        std::fs::write(path, &bytes).map_err(|source| SolveFailure::io(path, source))?;
        Ok(ContentHash::of_in_parallel(&bytes))
    }

    /// Keeps lists of numbers, by name.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn keep_lists(&mut self, file: &str, lists: &[(String, Vec<f64>)]) -> Result<ContentHash, SolveFailure> {
        let tensors: Vec<(&str, Dtype, Vec<usize>, &[u8])> = lists
            .iter()
            .map(|(name, values)| (name.as_str(), Dtype::F64, vec![values.len()], bytemuck::cast_slice(values)))
            .collect();
        Self::write(&self.folder.join(file), &tensors)
    }

    /// Reads lists back; none when the file is not what the journal says.
    pub fn lists(&self, file: &str, hash: ContentHash) -> Option<Vec<(String, Vec<f64>)>> {
        let path = self.folder.join(file);
        let bytes = std::fs::read(&path).ok()?;
        if ContentHash::of_in_parallel(&bytes) != hash {
            return None;
        }
        let checkpoint = Checkpoint::open(&path).ok()?;
        let list = checkpoint.tensors().map(|entry| {
            let bytes = checkpoint.bytes(entry);
            let values =
                bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default())).collect();
            (entry.name.clone(), values)
        });
        Some(list.collect())
    }

    /// Whether a matrix is solved, and how.
    pub fn solved(&self, name: &str, expert: usize) -> Option<&Solved> {
        self.matrices.get(&(name.to_owned(), expert)).map(|(_, solved, _)| solved)
    }

    /// A solved matrix read back; none when it is not there or not what the journal says.
    pub fn matrix(
        &self,
        name: &str,
        expert: usize,
        coding: &Coding,
        rows: usize,
        columns: usize,
    ) -> Option<(CodedMatrix, Deviations)> {
        let (hash, _, deviations) = self.matrices.get(&(name.to_owned(), expert))?;
        let path = self.path(name, expert);
        if ContentHash::of_in_parallel(&std::fs::read(&path).ok()?) != *hash {
            return None;
        }
        let checkpoint = Checkpoint::open(&path).ok()?;
        let coded = match coding {
            Coding::Scalar(codec) => Self::read_rows(&checkpoint, codec, rows, columns)?,
            Coding::Whole(whole) => Self::read_whole(&checkpoint, whole, rows, columns)?,
        };
        let known = deviations.iter().map(|(kind, count)| (intern(kind), *count)).collect();
        Some((coded, known))
    }

    fn read_whole(checkpoint: &Checkpoint, whole: &Whole, rows: usize, columns: usize) -> Option<CodedMatrix> {
        let tensors = whole.tensors(rows, columns).into_iter().enumerate();
        let stored = tensors.map(|(index, tensor)| {
            let bytes = checkpoint.bytes(checkpoint.tensor(&format!("{index:02}"))?);
            (bytes.len() == tensor.bytes()).then(|| bytes.to_vec())
        });
        stored.collect::<Option<StoredMatrix>>().map(CodedMatrix::Whole)
    }

    fn read_rows(checkpoint: &Checkpoint, codec: &Codec, rows: usize, columns: usize) -> Option<CodedMatrix> {
        let floats = |name: &str| -> Option<Vec<f32>> {
            let entry = checkpoint.tensor(name)?;
            let mut values = vec![0.0; entry.bytes as usize / 4];
            decode_to_f32(entry.dtype, &checkpoint.bytes(entry), &mut values);
            Some(values)
        };
        let packed = checkpoint.bytes(checkpoint.tensor("codes")?);
        let bits = codec.element.bits();
        let row_bytes = packed_bytes(columns, bits);
        if packed.len() != row_bytes * rows {
            return None;
        }
        let mut codes = vec![0; rows * columns];
        for (row, packed) in codes.chunks_exact_mut(columns.max(1)).zip(packed.chunks_exact(row_bytes.max(1))) {
            unpack(packed, bits, row);
        }
        let whole = floats("whole")?;
        let parameters = MatrixParameters {
            tensor_scale: whole.first().copied(),
            tensor_zero: whole.get(1).copied(),
            outliers: None,
        };
        let (scales, zeros) = (floats("scales")?, floats("zeros")?);
        let rows = CodedRows { first_row: 0, rows, columns, codes, scales, zeros };
        Some(CodedMatrix::Scalar { rows, parameters })
    }

    /// The encoder that hands out a solved tensor; none when not all of its experts are solved.
    pub fn encoder(
        &self,
        name: &str,
        codec: &Codec,
        experts: usize,
        rows: usize,
        columns: usize,
    ) -> Option<SolvedEncoder> {
        let coding = Coding::Scalar(codec.clone());
        let part = |expert| match self.matrix(name, expert, &coding, rows, columns)? {
            (CodedMatrix::Scalar { rows, parameters }, deviations) => Some((rows, parameters, deviations)),
            (CodedMatrix::Whole(_), _) => None,
        };
        let parts = (0..experts).map(part).collect::<Option<Vec<_>>>()?;
        Some(SolvedEncoder { codec: codec.clone(), rows, parts })
    }

    /// How every solved tensor was solved: of stacked experts the sums.
    pub fn report(&self, name: &str) -> Option<Solved> {
        let range = (name.to_owned(), 0)..=(name.to_owned(), usize::MAX);
        let mut all = self.matrices.range(range).map(|(_, (_, solved, _))| solved);
        let mut total = all.next()?.clone();
        let mut count = 1.0;
        for solved in all {
            total.tokens += solved.tokens;
            total.loss_nearest += solved.loss_nearest;
            total.loss_sweep = total.loss_sweep.zip(solved.loss_sweep).map(|(sum, more)| sum + more);
            total.loss += solved.loss;
            total.damping = total.damping.max(solved.damping);
            count += 1.0;
        }
        total.loss_nearest /= count;
        total.loss_sweep = total.loss_sweep.map(|sum| sum / count);
        total.loss /= count;
        Some(total)
    }
}

/// Names of deviations live as long as the program; the journal's do not.
fn intern(kind: &str) -> &'static str {
    const KNOWN: &[&str] = &[
        "scale-clamped",
        "zero-point-clamped",
        "damping-raised",
        "dead-columns",
        "starved-expert",
        "few-tokens",
        "no-statistics",
        crate::compute::DEVICE_FAILED,
    ];
    KNOWN.iter().find(|known| **known == kind).copied().unwrap_or("other")
}

/// Hands out codes that are known already.
#[derive(Debug)]
pub struct SolvedEncoder {
    codec: Codec,
    /// Rows of one part.
    rows: usize,
    parts: Vec<(CodedRows, MatrixParameters, Deviations)>,
}

impl MatrixEncoder for SolvedEncoder {
    fn prepare(&self, _source: &dyn RowSource) -> Result<MatrixParameters, CodecError> {
        Ok(self.parts.first().map(|(_, parameters, _)| parameters.clone()).unwrap_or_default())
    }

    fn encode(
        &self,
        _source: &dyn RowSource,
        _parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<EncodedStripe, CodecError> {
        let mut stripe = EncodedStripe::default();
        stripe.rows.first_row = first_row;
        stripe.rows.rows = rows;
        let mut row = first_row;
        while row < first_row + rows {
            let (part, within) = (row / self.rows.max(1), row % self.rows.max(1));
            let count = (self.rows - within).min(first_row + rows - row);
            let (coded, _, deviations) = &self.parts[part];
            let columns = coded.columns;
            stripe.rows.columns = columns;
            stripe.rows.codes.extend_from_slice(&coded.codes[within * columns..(within + count) * columns]);
            let groups = self.codec.groups_per_row(columns);
            let scale_rows = self.codec.scale_row_range(within, count);
            let range = scale_rows.start * groups..scale_rows.end * groups;
            if !coded.scales.is_empty() {
                stripe.rows.scales.extend_from_slice(&coded.scales[range.clone()]);
            }
            if !coded.zeros.is_empty() {
                stripe.rows.zeros.extend_from_slice(&coded.zeros[range]);
            }
            if within == 0 {
                for (kind, count) in deviations {
                    *stripe.deviations.entry(kind).or_default() += count;
                }
            }
            row += count;
        }
        Ok(stripe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_device_found_is_not_taken_over_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let head = |device: Option<&str>| Head {
            schema: "bantam.solve/1".into(),
            plan: "plan".into(),
            source: "source".into(),
            tokens: "tokens".into(),
            device: device.map(str::to_owned),
        };
        let note = |device: &str, failures| Note { device: Some(device.to_owned()), failures };
        let mut solutions = Solutions::open(folder.path(), &head(Some("card"))).unwrap();
        solutions.note("a", Step::Moments, &note("card", 1)).unwrap();
        solutions.note("a", Step::Moments, &note("card", 2)).unwrap();
        solutions.note("a", Step::Codes, &note("card", 3)).unwrap();
        solutions.note("b", Step::Codes, &Note::default()).unwrap();
        solutions.append(Line::Found { what: "strength".into(), value: 0.5 }).unwrap();
        // A step that was done again counts once.
        let reopened = Solutions::open(folder.path(), &head(Some("card"))).unwrap();
        assert_eq!((reopened.computed("a"), reopened.computed("b")), (note("card", 5), Note::default()));
        assert_eq!(reopened.found.len(), 1);
        for other in [None, Some("another card")] {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(folder.path().join("journal"), copy.path().join("journal")).unwrap();
            let found = Solutions::open(copy.path(), &head(other)).unwrap();
            assert_eq!((found.computed("a"), found.found.len()), (Note::default(), 0), "{other:?}");
        }
        // The processor alone writes what it always wrote.
        assert!(!serde_json::to_string(&head(None)).unwrap().contains("device"));
    }
}
