//! Statistics of the original model's activations in a file: those of a block while it is in hand, or those of the whole
//! model that `bantam calibrate` saves. Sums are kept to the last bit, so that a run gives the same bytes whether it
//! gathers them or reads them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{Moments, SolveFailure, Wanted, moments::SAMPLE_ROWS};
use crate::{
    calibration::Tokens,
    checkpoint::{Checkpoint, Dtype, decode_to_f32, header_bytes},
    compute::SharedDevice,
    forward::Matrix,
    layout::LogicalCheckpoint,
    recipe::Calibration,
};

/// The schema of saved statistics.
const SCHEMA: &str = "bantam.statistics/1";

/// Which input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Block.
    pub block: usize,
    /// Stage of the block.
    pub stage: usize,
    /// Routed expert, and whether its hidden activations are meant instead of its input.
    pub expert: Option<(usize, bool)>,
}

impl Key {
    fn name(self) -> String {
        let Self { block, stage, expert } = self;
        match expert {
            None => format!("{block}.{stage}"),
            Some((expert, false)) => format!("{block}.{stage}.{expert}.input"),
            Some((expert, true)) => format!("{block}.{stage}.{expert}.hidden"),
        }
    }
}

/// One input's place in a file.
#[derive(Debug, Clone, Copy)]
struct Place {
    columns: usize,
    wanted: Wanted,
    tokens: usize,
}

impl Place {
    fn sample_rows(&self) -> usize {
        if self.wanted.sample { self.tokens.div_ceil(every(self.tokens)) } else { 0 }
    }

    fn triangle(&self) -> usize {
        if self.wanted.hessian { self.columns * (self.columns + 1) / 2 } else { 0 }
    }
}

fn every(tokens: usize) -> usize {
    tokens.div_ceil(SAMPLE_ROWS).max(1)
}

/// What identifies statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Hash of the model's config and of samples of every tensor.
    pub model: String,
    /// Hash of the tokens.
    pub tokens: String,
    /// Number and length of sequences.
    pub settings: String,
    /// The device that computed beside the processor; empty for the processor alone.
    pub device: String,
}

impl Identity {
    /// Of these statistics of a model.
    #[must_use]
    pub fn of(
        source: &LogicalCheckpoint,
        tokens: &Tokens,
        calibration: &Calibration,
        device: Option<&SharedDevice>,
    ) -> Self {
        const SAMPLE: usize = 4096;
        let checkpoint = source.checkpoint();
        let mut hasher = blake3::Hasher::new();
        if let Some(config) = checkpoint.config() {
            hasher.update(config.text.as_bytes());
        }
        for entry in checkpoint.tensors() {
            hasher.update(format!("{} {:?} {:?}\n", entry.name, entry.dtype, entry.shape).as_bytes());
            let end = entry.bytes as usize;
            for start in [0, end / 2, end.saturating_sub(SAMPLE)] {
                hasher.update(&checkpoint.range(entry, start..end.min(start + SAMPLE)));
            }
        }
        Self {
            model: hasher.finalize().to_hex().to_string(),
            tokens: tokens.hash.to_string(),
            settings: format!("{} × {}", calibration.sequences, calibration.sequence_length),
            device: device.map(SharedDevice::name).unwrap_or_default(),
        }
    }
}

/// A file of statistics that is being written.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    /// Byte offset and type of each tensor.
    offsets: BTreeMap<String, u64>,
}

impl Writer {
    /// Starts a file for these inputs. Expert inputs of unknown size are given the most tokens they can see.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn create(
        path: &Path,
        inputs: &[(Key, usize, Wanted, usize)],
        identity: Option<&Identity>,
    ) -> Result<Self, SolveFailure> {
        let mut tensors: Vec<(String, Dtype, Vec<usize>)> = Vec::new();
        for (key, columns, wanted, tokens) in inputs {
            let place = Place { columns: *columns, wanted: *wanted, tokens: *tokens };
            let name = key.name();
            tensors.push((format!("{name}.figures"), Dtype::F64, vec![3 * columns + 2]));
            tensors.push((format!("{name}.absmax"), Dtype::F32, vec![*columns]));
            if wanted.hessian {
                tensors.push((format!("{name}.hessian"), Dtype::F64, vec![place.triangle()]));
            }
            if wanted.sample {
                tensors.push((format!("{name}.sample"), Dtype::F32, vec![place.sample_rows(), *columns]));
            }
        }
        tensors.sort_by(|a, b| crate::checkpoint::canonical_order((a.1, &a.0), (b.1, &b.0)));
        let identity = identity.map(|identity| {
            let mut metadata = vec![
                ("schema", SCHEMA),
                ("model", identity.model.as_str()),
                ("tokens", identity.tokens.as_str()),
                ("settings", identity.settings.as_str()),
            ];
            if !identity.device.is_empty() {
                metadata.push(("device", identity.device.as_str()));
            }
            metadata
        });
        let metadata = identity.as_ref().map_or(&[][..], |identity| &identity[..]);
        let header =
            header_bytes(tensors.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, &shape[..])), metadata);
        let mut offset = header.len() as u64;
        let mut offsets = BTreeMap::new();
        for (name, dtype, shape) in &tensors {
            offsets.insert(name.clone(), offset);
            offset += (shape.iter().product::<usize>() * crate::checkpoint::bits_of(*dtype) / 8) as u64;
        }
        let io = |source| SolveFailure::io(path, source);
        let mut file = File::create(path).map_err(io)?;
        file.write_all(&header).map_err(io)?;
        file.set_len(offset).map_err(io)?;
        Ok(Self { path: path.to_owned(), file, offsets })
    }

    /// Writes the finished moments of one input.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn write(&self, key: Key, moments: &Moments) -> Result<(), SolveFailure> {
        let name = key.name();
        let put = |part: &str, bytes: &[u8], at: u64| -> Result<(), SolveFailure> {
            let Some(offset) = self.offsets.get(&format!("{name}.{part}")) else { return Ok(()) };
            self.file.write_all_at(bytes, offset + at).map_err(|source| SolveFailure::io(&self.path, source))
        };
        let mut figures = Vec::with_capacity(3 * moments.columns + 2);
        figures.extend([moments.count as f64, moments.sample.rows as f64]);
        figures.extend(moments.sum.iter().chain(&moments.sum_abs).chain(&moments.sum_squares));
        put("figures", bytemuck::cast_slice(&figures), 0)?;
        put("absmax", bytemuck::cast_slice(&moments.absmax), 0)?;
        let n = moments.columns;
        let mut at = 0;
        for (row, values) in moments.hessian.chunks_exact(n.max(1)).enumerate() {
            let bytes: &[u8] = bytemuck::cast_slice(&values[..=row]);
            put("hessian", bytes, at)?;
            at += bytes.len() as u64;
        }
        put("sample", bytemuck::cast_slice(&moments.sample.values), 0)
    }
}

/// Statistics that can be read.
#[derive(Debug)]
pub struct Statistics {
    checkpoint: Checkpoint,
}

impl Statistics {
    /// Opens a file, whatever it belongs to.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn open(path: &Path) -> crate::Result<Self> {
        Ok(Self { checkpoint: Checkpoint::open(path)? })
    }

    /// Opens a file that must be of this model, text and settings.
    ///
    /// # Errors
    /// [`SolveFailure`] when the disk fails.
    pub fn open_for(path: &Path, identity: &Identity) -> crate::Result<Self> {
        let statistics = Self::open(path)?;
        let metadata = metadata(path).map_err(|source| SolveFailure::io(path, source))?;
        let expected = [
            ("schema", SCHEMA),
            ("model", &identity.model),
            ("tokens", &identity.tokens),
            ("settings", &identity.settings),
            ("device", &identity.device),
        ];
        let names = ["schema", "model", "text", "settings", "device"];
        for ((key, expected), what) in expected.into_iter().zip(names) {
            let got = metadata.get(key).cloned().unwrap_or_default();
            if got != expected {
                let name = |device: String| if device.is_empty() { "the processor".to_owned() } else { device };
                let (path, expected) = (path.to_owned(), expected.to_owned());
                let (expected, got) = if what == "device" { (name(expected), name(got)) } else { (expected, got) };
                return Err(SolveFailure::OtherStatistics { path, what, expected, got }.into());
            }
        }
        Ok(statistics)
    }

    /// The moments of one input; none where the file does not have them.
    #[must_use]
    pub fn moments(&self, key: Key) -> Option<Moments> {
        let name = key.name();
        let doubles = |part: &str| -> Option<Vec<f64>> {
            let entry = self.checkpoint.tensor(&format!("{name}.{part}"))?;
            let bytes = self.checkpoint.bytes(entry);
            Some(bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default())).collect())
        };
        let floats = |part: &str| -> Option<Vec<f32>> {
            let entry = self.checkpoint.tensor(&format!("{name}.{part}"))?;
            let mut values = vec![0.0; entry.bytes as usize / 4];
            decode_to_f32(entry.dtype, &self.checkpoint.bytes(entry), &mut values);
            Some(values)
        };
        let figures = doubles("figures")?;
        let absmax = floats("absmax")?;
        let n = absmax.len();
        if figures.len() != 3 * n + 2 {
            return None;
        }
        let mut moments = Moments::new(n, 0, Wanted::default());
        moments.absmax = absmax;
        moments.count = figures[0] as u64;
        moments.sum = figures[2..2 + n].to_vec();
        moments.sum_abs = figures[2 + n..2 + 2 * n].to_vec();
        moments.sum_squares = figures[2 + 2 * n..].to_vec();
        if let Some(triangle) = doubles("hessian").filter(|triangle| triangle.len() == n * (n + 1) / 2) {
            moments.hessian = vec![0.0; n * n];
            let mut at = 0;
            for row in 0..n {
                moments.hessian[(row * n)..=(row * n + row)].copy_from_slice(&triangle[at..=at + row]);
                at += row + 1;
            }
            moments.finish();
        }
        if let Some(mut values) = floats("sample") {
            let rows = (figures[1] as usize).min(values.len() / n.max(1));
            values.truncate(rows * n);
            moments.sample = Matrix { rows, columns: n, values };
        }
        Some(moments)
    }
}

/// `__metadata__` of a safetensors file.
fn metadata(path: &Path) -> std::io::Result<BTreeMap<String, String>> {
    let file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0)?;
    let mut header = vec![0; u64::from_le_bytes(length).min(100 << 20) as usize];
    file.read_exact_at(&mut header, 8)?;
    let value: serde_json::Value = serde_json::from_slice(&header)?;
    let metadata = value["__metadata__"].as_object().cloned().unwrap_or_default();
    Ok(metadata.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned()))).collect())
}
