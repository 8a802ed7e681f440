//! Reads and writes what `torch.save` writes of a flat dictionary of tensors, or of a list of pairs of such: a zip archive with one pickle, which says what the other
//! entries are. The pickle is interpreted by `pickle`, which admits what such a dictionary needs and refuses everything
//! else by name; nothing in the file is ever executed. Sizes are held against the file before they are believed.
//!
//! Format: `torch.serialization` (zip form, since `PyTorch` 1.6) and Python's `pickletools`.

mod pickle;
mod write;

use std::collections::BTreeMap;

pub use pickle::PickleError;
use pickle::Stored;
pub use write::{Dictionary, write_dictionary, write_pairs};

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
pub fn read(bytes: &[u8]) -> Result<Dictionary<'_>, TorchFileError> {
    let mut file = File::open(bytes)?;
    let tensors = pickle::tensors(file.pickle)?;
    file.dictionary(tensors)
}

/// The tensors of a file that holds a list of pairs of dictionaries, as CSKV's checkpoints do, one pair a layer.
///
/// # Errors
/// [`TorchFileError`] for everything else.
pub fn read_pairs(bytes: &[u8]) -> Result<Vec<[Dictionary<'_>; 2]>, TorchFileError> {
    let mut file = File::open(bytes)?;
    let pairs = pickle::pairs(file.pickle)?;
    pairs.into_iter().map(|[first, second]| Ok([file.dictionary(first)?, file.dictionary(second)?])).collect()
}

/// An archive and its pickle.
struct File<'a> {
    archive: Archive<'a>,
    folder: String,
    pickle: &'a [u8],
    storages: BTreeMap<String, &'a [u8]>,
}

impl<'a> File<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, TorchFileError> {
        if !bytes.starts_with(b"PK") {
            return Err(TorchFileError::NotZip);
        }
        let archive = Archive::open(bytes)?;
        let is_pickle = |name: &&str| *name == "data.pkl" || name.ends_with("/data.pkl");
        let pickles: Vec<&str> = archive.names().filter(is_pickle).collect();
        let [name] = pickles[..] else {
            return Err(TorchFileError::Content("expected one entry `data.pkl`".to_owned()));
        };
        let folder = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
        let pickle = archive.stored(name)?;
        let order = format!("{folder}byteorder");
        if archive.has(&order) && archive.stored(&order)? != b"little" {
            return Err(TorchFileError::Content("its bytes are not in little-endian order".to_owned()));
        }
        if pickle.len() > LONGEST_PICKLE {
            let message = format!("its pickle has {} bytes; at most {LONGEST_PICKLE} are read", pickle.len());
            return Err(TorchFileError::Content(message));
        }
        Ok(Self { archive, folder, pickle, storages: BTreeMap::new() })
    }

    fn dictionary(&mut self, found: Vec<(String, Stored)>) -> Result<Dictionary<'a>, TorchFileError> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in found {
            let storage = if let Some(storage) = self.storages.get(&tensor.key) {
                *storage
            } else {
                let storage = self.archive.stored(&format!("{}data/{}", self.folder, tensor.key))?;
                self.storages.insert(tensor.key.clone(), storage);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, shape: &[usize], bytes: &'static [u8]) -> TorchTensor<'static> {
        TorchTensor { dtype, shape: shape.to_vec(), bytes }
    }

    fn layers() -> Vec<[Dictionary<'static>; 2]> {
        let one = |tensor| Dictionary::from([("weight".to_owned(), tensor)]);
        vec![
            [one(tensor(Dtype::F32, &[1, 2], b"\0\0\x80?\0\0\0@")), one(tensor(Dtype::BF16, &[2, 1], b"\x80?\0@"))],
            [one(tensor(Dtype::F16, &[2, 0], b"")), one(tensor(Dtype::F16, &[], b"\0<"))],
        ]
    }

    #[test]
    fn what_is_written_reads_back_and_lies_aligned() {
        let written = write_pairs(Vec::new(), &layers()).unwrap();
        assert_eq!(written, write_pairs(Vec::new(), &layers()).unwrap());
        let read = read_pairs(&written).unwrap();
        assert_eq!(read, layers());
        let bytes = read[0][0]["weight"].bytes;
        assert_eq!((bytes.as_ptr() as usize - written.as_ptr() as usize) % 64, 0);
        let [first, _] = &layers()[0];
        assert_eq!(&super::read(&write_dictionary(Vec::new(), first).unwrap()).unwrap(), first);
        assert!(matches!(super::read(&written), Err(TorchFileError::Pickle(_))));
        assert!(matches!(read_pairs(&write_dictionary(Vec::new(), first).unwrap()), Err(TorchFileError::Pickle(_))));
    }

    #[test]
    fn no_damaged_byte_is_taken_for_good_or_panics() {
        let written = write_pairs(Vec::new(), &layers()).unwrap();
        for at in 0..written.len() {
            let mut damaged = written.clone();
            damaged[at] ^= 0x41;
            if let Ok(read) = read_pairs(&damaged) {
                assert_eq!(read, layers(), "byte {at}");
            }
        }
        for length in 0..written.len() {
            assert!(read_pairs(&written[..length]).is_err());
        }
    }
}
