//! CSKV's own files (wln20/CSKV, `cskv_src/utils/training_utils.py`): of keys and of values one list over layers of two state
//! dictionaries, `{"weight": A}` with A `[R, inputs]` and `{"weight": B}` with B `[outputs, R]`; W ≈ B·A. B is joint over the
//! heads, and R a multiple of their number: channels of a head times density.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use super::ExchangeError;
use crate::{
    checkpoint::Checkpoint,
    codec::{Coding, Factors, Whole},
    forward::{Kind, LinearSpec, Model, WeightSource},
    layout::LogicalCheckpoint,
    torch_file::{Dictionary, TorchTensor, write_pairs},
};

/// What ends the names of the two files.
pub(super) const KEYS: &str = "_k.ckpt";
pub(super) const VALUES: &str = "_v.ckpt";
/// What a state dictionary calls its tensor.
pub(super) const WEIGHT: &str = "weight";

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ExportedCskv {
    /// The file of keys and that of values.
    pub out: [PathBuf; 2],
    /// Layers.
    pub layers: usize,
    /// Latent channels of keys and of values in each layer.
    pub ranks: [usize; 2],
    /// Bytes of both files.
    pub bytes: u64,
}

/// Both files of a pair, from the name of either or from what stands before `_k.ckpt` and `_v.ckpt`.
#[must_use]
pub fn cskv_pair(path: &Path) -> [PathBuf; 2] {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(KEYS).or_else(|| name.strip_suffix(VALUES)).unwrap_or(&name);
    [KEYS, VALUES].map(|suffix| path.with_file_name(format!("{stem}{suffix}")))
}

/// Whether a path is by its name one of CSKV's files.
#[must_use]
pub fn is_cskv(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "ckpt")
}

/// Whether an artifact holds factors of keys or values.
#[must_use]
pub fn has_factors(artifact: &LogicalCheckpoint) -> bool {
    artifact.tensors().iter().any(|tensor| matches!(tensor.codec, Some(Coding::Whole(Whole::Factors(_)))))
}

/// Key and value projection of every layer, and the number of key and value heads.
pub(super) fn projections(model: &LogicalCheckpoint) -> Result<(Vec<[LinearSpec; 2]>, usize), ExchangeError> {
    let config = model.checkpoint().config().map(|config| &config.value);
    let computed = Model::new(config, model)?;
    let mut found = Vec::new();
    for block in &computed.blocks {
        let stage = block.stages.iter().find(|stage| stage.kind == Kind::Attention);
        let Some([_, key, value]) = stage.map(|stage| &stage.linears[..]) else {
            return Err(ExchangeError::Cskv {
                name: format!("layer {}", block.index),
                problem: "has no key and value projections of its own".to_owned(),
            });
        };
        found.push([key.clone(), value.clone()]);
    }
    let heads = computed.blocks.first().map_or(1, |block| block.attention.key_value_heads);
    Ok((found, heads.max(1)))
}

/// Writes `…_k.ckpt` and `…_v.ckpt`, which must not exist, for what stands before in `out`.
///
/// # Errors
/// [`ExchangeError::Cskv`] for a model that CSKV's files cannot hold: dense layers, groups of heads, ranks that differ or are
/// no multiple of the number of heads, biases.
pub fn export_cskv(artifact: &LogicalCheckpoint, out: &Path) -> Result<ExportedCskv, ExchangeError> {
    let (projections, heads) = projections(artifact)?;
    let out = cskv_pair(out);
    let mut ranks = [0; 2];
    let mut bytes = 0;
    let mut files = Vec::new();
    for side in 0..2 {
        let mut layers = Vec::new();
        for projection in &projections {
            let linear = &projection[side];
            let (rank, pair) = factors(artifact.checkpoint(), artifact, linear, heads)?;
            if ranks[side] != 0 && ranks[side] != rank {
                let problem =
                    format!("has {rank} latent channels and the layers before {}; CSKV has one number", ranks[side]);
                return Err(ExchangeError::Cskv { name: linear.weight.clone(), problem });
            }
            ranks[side] = rank;
            layers.push(pair);
        }
        files.push(layers);
    }
    for path in &out {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(ExchangeError::io("write", path)(std::io::ErrorKind::AlreadyExists.into()));
        }
    }
    for (path, layers) in out.iter().zip(&files) {
        let written = write_file(path, layers);
        if written.is_err() {
            // Nothing can be done about a file that cannot be removed.
            let _ = std::fs::remove_file(path);
        }
        bytes += written?;
    }
    Ok(ExportedCskv { out, layers: projections.len(), ranks, bytes })
}

fn write_file(path: &Path, layers: &[[Dictionary<'_>; 2]]) -> Result<u64, ExchangeError> {
    let failed = || ExchangeError::io("write", path);
    let file = BufWriter::new(File::create_new(path).map_err(failed())?);
    let wrong = |source| ExchangeError::TorchFile { path: path.to_owned(), source };
    let file = write_pairs(file, layers).map_err(wrong)?;
    let file = file.into_inner().map_err(|error| failed()(error.into_error()))?;
    file.sync_all().map_err(failed())?;
    Ok(file.metadata().map_err(failed())?.len())
}

/// A and B of one projection, as they are stored.
fn factors<'a>(
    checkpoint: &'a Checkpoint,
    artifact: &LogicalCheckpoint,
    linear: &LinearSpec,
    heads: usize,
) -> Result<(usize, [Dictionary<'a>; 2]), ExchangeError> {
    let refuse = |problem: String| Err(ExchangeError::Cskv { name: linear.weight.clone(), problem });
    let codec = artifact.tensor(&linear.weight).and_then(|tensor| tensor.codec.as_ref());
    let Some(Coding::Whole(Whole::Factors(Factors { ranks, .. }))) = codec else {
        return refuse("is not stored in factors; CSKV's files have factors of every layer".to_owned());
    };
    let &[rank] = &ranks[..] else {
        return refuse(format!("has {} groups of heads; B of CSKV's files is joint over the heads", ranks.len()));
    };
    if !rank.is_multiple_of(heads) {
        return refuse(format!("has {rank} latent channels, which {heads} heads do not divide; those of CSKV do"));
    }
    if linear.bias.is_some() || artifact.shape(&linear.weight.replace(".weight", ".bias")).is_some() {
        return refuse("has a bias, and CSKV's models have none".to_owned());
    }
    let module = linear.weight.strip_suffix(".weight").unwrap_or(&linear.weight);
    let part = |suffix: &str| -> Result<Dictionary<'a>, ExchangeError> {
        let name = format!("{module}{suffix}.weight");
        let entry = checkpoint.tensor(&name).ok_or_else(|| ExchangeError::tensor(&name, "is missing"))?;
        let tensor =
            TorchTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes: checkpoint.mapped_bytes(entry)? };
        Ok(Dictionary::from([(WEIGHT.to_owned(), tensor)]))
    };
    Ok((rank, [part("_a")?, part("_b")?]))
}
