//! CSKV's pair of files becomes an artifact: the base's tensors, with factors where its keys and values were.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    ExchangeError,
    cskv::{WEIGHT, cskv_pair, projections},
    import::{Fate, Given, Imports, Origin, manifest, write_small_files, write_tensors},
};
use crate::{
    checkpoint::{Dtype, MappedFile, config_text, decode_to_f32, encode_from_f32},
    codec::{Factors, ScaleFormat, Whole},
    decode::Staging,
    forward::LinearSpec,
    layout::{Activations, Cached, LatentCache, LayoutName, LogicalCheckpoint, MatrixSpec, Refusal, layout},
    manifest::FILE_NAME,
    torch_file::{self, Dictionary, TorchTensor},
};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ImportedCskv {
    /// The folder.
    pub out: PathBuf,
    /// Layers.
    pub layers: usize,
    /// Latent channels of keys and of values in the first layer.
    pub ranks: [usize; 2],
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// What the files do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CskvChoice {
    /// The artifact's layout: `bantam` or `remote-code`.
    pub layout: LayoutName,
    /// The latest tokens whose keys and values are exact.
    pub window: usize,
}

/// Makes an artifact in the new folder `out` of the pair that `file` is one of, and of the model that it was made for. Factors
/// get the type of the model's weights.
///
/// # Errors
/// [`ExchangeError`]; then nothing of it stays on the disk.
pub fn import_cskv(
    file: &Path,
    base: &LogicalCheckpoint,
    out: &Path,
    choice: CskvChoice,
) -> Result<ImportedCskv, ExchangeError> {
    let (projections, heads) = projections(base)?;
    let paths = cskv_pair(file);
    let mapped = [MappedFile::open(&paths[0])?, MappedFile::open(&paths[1])?];
    let mut given: BTreeMap<String, Given<'_>> = BTreeMap::new();
    let mut coded: BTreeMap<String, Imports<'_>> = BTreeMap::new();
    let mut ranks = [0; 2];
    for (side, (path, mapped)) in paths.iter().zip(&mapped).enumerate() {
        let failed = |source| ExchangeError::TorchFile { path: path.clone(), source };
        let layers = torch_file::read_pairs(mapped.bytes()).map_err(failed)?;
        if layers.len() != projections.len() {
            let problem = format!("holds {} layers, and the model has {}", layers.len(), projections.len());
            return Err(ExchangeError::Cskv { name: path.display().to_string(), problem });
        }
        for (layer, (pair, projection)) in layers.into_iter().zip(&projections).enumerate() {
            let linear = &projection[side];
            let part = [Cached::Key, Cached::Value][side];
            let place = LatentCache { layer, part, window: choice.window, bits: None, absorb_values: false };
            let imported = imports(&pair, linear, base, heads, place)?;
            if layer == 0 {
                ranks[side] = pair[0][WEIGHT].shape[0];
            }
            for (tensor, name) in pair.into_iter().zip(&imported.parts) {
                let TorchTensor { dtype, shape, bytes } = tensor[WEIGHT].clone();
                given.insert(name.clone(), Given { dtype, shape, bytes });
            }
            coded.insert(linear.weight.clone(), imported);
        }
    }
    let mut tensors: Vec<Imports<'_>> = coded.into_values().collect();
    let known: std::collections::BTreeSet<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
    for tensor in base.tensors().iter().filter(|tensor| !known.contains(&tensor.name)) {
        let Some((checkpoint, entry)) = base.stored_bytes_of(&tensor.name).filter(|_| tensor.is_plain()) else {
            return Err(ExchangeError::tensor(&tensor.name, "the base stores it in codes"));
        };
        let (name, dtype, shape, bytes) =
            (&tensor.name, entry.dtype, entry.shape.clone(), checkpoint.mapped_bytes(entry)?);
        given.insert(name.clone(), Given { dtype, shape: shape.clone(), bytes });
        let (name, parts) = (name.clone(), vec![name.clone()]);
        tensors.push(Imports { name, parts, dtype, shape, fate: Fate::Whole(Cow::Borrowed(bytes)) });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let staging = Staging::open(out)?;
    let written = write_tensors(&tensors, staging.folder())?;
    let files = write_small_files(small_files(&tensors, base, choice.layout)?, base.checkpoint(), &staging)?;
    let origin = Origin { layout: choice.layout, base: None, file, given: &given };
    let manifest = manifest(&tensors, &origin, files, &written);
    staging.write(FILE_NAME, manifest.to_json()?.as_bytes())?;
    staging.publish(out)?;
    Ok(ImportedCskv { out: out.to_owned(), layers: projections.len(), ranks, bytes: manifest.totals.artifact_bytes })
}

/// One projection in factors.
fn imports<'a>(
    pair: &[Dictionary<'a>; 2],
    linear: &LinearSpec,
    base: &'a LogicalCheckpoint,
    heads: usize,
    cache: LatentCache,
) -> Result<Imports<'a>, ExchangeError> {
    let refuse = |problem: String| ExchangeError::Cskv { name: linear.weight.clone(), problem };
    let tensor = base.tensor(&linear.weight).ok_or_else(|| refuse("is missing in the base".to_owned()))?;
    let Some((checkpoint, entry)) = base.stored_bytes_of(&linear.weight).filter(|_| tensor.is_plain()) else {
        return Err(refuse("is stored in codes by the base".to_owned()));
    };
    let storage = match entry.dtype {
        Dtype::F16 => ScaleFormat::F16,
        Dtype::BF16 => ScaleFormat::BF16,
        Dtype::F32 => ScaleFormat::F32,
        other => return Err(refuse(format!("is {other:?} in the base; expected F16, BF16 or F32"))),
    };
    let [a, b] = [&pair[0], &pair[1]].map(|dictionary| match dictionary.get(WEIGHT) {
        Some(tensor) if dictionary.len() == 1 => Ok(tensor),
        _ => Err(refuse(format!("has a state dictionary with other tensors than `{WEIGHT}`"))),
    });
    let (a, b) = (a?, b?);
    let rank = a.shape.first().copied().unwrap_or(0);
    let expected = [vec![rank, linear.columns], vec![linear.rows, rank]];
    if [&a.shape, &b.shape] != [&expected[0], &expected[1]] {
        return Err(refuse(format!(
            "has factors {:?} and {:?}; expected [R, {}] and [{}, R]",
            a.shape, b.shape, linear.columns, linear.rows
        )));
    }
    if !rank.is_multiple_of(heads) {
        return Err(refuse(format!("has {rank} latent channels, which {heads} heads do not divide; those of CSKV do")));
    }
    let format = Factors { ranks: vec![rank], storage, exact: cache.window > 0 };
    format.validate(linear.rows, linear.columns).map_err(|error| refuse(error.to_string()))?;
    let mut parts = vec![stored(a, entry.dtype).map_err(&refuse)?, stored(b, entry.dtype).map_err(&refuse)?];
    if format.exact {
        parts.push(Cow::Borrowed(checkpoint.mapped_bytes(entry)?));
    }
    let module = linear.weight.strip_suffix(".weight").unwrap_or(&linear.weight);
    let names = vec![format!("{module}.A"), format!("{module}.B")];
    let matrix = MatrixSpec {
        name: linear.weight.clone(),
        experts: None,
        rows: linear.rows,
        columns: linear.columns,
        transposed: false,
        dense_dtype: entry.dtype,
        codec: Whole::Factors(format).into(),
        rotations: None,
        codebook_of: None,
        cache: Some(cache),
        activations: Activations::None,
        bias: linear.bias.is_some(),
    };
    let (name, dtype, shape) = (linear.weight.clone(), entry.dtype, entry.shape.clone());
    Ok(Imports { name, parts: names, dtype, shape, fate: Fate::Factors { matrix: Box::new(matrix), parts } })
}

/// The numbers in the model's type; all must be finite.
fn stored<'a>(tensor: &TorchTensor<'a>, dtype: Dtype) -> Result<Cow<'a, [u8]>, String> {
    if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(format!("has factors in {:?}; expected F16, BF16 or F32", tensor.dtype));
    }
    let mut values = vec![0.0; tensor.shape.iter().product()];
    decode_to_f32(tensor.dtype, tensor.bytes, &mut values);
    let mut bytes = Vec::new();
    encode_from_f32(dtype, &values, &mut bytes);
    let mut back = vec![0.0; values.len()];
    decode_to_f32(dtype, &bytes, &mut back);
    if back.iter().any(|value: &f32| !value.is_finite()) {
        return Err("has factors with numbers that are not finite in the model's type".to_owned());
    }
    Ok(if tensor.dtype == dtype { Cow::Borrowed(tensor.bytes) } else { Cow::Owned(bytes) })
}

/// Configuration and the layout's own files.
fn small_files(
    tensors: &[Imports<'_>],
    base: &LogicalCheckpoint,
    name: LayoutName,
) -> Result<Vec<(String, Vec<u8>)>, ExchangeError> {
    let matrices: Vec<MatrixSpec> = tensors.iter().filter_map(Imports::matrix).collect();
    let layout = layout(name);
    let config = base.checkpoint().config();
    let refused = |(Refusal::Format(problem) | Refusal::Shape(problem))| ExchangeError::Cskv {
        name: format!("layout `{}`", name.as_str()),
        problem: format!("refuses: {problem}"),
    };
    for matrix in &matrices {
        layout.accepts(matrix).map_err(refused)?;
    }
    layout.accepts_together(&matrices).map_err(refused)?;
    let mut text = config.map_or_else(|| "{}\n".to_owned(), |config| config.text.clone());
    if let Some(value) = layout.quantization_config(&matrices, &[]) {
        text = config_text::set_member(&text, "quantization_config", &config_text::indented(&value));
    }
    for (key, value) in layout.config_members(&matrices, config.map(|config| &config.value)).map_err(refused)? {
        text = config_text::set_member(&text, key, &config_text::indented(&value));
    }
    let mut files = vec![("config.json".to_owned(), text.into_bytes())];
    files.extend(layout.extra_files(&matrices, &[]));
    Ok(files)
}
