//! Finds non-finite weights at memory speed, by exponent bits.

use multiversion::multiversion;

use super::{Checkpoint, Dtype, TensorEntry, bits_of};

/// Where a tensor stops being finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFiniteReport {
    /// Flat index of the first non-finite element.
    pub first_index: u64,
    /// How many there are.
    pub count: u64,
}

/// Bytes looked at together before asking whether one element was not finite: they stay in the first-level cache.
const CHUNK_BYTES: usize = 16 << 10;

/// Looks through the little-endian elements of a tensor; `None` when all are finite, or the type has no non-finite
/// values. Elements of C64 are complex numbers, counted once. A tail shorter than an element is not looked at.
#[must_use]
pub fn scan_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<NonFiniteReport> {
    match dtype {
        Dtype::BF16 => scan(bytes, 2, |chunk| count_16(chunk, 0x7f80)),
        Dtype::F16 => scan(bytes, 2, |chunk| count_16(chunk, 0x7c00)),
        Dtype::F32 => scan(bytes, 4, |chunk| count_32(chunk, 0x7f80_0000)),
        Dtype::F64 => scan(bytes, 8, |chunk| count_64(chunk, 0x7ff0_0000_0000_0000)),
        Dtype::C64 => scan(bytes, 8, count_complex),
        // Types without infinity or with one pattern for NaN are masked to that.
        Dtype::F8_E4M3 => scan(bytes, 1, |chunk| count_8(chunk, 0x7f, 0x7f)),
        Dtype::F8_E5M2 => scan(bytes, 1, |chunk| count_8(chunk, 0x7c, 0x7c)),
        Dtype::F8_E8M0 => scan(bytes, 1, |chunk| count_8(chunk, 0xff, 0xff)),
        Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => scan(bytes, 1, |chunk| count_8(chunk, 0xff, 0x80)),
        _ => None,
    }
}

/// [`scan_non_finite`] of a tensor of a checkpoint, piece by piece; its pages are given back.
#[must_use]
pub fn scan_tensor(checkpoint: &Checkpoint, entry: &TensorEntry) -> Option<NonFiniteReport> {
    let mut report: Option<NonFiniteReport> = None;
    for (start, bytes) in checkpoint.pieces(entry, 0..entry.bytes as usize) {
        if let Some(found) = scan_non_finite(entry.dtype, &bytes) {
            let before = start as u64 * 8 / bits_of(entry.dtype) as u64;
            let first_index = before + found.first_index;
            report.get_or_insert(NonFiniteReport { first_index, count: 0 }).count += found.count;
        }
        checkpoint.release(entry, start..start + bytes.len());
    }
    report
}

fn scan(bytes: &[u8], width: usize, count: impl Fn(&[u8]) -> usize) -> Option<NonFiniteReport> {
    let mut report: Option<NonFiniteReport> = None;
    let whole = bytes.len() / width * width;
    for (index, chunk) in bytes[..whole].chunks(CHUNK_BYTES).enumerate() {
        let found = count(chunk) as u64;
        if found == 0 {
            continue;
        }
        let report = report.get_or_insert_with(|| {
            let within = chunk.chunks(width).position(|element| count(element) > 0).unwrap_or(0);
            NonFiniteReport { first_index: (index * (CHUNK_BYTES / width) + within) as u64, count: 0 }
        });
        report.count += found;
    }
    report
}

/// Counts the elements all of whose exponent bits are set. No early exit: the loops stay vector loops.
macro_rules! counters {
    ($($name:ident, $number:ty, $width:literal;)*) => {$(
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1"))]
        fn $name(chunk: &[u8], exponent: $number) -> usize {
            let mut found: $number = 0;
            for &element in chunk.as_chunks::<$width>().0 {
                found += <$number>::from(<$number>::from_le_bytes(element) & exponent == exponent);
            }
            found as usize
        }
    )*};
}

counters! {
    count_16, u16, 2;
    count_32, u32, 4;
    count_64, u64, 8;
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "x86_64+sse4.1"))]
fn count_8(chunk: &[u8], mask: u8, pattern: u8) -> usize {
    // Blocks short enough for the count to fit the type keep as many lanes as there are bytes in a vector.
    chunk
        .chunks(128)
        .map(|block| block.iter().map(|element| u8::from(element & mask == pattern)).sum::<u8>() as usize)
        .sum()
}

fn count_complex(chunk: &[u8]) -> usize {
    chunk.as_chunks::<8>().0.iter().filter(|number| count_32(number.as_slice(), 0x7f80_0000) > 0).count()
}

#[cfg(test)]
mod tests {
    use super::{Dtype, NonFiniteReport, scan_non_finite};
    use crate::checkpoint::decode_to_f32;

    #[test]
    fn every_pattern_is_judged_as_its_value_is() {
        for dtype in [Dtype::F8_E4M3, Dtype::F8_E5M2] {
            for byte in 0..=255_u8 {
                let mut value = [0.0];
                decode_to_f32(dtype, &[byte], &mut value);
                assert_eq!(scan_non_finite(dtype, &[byte]).is_some(), !value[0].is_finite(), "{dtype:?} {byte:#x}");
            }
        }
        for dtype in [Dtype::BF16, Dtype::F16] {
            for bits in 0..=u16::MAX {
                let mut value = [0.0];
                decode_to_f32(dtype, &bits.to_le_bytes(), &mut value);
                assert_eq!(scan_non_finite(dtype, &bits.to_le_bytes()).is_some(), !value[0].is_finite());
            }
        }
    }

    #[test]
    fn types_that_are_never_decoded_know_their_patterns() {
        // OCP microscaling 1.0: E8M0 has NaN at 0xff only. FNUZ types have neither infinity nor −0; NaN is at 0x80.
        for byte in 0..=255_u8 {
            assert_eq!(scan_non_finite(Dtype::F8_E8M0, &[byte]).is_some(), byte == 0xff);
            assert_eq!(scan_non_finite(Dtype::F8_E4M3FNUZ, &[byte]).is_some(), byte == 0x80);
            assert_eq!(scan_non_finite(Dtype::F8_E5M2FNUZ, &[byte]).is_some(), byte == 0x80);
            assert_eq!(scan_non_finite(Dtype::I8, &[byte]), None);
        }
        let mut numbers: Vec<u8> = [1.0, 2.0, f32::NAN, f32::NAN, 3.0, f32::INFINITY].map(f32::to_le_bytes).concat();
        assert_eq!(scan_non_finite(Dtype::C64, &numbers), Some(NonFiniteReport { first_index: 1, count: 2 }));
        numbers.truncate(8);
        assert_eq!(scan_non_finite(Dtype::C64, &numbers), None);
    }

    #[test]
    fn doubles_and_all_bad_chunks_are_counted_in_full() {
        let all_bad = [f64::NAN.to_le_bytes(), f64::NEG_INFINITY.to_le_bytes()].concat().repeat(20_000);
        assert_eq!(scan_non_finite(Dtype::F64, &all_bad), Some(NonFiniteReport { first_index: 0, count: 40_000 }));
        for (dtype, byte, width) in [(Dtype::BF16, 0xff, 2), (Dtype::F8_E4M3, 0x7f, 1), (Dtype::F32, 0xff, 4)] {
            let all_bad = vec![byte; 1 << 20];
            let expected = NonFiniteReport { first_index: 0, count: (1 << 20) / width };
            assert_eq!(scan_non_finite(dtype, &all_bad), Some(expected), "{dtype}");
            // At an odd address and with half an element behind.
            assert_eq!(scan_non_finite(dtype, &all_bad[1..]).unwrap().count, ((1 << 20) - 1) / width, "{dtype}");
        }
        assert_eq!(scan_non_finite(Dtype::F64, &f64::MAX.to_le_bytes()), None);
        assert_eq!(scan_non_finite(Dtype::F64, &[]), None);
    }

    #[test]
    fn the_first_and_the_number_are_told_across_chunks() {
        let mut bytes = vec![0; 4 * 20_000];
        assert_eq!(scan_non_finite(Dtype::F32, &bytes), None);
        for (index, value) in [(4095, f32::NAN), (4096, f32::INFINITY), (19_999, f32::NEG_INFINITY)] {
            bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
        }
        assert_eq!(scan_non_finite(Dtype::F32, &bytes), Some(NonFiniteReport { first_index: 4095, count: 3 }));
        assert_eq!(scan_non_finite(Dtype::I32, &[0xff; 8]), None);
    }
}
