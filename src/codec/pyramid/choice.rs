//! The pyramids that meet a number of bits per weight.

use std::sync::OnceLock;

use super::{Counts, MAX_PULSES, Pyramid, distortion::expected_distortion};

/// Lengths of vectors that are tried: shorter ones spend much on gains, longer ones sample the sphere no better and take
/// longer to search.
const DIMENSIONS: std::ops::RangeInclusive<usize> = 8..=32;
/// Bits of gains that are tried.
const GAIN_BITS: std::ops::RangeInclusive<u8> = 1..=7;

/// The formats that store a matrix in at most so many bits per weight, everything counted, each with about what share
/// of the energy it loses; that which loses least first. For each length of vectors and gains, the most pulses that fit.
#[must_use]
pub fn choices(rows: usize, columns: usize, bits_per_weight: f64) -> Vec<(Pyramid, f64)> {
    static COUNTS: OnceLock<Counts> = OnceLock::new();
    let counts = COUNTS.get_or_init(|| Counts::new(*DIMENSIONS.end(), MAX_PULSES));
    let budget = (bits_per_weight * rows as f64 * columns as f64 / 8.0).floor();
    let fits = |pyramid: &Pyramid| pyramid.stored_bytes(rows, columns).is_ok_and(|bytes| bytes as f64 <= budget);
    let mut found = Vec::new();
    for dimension in DIMENSIONS {
        for gain_bits in GAIN_BITS {
            // The first guess may be a little too large where blocks are padded.
            let most = (bits_per_weight * dimension as f64 - f64::from(gain_bits)).clamp(0.0, 128.0) as u32;
            let pyramid = (1..=most).rev().find_map(|index_bits| {
                let pulses = counts.most_pulses(dimension, index_bits);
                let pyramid = Pyramid { dimension, pulses, gain_bits };
                (pulses > 0 && fits(&pyramid)).then_some(pyramid)
            });
            found.extend(pyramid.map(|pyramid| (pyramid, expected_distortion(&pyramid, counts))));
        }
    }
    // Stable: of equals the shortest vectors.
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    found
}

impl Pyramid {
    /// The format that loses least of a matrix in at most so many bits per weight, everything counted; none where
    /// nothing fits.
    #[must_use]
    pub fn for_target(rows: usize, columns: usize, bits_per_weight: f64) -> Option<Self> {
        choices(rows, columns, bits_per_weight).first().map(|(pyramid, _)| *pyramid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_met_closely_and_never_exceeded() {
        for (rows, columns) in [(4096, 4096), (1024, 4096), (14336, 4096), (256, 256), (768, 256), (100, 333)] {
            for target in [2.0, 2.25, 2.5, 3.0, 3.25, 4.0, 4.25, 5.1] {
                let pyramid = Pyramid::for_target(rows, columns, target).unwrap();
                let bits = pyramid.stored_bytes(rows, columns).unwrap() as f64 * 8.0 / (rows * columns) as f64;
                assert!(
                    bits <= target && bits > target - 0.08,
                    "{rows} × {columns} {target}: {} {bits}",
                    pyramid.name()
                );
                // Not one of the others would be expected to lose less.
                let choices = choices(rows, columns, target);
                assert!(choices.is_sorted_by(|a, b| a.1 <= b.1));
                assert_eq!(choices[0].0, pyramid);
            }
        }
        assert_eq!(Pyramid::for_target(4096, 4096, 0.01), None);
        assert_eq!(Pyramid::for_target(0, 10, 3.0), None);
    }
}
