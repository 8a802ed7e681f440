//! Writes headers: the official writer's order of tensors, and the exact bytes that stand before the data.

use std::{io, path::Path};

use super::{Dtype, bits_of};

/// `__metadata__` of every file that bantam writes: what transformers asks for before it loads one.
pub const METADATA: &[(&str, &str)] = &[("format", "pt")];

/// Bytes of the length that stands before the header.
pub(super) const LENGTH_BYTES: usize = 8;

/// Bytes of the data of a tensor, `None` on overflow or when a type below 8 bits does not fill its last byte.
#[must_use]
pub fn data_bytes(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let bits = u64::try_from(bits_of(dtype)).ok()?;
    let elements = shape.iter().try_fold(1_u64, |product, &side| product.checked_mul(u64::try_from(side).ok()?))?;
    let bits = elements.checked_mul(bits)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The order of the official writer: widest element type first (in the order of [`Dtype`], descending), then by name.
/// Every tensor then starts at a multiple of its element size.
#[must_use]
pub fn canonical_order(left: (Dtype, &str), right: (Dtype, &str)) -> std::cmp::Ordering {
    right.0.cmp(&left.0).then_with(|| left.1.cmp(right.1))
}

/// Makes all bytes of a file before its data: the header's length in 8 little-endian bytes, then the header itself,
/// compact, padded with spaces to a multiple of 8. Tensors lie one after the other in the order given; sort them by
/// [`canonical_order`] to get the official writer's file. Without metadata there is no `__metadata__`.
///
/// # Panics
/// Panics when a size overflows or does not fill whole bytes; sizes to be written are planned, never read from input.
#[must_use]
pub fn header_bytes<'a>(
    tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize])>,
    metadata: &[(&str, &str)],
) -> Vec<u8> {
    let mut json = String::from("{");
    if !metadata.is_empty() {
        json.push_str("\"__metadata__\":{");
        for (index, (key, value)) in metadata.iter().enumerate() {
            json.push_str(if index == 0 { "" } else { "," });
            push_json_string(&mut json, key);
            json.push(':');
            push_json_string(&mut json, value);
        }
        json.push('}');
    }
    let mut offset = 0_u64;
    for (name, dtype, shape) in tensors {
        if json.len() > 1 {
            json.push(',');
        }
        let bytes = data_bytes(dtype, shape).expect("a planned tensor fills whole bytes");
        let end = offset.checked_add(bytes).expect("a planned file fits 64 bits");
        push_json_string(&mut json, name);
        let sides = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        json.push_str(":{\"dtype\":\"");
        json.push_str(&dtype.to_string());
        json.push_str("\",\"shape\":[");
        json.push_str(&sides);
        json.push_str("],\"data_offsets\":[");
        json.push_str(&offset.to_string());
        json.push(',');
        json.push_str(&end.to_string());
        json.push_str("]}");
        offset = end;
    }
    json.push('}');
    let length = json.len().next_multiple_of(LENGTH_BYTES);
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + length);
    bytes.extend((length as u64).to_le_bytes());
    bytes.extend(json.as_bytes());
    bytes.resize(LENGTH_BYTES + length, b' ');
    bytes
}

fn push_json_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}

/// Writes a small safetensors file: name, type, shape and bytes of each tensor, laid out in the order given, so that
/// tests can place data at odd offsets too.
///
/// # Errors
/// Fails when the bytes of a tensor are not as many as its type and shape say, or the file cannot be written.
#[doc(hidden)]
pub fn write_file(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> io::Result<()> {
    for (name, dtype, shape, bytes) in tensors {
        if data_bytes(*dtype, shape) != Some(bytes.len() as u64) {
            let message = format!("`{name}`: {dtype} {shape:?} is not {} bytes", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
    }
    let listed = tensors.iter().map(|(name, dtype, shape, _)| (*name, *dtype, shape.as_slice()));
    let mut file = header_bytes(listed, METADATA);
    for (.., bytes) in tensors {
        file.extend(bytes);
    }
    std::fs::write(path, file)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::TensorView;

    use super::*;

    /// One tensor of every type, in a scrambled order.
    fn one_of_each() -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
        [
            ("r", Dtype::F4, vec![2, 1]),
            ("q", Dtype::F64, vec![]),
            ("a", Dtype::BOOL, vec![3]),
            ("quote\"\\\n\u{1}é", Dtype::U8, vec![1, 5]),
            ("empty", Dtype::F32, vec![0, 7]),
            ("f6", Dtype::F6_E2M3, vec![4]),
            ("f6b", Dtype::F6_E3M2, vec![8]),
            ("i8", Dtype::I8, vec![1]),
            ("e5", Dtype::F8_E5M2, vec![1]),
            ("e4", Dtype::F8_E4M3, vec![1]),
            ("e8", Dtype::F8_E8M0, vec![1]),
            ("e4z", Dtype::F8_E4M3FNUZ, vec![1]),
            ("e5z", Dtype::F8_E5M2FNUZ, vec![1]),
            ("i16", Dtype::I16, vec![1]),
            ("u16", Dtype::U16, vec![1]),
            ("f16", Dtype::F16, vec![1]),
            ("bf16b", Dtype::BF16, vec![1]),
            ("bf16a", Dtype::BF16, vec![1]),
            ("i32", Dtype::I32, vec![1]),
            ("u32", Dtype::U32, vec![1]),
            ("c64", Dtype::C64, vec![1]),
            ("i64", Dtype::I64, vec![1]),
            ("u64", Dtype::U64, vec![1]),
        ]
        .into_iter()
        .map(|(name, dtype, shape)| {
            let bytes = data_bytes(dtype, &shape).unwrap();
            (name, dtype, shape, vec![7; bytes as usize])
        })
        .collect()
    }

    #[test]
    fn same_bytes_as_the_official_writer() {
        let mut tensors = one_of_each();
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
            .collect();
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let official = safetensors::serialize(views, Some(metadata)).unwrap();

        tensors.sort_by(|left, right| canonical_order((left.1, left.0), (right.1, right.0)));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write_file(&path, &tensors).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), official);
    }

    #[test]
    fn no_tensor_and_no_metadata_is_an_empty_object() {
        assert_eq!(header_bytes([], &[]), b"\x08\0\0\0\0\0\0\0{}      ");
        assert_eq!(header_bytes([], METADATA), b"\x20\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"}}");
    }

    #[test]
    fn wrong_byte_counts_are_refused() {
        let error = write_file(Path::new("unused"), &[("w", Dtype::F32, vec![2], vec![0; 7])]).unwrap_err();
        assert_eq!(error.to_string(), "`w`: F32 [2] is not 7 bytes");
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(data_bytes(Dtype::F4, &[3]), None);
        assert_eq!(data_bytes(Dtype::F6_E2M3, &[4]), Some(3));
        assert_eq!(data_bytes(Dtype::U8, &[1 << 32, 1 << 32]), None);
        assert_eq!(data_bytes(Dtype::F64, &[1 << 61]), None);
        assert_eq!(data_bytes(Dtype::F64, &[1 << 61, 0]), Some(0));
    }
}
