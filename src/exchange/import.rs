//! A file of BitDelta's becomes an artifact of layout `delta`.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{COEFFICIENT, ExchangeError, MASK, WORD};
use crate::{
    checkpoint::{
        Checkpoint, Dtype, METADATA, MappedFile, canonical_order, config_text, decode_to_f32, encode_from_f32,
        header_bytes, is_float,
    },
    codec::{Delta, Share, Whole},
    decode::Staging,
    layout::{Activations, BaseTensor, BaseTensors, LayoutName, LogicalCheckpoint, MatrixSpec, TensorSpec, layout},
    manifest::{
        ContentHash, FILE_NAME, FileEntry, InputTensor, Manifest, OutputTensor, Part, SCHEMA, Tool, Totals,
        base_tensors,
    },
    torch_file,
};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Imported {
    /// The folder.
    pub out: PathBuf,
    /// Matrices as signs and a scale.
    pub differences: u64,
    /// Tensors stored whole.
    pub whole: u64,
    /// Tensors that are the base's.
    pub same: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// A tensor of the file.
pub(super) struct Given<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

/// The file, mapped.
enum Source {
    Torch(PathBuf, MappedFile),
    Safetensors(Box<Checkpoint>),
}

impl Source {
    fn open(path: &Path) -> Result<Self, ExchangeError> {
        let safetensors = path.is_dir() || path.extension().is_some_and(|extension| extension == "safetensors");
        if safetensors {
            return Ok(Self::Safetensors(Box::new(Checkpoint::open(path)?)));
        }
        Ok(Self::Torch(path.to_owned(), MappedFile::open(path)?))
    }

    fn tensors(&self) -> Result<BTreeMap<String, Given<'_>>, ExchangeError> {
        match self {
            Self::Torch(path, file) => {
                let failed = |source| ExchangeError::TorchFile { path: path.clone(), source };
                let tensors = torch_file::read(file.bytes()).map_err(failed)?;
                let given = tensors.into_iter().map(|(name, tensor)| {
                    let torch_file::TorchTensor { dtype, shape, bytes } = tensor;
                    (name, Given { dtype, shape, bytes })
                });
                Ok(given.collect())
            }
            Self::Safetensors(checkpoint) => {
                let given = checkpoint.tensors().map(|entry| {
                    let (dtype, shape) = (entry.dtype, entry.shape.clone());
                    Ok((entry.name.clone(), Given { dtype, shape, bytes: checkpoint.mapped_bytes(entry)? }))
                });
                given.collect()
            }
        }
    }
}

/// What becomes of one tensor of the model.
pub(super) enum Fate<'a> {
    Difference {
        mask: &'a Given<'a>,
        scale: f32,
    },
    Whole(Cow<'a, [u8]>),
    /// A matrix in factors and its stored parts.
    Factors {
        matrix: Box<MatrixSpec>,
        parts: Vec<Cow<'a, [u8]>>,
    },
    Same,
}

/// One tensor of the model.
pub(super) struct Imports<'a> {
    pub name: String,
    /// Tensors of the file that it is made from.
    pub parts: Vec<String>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub fate: Fate<'a>,
}

/// Makes an artifact of layout `delta` in the new folder `out` of a file of BitDelta's: `.safetensors`, or else
/// `torch.save`'s. Configuration and tokenizer are the base's. Decoded with the base it gives
/// round(base + (2 · bit − 1) · coeff) in F32, and of tensors that stand in the file whole their values in the base's type,
/// as the original loader does.
///
/// # Errors
/// [`ExchangeError`]; then nothing of it stays on the disk.
pub fn import(file: &Path, base: &LogicalCheckpoint, out: &Path) -> Result<Imported, ExchangeError> {
    let source = Source::open(file)?;
    let given = source.tensors()?;
    if !given.keys().any(|name| name.ends_with(MASK)) {
        return Err(ExchangeError::NoDifference { path: file.to_owned() });
    }
    let mut tensors = Vec::new();
    for (name, tensor) in &given {
        tensors.extend(found(name, tensor, &given, base)?);
    }
    let known: std::collections::BTreeSet<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
    for tensor in base.tensors().iter().filter(|tensor| !known.contains(&tensor.name)) {
        if !tensor.is_plain() {
            return Err(ExchangeError::tensor(&tensor.name, "the base stores it in codes, and the file lacks it"));
        }
        let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
        tensors.push(Imports { name, parts: Vec::new(), dtype, shape, fate: Fate::Same });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let staging = Staging::open(out)?;
    let written = write_tensors(&tensors, staging.folder())?;
    let files = write_small_files(vec![config(&tensors, base.checkpoint())], base.checkpoint(), &staging)?;
    let origin = Origin { layout: LayoutName::Delta, base: Some(base), file, given: &given };
    let manifest = manifest(&tensors, &origin, files, &written);
    staging.write(FILE_NAME, manifest.to_json()?.as_bytes())?;
    staging.publish(out)?;
    let count = |wanted: fn(&Fate<'_>) -> bool| tensors.iter().filter(|tensor| wanted(&tensor.fate)).count() as u64;
    Ok(Imported {
        out: out.to_owned(),
        differences: count(|fate| matches!(fate, Fate::Difference { .. })),
        whole: count(|fate| matches!(fate, Fate::Whole(_))),
        same: count(|fate| matches!(fate, Fate::Same)),
        bytes: manifest.totals.artifact_bytes,
    })
}

/// What a tensor of the file becomes; nothing for a scale, which goes with its signs.
fn found<'a>(
    name: &str,
    tensor: &'a Given<'a>,
    given: &'a BTreeMap<String, Given<'a>>,
    base: &LogicalCheckpoint,
) -> Result<Option<Imports<'a>>, ExchangeError> {
    let wrong = |problem: String| ExchangeError::tensor(name, problem);
    if let Some(module) = name.strip_suffix(COEFFICIENT) {
        let signs = given.contains_key(&format!("{module}{MASK}"));
        return if signs { Ok(None) } else { Err(wrong(format!("there is no `{module}{MASK}`"))) };
    }
    if let Some(module) = name.strip_suffix(".A").filter(|module| given.contains_key(&format!("{module}.B"))) {
        return Err(wrong(format!("`{module}` is stored as a product of two matrices, which is not read")));
    }
    if let Some(module) = name.strip_suffix(MASK) {
        let weight = format!("{module}.weight");
        let found = base.tensor(&weight).ok_or_else(|| wrong(format!("the base has no `{weight}`")))?;
        let [outputs, inputs] = found.shape[..] else {
            return Err(wrong(format!("`{weight}` of the base is {:?}, no matrix", found.shape)));
        };
        if outputs == 0 || inputs == 0 || !is_float(found.dtype) {
            return Err(wrong(format!("`{weight}` of the base has no weights")));
        }
        let expected = [inputs / WORD, outputs];
        if tensor.dtype != Dtype::I32 || tensor.shape != expected || !inputs.is_multiple_of(WORD) {
            let got = format!("{:?} {:?}", tensor.dtype, tensor.shape);
            return Err(wrong(format!("expected I32 {expected:?} for a base of {:?}, got {got}", found.shape)));
        }
        let coefficient = format!("{module}{COEFFICIENT}");
        let scale = given.get(&coefficient).ok_or_else(|| wrong(format!("there is no `{coefficient}`")))?;
        let scale = number(scale).ok_or_else(|| ExchangeError::tensor(&coefficient, "expected one finite number"))?;
        return Ok(Some(Imports {
            name: weight,
            parts: vec![name.to_owned(), coefficient],
            dtype: found.dtype,
            shape: found.shape.clone(),
            fate: Fate::Difference { mask: tensor, scale },
        }));
    }
    let before = base.tensor(name);
    let dtype = before.map_or(tensor.dtype, |before| before.dtype);
    let bytes = if dtype == tensor.dtype {
        Cow::Borrowed(tensor.bytes)
    } else if is_float(dtype) && is_float(tensor.dtype) {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        decode_to_f32(tensor.dtype, tensor.bytes, &mut values);
        let mut bytes = Vec::new();
        if encode_from_f32(dtype, &values, &mut bytes) > 0 {
            return Err(wrong(format!("its values are too large for the base's {dtype:?}")));
        }
        Cow::Owned(bytes)
    } else {
        return Err(wrong(format!("it is {:?}, and {dtype:?} in the base", tensor.dtype)));
    };
    let same = base.stored_bytes_of(name).is_some_and(|(checkpoint, entry)| {
        entry.dtype == dtype && entry.shape == tensor.shape && checkpoint.bytes(entry) == bytes[..]
    });
    let fate = if same { Fate::Same } else { Fate::Whole(bytes) };
    Ok(Some(Imports { name: name.to_owned(), parts: vec![name.to_owned()], dtype, shape: tensor.shape.clone(), fate }))
}

/// A single finite number.
fn number(tensor: &Given<'_>) -> Option<f32> {
    if tensor.shape.iter().product::<usize>() != 1 || !is_float(tensor.dtype) {
        return None;
    }
    let mut value = [0.0];
    decode_to_f32(tensor.dtype, tensor.bytes, &mut value);
    value[0].is_finite().then_some(value[0])
}

/// The form of all differences.
const FORM: Delta = Delta { planes: 1, share: Share::Matrix };

impl Imports<'_> {
    pub(super) fn matrix(&self) -> Option<MatrixSpec> {
        if let Fate::Factors { matrix, .. } = &self.fate {
            return Some(MatrixSpec::clone(matrix));
        }
        let (Fate::Difference { .. }, [rows, columns]) = (&self.fate, &self.shape[..]) else { return None };
        Some(MatrixSpec {
            name: self.name.clone(),
            experts: None,
            rows: *rows,
            columns: *columns,
            transposed: false,
            dense_dtype: self.dtype,
            codec: Whole::Delta(FORM).into(),
            rotations: None,
            codebook_of: None,
            cache: None,
            activations: Activations::None,
            bias: false,
        })
    }

    /// What is stored.
    fn stored(&self) -> Vec<TensorSpec> {
        match (&self.fate, self.matrix()) {
            (Fate::Whole(_), _) => {
                vec![TensorSpec { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }]
            }
            (Fate::Factors { .. }, Some(matrix)) => layout(LayoutName::Bantam).tensors(&matrix),
            (_, Some(matrix)) => layout(LayoutName::Delta).tensors(&matrix),
            _ => Vec::new(),
        }
    }

    /// The bytes of one of [`Imports::stored`].
    fn bytes(&self, part: usize) -> Cow<'_, [u8]> {
        match &self.fate {
            Fate::Whole(bytes) => Cow::Borrowed(bytes),
            Fate::Difference { mask, .. } if part == 0 => Cow::Owned(signs(mask.bytes, mask.shape[0], mask.shape[1])),
            Fate::Difference { scale, .. } => Cow::Owned(scale.to_le_bytes().to_vec()),
            Fate::Factors { parts, .. } => Cow::Borrowed(parts.get(part).map_or(&[], |bytes| &**bytes)),
            Fate::Same => Cow::Borrowed(&[]),
        }
    }
}

/// Words `[words, outputs]` as rows of bytes `[outputs, words · 4]`.
fn signs(words: &[u8], per_row: usize, outputs: usize) -> Vec<u8> {
    let mut rows = vec![0; words.len()];
    for (index, word) in words.chunks_exact(4).enumerate() {
        let (word_of_row, output) = (index / outputs, index % outputs);
        rows[(output * per_row + word_of_row) * 4..][..4].copy_from_slice(word);
    }
    rows
}

/// Writes the tensors in one file; gives the hash of each stored part.
pub(super) fn write_tensors(
    tensors: &[Imports<'_>],
    folder: &Path,
) -> Result<BTreeMap<String, ContentHash>, ExchangeError> {
    let mut parts: Vec<(TensorSpec, &Imports<'_>, usize)> = Vec::new();
    for tensor in tensors {
        parts.extend(tensor.stored().into_iter().enumerate().map(|(part, spec)| (spec, tensor, part)));
    }
    parts.sort_by(|(a, ..), (b, ..)| canonical_order((a.dtype, &a.name), (b.dtype, &b.name)));
    if let Some(pair) = parts.windows(2).find(|pair| pair[0].0.name == pair[1].0.name) {
        return Err(ExchangeError::tensor(&pair[0].0.name, "it would be stored twice"));
    }
    let path = folder.join("model.safetensors");
    let failed = || ExchangeError::io("write", &path);
    let mut file = BufWriter::new(File::create_new(&path).map_err(failed())?);
    let listed = parts.iter().map(|(spec, ..)| (spec.name.as_str(), spec.dtype, spec.shape.as_slice()));
    file.write_all(&header_bytes(listed, METADATA)).map_err(failed())?;
    let mut hashes = BTreeMap::new();
    for (spec, tensor, part) in &parts {
        let bytes = tensor.bytes(*part);
        file.write_all(&bytes).map_err(failed())?;
        hashes.insert(spec.name.clone(), ContentHash::of(&bytes));
    }
    let file = file.into_inner().map_err(|error| failed()(error.into_error()))?;
    file.sync_all().map_err(failed())?;
    Ok(hashes)
}

/// The configuration.
fn config(tensors: &[Imports<'_>], base: &Checkpoint) -> (String, Vec<u8>) {
    let matrices: Vec<MatrixSpec> = tensors.iter().filter_map(Imports::matrix).collect();
    let same = tensors
        .iter()
        .filter(|tensor| matches!(tensor.fate, Fate::Same))
        .map(|tensor| (tensor.name.clone(), BaseTensor { dtype: tensor.dtype, shape: tensor.shape.clone() }));
    let from_base = BaseTensors { same: same.collect(), rows: BTreeMap::new() };
    let mut quantization = layout(LayoutName::Delta).quantization_config(&matrices, &[]).unwrap_or_default();
    from_base.add_to(&mut quantization);
    let mut text = base.config().map_or_else(|| "{}\n".to_owned(), |config| config.text.clone());
    // As the original loader: the vocabulary is the head's.
    let head = tensors.iter().find(|tensor| tensor.name == "lm_head.weight");
    let rows = head.and_then(|head| head.shape.first());
    if let (Some(rows), true) = (rows, base.config().is_some_and(|config| config.value.get("vocab_size").is_some())) {
        text = config_text::set_member(&text, "vocab_size", &rows.to_string());
    }
    text = config_text::set_member(&text, "quantization_config", &config_text::indented(&quantization));
    ("config.json".to_owned(), text.into_bytes())
}

/// Writes them and what else lies beside the base's weights.
pub(super) fn write_small_files(
    mut files: Vec<(String, Vec<u8>)>,
    base: &Checkpoint,
    staging: &Staging,
) -> Result<Vec<FileEntry>, ExchangeError> {
    for path in base.companions() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((name, std::fs::read(path).map_err(ExchangeError::io("read", path))?));
    }
    let mut entries = Vec::new();
    for (name, bytes) in files {
        staging.write(&name, &bytes)?;
        entries.push(FileEntry { bytes: bytes.len() as u64, hash: ContentHash::of(&bytes), name });
    }
    Ok(entries)
}

/// What an artifact is made of.
pub(super) struct Origin<'a> {
    pub layout: LayoutName,
    /// The checkpoint that differences are from.
    pub base: Option<&'a LogicalCheckpoint>,
    pub file: &'a Path,
    pub given: &'a BTreeMap<String, Given<'a>>,
}

pub(super) fn manifest(
    tensors: &[Imports<'_>],
    origin: &Origin<'_>,
    files: Vec<FileEntry>,
    written: &BTreeMap<String, ContentHash>,
) -> Manifest {
    let input = |(name, tensor): (&String, &Given<'_>)| InputTensor {
        name: name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        bytes: tensor.bytes.len() as u64,
        hash: ContentHash::of(tensor.bytes),
    };
    let inputs: Vec<InputTensor> = origin.given.iter().map(input).collect();
    let output = |tensor: &Imports<'_>| {
        let part = |spec: TensorSpec| {
            let (bytes, hash) = (spec.bytes(), written.get(&spec.name).copied());
            let hash = hash.unwrap_or_else(|| ContentHash::of(&[]));
            Part { name: spec.name, dtype: spec.dtype, shape: spec.shape, bytes, hash }
        };
        let parts: Vec<Part> = tensor.stored().into_iter().map(part).collect();
        let hashes: Vec<ContentHash> = parts.iter().map(|part| part.hash).collect();
        let weights: u64 = tensor.shape.iter().map(|&length| length as u64).product();
        let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
        let (codec, passes) = match &tensor.fate {
            Fate::Difference { .. } => (FORM.name(), vec![crate::passes::bitdelta::INFO.name.to_owned()]),
            Fate::Whole(_) => (format!("{:?}", tensor.dtype).to_lowercase(), Vec::new()),
            Fate::Factors { matrix, .. } => {
                (matrix.codec.name(), vec![crate::passes::lowrank_kv::INFO.name.to_owned()])
            }
            Fate::Same => ("same".to_owned(), Vec::new()),
        };
        OutputTensor {
            name: tensor.name.clone(),
            source: tensor.parts.clone(),
            passes,
            codec,
            matrix: tensor.matrix(),
            shape: tensor.shape.clone(),
            bits_per_weight: if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 },
            parts,
            mask: None,
            error: None,
            calibration: None,
            device: None,
            input: None,
            expansion: None,
            hash: ContentHash::of_parts(&hashes),
        }
    };
    let outputs: Vec<OutputTensor> = tensors.iter().map(output).collect();
    let weights = |tensor: &OutputTensor| tensor.shape.iter().map(|&length| length as u64).product::<u64>();
    let bytes = |tensor: &OutputTensor| tensor.parts.iter().map(|part| part.bytes).sum::<u64>();
    let coded = || outputs.iter().filter(|tensor| tensor.matrix.is_some());
    let (coded_weights, coded_bytes): (u64, u64) = (coded().map(weights).sum(), coded().map(bytes).sum());
    let totals = Totals {
        tensors: outputs.len() as u64,
        compressed_tensors: coded().count() as u64,
        weights: outputs.iter().map(weights).sum(),
        compressed_weights: coded_weights,
        bits_per_weight: (coded_weights > 0).then(|| coded_bytes as f64 * 8.0 / coded_weights as f64),
        source_bytes: inputs.iter().map(|input| input.bytes).sum(),
        artifact_bytes: outputs.iter().map(bytes).sum(),
    };
    let name = origin.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Manifest {
        schema: SCHEMA.to_owned(),
        tool: Tool::default(),
        recipe: json!({ "import": name }),
        layout: origin.layout,
        base: origin.base.map_or_else(Vec::new, |base| base_tensors(base.checkpoint(), &BTreeMap::new())),
        merged: Vec::new(),
        training: None,
        inputs,
        tensors: outputs,
        files,
        fallbacks: Vec::new(),
        totals,
    }
}
