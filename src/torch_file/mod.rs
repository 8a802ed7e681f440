//! Reads what `torch.save` writes of a flat dictionary of tensors: a zip archive with one pickle, which says what the other
//! entries are. The pickle is interpreted by `pickle`, which admits what such a dictionary needs and refuses everything
//! else by name; nothing in the file is ever executed. Sizes are held against the file before they are believed.
//!
//! Format: `torch.serialization` (zip form, since `PyTorch` 1.6) and Python's `pickletools`.

mod pickle;

use std::collections::BTreeMap;

pub use pickle::PickleError;
use pickle::Stored;

use crate::{
    checkpoint::{Dtype, MAXIMUM_RANK, bits_of},
    codec::sparse::npz::{Archive, NpzError},
};

/// Bytes of the longest pickle that is read: names and shapes of a hundred thousand tensors.
const LONGEST_PICKLE: usize = 16 << 20;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TorchFileError {
    /// It is no zip archive.
    #[error("not a file of torch.save in its zip form (PyTorch 1.6 and later)")]
    NotZip,
    /// The archive is malformed.
    #[error(transparent)]
    Archive(#[from] NpzError),
    /// The archive lacks something, or has something unexpected.
    #[error("{0}")]
    Content(String),
    /// The pickle holds something else than a flat dictionary of tensors.
    #[error("its pickle: {0}")]
    Pickle(#[from] PickleError),
    /// A tensor does not lie within its storage.
    #[error("tensor `{name}`: {problem}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// One tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct TorchTensor<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row-major.
    pub bytes: &'a [u8],
}

/// The tensors of a file, by name.
///
/// # Errors
/// [`TorchFileError`] for everything else than a flat dictionary of contiguous tensors.
pub fn read(bytes: &[u8]) -> Result<BTreeMap<String, TorchTensor<'_>>, TorchFileError> {
    if !bytes.starts_with(b"PK") {
        return Err(TorchFileError::NotZip);
    }
    let archive = Archive::open(bytes)?;
    let mut pickles = archive.names().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let (Some(name), None) = (pickles.next(), pickles.next()) else {
        return Err(TorchFileError::Content("expected one entry `data.pkl`".to_owned()));
    };
    let folder = name.strip_suffix("data.pkl").unwrap_or_default();
    let entry = |name: &str| format!("{folder}{name}");
    let order = entry("byteorder");
    if archive.names().any(|name| name == order) && archive.stored(&order)? != b"little" {
        return Err(TorchFileError::Content("its bytes are not in little-endian order".to_owned()));
    }
    let pickle = archive.stored(name)?;
    if pickle.len() > LONGEST_PICKLE {
        let message = format!("its pickle has {} bytes; at most {LONGEST_PICKLE} are read", pickle.len());
        return Err(TorchFileError::Content(message));
    }
    let mut storages: BTreeMap<String, &[u8]> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in pickle::tensors(pickle)? {
        let storage = if let Some(storage) = storages.get(&tensor.key) {
            *storage
        } else {
            let storage = archive.stored(&entry(&format!("data/{}", tensor.key)))?;
            storages.insert(tensor.key.clone(), storage);
            storage
        };
        match within(&tensor, storage) {
            Ok(bytes) => {
                let Stored { dtype, shape, .. } = tensor;
                tensors.insert(name, TorchTensor { dtype, shape, bytes });
            }
            Err(problem) => return Err(TorchFileError::Tensor { name, problem }),
        }
    }
    Ok(tensors)
}

/// The bytes of a tensor in its storage.
fn within<'a>(tensor: &Stored, storage: &'a [u8]) -> Result<&'a [u8], String> {
    let Stored { dtype, elements, offset, shape, strides, .. } = tensor;
    let width = bits_of(*dtype) / 8;
    if elements.checked_mul(width).is_none_or(|bytes| bytes != storage.len()) {
        return Err(format!("its storage of {elements} {dtype:?} has {} bytes", storage.len()));
    }
    if shape.len() > MAXIMUM_RANK || shape.len() != strides.len() {
        return Err(format!("{} dimensions and {} strides", shape.len(), strides.len()));
    }
    let count = shape.iter().try_fold(1_usize, |product, &length| product.checked_mul(length));
    let count = count.ok_or_else(|| format!("its shape {shape:?} overflows"))?;
    let mut expected = 1;
    for (&length, &stride) in shape.iter().zip(strides).rev() {
        if count > 0 && length > 1 && stride != expected {
            return Err(format!("its strides {strides:?} are not those of a contiguous {shape:?}"));
        }
        // No overflow: it divides the count, or the count is zero.
        expected = expected.saturating_mul(length);
    }
    let end = offset.checked_add(count).filter(|end| end <= elements);
    let end = end.ok_or_else(|| format!("{count} elements from {offset} of a storage of {elements}"))?;
    Ok(&storage[offset * width..end * width])
}
