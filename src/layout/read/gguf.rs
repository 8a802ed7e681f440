//! Finds the tensors of a GGUF file: names and the order of rows as the model has them.

use std::collections::BTreeMap;

use super::{
    Found, LogicalTensor, PLAIN, Parts, Stored,
    codes::Codes,
    config::QuantizationConfig,
    matrix::CodedMatrix,
    parts::{addressable, matrix_shape},
    scales::{Scales, Zeros},
    whole::{WholeCodes, WholeMatrix},
};
use crate::{
    checkpoint::{Checkpoint, Dtype, GgmlType, Gguf, TensorEntry, gguf::Value},
    codec::{Coding, ZeroPoint},
    layout::{
        LayoutError,
        gguf::{FACTORS, blocks, moves_rows, names, rows::HeadOrder},
    },
};

/// The format of coded matrices, and of tensors whose rows have another order than the model's.
const FORMAT: &str = "gguf";

/// Every tensor of the file but its constants.
pub(super) fn find(checkpoint: &Checkpoint, gguf: &Gguf, config: &QuantizationConfig) -> Result<Vec<Found>, LayoutError> {
    let heads = Heads::of(&gguf.metadata)?;
    let mut found = Vec::new();
    for entry in checkpoint.tensors().filter(|entry| entry.name != FACTORS) {
        let Some(name) = names::from_file(&entry.name) else {
            return Err(LayoutError::Gguf(format!("the tensor `{}` is none that bantam knows", entry.name)));
        };
        let kind = gguf.types.get(&entry.name).copied().unwrap_or(GgmlType::F32);
        let order = heads.order(&name, entry)?;
        let tensor = match blocks::codec_of(kind) {
            None => plain(name, entry),
            Some(codec) => coded(checkpoint, config, name, entry, (kind, codec))?,
        };
        found.push(match order {
            Some(order) => tensor.reordered(order),
            None => tensor,
        });
    }
    Ok(found)
}

/// What moves rows of queries and keys.
struct Heads {
    moves: bool,
    queries: u64,
    keys: u64,
}

impl Heads {
    fn of(metadata: &BTreeMap<String, Value>) -> Result<Self, LayoutError> {
        let architecture = metadata.get("general.architecture").and_then(Value::as_text).unwrap_or_default();
        let Some(moves) = moves_rows(architecture) else {
            return Err(LayoutError::Gguf(format!(
                "the architecture `{architecture}` is none that bantam reads from GGUF files; it reads llama, qwen2 and \
                 qwen3"
            )));
        };
        let number = |key: &str| metadata.get(&format!("{architecture}.{key}")).and_then(Value::as_unsigned);
        let needed = || LayoutError::Gguf(format!("`{architecture}.attention.head_count` is missing"));
        let queries = number("attention.head_count").filter(|&heads| heads > 0).ok_or_else(needed)?;
        let keys = number("attention.head_count_kv").filter(|&heads| heads > 0).unwrap_or(queries);
        Ok(Self { moves, queries, keys })
    }

    /// The order of a tensor's rows, where it is not the model's.
    fn order(&self, name: &str, entry: &TensorEntry) -> Result<Option<HeadOrder>, LayoutError> {
        let heads = match (names::is_query(name), names::is_key(name)) {
            _ if !self.moves => return Ok(None),
            (true, _) => self.queries,
            (_, true) => self.keys,
            _ => return Ok(None),
        };
        let rows = entry.shape.first().copied().unwrap_or(1);
        let order = usize::try_from(heads).ok().filter(|heads| rows.is_multiple_of(*heads));
        let order = order.and_then(|heads| HeadOrder::new(rows / heads));
        order.map(Some).ok_or_else(|| {
            LayoutError::Gguf(format!("the tensor `{}` has {rows} rows, which are not {heads} heads of pairs", entry.name))
        })
    }
}

fn plain(name: String, entry: &TensorEntry) -> Found {
    Found {
        logical: LogicalTensor {
            name,
            shape: entry.shape.clone(),
            dtype: entry.dtype,
            codec: None,
            format: PLAIN,
            parts: vec![entry.name.clone()],
            stored_bytes: entry.bytes,
            decoded_at_once: 0,
        },
        stored: Stored::Plain,
    }
}

fn coded(
    checkpoint: &Checkpoint,
    config: &QuantizationConfig,
    name: String,
    entry: &TensorEntry,
    (kind, codec): (GgmlType, Coding),
) -> Result<Found, LayoutError> {
    let [rows, row_bytes] = matrix_shape(entry)?;
    let columns = row_bytes / kind.block_bytes() * kind.block_weights();
    addressable(entry, rows, columns)?;
    let mut parts = Parts::new(checkpoint, name, FORMAT);
    let entry = parts.required(&entry.name)?;
    let dtype = config.decoded_type(Dtype::F16);
    Ok(match codec {
        Coding::Scalar(codec) => {
            let zeros = match codec.zero {
                ZeroPoint::None => Zeros::None,
                _ => Zeros::Minima { entry: entry.clone() },
            };
            let matrix = CodedMatrix {
                rows,
                columns,
                codec,
                group_of_column: None,
                codes: Codes::Blocks { entry: entry.clone(), kind },
                scales: Scales::Blocks { entry, kind },
                zeros,
                tensor_scale: None,
                tensor_zero: None,
                outliers: None,
            };
            Found::matrix(parts, dtype, matrix)
        }
        Coding::Whole(whole) => {
            let codes = WholeCodes::Whole { format: whole.clone(), entries: vec![entry] };
            let matrix = WholeMatrix { rows, columns, stack: 1, codes, rotations: None };
            Found::whole(parts, dtype, whole, matrix, vec![rows, columns])
        }
    })
}
