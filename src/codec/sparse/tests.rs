//! Masks and their bytes against naive references, other tools' files, and hostile bytes.

use std::path::Path;

use proptest::prelude::*;

use super::{bitmask, maskllm, select::*, *};
use crate::{
    checkpoint::{Checkpoint, Dtype, bits_of, decode_to_f32, encode_from_f32},
    codec::CodecError,
};

const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];

/// Columns kept of a group, by sorting: largest magnitude first, of equal ones the higher column.
fn largest(group: &[f32], keep: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..group.len()).collect();
    places.sort_by(|a, b| group[*b].abs().total_cmp(&group[*a].abs()).then(b.cmp(a)));
    places.truncate(keep);
    places.sort_unstable();
    places
}

/// The bits of a row by the same rule.
fn naive(row: &[f32], pattern: Pattern) -> Vec<u8> {
    let mut bits = vec![0; Mask::row_bytes(row.len())];
    for (index, group) in row.chunks(pattern.of).enumerate() {
        let keep = if group.len() < pattern.of { group.len() } else { pattern.keep };
        for place in largest(group, keep) {
            let column = index * pattern.of + place;
            bits[column / 8] |= 1 << (column % 8);
        }
    }
    bits
}

/// Rows in which equal magnitudes, zeros of both signs and subnormals are frequent.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let weight = prop_oneof![(-4_i8..=4).prop_map(f32::from), Just(-0.0), Just(1e-7), -3.0_f32..3.0, Just(60000.0),];
    prop::collection::vec(weight, 1..700)
}

fn stored(dtype: Dtype, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    encode_from_f32(dtype, values, &mut bytes);
    let mut values = values.to_vec();
    decode_to_f32(dtype, &bytes, &mut values);
    (bytes, values)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #[test]
    fn the_two_largest_of_four_are_kept(row in row(), index in 0_usize..3) {
        let dtype = TYPES[index];
        let (bytes, values) = stored(dtype, &row);
        let expected = naive(&values, Pattern::TWO_OF_FOUR);
        let (mut out, mut mask) = (vec![0xaa; bytes.len()], vec![0xaa; expected.len()]);
        prop_assert!(prune_row(dtype, &bytes, &mut out, &mut mask));
        prop_assert_eq!(&mask, &expected);
        let whole = Mask::new(Pattern::TWO_OF_FOUR, 1, values.len(), mask).unwrap();
        let mut pruned = vec![0.0; values.len()];
        decode_to_f32(dtype, &out, &mut pruned);
        let mut masked = values.clone();
        whole.apply(&mut masked).unwrap();
        prop_assert_eq!(bits(&pruned), bits(&masked));

        let sparse = Sparse { keep: 2, of: 4, dtype };
        let [expected_values, expected_indices] = sparse.encode(&values, &whole).unwrap();
        let (mut kept, mut indices) = (vec![0xaa; expected_values.len()], vec![0xaa; expected_indices.len()]);
        prop_assert!(compact_row(dtype, &bytes, &mut kept, &mut indices));
        prop_assert_eq!(kept, expected_values);
        prop_assert_eq!(indices, expected_indices);
    }

    #[test]
    fn scores_are_selected_for_every_pattern(row in row(), of in 2_usize..=8, keep in 1_usize..8) {
        prop_assume!(keep < of);
        let pattern = Pattern { keep, of };
        let scores: Vec<f32> = row.iter().map(|weight| weight.abs()).collect();
        let mut mask = vec![0; Mask::row_bytes(row.len())];
        select_row(&scores, pattern, &mut mask);
        prop_assert_eq!(&mask, &naive(&scores, pattern));
        prop_assert!(Mask::new(pattern, 1, row.len(), mask).is_ok());
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same_bits(
        row in row(), rows in 1_usize..5, of in 2_usize..=8, keep in 1_usize..8, index in 0_usize..3,
    ) {
        prop_assume!(keep < of);
        let columns = row.len() / rows;
        let sparse = Sparse { keep, of, dtype: TYPES[index] };
        let (_, mut values) = stored(sparse.dtype, &row[..rows * columns]);
        let mut kept = Vec::new();
        for row in 0..rows {
            // By another row's magnitudes, so that kept weights may be zero.
            kept.extend(naive(&values[(row + 1) % rows * columns..][..columns], sparse.pattern()));
        }
        let mask = Mask::new(sparse.pattern(), rows, columns, kept).unwrap();
        let parts = sparse.encode(&values, &mask).unwrap();
        for (part, tensor) in parts.iter().zip(sparse.tensors(rows, columns)) {
            prop_assert_eq!(part.len(), tensor.shape.iter().product::<usize>() * bits_of(tensor.dtype) / 8);
        }
        let decoded = sparse.decode(rows, columns, &[&parts[0], &parts[1]]).unwrap();
        mask.apply(&mut values).unwrap();
        prop_assert_eq!(bits(&decoded), bits(&values));
        prop_assert_eq!(sparse.mask(rows, columns, &parts[1]).unwrap(), mask.clone());
        let file = maskllm::write(Vec::new(), [("a.weight", &mask)]).unwrap();
        let file = maskllm::MaskFile::open(&file).unwrap();
        prop_assert_eq!(file.mask("a.weight", rows, columns, sparse.pattern()).unwrap(), mask);
    }

    #[test]
    fn hostile_indices_are_refused_or_mean_a_mask(bytes in prop::collection::vec(any::<u8>(), 6), keep in 1_usize..3) {
        let sparse = Sparse { keep, of: 3, dtype: Dtype::F32 };
        let values = vec![0; 2 * sparse.pattern().kept_per_row(10) * 4];
        let length = sparse.tensors(2, 10)[1].shape.iter().product::<usize>();
        let decoded = sparse.decode(2, 10, &[&values, &bytes[..length]]);
        prop_assert_eq!(decoded.is_ok(), sparse.mask(2, 10, &bytes[..length]).is_ok());
    }

    #[test]
    fn a_damaged_archive_is_no_panic(at in 0_usize..10_000, flip in 1_u8..=255, cut in 0_usize..10_000) {
        let mask = Mask::new(Pattern::TWO_OF_FOUR, 8, 12, [0x35, 0x0a].repeat(8)).unwrap();
        let mut file = maskllm::write(Vec::new(), [("a", &mask), ("b", &mask)]).unwrap();
        let at = at % file.len();
        file[at] ^= flip;
        if let Ok(read) = maskllm::MaskFile::open(&file) {
            for name in ["a", "b"] {
                // What is not covered by a checksum does not change the mask.
                if let Ok(read) = read.mask(name, 8, 12, Pattern::TWO_OF_FOUR) {
                    prop_assert_eq!(&read, &mask);
                }
            }
        }
        file[at] ^= flip;
        file.truncate(cut % file.len());
        prop_assert!(maskllm::MaskFile::open(&file).is_err());
    }
}

#[test]
fn weights_that_are_not_finite_are_told() {
    for (dtype, largest) in [(Dtype::F32, f32::MAX), (Dtype::F16, 65504.0), (Dtype::BF16, 3.3895314e38)] {
        for (value, finite) in [(f32::INFINITY, false), (f32::NAN, false), (largest, true)] {
            let (bytes, _) = stored(dtype, &[1.0, 2.0, 0.0, value]);
            let (mut out, mut mask, mut indices) = (bytes.clone(), [0], [0]);
            assert_eq!(prune_row(dtype, &bytes, &mut out, &mut mask), finite, "{dtype:?} {value}");
            let half = bytes.len() / 2;
            assert_eq!(compact_row(dtype, &bytes, &mut out[..half], &mut indices), finite, "{dtype:?} {value}");
        }
    }
}

#[test]
fn indices_are_those_of_the_sparse_units() {
    // Quads that keep (0, 1), (2, 3), (1, 2), (0, 3): the metadata word that torch makes of them is 0xC9E4.
    let mask = Mask::new(Pattern::TWO_OF_FOUR, 1, 16, vec![0b1100_0011, 0b1001_0110]).unwrap();
    let weights: Vec<f32> = (1..=16_u8).map(f32::from).collect();
    let sparse = Sparse { keep: 2, of: 4, dtype: Dtype::F32 };
    let [values, indices] = sparse.encode(&weights, &mask).unwrap();
    assert_eq!(u16::from_le_bytes([indices[0], indices[1]]), 0xc9e4);
    assert_eq!(-13852_i16, 0xc9e4_u16 as i16);
    let mut kept = vec![0.0; 8];
    decode_to_f32(Dtype::F32, &values, &mut kept);
    assert_eq!(kept, [1.0, 2.0, 7.0, 8.0, 10.0, 11.0, 13.0, 16.0]);
    assert_eq!(
        Pattern::TWO_OF_FOUR.left_out(),
        [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]].map(|set| set.to_vec())
    );
}

#[test]
fn what_is_no_mask_is_refused() {
    let two_of_four = Pattern::TWO_OF_FOUR;
    let new = |columns, bits: &[u8]| Mask::new(two_of_four, 1, columns, bits.to_vec());
    assert!(new(6, &[0b11_0011]).is_ok(), "two columns at the end are kept");
    let wrong = |row, column, kept, expected| CodecError::Mask { row, column, kept, expected };
    assert_eq!(new(8, &[0b0111_0011]).unwrap_err(), wrong(0, 4, 3, 2));
    assert_eq!(new(6, &[0b01_0011]).unwrap_err(), wrong(0, 4, 1, 2));
    assert_eq!(new(6, &[0b111_0011]).unwrap_err(), wrong(0, 6, 1, 0));
    assert!(matches!(new(8, &[0, 0]), Err(CodecError::Length { .. })));
    assert!(matches!(Mask::new(two_of_four, usize::MAX, 8, vec![]), Err(CodecError::TooLarge { .. })));
    for (keep, of) in [(0, 4), (4, 4), (5, 4), (2, 9), (1, 1), (0, 0)] {
        let refused = Err(CodecError::Pattern { keep, of });
        assert_eq!(Pattern { keep, of }.validate(), refused);
        assert_eq!(Mask::new(Pattern { keep, of }, 0, 0, vec![]), Err(CodecError::Pattern { keep, of }));
    }
    let sparse = Sparse { keep: 2, of: 4, dtype: Dtype::BF16 };
    assert_eq!(Sparse::parse_name("mask-2of4", Dtype::BF16), Some(sparse));
    assert_eq!(sparse.name(), "mask-2of4");
    for name in ["mask-4of4", "mask-2of9", "mask-02of4", "mask-2of", "2of4", "mask-2of4-", "mask-+2of4", "mask-2of16"] {
        assert_eq!(Sparse::parse_name(name, Dtype::BF16), None, "{name}");
    }
    assert!(
        sparse.validate(usize::MAX / 2, 3).is_err() && Sparse { dtype: Dtype::I8, ..sparse }.validate(1, 4).is_err()
    );
    let indices = |byte: u8| sparse.mask(1, 4, &[byte]);
    assert!(indices(0b0100).is_ok());
    for byte in [0b0000, 0b0001, 0b1111, 0b1_0100] {
        assert!(matches!(indices(byte), Err(CodecError::Stored { what: "indices", .. })), "{byte:#b}");
    }
    assert!(matches!(sparse.mask(1, 4, &[]), Err(CodecError::Length { .. })));
    assert!(matches!(sparse.decode(1, 4, &[&[0; 4]]), Err(CodecError::Length { .. })));
    assert!(matches!(sparse.decode(1, 4, &[&[0; 3], &[4]]), Err(CodecError::Length { .. })));
}

fn golden(name: &str) -> Option<std::path::PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/interop/golden")).join(name);
    if !path.exists() {
        eprintln!("SKIPPED: reference artifacts are not at {}", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn bitmasks_are_the_bytes_of_compressed_tensors() {
    let Some(folder) = golden("sparse24-sparsegpt-bitmask") else { return };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let mut checked = 0;
    for values in checkpoint.tensors().filter(|entry| entry.name.ends_with(".compressed")) {
        let module = values.name.strip_suffix(".compressed").unwrap();
        let part = |suffix: &str| checkpoint.tensor(&format!("{module}.{suffix}")).unwrap();
        let (rows, columns): (usize, usize) = (values.shape[0], values.shape[1] * 2);
        // The dense matrix, put together from the mask bit by bit.
        let bytes = bits_of(values.dtype) / 8;
        let bits = checkpoint.bytes(part("bitmask"));
        let stored_values = checkpoint.bytes(values);
        let mut kept = stored_values.chunks_exact(bytes);
        let mut dense = Vec::new();
        for row in 0..rows {
            for column in 0..columns {
                let set = bits[row * columns.div_ceil(8) + column / 8] >> (column % 8) & 1 == 1;
                dense.extend_from_slice(if set { kept.next().unwrap() } else { &[0; 8][..bytes] });
            }
        }
        // The mask is found anew: the two largest of each four.
        let mut found = vec![0; bits.len()];
        let (row_bytes, mask_bytes) = (columns * bytes, Mask::row_bytes(columns));
        for (row, found) in dense.chunks_exact(row_bytes).zip(found.chunks_exact_mut(mask_bytes)) {
            let mut out = vec![0; row_bytes];
            assert!(prune_row(values.dtype, row, &mut out, found));
            assert_eq!(out, row);
        }
        let mask = Mask::new(Pattern::TWO_OF_FOUR, rows, columns, found).unwrap();
        let stored = bitmask::encode(values.dtype, &dense, &mask).unwrap();
        assert!(bits == stored.bitmask, "{module}: mask");
        assert!(checkpoint.bytes(values) == stored.compressed, "{module}: values");
        assert!(checkpoint.bytes(part("shape")) == stored.shape, "{module}: shape");
        for (tensor, entry) in
            bitmask::tensors(rows, columns, values.dtype).iter().zip([values, part("bitmask"), part("shape")])
        {
            assert_eq!((tensor.dtype, &tensor.shape), (entry.dtype, &entry.shape), "{}", entry.name);
            assert_eq!(format!("{module}.{}", tensor.suffix), entry.name);
        }
        checked += 1;
    }
    assert!(checked >= 14, "only {checked} matrices");
}

#[test]
fn bitmasks_hold_whole_quads_only() {
    let mask = Mask::new(Pattern::TWO_OF_FOUR, 1, 6, vec![0b11_0011]).unwrap();
    assert!(matches!(bitmask::encode(Dtype::BF16, &[0; 12], &mask), Err(CodecError::Stored { .. })));
    let mask = Mask::new(Pattern { keep: 1, of: 4 }, 1, 4, vec![0b0001]).unwrap();
    assert_eq!(bitmask::encode(Dtype::BF16, &[0; 8], &mask), Err(CodecError::Pattern { keep: 1, of: 4 }));
}

#[test]
fn masks_of_maskllm_are_read() {
    let (Some(masks), Some(dense)) = (golden("maskllm/mask_compressed.npz"), golden("dense-bf16")) else { return };
    let bytes = std::fs::read(masks).unwrap();
    let file = maskllm::MaskFile::open(&bytes).unwrap();
    let checkpoint = Checkpoint::open(&dense).unwrap();
    let mut all = Vec::new();
    for parameter in file.parameters() {
        let entry = checkpoint.tensor(parameter).unwrap_or_else(|| panic!("no {parameter}"));
        let (rows, columns) = (entry.shape[0], entry.shape[1]);
        all.push((parameter, file.mask(parameter, rows, columns, Pattern::TWO_OF_FOUR).unwrap()));
        assert!(file.mask(parameter, rows, columns / 2, Pattern::TWO_OF_FOUR).is_err());
        assert!(file.mask(parameter, rows, columns, Pattern { keep: 1, of: 4 }).is_err());
    }
    assert_eq!(all.len(), 14);
    assert!(matches!(file.mask("x", 1, 4, Pattern::TWO_OF_FOUR), Err(maskllm::MaskFileError::File(_))));
    let again = maskllm::write(Vec::new(), all.iter().map(|(name, mask)| (*name, mask))).unwrap();
    let again = maskllm::MaskFile::open(&again).unwrap();
    for (parameter, mask) in &all {
        assert_eq!(&again.mask(parameter, mask.rows(), mask.columns(), mask.pattern()).unwrap(), mask);
    }
}
