//! An artifact of layout `delta` becomes a safetensors file with BitDelta's names.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{COEFFICIENT, ExchangeError, MASK, WORD};
use crate::{
    checkpoint::{Dtype, METADATA, canonical_order, encode_from_f32, header_bytes},
    codec::{Coding, Delta, Share, Whole},
    layout::{LayoutError, LogicalCheckpoint, LogicalTensor, TensorSpec},
};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Exported {
    /// The file.
    pub out: PathBuf,
    /// Matrices as signs and a scale.
    pub differences: u64,
    /// Tensors stored whole.
    pub whole: u64,
    /// Tensors left out: the base has them.
    pub same: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What a stored tensor of the file is made from.
enum From {
    Mask,
    Coefficient,
    Stored,
    Rows,
}

/// Writes the new file `out`. Tensors that are the base's are left out, as the original loader keeps those of its base; those
/// of which only some rows are stored are made whole, for which the base has to stand beside the artifact.
///
/// # Errors
/// [`ExchangeError::Unknown`] for more planes than one, scales per row, and inputs that are no multiple of 32.
pub fn export(artifact: &LogicalCheckpoint, out: &Path) -> Result<Exported, ExchangeError> {
    let mut parts: Vec<(TensorSpec, &LogicalTensor, From)> = Vec::new();
    let (mut differences, mut whole, mut same) = (0, 0, 0);
    for tensor in artifact.tensors() {
        let own = || TensorSpec { name: tensor.name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone() };
        match tensor.format {
            "delta" => {
                let (module, [outputs, inputs]) = form(artifact, tensor)?;
                let spec = |suffix: &str, dtype, shape| TensorSpec { name: format!("{module}{suffix}"), dtype, shape };
                parts.push((spec(MASK, Dtype::I32, vec![inputs / WORD, outputs]), tensor, From::Mask));
                parts.push((spec(COEFFICIENT, Dtype::F32, Vec::new()), tensor, From::Coefficient));
                differences += 1;
            }
            "same" => same += 1,
            "rows" => {
                parts.push((own(), tensor, From::Rows));
                whole += 1;
            }
            _ => {
                parts.push((own(), tensor, From::Stored));
                whole += 1;
            }
        }
    }
    if differences == 0 {
        return Err(ExchangeError::NoDifference { path: artifact.checkpoint().root().to_owned() });
    }
    parts.sort_by(|(a, ..), (b, ..)| canonical_order((a.dtype, &a.name), (b.dtype, &b.name)));
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let staged = out.with_file_name(format!(".{name}.bantam-export"));
    if std::fs::symlink_metadata(out).is_ok() {
        return Err(ExchangeError::io("write", out)(std::io::ErrorKind::AlreadyExists.into()));
    }
    let written = write(artifact, &parts, &staged).and_then(|bytes| {
        std::fs::rename(&staged, out).map_err(ExchangeError::io("rename the finished file to", out))?;
        Ok(bytes)
    });
    if written.is_err() {
        // Nothing can be done about a file that cannot be removed; the next export replaces it.
        let _ = std::fs::remove_file(&staged);
    }
    Ok(Exported { out: out.to_owned(), differences, whole, same, bytes: written? })
}

/// Module and lengths of a matrix that BitDelta's files can hold.
fn form<'a>(artifact: &LogicalCheckpoint, tensor: &'a LogicalTensor) -> Result<(&'a str, [usize; 2]), ExchangeError> {
    let unknown = |problem: String| ExchangeError::Unknown { name: tensor.name.clone(), problem };
    let form = Delta { planes: 1, share: Share::Matrix };
    if tensor.codec != Some(Coding::Whole(Whole::Delta(form))) {
        return Err(unknown(format!(
            "is stored as {}; BitDelta's files hold {} alone",
            tensor.describe(),
            form.name()
        )));
    }
    let module = tensor.name.strip_suffix(".weight").ok_or_else(|| unknown("is not called `….weight`".to_owned()))?;
    let [outputs, inputs] = tensor.shape[..] else {
        return Err(unknown(format!("is {:?}; BitDelta's files hold single matrices", tensor.shape)));
    };
    // Rows of signs are outputs, whichever way the dense tensor is stored.
    let rows = artifact.difference(&tensor.name).map_or(0, |difference| difference.rows());
    let upright = rows == outputs && artifact.is_upright(&tensor.name);
    if !upright || !inputs.is_multiple_of(WORD) {
        return Err(unknown(format!("has {inputs} inputs; BitDelta's files hold multiples of {WORD}")));
    }
    Ok((module, [outputs, inputs]))
}

fn write(
    artifact: &LogicalCheckpoint,
    parts: &[(TensorSpec, &LogicalTensor, From)],
    path: &Path,
) -> Result<u64, ExchangeError> {
    let failed = || ExchangeError::io("write", path);
    let mut file = BufWriter::new(File::create(path).map_err(failed())?);
    let listed = parts.iter().map(|(spec, ..)| (spec.name.as_str(), spec.dtype, spec.shape.as_slice()));
    let header = header_bytes(listed, METADATA);
    file.write_all(&header).map_err(failed())?;
    let mut total = header.len() as u64;
    for (spec, tensor, from) in parts {
        let bytes = bytes(artifact, spec, tensor, from)?;
        file.write_all(&bytes).map_err(failed())?;
        total += bytes.len() as u64;
    }
    let file = file.into_inner().map_err(|error| failed()(error.into_error()))?;
    file.sync_all().map_err(failed())?;
    Ok(total)
}

fn bytes(
    artifact: &LogicalCheckpoint,
    spec: &TensorSpec,
    tensor: &LogicalTensor,
    from: &From,
) -> Result<Vec<u8>, ExchangeError> {
    let checkpoint = artifact.checkpoint();
    let stored = |name: &str| {
        let missing = || LayoutError::NoSuchTensor { name: name.to_owned() };
        checkpoint.tensor(name).map(|entry| checkpoint.bytes(entry)).ok_or_else(missing)
    };
    match from {
        From::Mask => Ok(words(&stored(&format!("{}.signs", tensor.name))?, spec.shape[0], spec.shape[1])),
        From::Coefficient => Ok(stored(&format!("{}.scales", tensor.name))?.to_vec()),
        From::Stored => Ok(stored(&tensor.name)?.to_vec()),
        From::Rows => {
            let rows = artifact.rows(&tensor.name, false)?;
            let mut values = vec![0.0; rows.rows() * rows.columns()];
            let read = rows.read_rows(0, &mut values);
            read.map_err(|source| ExchangeError::Codec { name: tensor.name.clone(), source })?;
            let mut bytes = Vec::new();
            encode_from_f32(tensor.dtype, &values, &mut bytes);
            Ok(bytes)
        }
    }
}

/// Rows of bytes `[outputs, words · 4]` as words `[words, outputs]`.
fn words(signs: &[u8], per_row: usize, outputs: usize) -> Vec<u8> {
    let mut words = Vec::with_capacity(signs.len());
    for word in 0..per_row {
        for output in 0..outputs {
            words.extend(&signs[(output * per_row + word) * 4..][..4]);
        }
    }
    words
}
