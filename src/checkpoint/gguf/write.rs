//! Makes all bytes of a file that stand before the data of its tensors.

use super::{ALIGNMENT, Array, GgmlType, MAGIC, VERSION, Value, value::kind};

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensorSpec {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: GgmlType,
    /// Shape in weights, outermost first.
    pub shape: Vec<usize>,
}

/// What a file begins with, and where its tensors lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// All bytes before the first tensor, and those of the constants.
    pub bytes: Vec<u8>,
    /// Where each tensor's bytes start, from the start of the file.
    pub offsets: Vec<u64>,
    /// Length of the whole file.
    pub file_bytes: u64,
}

/// Makes the head of a file: metadata and tensors in the order given. `constants` are tensors whose data (F32, one
/// dimension) is known now; they lie before the others. Gaps are zero.
///
/// # Panics
/// Panics when a size overflows or rows are no whole blocks; sizes to be written are planned, never read from input.
#[must_use]
pub fn gguf_head(metadata: &[(String, Value)], constants: &[(String, Vec<f32>)], tensors: &[GgufTensorSpec]) -> Head {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(((constants.len() + tensors.len()) as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_text(&mut bytes, key);
        push_value(&mut bytes, value);
    }
    let constant = |(name, values): &(String, Vec<f32>)| GgufTensorSpec {
        name: name.clone(),
        kind: GgmlType::F32,
        shape: vec![values.len()],
    };
    let mut at = 0_u64;
    let mut starts = Vec::new();
    for tensor in constants.iter().map(constant).chain(tensors.iter().cloned()) {
        push_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for &side in tensor.shape.iter().rev() {
            bytes.extend((side as u64).to_le_bytes());
        }
        bytes.extend(tensor.kind.number().to_le_bytes());
        bytes.extend(at.to_le_bytes());
        starts.push(at);
        let length = tensor.kind.tensor_bytes(&tensor.shape).expect("a planned tensor has whole blocks");
        at = length
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|length| at.checked_add(length))
            .expect("a planned file fits 64 bits");
    }
    pad(&mut bytes);
    let data = bytes.len() as u64;
    for (_, values) in constants {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        pad(&mut bytes);
    }
    let offsets = starts.into_iter().skip(constants.len()).map(|start| data + start).collect();
    Head { bytes, offsets, file_bytes: data + at }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn push_value(bytes: &mut Vec<u8>, value: &Value) {
    let mut kind = |number: u32| bytes.extend(number.to_le_bytes());
    match value {
        Value::Unsigned(number) => match u32::try_from(*number) {
            Ok(small) => {
                kind(kind::U32);
                bytes.extend(small.to_le_bytes());
            }
            Err(_) => {
                kind(kind::U64);
                bytes.extend(number.to_le_bytes());
            }
        },
        Value::Signed(number) => match i32::try_from(*number) {
            Ok(small) => {
                kind(kind::I32);
                bytes.extend(small.to_le_bytes());
            }
            Err(_) => {
                kind(kind::I64);
                bytes.extend(number.to_le_bytes());
            }
        },
        Value::Float(number) => {
            kind(kind::F32);
            bytes.extend((*number as f32).to_le_bytes());
        }
        Value::Bool(yes) => {
            kind(kind::BOOL);
            bytes.push(u8::from(*yes));
        }
        Value::Text(text) => {
            kind(kind::TEXT);
            push_text(bytes, text);
        }
        Value::Array(array) => {
            kind(kind::ARRAY);
            push_array(bytes, array);
        }
    }
}

fn push_array(bytes: &mut Vec<u8>, array: &Array) {
    let mut head = |kind: u32, length: usize| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend((length as u64).to_le_bytes());
    };
    match array {
        Array::Texts(texts) => {
            head(kind::TEXT, texts.len());
            texts.iter().for_each(|text| push_text(bytes, text));
        }
        Array::Signed(numbers) => {
            head(kind::I32, numbers.len());
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        Array::Floats(numbers) => {
            head(kind::F32, numbers.len());
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        // Only what was read has no more than a length; an empty list stands for it.
        Array::Length(_) => head(kind::U8, 0),
    }
}
