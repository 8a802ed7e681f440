//! Writes what `torch.save` writes, for `torch.load(…, weights_only=True)` and for [`super::read_pairs`]: a zip archive of
//! stored entries whose pickle says which tensors the others are. The same tensors give the same bytes.

use std::{collections::BTreeMap, io::Write};

use super::{TorchFileError, TorchTensor};
use crate::{
    checkpoint::Dtype,
    codec::sparse::npz::{NpzError, Writer},
};

/// The folder of the archive, as `torch.save` names it for a stream.
const FOLDER: &str = "archive";
/// Bytes that the data of an entry begins at a multiple of, so that storages can be mapped.
const ALIGNMENT: u64 = 64;

/// State dictionaries to write.
pub type Dictionary<'a> = BTreeMap<String, TorchTensor<'a>>;

/// Writes a dictionary of tensors.
///
/// # Errors
/// [`TorchFileError::Archive`] for an entry of 4 GiB and more, or what the system refuses; [`TorchFileError::Content`] for a type
/// that has no storage.
pub fn write_dictionary<W: Write>(out: W, tensors: &Dictionary<'_>) -> Result<W, TorchFileError> {
    let mut pickle = Pickle::new();
    pickle.dictionary(tensors)?;
    pickle.finish(out)
}

/// Writes a list of pairs of dictionaries of tensors: the form of CSKV's checkpoints, one pair a layer.
///
/// # Errors
/// As [`write_dictionary`].
pub fn write_pairs<W: Write>(out: W, layers: &[[Dictionary<'_>; 2]]) -> Result<W, TorchFileError> {
    let mut pickle = Pickle::new();
    pickle.put(b"](");
    for pair in layers {
        for dictionary in pair {
            pickle.dictionary(dictionary)?;
        }
        // TUPLE2
        pickle.put(b"\x86");
    }
    pickle.put(b"e");
    pickle.finish(out)
}

/// A pickle of protocol 2 in the making, and the storages that it names.
struct Pickle<'a> {
    code: Vec<u8>,
    storages: Vec<&'a [u8]>,
}

impl<'a> Pickle<'a> {
    fn new() -> Self {
        Self { code: b"\x80\x02".to_vec(), storages: Vec::new() }
    }

    fn put(&mut self, code: &[u8]) {
        self.code.extend(code);
    }

    fn text(&mut self, text: &str) {
        self.put(b"X");
        self.put(&(text.len() as u32).to_le_bytes());
        self.put(text.as_bytes());
    }

    fn number(&mut self, number: usize) {
        if let Ok(number) = i32::try_from(number) {
            self.put(b"J");
            self.put(&number.to_le_bytes());
        } else {
            // LONG1
            self.put(b"\x8a\x08");
            self.put(&(number as u64).to_le_bytes());
        }
    }

    fn numbers(&mut self, numbers: &[usize]) {
        self.put(b"(");
        for number in numbers {
            self.number(*number);
        }
        self.put(b"t");
    }

    fn dictionary(&mut self, tensors: &Dictionary<'a>) -> Result<(), TorchFileError> {
        self.put(b"ccollections\nOrderedDict\n)R(");
        for (name, tensor) in tensors {
            self.text(name);
            self.tensor(name, tensor)?;
        }
        self.put(b"u");
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks)`.
    fn tensor(&mut self, name: &str, tensor: &TorchTensor<'a>) -> Result<(), TorchFileError> {
        let kind = storage_of(tensor.dtype).ok_or_else(|| TorchFileError::Tensor {
            name: name.to_owned(),
            problem: format!("{:?} has no storage", tensor.dtype),
        })?;
        let elements: usize = tensor.shape.iter().product();
        self.put(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.put(format!("ctorch\n{kind}\n").as_bytes());
        self.text(&self.storages.len().to_string());
        self.text("cpu");
        self.number(elements);
        self.put(b"tQ");
        self.number(0);
        self.numbers(&tensor.shape);
        let mut strides = vec![1; tensor.shape.len()];
        for index in (1..strides.len()).rev() {
            strides[index - 1] = strides[index] * tensor.shape[index];
        }
        self.numbers(&strides);
        // NEWFALSE, an empty dictionary, TUPLE, REDUCE
        self.put(b"\x89ccollections\nOrderedDict\n)RtR");
        self.storages.push(tensor.bytes);
        Ok(())
    }

    fn finish<W: Write>(mut self, out: W) -> Result<W, TorchFileError> {
        self.put(b".");
        let mut archive = Writer::new(out);
        let mut entry = |name: &str, bytes: &[u8]| -> Result<(), NpzError> {
            archive.add_stored(&format!("{FOLDER}/{name}"), bytes, ALIGNMENT)
        };
        entry("data.pkl", &self.code)?;
        entry("byteorder", b"little")?;
        for (key, bytes) in self.storages.iter().enumerate() {
            entry(&format!("data/{key}"), bytes)?;
        }
        entry("version", b"3\n")?;
        Ok(archive.finish()?)
    }
}

fn storage_of(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::BOOL => "BoolStorage",
        _ => return None,
    })
}
