//! Finds non-finite weights at memory speed, by exponent bits.

use super::Dtype;

/// Where a tensor stops being finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFiniteReport {
    /// Flat index of the first non-finite element.
    pub first_index: u64,
    /// How many there are.
    pub count: u64,
}

/// Elements looked at together before asking whether one was not finite.
const CHUNK: usize = 4096;

/// Looks through the little-endian elements of a float tensor; `None` when all are finite, or the type has no
/// non-finite values.
#[must_use]
pub fn scan_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<NonFiniteReport> {
    match dtype {
        Dtype::BF16 => scan::<2>(bytes, |e| u16::from_le_bytes(e) & 0x7f80 == 0x7f80),
        Dtype::F16 => scan::<2>(bytes, |e| u16::from_le_bytes(e) & 0x7c00 == 0x7c00),
        Dtype::F32 => scan::<4>(bytes, |e| u32::from_le_bytes(e) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::F64 => scan::<8>(bytes, |e| u64::from_le_bytes(e) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000),
        Dtype::F8_E4M3 => scan::<1>(bytes, |[e]| e & 0x7f == 0x7f),
        Dtype::F8_E5M2 => scan::<1>(bytes, |[e]| e & 0x7c == 0x7c),
        _ => None,
    }
}

fn scan<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<NonFiniteReport> {
    let (elements, _) = bytes.as_chunks::<N>();
    let mut report: Option<NonFiniteReport> = None;
    for (index, chunk) in elements.chunks(CHUNK).enumerate() {
        // No early exit inside a chunk: the loop stays a vector loop.
        let found = chunk.iter().map(|&element| u32::from(bad(element))).sum::<u32>();
        if found > 0 {
            let count = u64::from(found);
            if let Some(report) = &mut report {
                report.count += count;
            } else {
                let first = chunk.iter().position(|&element| bad(element)).unwrap_or(0);
                report = Some(NonFiniteReport { first_index: (index * CHUNK + first) as u64, count });
            }
        }
    }
    report
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
