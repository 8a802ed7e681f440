//! Where every dense tensor goes: type, file and offset, fixed before a byte is written.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    checkpoint::{Dtype, canonical_order, header_bytes, is_float},
    layout::{LogicalCheckpoint, TensorSpec},
};

/// What a dense tensor is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// The same bytes.
    Copy,
    /// Floats of another type.
    Floats,
    /// Codes.
    Codes,
}

/// One dense tensor.
#[derive(Debug)]
pub(super) struct Place {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its length.
    pub bytes: u64,
    /// How it is made.
    pub from: From,
    /// Index into [`Places::files`].
    pub file: usize,
    /// Offset from the start of the file.
    pub offset: u64,
}

/// One weight file.
#[derive(Debug)]
pub(super) struct WeightFile {
    /// Its name.
    pub name: String,
    /// Its header.
    pub header: Vec<u8>,
    /// Its length.
    pub bytes: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Places {
    /// The tensors, by name.
    pub tensors: Vec<Place>,
    /// The files.
    pub files: Vec<WeightFile>,
}

/// Distributes the tensors over files of at most `shard_bytes` of data; a single tensor may be larger.
pub(super) fn plan(source: &LogicalCheckpoint, dtype: Option<Dtype>, shard_bytes: u64) -> Places {
    let mut tensors: Vec<Place> = source
        .tensors()
        .iter()
        .map(|tensor| {
            let wanted = dtype.filter(|_| is_float(tensor.dtype)).unwrap_or(tensor.dtype);
            let from = match source.stored_bytes_of(&tensor.name).is_some() {
                false => From::Codes,
                true if wanted == tensor.dtype => From::Copy,
                true => From::Floats,
            };
            let spec = TensorSpec { name: tensor.name.clone(), dtype: wanted, shape: tensor.shape.clone() };
            let bytes = spec.bytes();
            Place { name: spec.name, dtype: wanted, shape: spec.shape, bytes, from, file: 0, offset: 0 }
        })
        .collect();
    let (mut file, mut filled) = (0, 0_u64);
    for tensor in &mut tensors {
        if filled > 0 && filled.saturating_add(tensor.bytes) > shard_bytes {
            (file, filled) = (file + 1, 0);
        }
        tensor.file = file;
        filled += tensor.bytes;
    }
    let files = (0..=file).map(|index| write_file(&mut tensors, index, file + 1)).collect();
    Places { tensors, files }
}

/// Orders the tensors of one file and gives them their offsets.
fn write_file(tensors: &mut [Place], file: usize, count: usize) -> WeightFile {
    let mut members: Vec<&mut Place> = tensors.iter_mut().filter(|tensor| tensor.file == file).collect();
    members.sort_by(|a, b| canonical_order((a.dtype, &a.name), (b.dtype, &b.name)));
    let specs = members.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype, tensor.shape.as_slice()));
    let header = header_bytes(specs, &[("format", "pt")]);
    let mut offset = header.len() as u64;
    for tensor in members {
        tensor.offset = offset;
        offset += tensor.bytes;
    }
    let name = match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", file + 1),
    };
    WeightFile { name, header, bytes: offset }
}

impl Places {
    /// The index of several weight files.
    pub(super) fn index(&self) -> Vec<u8> {
        let weight_map: BTreeMap<&str, &str> =
            self.tensors.iter().map(|t| (t.name.as_str(), self.files[t.file].name.as_str())).collect();
        let total_size: u64 = self.tensors.iter().map(|tensor| tensor.bytes).sum();
        let weights = |tensor: &Place| tensor.shape.iter().map(|&n| n as u64).product::<u64>();
        let total_parameters: u64 = self.tensors.iter().map(weights).sum();
        let value = json!({
            "metadata": {"total_parameters": total_parameters, "total_size": total_size},
            "weight_map": weight_map,
        });
        format!("{value:#}\n").into_bytes()
    }
}
